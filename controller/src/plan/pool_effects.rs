//! The effects for one pool: its status, and events about new problems.

use std::net::IpAddr;

use jiff::Timestamp;
use kube::Resource;

use crate::plan::effect::{Effect, Event, PoolPatch};
use crate::pools::Pool;
use crate::state::index::ClusterIndex;
use crate::status::pool::{PoolHolders, pool_status, warnings};

impl ClusterIndex {
    /// The write of the status of a pool, and the events about new problems. Empty if the status is up to date.
    pub(super) fn pool_effects(&self, pool: &Pool, now: Timestamp) -> Vec<Effect> {
        let holders = || {
            let records = pool.ranges.iter().flat_map(|range| {
                let following = self.objects.records().iter_from(&range.first()).map(|(_, record)| &**record);
                following.take_while(|record| range.contains(record.address))
            });
            let ranges = pool.ranges.iter().map(|range| range.first()..=range.last());
            let unreadable = ranges.flat_map(|range| self.unreadable.records.range(range));
            PoolHolders::new(records, unreadable.count())
        };
        let is_of_pool = |lb_ip: &&IpAddr| self.pools.pool_of(**lb_ip).is_some_and(|own| own.index == pool.index);
        let conflicting = |lb_ip: &IpAddr| {
            let mac = &self.objects.records().get(lb_ip)?.quarantine.as_ref()?.mac;
            Some(format!("{lb_ip} by {mac}"))
        };
        let conflicts = self.quarantined.keys().filter(is_of_pool).filter_map(conflicting).collect();
        let status = pool_status(pool, &self.free.counts(pool), holders, &conflicts, now);
        let old = pool.object.status.as_ref();
        if old == Some(&status) {
            return Vec::new();
        }
        let before = old.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let events = warnings(before, &status.conditions).map(|(reason, condition)| {
            let (regarding, message) = (pool.object.object_ref(&()), condition.message.to_string());
            Effect::Event(Event { regarding, is_warning: true, reason, message })
        });
        let events: Vec<_> = events.collect();
        let patch = PoolPatch {
            name: pool.name().to_owned(),
            resource_version: pool.object.metadata.resource_version.clone().unwrap_or_default(),
            status,
        };
        std::iter::once(Effect::PatchPool(patch)).chain(events).collect()
    }
}
