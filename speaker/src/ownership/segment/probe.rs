//! What a segment does about those who are no peers and use its addresses ([`crate::announce::probe`]), and the frames with which
//! it announces one.

use std::net::IpAddr;

use super::{Context, Segment};
use crate::announce::schedule::Form;
use crate::metrics::events::{Counters, Event, Neighbours};
use crate::wire::frame::{Channel, Frame};
use crate::wire::{arp, ndp};
use crds::MacAddr;

impl Segment {
    /// Asks whether somebody has the addresses that we would announce for the first time.
    pub fn ask(&mut self, context: &mut Context<'_>) {
        let (link, mac) = (self.link.index, self.link.mac);
        for lb_ip in self.strangers.take_due(context.now) {
            counters(context.counters, lb_ip).probes += 1;
            context.frames.push(match lb_ip {
                IpAddr::V4(lb_ip) => Frame { link, channel: Channel::Arp, bytes: arp::probe(mac, lb_ip) },
                IpAddr::V6(lb_ip) => Frame { link, channel: Channel::Ndp, bytes: ndp::probe(mac, lb_ip) },
            });
        }
    }

    /// Somebody speaks of an address as its own, or as one it would like to have.
    pub(super) fn answered(&mut self, context: &mut Context<'_>, user: Option<(MacAddr, IpAddr)>) {
        let Some((mac, used)) = user else { return };
        if mac == self.link.mac || self.peers.values().any(|peer| peer.mac == mac) {
            return;
        }
        if self.strangers.answered(context.now, used, mac) {
            self.estranged = true;
            counters(context.counters, used).conflicts += 1;
            let link = self.link.name.clone();
            context.events.push(Event::Conflict { lb_ip: used, link, mac, held_back: true });
        }
    }

    /// Somebody who is no peer uses an address that we announce.
    pub(super) fn intruded(&mut self, context: &mut Context<'_>, lb_ip: IpAddr, mac: MacAddr) {
        counters(context.counters, lb_ip).conflicts += 1;
        let reaction = self.strangers.intruded(context.now, lb_ip, mac);
        if reaction.is_news {
            self.estranged = true;
            let link = self.link.name.clone();
            context.events.push(Event::Conflict { lb_ip, link, mac, held_back: false });
        }
        // Not while we may be the one that was away.
        if reaction.defend && context.now >= self.hush_until(context.config) {
            self.announce_one(context, lb_ip, Form::Both);
        }
    }

    /// Announces an address once, unasked.
    pub(super) fn announce_one(&self, context: &mut Context<'_>, lb_ip: IpAddr, form: Form) {
        let (link, mac) = (self.link.index, self.link.mac);
        match lb_ip {
            IpAddr::V4(lb_ip) => {
                let request = (form != Form::Reply).then(|| arp::gratuitous_request(mac, lb_ip));
                let reply = (form != Form::Request).then(|| arp::gratuitous_reply(mac, lb_ip));
                for bytes in request.into_iter().chain(reply) {
                    context.counters.arp.unasked += 1;
                    context.frames.push(Frame { link, channel: Channel::Arp, bytes });
                }
            }
            // There is only one form.
            IpAddr::V6(_) if form == Form::Reply => {}
            IpAddr::V6(lb_ip) => {
                context.counters.ndp.unasked += 1;
                let bytes = ndp::unsolicited_advertisement(mac, lb_ip);
                context.frames.push(Frame { link, channel: Channel::Ndp, bytes });
            }
        }
    }

    /// Whether strangers have changed since this was last asked.
    pub fn take_estranged(&mut self) -> bool {
        std::mem::take(&mut self.estranged)
    }
}

fn counters(counters: &mut Counters, lb_ip: IpAddr) -> &mut Neighbours {
    if lb_ip.is_ipv4() { &mut counters.arp } else { &mut counters.ndp }
}
