//! What is known of one peer on one link: whether it is alive, and what it claims.
//!
//! Packets in, changed addresses out. Whether a packet is to be believed is decided before ([`crate::peers::handshake`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::ownership::claims::Claims;
use crate::peers::liveness::{Liveness, Standing};
use crate::wire::hello::Packet;
use crds::MacAddr;

/// A peer that claims more than this is not believed any more of it: memory has to be bounded by what can be true.
const MAX_CLAIMS: usize = 65_536;

/// For so many of its intervals claims that are known to be unread keep others from claiming; after that something else is
/// wrong, and an address without an owner is worse.
const UNREAD: u32 = 20;

/// A Hello has no more parts than this.
pub const MAX_PARTS: usize = 1024;

/// The least interval that is believed: a peer can't make us look for its death more often.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A peer on a link.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which of all speakers that ever ran on that node it is.
    pub incarnation: u64,
    /// The sequence of its last packet.
    pub sequence: u64,
    /// The parts of that Hello that have come, one bit each.
    parts: [u64; MAX_PARTS / 64],
    /// The MAC address of its link.
    pub mac: MacAddr,
    /// What it calls its link.
    pub link: String,
    /// What was heard of it.
    pub liveness: Liveness,
    /// Whether it counts, as of the last look.
    pub standing: Standing,
    /// Since when it has stood so.
    pub since: Duration,
    /// It is about to go.
    pub leaving: bool,
    /// It doesn't know which addresses there are.
    pub blind: bool,
    /// Whether it said last that it hears us.
    pub lists_us: bool,
    /// What it claims.
    pub claims: Claims,
    /// The buckets of its claims that are known to be wrong here, one bit each, and since when there are any.
    pub unread: (u128, Duration),
}

/// A packet of a peer is older than what was heard already, or came before: it was overtaken, or recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed;

impl Peer {
    /// A peer whose first packet has just come. The packet itself is still to be [received](Self::receive).
    pub fn new(now: Duration, mac: MacAddr, packet: &Packet, multiplier: u32) -> Self {
        Self {
            incarnation: packet.incarnation,
            sequence: packet.sequence,
            parts: [0; MAX_PARTS / 64],
            mac,
            link: packet.link.clone(),
            liveness: Liveness::new(now, packet.interval.max(MIN_INTERVAL), multiplier),
            standing: Standing::Dead, // until the first look
            since: now,
            leaving: packet.leaving,
            blind: packet.blind,
            lists_us: false,
            claims: Claims::default(),
            unread: (0, now),
        }
    }

    /// Another speaker runs on that node now, and this is its first packet: it claims nothing but what it says from now
    /// on. Returns the addresses that the former one claimed.
    pub fn restart(&mut self, now: Duration, mac: MacAddr, packet: &Packet, multiplier: u32) -> BTreeSet<IpAddr> {
        let new = Self { standing: self.standing, ..Self::new(now, mac, packet, multiplier) };
        std::mem::replace(self, new).claims.iter().map(|(lb_ip, _)| lb_ip).collect()
    }

    /// Whether a packet of this incarnation is news.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(&self, packet: &Packet) -> Result<(), Replayed> {
        let (word, bit) = part(packet)?;
        let repeated = packet.sequence == self.sequence && self.parts[word] & bit != 0;
        if packet.sequence < self.sequence || repeated { Err(Replayed) } else { Ok(()) }
    }

    /// Takes in a packet: what it says about its sender. `me` is our own id. Returns the addresses whose claim changed.
    ///
    /// # Errors
    /// If the packet is no news.
    pub fn receive(
        &mut self,
        now: Duration,
        mac: MacAddr,
        packet: &Packet,
        (me, multiplier): (u32, u32),
    ) -> Result<BTreeSet<IpAddr>, Replayed> {
        self.check(packet)?;
        let mut changed = BTreeSet::new();
        if packet.sequence > self.sequence {
            self.parts = [0; MAX_PARTS / 64];
        }
        let (word, bit) = part(packet)?;
        self.parts[word] |= bit;
        self.sequence = packet.sequence;
        self.mac = mac;
        if self.link != packet.link {
            self.link.clone_from(&packet.link);
        }
        self.leaving = packet.leaving;
        self.blind = packet.blind;
        self.liveness.heard(now, packet.interval.max(MIN_INTERVAL), multiplier);
        for page in &packet.pages {
            if self.claims.len() + page.claims.len() <= MAX_CLAIMS {
                changed.append(&mut self.claims.replace(page));
            }
        }
        if packet.heard.covers(me) {
            self.lists_us = packet.heard.peers.binary_search_by_key(&me, |heard| heard.id).is_ok();
        }
        let us = packet.heard.covers(me).then_some(self.lists_us);
        self.liveness.listed(now, packet.heard.all > 0, us);
        if let Some(digests) = &packet.digests {
            self.claims.set_bits(packet.bits);
            let unread = self.claims.differing(digests);
            let since = if self.unread.0 == 0 { now } else { self.unread.1 };
            self.unread = (unread, since);
        }
        Ok(changed)
    }

    /// Whether its claims count.
    pub fn holds(&self) -> bool {
        self.standing == Standing::Alive && !self.leaving
    }

    /// Whether it would take an orphaned address.
    pub fn takes(&self) -> bool {
        self.holds() && !self.blind
    }

    /// Whether it may have a claim to `lb_ip` that isn't known here: its digest says so.
    pub fn may_claim(&self, lb_ip: IpAddr, now: Duration) -> bool {
        self.holds() && self.is_unread(lb_ip) && now < self.unread.1 + self.liveness.interval() * UNREAD
    }

    /// Whether it fell silent less than an interval ago as one that had not said good-bye, and what it said of `lb_ip` last is
    /// known.
    pub fn has_just_died(&self, lb_ip: IpAddr, now: Duration) -> bool {
        let is_dead = self.standing == Standing::Dead && !self.leaving;
        is_dead && !self.is_unread(lb_ip) && now < self.since + self.liveness.interval()
    }

    fn is_unread(&self, lb_ip: IpAddr) -> bool {
        self.unread.0 & 1 << self.claims.bucket(lb_ip) != 0
    }
}

/// Where in the bits of its Hello a part stands.
fn part(packet: &Packet) -> Result<(usize, u64), Replayed> {
    let part = usize::from(packet.part);
    if part < MAX_PARTS { Ok((part / 64, 1 << (part % 64))) } else { Err(Replayed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::{self, Heard, Hearing};

    const MAC: MacAddr = MacAddr(2, 0, 0, 0, 0, 2);

    fn me() -> (u32, u32) {
        (hello::id(1), 3)
    }

    fn packet(incarnation: u64, sequence: u64, part: u16) -> Packet {
        Packet {
            cluster: 0,
            node: "n2".into(),
            mac: MAC,
            link: "eth0".into(),
            incarnation,
            sequence,
            part,
            interval: Duration::from_millis(50),
            leaving: false,
            blind: false,
            routine: false,
            heard: Hearing::default(),
            met: vec![],
            probed: vec![],
            wanted: vec![],
            bits: 0,
            digests: None,
            pages: vec![],
        }
    }

    #[test]
    fn each_packet_counts_once_and_only_if_no_later_hello_has_come() {
        let mut peer = Peer::new(Duration::ZERO, MAC, &packet(7, 5, 0), 3);
        for (sequence, part, expected) in [
            (5, 0, Ok(())),
            (5, 0, Err(Replayed)),
            (5, 2, Ok(())), // parts of one Hello may overtake each other
            (5, 1, Ok(())),
            (5, 2, Err(Replayed)),
            (4, 3, Err(Replayed)),
            (9, 1023, Ok(())),
            (9, 1024, Err(Replayed)),
            (5, 3, Err(Replayed)),
            (9, 0, Ok(())),
        ] {
            let received = peer.receive(Duration::ZERO, MAC, &packet(7, sequence, part), me());
            assert_eq!(received.map(|_| ()), expected, "{sequence}, part {part}");
        }
        peer.restart(Duration::ZERO, MAC, &packet(8, 1, 0), 3);
        assert_eq!(peer.receive(Duration::ZERO, MAC, &packet(8, 1, 0), me()), Ok(BTreeSet::new()));
    }

    #[test]
    fn only_the_part_that_speaks_of_us_says_whether_we_are_heard() {
        let mut peer = Peer::new(Duration::ZERO, MAC, &packet(7, 1, 0), 3);
        let us = me().0;
        let listed = Heard { id: us, age: Duration::ZERO };
        for (sequence, from, to, peers, expected) in [
            (1, 0, u32::MAX, vec![listed], true),
            (2, us + 1, u32::MAX, vec![], true),
            (3, 1, 0, vec![], true),
            (4, 0, us, vec![], false),
        ] {
            let heard = Hearing { all: 9, from, to, peers };
            peer.receive(Duration::ZERO, MAC, &Packet { heard, ..packet(7, sequence, 0) }, me()).expect("news");
            assert_eq!(peer.lists_us, expected, "{sequence}");
        }
    }
}
