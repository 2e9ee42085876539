//! Which address is next: the first of a pool that is free.
//!
//! [`Pools`] and the addresses in use → [`Free`], which follows what is taken and released. What is free is kept as the
//! gaps between what is in use, so a step costs the logarithm of their number, however large the pools are.
//!
//! An address that is released rests for as long as its pool's `reuseAfter` says. It is given to the Service that had
//! it, to who asks for it by name, or when there is no other: then the one that has rested longest.
//!
//! All that a pool has is either free, used, resting, or withheld ([`Pools::withheld`]) and not used.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::Key;
use crds::ip_address_pool::REUSE_AFTER;
use crds::service::Family;
use jiff::Timestamp;

use crate::pools::cooldown::{Rest, Resting};
use crate::pools::intervals::{ByFamily, FAMILIES, Intervals};
use crate::pools::{Land, Pool, Pools};

/// The addresses that are free.
#[derive(Clone, Debug)]
pub struct Free {
    land: Arc<Land>,
    /// By pool, in the order of the pools.
    stocks: Vec<ByFamily<Stock>>,
    /// What rests; also what is in no pool at the moment.
    resting: Resting,
    /// Addresses in use that no pool would give to who takes any. Of the others those are in use that are not free.
    odd: BTreeSet<IpAddr>,
}

/// What a pool has of one family.
#[derive(Clone, Debug, Default)]
struct Stock {
    /// The places of free addresses.
    gaps: Intervals,
    /// Those that rest, oldest first.
    resting: BTreeSet<(Timestamp, IpAddr)>,
    /// How many of [`Free::odd`] belong to it.
    odd: u128,
}

/// How many addresses of one family a pool has. A number that doesn't fit, that of all of IPv6, is `u128::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them: the sum of the following four.
    pub size: u128,
    /// Those that somebody has.
    pub used: u128,
    /// Those that rest.
    pub resting: u128,
    /// Those that anybody can have.
    pub free: u128,
    /// Those that nobody has and that are not given to who takes any.
    pub withheld: u128,
    /// Those that are given to who takes any, whether or not somebody has them.
    pub open: u128,
}

impl Counts {
    /// How many can be had without asking for one by name.
    pub fn available(&self) -> u128 {
        self.free.saturating_add(self.resting)
    }
}

impl Free {
    /// What is free of these pools when this is in use. Nothing rests.
    pub fn new(pools: &Pools, used: impl IntoIterator<Item = IpAddr>) -> Self {
        let open = |lot: &crate::pools::Lot| ByFamily {
            v4: Stock { gaps: lot.open.v4.clone(), ..Stock::default() },
            v6: Stock { gaps: lot.open.v6.clone(), ..Stock::default() },
        };
        let land = pools.land().clone();
        let stocks = land.lots.iter().map(open).collect();
        let mut free = Self { land, stocks, resting: Resting::default(), odd: BTreeSet::new() };
        used.into_iter().for_each(|address| free.take(address));
        free
    }

    /// The same for other pools: what rests, rests on, for as long as its pool says now.
    pub fn renew(&mut self, pools: &Pools, used: impl IntoIterator<Item = IpAddr>, now: Timestamp) {
        self.rouse(now);
        let old = std::mem::replace(self, Self::new(pools, used));
        for (address, rest) in old.resting.into_iter() {
            if !self.is_used(address) {
                self.lay_down(address, rest.last, rest.since);
            }
        }
        self.rouse(now);
    }

    /// Somebody has this address. That it is taken already changes nothing.
    pub fn take(&mut self, address: IpAddr) {
        self.wake_up(address);
        let found = self.land.find(address);
        if let Some((pool, Some(place))) = found {
            self.stocks[pool][Family::from(address)].gaps.remove(place, place);
        } else if self.odd.insert(address)
            && let Some((pool, None)) = found
        {
            self.stocks[pool][Family::from(address)].odd += 1;
        }
    }

    /// Nobody has this address any more; if a Service had it, this one was the last, and the address rests. That it is
    /// not in use changes nothing.
    pub fn release(&mut self, address: IpAddr, last: Option<Key>, now: Timestamp) {
        self.rouse(now);
        if !self.is_used(address) {
            return;
        }
        match self.land.find(address) {
            Some((pool, Some(place))) => self.stocks[pool][Family::from(address)].gaps.insert(place, place),
            found => {
                self.odd.remove(&address);
                if let Some((pool, _)) = found {
                    self.stocks[pool][Family::from(address)].odd -= 1;
                }
            }
        }
        if let Some(last) = last {
            self.lay_down(address, Arc::new(last), now);
            self.rouse(now);
        }
    }

    /// The address of that family that this pool gives to `service`, if it asks for none by name: one that rests and that
    /// it had itself (the last of them), else the first that is free, else the one that has rested longest. It stays
    /// free. `pool` must be one of those that this was made of.
    pub fn next(&mut self, pool: &Pool, family: Family, service: &Key, now: Timestamp) -> Option<IpAddr> {
        self.rouse(now);
        let stock = &self.stocks[pool.index][family];
        let numbering = self.land.lots[pool.index].numbering;
        let of_stock =
            |address: &IpAddr| Family::from(*address) == family && self.pool_of_open(*address) == Some(pool.index);
        let had = if stock.resting.is_empty() { None } else { self.resting.had_by(service).find(of_stock) };
        had.or_else(|| stock.gaps.first().map(|place| numbering.address(family, place)))
            .or_else(|| stock.resting.first().map(|(_, address)| *address))
    }

    /// The resting addresses that this Service had, of all pools, the one that it gave up last first.
    pub fn had_by(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        self.resting.had_by(service)
    }

    /// Whether this is the address of a pool and nobody has it. It may rest; and it may be withheld.
    pub fn is_free(&self, address: IpAddr) -> bool {
        self.land.find(address).is_some() && !self.is_used(address)
    }

    /// Whether somebody has this address.
    fn is_used(&self, address: IpAddr) -> bool {
        match self.land.find(address) {
            Some((pool, Some(place))) => {
                let gaps = &self.stocks[pool][Family::from(address)].gaps;
                !gaps.contains(place) && !self.resting.contains(address)
            }
            _ => self.odd.contains(&address),
        }
    }

    /// Whether this address rests.
    pub fn is_resting(&self, address: IpAddr) -> bool {
        self.resting.contains(address)
    }

    /// How many addresses a pool has. `pool` must be one of those that this was made of.
    pub fn counts(&self, pool: &Pool) -> ByFamily<Counts> {
        let mut counts = ByFamily::default();
        for family in FAMILIES {
            let (stock, lot) = (&self.stocks[pool.index][family], &self.land.lots[pool.index]);
            let resting = stock.resting.len() as u128;
            counts[family] = Counts {
                size: lot.size(family),
                used: lot.open[family].len_without(&stock.gaps) - resting + stock.odd,
                resting,
                free: stock.gaps.len(),
                withheld: lot.closed(family) - stock.odd,
                open: lot.open[family].len(),
            };
        }
        counts
    }

    /// The pool that gives this address to who takes any.
    fn pool_of_open(&self, address: IpAddr) -> Option<usize> {
        let (pool, place) = self.land.find(address)?;
        place.map(|_| pool)
    }

    /// Lets an address rest that nobody has.
    fn lay_down(&mut self, address: IpAddr, last: Arc<Key>, since: Timestamp) {
        let found = self.land.find(address);
        let rests = found.map_or(REUSE_AFTER, |(pool, _)| self.land.lots[pool].reuse_after);
        if let Some((pool, Some(place))) = found {
            let stock = &mut self.stocks[pool][Family::from(address)];
            stock.gaps.remove(place, place);
            stock.resting.insert((since, address));
        }
        let until = since.checked_add(rests).unwrap_or(Timestamp::MAX);
        self.resting.insert(address, Rest { last, since, until });
    }

    /// Ends the rest of what has rested.
    fn rouse(&mut self, now: Timestamp) {
        while let Some((address, rest)) = self.resting.remove_rested(now) {
            self.stand_up(address, &rest);
        }
    }

    /// Ends the rest of this address.
    fn wake_up(&mut self, address: IpAddr) {
        if let Some(rest) = self.resting.remove(address) {
            self.stand_up(address, &rest);
        }
    }

    fn stand_up(&mut self, address: IpAddr, rest: &Rest) {
        if let Some((pool, Some(place))) = self.land.find(address) {
            let stock = &mut self.stocks[pool][Family::from(address)];
            stock.resting.remove(&(rest.since, address));
            stock.gaps.insert(place, place);
        }
    }
}

#[cfg(test)]
mod tests;
