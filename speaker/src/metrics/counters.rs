//! Counters of the speaker, since its start.

use std::time::Duration;

use crate::metrics::Takeovers;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub arp: FrameCounters,
    pub ndp: FrameCounters,
    /// Packets sent to peers.
    pub packets_sent: u64,
    /// Accepted packets of peers.
    pub packets_received: u64,
    pub dropped: Dropped,
    /// Addresses that this node began to announce.
    pub announced: u64,
    /// The takeovers among the begun announcements.
    pub takeovers: Takeovers,
    /// Addresses that this node stopped announcing.
    pub withdrawn: u64,
    /// How often a peer became deaf or dead.
    pub peers_lost: u64,
    /// The nodes whose agent is silent now, and whose kernel answers.
    pub silent_agents: u64,
    /// How often the loop was late by more than an interval.
    pub stalls: u64,
    /// The greatest delay of the loop.
    pub late_max: Duration,
    /// Frames that the kernel refused to send.
    pub send_failed: u64,
}

/// Frames of ARP, or of NDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounters {
    /// Answered requests or solicitations for announced addresses.
    pub answered: u64,
    pub malformed: u64,
    /// Frames of hosts that use an address which this node announces or probes.
    pub conflicts: u64,
    /// Probes sent before an address was announced for the first time.
    pub probes: u64,
    /// Gratuitous ARP frames sent, in both forms, or unsolicited NAs sent.
    pub gratuitous: u64,
}

/// Dropped packets, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Not a packet of a speaker, or damaged.
    pub malformed: u64,
    /// Of an unsupported version of the protocol.
    pub version: u64,
    /// Of another cluster.
    pub cluster: u64,
    /// Without a seal by a known key.
    pub unsealed: u64,
    /// With a wrong seal, or from a MAC address other than the sealed one.
    pub forged: u64,
    /// Received before, or older than a received packet of the same speaker: replayed or overtaken.
    pub replayed: u64,
    /// From a speaker that has not yet proved that it is alive. A starting speaker causes a few of these; many of them
    /// are replayed packets.
    pub unproven: u64,
    /// With the name of this node: another speaker uses it, or the link reflects the packets of this node.
    pub duplicate_node: u64,
    /// From a new peer on a link that already has the maximum number of peers.
    pub too_many_peers: u64,
    /// Received while the loop was stalled.
    pub backlog: u64,
}
