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

use model::SharedMap;

use crate::rules::{Frontend, LbIp, Pick, Ruleset, Target, full_outer_join};

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
    /// The endpoints of each of these ports that clients may keep.
    ports: BTreeMap<Frontend, BTreeSet<SocketAddr>>,
    /// Whether all entries of other ports are invalid. Otherwise they are all valid.
    others: bool,
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
    pub fn contains(&self, entry: &AffinityEntry) -> bool {
        match self.ports.get(&entry.frontend) {
            None => self.others,
            Some(kept) => !kept.contains(&entry.endpoint),
        }
    }
}

/// The entries that can be invalid after a change from `before` to `after`; all of them if `before` is unknown.
pub fn retired_clients(before: Option<&Ruleset>, after: &Ruleset) -> RetiredClients {
    let nothing = SharedMap::default();
    let mut ports = BTreeMap::new();
    let others = before.is_none();
    let known = before.map_or(&nothing, |ruleset| &ruleset.addresses);
    for (address, old, new) in known.differing(&after.addresses) {
        if matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new)) {
            continue;
        }
        let (old, new) = (allowed_endpoints(*address, old), allowed_endpoints(*address, new));
        full_outer_join(&old, &new, |port, old, new| {
            let all_stay = matches!((old, new), (Some(old), Some(new))
                if old.outside.is_subset(&new.outside)
                && old.inside.is_subset(&new.inside));
            // A new port has no entries, unless `before` is unknown.
            if !all_stay && (old.is_some() || others) {
                ports.insert(*port, kept_endpoints(old, new));
            }
        });
    }
    RetiredClients { ports, others }
}

/// The endpoints that clients of a port may keep.
///
/// Entries do not show whether their client is inside. Clients outside never get an endpoint that is only for clients
/// inside. So an endpoint that was only for these has no entries of others, and may be kept while it is for them. If it
/// was for both, or its past is unknown, clients inside lose it without need.
fn kept_endpoints(old: Option<&AllowedEndpoints>, new: Option<&AllowedEndpoints>) -> BTreeSet<SocketAddr> {
    let Some(new) = new else { return BTreeSet::new() };
    let was_only_inside = |endpoint: &&SocketAddr| {
        old.is_some_and(|old| old.inside.contains(*endpoint) && !old.outside.contains(*endpoint))
    };
    new.outside.iter().chain(new.inside.iter().filter(was_only_inside)).copied().collect()
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
    const C: &str = "10.0.0.3:8080";

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
        let mut ruleset = Ruleset::default();
        ruleset.set(IpAddr::from([192, 0, 2, 10]), Some(LbIp { ports, ..LbIp::default() }));
        ruleset
    }

    /// Whether a client with A and a client with B are retired.
    fn are_retired(retired: &RetiredClients) -> [bool; 2] {
        let frontend = Frontend { address: IpAddr::from([192, 0, 2, 10]), protocol: Protocol::Tcp, port: 80 };
        let client = IpAddr::from([198, 51, 100, 1]);
        [A, B].map(|endpoint| retired.contains(&AffinityEntry { client, frontend, endpoint: socket_address(endpoint) }))
    }

    #[test]
    fn only_clients_of_a_forbidden_endpoint_are_retired() {
        let day = Some(86_400);
        let (one, two) = (ruleset(&[A], 1, day), ruleset(&[A, B], 2, day));
        for (case, before, after, expected) in [
            ("an endpoint goes", Some(&two), &one, [false, true]),
            ("another one comes", Some(&one), &two, [false; 2]),
            ("unchanged", Some(&two), &two, [false; 2]),
            ("only from inside", Some(&two), &ruleset(&[A, B], 1, day), [false, true]),
            ("still only from inside", Some(&ruleset(&[A, B], 1, day)), &ruleset(&[C, B], 1, day), [true, false]),
            ("only from inside in an unknown past", None, &ruleset(&[A, B], 1, day), [false, true]),
            ("a shorter timeout", Some(&two), &ruleset(&[A, B], 2, Some(1)), [false; 2]),
            ("no affinity", Some(&two), &ruleset(&[A, B], 2, None), [true; 2]),
            ("the Service goes", Some(&two), &Ruleset::default(), [true; 2]),
            ("an unknown past", None, &one, [false, true]),
            ("an unknown past without affinity", None, &ruleset(&[A, B], 2, None), [true; 2]),
        ] {
            assert_eq!(are_retired(&retired_clients(before, after)), expected, "{case}");
        }
        assert!(retired_clients(Some(&one), &two).is_empty());
        assert!(retired_clients(Some(&two), &two).is_empty());
    }
}
