//! The cluster: the views of all observed objects in one value, with the indexes that must agree with them.
//!
//! Batches of [`Change`]s in, views out. [`Affected`] lists the addresses and Services that a batch affects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crds::{Advertisement, EndpointSlice, Holder, Key, Node, PeerLinks, PoolSettings, Record, Service, TrafficPolicy};

use crate::SharedMap;

/// Objects of one kind that has no namespace, by name.
pub type Named<T> = BTreeMap<String, Arc<T>>;

/// The EndpointSlices of one Service, in order of their keys.
pub type Slices = Arc<[Arc<EndpointSlice>]>;

/// The known objects. A kind that the program does not watch stays empty.
///
/// The kinds with tens of thousands of objects are [`SharedMap`]s: they take less memory than B-trees, and snapshots
/// share them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub(crate) services: SharedMap<Key, Arc<Service>>,
    /// Slices of the Services in `services`.
    pub(crate) slices: SharedMap<Key, Slices>,
    /// Slices whose Service is not in `services`. They wait for it.
    waiting_slices: BTreeMap<Key, Vec<Arc<EndpointSlice>>>,
    pub(crate) records: SharedMap<IpAddr, Arc<Record>>,
    /// The holders of all records, by Service.
    holdings: Holdings,
    pub(crate) nodes: Named<Node>,
    pub(crate) pools: Named<PoolSettings>,
    pub(crate) advertisements: Named<Advertisement>,
    peer_links: Named<PeerLinks>,
}

/// The new state of one object; `None` if it was deleted.
#[derive(Clone, Debug)]
pub enum Change {
    Service(Key, Option<Arc<Service>>),
    Slice {
        /// The state before this change: a slice may move from one Service to another.
        before: Option<Arc<EndpointSlice>>,
        after: Option<Arc<EndpointSlice>>,
    },
    Record(IpAddr, Option<Arc<Record>>),
    Node(String, Option<Arc<Node>>),
    Pool(String, Option<Arc<PoolSettings>>),
    Advertisement(String, Option<Arc<Advertisement>>),
    PeerLinks(String, Option<Arc<PeerLinks>>),
}

/// The parts of the cluster that a batch of changes affects.
#[derive(Debug, Default)]
pub struct Affected {
    /// Addresses with a changed record, a changed holder, or changed endpoints on which their candidates depend.
    pub lb_ips: BTreeSet<IpAddr>,
    /// Services that changed, and those that a changed record names now or named before.
    pub services: BTreeSet<Key>,
    /// Whether a Node changed.
    pub nodes: bool,
    /// Whether a pool changed.
    pub pools: bool,
    /// Whether an advertisement changed.
    pub advertisements: bool,
    /// Whether the links of a node changed.
    pub peer_links: bool,
}

impl Cluster {
    pub fn services(&self) -> &SharedMap<Key, Arc<Service>> {
        &self.services
    }

    /// The slices of each known Service that has any.
    pub fn slices(&self) -> &SharedMap<Key, Slices> {
        &self.slices
    }

    pub fn records(&self) -> &SharedMap<IpAddr, Arc<Record>> {
        &self.records
    }

    pub fn nodes(&self) -> &Named<Node> {
        &self.nodes
    }

    pub fn pools(&self) -> &Named<PoolSettings> {
        &self.pools
    }

    pub fn peer_links(&self) -> &Named<PeerLinks> {
        &self.peer_links
    }

    /// The addresses whose records name a Service of this key, whatever its UID, in order.
    pub fn addresses_of(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        self.holdings.addresses_of(service)
    }

    /// All Services in order of their keys, each with the address that it holds if that is exactly one. One pass over
    /// Services and holdings takes less time than a search for each Service.
    pub fn services_with_sole_address(&self) -> impl Iterator<Item = (&Arc<Service>, Option<IpAddr>)> {
        let mut holdings = self.holdings.0.iter().peekable();
        self.services.iter().map(move |(key, service)| {
            let (mut last, mut count) = (None, 0);
            while let Some((holder, lb_ip)) = holdings.peek()
                && let order = holder.cmp(key)
                && order.is_le()
            {
                if order.is_eq() {
                    (last, count) = (Some(*lb_ip), count + 1);
                }
                holdings.next();
            }
            (service, last.filter(|_| count == 1))
        })
    }

    /// Applies changes. Changes to different objects may be in any order.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Affected {
        let mut affected = Affected::default();
        for change in changes {
            match change {
                Change::Service(key, after) => self.set_service(key, after, &mut affected),
                Change::Slice { before, after } => self.set_slice(before.as_ref(), after.as_ref(), &mut affected),
                Change::Record(lb_ip, after) => self.set_record(lb_ip, after, &mut affected),
                Change::Node(name, after) => {
                    affected.nodes = true;
                    set(&mut self.nodes, name, after);
                }
                Change::Pool(name, after) => {
                    affected.pools = true;
                    set(&mut self.pools, name, after);
                }
                Change::Advertisement(name, after) => {
                    affected.advertisements = true;
                    set(&mut self.advertisements, name, after);
                }
                Change::PeerLinks(name, after) => {
                    affected.peer_links = true;
                    set(&mut self.peer_links, name, after);
                }
            }
        }
        affected
    }

    fn set_service(&mut self, key: Key, after: Option<Arc<Service>>, affected: &mut Affected) {
        affected.lb_ips.extend(self.holdings.addresses_of(&key));
        match after {
            Some(service) => {
                let is_new = self.services.insert(key.clone(), service).is_none();
                if is_new && let Some(slices) = self.waiting_slices.remove(&key) {
                    self.slices.insert(key.clone(), slices.into());
                }
            }
            None => {
                self.services.remove(&key);
                if let Some(slices) = self.slices.remove(&key) {
                    self.waiting_slices.insert(key.clone(), slices.to_vec());
                }
            }
        }
        affected.services.insert(key);
    }

    fn set_slice(
        &mut self,
        before: Option<&Arc<EndpointSlice>>,
        after: Option<&Arc<EndpointSlice>>,
        affected: &mut Affected,
    ) {
        if let Some(before) = before
            && after.is_none_or(|after| after.service != before.service)
        {
            self.edit_slices(&before.service, affected, |slices| {
                if let Ok(place) = place_of(slices, &before.key) {
                    slices.remove(place);
                }
            });
        }
        if let Some(after) = after {
            self.edit_slices(&after.service, affected, |slices| match place_of(slices, &after.key) {
                Ok(place) => slices[place] = Arc::clone(after),
                Err(place) => slices.insert(place, Arc::clone(after)),
            });
        }
    }

    /// Calls `edit` with all slices of a Service, sorted by key.
    fn edit_slices(&mut self, service: &Key, affected: &mut Affected, edit: impl FnOnce(&mut Vec<Arc<EndpointSlice>>)) {
        let Some(known) = self.services.get(service) else {
            let slices = self.waiting_slices.entry(service.clone()).or_default();
            edit(slices);
            if slices.is_empty() {
                self.waiting_slices.remove(service);
            }
            return;
        };
        if known.traffic_policy == TrafficPolicy::Local {
            affected.lb_ips.extend(self.holdings.addresses_of(service));
        }
        let mut slices = self.slices.get(service).map(|slices| slices.to_vec()).unwrap_or_default();
        edit(&mut slices);
        if slices.is_empty() {
            self.slices.remove(service);
        } else {
            self.slices.insert(service.clone(), slices.into());
        }
    }

    fn set_record(&mut self, lb_ip: IpAddr, after: Option<Arc<Record>>, affected: &mut Affected) {
        let before = match &after {
            Some(record) => self.records.insert(lb_ip, Arc::clone(record)),
            None => self.records.remove(&lb_ip),
        };
        let [old, new] = [&before, &after].map(|record| record.iter().flat_map(|record| &record.holders));
        affected.lb_ips.insert(lb_ip);
        affected.services.extend(old.clone().chain(new.clone()).map(Holder::service));
        self.holdings.replace(lb_ip, old, new);
    }
}

/// Pairs of a Service and an address that it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeSet<(Key, IpAddr)>);

impl Holdings {
    /// Replaces the holders of `address`. `before` must equal `after` of the previous call for this address.
    pub fn replace<'a>(
        &mut self,
        address: IpAddr,
        before: impl IntoIterator<Item = &'a Holder>,
        after: impl IntoIterator<Item = &'a Holder>,
    ) {
        for holder in before {
            self.0.remove(&(holder.service(), address));
        }
        self.0.extend(after.into_iter().map(|holder| (holder.service(), address)));
    }

    /// The addresses that `service` holds, in order.
    pub fn addresses_of(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        const LEAST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let from_here = self.0.range((service.clone(), LEAST)..);
        from_here.take_while(move |(key, _)| key == service).map(|(_, address)| *address)
    }
}

fn set<T>(all: &mut Named<T>, name: String, after: Option<Arc<T>>) {
    match after {
        Some(object) => drop(all.insert(name, object)),
        None => drop(all.remove(&name)),
    }
}

fn place_of(slices: &[Arc<EndpointSlice>], key: &Key) -> Result<usize, usize> {
    slices.binary_search_by(|slice| slice.key.cmp(key))
}

#[cfg(test)]
mod tests;
