//! Addresses that another host on the LAN uses: which Services get another address, and the quarantine of these
//! addresses.
//!
//! The conflicts that nodes report (`status.conflicts` of a LoadBalancerIP) → which Services move. Clients may use an
//! address that has been announced, so its Service keeps the address, whatever conflicts follow. An address that was
//! never announced, because a host answered the probes of the nodes, has no clients yet. So a Service that takes any
//! address gets another one, and the address in conflict goes into quarantine. Until the quarantine ends, no Service
//! gets the address. Then it can be assigned again.
//!
//! Moves are limited, for each Service and in the cluster. A router that answers for every address (proxy ARP) would
//! otherwise drive all Services through all pools. A Service that cannot move keeps its address and reports the
//! conflict. Both limits count the quarantined records, so a restart does not reset them.

use std::net::IpAddr;

use crds::{AddressConflict, Quarantine, Record, Service};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocate::sharing::holder;
use crate::plan::effect::{Effect, Event, RecordPatch};
use crate::state::index::ClusterIndex;
use crate::state::record::{QUARANTINE, is_exclusive};
use crate::status::reason::EventReason;

/// Maximum number of addresses that a Service may leave within [`QUARANTINE`].
const MAX_MOVES: usize = 3;

/// Maximum number of addresses in quarantine at once. More conflicts have another cause than wrongly configured hosts.
const MAX_QUARANTINED: usize = 16;

/// The order in which nodes reported conflicts. Messages name the first of these nodes, so that they are stable.
fn report_order(conflict: &AddressConflict) -> (Timestamp, &str) {
    (conflict.since.0, &conflict.node)
}

impl ClusterIndex {
    /// The conflict that prevents the first announcement of an address. Reports of deleted nodes are ignored.
    pub(crate) fn blocking_conflict<'a>(&self, record: &'a Record) -> Option<&'a AddressConflict> {
        if record.first_announced.is_some() || !record.announcers.is_empty() {
            return None;
        }
        self.conflicts(record).filter(|conflict| conflict.held_back).min_by_key(|conflict| report_order(conflict))
    }

    /// The first conflict of an address, announced or not. Reports of deleted nodes are ignored.
    pub(crate) fn first_conflict<'a>(&self, record: &'a Record) -> Option<&'a AddressConflict> {
        self.conflicts(record).min_by_key(|conflict| report_order(conflict))
    }

    fn conflicts<'a>(&self, record: &'a Record) -> impl Iterator<Item = &'a AddressConflict> + use<'_, 'a> {
        record.conflicts.iter().filter(|conflict| self.objects.nodes().contains_key(&conflict.node))
    }

    /// Whether a Service that takes any address should leave this one.
    pub(crate) fn should_leave(&self, service: &Service, record: &Record) -> bool {
        self.has_leavable_conflict(record) && !self.is_move_limit_reached(service)
    }

    /// Whether a Service would leave this address if moves were not limited.
    pub(crate) fn would_leave(&self, service: &Service, lb_ip: IpAddr) -> bool {
        let takes_any = service.request.as_ref().is_ok_and(|request| !request.addresses.contains(&lb_ip));
        takes_any && self.objects.records().get(&lb_ip).is_some_and(|record| self.has_leavable_conflict(record))
    }

    /// Whether a conflict prevents the first announcement of an address that has one holder.
    pub(crate) fn has_leavable_conflict(&self, record: &Record) -> bool {
        is_exclusive(record) && self.blocking_conflict(record).is_some()
    }

    fn is_move_limit_reached(&self, service: &Service) -> bool {
        let was_left_by_service = |lb_ip: &&IpAddr| {
            let quarantine = self.objects.records().get(*lb_ip).and_then(|record| record.quarantine.as_ref());
            quarantine.is_some_and(|quarantine| quarantine.service.uid == service.uid)
        };
        let moving = self.moving.len() - usize::from(self.moving.contains(&service.key));
        self.quarantined.len() + moving >= MAX_QUARANTINED
            || self.quarantined.keys().filter(was_left_by_service).count() >= MAX_MOVES
    }

    /// The effects that put a record into quarantine when its Service leaves it; `None` if no conflict makes the
    /// Service leave.
    pub(crate) fn quarantine_effects(&self, service: &Service, record: &Record, now: Timestamp) -> Option<[Effect; 2]> {
        if !is_exclusive(record) || record.deleting || self.is_move_limit_reached(service) {
            return None;
        }
        let AddressConflict { mac, node, link, .. } = self.blocking_conflict(record)?;
        let message = format!(
            "{mac} on the LAN uses {} already, as node {node} sees on {link}: the address is not assigned for {} \
             minutes; find that host, or exclude the address from its pool (spec.exclude)",
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
        let patch = RecordPatch { quarantine: Some(quarantine), ..RecordPatch::new(record) };
        let event = Event::for_service(service, true, EventReason::AddressConflict.as_str(), message);
        Some([Effect::PatchRecord(patch), Effect::Event(event)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at_second, ip, pool, request_for, request_of, service};
    use crate::world::{ServiceView, World};
    use crds::service::ANNOUNCED;
    use crds::{IPAddressPool, NodeAddresses};
    use std::sync::Arc;

    fn lan(last: u8) -> Arc<IPAddressPool> {
        pool("lan", 1, &[&format!("192.0.2.10-192.0.2.{last}")])
    }

    /// A settled cluster in which `web` has 192.0.2.10.
    fn world(last: u8) -> World {
        let mut world = World::new([lan(last)], [service("web", 5)]);
        world.snapshot.networks.insert("n1".into(), Arc::new(NodeAddresses::default()));
        world.snapshot.now = at_second(100);
        world.settle();
        assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
        world
    }

    fn messages(world: &World, reason: &str) -> Vec<String> {
        world.events.iter().filter(|event| event.reason == reason).map(|event| event.message.clone()).collect()
    }

    fn announced_condition(world: &World) -> Option<String> {
        let conditions = &world.service("web").conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == ANNOUNCED)?;
        Some(format!("{} {}: {}", condition.status, condition.reason, condition.message))
    }

    #[test]
    fn never_announced_address_in_conflict_is_quarantined() {
        let mut world = world(12);
        world.report_conflict(ip("192.0.2.10"));
        world.settle();
        assert_eq!(world.view("web"), ServiceView::has("192.0.2.11", "lan"));
        let message = "02:00:00:00:00:99 on the LAN uses 192.0.2.10 already, as node n1 sees on eth0: the \
                       address is not assigned for 10 minutes; find that host, or exclude the address from its pool \
                       (spec.exclude)";
        assert_eq!(messages(&world, "AddressConflict"), [message, &pool_message("192.0.2.10")]);
        // The address goes neither to a Service that takes any address, nor to one that requests it by name.
        let mut by_name = service("by-name", 6);
        by_name.request = request_for("192.0.2.10");
        for other in [service("other", 7), by_name] {
            world.snapshot.services.insert(other.key.clone(), Arc::new(other));
        }
        world.settle();
        assert_eq!(world.view("other"), ServiceView::has("192.0.2.12", "lan"));
        let refused = "False AddressInUse: 192.0.2.10 is used by 02:00:00:00:00:99 on the LAN; request another \
                       address, or remove the request";
        assert_eq!(world.view("by-name").condition.as_deref(), Some(refused));
        let status = world.snapshot.pools["lan"].status.clone().expect("a status");
        assert_eq!((status.assigned_ipv4, status.available_ipv4), (3, 0));
        // After the quarantine, the address is assigned again.
        world.snapshot.now = at_second(100 + 600);
        world.settle();
        assert_eq!(world.view("by-name"), ServiceView::has("192.0.2.10", "lan"));
        let conditions = &world.snapshot.pools["lan"].status.as_ref().expect("a status").conditions;
        assert!(conditions.iter().all(|condition| condition.type_ != "Conflict"), "{conditions:?}");
    }

    fn pool_message(addresses: &str) -> String {
        format!(
            "these addresses are not assigned for some minutes, because other hosts on the LAN use them: {addresses} \
             by 02:00:00:00:00:99; find these hosts, or exclude the addresses (spec.exclude)"
        )
    }

    #[test]
    fn address_that_was_announced_once_is_kept() {
        let mut world = world(12);
        world.announce(ip("192.0.2.10"));
        world.settle();
        for is_announced in [true, false] {
            world.report_conflict(ip("192.0.2.10"));
            // The Service also keeps the address if a node holds it back.
            world.edit_record(ip("192.0.2.10"), |record| record.conflicts[0].held_back = true);
            if !is_announced {
                world.stop_announcing(ip("192.0.2.10"));
            }
            world.settle();
            assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
        }
        let found = messages(&world, "AddressConflict");
        assert!(found.len() == 1 && found[0].contains("uses 192.0.2.10 as well, as node n1 sees on eth0"), "{found:?}");
    }

    #[test]
    fn service_that_cannot_move_reports_the_conflict() {
        let requests = |service: &mut Service| service.request = request_for("192.0.2.10");
        let shares = |service: &mut Service| {
            request_of(service).sharing_key = Some("k".into());
        };
        let nothing = |_: &mut Service| {};
        let edits: [fn(&mut Service); 3] = [requests, shares, nothing];
        for (last, edit) in [12, 12, 10].into_iter().zip(edits) {
            let mut web = service("web", 5);
            edit(&mut web);
            let mut world = World::new([lan(last)], [web]);
            world.settle();
            world.report_conflict(ip("192.0.2.10"));
            world.settle();
            assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
            let found = announced_condition(&world).expect("a condition");
            let start = "False Conflict: 192.0.2.10 is not announced, because 02:00:00:00:00:99 on the LAN uses it \
                         already, as node n1 sees on eth0: ";
            assert!(found.starts_with(start), "{found}");
            assert_eq!(messages(&world, "AddressConflict").len(), 1);
            // The conflict ends, and a node announces the address.
            world.announce(ip("192.0.2.10"));
            world.settle();
            assert_eq!(announced_condition(&world).as_deref(), Some("True Announced: 192.0.2.10 by n1 (eth0)"));
        }
    }

    #[test]
    fn service_moves_as_soon_as_an_address_is_free() {
        let mut world = world(10);
        world.report_conflict(ip("192.0.2.10"));
        world.settle();
        world.snapshot.pools.insert("more".into(), pool("more", 9, &["192.0.2.20-192.0.2.20"]));
        world.settle();
        assert_eq!(world.view("web"), ServiceView::has("192.0.2.20", "more"));
    }

    #[test]
    fn moves_of_services_are_limited() {
        let mut world = world(200);
        for last in 10..30 {
            world.report_conflict(ip(&format!("192.0.2.{last}")));
            world.settle();
        }
        assert_eq!(world.view("web"), ServiceView::has("192.0.2.13", "lan"), "it has moved three times");
        // The moves of many Services are limited too.
        for n in 0..20 {
            let other = service(&format!("s{n}"), 9);
            world.snapshot.services.insert(other.key.clone(), Arc::new(other));
        }
        for _ in 0..4 {
            world.settle();
            (10..=200).for_each(|last| world.report_conflict(ip(&format!("192.0.2.{last}"))));
        }
        world.settle();
        let quarantined = world.snapshot.records.values().filter(|record| record.quarantine.is_some()).count();
        assert_eq!(quarantined, MAX_QUARANTINED);
        let has_one = |n: u8| !world.view(&format!("s{n}")).ingress.is_empty();
        assert!((0..20).all(has_one));
    }

    #[test]
    fn conflict_of_a_deleted_node_is_ignored() {
        let mut world = world(12);
        world.report_conflict(ip("192.0.2.10"));
        world.snapshot.nodes.clear();
        world.settle();
        assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
    }
}
