//! What a segment sees of each node, for the question who is dead ([`crate::deaths`]).

use std::time::Duration;

use super::Segment;
use crate::deaths::Sight;
use crate::liveness::Standing;
use crate::machine::Config;
use crate::peer::Peer;
use crate::placement::Mac;

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
                    let alone = || !listening && self.peers.len() == 1 && self.hears_outsiders_since(peer);
                    Sight::Silent { agreed: agreed || alone() }
                }
            };
            (node.as_str(), sight)
        })
    }

    /// A frame of ARP or neighbour discovery came in, maybe from somebody who is no peer. Of interest only where one peer is
    /// all there is.
    pub(super) fn note_outsider(&mut self, now: Duration, frame: &[u8]) {
        let source = frame.get(6..12).and_then(|bytes| bytes.try_into().ok()).map(Mac);
        let is_outsider = |mac: Mac| mac != self.link.mac && self.peers.values().all(|peer| peer.mac != mac);
        if self.peers.len() == 1 && source.is_some_and(is_outsider) {
            self.outsider = Some(now);
        }
    }

    /// Whether somebody who is no peer was heard when this one should have been, and wasn't.
    fn hears_outsiders_since(&self, peer: &Peer) -> bool {
        self.outsider.is_some_and(|at| at >= peer.liveness.last() + peer.liveness.interval() * 3 / 2)
    }
}
