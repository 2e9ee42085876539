//! Updates of single objects. Each updates the indexes and marks the keys that the change affects as dirty, as the
//! table in [`super`] specifies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::{
    IPAddressPool, InternedStr, Key, Namespace, Node, NodeAddresses, PoolSettings, Record, Service, ServiceRange,
};
use jiff::Timestamp;
use model::cluster::Change;

use super::{ClusterIndex, set_member};
use crate::allocate::sharing;
use crate::state::record::{holder_keys, quarantine_end, reserved_service};

/// In all functions, `None` means that the object does not exist. An unreadable object is passed in its last readable
/// version, and as `None` if it had no readable one.
impl ClusterIndex {
    pub fn set_pool(&mut self, name: &str, object: Option<Arc<IPAddressPool>>) {
        self.dirty.pools.insert(name.to_owned());
        let labels = |object: &Arc<IPAddressPool>| object.metadata.labels.clone();
        if self.pool_objects.get(name).map(labels) != object.as_ref().map(labels) {
            self.recheck_unannounced();
        }
        let is_same_spec = object.as_ref().is_some_and(|object| self.pools.replace_object(object));
        self.dirty.specs |= !is_same_spec;
        let settings = object.as_deref().map(|object| Arc::new(PoolSettings::from(object)));
        self.objects.apply([Change::Pool(name.to_owned(), settings)]);
        replace(&mut self.pool_objects, name, object);
    }

    pub fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let old = self.objects.nodes().get(name).cloned();
        self.objects.apply([Change::Node(name.to_owned(), node.clone())]);
        let (was, is) = (old.as_deref(), node.as_deref());
        let addresses =
            |node: Option<&Node>| node.map(|node| (node.addresses.clone(), node.external_addresses.clone()));
        self.dirty.occupied |= addresses(was) != addresses(is);
        let pods = |node: Option<&Node>| node.map(|node| node.pod_cidrs.clone());
        self.dirty.cluster_ranges |= pods(was) != pods(is);
        if old.is_some() != node.is_some() {
            // Reports of a deleted node are ignored, and count again when the node returns.
            let records = self.objects.records().values().filter(|record| has_report_of(record, name));
            self.dirty.rechecks.extend(records.flat_map(|record| holder_keys(record)));
        }
        if old != node {
            self.recheck_unannounced();
        }
    }

    pub fn set_network(&mut self, name: &str, network: Option<Arc<NodeAddresses>>) {
        let old = replace(&mut self.networks, name, network.clone());
        self.dirty.occupied |= old != network;
        // The first agent of the cluster has started: the conditions about announcing now apply to all Services.
        self.dirty.all |= old.is_none() && self.networks.len() == 1;
    }

    pub fn set_service_range(&mut self, name: &str, range: Option<Arc<ServiceRange>>) {
        let old = replace(&mut self.service_ranges, name, range.clone());
        self.dirty.cluster_ranges |= old != range;
    }

    pub fn set_namespace(&mut self, name: &str, namespace: Option<Arc<Namespace>>) {
        let old = replace(&mut self.namespaces, name, namespace.clone());
        self.awaited_namespaces.remove(name);
        if old.map(|old| old.labels.clone()) != namespace.map(|new| new.labels.clone()) {
            let following = self.objects.services().iter_from(&Key::new(name, "")).map(|(key, _)| key);
            self.dirty.services.extend(following.take_while(|key| key.namespace == name).cloned());
        }
    }

    pub fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>, is_unreadable: bool) {
        let old = self.objects.services().get(key).cloned();
        let affected = self.objects.apply([Change::Service(key.clone(), service.clone())]);
        let was_unreadable = set_member(&mut self.unreadable.services, key, is_unreadable);
        self.dirty.services.insert(key.clone());
        if old.as_ref().map(|old| &old.uid) != service.as_ref().map(|new| &new.uid) {
            self.living_uids.take();
        }
        for lb_ip in old.iter().flat_map(|old| requested_addresses(old)) {
            self.requested.remove(lb_ip, key);
        }
        for lb_ip in service.iter().flat_map(|new| requested_addresses(new)) {
            self.requested.insert(*lb_ip, key.clone());
        }
        let is_same = is_unreadable == was_unreadable
            && match (&old, &service) {
                (Some(old), Some(new)) => self.looks_same_to_others(old, new),
                (old, new) => old.is_none() && new.is_none(),
            };
        if is_same {
            return;
        }
        // Waiting Services may now be able to share an address with this one.
        let keys = [&old, &service].into_iter().flatten().filter_map(|service| sharing::key(service));
        self.dirty.sharing_keys.extend(keys.map(InternedStr::from));
        for lb_ip in affected.lb_ips {
            self.dirty.records.insert(lb_ip);
            self.dirty.services.extend(self.requested.get(&lb_ip).cloned());
            let Some(record) = self.objects.records().get(&lb_ip) else { continue };
            if record.holders.len() > 1 {
                self.dirty.services.extend(holder_keys(record));
            }
        }
    }

    pub fn set_record(&mut self, lb_ip: IpAddr, record: Option<Arc<Record>>, is_unreadable: bool, now: Timestamp) {
        let was_used = self.is_used(lb_ip);
        let old = self.objects.records().get(&lb_ip).cloned();
        self.objects.apply([Change::Record(lb_ip, record.clone())]);
        let was_unreadable = set_member(&mut self.unreadable.records, &lb_ip, is_unreadable);
        self.dirty.records.insert(lb_ip);
        let is_same = is_unreadable == was_unreadable
            && match (&old, &record) {
                (Some(old), Some(new)) => has_same_spec(old, new),
                (old, new) => old.is_none() && new.is_none(),
            };
        if is_same {
            if let Some(new) = record.filter(|new| old.is_none_or(|old| !has_same_status(&old, new))) {
                self.dirty.services.extend(holder_keys(&new));
            }
            return;
        }
        old.iter().for_each(|old| self.remove_from_indexes(old));
        record.iter().for_each(|new| self.add_to_indexes(new));
        // The promises were made for an older version of the record.
        for key in self.promises.get(&lb_ip).cloned().collect::<Vec<_>>() {
            self.break_promise(lb_ip, &key, now);
            self.dirty.services.insert(key);
        }
        match (was_used, self.is_used(lb_ip)) {
            (false, true) => self.take(lb_ip),
            (true, false) => {
                let last = old.as_ref().and_then(|old| holder_keys(old).next());
                self.free.release(lb_ip, last, now);
            }
            _ => {}
        }
        self.mark_pool(lb_ip);
        for record in old.iter().chain(&record) {
            self.dirty.services.extend(holder_keys(record));
            self.dirty.services.extend(reserved_service(record));
        }
        self.dirty.services.extend(self.requested.get(&lb_ip).cloned());
        if old.is_some() || was_unreadable || record.is_some_and(|new| new.sharing_key.is_some()) {
            self.wake_waiting(lb_ip);
        }
    }

    /// Whether both versions have the same effect on the allocations of other Services.
    fn looks_same_to_others(&self, old: &Service, new: &Service) -> bool {
        old.uid == new.uid
            && self.may_hold_addresses(old) == self.may_hold_addresses(new)
            && old.request == new.request
            && old.ports == new.ports
            && old.traffic_policy == new.traffic_policy
            && old.selector == new.selector
    }

    fn add_to_indexes(&mut self, record: &Record) {
        if let Some(key) = &record.sharing_key {
            self.by_sharing_key.insert(key.clone(), record.address);
        }
        if let Some(key) = reserved_service(record) {
            self.reserved.insert(key, record.address);
        }
        for holder in &record.holders {
            self.charge_quota(record.address, &holder.namespace);
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            self.quarantined.insert(record.address, quarantine_end(quarantine));
        }
    }

    fn remove_from_indexes(&mut self, record: &Record) {
        self.quarantined.remove(&record.address);
        if let Some(key) = &record.sharing_key {
            self.by_sharing_key.remove(key, &record.address);
        }
        if let Some(key) = reserved_service(record) {
            self.reserved.remove(&key, &record.address);
        }
        for holder in &record.holders {
            self.refund_quota(record.address, &holder.namespace);
        }
    }
}

/// Sets or removes the object of this name, and returns the old one.
fn replace<T>(objects: &mut BTreeMap<String, Arc<T>>, name: &str, new: Option<Arc<T>>) -> Option<Arc<T>> {
    match new {
        Some(new) => objects.insert(name.to_owned(), new),
        None => objects.remove(name),
    }
}

/// Whether the record has a report of this node: an announcement or a conflict.
fn has_report_of(record: &Record, node: &str) -> bool {
    record.announcers.iter().any(|announcer| announcer.node == node)
        || record.conflicts.iter().any(|conflict| conflict.node == node)
}

fn requested_addresses(service: &Service) -> &[IpAddr] {
    service.request.as_ref().map(|request| request.addresses.as_slice()).unwrap_or_default()
}

fn has_same_spec(old: &Record, new: &Record) -> bool {
    old.uid == new.uid
        && old.deleting == new.deleting
        && old.pool == new.pool
        && old.holders == new.holders
        && old.sharing_key == new.sharing_key
        && old.reservation == new.reservation
        && old.quarantine == new.quarantine
}

/// Whether both versions have the same announcers, time of the first announcement, and conflicts.
fn has_same_status(old: &Record, new: &Record) -> bool {
    old.announcers == new.announcers && old.first_announced == new.first_announced && old.conflicts == new.conflicts
}
