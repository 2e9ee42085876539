//! What a segment sees of each node, for the question who is dead ([`crate::peers::deaths`]).

use std::time::Duration;

use super::Segment;
use crate::config::Config;
use crate::peers::deaths::Sight;
use crate::peers::liveness::Standing;
use crate::peers::peer::Peer;
use crds::MacAddr;

impl Segment {
    /// Whether everybody is there who was ever heard, and not forgotten yet.
    pub fn is_complete(&self) -> bool {
        self.peers.values().all(|peer| peer.standing != Standing::Dead)
    }

    /// What is seen of each node.
    pub fn sights(&self, now: Duration, config: &Config) -> impl Iterator<Item = (&str, Sight)> {
        let listening = self.is_listening(now, config);
        // Heard just now, so the silence of others isn't the beginning of our own loneliness.
        let is_witness = move |peer: &Peer| peer.holds() && peer.liveness.is_fresh(now) && peer.liveness.hears_us(now);
        let agreed = !listening && self.peers.values().any(is_witness);
        self.peers.iter().map(move |(node, peer)| {
            let sight = match peer.standing {
                _ if peer.leaving => Sight::Left,
                Standing::Alive | Standing::Deaf => Sight::Present,
                Standing::Dead if peer.liveness.is_vouched(now) => Sight::Present,
                Standing::Dead => {
                    let alone = || !listening && self.peers.len() == 1 && self.hears_outsiders_since(now, peer);
                    Sight::Silent { agreed: agreed || alone() }
                }
            };
            (node.as_str(), sight)
        })
    }

    /// A frame of ARP or neighbour discovery came in, maybe from somebody who is no peer. Of interest only where one peer is
    /// all there is, and only the first since that one has been silent.
    pub(super) fn note_outsider(&mut self, now: Duration, frame: &[u8]) {
        // Behind a bridge may be guests of this very node.
        let mut peers = self.peers.values();
        let (Some(peer), None, false) = (peers.next(), peers.next(), self.link.is_bridge) else { return };
        let silent = silent(peer);
        if now < silent || self.outsider.is_some_and(|at| at >= silent) {
            return;
        }
        let source = frame.get(6..).and_then(|bytes| bytes.first_chunk::<6>()).map(|bytes| MacAddr::from(*bytes));
        if source.is_some_and(|mac| mac != self.link.mac && mac != peer.mac) {
            self.outsider = Some(now);
        }
    }

    /// Whether the only peer is silent, and somebody else on the LAN is not.
    pub(super) fn hears_outsiders_alone(&self, now: Duration) -> bool {
        let silent = |peer: &Peer| peer.standing == Standing::Dead && self.hears_outsiders_since(now, peer);
        self.peers.len() == 1 && self.peers.values().all(silent)
    }

    /// Whether somebody who is no peer was heard when this one should have been, and it was not heard for a whole window
    /// after that: when a cut ends, others may be heard first.
    fn hears_outsiders_since(&self, now: Duration, peer: &Peer) -> bool {
        self.outsider.is_some_and(|at| at >= silent(peer) && now >= at + peer.liveness.window())
    }
}

/// Since when a peer should have been heard again.
fn silent(peer: &Peer) -> Duration {
    peer.liveness.last() + peer.liveness.interval() * 3 / 2
}
