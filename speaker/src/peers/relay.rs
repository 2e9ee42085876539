//! Which packets a peer forwards to nodes that do not hear their sender.
//!
//! Two nodes of a LAN can fail to hear each other although a third node hears both: a switch loses the multicast of one
//! port, a VLAN is missing on one path. Without each other's claims, both would own the same addresses. So the third
//! node forwards their packets:
//!
//! ```text
//!   c -> all      Hello of c                       reaches b, not a
//!   b -> all      Hello, hears: a, c               a has not heard c for a window
//!   a -> all      Hello, relay: b for c            b forwards the packets of c for a while
//!   c -> all      Hello of c                       reaches b
//!   b -> all      relayed (Hello of c)             a applies it; nodes that hear c ignore it
//!   a -> all      Hello, relay: b for c, served    c receives it from b: a knows the claims of c
//! ```
//!
//! - A node requests a relay for a peer that it does not hear, while another peer reports that it hears it.
//! - A relay forwards only packets that it hears itself, so no packet travels further than over one relay, and no two nodes
//!   keep a dead one alive for each other.
//! - A forwarded packet counts for the claims. It does not show that this node hears the sender: this node neither
//!   vouches for the sender nor re-sends frames to it.
//! - A node whose packets are forwarded counts as alive for as long as a peer hears it. All nodes last heard it at the
//!   same time, so its death is noticed as soon as without a relay.

use std::collections::BTreeMap;
use std::time::Duration;

/// A relay forwards the packets of a peer for this many intervals of the last node that requested it, so that a few
/// lost requests have no effect.
pub const SERVED_INTERVALS: u32 = 4;

/// A new speaker is heard by some nodes first, and by the others with one of its next Hellos. After this number of
/// intervals without a packet of it, this node requests a relay.
const UNKNOWN_INTERVALS: u32 = 4;

/// The maximum number of unknown speakers, so that a faulty peer cannot exhaust memory.
const MAX_UNKNOWN: usize = 64;

/// A speaker that only peers have heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnknownSpeaker {
    /// When a peer first listed it.
    since: Duration,
    /// The id of the peer that listed it, and when that peer last heard it.
    voucher: (u32, Duration),
}

/// The speakers that peers list and that are no peers of this node, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownSpeakers(BTreeMap<u32, UnknownSpeaker>);

impl UnknownSpeakers {
    /// Records that the peer `voucher` heard the speaker `id` at `at`.
    pub fn record(&mut self, now: Duration, id: u32, voucher: (u32, Duration)) {
        if let Some(speaker) = self.0.get_mut(&id) {
            speaker.voucher = voucher;
        } else if self.0.len() < MAX_UNKNOWN {
            self.0.insert(id, UnknownSpeaker { since: now, voucher });
        }
    }

    /// Forgets the speakers that are no longer listed, and those with these ids.
    pub fn expire(&mut self, now: Duration, window: Duration, is_known: impl Fn(u32) -> bool) {
        self.0.retain(|id, speaker| now < speaker.voucher.1 + window && !is_known(*id));
    }

    /// The speakers whose packets this node needs, each with the peer that hears it.
    pub fn find_needed(&self, now: Duration, interval: Duration) -> impl Iterator<Item = (u32, u32)> {
        let is_due = move |speaker: &UnknownSpeaker| now >= speaker.since + interval * UNKNOWN_INTERVALS;
        self.0.iter().filter(move |(_, speaker)| is_due(speaker)).map(|(id, speaker)| (*id, speaker.voucher.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn unknown_speaker_needs_a_relay_while_a_peer_lists_it() {
        let mut unknown = UnknownSpeakers::default();
        let needed = |unknown: &UnknownSpeakers, at| unknown.find_needed(ms(at), ms(50)).collect::<Vec<_>>();
        unknown.record(ms(1000), 7, (1, ms(990)));
        assert_eq!((needed(&unknown, 1199), needed(&unknown, 1200)), (vec![], vec![(7, 1)]));
        unknown.record(ms(1200), 7, (2, ms(1190)));
        assert_eq!(needed(&unknown, 1200), [(7, 2)]);
        unknown.expire(ms(1339), ms(150), |_| false);
        assert_eq!(needed(&unknown, 1339), [(7, 2)]);
        unknown.expire(ms(1340), ms(150), |_| false);
        assert_eq!(needed(&unknown, 1340), [], "no peer lists it any longer");
        unknown.record(ms(1400), 7, (1, ms(1400)));
        assert_eq!(needed(&unknown, 1400), [], "it is new again");
        unknown.expire(ms(1400), ms(150), |id| id == 7);
        assert_eq!(unknown, UnknownSpeakers::default());
    }
}
