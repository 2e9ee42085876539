//! Which tracked flows go nowhere any more: [`stale`] finds the ports of lb_ips for which that can have changed, and
//! [`Stale::is`] judges a flow.
//!
//! Only the first packet of a flow passes the maps; the kernel sends all others where that one went. A TCP client whose
//! endpoint is gone notices and connects again. A UDP client that keeps asking from one port would keep its flow alive
//! and never be answered, so such a flow is forgotten: its next packet is a first one again.
//!
//! A flow may stay with an endpoint that only drains: that one still answers. It may not stay if its client may not use
//! the Service any more: connections of TCP live on then, as with kube-proxy, but a flow of UDP would never end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{Protocol, Range};
use model::SharedMap;

use crate::nft::diff::{Change, both};
use crate::nft::elements::Key;
use crate::rules::ruleset::{LbIp, Ruleset, Target};
use crate::rules::sources::allows;

/// One tracked flow of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Who asks.
    pub client: SocketAddr,
    /// Where the client's packets are addressed to.
    pub destination: SocketAddr,
    /// Who answers: an endpoint, if the flow is translated; the destination itself if it isn't.
    pub answers: SocketAddr,
}

/// Ports of lb_ips whose flows must be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    ports: BTreeMap<SocketAddr, MayStay>,
}

/// Which flows to a port may stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MayStay {
    /// Who may still answer.
    endpoints: BTreeSet<SocketAddr>,
    /// Where clients may come from; `None`: from anywhere.
    sources: Option<Arc<[Range]>>,
}

impl Stale {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The lb_ip that all of them are of, if it is only one.
    pub fn only_address(&self) -> Option<IpAddr> {
        let first = self.ports.first_key_value()?.0.ip();
        let last = self.ports.last_key_value()?.0.ip();
        (first == last).then_some(first)
    }

    /// The families of those lb_ips.
    pub fn families(&self) -> BTreeSet<Family> {
        self.ports.keys().map(|port| Family::from(port.ip())).collect()
    }

    /// Whether this flow goes nowhere any more.
    pub fn is(&self, flow: &Flow) -> bool {
        self.ports.get(&flow.destination).is_some_and(|port| {
            let may_ask = port.sources.as_ref().is_none_or(|sources| allows(sources, flow.client.ip()));
            !may_ask || !port.endpoints.contains(&flow.answers)
        })
    }
}

/// What must be looked at after `after` has come in place of `before`. If `before` is not known: every port of UDP, and
/// those that the `changes` of the table took away.
pub fn stale(before: Option<&Ruleset>, after: &Ruleset, changes: &[Change]) -> Stale {
    let mut ports = BTreeMap::new();
    let nothing = SharedMap::default();
    let known = before.map_or(&nothing, |ruleset| &ruleset.addresses);
    for (address, before, after) in known.differing(&after.addresses) {
        if let (Some(before), Some(after)) = (before, after)
            && Arc::ptr_eq(before, after)
        {
            continue;
        }
        let (before, after) = (flows(*address, before), flows(*address, after));
        both(&before, &after, |port, before, after| match (before, after) {
            // Whatever could stay still can. (A port that is new may have flows that nobody translated.)
            (Some(before), Some(after))
                if before.endpoints.is_subset(&after.endpoints)
                    && (after.sources.is_none() || before.sources == after.sources) => {}
            (_, after) => {
                ports.insert(*port, after.cloned().unwrap_or_default());
            }
        });
    }
    if before.is_none() {
        for change in changes {
            if let Change::Delete(Key::Service(port) | Key::Inside(port) | Key::Refused(port), _) = change
                && port.protocol == Protocol::Udp
            {
                ports.entry(SocketAddr::new(port.address, port.port)).or_default();
            }
        }
    }
    Stale { ports }
}

/// What may stay at each port of UDP: flows to endpoints that get new ones, and to those that drain.
fn flows(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> BTreeMap<SocketAddr, MayStay> {
    let ports = lb_ip.into_iter().flat_map(|lb_ip| &lb_ip.ports);
    let may_stay = |target: &Target| {
        let used = target.endpoints.iter().map(|endpoint| endpoint.address);
        MayStay { endpoints: used.chain(target.draining.iter().copied()).collect(), sources: target.sources.clone() }
    };
    ports
        .filter(|((protocol, _), target)| *protocol == Protocol::Udp && !target.left)
        .map(|((_, port), target)| (SocketAddr::new(address, *port), may_stay(target)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::ruleset::{Endpoint, Pick};
    use crate::rules::sources::merged;

    const LB_IP: &str = "192.0.2.10:53";

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    fn ruleset(endpoints: &[&str], draining: &[&str]) -> Ruleset {
        let all = Pick { from: 0, count: u32::try_from(endpoints.len()).expect("few") };
        let target = Target {
            endpoints: endpoints.iter().map(|e| Endpoint { remote: false, address: at(e) }).collect(),
            outside: all,
            inside: all,
            draining: draining.iter().map(|e| at(e)).collect(),
            ..Target::default()
        };
        ruleset_of(target)
    }

    fn ruleset_of(target: Target) -> Ruleset {
        let target = Box::new(target);
        let ports = BTreeMap::from([((Protocol::Udp, 53), target.clone()), ((Protocol::Tcp, 53), target)]);
        let mut ruleset = Ruleset::default();
        ruleset.set(at(LB_IP).ip(), Some(LbIp { ports, ..LbIp::default() }));
        ruleset
    }

    fn flow(answers: &str) -> Flow {
        Flow { client: at("198.51.100.1:4000"), destination: at(LB_IP), answers: at(answers) }
    }

    /// Which of the flows to A, to B and to the lb_ip itself are stale.
    fn judged(stale: &Stale) -> [bool; 3] {
        [A, B, LB_IP].map(|answers| stale.is(&flow(answers)))
    }

    const A: &str = "10.0.0.1:5353";
    const B: &str = "10.0.0.2:5353";

    #[test]
    fn a_flow_is_stale_when_nobody_of_those_who_may_answer_does() {
        let nothing = Ruleset::default();
        for (case, before, after, expected) in [
            ("an endpoint goes", ruleset(&[A, B], &[]), ruleset(&[B], &[]), [true, false, true]),
            ("an endpoint drains", ruleset(&[A, B], &[]), ruleset(&[B], &[A]), [false; 3]),
            ("it has drained", ruleset(&[B], &[A]), ruleset(&[B], &[]), [true, false, true]),
            ("an endpoint comes", ruleset(&[A], &[]), ruleset(&[A, B], &[]), [false; 3]),
            ("the last one goes", ruleset(&[A], &[]), ruleset(&[], &[]), [true, true, true]),
            ("the Service goes", ruleset(&[A], &[]), nothing.clone(), [true, true, true]),
            ("a Service comes", nothing, ruleset(&[A], &[]), [false, true, true]),
            ("nothing changes", ruleset(&[A], &[B]), ruleset(&[A], &[B]), [false; 3]),
        ] {
            assert_eq!(judged(&stale(Some(&before), &after, &[])), expected, "{case}");
        }
    }

    #[test]
    fn a_flow_is_stale_when_its_client_may_not_come_any_more() {
        let ruleset = |sources: Option<&str>| {
            let open = ruleset(&[A], &[]);
            let target = Target::clone(&open.addresses[&at(LB_IP).ip()].ports[&(Protocol::Udp, 53)]);
            let sources = sources.map(|net| merged(&[net.parse().expect("a range")]).into());
            ruleset_of(Target { sources, ..target })
        };
        let (open, ours, theirs) = (ruleset(None), ruleset(Some("198.51.100.0/24")), ruleset(Some("203.0.113.0/24")));
        for (case, before, after, expected) in [
            ("closed to it", &open, &theirs, true),
            ("closed to others", &open, &ours, false),
            ("closed to it instead of to others", &ours, &theirs, true),
            ("opened", &theirs, &open, false),
            ("as it was", &ours, &ours, false),
        ] {
            assert_eq!(stale(Some(before), after, &[]).is(&flow(A)), expected, "{case}");
        }
        assert!(stale(None, &theirs, &[]).is(&flow(A)), "after a start");
    }

    #[test]
    fn after_a_start_all_that_is_there_is_looked_at_and_what_the_table_lost() {
        let after = ruleset(&[A], &[]);
        assert_eq!(judged(&stale(None, &after, &[])), [false, true, true]);
        let gone = crate::nft::elements::of_address(at(LB_IP).ip(), &after.addresses[&at(LB_IP).ip()]);
        let changes: Vec<Change> = gone.into_iter().map(|(key, value)| Change::Delete(key, value)).collect();
        assert_eq!(judged(&stale(None, &Ruleset::default(), &changes)), [true, true, true]);
        assert_eq!(judged(&stale(Some(&Ruleset::default()), &Ruleset::default(), &[])), [false; 3]);
    }

    #[test]
    fn other_ports_and_addresses_are_left_alone() {
        let stale = stale(Some(&ruleset(&[A], &[])), &Ruleset::default(), &[]);
        let other = |destination: &str| Flow { destination: at(destination), ..flow(A) };
        assert!(!stale.is(&other("192.0.2.10:54")));
        assert!(!stale.is(&other("192.0.2.11:53")));
        assert_eq!(stale.only_address(), Some(at(LB_IP).ip()));
    }
}
