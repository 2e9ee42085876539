//! Receives the Hellos of peers: decides which are believed, and applies them.

use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Segment};
use crate::metrics::Event;
use crate::peers::handshake;
use crate::peers::liveness::MAX_VOUCHERS_PROBED;
use crate::peers::peer::{Path, Peer};
use crate::wire::hello::{self, Packet};
use crds::MacAddr;

/// The maximum number of peers on a link, so that forged names cannot exhaust memory.
const MAX_PEERS: usize = 1024;

/// The decision about a decoded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// Its sender is a known peer that was heard recently or has proved that it is alive.
    Known,
    /// Its sender is an unknown peer or a new incarnation, and has proved that it is alive.
    New,
    /// Its sender has not proved that it is alive.
    Unproven,
    /// It was received before, or is older than a received packet.
    Replayed,
}

impl Segment {
    /// Receives a packet of this cluster, in a frame from `mac` and `address`.
    pub fn receive_hello(&mut self, context: &mut Context, mac: MacAddr, address: Option<IpAddr>, packet: &Packet) {
        let now = context.now;
        let dropped = &mut context.counters.dropped;
        if packet.mac != mac {
            // Another host has replayed the packet.
            return dropped.forged += 1;
        }
        if packet.node == context.config.node {
            dropped.duplicate_node += 1;
            return self.report_duplicate(context, mac, packet);
        }
        match self.admission_of(now, packet) {
            Admission::Known => {}
            Admission::New => {
                if !self.admit(context, Path::Direct, packet) {
                    return;
                }
            }
            Admission::Unproven => {
                dropped.unproven += 1;
                if self.handshakes.record_unproven(now, packet.incarnation, packet.sequence) {
                    self.hello_sender.send_soon();
                }
                return;
            }
            Admission::Replayed => return dropped.replayed += 1,
        }
        if !self.apply_packet(context, Path::Direct, packet) {
            return context.counters.dropped.replayed += 1;
        }
        if let Some(peer) = self.peers.get_mut(&packet.node) {
            peer.record_address(address);
        }
        self.record_vouchers(now, packet);
        self.receive_relay_requests(now, packet);
        self.forward(context, packet);
    }

    /// Applies a packet of a known peer. Returns whether the packet was new.
    pub(super) fn apply_packet(&mut self, context: &mut Context, path: Path, packet: &Packet) -> bool {
        let now = context.now;
        let peer = self.peers.get_mut(&packet.node).expect("invariant: the peer is known, or was just admitted");
        let before = (peer.can_take_over(), peer.is_serving(), peer.unread_buckets);
        let was_received = peer.liveness.is_received(now);
        let renamed = peer.link != packet.link;
        let Some(changed) = peer.receive(now, path, packet, hello::id(self.hello_sender.incarnation)) else {
            return false;
        };
        self.dirty.extend(changed);
        context.counters.packets_received += 1;
        let state_changed = peer.liveness.state(now) != peer.state;
        if !was_received {
            // The peer has proved that it is alive, and may wait for the same proof from this node.
            self.handshakes.remove(packet.incarnation);
            self.hello_sender.send_soon();
        }
        if renamed || !was_received || before != (peer.can_take_over(), peer.is_serving(), peer.unread_buckets) {
            self.dirty.extend(peer.claims.iter().map(|(lb_ip, _)| lb_ip));
            self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
        }
        if !self.is_listening(now, &context.config) {
            // This node could not claim these addresses before. It may be able to, now that it has heard a peer.
            self.dirty.extend(self.orphans.iter().filter(|(_, since)| since.is_none()).map(|(lb_ip, _)| lb_ip));
        }
        self.hello_sender.receive_requests(packet);
        self.record_path(context, path, packet);
        if state_changed {
            self.update_peer_states(context);
        }
        true
    }

    fn admission_of(&self, now: Duration, packet: &Packet) -> Admission {
        let (incarnation, sequence) = (self.hello_sender.incarnation, self.hello_sender.sequence);
        let is_echoed = || handshake::is_echoed(&packet.echoes, incarnation, sequence);
        match self.peers.get(&packet.node) {
            Some(peer) if peer.incarnation == packet.incarnation => {
                if !peer.is_new(packet) {
                    Admission::Replayed
                } else if peer.liveness.is_heard(now) || peer.liveness.is_vouched(now) || is_echoed() {
                    Admission::Known
                } else {
                    Admission::Unproven
                }
            }
            known => {
                let since = known.map(|peer| peer.liveness.last_heard);
                let vouched = self.handshakes.is_vouched(now, packet.incarnation, since);
                if vouched || is_echoed() { Admission::New } else { Admission::Unproven }
            }
        }
    }

    /// Adds a new peer or incarnation. Returns whether there was room for it.
    pub(super) fn admit(&mut self, context: &mut Context, path: Path, packet: &Packet) -> bool {
        let (now, multiplier) = (context.now, context.config.multiplier);
        let is_full = self.peers.len() >= MAX_PEERS;
        match self.peers.entry(packet.node.clone()) {
            Entry::Occupied(mut known) => {
                self.dirty.extend(known.get_mut().restart(now, path, packet, multiplier));
                // The former incarnation may have been leaving or blind. Then the new one may be the first that can
                // take these addresses over.
                self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
            }
            Entry::Vacant(_) if is_full => {
                context.counters.dropped.too_many_peers += 1;
                return false;
            }
            Entry::Vacant(place) => {
                place.insert(Peer::new(now, path, packet, multiplier));
            }
        }
        let freed = self.conflicts.forget_hosts(packet.mac);
        context.reports_changed |= !freed.is_empty();
        self.dirty.extend(freed);
        self.handshakes.remove(packet.incarnation);
        // The peer may wait for a proof that this node is alive.
        self.hello_sender.send_soon();
        true
    }

    /// Reports another speaker with the name of this node. Does not report the packets of this node itself: some links
    /// reflect flooded frames.
    fn report_duplicate(&mut self, context: &mut Context, mac: MacAddr, packet: &Packet) {
        let other = packet.incarnation != self.hello_sender.incarnation;
        // Each incarnation is reported once, because its packets may be replayed.
        if other && self.duplicate.replace(packet.incarnation) != Some(packet.incarnation) {
            context.events.push(Event::DuplicateNode { link: self.link.name.clone(), mac });
        }
    }

    /// Probes peers whose Hello is late, if few other peers can vouch for them, until their window ends.
    pub(super) fn probe_late_peers(&mut self, now: Duration) {
        if self.live_peers > MAX_VOUCHERS_PROBED + 1 {
            return;
        }
        let present = self.peers.values_mut().filter(|peer| peer.is_probed(now));
        for peer in present.filter(|peer| peer.liveness.probe_due() <= now) {
            self.hello_sender.probes.push(hello::id(peer.incarnation));
            peer.liveness.record_probe(now);
        }
    }

    /// When to probe the next peer whose Hello is overdue. The other peers are checked when this node sends its own
    /// Hello, so that the loop does not wake for them.
    pub(super) fn next_probe(&self, now: Duration) -> Option<Duration> {
        let few = self.live_peers <= MAX_VOUCHERS_PROBED + 1;
        let present = self.peers.values().filter(|peer| few && peer.is_probed(now));
        let late = present.filter(|peer| peer.liveness.age(now) >= peer.liveness.interval);
        late.map(|peer| peer.liveness.probe_due()).min()
    }

    /// Records when the sender of `packet` last heard each peer.
    fn record_vouchers(&mut self, now: Duration, packet: &Packet) {
        let heard = &packet.heard.peers;
        let (voucher, own_id) = (hello::id(packet.incarnation), hello::id(self.hello_sender.incarnation));
        let mut known = usize::from(heard.binary_search_by_key(&own_id, |heard| heard.id).is_ok());
        for other in self.peers.values_mut() {
            let id = hello::id(other.incarnation);
            // The list is sorted by id. A peer that sends an unsorted list vouches for none.
            if let Ok(at) = heard.binary_search_by_key(&id, |heard| heard.id) {
                other.record_voucher(now, voucher, now.saturating_sub(heard[at].age));
                known += 1;
            }
        }
        if known < heard.len() {
            self.record_unknown_speakers(now, voucher, packet);
        }
        for heard in heard {
            self.handshakes.record_voucher(heard.id, now.saturating_sub(heard.age));
        }
    }
}
