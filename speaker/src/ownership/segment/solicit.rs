//! Solicits the nodes of silent peers by ARP or NDP: see [`crate::peers::reachability`].
//!
//! The solicited address is the one that the peer sends its Hellos from. It is on the same link, so the kernel of the
//! peer's node answers for it, whatever the peer does.

use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Segment};
use crate::peers::peer::Peer;
use crate::wire::frame::{Channel, Frame};
use crate::wire::{arp, ndp};
use crds::MacAddr;
use netlink::links::Link;

impl Segment {
    /// Sends the due solicitations.
    pub fn solicit_silent_nodes(&mut self, context: &mut Context) {
        let Self { peers, link, .. } = self;
        for peer in peers.values_mut() {
            let due = peer.reachability.due(context.now, &peer.liveness);
            if peer.leaving || due.is_none_or(|due| context.now < due) {
                continue;
            }
            let Some(frame) = solicitation(link, peer) else { continue };
            peer.reachability.record_solicitation(context.now);
            context.frames.push(frame);
        }
    }

    /// When the next solicitation is due, or the result of the last ones changes. A peer whose next Hello is not due
    /// yet does not count: its Hello usually arrives in time, and waits in a socket without waking the loop.
    pub(super) fn next_solicitation(&self, now: Duration) -> Option<Duration> {
        let late = |peer: &&Peer| now >= peer.liveness.silent_since() + peer.liveness.interval;
        let solicitable = self.peers.values().filter(late).filter(|peer| is_solicitable(&self.link, peer));
        solicitable.filter_map(|peer| peer.reachability.next_deadline(now, &peer.liveness)).min()
    }

    /// Whether an answer to a solicitation may arrive.
    pub(super) fn is_soliciting(&self) -> bool {
        self.peers.values().any(|peer| peer.reachability.is_solicited())
    }

    /// Records an answer to a solicitation. It also proves that this node can hear.
    pub(super) fn receive_answer(&mut self, now: Duration, host: Option<(MacAddr, IpAddr)>) {
        let Some((mac, address)) = host else { return };
        let mut is_answer = false;
        for peer in self.peers.values_mut().filter(|peer| peer.mac == mac && peer.address == Some(address)) {
            is_answer |= peer.reachability.record_answer(now, &peer.liveness);
        }
        if is_answer {
            self.record_hearing(now);
        }
    }

    /// Whether it is too early to conclude that the node of a silent peer is dead.
    pub(super) fn may_answer(&self, now: Duration, peer: &Peer) -> bool {
        is_solicitable(&self.link, peer) && peer.reachability.is_undecided(now, &peer.liveness)
    }
}

fn is_solicitable(link: &Link, peer: &Peer) -> bool {
    !peer.leaving && peer.address.is_some_and(|to| own_address(link, to).is_some())
}

/// The own address from which to solicit another one on the link. `None` if the link has no address of the family. Some
/// hosts answer only requests from their own subnet (`arp_ignore`).
fn own_address(link: &Link, to: IpAddr) -> Option<IpAddr> {
    let mut same_family = link.addresses.iter().filter(|own| own.addr().is_ipv4() == to.is_ipv4());
    let first = same_family.clone().next();
    same_family.find(|own| own.contains(&to)).or(first).map(|own| own.addr())
}

fn solicitation(link: &Link, peer: &Peer) -> Option<Frame> {
    let to = peer.address?;
    let (channel, bytes) = match (own_address(link, to)?, to) {
        (IpAddr::V4(own), IpAddr::V4(to)) => (Channel::Arp, arp::unicast_request((link.mac, own), (peer.mac, to))),
        (IpAddr::V6(own), IpAddr::V6(to)) => (Channel::Ndp, ndp::unicast_solicitation((link.mac, own), (peer.mac, to))),
        _ => return None,
    };
    Some(Frame { link: link.index, channel, bytes })
}
