//! ARP and NDP on a segment: answers, probes, and conflicts ([`crate::announce::conflicts`]).

use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Quorum, Segment};
use crate::announce::schedule::Form;
use crate::metrics::{Event, FrameCounters};
use crate::wire::arp::{self, Ignored, Verdict};
use crate::wire::frame::{Channel, Frame};
use crate::wire::ndp;
use crds::MacAddr;

/// The minimum time between two defences of an address against a peer.
const DEFEND_INTERVAL: Duration = Duration::from_secs(1);

impl Segment {
    /// Receives a frame of ARP or NDP.
    pub fn receive_resolution(&mut self, context: &mut Context, channel: Channel, frame: &[u8]) {
        self.record_outsider(context.now, frame);
        let is_arp = channel == Channel::Arp;
        if self.is_soliciting() {
            let host = if is_arp { arp::answering_host(frame) } else { ndp::answering_host(frame) };
            self.receive_answer(context.now, host);
        }
        if self.conflicts.is_probing() {
            let user = if is_arp { arp::address_user(frame) } else { ndp::address_user(frame) };
            self.receive_used_address(context, user);
        }
        let is_announced = |lb_ip: IpAddr| self.own_claim(lb_ip).is_some();
        let verdict = if is_arp {
            arp::decide(frame, self.link.mac, |lb_ip| is_announced(lb_ip.into()))
        } else {
            ndp::decide(frame, self.link.mac, |lb_ip| is_announced(lb_ip.into()))
        };
        let counters = if is_arp { &mut context.counters.arp } else { &mut context.counters.ndp };
        match verdict {
            Verdict::Answer(bytes) => {
                counters.answered += 1;
                context.frames.push(Frame { link: self.link.index, channel, bytes });
            }
            Verdict::Conflict { lb_ip, mac } if self.peers.values().any(|peer| peer.mac == mac) => {
                self.defend_against_peer(context, lb_ip);
            }
            Verdict::Conflict { lb_ip, mac } => self.defend_against_host(context, lb_ip, mac),
            Verdict::Ignore(Ignored::Malformed) => counters.malformed += 1,
            Verdict::Ignore(_) => {}
        }
    }

    /// Announces an owned address again, because a peer uses it.
    fn defend_against_peer(&mut self, context: &mut Context, lb_ip: IpAddr) {
        let now = context.now;
        // Two owners that hear each other's announcements must not trigger each other repeatedly.
        if self.last_defended.get(&lb_ip).is_some_and(|at| now < *at + DEFEND_INTERVAL) {
            return;
        }
        self.last_defended.insert(lb_ip, now);
        // A peer that takes over sends its claim in a Hello, and this node withdraws. A peer with a weaker claim does
        // not hear this node, so this node must be the last to announce. A node without a quorum does not announce,
        // because the peer may have a greater claim that this node has not heard.
        if self.quorum != Quorum::Minority {
            self.schedule.start(lb_ip, now);
            self.hello_sender.send_soon();
        }
    }

    /// Reports a host outside the cluster that uses an announced address, and announces the address again.
    fn defend_against_host(&mut self, context: &mut Context, lb_ip: IpAddr, mac: MacAddr) {
        frame_counters(context, lb_ip).conflicts += 1;
        let reaction = self.conflicts.record_conflict(context.now, lb_ip, mac);
        if reaction.is_new_host {
            self.report_conflict(context, lb_ip, mac, false);
        }
        // In the quiet period this node does not announce it: a peer may own the address by now.
        if reaction.defend && context.now >= self.quiet_until(&context.config) {
            self.announce_one(context, lb_ip, Form::Both);
        }
    }

    /// Holds back an address that a host outside the cluster uses or probes.
    fn receive_used_address(&mut self, context: &mut Context, user: Option<(MacAddr, IpAddr)>) {
        let Some((mac, used)) = user else { return };
        if mac == self.link.mac || self.peers.values().any(|peer| peer.mac == mac) {
            return;
        }
        if self.conflicts.record_user(context.now, used, mac) {
            frame_counters(context, used).conflicts += 1;
            self.report_conflict(context, used, mac, true);
        }
    }

    fn report_conflict(&self, context: &mut Context, lb_ip: IpAddr, mac: MacAddr, held_back: bool) {
        context.reports_changed = true;
        context.events.push(Event::Conflict { lb_ip, link: self.link.name.clone(), mac, held_back });
    }

    /// Sends the due probes for addresses to announce for the first time.
    pub fn send_probes(&mut self, context: &mut Context) {
        for lb_ip in self.conflicts.take_due_probes(context.now) {
            let bytes = match lb_ip {
                IpAddr::V4(v4) => arp::probe(self.link.mac, v4),
                IpAddr::V6(v6) => ndp::probe(self.link.mac, v6),
            };
            frame_counters(context, lb_ip).probes += 1;
            self.send_resolution(context, lb_ip, bytes);
        }
    }

    /// Sends a frame of ARP or NDP about `lb_ip`.
    pub(super) fn send_resolution(&self, context: &mut Context, lb_ip: IpAddr, bytes: Vec<u8>) {
        let channel = if lb_ip.is_ipv4() { Channel::Arp } else { Channel::Ndp };
        context.frames.push(Frame { link: self.link.index, channel, bytes });
    }
}

pub(super) fn frame_counters(context: &mut Context, lb_ip: IpAddr) -> &mut FrameCounters {
    if lb_ip.is_ipv4() { &mut context.counters.arp } else { &mut context.counters.ndp }
}
