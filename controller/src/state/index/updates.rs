//! What the ledger learns, object by object: the same in its indexes, and who is dirty after it, as the table in
//! [`super`] has it.

use std::net::IpAddr;
use std::sync::Arc;

use crds::{IPAddressPool, Key, Namespace, Network, Node, Record, Service};
use jiff::Timestamp;

use super::{Ledger, remove};
use crate::allocate::sharing;
use crate::state::record::{holder_keys, quarantine_end, reserved_service};

impl Ledger {
    /// A pool is like this now, or is gone.
    pub fn set_pool(&mut self, name: &str, object: Option<Arc<IPAddressPool>>) {
        self.dirty.pools.insert(name.to_owned());
        let labels = |object: &Arc<IPAddressPool>| object.metadata.labels.clone();
        if self.objects.get(name).map(labels) != object.as_ref().map(labels) {
            self.judge_again();
        }
        let is_same_land = object.as_ref().is_some_and(|object| self.pools.renew(object));
        self.dirty.layout |= !is_same_land;
        match object {
            Some(object) => drop(self.objects.insert(name.to_owned(), object)),
            None => drop(self.objects.remove(name)),
        }
    }

    /// A node is like this now, or is gone.
    pub fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let old = match node {
            Some(ref node) => self.nodes.insert(name.to_owned(), node.clone()),
            None => self.nodes.remove(name),
        };
        let addresses = |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.addresses.clone()).unwrap_or_default();
        self.dirty.occupied |= addresses(&old) != addresses(&node);
        if old.is_some() != node.is_some() {
            // The word of a node that is gone is none, and that of one that has come back is one again.
            let says = |record: &&Arc<Record>| {
                record.announcers.iter().any(|announcer| announcer.node == name)
                    || record.conflicts.iter().any(|conflict| conflict.node == name)
            };
            self.dirty.services.extend(self.addresses.values().filter(says).flat_map(|record| holder_keys(record)));
        }
        if old != node {
            self.judge_again();
        }
    }

    /// A node's network is like this now, or is gone.
    pub fn set_network(&mut self, name: &str, network: Option<Arc<Network>>) {
        let old = match network {
            Some(ref network) => self.networks.insert(name.to_owned(), network.clone()),
            None => self.networks.remove(name),
        };
        self.dirty.occupied |= old != network;
        // The first agent of all.
        self.dirty.all |= old.is_none() && self.networks.len() == 1;
    }

    /// A namespace is like this now, or is gone.
    pub fn set_namespace(&mut self, name: &str, namespace: Option<Arc<Namespace>>) {
        let old = match namespace {
            Some(ref namespace) => self.namespaces.insert(name.to_owned(), namespace.clone()),
            None => self.namespaces.remove(name),
        };
        if old.map(|old| old.labels.clone()) != namespace.map(|new| new.labels.clone()) {
            let of_namespace = self.services.range(Key::new(name, "")..).map(|(key, _)| key);
            self.dirty.services.extend(of_namespace.take_while(|key| key.namespace == name).cloned());
        }
    }

    /// A Service is like this now, or is gone. If it is unreadable, `service` is what was known of it before.
    pub fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>, is_unreadable: bool) {
        let old = match service {
            Some(ref service) => self.services.insert(key.clone(), service.clone()),
            None => self.services.remove(key),
        };
        let was_unreadable = if is_unreadable {
            !self.unreadable.services.insert(key.clone())
        } else {
            self.unreadable.services.remove(key)
        };
        self.dirty.services.insert(key.clone());
        for (service, is_now) in [(&old, false), (&service, true)] {
            for address in service.iter().flat_map(|service| asks_for(service)) {
                if is_now {
                    self.asked.entry(*address).or_default().insert(key.clone());
                } else if let Some(keys) = self.asked.get_mut(address) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.asked.remove(address);
                    }
                }
            }
        }
        let is_same = is_unreadable == was_unreadable
            && match (&old, &service) {
                (Some(old), Some(new)) => is_same_to_others(old, new, self.default_class),
                (old, new) => old.is_none() && new.is_none(),
            };
        if is_same {
            return;
        }
        let shares = [&old, &service].into_iter().flatten().any(|service| sharing::key(service).is_some());
        for address in self.held.get(key).cloned().unwrap_or_default() {
            self.dirty.addresses.insert(address);
            self.dirty.services.extend(self.asked.get(&address).into_iter().flatten().cloned());
            let Some(record) = self.addresses.get(&address) else { continue };
            if record.holders.len() > 1 {
                self.dirty.services.extend(holder_keys(record));
            }
        }
        // Who waits for somebody it would share with.
        self.dirty.waiting |= shares;
    }

    /// An address's record is like this now, or is gone. If it is unreadable, `record` is what was known of it before.
    pub fn set_address(&mut self, address: IpAddr, record: Option<Arc<Record>>, is_unreadable: bool, now: Timestamp) {
        let was_used = self.is_used(address);
        let old = match record {
            Some(ref record) => self.addresses.insert(address, record.clone()),
            None => self.addresses.remove(&address),
        };
        let was_unreadable = if is_unreadable {
            !self.unreadable.addresses.insert(address)
        } else {
            self.unreadable.addresses.remove(&address)
        };
        self.dirty.addresses.insert(address);
        let is_same = is_unreadable == was_unreadable
            && match (&old, &record) {
                (Some(old), Some(new)) => is_same_but_for_status(old, new),
                (old, new) => old.is_none() && new.is_none(),
            };
        if is_same {
            if let Some(new) = record.filter(|new| old.is_none_or(|old| !is_said_the_same(&old, new))) {
                self.dirty.services.extend(holder_keys(&new));
            }
            return;
        }
        old.iter().for_each(|old| self.unindex(old));
        record.iter().for_each(|new| self.index(new));
        // It was promised without knowing this.
        for key in self.promises.get(&address).cloned().unwrap_or_default() {
            self.break_promise(address, &key, now);
            self.dirty.services.insert(key);
        }
        match (was_used, self.is_used(address)) {
            (false, true) => self.take(address),
            (true, false) => {
                let last = old.as_ref().and_then(|old| holder_keys(old).next());
                self.free.release(address, last, now);
            }
            _ => {}
        }
        self.dirty.pools.extend(self.pools.pool_of(address).map(|pool| pool.name().to_owned()));
        for record in old.iter().chain(&record) {
            self.dirty.services.extend(holder_keys(record));
            self.dirty.services.extend(reserved_service(record));
        }
        self.dirty.services.extend(self.asked.get(&address).into_iter().flatten().cloned());
        self.dirty.waiting |= old.is_some() || was_unreadable || record.is_some_and(|new| new.sharing_key.is_some());
    }

    fn index(&mut self, record: &Record) {
        for key in holder_keys(record) {
            // Nearly all have one, and there are tens of thousands.
            let held = self.held.entry(key).or_insert_with(|| Vec::with_capacity(1));
            if let Err(place) = held.binary_search(&record.address) {
                held.insert(place, record.address);
            }
        }
        if let Some(key) = &record.sharing_key {
            self.keyed.entry(key.clone()).or_default().insert(record.address);
        }
        if let Some(key) = reserved_service(record) {
            self.kept_for.entry(key).or_default().insert(record.address);
        }
        for holder in &record.holders {
            self.count(record.address, &holder.namespace, true);
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            self.quarantined.insert(record.address, quarantine_end(quarantine));
        }
    }

    fn unindex(&mut self, record: &Record) {
        self.quarantined.remove(&record.address);
        for key in holder_keys(record) {
            if let Some(held) = self.held.get_mut(&key) {
                held.retain(|address| *address != record.address);
                if held.is_empty() {
                    self.held.remove(&key);
                }
            }
        }
        if let Some(key) = &record.sharing_key {
            remove(&mut self.keyed, key, &record.address);
        }
        if let Some(key) = reserved_service(record) {
            remove(&mut self.kept_for, &key, &record.address);
        }
        for holder in &record.holders {
            self.count(record.address, &holder.namespace, false);
        }
    }
}

fn asks_for(service: &Service) -> &[IpAddr] {
    service.request.as_ref().map(|request| request.addresses.as_slice()).unwrap_or_default()
}

/// Whether what other Services may have is the same.
fn is_same_to_others(old: &Service, new: &Service, default_class: bool) -> bool {
    let standing = |service: &Service| !service.deleting && service.is_ours(default_class);
    old.uid == new.uid
        && standing(old) == standing(new)
        && old.request == new.request
        && old.ports == new.ports
        && old.traffic_policy == new.traffic_policy
        && old.selector == new.selector
}

fn is_same_but_for_status(old: &Record, new: &Record) -> bool {
    old.uid == new.uid
        && old.deleting == new.deleting
        && old.pool == new.pool
        && old.holders == new.holders
        && old.sharing_key == new.sharing_key
        && old.reservation == new.reservation
        && old.quarantine == new.quarantine
}

/// Whether it is said of both that the same nodes announce them, and the same strangers use them.
fn is_said_the_same(old: &Record, new: &Record) -> bool {
    old.announcers == new.announcers && old.first_announced == new.first_announced && old.conflicts == new.conflicts
}
