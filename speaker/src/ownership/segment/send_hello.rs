//! The Hellos that a segment sends, and the state that expires with them.

use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Quorum, Segment};
use crate::peers::deaths::FORGET_AFTER;
use crate::peers::liveness::PeerState;
use crate::peers::peer::Peer;
use crate::wire::codec::MAX_PAYLOAD;
use crate::wire::datagram;
use crate::wire::frame::{Channel, Frame};
use crate::wire::hello::{self, Heard};
use crate::wire::packing::PeerLists;

impl Segment {
    /// Sends a Hello if one is due.
    pub fn send_hello_if_due(&mut self, context: &mut Context) {
        self.probe_late_peers(context.now);
        if context.now < self.hello_sender.due() {
            return;
        }
        let Some(address) = self.link.source_address().filter(|_| context.keys.can_seal()) else {
            // A Hello that stays due would keep the loop awake.
            self.hello_sender.skip(context.now);
            return;
        };
        if self.hello_sender.interval.update(&context.config, self.live_peers + 1) {
            self.hello_sender.send_soon();
        }
        let lists = self.peer_lists(context);
        let mut packets = self.hello_sender.packets(context, &self.link, &mut self.own_claims, lists);
        if let Some(hello) = packets.last_mut() {
            // Peers count a node that reports no heard peer as deaf. This node hears other hosts, so it reports one
            // peer.
            hello.heard.all = hello.heard.all.max(u16::from(self.quorum == Quorum::Outsiders));
        }
        for packet in packets {
            let payload = context.keys.seal(context.now, packet.encode());
            debug_assert!(payload.len() <= MAX_PAYLOAD, "{} bytes", payload.len());
            self.send_payload(context, address, &payload);
        }
        self.expire(context);
    }

    /// Sends a sealed packet to all speakers on the link, from this address.
    pub(super) fn send_payload(&self, context: &mut Context, address: IpAddr, payload: &[u8]) {
        let channel = if address.is_ipv4() { Channel::Hello } else { Channel::HelloV6 };
        let bytes = datagram::wrap(self.link.mac, address, payload);
        context.counters.packets_sent += 1;
        context.frames.push(Frame { link: self.link.index, channel, bytes });
    }

    fn peer_lists(&mut self, context: &Context) -> PeerLists {
        let (now, relay_requests) = (context.now, self.relay_requests(context));
        let present = || self.peers.values().filter(|peer| peer.state != PeerState::Dead);
        let id = |peer: &Peer| hello::id(peer.incarnation);
        let heard = present().filter(|peer| peer.liveness.is_heard(now));
        let mut heard: Vec<Heard> = heard.map(|peer| Heard { id: id(peer), age: peer.liveness.age(now) }).collect();
        heard.sort_unstable_by_key(|heard| heard.id);
        // A peer that does not list this node may not hear this node. Then it needs an echo to believe this node's next
        // Hello.
        let unsure = present().filter(|peer| !peer.lists_us);
        let unsure = unsure.map(|peer| hello::Echo { id: id(peer), sequence: peer.sequence as u32 });
        let echoes = self.handshakes.echoes(now).chain(unsure).collect();
        let unread = present().filter(|peer| peer.unread_buckets != 0);
        let request = |peer: &Peer| hello::BucketRequest { id: id(peer), buckets: peer.unread_buckets };
        let bucket_requests = unread.map(request).collect();
        PeerLists { heard, echoes, bucket_requests, relay_requests }
    }

    /// Sends a last Hello without claims, so that peers take over at once and do not count this node as dead.
    pub fn send_goodbye(&mut self, context: &mut Context) {
        self.remove_tombstones(None);
        self.hello_sender.send_goodbye();
        self.send_hello_if_due(context);
    }

    /// Removes state that has expired. Marks as dirty the addresses whose decision depends on time. Called with each
    /// Hello, because nothing here needs an exact moment.
    fn expire(&mut self, context: &mut Context) {
        let now = context.now;
        self.peers.retain(|_, peer| {
            peer.state != PeerState::Dead || !(peer.leaving || peer.liveness.age(now) > FORGET_AFTER)
        });
        let is_announced = |lb_ip| self.own_claims.get(lb_ip).is_some_and(|claim| claim.active);
        context.reports_changed |= self.conflicts.expire(now, is_announced);
        self.dirty.extend(self.orphans.iter().filter(|(_, since)| since.is_none()).map(|(lb_ip, _)| lb_ip));
        if self.quorum != Quorum::Minority && !self.is_listening(now, &context.config) {
            let unbacked = self.own_claims.iter().filter(|(_, claim)| claim.active && !claim.backed);
            self.dirty.extend(unbacked.map(|(lb_ip, _)| lb_ip));
        }
        let mut alive = self.peers.values().filter(|peer| peer.state == PeerState::Alive);
        let all_hear_us = self.quorum == Quorum::Majority && alive.all(|peer| peer.liveness.hears_us(now));
        // Without a quorum, or while a live peer does not hear this node, tombstones stay for longer.
        self.remove_tombstones(Some(if all_hear_us { now } else { now.saturating_sub(FORGET_AFTER) }));
    }

    /// Removes the tombstones that have expired by `now`, or all tombstones if `now` is `None`.
    fn remove_tombstones(&mut self, now: Option<Duration>) {
        let expired = self.tombstones.iter().filter(|(_, until)| now.is_none_or(|now| **until <= now));
        for lb_ip in expired.map(|(lb_ip, _)| *lb_ip).collect::<Vec<_>>() {
            self.tombstones.remove(&lb_ip);
            self.own_claims.remove(lb_ip);
            self.hello_sender.record_claim_change(lb_ip);
        }
    }
}
