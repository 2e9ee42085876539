//! Addresses that this node took over from another one: why, and how long that one had been silent by then. Pure.
//!
//! The silence is what clients notice, but for one interval at most: the one that was silent may have died at any moment
//! after its last Hello.

use std::time::Duration;

use crate::ownership::claims::Claim;
use crate::peers::liveness::Standing;
use crate::peers::peer::Peer;

/// Why an address was another node's no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// That node was not heard any more.
    Died,
    /// It heard nobody.
    Deaf,
    /// It was about to go, and said so.
    Left,
    /// It left the address to somebody else, and went on until it was taken.
    Ceded,
    /// It had given it up already.
    Released,
}

impl Cause {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Died, Self::Deaf, Self::Left, Self::Ceded, Self::Released];

    /// Why `peer`, which has or had this claim, has the address no more.
    pub fn of(peer: &Peer, claim: Claim) -> Self {
        match peer.standing {
            _ if peer.leaving => Self::Left,
            Standing::Dead => Self::Died,
            _ if !claim.held => Self::Released,
            Standing::Deaf => Self::Deaf,
            Standing::Alive => Self::Ceded,
        }
    }

    /// One word for logs and metrics.
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

/// How an address came here from another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which node had it before.
    pub from: String,
    /// Why it is that node's no more.
    pub cause: Cause,
    /// How long that node had not been heard when the address was announced from here; before that, when it was claimed.
    pub silence: Duration,
    /// When that node was heard last, if the address was not announced from here yet.
    unannounced: Option<Duration>,
}

impl Move {
    /// An address was announced here that a node had before which had been silent for so long.
    pub fn new(from: &str, cause: Cause, silence: Duration) -> Self {
        Self { from: from.to_owned(), cause, silence, unannounced: None }
    }

    /// An address is claimed that a node had before which was `heard` last at that time.
    pub(crate) fn begin(now: Duration, from: &str, cause: Cause, heard: Duration) -> Self {
        Self { unannounced: Some(heard), ..Self::new(from, cause, now.saturating_sub(heard)) }
    }

    /// The address is announced from here. Returns whether that is the first time.
    pub(crate) fn announce(&mut self, now: Duration) -> bool {
        let heard = self.unannounced.take();
        if let Some(heard) = heard {
            self.silence = now.saturating_sub(heard);
        }
        heard.is_some()
    }

    /// Whether the address was announced from here.
    pub(crate) fn is_announced(&self) -> bool {
        self.unannounced.is_none()
    }
}

/// How long those had been silent from whom addresses were taken over, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takeovers([Silences; Cause::ALL.len()]);

/// How long somebody had been silent, each time: a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silences {
    /// How often it was no longer than each of [`Silences::BOUNDS`] and longer than the one before; last how often it was
    /// longer than all.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Silences {
    /// In milliseconds: as usual a node is dead after 150.
    pub const BOUNDS: [u64; 9] = [50, 100, 150, 200, 250, 500, 1_000, 2_500, 10_000];
}

impl Takeovers {
    /// An address was taken over from somebody who had been silent for so long.
    pub fn observe(&mut self, cause: Cause, silence: Duration) {
        let Silences { counts, sum } = &mut self.0[cause as usize];
        let at = Silences::BOUNDS.iter().position(|bound| silence <= Duration::from_millis(*bound));
        counts[at.unwrap_or(Silences::BOUNDS.len())] += 1;
        *sum += silence;
    }

    /// Those with this cause.
    pub fn by(&self, cause: Cause) -> &Silences {
        &self.0[cause as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_as_long_as_a_bound_counts_below_it() {
        let mut takeovers = Takeovers::default();
        for silence in [0, 150, 151, 10_000, 10_001] {
            takeovers.observe(Cause::Died, Duration::from_millis(silence));
        }
        let mut counts = [0; 10];
        (counts[0], counts[2], counts[3], counts[8], counts[9]) = (1, 1, 1, 1, 1);
        assert_eq!(*takeovers.by(Cause::Died), Silences { counts, sum: Duration::from_millis(20_302) });
        assert_eq!(*takeovers.by(Cause::Ceded), Silences::default());
    }
}
