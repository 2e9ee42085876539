//! What the speaker tells about itself: transitions for the log, counters for metrics.
//!
//! The machine makes them, the shell writes them out: nothing here knows a log or a registry.

use std::net::IpAddr;
use std::time::Duration;

use crate::metrics::takeovers::Takeovers;
use crate::ownership::rules::Reason;
use crate::peers::liveness::Standing;
use crds::MacAddr;

/// A transition. Each is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An lb_ip is announced from here from now on.
    Announced {
        /// The address.
        lb_ip: IpAddr,
        /// On which link.
        link: String,
        /// The epoch of the claim.
        epoch: u64,
        /// Whether the claim is backed.
        backed: bool,
        /// Who claimed it before, if anybody is known.
        from: Option<String>,
    },
    /// A claim made in loneliness has become a backed one.
    Renewed {
        /// The address.
        lb_ip: IpAddr,
        /// On which link.
        link: String,
        /// The epoch of the claim.
        epoch: u64,
    },
    /// An lb_ip isn't announced from here any more.
    Withdrawn {
        /// The address.
        lb_ip: IpAddr,
        /// On which link.
        link: String,
        /// The epoch of the claim that ended.
        epoch: u64,
        /// Why.
        reason: Reason,
    },
    /// A peer on a link was heard for the first time, or changed its standing.
    Peer {
        /// Its node.
        node: String,
        /// On which link.
        link: String,
        /// How it stands now.
        standing: Standing,
    },
    /// Most of the peers known on a link are heard, or not any more.
    Company {
        /// The link.
        link: String,
        /// Whether they are heard.
        backed: bool,
        /// How many are.
        live: usize,
        /// How many there are.
        known: usize,
    },
    /// A node has died, or has come back or was forgotten (see [`crate::peers::deaths`]).
    Node {
        /// Its name.
        node: String,
        /// Whether it is dead.
        dead: bool,
    },
    /// Somebody who is no peer uses an lb_ip that is announced here, or would be.
    Conflict {
        /// The address.
        lb_ip: IpAddr,
        /// On which link.
        link: String,
        /// Who uses it.
        mac: MacAddr,
        /// Whether it isn't announced because of that: it never was before.
        held_back: bool,
    },
    /// Another speaker runs under the name of this node.
    Twin {
        /// On which link it is heard.
        link: String,
        /// Where it sends from.
        mac: MacAddr,
    },
    /// The loop didn't run when it should have.
    Slept {
        /// By how much it was late.
        late: Duration,
    },
}

/// Counters of the wire, since the start of the speaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of ARP.
    pub arp: Neighbours,
    /// Of IPv6 neighbour discovery.
    pub ndp: Neighbours,
    /// Packets sent to peers.
    pub packets_sent: u64,
    /// Packets of peers that were taken in.
    pub packets_received: u64,
    /// Packets that were dropped, by reason.
    pub dropped: Dropped,
    /// Addresses that this node began to announce.
    pub announced: u64,
    /// Those of them that another node had before.
    pub takeovers: Takeovers,
    /// Addresses that this node withdrew.
    pub withdrawn: u64,
    /// How often a peer was lost.
    pub peers_lost: u64,
    /// How often the loop slept through more than an interval.
    pub slept: u64,
    /// The greatest lateness of the loop.
    pub late_max: Duration,
    /// Frames that the kernel refused to send.
    pub send_failed: u64,
}

/// What was heard of and said to neighbours that are no peers, in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Requests, or solicitations, for announced addresses that were answered.
    pub answered: u64,
    /// Frames that make no sense.
    pub malformed: u64,
    /// Frames in which somebody who is no peer uses an address that is announced, or asked for before it is.
    pub conflicts: u64,
    /// Frames that asked whether somebody has an address, before it was announced for the first time.
    pub probes: u64,
    /// Frames with which addresses were announced unasked: gratuitous ARP of both forms, or unsolicited advertisements.
    pub unasked: u64,
}

/// Packets of others that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Not a packet of ours, or damaged.
    pub malformed: u64,
    /// Of a version that is not spoken here.
    pub version: u64,
    /// Of another cluster.
    pub cluster: u64,
    /// Without a seal by a key of ours.
    pub unsealed: u64,
    /// With a seal that is wrong, or from another station than the one that sealed it.
    pub forged: u64,
    /// Older than what was heard of the same speaker already: recorded and sent again, or overtaken on its way.
    pub replayed: u64,
    /// Of a speaker that has not proved yet that it is there now: a few when one starts. More are recorded ones.
    pub unproven: u64,
    /// Under the name of this node.
    pub twin: u64,
    /// Of one node too many.
    pub crowded: u64,
    /// Received while the loop slept.
    pub backlog: u64,
}
