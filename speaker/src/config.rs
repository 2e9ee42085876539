//! The identity of this speaker, and the times of its protocol.

use std::time::Duration;

use crate::wire::seal::Authentication;
use model::stable_hash;

/// Who this speaker is, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The identity of the cluster, hashed.
    pub cluster: u64,
    /// The name of this node.
    pub node: String,
    /// A random number, another one at each start.
    pub incarnation: u64,
    /// Whether packets of speakers are sealed.
    pub authentication: Authentication,
    /// How often to say Hello, while there are few speakers on a link (see [`crate::peers::interval`]).
    pub interval: Duration,
    /// After how many missed Hellos a peer is dead.
    pub multiplier: u32,
}

impl Config {
    /// How often to say Hello, unless told otherwise: a dead node is noticed within 150 ms, so that an open connection
    /// loses a single retransmission (after 200 ms), at 20 small packets a second.
    pub const INTERVAL: Duration = Duration::from_millis(50);

    /// After how many missed Hellos a peer is dead, unless told otherwise. One or two are lost now and then.
    pub const MULTIPLIER: u32 = 3;

    /// The speaker of `node` in the cluster of this identity (the UID of its namespace `kube-system`), with the usual
    /// times.
    pub fn new(cluster: &str, node: &str, incarnation: u64, authentication: Authentication) -> Self {
        Self {
            cluster: stable_hash::hash(cluster.as_bytes()),
            node: node.into(),
            incarnation,
            authentication,
            interval: Self::INTERVAL,
            multiplier: Self::MULTIPLIER,
        }
    }

    /// For how long to listen before anything is claimed, where Hellos come so often: whoever is there has spoken, even if
    /// a Hello was lost, and has been asked for what it claims.
    pub(crate) fn listening(&self, pace: Duration) -> Duration {
        pace * (self.multiplier + 1)
    }

    /// How long a better candidate is waited for: it may need an interval to see what we see, and its Hello may be lost.
    pub(crate) fn step_in(&self, pace: Duration) -> Duration {
        pace * 2
    }

    /// How long a claim that is over is told: until one can know who doesn't hear us, which takes two windows.
    pub(crate) fn regret(&self, pace: Duration) -> Duration {
        pace * (2 * self.multiplier + 2)
    }

    /// How long others are waited for to take over, when we go.
    pub(crate) fn farewell(&self, pace: Duration) -> Duration {
        pace * self.multiplier + self.step_in(pace) * 2
    }
}
