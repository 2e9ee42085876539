//! The Hellos that a segment sends, and the state that expires with them.

use std::time::Duration;

use super::{Context, Quorum, Segment};
use crate::ownership::hello_sender::HelloPeers;
use crate::peers::deaths::FORGET_AFTER;
use crate::peers::liveness::PeerState;
use crate::wire::codec::MAX_PAYLOAD;
use crate::wire::datagram;
use crate::wire::frame::{Channel, Frame};

impl Segment {
    /// Sends a Hello if one is due.
    pub fn send_hello_if_due(&mut self, context: &mut Context<'_>) {
        self.probe_late_peers(context.now);
        if !self.hello_sender.is_due(context.now) {
            return;
        }
        let Some(address) = self.link.source_address().filter(|_| context.keys.can_seal()) else {
            // A Hello that stays due would keep the loop awake.
            self.hello_sender.skip(context.now);
            return;
        };
        let channel = if address.is_ipv4() { Channel::Hello } else { Channel::HelloV6 };
        let speakers = self.live_peers + 1;
        let hears_outsiders = self.quorum == Quorum::Outsiders;
        let peers = HelloPeers { peers: &self.peers, handshakes: &self.handshakes, speakers, hears_outsiders };
        for packet in self.hello_sender.packets(context, &self.link, &mut self.own, &peers) {
            let payload = context.keys.seal(context.now, packet.encode());
            debug_assert!(payload.len() <= MAX_PAYLOAD, "{} bytes", payload.len());
            let bytes = datagram::wrap(self.link.mac, address, &payload);
            context.counters.packets_sent += 1;
            context.frames.push(Frame { link: self.link.index, channel, bytes });
        }
        self.expire(context);
    }

    /// Sends a last Hello without claims, so that peers take over at once and do not count this node as dead.
    pub fn send_goodbye(&mut self, context: &mut Context<'_>) {
        self.remove_tombstones(None);
        self.hello_sender.send_now();
        self.send_hello_if_due(context);
    }

    /// Removes or marks dirty what depends on time but on no exact moment. Called once per interval.
    fn expire(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        self.peers.retain(|_, peer| {
            peer.state != PeerState::Dead || !(peer.leaving || peer.liveness.age(now) > FORGET_AFTER)
        });
        let is_announced = |lb_ip| self.own.get(lb_ip).is_some_and(|claim| claim.active);
        *context.reports_changed |= self.conflicts.expire(now, is_announced);
        self.dirty.extend(self.orphans.iter().filter(|(_, since)| since.is_none()).map(|(lb_ip, _)| lb_ip));
        if self.quorum != Quorum::Minority && !self.is_listening(now, context.config) {
            let unbacked = self.own.iter().filter(|(_, claim)| claim.active && !claim.backed);
            self.dirty.extend(unbacked.map(|(lb_ip, _)| lb_ip));
        }
        let mut alive = self.peers.values().filter(|peer| peer.state == PeerState::Alive);
        let all_hear_us = self.quorum == Quorum::Majority && alive.all(|peer| peer.liveness.hears_us(now));
        self.remove_tombstones(Some(if all_hear_us { now } else { now.saturating_sub(FORGET_AFTER) }));
    }

    /// Removes the tombstones that have expired by `now`, or all.
    fn remove_tombstones(&mut self, now: Option<Duration>) {
        let expired = self.tombstones.iter().filter(|(_, until)| now.is_none_or(|now| **until <= now));
        for lb_ip in expired.map(|(lb_ip, _)| *lb_ip).collect::<Vec<_>>() {
            self.tombstones.remove(&lb_ip);
            self.own.remove(lb_ip);
            self.hello_sender.claim_changed(lb_ip);
        }
    }
}
