//! All pools: which pool an address belongs to, and which addresses are withheld.
//!
//! IPAddressPools and [`Occupied`] → [`Pools`]. If pools share addresses, these belong to the older pool (by creation
//! time, then name), and the other pool serves the rest. An unreadable range is reported, and the other ranges serve.
//! The cost does not depend on the number of addresses: a range is two of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::IPAddressPool;
use crds::service::Family;

use crate::pools::address_map::AddressMap;
use crate::pools::intervals::number;
use crate::pools::occupied::{Occupant, Occupied};
use crate::pools::pool::{Pool, creation_time, name};

/// All pools. No two have an address in common.
#[derive(Debug, Default)]
pub struct Pools {
    /// Oldest first.
    pools: Vec<Pool>,
    by_name: BTreeMap<String, usize>,
    /// The pools that assign addresses automatically, in the order in which they are tried.
    search_order: Vec<usize>,
    map: Arc<AddressMap>,
}

/// Why an address is not assigned automatically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld<'a> {
    /// Its pool excludes it. It is never assigned.
    Excluded,
    /// Its pool avoids addresses that end in .0 or .255. It is never assigned.
    Buggy,
    /// A node or a gateway has it. It is never assigned.
    Occupied(&'a Occupant),
    /// It is an end of a CIDR: in IPv4 the network address or the broadcast address of a network of that size, in IPv6
    /// the subnet-router anycast address (RFC 4291 §2.6.1). It is assigned on request.
    NetworkEnd,
}

impl Pools {
    pub fn new<'a>(pools: impl IntoIterator<Item = &'a Arc<IPAddressPool>>, occupied: &Occupied) -> Self {
        let mut oldest_first: Vec<_> = pools.into_iter().collect();
        oldest_first.sort_by_cached_key(|pool| (creation_time(pool), name(pool).to_owned()));
        let mut map = AddressMap::new(occupied.clone());
        let mut pools = Vec::<Pool>::with_capacity(oldest_first.len());
        for object in oldest_first {
            let pool = Pool::new(object.clone(), &mut map, &pools);
            pools.push(pool);
        }
        let by_name = pools.iter().map(|pool| (pool.name().to_owned(), pool.index)).collect();
        let is_automatic = |pool: &&Pool| pool.object.spec.auto_assign && !pool.object.spec.drain;
        let mut search_order: Vec<_> = pools.iter().filter(is_automatic).map(|pool| pool.index).collect();
        // Stable: with equal keys the older pool stays first.
        search_order.sort_by_key(|index| {
            let selector = pools[*index].selector.as_ref();
            (selector.is_none(), selector.map(|selector| selector.priority))
        });
        Self { pools, by_name, search_order, map: Arc::new(map) }
    }

    /// Replaces the object of a pool if only its status differs. Otherwise returns `false`, and the pools must be built
    /// again.
    pub fn replace_object(&mut self, object: &Arc<IPAddressPool>) -> bool {
        let Some(pool) = self.by_name.get(name(object)).map(|index| &mut self.pools[*index]) else { return false };
        let is_same = pool.object.spec == object.spec
            && creation_time(&pool.object) == creation_time(object)
            && pool.object.metadata.uid == object.metadata.uid;
        if is_same {
            pool.object = object.clone();
        }
        is_same
    }

    /// The pool that `address` belongs to.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.map.pool_of(address).map(|index| &self.pools[index])
    }

    pub fn get(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|index| &self.pools[*index])
    }

    /// Why `address` is not assigned automatically. If there are several reasons, a node or gateway that has the
    /// address comes first.
    pub fn withheld(&self, address: IpAddr) -> Option<Withheld<'_>> {
        if let Some(occupant) = self.map.occupied.get(address) {
            return Some(Withheld::Occupied(occupant));
        }
        let pool = self.pool_of(address)?;
        if pool.excluded[Family::from(address)].contains(number(address)) {
            return Some(Withheld::Excluded);
        }
        if self.map.spaces[pool.index].numbering.number(address).is_none() {
            return Some(Withheld::Buggy);
        }
        pool.network_ends.contains(&address).then_some(Withheld::NetworkEnd)
    }

    /// The pools that assign addresses automatically, in the order in which they are tried.
    pub fn automatic(&self) -> impl Iterator<Item = &Pool> {
        self.search_order.iter().map(|index| &self.pools[*index])
    }

    /// All pools, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    pub(crate) fn map(&self) -> &Arc<AddressMap> {
        &self.map
    }
}

#[cfg(test)]
mod tests;
