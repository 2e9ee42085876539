//! Which addresses of pools the cluster itself uses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crds::service::Family;
use crds::{Key, Range};

use super::{Pool, Pools};
use crate::pools::cluster_range::{ClusterRange, ClusterUser};
use crate::pools::intervals::{address, family_of, number};
use crate::pools::occupied::Occupant;
use crate::pools::truncated::Truncated;

impl Pools {
    /// Sets the addresses of each pool that the cluster uses: those of nodes, those in `ranges`, and one of
    /// `cluster_ips` per family. This is the lowest one, so that the result does not change with each Service. Excluded
    /// addresses do not count. Returns the names of the pools whose result differs from before.
    pub(crate) fn set_cluster_use<'a>(
        &mut self,
        ranges: &[ClusterRange],
        cluster_ips: impl IntoIterator<Item = (IpAddr, &'a Key)>,
    ) -> Vec<String> {
        let mut lowest = BTreeMap::<(usize, Family), (IpAddr, &Key)>::new();
        for (ip, key) in cluster_ips {
            if let Some(pool) = self.pool_of(ip).filter(|pool| !pool.is_excluded(ip)) {
                let entry = lowest.entry((pool.index, ip.into())).or_insert((ip, key));
                *entry = (*entry).min((ip, key));
            }
        }
        let mut changed = Vec::new();
        for index in 0..self.pools.len() {
            let pool = &self.pools[index];
            let nodes = pool.ranges.iter().flat_map(|range| self.map.occupied.in_range(*range));
            let nodes = nodes.filter_map(|(address, occupant)| match occupant {
                Occupant::Node(node) if !pool.is_excluded(address) => {
                    Some(ClusterRange { range: Range::new(address, address)?, user: ClusterUser::Node(node.clone()) })
                }
                _ => None,
            });
            let in_ranges = ranges.iter().flat_map(|used| {
                pool.parts_in(used.range).map(|range| ClusterRange { range, user: used.user.clone() })
            });
            let services = lowest.range((index, Family::V4)..=(index, Family::V6)).filter_map(|(_, (ip, key))| {
                Some(ClusterRange { range: Range::new(*ip, *ip)?, user: ClusterUser::Service((*key).clone()) })
            });
            let all: Truncated<_> = nodes.chain(in_ranges).chain(services).collect();
            if all != pool.cluster_use {
                changed.push(pool.name().to_owned());
                self.pools[index].cluster_use = all;
            }
        }
        changed
    }
}

impl Pool {
    /// The parts of `range` that the pool contains and does not exclude, in order.
    fn parts_in(&self, range: Range) -> impl Iterator<Item = Range> {
        let family = family_of(range);
        let parts = self.assignable[family].intersections(number(range.first()), number(range.last()));
        parts.filter_map(move |(first, last)| Range::new(address(family, first), address(family, last)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::{ip, node, pool};
    use crate::pools::occupied::Occupied;

    fn cluster_range(range: &str, user: ClusterUser) -> ClusterRange {
        ClusterRange { range: range.parse().expect("a range"), user }
    }

    #[test]
    fn addresses_that_the_cluster_uses_are_named_with_their_user() {
        let (pods, services) = (|node: &str| ClusterUser::Pods(node.into()), ClusterUser::ServiceRange("a".into()));
        let ranges = [
            cluster_range("10.244.1.0/24", pods("n1")),
            cluster_range("10.244.2.0/24", pods("n2")),
            cluster_range("10.96.0.0/12", services.clone()),
            cluster_range("fd00::/108", services),
        ];
        let keys = ["api", "web"].map(|name| Key::new("default", name));
        let cluster_ips = [("192.0.2.40", &keys[1]), ("192.0.2.30", &keys[0]), ("fd01::9", &keys[1])];
        for (addresses, exclude, expected) in [
            (&["198.51.100.0/24"][..], "::1", vec![]),
            (
                &["192.0.2.9-192.0.2.12"],
                "::1",
                vec!["192.0.2.11 (address of node n1)", "192.0.2.12 (address of node n2)"],
            ),
            (&["192.0.2.9-192.0.2.12"], "192.0.2.11", vec!["192.0.2.12 (address of node n2)"]),
            (
                &["10.244.1.200-10.244.2.9"],
                "10.244.1.255",
                vec!["10.244.1.200-10.244.1.254 (pods of node n1)", "10.244.2.0-10.244.2.9 (pods of node n2)"],
            ),
            (
                &["10.95.255.255-10.96.0.1", "10.97.0.0", "fd00::5"],
                "::1",
                vec![
                    "10.96.0.0-10.96.0.1 (ClusterIPs of ServiceCIDR a)",
                    "10.97.0.0-10.97.0.0 (ClusterIPs of ServiceCIDR a)",
                    "fd00::5-fd00::5 (ClusterIPs of ServiceCIDR a)",
                ],
            ),
            (
                &["192.0.2.20-192.0.2.60", "fd01::/64"],
                "::1",
                vec!["192.0.2.30 (ClusterIP of Service default/api)", "fd01::9 (ClusterIP of Service default/web)"],
            ),
            (&["192.0.2.20-192.0.2.60"], "192.0.2.30", vec!["192.0.2.40 (ClusterIP of Service default/web)"]),
        ] {
            let mut object = pool("lan", 1, addresses);
            Arc::make_mut(&mut object).spec.exclude = vec![crds::ip_address_pool::AddressRange(exclude.into())];
            let nodes = [node("n1", "192.0.2.11"), node("n2", "192.0.2.12")];
            let mut pools = Pools::new([&object], &Occupied::new(nodes.iter().map(|node| &**node), []));
            let mut set = |ranges: &[ClusterRange]| {
                pools.set_cluster_use(ranges, cluster_ips.iter().map(|(text, key)| (ip(text), *key)))
            };
            let is_some = !expected.is_empty();
            assert_eq!(set(&ranges), if is_some { vec!["lan"] } else { vec![] }, "{addresses:?}");
            assert_eq!(set(&ranges), [""; 0], "{addresses:?}: nothing changed");
            let found = &pools.get("lan").expect("a pool").cluster_use.first;
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{addresses:?}");
        }
    }
}
