//! The identity of this speaker, and the times of its protocol.

use std::time::Duration;

use model::stable_hash;

/// The identity of this speaker, and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The hash of the cluster's identity.
    pub cluster: u64,
    pub node: String,
    /// A random number, new at each start.
    pub incarnation: u64,
    /// The interval of Hellos while a link has few speakers (see [`crate::peers::interval`]).
    pub interval: Duration,
    /// The number of missed Hellos after which a peer is dead.
    pub multiplier: u32,
}

impl Config {
    /// The default interval of Hellos. A dead node is detected within 150 ms. TCP retransmits after 200 ms, so an open
    /// connection needs a single retransmission. The cost is 20 small packets per second.
    pub const INTERVAL: Duration = Duration::from_millis(50);

    /// The default number of missed Hellos after which a peer is dead. Networks lose one or two packets now and then.
    pub const MULTIPLIER: u32 = 3;

    /// The speaker of `node`, with default times. `cluster` is the UID of the namespace `kube-system`.
    pub fn new(cluster: &str, node: &str, incarnation: u64) -> Self {
        Self {
            cluster: stable_hash::hash(cluster.as_bytes()),
            node: node.into(),
            incarnation,
            interval: Self::INTERVAL,
            multiplier: Self::MULTIPLIER,
        }
    }

    /// How long this node listens before it claims addresses, if peers send Hellos at this interval. In this time each
    /// peer sends a Hello, even if one of its Hellos is lost, and answers a request for its claims.
    pub(crate) fn listening_time(&self, interval: Duration) -> Duration {
        interval * (self.multiplier + 1)
    }

    /// How long this node waits for each better candidate. That candidate may see a change one interval later than this
    /// node, and its Hello may be lost.
    pub(crate) fn step_in_delay(&self, interval: Duration) -> Duration {
        interval * 2
    }

    /// How long this node sends a claim that has ended: two windows and two intervals. After that this node knows which
    /// peers do not hear it.
    pub(crate) fn tombstone_ttl(&self, interval: Duration) -> Duration {
        interval * (2 * self.multiplier + 2)
    }

    /// The maximum time for which a stopping speaker waits until peers have taken over.
    pub(crate) fn handover_timeout(&self, interval: Duration) -> Duration {
        interval * self.multiplier + self.step_in_delay(interval) * 2
    }
}
