//! The clients with session affinity that may no longer use their endpoint. [`retired_clients`] finds the ports that
//! can have such clients, and [`RetiredClients::contains`] decides for one entry of the kernel's map. Pure.
//!
//! A Service with sessionAffinity ClientIP sends all connections of a client to one endpoint. The kernel learns that
//! endpoint itself. Each new connection puts the client and its endpoint into the map `affinity` for the timeout of the
//! Service. The next connection finds the endpoint there. So this works without the agent. The kernel does not notice
//! that an endpoint is gone: the agent deletes the entries of endpoints that new connections may not use. All other
//! entries stay when endpoints change.
//!
//! The map belongs to one node. When the lb_ip moves, the next announcer starts with an empty map, and clients can get
//! other endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::Range;
use model::SharedMap;

use crate::rules::{Frontend, LbIp, Pick, Ruleset, Target, contains_address, full_outer_join};

/// An entry of the kernel's map `affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityEntry {
    pub client: IpAddr,
    pub frontend: Frontend,
    pub endpoint: SocketAddr,
}

/// The ports with entries that can be invalid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetiredClients {
    ports: BTreeMap<Frontend, AllowedEndpoints>,
    /// Whether all entries of other ports are invalid. Otherwise they are all valid.
    others: bool,
    /// The ranges of this node's pods.
    pods: Vec<Range>,
}

/// The endpoints that clients of a port may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct AllowedEndpoints {
    outside: BTreeSet<SocketAddr>,
    inside: BTreeSet<SocketAddr>,
}

impl RetiredClients {
    /// Whether no entry can be invalid.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && !self.others
    }

    /// Whether this entry must be deleted.
    ///
    /// Here only pods of this node count as inside. Connections of the node itself come from inside too, but its
    /// addresses are unknown here. So under the traffic policy Local, an entry of the node may be deleted without need
    /// when endpoints change.
    pub fn contains(&self, entry: &AffinityEntry) -> bool {
        match self.ports.get(&entry.frontend) {
            None => self.others,
            Some(allowed) if contains_address(&self.pods, entry.client) => !allowed.inside.contains(&entry.endpoint),
            Some(allowed) => !allowed.outside.contains(&entry.endpoint),
        }
    }
}

/// The entries that can be invalid after a change from `before` to `after`; all of them if `before` is unknown.
pub fn retired_clients(before: Option<&Ruleset>, after: &Ruleset) -> RetiredClients {
    let nothing = SharedMap::default();
    let mut ports = BTreeMap::new();
    let others = before.is_none();
    let same_pods = before.is_some_and(|before| before.pod_ranges == after.pod_ranges);
    let known = before.map_or(&nothing, |ruleset| &ruleset.addresses);
    // If the pod ranges changed, every port is affected. `differing` skips parts that both maps share, so it gets a
    // copy of the new map that shares none.
    let copy: SharedMap<_, _>;
    let now = if same_pods {
        &after.addresses
    } else {
        copy = after.addresses.iter().map(|(address, lb_ip)| (*address, Arc::clone(lb_ip))).collect();
        &copy
    };
    for (address, old, new) in known.differing(now) {
        if same_pods && matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new)) {
            continue;
        }
        let (old, new) = (allowed_endpoints(*address, old), allowed_endpoints(*address, new));
        full_outer_join(&old, &new, |port, old, new| {
            let all_stay = matches!((old, new), (Some(old), Some(new)) if same_pods
                && old.outside.is_subset(&new.outside)
                && old.inside.is_subset(&new.inside));
            // A new port has no entries, unless `before` is unknown.
            if !all_stay && (old.is_some() || others) {
                ports.insert(*port, new.cloned().unwrap_or_default());
            }
        });
    }
    RetiredClients { ports, others, pods: after.pod_ranges.clone() }
}

/// The allowed endpoints of each port with session affinity.
fn allowed_endpoints(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> BTreeMap<Frontend, AllowedEndpoints> {
    let ports = lb_ip.into_iter().flat_map(|lb_ip| &lb_ip.ports);
    let sticky = ports.filter(|(_, target)| target.affinity.is_some());
    sticky
        .map(|(&(protocol, port), target)| {
            let (outside, inside) = (endpoints_of(target, target.outside), endpoints_of(target, target.inside));
            (Frontend { address, protocol, port }, AllowedEndpoints { outside, inside })
        })
        .collect()
}

fn endpoints_of(target: &Target, pick: Pick) -> BTreeSet<SocketAddr> {
    let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let chosen = target.endpoints.iter().skip(index(pick.from)).take(index(pick.count));
    chosen.map(|endpoint| endpoint.address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Endpoint;
    use crds::Protocol;

    fn socket_address(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    const A: &str = "10.0.0.1:8080";
    const B: &str = "10.0.0.2:8080";

    /// A port of an lb_ip with these endpoints. Packets from outside may use the first `outside` of them.
    fn ruleset(endpoints: &[&str], outside: u32, affinity: Option<u32>) -> Ruleset {
        let target = Target {
            endpoints: endpoints.iter().map(|e| Endpoint { remote: false, address: socket_address(e) }).collect(),
            outside: Pick { from: 0, count: outside },
            inside: Pick { from: 0, count: u32::try_from(endpoints.len()).expect("few") },
            affinity,
            ..Target::default()
        };
        let ports = BTreeMap::from([((Protocol::Tcp, 80), Box::new(target))]);
        let pods = Range::new(IpAddr::from([10, 9, 0, 0]), IpAddr::from([10, 9, 0, 255])).expect("a range");
        let mut ruleset = Ruleset::default();
        ruleset.pod_ranges = vec![pods];
        ruleset.set(IpAddr::from([192, 0, 2, 10]), Some(LbIp { ports, ..LbIp::default() }));
        ruleset
    }

    /// Whether these are retired: a client outside with A and with B, and a pod with B.
    fn are_retired(retired: &RetiredClients) -> [bool; 3] {
        let frontend = Frontend { address: IpAddr::from([192, 0, 2, 10]), protocol: Protocol::Tcp, port: 80 };
        [("198.51.100.1", A), ("198.51.100.1", B), ("10.9.0.7", B)].map(|(client, endpoint)| {
            let client = client.parse().expect("an address");
            retired.contains(&AffinityEntry { client, frontend, endpoint: socket_address(endpoint) })
        })
    }

    #[test]
    fn only_clients_of_a_forbidden_endpoint_are_retired() {
        let day = Some(86_400);
        let (one, two) = (ruleset(&[A], 1, day), ruleset(&[A, B], 2, day));
        for (case, before, after, expected) in [
            ("an endpoint goes", Some(&two), &one, [false, true, true]),
            ("another one comes", Some(&one), &two, [false; 3]),
            ("unchanged", Some(&two), &two, [false; 3]),
            ("only from inside", Some(&two), &ruleset(&[A, B], 1, day), [false, true, false]),
            ("a shorter timeout", Some(&two), &ruleset(&[A, B], 2, Some(1)), [false; 3]),
            ("no affinity", Some(&two), &ruleset(&[A, B], 2, None), [true; 3]),
            ("the Service goes", Some(&two), &Ruleset::default(), [true; 3]),
            ("an unknown past", None, &one, [false, true, true]),
            ("an unknown past without affinity", None, &ruleset(&[A, B], 2, None), [true; 3]),
        ] {
            assert_eq!(are_retired(&retired_clients(before, after)), expected, "{case}");
        }
        assert!(retired_clients(Some(&one), &two).is_empty());
        assert!(retired_clients(Some(&two), &two).is_empty());
    }
}
