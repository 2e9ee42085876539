//! Which address is assigned next: the first free address of a pool.
//!
//! [`Pools`] and the addresses in use → [`Free`], which is updated when an address is taken or released. Free addresses
//! are kept as intervals, so a step costs the logarithm of the number of gaps, however large the pools are.
//!
//! A released address cools down for the `reuseAfter` of its pool. Until then it is assigned only to the Service that
//! had it, or to one that requests it by name. If no other address is left, any Service gets the address with the
//! oldest cool-down.
//!
//! Each address of a pool is either free, used, in cool-down, or withheld ([`Pools::withheld`]) and unused.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;
use crds::ip_address_pool::REUSE_AFTER;
use crds::service::Family;
use jiff::Timestamp;

use crate::pools::address_map::{AddressMap, PoolSpace};
use crate::pools::cooldown::{Cooldown, Cooldowns};
use crate::pools::intervals::{ByFamily, FAMILIES, Intervals};
use crate::pools::{Pool, Pools};

/// The free addresses of all pools.
#[derive(Clone, Debug, Default)]
pub struct Free {
    map: Arc<AddressMap>,
    /// By pool, in the order of the pools.
    spaces: Vec<ByFamily<FreeSpace>>,
    /// All cool-downs, including those of addresses that no pool contains now.
    cooldowns: Cooldowns,
    /// Used addresses that are not assigned automatically. An automatic address is used if it is neither free nor in
    /// cool-down.
    used_outside: BTreeSet<IpAddr>,
}

/// The free addresses of one family in one pool.
#[derive(Clone, Debug, Default)]
struct FreeSpace {
    /// The numbers of the free addresses.
    free: Intervals,
    /// Addresses in cool-down, the oldest release first.
    cooling: BTreeSet<(Timestamp, IpAddr)>,
    /// How many addresses of [`Free::used_outside`] belong to the pool.
    used_outside: u128,
}

/// How many addresses of one family a pool has. The number of all IPv6 addresses, which does not fit, is `u128::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressCounts {
    /// All addresses: the sum of the next four.
    pub size: u128,
    pub used: u128,
    pub cooling: u128,
    /// Addresses that are assigned automatically, and neither used nor in cool-down.
    pub free: u128,
    /// Unused addresses that are not assigned automatically.
    pub withheld: u128,
    /// Addresses that are assigned automatically, used or not.
    pub automatic: u128,
}

impl AddressCounts {
    /// How many addresses are available without requesting one by name.
    pub fn available(&self) -> u128 {
        self.free.saturating_add(self.cooling)
    }
}

impl Free {
    /// The free addresses of these pools while `used` are in use. No address is in cool-down.
    pub fn new(pools: &Pools, used: impl IntoIterator<Item = IpAddr>) -> Self {
        let map = pools.map().clone();
        let spaces = map.spaces.iter().map(unused_space).collect();
        let mut free = Self { map, spaces, ..Self::default() };
        used.into_iter().for_each(|address| free.take(address));
        free
    }

    /// Replaces the pools. Cool-downs continue, with the length that the new pool specifies.
    pub fn rebuild(&mut self, pools: &Pools, used: impl IntoIterator<Item = IpAddr>, now: Timestamp) {
        self.expire_cooldowns(now);
        let old = std::mem::replace(self, Self::new(pools, used));
        for (address, cooldown) in old.cooldowns.into_iter() {
            if !self.is_used(address) {
                self.start_cooldown(address, cooldown.service, cooldown.since);
            }
        }
        self.expire_cooldowns(now);
    }

    /// Marks an address as used. Does nothing if it is used already.
    pub fn take(&mut self, address: IpAddr) {
        self.end_cooldown(address);
        let found = self.map.locate(address);
        if let Some((pool, Some(number))) = found {
            self.spaces[pool][Family::from(address)].free.remove(number, number);
        } else if self.used_outside.insert(address)
            && let Some((pool, None)) = found
        {
            self.spaces[pool][Family::from(address)].used_outside += 1;
        }
    }

    /// Marks an address as unused. It cools down if `last`, the last Service that had it, is known. Does nothing if the
    /// address is unused already.
    pub fn release(&mut self, address: IpAddr, last: Option<Key>, now: Timestamp) {
        self.expire_cooldowns(now);
        if !self.is_used(address) {
            return;
        }
        match self.map.locate(address) {
            Some((pool, Some(number))) => self.spaces[pool][Family::from(address)].free.insert(number, number),
            found => {
                self.used_outside.remove(&address);
                if let Some((pool, _)) = found {
                    self.spaces[pool][Family::from(address)].used_outside -= 1;
                }
            }
        }
        if let Some(last) = last {
            self.start_cooldown(address, Arc::new(last), now);
            self.expire_cooldowns(now);
        }
    }

    /// The next address of `pool` for a Service that requests none by name:
    ///
    /// 1. the address in cool-down that the Service released last;
    /// 2. without such an address, the first free one;
    /// 3. without a free one, the address with the oldest cool-down.
    ///
    /// The address is not marked as used. `pool` must be one of the pools that this was built from.
    pub fn next_address(&mut self, pool: &Pool, family: Family, service: &Key, now: Timestamp) -> Option<IpAddr> {
        self.expire_cooldowns(now);
        let space = &self.spaces[pool.index][family];
        let numbering = self.map.spaces[pool.index].numbering;
        let is_of_space = |address: &IpAddr| {
            let found = self.map.locate(*address);
            Family::from(*address) == family && found.is_some_and(|(own, number)| own == pool.index && number.is_some())
        };
        let former =
            if space.cooling.is_empty() { None } else { self.cooldowns.last_held_by(service).find(is_of_space) };
        former
            .or_else(|| space.free.first().map(|number| numbering.address(family, number)))
            .or_else(|| space.cooling.first().map(|(_, address)| *address))
    }

    /// The addresses in cool-down that this Service had, in all pools. The address that it released last comes first.
    pub fn last_held_by(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        self.cooldowns.last_held_by(service)
    }

    /// The last Service that had this address, while the address cools down.
    pub(crate) fn cooling_after(&mut self, address: IpAddr, now: Timestamp) -> Option<&Key> {
        self.expire_cooldowns(now);
        self.cooldowns.service_of(address)
    }

    /// Whether this is an unused address of a pool. It may be in cool-down or withheld.
    #[cfg(test)]
    pub(crate) fn is_free(&self, address: IpAddr) -> bool {
        self.map.locate(address).is_some() && !self.is_used(address)
    }

    fn is_used(&self, address: IpAddr) -> bool {
        match self.map.locate(address) {
            Some((pool, Some(number))) => {
                let free = &self.spaces[pool][Family::from(address)].free;
                !free.contains(number) && !self.cooldowns.contains(address)
            }
            _ => self.used_outside.contains(&address),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_cooling(&self, address: IpAddr) -> bool {
        self.cooldowns.contains(address)
    }

    /// How many addresses a pool has. `pool` must be one of the pools that this was built from.
    pub fn counts(&self, pool: &Pool) -> ByFamily<AddressCounts> {
        let mut counts = ByFamily::default();
        for family in FAMILIES {
            let (space, all) = (&self.spaces[pool.index][family], &self.map.spaces[pool.index]);
            let cooling = space.cooling.len() as u128;
            counts[family] = AddressCounts {
                size: all.size(family),
                used: all.automatic[family].len_without(&space.free) - cooling + space.used_outside,
                cooling,
                free: space.free.len(),
                withheld: all.not_automatic(family) - space.used_outside,
                automatic: all.automatic[family].len(),
            };
        }
        counts
    }

    /// Starts the cool-down of an unused address.
    fn start_cooldown(&mut self, address: IpAddr, service: Arc<Key>, since: Timestamp) {
        let found = self.map.locate(address);
        let duration = found.map_or(REUSE_AFTER, |(pool, _)| self.map.spaces[pool].reuse_after);
        if let Some((pool, Some(number))) = found {
            let space = &mut self.spaces[pool][Family::from(address)];
            space.free.remove(number, number);
            space.cooling.insert((since, address));
        }
        let until = since.checked_add(duration).unwrap_or(Timestamp::MAX);
        self.cooldowns.insert(address, Cooldown { service, since, until });
    }

    fn expire_cooldowns(&mut self, now: Timestamp) {
        while let Some(address) = self.cooldowns.first_expired(now) {
            self.end_cooldown(address);
        }
    }

    /// Ends the cool-down of an address that cools down. Does nothing for other addresses.
    fn end_cooldown(&mut self, address: IpAddr) {
        if let Some(cooldown) = self.cooldowns.remove(address)
            && let Some((pool, Some(number))) = self.map.locate(address)
        {
            let space = &mut self.spaces[pool][Family::from(address)];
            space.cooling.remove(&(cooldown.since, address));
            space.free.insert(number, number);
        }
    }
}

/// The free addresses of a pool without used addresses.
fn unused_space(space: &PoolSpace) -> ByFamily<FreeSpace> {
    ByFamily {
        v4: FreeSpace { free: space.automatic.v4.clone(), ..FreeSpace::default() },
        v6: FreeSpace { free: space.automatic.v6.clone(), ..FreeSpace::default() },
    }
}

#[cfg(test)]
mod tests;
