//! Which links have a segment, and which addresses belong to each of them.
//!
//! Links and the snapshot in, segments that are made, filled and closed out. Where thousands of addresses are and one comes or
//! goes, only that one is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::Machine;
use crate::announce::placement::placements;
use crate::ownership::segment::Segment;
use model::eligibility::{AnnouncementPolicy, Links};

use crate::snapshot::Snapshot;

impl Machine {
    /// Sees to it that there is a segment for each link that is needed, and each address on those it belongs to.
    pub(super) fn arrange(&mut self, now: Duration) {
        self.regrouped = true;
        self.kept.clear();
        let mut placed: BTreeMap<u32, BTreeSet<IpAddr>> =
            self.homes().into_iter().map(|index| (index, BTreeSet::new())).collect();
        if let Some(snapshot) = self.snapshot.clone() {
            for (lb_ip, wanted) in snapshot.addresses.iter() {
                for index in self.places(&snapshot, *lb_ip, wanted) {
                    placed.entry(index).or_default().insert(*lb_ip);
                }
            }
        }
        let gone: Vec<u32> = self.segments.keys().filter(|index| !placed.contains_key(index)).copied().collect();
        gone.into_iter().for_each(|index| self.close(now, index));
        for (index, lb_ips) in placed {
            self.segment(now, index).place(lb_ips);
        }
    }

    /// Does what [`arrange`](Self::arrange) does when nothing but these addresses has changed: however many others there are,
    /// they are left alone.
    pub(super) fn rearrange(&mut self, now: Duration, mut lb_ips: BTreeSet<IpAddr>) {
        self.regrouped = true;
        let Some(snapshot) = self.snapshot.clone() else { return };
        // They stay only as long as they are announced.
        lb_ips.append(&mut self.kept);
        for lb_ip in lb_ips {
            let wanted = snapshot.addresses.get(&lb_ip);
            let places = wanted.map(|wanted| self.places(&snapshot, lb_ip, wanted)).unwrap_or_default();
            for (index, segment) in &mut self.segments {
                if !places.contains(index) {
                    segment.displace(lb_ip);
                }
            }
            for index in places {
                self.segment(now, index).add(lb_ip);
            }
        }
        let homes = self.homes();
        let is_needed =
            |(index, segment): &(&u32, &Segment)| segment.places().next().is_some() || homes.contains(index);
        let gone: Vec<u32> = self.segments.iter().filter(|one| !is_needed(one)).map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| self.close(now, index));
    }

    /// The links on which we speak in any case. On the node's own one: when the first address comes, everybody is known.
    fn homes(&self) -> BTreeSet<u32> {
        let links = self.links.values();
        match &self.snapshot {
            Some(snapshot) => {
                links.filter(|link| link.holds(&snapshot.node_addresses)).map(|link| link.index).collect()
            }
            // Which links count is not known yet. To say so is of use only where other nodes may be.
            None => links.filter(|link| !link.is_bridge).map(|link| link.index).collect(),
        }
    }

    /// The links that an address belongs to.
    fn places(&mut self, snapshot: &Snapshot, lb_ip: IpAddr, wanted: &AnnouncementPolicy) -> BTreeSet<u32> {
        let own = wanted.candidates.get(&self.config.node);
        let home = Links::default();
        let allowed = own.map_or(&home, |own| &own.links);
        let links = placements(lb_ip, self.links.values(), &snapshot.node_addresses, allowed);
        let mut places: BTreeSet<u32> = links.into_iter().map(|link| link.index).collect();
        if own.is_none() {
            // One that we may not announce any more stays where it is until somebody else has taken it over.
            let kept = self.segments.iter().filter(|(_, segment)| segment.mine(lb_ip).is_some());
            let kept = kept.map(|(index, _)| *index).filter(|index| self.links.contains_key(index));
            let before = places.len();
            places.extend(kept);
            if places.len() > before {
                self.kept.insert(lb_ip);
            }
        }
        places
    }

    /// The segment of a link that is there, which is made if there is none.
    fn segment(&mut self, now: Duration, index: u32) -> &mut Segment {
        let link = &self.links[&index];
        let segment = self.segments.entry(index).or_insert_with(|| Segment::new(now, link.clone(), &self.config));
        segment.update(now, link);
        segment
    }

    /// A link is gone, or needed no more.
    fn close(&mut self, now: Duration, index: u32) {
        let Some(mut segment) = self.segments.remove(&index) else { return };
        let is_there = self.links.contains_key(&index);
        let mut context = self.context(now);
        segment.close(&mut context);
        if is_there {
            context.leaving = true;
            segment.say_goodbye(&mut context);
        }
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::announce::placement::Link;
    use crate::config::Config;
    use crate::wire::seal::Authentication;
    use model::eligibility::{Candidate, Candidates};

    /// Which addresses belong to which link.
    fn placed(machine: &Machine) -> BTreeMap<u32, Vec<IpAddr>> {
        machine.segments.iter().map(|(index, segment)| (*index, segment.places().collect())).collect()
    }

    fn links(names: &[&str]) -> Links {
        Links { home: names.is_empty(), named: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    proptest! {
        /// One address after the other, or all at once: it comes to the same.
        #[test]
        fn what_changes_is_placed_as_if_all_were_placed_anew(
            steps in vec((0u8..12, 0u8..5), 1..40),
        ) {
            let link = |index: u32, own: &str| {
                let mac = crds::MacAddr(2, 0, 0, 0, 0, index as u8);
                (index, Link { index, name: format!("eth{index}"), mac, addresses: vec![own.parse().expect("a prefix")], is_bridge: false })
            };
            let mut machine = Machine::new(Config::new("cluster", "n1", 1, Authentication::Off));
            let there = [link(1, "192.0.2.11/24"), link(2, "198.51.100.1/29"), link(3, "203.0.113.1/24")];
            machine.set_links(Duration::ZERO, BTreeMap::from(there));
            let lb_ip = |n: u8| -> IpAddr { if n < 6 { [198, 51, 100, n].into() } else { [192, 0, 2, n].into() } };
            machine.set_forwarded(Arc::new((0..12).map(lb_ip).collect()));
            let node_addresses = vec!["192.0.2.11".parse().expect("an address")];
            let mut snapshot = Snapshot { node_addresses, ..Snapshot::default() };
            machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
            let mut now = Duration::from_secs(1);
            for (n, what) in steps {
                now += Duration::from_millis(200);
                let candidate = match what {
                    1 => Some(("n1", links(&[]))),
                    2 => Some(("n1", links(&["eth3"]))),
                    3 => Some(("n1", links(&["eth1", "eth2"]))),
                    _ => Some(("n2", links(&[]))),
                };
                let before = snapshot.clone();
                match candidate.filter(|_| what > 0) {
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
                let one_by_one = placed(&machine);
                machine.arrange(now);
                prop_assert_eq!(one_by_one, placed(&machine));
                machine.poll(now, 10);
                machine.take_frames();
            }
        }
    }

    #[test]
    fn an_address_that_comes_or_goes_is_placed_alone_however_many_others_there_are() {
        let candidates: Arc<Candidates> = Arc::new(["n1".to_owned()].into_iter().collect());
        let wanted = || AnnouncementPolicy { candidates: Arc::clone(&candidates), epoch: 0 };
        let own = "10.0.0.1/8";
        let eth0 = Link {
            index: 1,
            name: "eth0".into(),
            mac: crds::MacAddr(2, 0, 0, 0, 0, 1),
            addresses: vec![own.parse().expect("a prefix")],
            is_bridge: false,
        };
        let mut machine = Machine::new(Config::new("cluster", "n1", 1, Authentication::Off));
        machine.set_links(Duration::ZERO, BTreeMap::from([(1, eth0)]));
        let many = (0..5000u32).map(|n| (IpAddr::from((0x0a01_0000 + n).to_be_bytes()), wanted()));
        let mut snapshot =
            Snapshot { node_addresses: vec!["10.0.0.1".parse().expect("an address")], addresses: many.collect() };
        machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
        // Whoever looks at this one as well puts it back.
        let other: IpAddr = [10, 1, 0, 7].into();
        machine.segments.get_mut(&1).expect("a segment").displace(other);
        let one: IpAddr = [10, 2, 0, 1].into();
        for comes in [true, false] {
            if comes {
                snapshot.addresses.insert(one, wanted());
            } else {
                snapshot.addresses.remove(&one);
            }
            machine.set_snapshot(Duration::ZERO, Some(Arc::new(snapshot.clone())));
            let places: BTreeSet<IpAddr> = machine.segments[&1].places().collect();
            assert_eq!(places.contains(&one), comes);
            assert!(!places.contains(&other) && places.len() == 4999 + usize::from(comes), "all were looked at");
        }
    }
}
