//! The condition `landfall.dev/Forwarding`: how packets to the addresses of a Service reach its endpoints.
//!
//! The reports of the announcing nodes in the LoadBalancerIPs → the condition. Messages name no node, so a move of an
//! address changes nothing here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crds::condition::{ConditionStatus, DesiredCondition};
use crds::service::FORWARDING;
use crds::{Announcer, ForwardingProblem, ProblemReason, Reach, Record, Service};
use jiff::Timestamp;

use crate::allocate::allocation::Allocation;
use crate::state::index::ClusterIndex;
use crate::status::change::is_current;
use crate::status::reason::{EventReason, ForwardingReason};

/// Problems that a user has to correct. They are events too.
const MISTAKES: [ProblemReason; 6] = [
    ProblemReason::AddressOfNode,
    ProblemReason::EndpointsRefused,
    ProblemReason::InvalidSourceRange,
    ProblemReason::BackendUnavailable,
    ProblemReason::UnknownBackend,
    ProblemReason::RequestsFiltered,
];

/// The status of the condition with this reason.
fn status_of(reason: ForwardingReason) -> ConditionStatus {
    match reason {
        ForwardingReason::Unreported | ForwardingReason::NotAnnounced => ConditionStatus::Unknown,
        ForwardingReason::Problem(
            ProblemReason::NoLocalEndpoints | ProblemReason::NoEndpoints | ProblemReason::AddressOfNode,
        ) => ConditionStatus::False,
        _ => ConditionStatus::True,
    }
}

/// The reason when packets reach the endpoints in this way.
fn reason_of(reach: Option<Reach>) -> ForwardingReason {
    reach.map_or(ForwardingReason::Unreported, ForwardingReason::Reached)
}

/// The message about how packets to an address reach the endpoints.
fn reach_message(lb_ip: IpAddr, reach: Option<Reach>) -> impl fmt::Display {
    let text = match reach {
        Some(Reach::Spread) => "is spread over nodes, and endpoints see the client",
        Some(Reach::Mixed) => {
            "is spread over nodes where that is possible; endpoints elsewhere see a node, not the client"
        }
        Some(Reach::Translated) => {
            "is forwarded by the node that announces it, and endpoints on other nodes see that node instead of the \
             client"
        }
        Some(Reach::Proxied) => "is forwarded by the Service proxy of the node that announces it, or by another proxy",
        Some(Reach::Other) => "is forwarded in a way that this version does not know",
        None => "is not forwarded by Landfall (--dataplane=off), or by an agent of an older version",
    };
    fmt::from_fn(move |f| write!(f, "{lb_ip} {text}"))
}

/// The message about a problem of an address.
fn problem_message(lb_ip: IpAddr, problem: &ForwardingProblem) -> String {
    let what = &problem.what;
    match problem.reason {
        ProblemReason::NoEndpoints => format!(
            "{lb_ip} refuses {what}, which has no endpoint: see whether the pods that the Service selects are ready, \
             and whether they have that target port"
        ),
        ProblemReason::NoLocalEndpoints => format!(
            "{lb_ip} drops {what}: externalTrafficPolicy is Local, and the node that announces the address has no \
             ready endpoint for it"
        ),
        ProblemReason::EndpointsRefused => format!(
            "an EndpointSlice has {what}, which is loopback, link-local or no address at all, and is ignored: use \
             addresses of pods or other hosts"
        ),
        ProblemReason::InvalidSourceRange => format!(
            "loadBalancerSourceRanges has {what:?}, which is no CIDR such as 192.0.2.0/24 and admits no client: \
             correct it"
        ),
        ProblemReason::BackendUnavailable => {
            format!("{lb_ip} is forwarded to endpoints, and not by the backend {what}")
        }
        ProblemReason::UnknownBackend => format!(
            "the annotation landfall.dev/backend has {what:?}, which is not endpoints, nodeport or clusterip, and is \
             ignored: correct it"
        ),
        ProblemReason::AnswersElsewhere => format!(
            "answers from {lb_ip} may leave the node on another link than the requests arrive on: {what} (see \"Nodes \
             with several links\" in docs/guide/forwarding.md)"
        ),
        ProblemReason::RequestsFiltered => format!(
            "the kernel of the node that announces {lb_ip} drops requests that arrive on {what} if its route to the \
             client uses another link: set net.ipv4.conf.LINK.rp_filter to 2 (loose)"
        ),
        ProblemReason::AddressOfNode => format!(
            "{lb_ip} is also an address of the node that announces it, and is not forwarded there, so that the node \
             stays reachable: remove it from the node, or give the Service another address"
        ),
        ProblemReason::Other => {
            format!("{what} of {lb_ip} is not forwarded, for a reason that this version does not know")
        }
    }
}

impl ClusterIndex {
    /// The condition that a Service with addresses should have. `None`: not enough is known yet.
    pub(super) fn forwarding_condition(&self, allocation: &Allocation, now: Timestamp) -> Option<DesiredCondition> {
        let service = &allocation.service;
        let (mut reasons, mut sentences) = (Vec::new(), Vec::new());
        for record in self.shown_records(allocation) {
            let lb_ip = record.address;
            let Some(reach) = self.reach(record) else {
                if !self.is_grace_over(&service.key, now) {
                    return None;
                }
                reasons.push(ForwardingReason::NotAnnounced);
                sentences.push(format!("{lb_ip} is not announced, so no packet reaches it"));
                continue;
            };
            let problems: Vec<_> = problems(record, service).collect();
            reasons.extend(problems.iter().map(|problem| ForwardingReason::Problem(problem.reason)));
            reasons.push(reason_of(reach));
            sentences.extend(problems.iter().map(|problem| problem_message(lb_ip, problem)));
            sentences.push(reach_message(lb_ip, reach).to_string());
        }
        let worst = reasons.iter().copied().max()?;
        // The cause of the missing endpoints is the better reason.
        let refused = ForwardingReason::Problem(ProblemReason::EndpointsRefused);
        let is_refused = worst == ForwardingReason::Problem(ProblemReason::NoEndpoints) && reasons.contains(&refused);
        let mut seen = BTreeSet::new();
        sentences.retain(|sentence| seen.insert(sentence.clone()));
        let reason = if is_refused { refused } else { worst }.as_str();
        Some(DesiredCondition::new(FORWARDING, status_of(worst), reason, sentences.join("; "), service.generation))
    }

    /// How the announcers of an address forward it; `None` without announcers. If they differ, the result is `Mixed`.
    fn reach(&self, record: &Record) -> Option<Option<Reach>> {
        let reaches: Vec<_> = self.announcers(record).map(|announcer| announcer.reach).collect();
        let first = *reaches.first()?;
        Some(if reaches.iter().all(|reach| *reach == first) { first } else { Some(Reach::Mixed) })
    }
}

/// Whether the condition of a Service with one address is up to date, given the only announcer of that address.
pub(crate) fn is_forwarding_current(service: &Service, lb_ip: IpAddr, announcer: &Announcer) -> bool {
    let reason = reason_of(announcer.reach);
    let message = reach_message(lb_ip, announcer.reach);
    announcer.unforwarded.is_empty() && is_current(service, FORWARDING, status_of(reason), reason.as_str(), &message)
}

/// The problems of a Service that any announcer reports.
fn problems<'a>(record: &'a Record, service: &'a Service) -> impl Iterator<Item = &'a ForwardingProblem> {
    let all = record.announcers.iter().flat_map(|announcer| &announcer.unforwarded);
    all.filter(|problem| problem.namespace == service.key.namespace && problem.name == service.key.name)
}

/// The reason of the event when the condition changes: only mistakes are events. Every Service lacks endpoints now and
/// then, so only the condition reports that.
pub(super) fn forwarding_event(desired: &DesiredCondition) -> Option<&'static str> {
    MISTAKES.map(ProblemReason::as_str).contains(&desired.reason).then_some(EventReason::NotForwarded.as_str())
}

#[cfg(test)]
mod tests;
