//! Stale flows: tracked UDP flows without an endpoint, or of a client that is no longer allowed. [`stale_flows`] finds
//! the ports whose flows can have become stale, and [`StaleFlows::contains`] decides for one flow. Pure.
//!
//! Only the first packet of a flow passes the maps. The kernel sends all later packets to the same endpoint. A TCP
//! client whose endpoint is gone notices and connects again. A UDP client that keeps sending from one port would keep
//! its flow alive without any reply, so such a flow is deleted. Its next packet is then a first packet again.
//!
//! A flow may stay with an endpoint that drains, since that endpoint still replies. A flow may not stay if its client
//! is no longer allowed to use the Service. TCP connections continue in this case, as with kube-proxy, but a UDP flow
//! would never end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{Protocol, Range};

use crate::rules::{Frontend, LbIp, Ruleset, Target, changed_lb_ips, contains_address, full_outer_join};
use netlink::conntrack::Flow;

/// The UDP ports of lb_ips with flows that can be stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaleFlows {
    ports: BTreeMap<SocketAddr, ValidFlows>,
}

/// The flows to a port that may stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ValidFlows {
    /// The endpoints that may reply.
    endpoints: BTreeSet<SocketAddr>,
    /// The ranges of allowed clients; `None`: every client is allowed.
    sources: Option<Arc<[Range]>>,
}

impl StaleFlows {
    /// Whether no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The lb_ip of the ports, if all ports have the same one.
    pub fn only_address(&self) -> Option<IpAddr> {
        let first = self.ports.first_key_value()?.0.ip();
        let last = self.ports.last_key_value()?.0.ip();
        (first == last).then_some(first)
    }

    /// The families of the lb_ips.
    pub fn families(&self) -> BTreeSet<Family> {
        self.ports.keys().map(|port| Family::from(port.ip())).collect()
    }

    /// Whether this flow is stale.
    pub fn contains(&self, flow: &Flow) -> bool {
        self.ports.get(&flow.destination).is_some_and(|port| {
            let is_allowed = port.sources.as_ref().is_none_or(|sources| contains_address(sources, flow.client.ip()));
            !is_allowed || !port.endpoints.contains(&flow.replies_from)
        })
    }
}

/// The flows that can be stale after a change from `before` to `after`. If `before` is unknown: those of every UDP
/// port, and of the ports `removed` from the kernel's tables.
pub fn stale_flows(before: Option<&Ruleset>, after: &Ruleset, removed: &BTreeSet<Frontend>) -> StaleFlows {
    let mut ports = BTreeMap::new();
    let nothing = Ruleset::default();
    for (address, old, new) in changed_lb_ips(before.unwrap_or(&nothing), after) {
        let (old, new) = (valid_flows(address, old), valid_flows(address, new));
        full_outer_join(&old, &new, |port, old, new| match (old, new) {
            // All valid flows stay valid, so the port is skipped. A new port is not skipped: it may have untranslated
            // flows.
            (Some(old), Some(new))
                if old.endpoints.is_subset(&new.endpoints) && (new.sources.is_none() || old.sources == new.sources) => {
            }
            (_, new) => {
                ports.insert(*port, new.cloned().unwrap_or_default());
            }
        });
    }
    if before.is_none() {
        for port in removed.iter().filter(|port| port.protocol == Protocol::Udp) {
            ports.entry(SocketAddr::new(port.address, port.port)).or_default();
        }
    }
    StaleFlows { ports }
}

/// The valid flows of each UDP port: those to endpoints that get new connections or drain.
fn valid_flows(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> BTreeMap<SocketAddr, ValidFlows> {
    let ports = lb_ip.into_iter().flat_map(|lb_ip| &lb_ip.ports);
    let valid = |target: &Target| {
        let used = target.endpoints.iter().map(|endpoint| endpoint.address);
        ValidFlows { endpoints: used.chain(target.draining.iter().copied()).collect(), sources: target.sources.clone() }
    };
    ports
        .filter(|((protocol, _), target)| *protocol == Protocol::Udp && !target.other_proxy)
        .map(|((_, port), target)| (SocketAddr::new(address, *port), valid(target)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Endpoint, Pick, Sources};

    const LB_IP: &str = "192.0.2.10:53";

    fn socket_address(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    fn ruleset(endpoints: &[&str], draining: &[&str]) -> Ruleset {
        let all = Pick { from: 0, count: u32::try_from(endpoints.len()).expect("few") };
        let target = Target {
            endpoints: endpoints.iter().map(|e| Endpoint { remote: false, address: socket_address(e) }).collect(),
            outside: all,
            inside: all,
            draining: draining.iter().map(|e| socket_address(e)).collect(),
            ..Target::default()
        };
        ruleset_of(target)
    }

    fn ruleset_of(target: Target) -> Ruleset {
        let target = Box::new(target);
        let ports = BTreeMap::from([((Protocol::Udp, 53), target.clone()), ((Protocol::Tcp, 53), target)]);
        let mut ruleset = Ruleset::default();
        ruleset.set(socket_address(LB_IP).ip(), Some(LbIp { ports, ..LbIp::default() }));
        ruleset
    }

    fn flow(replies_from: &str) -> Flow {
        Flow {
            client: socket_address("198.51.100.1:4000"),
            destination: socket_address(LB_IP),
            replies_from: socket_address(replies_from),
        }
    }

    /// Whether the flows to A, to B and to the lb_ip itself are stale.
    fn are_stale(stale: &StaleFlows) -> [bool; 3] {
        [A, B, LB_IP].map(|replies_from| stale.contains(&flow(replies_from)))
    }

    const A: &str = "10.0.0.1:5353";
    const B: &str = "10.0.0.2:5353";

    #[test]
    fn a_flow_without_a_valid_endpoint_is_stale() {
        let (nothing, none) = (Ruleset::default(), BTreeSet::new());
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
            assert_eq!(are_stale(&stale_flows(Some(&before), &after, &none)), expected, "{case}");
        }
    }

    #[test]
    fn a_flow_of_a_forbidden_client_is_stale() {
        let ruleset = |sources: Option<&str>| {
            let open = ruleset(&[A], &[]);
            let target = Target::clone(&open.addresses[&socket_address(LB_IP).ip()].ports[&(Protocol::Udp, 53)]);
            let sources = sources.map(|net| Sources::parse([net], None).for_family(Family::V4).expect("ranges"));
            ruleset_of(Target { sources, ..target })
        };
        let none = BTreeSet::new();
        let (open, ours, theirs) = (ruleset(None), ruleset(Some("198.51.100.0/24")), ruleset(Some("203.0.113.0/24")));
        for (case, before, after, expected) in [
            ("closed to it", &open, &theirs, true),
            ("closed to others", &open, &ours, false),
            ("closed to it instead of to others", &ours, &theirs, true),
            ("opened", &theirs, &open, false),
            ("unchanged", &ours, &ours, false),
        ] {
            assert_eq!(stale_flows(Some(before), after, &none).contains(&flow(A)), expected, "{case}");
        }
        assert!(stale_flows(None, &theirs, &none).contains(&flow(A)), "after a start");
    }

    #[test]
    fn after_a_start_all_and_removed_ports_are_checked() {
        let after = ruleset(&[A], &[]);
        let none = BTreeSet::new();
        assert_eq!(are_stale(&stale_flows(None, &after, &none)), [false, true, true]);
        let port = |protocol| Frontend { address: socket_address(LB_IP).ip(), protocol, port: 53 };
        let removed = BTreeSet::from([Protocol::Tcp, Protocol::Udp].map(port));
        assert_eq!(are_stale(&stale_flows(None, &Ruleset::default(), &removed)), [true, true, true]);
        assert_eq!(are_stale(&stale_flows(Some(&Ruleset::default()), &Ruleset::default(), &none)), [false; 3]);
    }

    #[test]
    fn flows_of_other_ports_and_addresses_are_not_stale() {
        let stale = stale_flows(Some(&ruleset(&[A], &[])), &Ruleset::default(), &BTreeSet::new());
        let other = |destination: &str| Flow { destination: socket_address(destination), ..flow(A) };
        assert!(!stale.contains(&other("192.0.2.10:54")));
        assert!(!stale.contains(&other("192.0.2.11:53")));
        assert_eq!(stale.only_address(), Some(socket_address(LB_IP).ip()));
    }
}
