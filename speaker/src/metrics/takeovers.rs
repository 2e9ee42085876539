//! Takeovers: addresses that this node took over from another node, why, and how long that node had been silent.
//!
//! The outage of clients is as long as the silence, or shorter by at most one interval: the node may have died at any
//! moment after its last Hello.

use std::time::Duration;

use crate::ownership::claims::Claim;
use crate::peers::liveness::PeerState;
use crate::peers::peer::Peer;

/// Why a node lost an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The node was no longer heard.
    Died,
    /// The node heard no peer.
    Deaf,
    /// The speaker of the node was shut down, or left the link.
    Left,
    /// The node ceded the address, and announced it until it was taken over.
    Ceded,
    /// The node had withdrawn the address before.
    Released,
}

impl Cause {
    pub const ALL: [Self; 5] = [Self::Died, Self::Deaf, Self::Left, Self::Ceded, Self::Released];

    /// Why `peer` lost an address. `claim` is its last claim to the address.
    pub fn from_peer(peer: &Peer, claim: Claim) -> Self {
        match peer.state {
            _ if peer.leaving => Self::Left,
            PeerState::Dead => Self::Died,
            _ if !claim.active => Self::Released,
            PeerState::Deaf => Self::Deaf,
            PeerState::Alive => Self::Ceded,
        }
    }

    /// The value in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Deaf => "deaf",
            Self::Left => "left",
            Self::Ceded => "ceded",
            Self::Released => "released",
        }
    }
}

/// How an address came to this node from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The former owner.
    pub from: String,
    /// Why it lost the address.
    pub cause: Cause,
    /// The time from the last Hello of the former owner until this node announced the address. Before the announcement,
    /// it is the time until the claim.
    pub silence: Duration,
    /// When the former owner was last heard; `None` once this node has announced the address.
    last_heard: Option<Duration>,
}

impl Move {
    /// A move whose address is already announced. The former owner had been silent for this time.
    pub fn new(from: &str, cause: Cause, silence: Duration) -> Self {
        Self { from: from.to_owned(), cause, silence, last_heard: None }
    }

    /// A move whose address is claimed but not announced yet. The former owner was last heard at `last_heard`.
    pub(crate) fn begin(now: Duration, from: &str, cause: Cause, last_heard: Duration) -> Self {
        Self { last_heard: Some(last_heard), ..Self::new(from, cause, now.saturating_sub(last_heard)) }
    }

    /// Records an announcement of the address. Returns whether it is the first one.
    pub(crate) fn record_announced(&mut self, now: Duration) -> bool {
        let last_heard = self.last_heard.take();
        if let Some(last_heard) = last_heard {
            self.silence = now.saturating_sub(last_heard);
        }
        last_heard.is_some()
    }

    /// Whether this node has announced the address.
    pub(crate) fn is_announced(&self) -> bool {
        self.last_heard.is_none()
    }
}

/// The silences before takeovers, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takeovers([SilenceHistogram; Cause::ALL.len()]);

/// A histogram of silences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SilenceHistogram {
    /// The number of silences per bucket. Each of [`SilenceHistogram::BOUNDS`] is the upper bound of one; the last
    /// bucket has no bound.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// The sum of all silences.
    pub sum: Duration,
}

impl SilenceHistogram {
    /// The upper bounds of the buckets, in milliseconds. By default a node is dead after 150 ms.
    pub const BOUNDS: [u64; 9] = [50, 100, 150, 200, 250, 500, 1_000, 2_500, 10_000];
}

impl Takeovers {
    pub fn observe(&mut self, cause: Cause, silence: Duration) {
        let SilenceHistogram { counts, sum } = &mut self.0[cause as usize];
        let at = SilenceHistogram::BOUNDS.iter().position(|bound| silence <= Duration::from_millis(*bound));
        counts[at.unwrap_or(SilenceHistogram::BOUNDS.len())] += 1;
        *sum += silence;
    }

    pub fn silences(&self, cause: Cause) -> &SilenceHistogram {
        &self.0[cause as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_equal_to_a_bound_counts_below_it() {
        let mut takeovers = Takeovers::default();
        for silence in [0, 150, 151, 10_000, 10_001] {
            takeovers.observe(Cause::Died, Duration::from_millis(silence));
        }
        let mut counts = [0; 10];
        (counts[0], counts[2], counts[3], counts[8], counts[9]) = (1, 1, 1, 1, 1);
        assert_eq!(*takeovers.silences(Cause::Died), SilenceHistogram { counts, sum: Duration::from_millis(20_302) });
        assert_eq!(*takeovers.silences(Cause::Ceded), SilenceHistogram::default());
    }
}
