//! What is known of one peer on one link: whether it is alive, and what it claims.
//!
//! Packets in, changed addresses out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::claims::Claims;
use crate::hello::Packet;
use crate::liveness::{Liveness, Standing};
use crate::placement::Mac;

/// A peer that claims more than this is not believed any more of it: memory has to be bounded by what can be true.
const MAX_CLAIMS: usize = 65_536;

/// For so many intervals claims that are known to be unread keep others from claiming; after that something else is
/// wrong, and an address without an owner is worse.
const UNREAD: u32 = 20;

/// No packet is under way for longer. After that even a speaker that was taken for a former one is heard again.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// More restarts than this within [`UNDER_WAY`] are not told apart.
const MAX_FORMER: usize = 8;

/// The least interval that is believed: a peer can't make us look for its death more often.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A peer on a link.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which of all speakers that ever ran on that node it is.
    pub incarnation: u64,
    /// Those before it whose packets may still be under way, and when each was replaced.
    former: Vec<(u64, Duration)>,
    /// The sequence of its last packet.
    sequence: u64,
    /// The MAC address of its link.
    pub mac: Mac,
    /// What was heard of it.
    pub liveness: Liveness,
    /// Whether it counts, as of the last look.
    pub standing: Standing,
    /// It is about to go.
    pub leaving: bool,
    /// It doesn't know which addresses there are.
    pub blind: bool,
    /// What it claims.
    pub claims: Claims,
    /// The buckets of its claims that are known to be wrong here, one bit each, and since when there are any.
    pub unread: (u128, Duration),
}

/// Why a packet of a peer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was overtaken by a later one.
    Stale,
    /// It is from the speaker that ran there before.
    Former,
}

impl Peer {
    /// A peer whose first packet has just come. The packet itself is still to be [received](Self::receive).
    pub fn new(now: Duration, mac: Mac, packet: &Packet, multiplier: u32) -> Self {
        Self {
            incarnation: packet.incarnation,
            former: Vec::new(),
            sequence: packet.sequence.saturating_sub(1),
            mac,
            liveness: Liveness::new(now, packet.interval.max(MIN_INTERVAL), multiplier),
            standing: Standing::Dead, // until the first look
            leaving: packet.leaving,
            blind: packet.blind,
            claims: Claims::default(),
            unread: (0, now),
        }
    }

    /// Takes in a packet: what it says about its sender. `me` is our own incarnation. Returns the addresses whose claim
    /// changed.
    ///
    /// # Errors
    /// If the packet is out of date.
    pub fn receive(
        &mut self,
        now: Duration,
        mac: Mac,
        packet: &Packet,
        (me, multiplier): (u64, u32),
    ) -> Result<BTreeSet<IpAddr>, Refused> {
        let mut changed = BTreeSet::new();
        self.former.retain(|(_, replaced)| now < *replaced + UNDER_WAY);
        if self.former.iter().any(|(incarnation, _)| *incarnation == packet.incarnation) {
            return Err(Refused::Former);
        }
        if self.incarnation != packet.incarnation {
            // It restarted: it claims nothing but what it says from now on.
            changed.extend(self.claims.iter().map(|(lb_ip, _)| lb_ip));
            let mut former = std::mem::take(&mut self.former);
            former.truncate(MAX_FORMER - 1);
            former.insert(0, (self.incarnation, now));
            *self = Self { former, standing: self.standing, ..Self::new(now, mac, packet, multiplier) };
        } else if packet.sequence < self.sequence {
            return Err(Refused::Stale);
        }
        self.sequence = packet.sequence;
        self.mac = mac;
        self.leaving = packet.leaving;
        self.blind = packet.blind;
        self.liveness.heard(now, packet.interval.max(MIN_INTERVAL), multiplier);
        for page in &packet.pages {
            if self.claims.len() + page.claims.len() <= MAX_CLAIMS {
                changed.append(&mut self.claims.replace(page));
            }
        }
        if let Some(hello) = &packet.hello {
            let us = hello.heard.iter().any(|heard| heard.incarnation == me);
            self.liveness.listed(now, !hello.heard.is_empty(), us);
            self.claims.set_bits(packet.bits);
            let unread = self.claims.differing(&hello.digests);
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
    pub fn may_claim(&self, lb_ip: IpAddr, now: Duration, interval: Duration) -> bool {
        let (unread, since) = self.unread;
        self.holds() && unread & 1 << self.claims.bucket(lb_ip) != 0 && now < since + interval * UNREAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: (u64, u32) = (1, 3);

    fn packet(incarnation: u64, sequence: u64) -> Packet {
        Packet {
            cluster: 0,
            node: "n2".into(),
            incarnation,
            sequence,
            interval: Duration::from_millis(50),
            leaving: false,
            blind: false,
            hello: None,
            bits: 0,
            pages: vec![],
        }
    }

    #[test]
    fn packets_out_of_date_are_refused_but_nobody_is_refused_forever() {
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        let mut peer = Peer::new(Duration::ZERO, mac, &packet(7, 5), 3);
        for (ms, incarnation, sequence, expected) in [
            (0, 7, 5, Ok(())),
            (1, 7, 5, Ok(())), // pages of one Hello share its number
            (2, 7, 4, Err(Refused::Stale)),
            (3, 8, 1, Ok(())), // it restarted
            (4, 7, 6, Err(Refused::Former)),
            (5, 9, 1, Ok(())), // and again
            (6, 7, 7, Err(Refused::Former)),
            (7, 8, 2, Err(Refused::Former)),
            (8, 9, 2, Ok(())),
            (1100, 7, 8, Ok(())), // so it was the other way round
        ] {
            let received = peer.receive(Duration::from_millis(ms), mac, &packet(incarnation, sequence), ME);
            assert_eq!(received.map(|_| ()), expected, "at {ms} ms");
        }
    }
}
