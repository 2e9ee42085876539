//! Which clients the kernel should not send where they were sent before: [`loose`] finds the ports for which that can
//! have changed, and [`Loose::is`] judges what the kernel remembers of a client.
//!
//! A Service with sessionAffinity ClientIP sends all connections of a client to one endpoint. The kernel itself learns
//! which: each new connection puts the client and its endpoint into a map, for as long as the Service says, and the next
//! one finds it there. So the agent may be away. What the kernel can't know is that an endpoint left: what leads to one
//! that new connections may not go to is forgotten, and everything else stays, however the endpoints change.
//!
//! The memory is a node's own. When the lb_ip moves to another node, that one begins to learn anew; so long as it has
//! the same endpoints, the first choice for a client could be made the same on every node (by a hash of the client
//! instead of at random), so that a move would only be felt by clients whose endpoint was not their first choice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::{Protocol, Range};
use model::SharedMap;

use crate::nft::diff::both;
use crate::rules::ruleset::{LbIp, Pick, Ruleset, Target};
use crate::rules::sources::allows;

/// A port of an lb_ip.
pub type Port = (IpAddr, Protocol, u16);

/// What the kernel remembers of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remembered {
    /// The client.
    pub client: IpAddr,
    /// What it asked for.
    pub port: Port,
    /// Who got it.
    pub endpoint: SocketAddr,
}

/// Ports of which something must be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loose {
    /// For each of them, where clients may go.
    ports: BTreeMap<Port, Choice>,
    /// Whether ports that are not among them have nothing to remember at all. (Otherwise they are as they were.)
    others: bool,
    /// Who is a pod of this node.
    pods: Vec<Range>,
}

/// Where clients of a port may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Choice {
    outside: BTreeSet<SocketAddr>,
    inside: BTreeSet<SocketAddr>,
}

impl Loose {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && !self.others
    }

    /// Whether this should be forgotten.
    ///
    /// Only a pod of this node counts as inside. The node itself does too where it connects, but its addresses are not
    /// known here; so it may be forgotten once too often, under the traffic policy Local, when endpoints change.
    pub fn is(&self, remembered: &Remembered) -> bool {
        match self.ports.get(&remembered.port) {
            None => self.others,
            Some(choice) if allows(&self.pods, remembered.client) => !choice.inside.contains(&remembered.endpoint),
            Some(choice) => !choice.outside.contains(&remembered.endpoint),
        }
    }
}

/// What must be looked at after `after` has come in place of `before`; everything, if that is not known.
pub fn loose(before: Option<&Ruleset>, after: &Ruleset) -> Loose {
    let nothing = SharedMap::default();
    let mut ports = BTreeMap::new();
    let others = before.is_none();
    let same_pods = before.is_some_and(|before| before.pod_ranges == after.pod_ranges);
    let known = before.map_or(&nothing, |ruleset| &ruleset.addresses);
    // Who is a pod bears on all of them: then what both share is looked at too, in a copy that shares nothing.
    let apart: SharedMap<_, _>;
    let now = if same_pods {
        &after.addresses
    } else {
        apart = after.addresses.iter().map(|(address, lb_ip)| (*address, Arc::clone(lb_ip))).collect();
        &apart
    };
    for (address, before, after) in known.differing(now) {
        if let (Some(before), Some(after)) = (before, after)
            && Arc::ptr_eq(before, after)
            && same_pods
        {
            continue;
        }
        let (before, after) = (choices(*address, before), choices(*address, after));
        both(&before, &after, |port, before, after| {
            // Whoever could be chosen still can.
            let kept = matches!((before, after), (Some(before), Some(after)) if same_pods
                && before.outside.is_subset(&after.outside)
                && before.inside.is_subset(&after.inside));
            // What is new has nothing to remember, unless the past is not known.
            if !kept && (before.is_some() || others) {
                ports.insert(*port, after.cloned().unwrap_or_default());
            }
        });
    }
    Loose { ports, others, pods: after.pod_ranges.clone() }
}

/// Where clients may go of each port that remembers them.
fn choices(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> BTreeMap<Port, Choice> {
    let ports = lb_ip.into_iter().flat_map(|lb_ip| &lb_ip.ports);
    let sticky = ports.filter(|(_, target)| target.affinity.is_some());
    sticky
        .map(|(&(protocol, port), target)| {
            let choice = Choice { outside: picked(target, target.outside), inside: picked(target, target.inside) };
            ((address, protocol, port), choice)
        })
        .collect()
}

fn picked(target: &Target, pick: Pick) -> BTreeSet<SocketAddr> {
    let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let chosen = target.endpoints.iter().skip(index(pick.from)).take(index(pick.count));
    chosen.map(|endpoint| endpoint.address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::ruleset::Endpoint;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    const A: &str = "10.0.0.1:8080";
    const B: &str = "10.0.0.2:8080";

    /// A port of an lb_ip with these endpoints, of which packets from outside may use the first so many.
    fn ruleset(endpoints: &[&str], outside: u32, affinity: Option<u32>) -> Ruleset {
        let target = Target {
            endpoints: endpoints.iter().map(|e| Endpoint { remote: false, address: at(e) }).collect(),
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

    /// Which of these are loose: a client outside with A and with B, and a pod with B.
    fn judged(loose: &Loose) -> [bool; 3] {
        let port = (IpAddr::from([192, 0, 2, 10]), Protocol::Tcp, 80);
        [("198.51.100.1", A), ("198.51.100.1", B), ("10.9.0.7", B)].map(|(client, endpoint)| {
            loose.is(&Remembered { client: client.parse().expect("an address"), port, endpoint: at(endpoint) })
        })
    }

    #[test]
    fn a_client_is_forgotten_with_the_endpoint_that_it_has_and_only_then() {
        let day = Some(86_400);
        let (one, two) = (ruleset(&[A], 1, day), ruleset(&[A, B], 2, day));
        for (case, before, after, expected) in [
            ("the endpoint goes", Some(&two), &one, [false, true, true]),
            ("another one comes", Some(&one), &two, [false; 3]),
            ("nothing changes", Some(&two), &two, [false; 3]),
            ("not for those from outside", Some(&two), &ruleset(&[A, B], 1, day), [false, true, false]),
            ("it may be for less long", Some(&two), &ruleset(&[A, B], 2, Some(1)), [false; 3]),
            ("not for any time", Some(&two), &ruleset(&[A, B], 2, None), [true; 3]),
            ("the Service goes", Some(&two), &Ruleset::default(), [true; 3]),
            ("the past is not known", None, &one, [false, true, true]),
            ("nor whose it is", None, &ruleset(&[A, B], 2, None), [true; 3]),
        ] {
            assert_eq!(judged(&loose(before, after)), expected, "{case}");
        }
        assert!(loose(Some(&one), &two).is_empty());
        assert!(loose(Some(&two), &two).is_empty());
    }
}
