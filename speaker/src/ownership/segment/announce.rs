//! The gratuitous ARP and unsolicited NAs of a segment, and the addresses that it announces.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::resolve::frame_counters;
use super::{Context, Segment};
use crate::announce::schedule::Form;
use crate::config::Config;
use crate::metrics::Move;
use crate::ownership::claims::Claim;
use crate::wire::{arp, datagram, ndp};

impl Segment {
    /// Sends gratuitous ARP or unsolicited NAs for at most `limit` due addresses. Returns the number of addresses.
    pub fn announce_due(&mut self, context: &mut Context, limit: usize) -> usize {
        if context.now < self.quiet_until(&context.config) {
            return 0;
        }
        let mut schedule = std::mem::take(&mut self.schedule);
        // Without a quorum this node announces an address only if
        // - it claimed the address without a quorum, to take over from a dead node,
        // - a peer has just begun or ceased to claim the address, or
        // - no peer is a candidate.
        // In the second case the owner must be the last node to announce: hosts keep the last announced MAC address.
        // Any other announcement might take an address back from a node that this node does not hear.
        let is_allowed = |lb_ip: IpAddr| {
            self.own_claim(lb_ip).is_some_and(|claim| !claim.backed)
                || self.insist_until.get(&lb_ip).is_some_and(|until| context.now < *until)
                || self.is_backed(context, lb_ip)
        };
        let due = schedule.take_due(context.now, limit, is_allowed);
        self.schedule = schedule;
        for (lb_ip, form) in &due {
            self.announce_one(context, *lb_ip, *form);
            let moved = self.moves.get_mut(lb_ip);
            context.reports_changed |= moved.is_some_and(|moved| moved.record_announced(context.now));
        }
        due.len()
    }

    /// Sends gratuitous ARP or an unsolicited NA for an address once.
    pub(super) fn announce_one(&self, context: &mut Context, lb_ip: IpAddr, form: Form) {
        let mac = self.link.mac;
        let frames = match lb_ip {
            IpAddr::V4(v4) => [
                (form != Form::Reply).then(|| arp::gratuitous_request(mac, v4)),
                (form != Form::Request).then(|| arp::gratuitous_reply(mac, v4)),
            ],
            // NDP has one form of announcement, which takes the place of the request.
            IpAddr::V6(v6) => [(form != Form::Reply).then(|| ndp::unsolicited_advertisement(mac, v6)), None],
        };
        for bytes in frames.into_iter().flatten() {
            frame_counters(context, lb_ip).gratuitous += 1;
            self.send_resolution(context, lb_ip, bytes);
        }
    }

    /// When the next announcement is due.
    pub fn announcement_due(&self, config: &Config) -> Option<Duration> {
        Some(self.schedule.next_deadline()?.max(self.quiet_until(config)))
    }

    /// The announced addresses to report, each with the takeover by which this node got it. An address that was taken
    /// over is left out while its first announcement waits.
    pub fn reportable(&self, now: Duration) -> impl Iterator<Item = (IpAddr, Claim, Option<&Move>)> {
        let all = self.announced_claims().map(|(lb_ip, claim)| (lb_ip, claim, self.moves.get(&lb_ip)));
        all.filter(move |(lb_ip, _, moved)| {
            moved.is_none_or(Move::is_announced) || !self.schedule.is_waiting(*lb_ip, now)
        })
    }

    /// The IPv6 groups to join: the group of speakers, and the groups to which hosts send solicitations for announced
    /// addresses.
    pub fn multicast_groups(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        let has_v6 = self.link.addresses.iter().any(|own| own.addr().is_ipv6());
        let solicited = self.announced_claims().filter_map(|(lb_ip, _)| match lb_ip {
            IpAddr::V6(v6) => Some(ndp::solicited_node(v6)),
            IpAddr::V4(_) => None,
        });
        has_v6.then_some(datagram::GROUP_V6).into_iter().chain(solicited)
    }
}
