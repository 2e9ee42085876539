//! Addresses that somebody else on the LAN uses: which Services get another one, and for how long nobody gets that.
//!
//! What nodes say of strangers (`status.conflicts` of a LoadBalancerIP) → who moves. An address that was announced once is
//! in use, and its Service keeps it, whoever else turns up with it. But one that was never announced, because somebody
//! answered when the nodes asked for it, nobody can be using yet: so a Service that took any address gets another one, and the
//! address is put into quarantine: nobody gets it until that is over. Then it is tried again.
//!
//! There is an end to that. A router that answers for every address (proxy ARP) would have all Services go through all
//! pools: a Service moves so often and no more, and so many addresses are in quarantine at once and no more. Whoever can't
//! move stays, and says so. Both are counted in the objects themselves, so that a restart forgets neither.

use std::net::IpAddr;

use crds::{AddressConflict, Quarantine, Record, Service};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocate::sharing::holder;
use crate::plan::effect::{AddressPatch, Effect, Event, service_reference};
use crate::state::index::Ledger;
use crate::state::record::{QUARANTINE, is_exclusive};

/// So many addresses a Service gives up within [`QUARANTINE`].
const MOVES: usize = 3;

/// So many addresses are in quarantine at once: more strangers than a LAN has by mistake.
const QUARANTINED: usize = 16;

/// Of several nodes that see somebody, the first one to do so is named, so that what is said doesn't change with each.
fn first(conflict: &AddressConflict) -> (Timestamp, &str) {
    (conflict.since.0, &conflict.node)
}

impl Ledger {
    /// Who uses an address that was never announced, so that it isn't. The word of a node that is gone is none.
    pub(crate) fn intruder<'a>(&self, record: &'a Record) -> Option<&'a AddressConflict> {
        if record.first_announced.is_some() || !record.announcers.is_empty() {
            return None;
        }
        self.conflicts_of(record).filter(|conflict| conflict.held_back).min_by_key(|conflict| first(conflict))
    }

    /// Who uses an address besides the node that announces it. The word of a node that is gone is none.
    pub(crate) fn stranger<'a>(&self, record: &'a Record) -> Option<&'a AddressConflict> {
        self.conflicts_of(record).min_by_key(|conflict| first(conflict))
    }

    fn conflicts_of<'a>(&self, record: &'a Record) -> impl Iterator<Item = &'a AddressConflict> + use<'_, 'a> {
        record.conflicts.iter().filter(|conflict| self.nodes.contains_key(&conflict.node))
    }

    /// Whether a Service that has this address, and takes any, should have another one.
    pub(crate) fn is_to_leave(&self, service: &Service, record: &Record) -> bool {
        is_exclusive(record) && self.intruder(record).is_some() && !self.has_moved_enough(service)
    }

    /// Whether a Service that has this address would leave it, now or when others have left theirs.
    pub(crate) fn would_leave(&self, service: &Service, address: IpAddr) -> bool {
        let takes_any = service.request.as_ref().is_ok_and(|request| !request.addresses.contains(&address));
        let record = self.addresses.get(&address).filter(|_| takes_any);
        record.is_some_and(|record| is_exclusive(record) && self.intruder(record).is_some())
    }

    /// Whether no further address is to be given up for this Service, for the time being.
    fn has_moved_enough(&self, service: &Service) -> bool {
        let gave_up = |address: &&IpAddr| {
            let record = self.addresses.get(*address).and_then(|record| record.quarantine.as_ref());
            record.is_some_and(|quarantine| quarantine.service.uid == service.uid)
        };
        let moving = self.moving.len() - usize::from(self.moving.contains(&service.key));
        self.quarantined.len() + moving >= QUARANTINED || self.quarantined.keys().filter(gave_up).count() >= MOVES
    }

    /// What puts an address into quarantine that a Service gives up, and tells people; `None` if nobody else uses it.
    pub(crate) fn quarantined(&self, service: &Service, record: &Record, now: Timestamp) -> Option<[Effect; 2]> {
        if !is_exclusive(record) || record.deleting || self.has_moved_enough(service) {
            return None;
        }
        let AddressConflict { mac, node, link, .. } = self.intruder(record)?;
        let message = format!(
            "{mac} on the LAN uses {} already, as node {node} sees on {link}: nobody gets that address for {} minutes; \
             find that machine, or take the address out of its pool (spec.exclude)",
            record.address,
            QUARANTINE.as_mins(),
        );
        let quarantine = Quarantine {
            mac: mac.clone(),
            node: node.clone(),
            link: link.clone(),
            since: Time(now),
            service: holder(service),
        };
        let patch = AddressPatch {
            address: record.address,
            resource_version: record.resource_version,
            holders: Vec::new(),
            sharing_key: None,
            pool: None,
            becomes_reservation: false,
            quarantine: Some(quarantine),
        };
        let regarding = service_reference(&service.key, &service.uid);
        let event = Event { regarding, is_warning: true, reason: "AddressConflict", message };
        Some([Effect::PatchAddress(patch), Effect::Event(event)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{asking, at, ip, pool, request_of, service};
    use crate::world::{Seen, World};
    use crds::service::ANNOUNCED;
    use crds::{IPAddressPool, Network};
    use std::sync::Arc;

    fn lan(last: u8) -> Arc<IPAddressPool> {
        pool("lan", 1, &[&format!("192.0.2.10-192.0.2.{last}")])
    }

    /// A cluster at rest where `web` has 192.0.2.10.
    fn world(last: u8) -> World {
        let mut world = World::with([lan(last)], [service("web", 5)]);
        world.snapshot.networks.insert("n1".into(), Arc::new(Network { addresses: vec![], gateways: vec![] }));
        world.snapshot.now = at(100);
        world.settle();
        assert_eq!(world.seen("web"), Seen::has("192.0.2.10", "lan"));
        world
    }

    fn told(world: &World, reason: &str) -> Vec<String> {
        world.events.iter().filter(|event| event.reason == reason).map(|event| event.message.clone()).collect()
    }

    fn announced(world: &World) -> Option<String> {
        let conditions = &world.service("web").conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == ANNOUNCED)?;
        Some(format!("{} {}: {}", condition.status, condition.reason, condition.message))
    }

    #[test]
    fn a_service_leaves_an_address_that_was_never_announced_and_nobody_gets_that() {
        let mut world = world(12);
        world.intrude(ip("192.0.2.10"));
        world.settle();
        assert_eq!(world.seen("web"), Seen::has("192.0.2.11", "lan"));
        let message = "02:00:00:00:00:99 on the LAN uses 192.0.2.10 already, as node n1 sees on eth0: nobody gets that \
                       address for 10 minutes; find that machine, or take the address out of its pool (spec.exclude)";
        assert_eq!(told(&world, "AddressConflict"), [message, &pool_says("192.0.2.10")]);
        // Neither who takes any, nor who asks for it.
        let mut asks = service("asks", 6);
        asks.request = asking("192.0.2.10");
        for other in [service("other", 7), asks] {
            world.snapshot.services.insert(other.key.clone(), Arc::new(other));
        }
        world.settle();
        assert_eq!(world.seen("other"), Seen::has("192.0.2.12", "lan"));
        let refused = "False AddressInUse: 192.0.2.10 was found to be used by 02:00:00:00:00:99 on the LAN; ask for \
                       another address, or leave it out";
        assert_eq!(world.seen("asks").condition.as_deref(), Some(refused));
        let status = world.snapshot.pools["lan"].status.clone().expect("a status");
        assert_eq!((status.assigned_ipv4, status.available_ipv4), (3, 0));
        // When it is over, the address is given again.
        world.snapshot.now = at(100 + 600);
        world.settle();
        assert_eq!(world.seen("asks"), Seen::has("192.0.2.10", "lan"));
        let conditions = &world.snapshot.pools["lan"].status.as_ref().expect("a status").conditions;
        assert!(conditions.iter().all(|condition| condition.type_ != "Conflict"), "{conditions:?}");
    }

    fn pool_says(addresses: &str) -> String {
        format!(
            "nobody gets these addresses for some minutes, because others on the LAN were found to use them: {addresses} by \
             02:00:00:00:00:99; find these machines, or leave the addresses out (spec.exclude)"
        )
    }

    #[test]
    fn an_address_that_was_announced_once_is_kept() {
        let mut world = world(12);
        world.announce(ip("192.0.2.10"));
        world.settle();
        for is_announced in [true, false] {
            world.intrude(ip("192.0.2.10"));
            // Whatever a node makes of it.
            world.edit_record(ip("192.0.2.10"), |record| record.conflicts[0].held_back = true);
            if !is_announced {
                world.silence(ip("192.0.2.10"));
            }
            world.settle();
            assert_eq!(world.seen("web"), Seen::has("192.0.2.10", "lan"));
        }
        let said = told(&world, "AddressConflict");
        assert!(said.len() == 1 && said[0].contains("uses 192.0.2.10 as well, as node n1 sees on eth0"), "{said:?}");
    }

    #[test]
    fn who_asked_for_the_address_or_shares_it_or_finds_no_other_stays_and_says_so() {
        let asked = |service: &mut Service| service.request = asking("192.0.2.10");
        let shares = |service: &mut Service| {
            request_of(service).sharing_key = Some("k".into());
        };
        let nothing = |_: &mut Service| {};
        let edits: [fn(&mut Service); 3] = [asked, shares, nothing];
        for (last, edit) in [12, 12, 10].into_iter().zip(edits) {
            let mut web = service("web", 5);
            edit(&mut web);
            let mut world = World::with([lan(last)], [web]);
            world.settle();
            world.intrude(ip("192.0.2.10"));
            world.settle();
            assert_eq!(world.seen("web"), Seen::has("192.0.2.10", "lan"));
            let said = announced(&world).expect("a condition");
            let start = "False Conflict: 192.0.2.10 is not announced, because 02:00:00:00:00:99 on the LAN uses it already, as \
                         node n1 sees on eth0: ";
            assert!(said.starts_with(start), "{said}");
            assert_eq!(told(&world, "AddressConflict").len(), 1);
            // The stranger is gone, and a node announces it.
            world.announce(ip("192.0.2.10"));
            world.settle();
            assert_eq!(announced(&world).as_deref(), Some("True Announced: 192.0.2.10 by n1 (eth0)"));
        }
    }

    #[test]
    fn who_finds_no_other_gets_one_as_soon_as_there_is_one() {
        let mut world = world(10);
        world.intrude(ip("192.0.2.10"));
        world.settle();
        world.snapshot.pools.insert("more".into(), pool("more", 9, &["192.0.2.20-192.0.2.20"]));
        world.settle();
        assert_eq!(world.seen("web"), Seen::has("192.0.2.20", "more"));
    }

    #[test]
    fn a_service_does_not_go_through_a_pool_without_end() {
        let mut world = world(200);
        for last in 10..30 {
            world.intrude(ip(&format!("192.0.2.{last}")));
            world.settle();
        }
        assert_eq!(world.seen("web"), Seen::has("192.0.2.13", "lan"), "it has moved three times");
        // Nor do many, each a few times.
        for n in 0..20 {
            let other = service(&format!("s{n}"), 9);
            world.snapshot.services.insert(other.key.clone(), Arc::new(other));
        }
        for _ in 0..4 {
            world.settle();
            (10..=200).for_each(|last| world.intrude(ip(&format!("192.0.2.{last}"))));
        }
        world.settle();
        let quarantined = world.snapshot.addresses.values().filter(|record| record.quarantine.is_some()).count();
        assert_eq!(quarantined, QUARANTINED);
        let has_one = |n: u8| !world.seen(&format!("s{n}")).ingress.is_empty();
        assert!((0..20).all(has_one));
    }

    #[test]
    fn the_word_of_a_node_that_is_gone_is_none() {
        let mut world = world(12);
        world.intrude(ip("192.0.2.10"));
        world.snapshot.nodes.clear();
        world.settle();
        assert_eq!(world.seen("web"), Seen::has("192.0.2.10", "lan"));
    }
}
