//! What a segment makes of the packets of peers: who is believed, and what follows.

use std::collections::btree_map::Entry;
use std::time::Duration;

use super::{Context, MAX_PEERS, Segment};
use crate::metrics::events::Event;
use crate::peers::liveness::{FEW, Standing};
use crate::peers::peer::Peer;
use crate::wire::hello::{self, Packet};
use crds::MacAddr;

/// What becomes of a packet that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// It is from a peer that is known and was heard of late, or has proved that it is there.
    Known,
    /// It is from a peer that wasn't known, or of another incarnation, and has proved that it is there.
    New,
    /// Nobody knows whether its sender is there.
    Unproven,
    /// It is no news.
    Replayed,
}

impl Segment {
    /// A frame with a packet of somebody of our cluster came in.
    pub fn hear(&mut self, context: &mut Context<'_>, mac: MacAddr, packet: &Packet) {
        let (now, config) = (context.now, context.config);
        let dropped = &mut context.counters.dropped;
        if packet.mac != mac {
            // It was sent again by somebody else.
            dropped.forged += 1;
            return;
        }
        if packet.node == config.node {
            dropped.twin += 1;
            self.tell_of_twin(context, mac, packet);
            return;
        }
        match self.judge(now, packet) {
            Judgement::Known => {}
            Judgement::New => {
                if !self.admit(context, mac, packet) {
                    return;
                }
            }
            Judgement::Unproven => {
                context.counters.dropped.unproven += 1;
                if self.meetings.meet(now, packet.incarnation, packet.sequence) {
                    self.greeting.hasten();
                }
                return;
            }
            Judgement::Replayed => {
                context.counters.dropped.replayed += 1;
                return;
            }
        }
        let peer = self.peers.get_mut(&packet.node).expect("invariant: it is known, or was admitted");
        let before = (peer.takes(), peer.holds(), peer.unread.0, peer.liveness.is_heard(now));
        let renamed = peer.link != packet.link;
        let us = (hello::id(self.greeting.incarnation()), config.multiplier);
        match peer.receive(now, mac, packet, us) {
            Ok(changed) => self.dirty.extend(changed),
            Err(_) => {
                context.counters.dropped.replayed += 1;
                return;
            }
        }
        context.counters.packets_received += 1;
        let changed_standing = peer.liveness.standing(now) != peer.standing;
        if !before.3 {
            // It proved that it is there. It may wait for the same from us.
            self.meetings.forget(packet.incarnation);
            self.greeting.hasten();
        }
        if renamed || before != (peer.takes(), peer.holds(), peer.unread.0, true) {
            self.dirty.extend(peer.claims.iter().map(|(lb_ip, _)| lb_ip));
            self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
        }
        if !self.is_listening(now, config) {
            // Those we don't dare to claim: now somebody has been heard.
            self.dirty.extend(self.orphans.iter().filter(|(_, since)| since.is_none()).map(|(lb_ip, _)| lb_ip));
        }
        self.vouched(now, packet);
        self.greeting.asked(&packet.wanted);
        self.greeting.answer(&packet.probed);
        if changed_standing {
            self.look(context);
        }
    }

    fn judge(&self, now: Duration, packet: &Packet) -> Judgement {
        let repeats = || self.greeting.is_repeated(&packet.met);
        match self.peers.get(&packet.node) {
            Some(peer) if peer.incarnation == packet.incarnation => {
                if peer.check(packet).is_err() {
                    Judgement::Replayed
                } else if peer.liveness.is_heard(now) || peer.liveness.is_vouched(now) || repeats() {
                    Judgement::Known
                } else {
                    Judgement::Unproven
                }
            }
            known => {
                let since = known.map(|peer| peer.liveness.last());
                let vouched = self.meetings.is_vouched(now, packet.incarnation, since);
                if vouched || repeats() { Judgement::New } else { Judgement::Unproven }
            }
        }
    }

    /// A speaker that we didn't know is there. Returns whether there is room for it.
    fn admit(&mut self, context: &mut Context<'_>, mac: MacAddr, packet: &Packet) -> bool {
        let (now, multiplier) = (context.now, context.config.multiplier);
        let crowded = self.peers.len() >= MAX_PEERS;
        match self.peers.entry(packet.node.clone()) {
            Entry::Occupied(mut known) => {
                self.dirty.extend(known.get_mut().restart(now, mac, packet, multiplier));
                // The former one may have left, or been blind.
                self.dirty.extend(self.orphans.keys().chain(self.ceding.keys()));
            }
            Entry::Vacant(_) if crowded => {
                context.counters.dropped.crowded += 1;
                return false;
            }
            Entry::Vacant(place) => {
                place.insert(Peer::new(now, mac, packet, multiplier));
            }
        }
        self.meetings.forget(packet.incarnation);
        // It may wait for a proof that we are there.
        self.greeting.hasten();
        true
    }

    /// Another speaker has our name, unless it is ourselves that we hear: some links reflect what they flood.
    fn tell_of_twin(&mut self, context: &mut Context<'_>, mac: MacAddr, packet: &Packet) {
        let other = packet.incarnation != self.greeting.incarnation();
        // Once for each: it may be recorded, and come again and again.
        if other && self.twin.replace(packet.incarnation) != Some(packet.incarnation) {
            context.events.push(Event::Twin { link: self.link.name.clone(), mac });
        }
    }

    /// Asks those to answer at once who are late, if hardly anybody else could vouch for them.
    pub(super) fn probe(&mut self, now: Duration) {
        if self.live > FEW + 1 {
            return;
        }
        let greeting = &mut self.greeting;
        let present = self.peers.values_mut().filter(|peer| peer.standing != Standing::Dead);
        for peer in present.filter(|peer| peer.liveness.probe_due() <= now) {
            greeting.probe(peer.incarnation);
            peer.liveness.probed(now);
        }
    }

    /// When somebody is to be probed. Whose next Hello isn't due yet is looked at when ours is: that is soon enough, and nobody
    /// wakes to find that all is well.
    pub(super) fn probe_due(&self, now: Duration) -> Option<Duration> {
        let present = self.peers.values().filter(|peer| self.live <= FEW + 1 && peer.standing != Standing::Dead);
        let late = present.filter(|peer| peer.liveness.age(now) >= peer.liveness.interval());
        late.map(|peer| peer.liveness.probe_due()).min()
    }

    /// A peer says when it heard the others.
    fn vouched(&mut self, now: Duration, packet: &Packet) {
        let heard = &packet.heard.peers;
        for other in self.peers.values_mut() {
            let id = hello::id(other.incarnation);
            // They are sorted. One who doesn't sort them vouches for nobody.
            if let Ok(at) = heard.binary_search_by_key(&id, |heard| heard.id) {
                other.liveness.vouched(now.saturating_sub(heard[at].age));
            }
        }
        for heard in heard {
            self.meetings.vouched(heard.id, now.saturating_sub(heard.age));
        }
    }
}
