//! The observation of each node on a segment. [`crate::peers::deaths`] derives the dead nodes from the observations.

use std::time::Duration;

use super::Segment;
use crate::config::Config;
use crate::peers::deaths::Observation;
use crate::peers::liveness::PeerState;
use crate::peers::peer::Peer;
use crds::MacAddr;

impl Segment {
    /// Whether no known peer is dead.
    pub fn is_complete(&self) -> bool {
        self.peers.values().all(|peer| peer.state != PeerState::Dead)
    }

    /// The observation of each known peer.
    pub fn observations(&self, now: Duration, config: &Config) -> impl Iterator<Item = (&str, Observation)> {
        let listening = self.is_listening(now, config);
        // A peer heard just now shows that the silence of others is not the start of this node's own isolation.
        let is_witness =
            move |peer: &Peer| peer.is_serving() && peer.liveness.is_fresh(now) && peer.liveness.hears_us(now);
        let confirmed = !listening && self.peers.values().any(is_witness);
        self.peers.iter().map(move |(node, peer)| {
            let observation = match peer.state {
                _ if peer.leaving => Observation::Left,
                PeerState::Alive | PeerState::Deaf => Observation::Present,
                PeerState::Dead if peer.liveness.is_vouched(now) => Observation::Present,
                PeerState::Dead if peer.reachability.is_answering(now, &peer.liveness) => Observation::Answering,
                PeerState::Dead if self.may_answer(now, peer) => Observation::Undecided,
                PeerState::Dead => {
                    let hears_outsiders = || self.hears_outsiders_since(now, peer, node_overdue_since(peer));
                    let only_peer = || !listening && self.peers.len() == 1 && hears_outsiders();
                    Observation::Silent { confirmed: confirmed || only_peer() }
                }
            };
            (node.as_str(), observation)
        })
    }

    /// Records when a frame of ARP or NDP proved that this node can hear other hosts. This matters only while there is
    /// a single peer. Only two frames are recorded: the first one after that peer fell silent, and the first one after
    /// its kernel fell silent.
    pub(super) fn record_outsider(&mut self, now: Duration, frame: &[u8]) {
        // Frames on a bridge prove nothing: they may be from pods or virtual machines of this node.
        let mut peers = self.peers.values();
        let (Some(peer), None, false) = (peers.next(), peers.next(), self.link.is_bridge) else { return };
        let overdue = node_overdue_since(peer);
        if now < overdue || self.outsider_heard_at.is_some_and(|at| at >= overdue) {
            return;
        }
        let source = frame.get(6..).and_then(|bytes| bytes.first_chunk::<6>()).map(|bytes| MacAddr::from(*bytes));
        if source.is_some_and(|mac| mac != self.link.mac && mac != peer.mac) {
            self.outsider_heard_at = Some(now);
        }
    }

    /// Records that the kernel of the only peer's node answered. Only the first answer after the peer fell silent counts.
    pub(super) fn record_hearing(&mut self, now: Duration) {
        let mut peers = self.peers.values();
        let (Some(peer), None) = (peers.next(), peers.next()) else { return };
        if self.outsider_heard_at.is_none_or(|at| at < overdue_since(peer)) {
            self.outsider_heard_at = Some(now);
        }
    }

    /// Whether the only peer is silent while another host, or the kernel of its node, is heard.
    pub(super) fn hears_outsiders_alone(&self, now: Duration) -> bool {
        let is_silent =
            |peer: &Peer| peer.state == PeerState::Dead && self.hears_outsiders_since(now, peer, overdue_since(peer));
        self.peers.len() == 1 && self.peers.values().all(is_silent)
    }

    /// Whether another host was heard after `overdue`, and the peer stayed silent for a window after that. The window
    /// is needed because other hosts may be heard first when a cut ends.
    fn hears_outsiders_since(&self, now: Duration, peer: &Peer, overdue: Duration) -> bool {
        self.outsider_heard_at.is_some_and(|at| at >= overdue && now >= at + peer.liveness.window())
    }
}

/// The time since which a Hello of the peer is overdue.
fn overdue_since(peer: &Peer) -> Duration {
    peer.liveness.last_heard + peer.liveness.interval * 3 / 2
}

/// The time since which a Hello of the peer is overdue, and an answer of its kernel if it has answered since.
fn node_overdue_since(peer: &Peer) -> Duration {
    let kernel = peer.reachability.overdue_since(&peer.liveness);
    kernel.map_or(overdue_since(peer), |kernel| kernel.max(overdue_since(peer)))
}
