//! Problems of Services for users: [`Problem`], with its message for the log. Pure.

use std::fmt;

use crds::{Key, ProblemReason};

/// A part of a Service that is not forwarded as its spec requires.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub service: Key,
    pub reason: ProblemReason,
    /// The subject: ports, the address of an endpoint, a source range, a backend and its missing requirement, or an
    /// address of the node.
    pub what: String,
}

impl Problem {
    /// Whether it is a misconfiguration. A lack of endpoints happens to every Service now and then.
    pub fn is_mistake(&self) -> bool {
        !matches!(self.reason, ProblemReason::NoEndpoints | ProblemReason::NoLocalEndpoints)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, reason, what } = self;
        match reason {
            ProblemReason::InvalidSourceRange => write!(
                f,
                "loadBalancerSourceRanges of Service {service}: {what:?} is not a CIDR such as 192.0.2.0/24 and allows \
                 no client"
            ),
            ProblemReason::EndpointsRefused => write!(
                f,
                "Service {service}: endpoint {what} is not the address of a pod or another host and is ignored; check \
                 its EndpointSlices"
            ),
            ProblemReason::UnknownBackend => write!(
                f,
                "annotation landfall.dev/backend of Service {service}: {what:?} is not one of endpoints, nodeport and \
                 clusterip, and is ignored"
            ),
            ProblemReason::BackendUnavailable => {
                write!(f, "Service {service} is forwarded to its endpoints, not by the backend {what}")
            }
            ProblemReason::NoEndpoints => {
                write!(f, "Service {service} has no endpoint for {what}: connections are refused")
            }
            ProblemReason::AnswersElsewhere => {
                write!(f, "replies of Service {service} may leave by another link than the requests came in by: {what}")
            }
            ProblemReason::RequestsFiltered => write!(f, "the kernel may drop requests to Service {service}: {what}"),
            ProblemReason::AddressOfNode => write!(
                f,
                "Service {service} is not forwarded: {what} is an address of this node itself; remove it from the \
                 node, or give the Service another address"
            ),
            ProblemReason::NoLocalEndpoints | ProblemReason::Other => {
                write!(f, "Service {service} has no endpoint for {what} on this node: packets from outside are dropped")
            }
        }
    }
}
