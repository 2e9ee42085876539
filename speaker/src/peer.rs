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

/// The least interval that is believed: a peer can't make us look for its death more often.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A peer on a link.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which of all speakers that ever ran on that node it is.
    pub incarnation: u64,
    /// The one before it, whose packets may still be under way.
    former: Option<u64>,
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
            former: None,
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
        if self.former == Some(packet.incarnation) {
            return Err(Refused::Former);
        }
        if self.incarnation != packet.incarnation {
            // It restarted: it claims nothing but what it says from now on.
            changed.extend(self.claims.iter().map(|(lb_ip, _)| lb_ip));
            let former = Some(self.incarnation);
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
