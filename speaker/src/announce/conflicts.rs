//! Conflicts: hosts outside the cluster that use an lb_ip (RFC 5227; over IPv6, RFC 4862 §5.4).
//!
//! The input is addresses, times and the users of addresses in received frames. The output is the addresses to probe,
//! and the time until which a claim must wait. Other files read and build the frames.
//!
//! - *Before the first use* three probes detect whether a host has the address. If a host answers, this node does not
//!   announce the address. It probes the address again later, because the host may have released it. In RFC 5227 §1.1
//!   the probes take up to seven seconds. Users wait for their first connection, so here the probes take only
//!   [`PROBE_TIME`], which is long for a LAN. An address that had an owner before is not probed, because a takeover
//!   must not wait. If a host has begun to use that address meanwhile, the conflict is found later.
//! - *Later* a host that uses the address is a conflict, unless it is a peer. This node defends the address: it
//!   announces the address once, at most every [`DEFEND_INTERVAL`]. It never gives the address up (RFC 5227 §2.4 (c)):
//!   otherwise its clients would follow any host that announces it. Only a human can resolve the conflict, so the
//!   conflict is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::announce::pacer::Pacer;
use crds::MacAddr;

/// The number of probes (RFC 5227 §1.1, PROBE_NUM). Two of them may be lost.
const PROBES: u32 = 3;

/// The time between two probes, and after the last one. A host answers within about a millisecond, and within tens of
/// milliseconds if it is busy or on a wireless link.
const PROBE_GAP: Duration = Duration::from_millis(40);

/// The time that the probes of an address take. They delay its first announcement.
pub const PROBE_TIME: Duration = Duration::from_millis(120);

/// The maximum number of addresses whose probes start at once. Thousands of addresses may be created together, and
/// every host on the LAN receives each broadcast.
const PROBED_AT_ONCE: u32 = 128;

/// After the first [`PROBED_AT_ONCE`] addresses, the probes of one address start per interval: 1,000 addresses and
/// 3,000 frames per second. A port with storm control at 1 % of a gigabit admits 15,000 small frames per second.
/// Controllers create addresses more slowly.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// An address in use by another host is probed again after this time.
const PROBE_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The minimum time between two defences of an address (RFC 5227 §1.1, DEFEND_INTERVAL).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// A host that was not seen for this time is forgotten. A live host is seen several times within it, because other
/// hosts resolve it or it announces itself.
const EXPIRE_AFTER: Duration = Duration::from_secs(120);

/// A host outside the cluster that uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConflictingHost {
    pub mac: MacAddr,
    /// Whether the address is not announced because of this host.
    pub held_back: bool,
    /// When the host last used or probed the address.
    seen: Duration,
    /// When this node last defended the address.
    defended: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probing {
    /// The number of sent probes.
    sent: u32,
    /// When the next probe is due, or when the address counts as free.
    next: Duration,
}

/// The conflicts and probes on a link.
#[derive(Clone, Debug)]
pub struct AddressConflicts {
    probing: BTreeMap<IpAddr, Probing>,
    /// The addresses whose next probe is not sent yet, each with the time of that probe.
    due: BTreeSet<(Duration, IpAddr)>,
    hosts: BTreeMap<IpAddr, ConflictingHost>,
    /// Assigns the time of the first probe of each address.
    first_probes: Pacer,
}

impl Default for AddressConflicts {
    fn default() -> Self {
        let first_probes = Pacer::new(PROBE_INTERVAL, PROBED_AT_ONCE);
        Self { probing: BTreeMap::new(), due: BTreeSet::new(), hosts: BTreeMap::new(), first_probes }
    }
}

/// The response to a host that uses an announced address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// The host was unknown: report it.
    pub is_new_host: bool,
    /// Announce the address once.
    pub defend: bool,
}

impl AddressConflicts {
    /// Checks `lb_ip` before it is announced for the first time. Returns the time until which the claim must wait, or
    /// `None` if the address is free.
    pub fn check_free(&mut self, now: Duration, lb_ip: IpAddr) -> Option<Duration> {
        let held_back = self.hosts.get(&lb_ip).filter(|host| host.held_back);
        if let Some(time) = held_back.map(|host| host.seen + PROBE_AGAIN_AFTER).filter(|time| now < *time) {
            return Some(time);
        }
        match self.probing.get(&lb_ip).copied() {
            Some(Probing { sent: PROBES, next }) if next <= now => {
                self.cancel(lb_ip);
                None
            }
            Some(Probing { sent, next }) => Some(next + PROBE_GAP * (PROBES - sent)),
            None => {
                let next = self.first_probes.take(now);
                self.probing.insert(lb_ip, Probing { sent: 0, next });
                self.due.insert((next, lb_ip));
                Some(next + PROBE_TIME)
            }
        }
    }

    /// Stops probing `lb_ip`, and no longer holds it back, because it is announced or no longer wanted. Returns whether
    /// it was held back.
    pub fn cancel(&mut self, lb_ip: IpAddr) -> bool {
        self.cancel_probes(lb_ip);
        let held_back = self.hosts.get(&lb_ip).is_some_and(|host| host.held_back);
        if held_back {
            self.hosts.remove(&lb_ip);
        }
        held_back
    }

    /// Forgets the hosts with this MAC address, because it belongs to a peer. Two nodes that do not hear each other yet
    /// can probe an address at the same time. Returns the addresses of these hosts.
    pub fn forget_hosts(&mut self, mac: MacAddr) -> Vec<IpAddr> {
        self.hosts.extract_if(.., |_, host| host.mac == mac).map(|(lb_ip, _)| lb_ip).collect()
    }

    fn cancel_probes(&mut self, lb_ip: IpAddr) {
        if let Some(probing) = self.probing.remove(&lb_ip) {
            self.due.remove(&(probing.next, lb_ip));
        }
    }

    /// Continues the probes of each address after a suspension. If all were sent, repeats the last one, because the
    /// answer may have been dropped meanwhile. It does not repeat all three: on an overloaded machine the probes would
    /// never end.
    pub fn restart_probes(&mut self, now: Duration) {
        self.first_probes.reset(now);
        self.due.clear();
        let mut probing = std::mem::take(&mut self.probing);
        for (lb_ip, Probing { sent, next }) in &mut probing {
            (*sent, *next) = ((*sent).min(PROBES - 1), self.first_probes.take(now));
            self.due.insert((*next, *lb_ip));
        }
        self.probing = probing;
    }

    /// The time that a new address would wait for its first probe.
    pub fn queue_delay(&self, now: Duration) -> Duration {
        self.first_probes.delay(now)
    }

    /// The addresses to probe now.
    pub fn take_due_probes(&mut self, now: Duration) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        while let Some((due, lb_ip)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, lb_ip));
            let probing = self.probing.get_mut(&lb_ip).expect("invariant: each due address is being probed");
            *probing = Probing { sent: probing.sent + 1, next: now + PROBE_GAP };
            if probing.sent < PROBES {
                self.due.insert((probing.next, lb_ip));
            }
            addresses.push(lb_ip);
        }
        addresses
    }

    /// When the next probe is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    pub fn is_probing(&self) -> bool {
        !self.probing.is_empty()
    }

    /// Holds back `used`, which a host outside the cluster uses or probes. Does nothing if this node is not probing the
    /// address. Returns whether this is a new conflict.
    pub fn record_user(&mut self, now: Duration, used: IpAddr, mac: MacAddr) -> bool {
        if !self.probing.contains_key(&used) {
            return false;
        }
        self.cancel_probes(used);
        let host = ConflictingHost { mac, held_back: true, seen: now, defended: None };
        self.hosts.insert(used, host).is_none_or(|before| before.mac != mac)
    }

    /// Records that a host outside the cluster uses `lb_ip`, which this node announces.
    pub fn record_conflict(&mut self, now: Duration, lb_ip: IpAddr, mac: MacAddr) -> Reaction {
        let before = self.hosts.get(&lb_ip).copied();
        let last = before.and_then(|host| host.defended);
        let defend = last.is_none_or(|last| now >= last + DEFEND_INTERVAL);
        let defended = if defend { Some(now) } else { last };
        self.hosts.insert(lb_ip, ConflictingHost { mac, held_back: false, seen: now, defended });
        Reaction { is_new_host: before.is_none_or(|before| before.mac != mac), defend }
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, ConflictingHost)> + '_ {
        self.hosts.iter().map(|(lb_ip, host)| (*lb_ip, *host))
    }

    /// Forgets hosts that were not seen for [`EXPIRE_AFTER`], or whose address is no longer announced here. Keeps hosts
    /// for which an address is held back. Returns whether a host was forgotten.
    pub fn expire(&mut self, now: Duration, announced: impl Fn(IpAddr) -> bool) -> bool {
        let before = self.hosts.len();
        self.hosts.retain(|lb_ip, host| host.held_back || announced(*lb_ip) && now < host.seen + EXPIRE_AFTER);
        self.hosts.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: MacAddr = MacAddr(2, 0, 0, 0, 0, 0x99);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn address_is_free_after_three_unanswered_probes() {
        let mut conflicts = AddressConflicts::default();
        assert_eq!(conflicts.check_free(ms(1000), ip(1)), Some(ms(1120)));
        let mut probes = Vec::new();
        while let Some(due) = conflicts.next_deadline() {
            probes.push((due.as_millis(), conflicts.take_due_probes(due)));
            assert!(conflicts.check_free(due, ip(1)).is_some());
        }
        assert_eq!(probes, [(1000, vec![ip(1)]), (1040, vec![ip(1)]), (1080, vec![ip(1)])]);
        assert_eq!(conflicts.check_free(ms(1119), ip(1)), Some(ms(1120)));
        assert_eq!(conflicts.check_free(ms(1120), ip(1)), None);
        assert!(!conflicts.is_probing());
    }

    #[test]
    fn late_loop_waits_a_gap_after_the_last_probe() {
        let mut conflicts = AddressConflicts::default();
        conflicts.check_free(ms(0), ip(1));
        for at in [0, 500, 510, 540] {
            conflicts.take_due_probes(ms(at));
        }
        assert_eq!(conflicts.check_free(ms(541), ip(1)), Some(ms(580)));
        conflicts.restart_probes(ms(575));
        assert_eq!(conflicts.check_free(ms(580), ip(1)), Some(ms(615)));
        assert_eq!(conflicts.take_due_probes(ms(580)), [ip(1)]);
        assert_eq!((conflicts.check_free(ms(619), ip(1)), conflicts.check_free(ms(620), ip(1))), (Some(ms(620)), None));
    }

    #[test]
    fn first_probes_of_thousands_are_a_burst_then_paced() {
        let lb_ip = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let (mut conflicts, begin) = (AddressConflicts::default(), ms(5000));
        for n in 0..3000_u32 {
            let start = begin + PROBE_INTERVAL * (n + 1).saturating_sub(PROBED_AT_ONCE);
            assert_eq!(conflicts.queue_delay(begin), start - begin);
            assert_eq!(conflicts.check_free(begin, lb_ip(n)), Some(start + PROBE_TIME));
        }
        let mut sent = BTreeMap::<u128, usize>::new();
        while let Some(due) = conflicts.next_deadline() {
            *sent.entry(due.as_millis() / 100).or_default() += conflicts.take_due_probes(due).len();
        }
        assert_eq!(sent.values().sum::<usize>(), 9000);
        assert!(sent.values().all(|frames| *frames <= 3 * (PROBED_AT_ONCE as usize + 100)), "{sent:?}");
        assert!(sent.values().skip(1).all(|frames| *frames <= 400), "{sent:?}");
        // In the end the last address is free, and a new address no longer waits for its first probe.
        let end = begin + PROBE_INTERVAL * 3000 + PROBE_TIME;
        assert_eq!(
            (conflicts.check_free(end, lb_ip(2999)), conflicts.check_free(end, lb_ip(9999))),
            (None, Some(end + PROBE_TIME))
        );
        // After a suspension the probes are paced as well.
        (0..1000).for_each(|n| assert!(conflicts.check_free(end, lb_ip(n + 20_000)).is_some()));
        conflicts.restart_probes(end);
        assert!(conflicts.take_due_probes(end).len() <= PROBED_AT_ONCE as usize);
    }

    #[test]
    fn used_address_is_held_back_and_probed_until_free() {
        let mut conflicts = AddressConflicts::default();
        conflicts.check_free(ms(0), ip(1));
        conflicts.take_due_probes(ms(0));
        assert!(!conflicts.record_user(ms(1), ip(2), HOST), "not being probed");
        assert!(conflicts.record_user(ms(1), ip(1), HOST));
        assert!(!conflicts.record_user(ms(2), ip(1), HOST));
        assert_eq!((conflicts.next_deadline(), conflicts.check_free(ms(120), ip(1))), (None, Some(ms(10_001))));
        let known = ConflictingHost { mac: HOST, held_back: true, seen: ms(1), defended: None };
        assert_eq!(conflicts.iter().collect::<Vec<_>>(), [(ip(1), known)]);
        assert!(!conflicts.expire(ms(9000), |_| false));
        // The host still has the address: that is no new conflict.
        assert_eq!(conflicts.check_free(ms(10_001), ip(1)), Some(ms(10_121)));
        conflicts.take_due_probes(ms(10_001));
        assert!(!conflicts.record_user(ms(10_002), ip(1), HOST));
        // The host no longer has the address.
        assert_eq!(conflicts.check_free(ms(20_002), ip(1)), Some(ms(20_122)));
        for at in [20_002, 20_042, 20_082] {
            conflicts.take_due_probes(ms(at));
        }
        assert_eq!(conflicts.check_free(ms(20_122), ip(1)), None);
        assert_eq!(conflicts.iter().count(), 0);
    }

    #[test]
    fn announced_address_is_defended_at_a_bounded_rate() {
        let mut conflicts = AddressConflicts::default();
        for (at, is_new_host, defend) in
            [(0, true, true), (1, false, false), (9_999, false, false), (10_000, false, true)]
        {
            assert_eq!(conflicts.record_conflict(ms(at), ip(1), HOST), Reaction { is_new_host, defend }, "at {at} ms");
        }
        assert!(conflicts.record_conflict(ms(10_001), ip(1), MacAddr(2, 0, 0, 0, 0, 0x98)).is_new_host);
        assert!(!conflicts.expire(ms(130_000), |_| true));
        assert!(conflicts.expire(ms(130_001), |_| true));
        conflicts.record_conflict(ms(0), ip(1), HOST);
        assert!(conflicts.expire(ms(1), |_| false), "it is no longer announced");
    }
}
