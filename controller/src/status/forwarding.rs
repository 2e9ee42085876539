//! What is said of how packets to the addresses of a Service get to its endpoints: the condition `landfall.dev/Forwarding`.
//!
//! What the nodes that announce them wrote to the LoadBalancerIPs → the condition. It is written with what is said of who
//! announces them, in the same write. Sentences name no node: when an address moves, nothing changes here.

use std::fmt;
use std::net::IpAddr;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::FORWARDING;
use crds::{Announcer, ForwardingProblem, ProblemReason, Reach, Record, Service};
use jiff::Timestamp;

use crate::allocate::allocation::Allocation;
use crate::plan::effect::{Event, service_reference};
use crate::state::index::Ledger;
use crate::status::change::ConditionChange;
use crate::status::reason::ForwardingReason;

/// The status of the condition with this reason.
fn status_of(reason: ForwardingReason) -> ConditionStatus {
    match reason {
        ForwardingReason::Unreported | ForwardingReason::NotAnnounced => ConditionStatus::Unknown,
        ForwardingReason::Problem(ProblemReason::NoLocalEndpoints | ProblemReason::NoEndpoints) => {
            ConditionStatus::False
        }
        _ => ConditionStatus::True,
    }
}

/// The reason when packets reach the endpoints in this way.
fn reason_of(reach: Option<Reach>) -> ForwardingReason {
    reach.map_or(ForwardingReason::Unreported, ForwardingReason::Reached)
}

/// The sentence about how an address is forwarded.
struct Way(IpAddr, Option<Reach>);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, reach) = self;
        match reach {
            Some(Reach::Spread) => write!(f, "{address} is spread over nodes, and endpoints see the client"),
            Some(Reach::Mixed) => {
                write!(
                    f,
                    "{address} is spread over nodes where that can be; endpoints elsewhere see a node, not the client"
                )
            }
            Some(Reach::Translated) => {
                write!(
                    f,
                    "{address} is forwarded by the node that announces it, which endpoints on other nodes see instead \
                           of the client"
                )
            }
            Some(Reach::Proxied) => {
                write!(
                    f,
                    "{address} is forwarded as the Service proxy of the node that announces it does, or another proxy"
                )
            }
            Some(Reach::Other) => write!(f, "{address} is forwarded in a way that this version does not know"),
            None => {
                write!(
                    f,
                    "{address} is not forwarded by Landfall (--dataplane=off), or by an agent of an older version"
                )
            }
        }
    }
}

/// The sentence about something that is not forwarded as it is written.
struct Lack<'a>(IpAddr, &'a ForwardingProblem);

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, ForwardingProblem { reason, what, .. }) = self;
        match reason {
            ProblemReason::NoEndpoints => write!(
                f,
                "{address} refuses {what}, which has no endpoint: see whether the pods that the Service selects are ready, and \
                 whether they have that target port"
            ),
            ProblemReason::NoLocalEndpoints => write!(
                f,
                "{address} drops {what}: externalTrafficPolicy is Local, and the node that announces the address has no ready \
                 endpoint for it"
            ),
            ProblemReason::EndpointsRefused => write!(
                f,
                "an EndpointSlice has {what}, which is loopback, link-local or no address at all: it is left out; have it name \
                 addresses of pods or other hosts"
            ),
            ProblemReason::InvalidSourceRange => write!(
                f,
                "loadBalancerSourceRanges has {what:?}, which is no CIDR such as 192.0.2.0/24 and lets nobody in: correct it"
            ),
            ProblemReason::BackendUnavailable => {
                write!(f, "{address} is forwarded to endpoints, and not by the backend {what}")
            }
            ProblemReason::UnknownBackend => write!(
                f,
                "the annotation landfall.dev/backend has {what:?}, which is none of endpoints, nodeport and clusterip, and is \
                 ignored: correct it"
            ),
            ProblemReason::AnswersElsewhere => write!(
                f,
                "answers from {address} may leave the node by another link than the requests came in by: {what} (see \"Nodes \
                 with several links\" in docs/guide/forwarding.md)"
            ),
            ProblemReason::RequestsFiltered => write!(
                f,
                "the kernel of the node that announces {address} drops requests that come in by {what} from clients that its \
                 own routes don't lead to by that link: set net.ipv4.conf.LINK.rp_filter to 2 (loose)"
            ),
            ProblemReason::Other => {
                write!(f, "of {address} {what} is not forwarded, for a reason that this version does not know")
            }
        }
    }
}

impl Ledger {
    /// What is to be said of how the addresses of a Service are forwarded.
    pub(crate) fn forwarded(&self, allocation: &Allocation, now: Timestamp) -> ConditionChange {
        let service = &allocation.service;
        let (mut reasons, mut sentences) = (Vec::new(), Vec::new());
        for record in self.shown_records(allocation) {
            let address = record.address;
            let Some(reach) = self.reach(record) else {
                if !self.is_grace_over(&service.key, now) {
                    return ConditionChange::Keep;
                }
                reasons.push(ForwardingReason::NotAnnounced);
                sentences.push(format!("{address} is not announced, so nothing comes to it"));
                continue;
            };
            let lacks: Vec<_> = lacks(record, service).collect();
            reasons.extend(lacks.iter().map(|lack| ForwardingReason::Problem(lack.reason)));
            reasons.push(reason_of(reach));
            sentences.extend(lacks.iter().map(|lack| Lack(address, lack).to_string()));
            sentences.push(Way(address, reach).to_string());
        }
        let Some(worst) = reasons.iter().copied().max() else {
            return if allocation.targets.is_empty() { ConditionChange::Remove } else { ConditionChange::Keep };
        };
        // Why there is no endpoint says more than that there is none.
        let refused = ForwardingReason::Problem(ProblemReason::EndpointsRefused);
        let is_refused = worst == ForwardingReason::Problem(ProblemReason::NoEndpoints) && reasons.contains(&refused);
        let reason = if is_refused { refused } else { worst }.as_str();
        let mut seen = std::collections::BTreeSet::new();
        sentences.retain(|sentence| seen.insert(sentence.clone()));
        let observed_generation = service.generation;
        let message = sentences.join("; ");
        ConditionChange::Set(DesiredCondition {
            type_: FORWARDING,
            status: status_of(worst),
            reason,
            message,
            observed_generation,
        })
    }

    /// How an address is forwarded, as those say that announce it: `None` if nobody does. If they differ, some of it goes in
    /// one way and some in the other.
    fn reach(&self, record: &Record) -> Option<Option<Reach>> {
        let there = record.announcers.iter().filter(|announcer| self.nodes.contains_key(&*announcer.node));
        let reaches: Vec<_> = there.map(|announcer| announcer.reach).collect();
        let first = *reaches.first()?;
        Some(if reaches.iter().all(|reach| *reach == first) { first } else { Some(Reach::Mixed) })
    }

    /// Whether what is said of how the one address of a Service is forwarded is what there is to say, for one whose only
    /// announcer this is, and who is there.
    pub(crate) fn is_told_how(service: &Service, address: IpAddr, announcer: &Announcer) -> bool {
        let reason = reason_of(announcer.reach);
        let said = service.conditions.iter().find(|condition| condition.type_ == FORWARDING);
        announcer.unforwarded.is_empty()
            && said.is_some_and(|condition| {
                condition.status == status_of(reason).as_str()
                    && condition.reason == reason.as_str()
                    && condition.observed_generation == service.generation
                    && crate::status::allocated::is_text(&condition.message, &Way(address, announcer.reach))
            })
    }
}

/// What of a Service is not forwarded as it is written, as any announcer says.
fn lacks<'a>(record: &'a Record, service: &'a Service) -> impl Iterator<Item = &'a ForwardingProblem> {
    let all = record.announcers.iter().flat_map(|announcer| &announcer.unforwarded);
    all.filter(|lack| lack.namespace == service.key.namespace && lack.name == service.key.name)
}

/// What people are told when the condition changes: of mistakes. That there is no endpoint happens to every Service now and
/// then, and stands in the condition.
pub(crate) fn event(service: &Service, before: Option<&Condition>, desired: &DesiredCondition) -> Option<Event> {
    let mistakes = [
        ProblemReason::EndpointsRefused,
        ProblemReason::InvalidSourceRange,
        ProblemReason::BackendUnavailable,
        ProblemReason::UnknownBackend,
        ProblemReason::RequestsFiltered,
    ]
    .map(ProblemReason::as_str);
    let is_same = before.is_some_and(|before| before.reason == desired.reason && before.message == desired.message);
    (mistakes.contains(&desired.reason) && !is_same).then(|| Event {
        regarding: service_reference(&service.key, &service.uid),
        is_warning: true,
        reason: "NotForwarded",
        message: desired.message.clone(),
    })
}

#[cfg(test)]
mod tests;
