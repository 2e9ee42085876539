//! Who gets which address.
//!
//! A Service and the ledger → what it keeps, gets and gives up, or why it doesn't get what it asks for. Nothing about how
//! that is written down: that is [`crate::plan`]'s.
//!
//! What a Service holds it keeps, for as long as it is the same Service (by UID), ours, doesn't ask for anything else,
//! and fits to those that it shares with: also when the pool is gone, or would not give it any more. Only what somebody
//! else on the LAN turned out to use before it was announced for the first time it leaves ([`crate::allocate::quarantine`]). What is new is
//! given in the order of [`Rank`], of one rank the oldest first (by creation, then namespace and name). So who asks for
//! an address by name is not beaten to it by who would have taken any.
//!
//! Only LoadBalancerIPs say who holds what. A Service's own status is believed in nothing: the API server empties it
//! when the type changes, and whoever may write it may forge it.

use std::net::IpAddr;
use std::sync::Arc;

use crds::load_balancer_ip::MAX_HOLDERS;
use crds::service::Family;
use crds::{Key, Record, Service};
use jiff::Timestamp;

use crate::allocate::refusal::{InUse, Refusal};
use crate::allocate::request::{Rank, Wish, families, wants_both_or_none, wish};
use crate::allocate::sharing::{Clash, Known, Standing, clash};
use crate::pools::{Pool, Withheld};
use crate::state::index::Ledger;
use crate::state::record::holds;

/// What comes of one Service.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) service: Arc<Service>,
    /// What it has when all is done, in the order in which its status shows it.
    pub(crate) targets: Vec<Target>,
    /// What it has and loses.
    pub(crate) gives_up: Vec<Arc<Record>>,
    /// Why it doesn't get what it asks for.
    pub(crate) refusal: Option<Refusal>,
    /// The family of which it would take an address too, and why there is none.
    pub(crate) lacks: Option<(Family, Refusal)>,
    /// Whether nobody can tell before somebody else's write is done.
    pub(crate) is_later: bool,
}

/// An address that a Service is to have.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: IpAddr,
    pub(crate) how: How,
}

/// How a Service comes to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It has it.
    Holds,
    /// Nobody has it.
    Create,
    /// There is a record, which others hold by the same key, or which is reserved.
    Join,
}

/// Why an address can't be had.
enum Stop {
    Refused(Refusal),
    /// Nobody can tell yet: it depends on a write that is on its way.
    Later,
}

/// What a Service has of the addresses whose records name it.
struct Holdings {
    /// What it may keep.
    live: Vec<Arc<Record>>,
    /// What it loses, because it does not fit to this Service any more.
    lost: Vec<(Arc<Record>, Key, Clash)>,
    /// What is being withdrawn.
    deleting: Vec<Arc<Record>>,
}

/// What is looked for, and what is found already.
struct Search<'a> {
    service: &'a Service,
    wish: &'a Wish<'a>,
    /// What it gets besides.
    found: Vec<IpAddr>,
    /// What it has and would give up.
    spare: Vec<IpAddr>,
    now: Timestamp,
}

impl Ledger {
    /// What comes of a Service that keeps what it has and needs nothing more; else when its turn is.
    pub(crate) fn kept(&mut self, service: &Arc<Service>) -> Result<Allocation, Rank> {
        let holdings = self.holdings(service);
        let wish = match wish(service) {
            Ok(wish) => wish,
            Err(refusal) => return Ok(refused(service, holdings, refusal)),
        };
        let filled: Option<Vec<_>> = self.filled(service, &wish, &holdings, false).into_iter().collect();
        let targets = filled.ok_or(wish.rank())?.into_iter().map(|address| Target { address, how: How::Holds });
        Ok(allocation(service, holdings, targets.collect()))
    }

    /// What comes of a Service that needs something new.
    pub(crate) fn served(&mut self, service: &Arc<Service>, now: Timestamp) -> Allocation {
        let holdings = self.holdings(service);
        let wish = match wish(service) {
            Ok(wish) => wish,
            Err(refusal) => return refused(service, holdings, refusal),
        };
        let filled = self.filled(service, &wish, &holdings, false);
        let is_spare = |address: &IpAddr| !filled.contains(&Some(*address));
        let spare = holdings.live.iter().map(|record| record.address).filter(is_spare).collect();
        let mut search = Search { service, wish: &wish, found: Vec::new(), spare, now };
        let target = |(address, how)| Target { address, how };
        let mut targets: Vec<_> = filled.iter().map(|held| held.map(|address| target((address, How::Holds)))).collect();
        let mut is_later = false;
        for (index, slot) in wish.slots.iter().enumerate() {
            let Some(address) = slot.address.filter(|_| targets[index].is_none()) else { continue };
            match self.obtain(&search, address) {
                Ok(how) => {
                    search.found.push(address);
                    targets[index] = Some(target((address, how)));
                }
                Err(Stop::Refused(refusal)) => return refused(service, holdings, refusal),
                Err(Stop::Later) => is_later = true,
            }
        }
        let missing = |targets: &[Option<Target>]| -> Vec<usize> {
            (0..targets.len()).filter(|i| targets[*i].is_none() && wish.slots[*i].address.is_none()).collect()
        };
        let pools = self.pools_for(service, &wish);
        if let Ok(pools) = &pools {
            for index in missing(&targets) {
                match self.find_known(&search, wish.slots[index].family, pools) {
                    Ok(Some((address, how))) => {
                        search.found.push(address);
                        targets[index] = Some(target((address, how)));
                    }
                    Ok(None) => {}
                    Err(()) => is_later = true,
                }
            }
        }
        if is_later {
            return Allocation { is_later, ..allocation(service, holdings, Vec::new()) };
        }
        if let Ok(pools) = &pools {
            let families: Vec<_> = missing(&targets).iter().map(|index| wish.slots[*index].family).collect();
            let mut pools = pools.clone();
            // A second family is from the pool of the first, if that has it.
            let first = targets.iter().flatten().next().and_then(|target| self.pools.pool_of(target.address));
            let best = match first {
                Some(pool) => Some(pool.index),
                None => pools.iter().copied().find(|pool| {
                    families.len() > 1
                        && families.iter().all(|family| self.find_fresh(&search, *family, &[*pool]).is_some())
                }),
            };
            // Stable, so that the others keep their order. A pool that is not among them does not come in.
            pools.sort_by_key(|pool| Some(*pool) != best);
            for index in missing(&targets) {
                if let Some(address) = self.find_fresh(&search, wish.slots[index].family, &pools) {
                    search.found.push(address);
                    targets[index] = Some(target((address, How::Create)));
                }
            }
        }
        // Rather an address that somebody else uses than none: that one may go.
        for (index, held) in self.filled(service, &wish, &holdings, true).into_iter().enumerate() {
            let is_missing = targets[index].is_none() && wish.slots[index].address.is_none();
            if let Some(address) = held.filter(|_| is_missing) {
                targets[index] = Some(target((address, How::Holds)));
            }
        }
        let mut lacks = None;
        for index in missing(&targets) {
            let slot = wish.slots[index];
            let why = match &pools {
                Ok(pools) => self.nothing_free(&search, slot.family, pools),
                Err(refusal) => refusal.clone(),
            };
            if !slot.is_required {
                lacks = Some((slot.family, why));
                continue;
            }
            let is_half = wants_both_or_none(service) && targets.iter().any(Option::is_some);
            let refusal = if is_half { Refusal::DualStackUnavailable(slot.family, Box::new(why)) } else { why };
            return refused(service, holdings, refusal);
        }
        let targets: Vec<_> = targets.into_iter().flatten().collect();
        targets.iter().filter(|target| target.how != How::Holds).for_each(|new| self.promise(new.address, service));
        Allocation { lacks, ..allocation(service, holdings, targets) }
    }

    fn holdings(&mut self, service: &Service) -> Holdings {
        let mut holdings = Holdings { live: Vec::new(), lost: Vec::new(), deleting: Vec::new() };
        for record in self.records_of(service) {
            if record.deleting {
                holdings.deleting.push(record);
                continue;
            }
            let standings = self.standings(&record);
            let own = record.holders.iter().position(|holder| holder.uid == service.uid);
            match own.map(|own| &standings[own]) {
                Some(Standing::Clashes(key, clash)) => holdings.lost.push((record, key.clone(), clash.clone())),
                _ => holdings.live.push(record),
            }
        }
        holdings
    }

    /// For each slot of a wish the address that the Service has for it. Where it has several that would do (after a crash
    /// in the middle of a change, or when it asks for fewer than before), those that its status shows come first, so that
    /// users see no change. What the Service should leave because somebody else uses it counts only if `all` do.
    fn filled(&self, service: &Service, wish: &Wish<'_>, holdings: &Holdings, all: bool) -> Vec<Option<IpAddr>> {
        let suits = |record: &&Arc<Record>| {
            wish.pool.is_none_or(|pool| {
                // Also when the pool has been edited since.
                record.pool == pool || self.pools.pool_of(record.address).is_some_and(|now| now.name() == pool)
            })
        };
        let mut live: Vec<_> = holdings
            .live
            .iter()
            .filter(suits)
            .map(|record| {
                let is_to_leave = self.is_to_leave(service, record);
                (is_to_leave, shown_at(service, record.address), record.address)
            })
            .collect();
        live.sort();
        let mut filled = Vec::with_capacity(wish.slots.len());
        for slot in &wish.slots {
            let fits = |(is_to_leave, _, address): &&(bool, usize, IpAddr)| match slot.address {
                Some(asked) => *address == asked,
                None => Family::from(*address) == slot.family && (all || !is_to_leave),
            };
            filled.push(live.iter().find(fits).map(|(.., address)| *address));
        }
        filled
    }

    /// The pools that a Service may have any address of, in the order in which they are tried.
    fn pools_for(&self, service: &Service, wish: &Wish<'_>) -> Result<Vec<usize>, Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPool);
        }
        let Some(name) = wish.pool else {
            let labels = self.namespaces.get(&*service.key.namespace).map(|namespace| &namespace.labels);
            let tried = self.pools.tried_for(&service.key.namespace, labels, &service.labels);
            return Ok(tried.map(|pool| pool.index).collect());
        };
        let pool = self.pools.get(name).ok_or_else(|| Refusal::PoolNotFound(name.to_owned()))?;
        self.is_open(pool, service).map(|()| vec![pool.index])
    }

    /// Whether a Service gets addresses of this pool.
    fn is_open(&self, pool: &Pool, service: &Service) -> Result<(), Refusal> {
        if !self.admits(pool, service) {
            Err(Refusal::PoolNotAllowed(pool.name().to_owned()))
        } else if pool.object.spec.drain {
            Err(Refusal::PoolDraining(pool.name().to_owned()))
        } else {
            Ok(())
        }
    }

    /// Whether a Service may have addresses of this pool.
    pub(crate) fn admits(&self, pool: &Pool, service: &Service) -> bool {
        let labels = self.namespaces.get(&*service.key.namespace).map(|namespace| &namespace.labels);
        pool.admits(&service.key.namespace, labels, &service.labels)
    }

    fn pool_at(&self, index: usize) -> Option<&Pool> {
        self.pools.iter().nth(index)
    }

    /// How a Service comes to this address, or why it can't have it.
    fn obtain(&mut self, search: &Search<'_>, address: IpAddr) -> Result<How, Stop> {
        let refuse = |refusal| Err(Stop::Refused(refusal));
        let in_use = |by| Err(Stop::Refused(Refusal::AddressInUse(address, by)));
        let (service, wish) = (search.service, search.wish);
        if self.pools.is_empty() {
            return refuse(Refusal::NoPool);
        }
        let Some(pool) = self.pools.pool_of(address) else { return refuse(Refusal::AddressNotInPool(address, None)) };
        if let Some(other) = wish.pool.filter(|asked| *asked != pool.name()) {
            return refuse(Refusal::AddressNotInPool(address, Some(other.to_owned())));
        }
        self.is_open(pool, service).map_err(Stop::Refused)?;
        match self.pools.withheld(address) {
            Some(Withheld::Excluded | Withheld::Buggy) => {
                return refuse(Refusal::AddressExcluded(address, pool.name().to_owned()));
            }
            Some(Withheld::Node(node)) => return in_use(InUse::Node(node.to_owned())),
            Some(Withheld::Gateway(node)) => return in_use(InUse::Gateway(node.to_owned())),
            Some(Withheld::NetworkEnd) | None => {}
        }
        if self.is_quota_full(search, pool, address) {
            return refuse(Refusal::NamespaceQuota(pool.name().to_owned()));
        }
        if self.unreadable.addresses.contains(&address) {
            return in_use(InUse::Unknown);
        }
        let record = self.addresses.get(&address).cloned();
        let how = match &record {
            None => How::Create,
            Some(record) => self.join(service, record)?,
        };
        for key in self.promised_to(address).filter(|key| **key != service.key) {
            let Some(other) = self.services.get(key) else { continue };
            match clash(service, other) {
                Some(Clash::Key) => return in_use(InUse::Service(key.clone())),
                Some(clash) => return refuse(Refusal::SharingConflict(address, key.clone(), clash)),
                // It will be there to be joined.
                None if how == How::Create => return Err(Stop::Later),
                None => {}
            }
        }
        Ok(how)
    }

    /// How a Service comes to an address that has a record: by its reservation, or together with its holders.
    fn join(&mut self, service: &Service, record: &Arc<Record>) -> Result<How, Stop> {
        let address = record.address;
        let in_use = |by| Err(Stop::Refused(Refusal::AddressInUse(address, by)));
        if record.deleting {
            return in_use(InUse::Withdrawn);
        }
        if let Some(quarantine) = record.quarantine.as_ref().filter(|_| record.holders.is_empty()) {
            return in_use(InUse::Stranger(quarantine.mac.clone()));
        }
        if !is_reserved_for(record, &service.key) {
            return Err(Stop::Refused(Refusal::AddressReserved(address)));
        }
        let key = crate::allocate::sharing::key(service);
        let standings = self.standings(record);
        let mut staying = 0;
        let mut is_being_left = false;
        for (holder, standing) in record.holders.iter().zip(standings.iter()) {
            let other = Key::new(&holder.namespace, &holder.name);
            let clash = match standing {
                Standing::Gone => continue,
                // It fitted once, and has lost its place.
                Standing::Clashes(with, clash) if holder.uid == service.uid => {
                    return Err(Stop::Refused(Refusal::SharingConflict(address, with.clone(), clash.clone())));
                }
                Standing::Clashes(..) => {
                    is_being_left = true;
                    continue;
                }
                _ if self.leaving.get(&address).is_some_and(|keys| keys.contains_key(&other)) => {
                    is_being_left = true;
                    continue;
                }
                Standing::Unreadable => Some(Clash::Unreadable),
                Standing::Stays => match self.known(&other, &holder.uid) {
                    Known::Service(other) => clash(service, other),
                    _ => None,
                },
            };
            staying += 1;
            match clash {
                None => {}
                Some(_) if key.is_none() => return in_use(InUse::Service(other)),
                Some(clash) => return Err(Stop::Refused(Refusal::SharingConflict(address, other, clash))),
            }
        }
        if is_being_left || (staying == 0 && !record.is_reservation()) {
            return in_use(InUse::Withdrawn);
        }
        let joining = self.promised_to(address).filter(|other| **other != service.key).count();
        if staying + joining >= MAX_HOLDERS {
            let first = record.holders.first().map(|holder| Key::new(&holder.namespace, &holder.name));
            let first = first.unwrap_or_else(|| service.key.clone());
            return Err(Stop::Refused(Refusal::SharingConflict(address, first, Clash::Full)));
        }
        Ok(How::Join)
    }

    /// An address that is there for this Service: reserved for it, shared under its key, or had by it a short while ago.
    /// `Err`: it depends on a write that is on its way.
    fn find_known(
        &mut self,
        search: &Search<'_>,
        family: Family,
        pools: &[usize],
    ) -> Result<Option<(IpAddr, How)>, ()> {
        let service = search.service;
        let of_family = |address: &IpAddr| Family::from(*address) == family;
        let reserved: Vec<_> = self.reserved_for(&service.key).filter(of_family).collect();
        for address in reserved {
            match self.obtain(search, address) {
                Ok(How::Join) => return Ok(Some((address, How::Join))),
                Err(Stop::Later) => return Err(()),
                _ => {}
            }
        }
        if let Some(key) = search.wish.sharing_key {
            let place = |address: &IpAddr| {
                let pool = self.pools.pool_of(*address)?.index;
                pools.iter().position(|other| *other == pool)
            };
            let shared = self.shared_under(key).filter(of_family);
            let mut shared: Vec<_> = shared.filter_map(|address| Some((place(&address)?, address))).collect();
            shared.sort();
            for (_, address) in shared {
                match self.obtain(search, address) {
                    Ok(How::Join) => return Ok(Some((address, How::Join))),
                    Err(Stop::Later) => return Err(()),
                    _ => {}
                }
            }
        }
        let had: Vec<_> = self.free.had_by(&service.key).filter(of_family).collect();
        for address in had {
            let is_tried = self.pools.pool_of(address).is_some_and(|pool| pools.contains(&pool.index));
            let is_withheld = self.pools.withheld(address).is_some();
            if is_tried && !is_withheld && matches!(self.obtain(search, address), Ok(How::Create)) {
                return Ok(Some((address, How::Create)));
            }
        }
        Ok(None)
    }

    /// An address that nobody has, of the first of these pools that has one for this Service.
    fn find_fresh(&mut self, search: &Search<'_>, family: Family, pools: &[usize]) -> Option<IpAddr> {
        for index in pools {
            let Some(pool) = self.pools.iter().nth(*index) else { continue };
            let next = self.free.next(pool, family, &search.service.key, search.now);
            let next = next.filter(|address| !self.is_quota_full(search, pool, *address));
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Whether this Service's namespace can't have this address too, of all those it has of the pool.
    fn is_quota_full(&self, search: &Search<'_>, pool: &Pool, address: IpAddr) -> bool {
        let Some(most) = pool.object.spec.max_per_namespace else { return false };
        let none = std::collections::BTreeMap::new();
        let counts = self.quota(pool.name(), &search.service.key.namespace).unwrap_or(&none);
        let is_of_pool = |address: &&IpAddr| self.pools.pool_of(**address).is_some_and(|of| of.index == pool.index);
        // What it gives up for this, and nobody else of the namespace has.
        let spare = search.spare.iter().filter(is_of_pool).filter(|spare| counts.get(spare) == Some(&1)).count();
        let found = search.found.iter().filter(is_of_pool).filter(|found| !counts.contains_key(found)).count();
        !counts.contains_key(&address) && counts.len() - spare + found >= most as usize
    }

    /// Why there is no address of that family in any of these pools.
    fn nothing_free(&self, search: &Search<'_>, family: Family, pools: &[usize]) -> Refusal {
        let name = |pool: &Pool| pool.name().to_owned();
        let tried: Vec<_> = pools.iter().filter_map(|index| self.pool_at(*index)).collect();
        let is_full = |pool: &&&Pool| {
            let used = self.quota(pool.name(), &search.service.key.namespace).map_or(0, |counts| counts.len());
            pool.has(family) && pool.object.spec.max_per_namespace.is_some_and(|most| used >= most as usize)
        };
        if let Some(full) = tried.iter().find(is_full) {
            return Refusal::NamespaceQuota(name(full));
        }
        if let Some(pool) = search.wish.pool {
            return Refusal::PoolExhausted(family, pool.to_owned());
        }
        let having: Vec<_> = tried.iter().filter(|pool| pool.has(family)).map(|pool| name(pool)).collect();
        if having.is_empty() {
            let by_name = |pool: &&Pool| pool.has(family) && self.is_open(pool, search.service).is_ok();
            Refusal::NoAutomaticPool(family, self.pools.iter().filter(by_name).map(name).collect())
        } else {
            Refusal::PoolsExhausted(family, having)
        }
    }
}

/// Whether a record is reserved for nobody else.
fn is_reserved_for(record: &Record, key: &Key) -> bool {
    record.reservation.as_ref().is_none_or(|reservation| {
        reservation.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && reservation.service.as_ref().is_none_or(|name| *name == key.name)
    })
}

/// Where the status shows this address; behind all others if it does not.
fn shown_at(service: &Service, address: IpAddr) -> usize {
    let text = address.to_string();
    let place = service.ingress.iter().position(|ingress| ingress.ip.as_deref() == Some(&*text));
    place.unwrap_or(usize::MAX)
}

/// What a Service has besides its targets, it gives up.
fn allocation(service: &Arc<Service>, holdings: Holdings, targets: Vec<Target>) -> Allocation {
    let is_target = |record: &Arc<Record>| targets.iter().any(|target| target.address == record.address);
    let live = holdings.live.into_iter().filter(|record| !is_target(record));
    let lost = holdings.lost.into_iter().map(|(record, ..)| record);
    let gives_up = live.chain(lost).chain(holdings.deleting).collect();
    Allocation { service: service.clone(), targets, gives_up, refusal: None, lacks: None, is_later: false }
}

/// A Service that doesn't get what it asks for keeps what it has; but one that wants both families or nothing never has
/// half of that.
fn refused(service: &Arc<Service>, holdings: Holdings, refusal: Refusal) -> Allocation {
    let families = families(service);
    let has = |family: &Family| holdings.live.iter().any(|record| Family::from(record.address) == *family);
    let mut keeps: Vec<_> = holdings.live.iter().map(|record| record.address).collect();
    if wants_both_or_none(service) && !families.iter().all(has) {
        keeps.clear();
    }
    let place = |address: &IpAddr| families.iter().position(|family| *family == Family::from(*address));
    keeps.sort_by_key(|address| (place(address).unwrap_or(usize::MAX), shown_at(service, *address), *address));
    debug_assert!(holdings.live.iter().all(|record| holds(record, service)));
    let targets = keeps.into_iter().map(|address| Target { address, how: How::Holds }).collect();
    Allocation { refusal: Some(refusal), ..allocation(service, holdings, targets) }
}
