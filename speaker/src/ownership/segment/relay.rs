//! Requests forwarded packets of peers that this node does not hear, and forwards packets: see [`crate::peers::relay`].

use std::time::Duration;

use super::{Context, Segment};
use crate::metrics::Event;
use crate::peers::peer::{Path, Peer};
use crate::peers::relay::SERVED_INTERVALS;
use crate::wire::codec::MAX_PAYLOAD;
use crate::wire::codec::trailer::MAX_RELAY_REQUESTS;
use crate::wire::hello::{self, Packet, RelayRequest, RelayedPacket};
use crds::MacAddr;

impl Segment {
    /// The requests to send with the next Hello.
    pub(super) fn relay_requests(&mut self, context: &Context) -> Vec<RelayRequest> {
        let now = context.now;
        let (peers, own_id) = (&self.peers, hello::id(self.hello_sender.incarnation));
        let window = self.hello_sender.interval.published * context.config.multiplier;
        let is_peer = |id| id == own_id || peers.values().any(|peer| hello::id(peer.incarnation) == id);
        self.unknown_speakers.expire(now, window, is_peer);
        let unheard = self.peers.values().filter(|peer| !peer.leaving && peer.liveness.needs_relay(now));
        let of_peers = unheard.filter_map(|peer| {
            let (relay, _) = peer.voucher?;
            Some(RelayRequest { relay, id: hello::id(peer.incarnation), is_served: peer.liveness.is_relayed(now) })
        });
        let unknown = self.unknown_speakers.find_needed(now, self.hello_sender.interval.published);
        let of_unknown = unknown.map(|(id, relay)| RelayRequest { relay, id, is_served: false });
        of_peers.chain(of_unknown).take(MAX_RELAY_REQUESTS).collect()
    }

    /// Records the speakers that the sender of `packet` hears, and of which this node has no packet.
    pub(super) fn record_unknown_speakers(&mut self, now: Duration, voucher: u32, packet: &Packet) {
        let own_id = hello::id(self.hello_sender.incarnation);
        for heard in &packet.heard.peers {
            let is_peer = || self.peers.values().any(|peer| hello::id(peer.incarnation) == heard.id);
            if heard.id != own_id && !is_peer() {
                self.unknown_speakers.record(now, heard.id, (voucher, now.saturating_sub(heard.age)));
            }
        }
    }

    /// Records the requests to this node.
    pub(super) fn receive_relay_requests(&mut self, now: Duration, packet: &Packet) {
        let own_id = hello::id(self.hello_sender.incarnation);
        for request in packet.relay_requests.iter().filter(|request| request.relay == own_id) {
            let requested = |peer: &&mut Peer| hello::id(peer.incarnation) == request.id;
            if let Some(peer) = self.peers.values_mut().find(requested) {
                peer.relay_until = peer.relay_until.max(now + packet.interval * SERVED_INTERVALS);
            }
        }
    }

    /// Forwards a packet that this node has heard from its sender, if another peer has requested this.
    pub(super) fn forward(&self, context: &mut Context, packet: &Packet) {
        let is_requested = self.peers.get(&packet.node).is_some_and(|peer| context.now < peer.relay_until);
        let Some(address) = self.link.source_address().filter(|_| is_requested && context.keys.can_seal()) else {
            return;
        };
        let (incarnation, sequence) = (self.hello_sender.incarnation, self.hello_sender.sequence);
        let relayed = RelayedPacket { incarnation, sequence, mac: self.link.mac, packet: packet.clone() };
        let payload = context.keys.seal(context.now, relayed.encode());
        // A speaker that knows no relays leaves no room for the header.
        if payload.len() <= MAX_PAYLOAD {
            self.send_payload(context, address, &payload);
        }
    }

    /// Receives a packet that another speaker forwards, in a frame from `mac`.
    pub fn receive_relayed(&mut self, context: &mut Context, mac: MacAddr, relayed: &RelayedPacket) {
        let (now, packet) = (context.now, &relayed.packet);
        if relayed.mac != mac {
            return context.counters.dropped.forged += 1;
        }
        // A recorded packet has an earlier sequence than the last Hello of the relay.
        let relay = self.peers.values().find(|peer| peer.incarnation == relayed.incarnation);
        if relay.is_none_or(|relay| !relay.liveness.is_heard(now) || relayed.sequence < relay.sequence) {
            return context.counters.dropped.unproven += 1;
        }
        if packet.node == context.config.node {
            return;
        }
        let peer = self.peers.get(&packet.node);
        if peer.is_some_and(|peer| peer.liveness.is_heard(now)) {
            return;
        }
        let is_known = peer.is_some_and(|peer| peer.incarnation == packet.incarnation);
        if is_known || self.admit(context, Path::Relayed, packet) {
            self.apply_packet(context, Path::Relayed, packet);
        }
    }

    /// Records how the last packet of a peer reached this node. A short silence is no fault of the network.
    pub(super) fn record_path(&mut self, context: &mut Context, path: Path, packet: &Packet) {
        let Some(peer) = self.peers.get_mut(&packet.node) else { return };
        let is_relayed = path == Path::Relayed && peer.liveness.is_unheard_for_long(context.now);
        if std::mem::replace(&mut peer.is_relayed, is_relayed) != is_relayed {
            let (node, link) = (packet.node.clone(), self.link.name.clone());
            context.events.push(Event::Path { node, link, relayed: is_relayed });
        }
    }
}
