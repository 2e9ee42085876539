//! Placement: which links an address belongs to. Creates and closes the segments of links accordingly.
//!
//! The input is the links and the snapshot. Only links that can have clients are in the input: [`netlink::links`]
//! leaves out links that are down, are not Ethernet, or are ports of a bridge. When one of thousands of addresses
//! changes, only that address is placed again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Machine;
use crate::config::Config;
use crate::ownership::context::Context;
use crate::ownership::segment::Segment;
use crate::peers::deaths::FORGET_AFTER;
use crate::snapshot::Snapshot;
use model::eligibility::{AnnouncementPolicy, Links};
use model::stable_hash;
use netlink::links::Link;

impl Machine {
    /// Assigns each address to its links.
    pub(super) fn place_all(&mut self) {
        let held = self.context.snapshot.iter().flat_map(|snapshot| snapshot.addresses.keys());
        let placed = self.segments.values().flat_map(Segment::placed_addresses);
        let all = held.copied().chain(placed).collect();
        self.place(all);
    }

    /// Assigns these addresses to their links. Creates and closes segments as needed.
    pub(super) fn place(&mut self, mut lb_ips: BTreeSet<IpAddr>) {
        self.groups_changed = true;
        let snapshot = self.context.snapshot.clone().unwrap_or_default();
        // Outgoing addresses are placed each time, because they keep their link only while they are announced.
        lb_ips.append(&mut self.outgoing);
        for lb_ip in lb_ips {
            let policy = snapshot.addresses.get(&lb_ip);
            let places = policy.map(|policy| self.links_of(&snapshot, lb_ip, policy)).unwrap_or_default();
            for (index, segment) in &mut self.segments {
                if !places.contains(index) {
                    segment.remove_placed(lb_ip);
                }
            }
            for index in places {
                self.segment(index).add_placed(lb_ip);
            }
        }
        let homes = self.home_links();
        for index in &homes {
            self.segment(*index);
        }
        let is_needed =
            |(index, segment): &(&u32, &Segment)| segment.placed_addresses().next().is_some() || homes.contains(index);
        let gone: Vec<u32> = self.segments.iter().filter(|one| !is_needed(one)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| self.close(index));
    }

    /// The links that have a segment even without addresses: those with a node address. So this node knows its peers
    /// before the first address appears.
    fn home_links(&self) -> BTreeSet<u32> {
        let is_home = |link: &&Link| match &self.context.snapshot {
            Some(snapshot) => link.has_any_of(&snapshot.node_addresses),
            // The node addresses are not known yet. Any link may have one, except for bridges: behind them are pods,
            // not other nodes.
            None => !link.is_bridge,
        };
        self.links.values().filter(is_home).map(|link| link.index).collect()
    }

    /// The links on which this node places an address: the allowed ones, and those on which it still announces the
    /// address.
    fn links_of(&mut self, snapshot: &Snapshot, lb_ip: IpAddr, policy: &AnnouncementPolicy) -> BTreeSet<u32> {
        let own = policy.candidates.get(&self.context.config.node);
        let home = Links::default();
        let allowed = own.map_or(&home, |own| &own.links);
        let links = allowed_links(lb_ip, self.links.values(), &snapshot.node_addresses, allowed);
        let mut places: BTreeSet<u32> = links.into_iter().map(|link| link.index).collect();
        if own.is_none() {
            // An address that this node may no longer announce keeps its link until a peer has taken it over.
            let announcing = self.segments.iter().filter(|(_, segment)| segment.own_claim(lb_ip).is_some());
            let announcing = announcing.map(|(index, _)| *index).filter(|index| self.links.contains_key(index));
            let before = places.len();
            places.extend(announcing);
            if places.len() > before {
                self.outgoing.insert(lb_ip);
            }
        }
        places
    }

    /// The segment of an existing link. It is created if needed, or continues after the link was down.
    fn segment(&mut self, index: u32) -> &mut Segment {
        let (Context { now, config, .. }, link) = (&self.context, &self.links[&index]);
        let segment = self.segments.entry(index).or_insert_with(|| {
            if let Some((_, before)) = self.suspended.remove(&index) {
                return before.resume_link(*now, link.clone(), config);
            }
            self.opened += 1;
            Segment::new(*now, link.clone(), incarnation_of(config, index, self.opened), config)
        });
        segment.update_link(*now, link);
        segment
    }

    /// Closes the segment of a link that is no longer needed, or suspends it if the link is down.
    fn close(&mut self, index: u32) {
        let Some(mut segment) = self.segments.remove(&index) else { return };
        segment.close(&mut self.context);
        self.context.reports_changed = true;
        if self.links.contains_key(&index) {
            return segment.send_goodbye(&mut self.context);
        }
        let now = self.context.now;
        // After `FORGET_AFTER`, peers have forgotten this node. The segment of a deleted link would stay forever: a new
        // link has another index.
        self.suspended.retain(|_, (since, _)| now < *since + FORGET_AFTER);
        self.suspended.insert(index, (now, segment));
    }
}

/// The incarnation of the segment number `opened` of this speaker. It differs on each link, so that packets recorded on
/// one link prove nothing on another. It is new each time a link is used again: the sequence restarts, and peers would
/// take the Hellos for replayed ones.
fn incarnation_of(config: &Config, index: u32, opened: u64) -> u64 {
    stable_hash::mix64(config.incarnation ^ stable_hash::mix64(opened << 32 | u64::from(index)))
}

/// The home link of `lb_ip`: the link whose subnet contains the address (longest prefix, then lowest index). If no
/// subnet contains it, the home link has one of `node_addresses` (the node's InternalIPs) and an address of the same
/// family. A router with a route for the address resolves it on that link.
fn home_link<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node_addresses: &[IpAddr],
) -> Option<&'a Link> {
    let on_link =
        links.clone().filter_map(|link| Some((link.prefix_containing(lb_ip)?, std::cmp::Reverse(link.index), link)));
    let best = on_link.max_by_key(|(prefix, index, _)| (*prefix, *index)).map(|(_, _, link)| link);
    best.or_else(|| {
        links.filter(|link| link.has_any_of(node_addresses) && link.has_family_of(lb_ip)).min_by_key(|link| link.index)
    })
}

/// The links on which a node may announce `lb_ip`: its home link if `allowed` permits that, and each named link that
/// has an address of the family.
fn allowed_links<'a>(
    lb_ip: IpAddr,
    links: impl Iterator<Item = &'a Link> + Clone,
    node_addresses: &[IpAddr],
    allowed: &Links,
) -> Vec<&'a Link> {
    let home = if allowed.home { home_link(lb_ip, links.clone(), node_addresses).map(|link| link.index) } else { None };
    let named = |link: &Link| allowed.named.contains(&link.name) && link.has_family_of(lb_ip);
    links.filter(|link| home == Some(link.index) || named(link)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::seal::Keys;
    use model::eligibility::{Candidate, Candidates};

    /// The addresses of each link.
    fn placed_addresses(machine: &Machine) -> BTreeMap<u32, Vec<IpAddr>> {
        machine.segments.iter().map(|(index, segment)| (*index, segment.placed_addresses().collect())).collect()
    }

    fn machine() -> Machine {
        let mut machine = Machine::new(Config::new("cluster", "n1", 1));
        machine.set_keys(Duration::ZERO, &Keys::new([&[7; 32][..]]).expect("a key"));
        machine
    }

    fn links(names: &[&str]) -> Links {
        Links { home: names.is_empty(), named: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    proptest! {
        /// Placing addresses one by one has the same result as placing all at once.
        #[test]
        fn placing_one_by_one_equals_placing_all(
            steps in vec((0u8..12, 0u8..5), 1..40),
        ) {
            let link = |index: u32, own: &str| {
                let mac = crds::MacAddr(2, 0, 0, 0, 0, index as u8);
                let (name, addresses) = (format!("eth{index}"), vec![own.parse().expect("a prefix")]);
                (index, Link { index, name, mac, addresses, unusable: vec![], is_bridge: false })
            };
            let mut machine = machine();
            let all_links = [link(1, "192.0.2.11/24"), link(2, "198.51.100.1/29"), link(3, "203.0.113.1/24")];
            machine.set_links(Duration::ZERO, BTreeMap::from(all_links));
            let lb_ip = |n: u8| -> IpAddr { if n < 6 { [198, 51, 100, n].into() } else { [192, 0, 2, n].into() } };
            machine.set_forwarded(Arc::new((0..12).map(lb_ip).collect()));
            let node_addresses = vec!["192.0.2.11".parse().expect("an address")];
            let mut snapshot = Snapshot { node_addresses, ..Snapshot::default() };
            machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
            let mut now = Duration::from_secs(1);
            for (n, choice) in steps {
                now += Duration::from_millis(200);
                let candidate = match choice {
                    1 => Some(("n1", links(&[]))),
                    2 => Some(("n1", links(&["eth3"]))),
                    3 => Some(("n1", links(&["eth1", "eth2"]))),
                    _ => Some(("n2", links(&[]))),
                };
                let before = snapshot.clone();
                match candidate.filter(|_| choice > 0) {
                    Some((node, links)) => {
                        let one = (node.to_owned(), Candidate { links, preference: 0 });
                        let candidates = Arc::new([one].into_iter().collect());
                        snapshot.addresses.insert(lb_ip(n), AnnouncementPolicy { candidates, epoch: 0 });
                    }
                    None => drop(snapshot.addresses.remove(&lb_ip(n))),
                }
                if snapshot == before {
                    continue;
                }
                machine.set_snapshot(now, Some(Arc::new(snapshot.clone())));
                let one_by_one = placed_addresses(&machine);
                machine.place_all();
                prop_assert_eq!(one_by_one, placed_addresses(&machine));
                let _ = machine.poll(now, 10);
            }
        }
    }

    #[test]
    fn changed_address_is_placed_alone() {
        let candidates: Arc<Candidates> = Arc::new(["n1".to_owned()].into_iter().collect());
        let policy = || AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 };
        let own = "10.0.0.1/8";
        let eth0 = Link {
            index: 1,
            name: "eth0".into(),
            mac: crds::MacAddr(2, 0, 0, 0, 0, 1),
            addresses: vec![own.parse().expect("a prefix")],
            unusable: vec![],
            is_bridge: false,
        };
        let mut machine = machine();
        machine.set_links(Duration::ZERO, BTreeMap::from([(1, eth0)]));
        let many = (0..5000u32).map(|n| (IpAddr::from((0x0a01_0000 + n).to_be_bytes()), policy()));
        let mut snapshot =
            Snapshot { node_addresses: vec!["10.0.0.1".parse().expect("an address")], addresses: many.collect() };
        machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
        // If all addresses were placed again, this one would return.
        let other: IpAddr = [10, 1, 0, 7].into();
        machine.segments.get_mut(&1).expect("a segment").remove_placed(other);
        let one: IpAddr = [10, 2, 0, 1].into();
        for is_added in [true, false] {
            if is_added {
                snapshot.addresses.insert(one, policy());
            } else {
                snapshot.addresses.remove(&one);
            }
            machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
            let places: BTreeSet<IpAddr> = machine.segments[&1].placed_addresses().collect();
            assert_eq!(places.contains(&one), is_added);
            assert!(
                !places.contains(&other) && places.len() == 4999 + usize::from(is_added),
                "all addresses were placed"
            );
        }
    }

    fn link(index: u32, addresses: &[&str]) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: crds::MacAddr(2, 0, 0, 0, 0, 1),
            addresses: addresses.iter().map(|address| address.parse().expect("address")).collect(),
            unusable: vec![],
            is_bridge: false,
        }
    }

    #[test]
    fn home_link_has_the_subnet_or_a_node_address() {
        let links = [
            link(2, &["10.0.0.5/8"]),
            link(3, &["192.0.2.5/24", "198.51.100.5/24"]),
            link(4, &["10.1.0.5/16"]),
            link(5, &["192.0.2.6/24"]),
            link(6, &["198.18.0.1/15", "2001:db8::6/64", "fe80::6/64"]),
        ];
        let node: IpAddr = "10.0.0.5".parse().expect("address");
        for (lb_ip, nodes, expected) in [
            ("192.0.2.200", vec![node], Some(3)),
            ("198.51.100.9", vec![node], Some(3)),
            ("10.1.2.3", vec![node], Some(4)),
            ("10.2.2.3", vec![node], Some(2)),
            ("203.0.113.1", vec![node], Some(2)),
            ("203.0.113.1", vec![], None),
            ("2001:db8::1", vec![node], Some(6)),
            ("2001:db8:1::1", vec![node], None),
            ("2001:db8:1::1", vec![node, "2001:db8::6".parse().expect("address")], Some(6)),
        ] {
            let found = home_link(lb_ip.parse().expect("address"), links.iter(), &nodes).map(|link| link.index);
            assert_eq!(found, expected, "{lb_ip} with {nodes:?}");
        }
    }

    #[test]
    fn hellos_prefer_ipv4_then_the_link_local_address() {
        for (addresses, expected) in [
            (&["2001:db8::1/64", "fe80::1/64", "192.0.2.1/24"][..], Some("192.0.2.1")),
            (&["2001:db8::1/64", "fe80::1/64"], Some("fe80::1")),
            (&["2001:db8::1/64"], Some("2001:db8::1")),
            (&[], None),
        ] {
            let source = link(2, addresses).source_address();
            assert_eq!(source, expected.map(|text| text.parse().expect("address")), "{addresses:?}");
        }
    }

    #[test]
    fn address_goes_to_named_links_and_home_if_allowed() {
        let links = [link(2, &["10.0.0.5/8"]), link(3, &["192.0.2.5/24"]), link(4, &["2001:db8::5/64"])];
        let node = ["10.0.0.5".parse().expect("address")];
        let named =
            |home: bool, names: &[&str]| Links { home, named: names.iter().map(|name| (*name).into()).collect() };
        for (lb_ip, allowed, expected) in [
            ("192.0.2.200", Links::default(), vec![3]),
            ("192.0.2.200", named(false, &["eth2"]), vec![2]),
            ("192.0.2.200", named(false, &["eth2", "eth3"]), vec![2, 3]),
            ("192.0.2.200", named(true, &["eth2"]), vec![2, 3]),
            ("192.0.2.200", named(true, &["eth3"]), vec![3]),
            ("192.0.2.200", named(false, &["eth9"]), vec![]),
            ("192.0.2.200", named(false, &["eth4"]), vec![]),
            ("2001:db8::200", named(false, &["eth3", "eth4"]), vec![4]),
        ] {
            let found = allowed_links(lb_ip.parse().expect("address"), links.iter(), &node, &allowed);
            let found: Vec<u32> = found.iter().map(|link| link.index).collect();
            assert_eq!(found, expected, "{lb_ip} on {allowed:?}");
        }
    }
}
