//! Events for the log. The machine creates them, and [`crate::run`](fn@crate::run) writes them.

use std::net::IpAddr;
use std::time::Duration;

use crate::ownership::rules::Reason;
use crate::peers::liveness::PeerState;
use crds::MacAddr;

/// A transition. Each is reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node announces an lb_ip from now on.
    Announced {
        lb_ip: IpAddr,
        link: String,
        epoch: u64,
        backed: bool,
        /// The node that claimed it before, if any is known.
        from: Option<String>,
    },
    /// A claim that was not backed is backed now.
    Renewed { lb_ip: IpAddr, link: String, epoch: u64 },
    /// This node no longer announces an lb_ip.
    Withdrawn {
        lb_ip: IpAddr,
        link: String,
        /// The epoch of the claim that ended.
        epoch: u64,
        reason: Reason,
    },
    /// A peer on a link was heard for the first time, or changed its state.
    Peer { node: String, link: String, state: PeerState },
    /// A quorum of the peers on a link is heard, or no longer.
    Quorum {
        link: String,
        /// Whether a quorum is heard.
        backed: bool,
        /// The number of live peers.
        live: usize,
        /// The number of known peers.
        known: usize,
    },
    /// A node has died, or is no longer dead (see [`crate::peers::deaths`]).
    Node { node: String, dead: bool },
    /// A host outside the cluster uses an lb_ip that this node announces or would announce.
    Conflict {
        lb_ip: IpAddr,
        link: String,
        mac: MacAddr,
        /// Whether the address is not announced because of the conflict.
        held_back: bool,
    },
    /// Another speaker uses the name of this node.
    DuplicateNode { link: String, mac: MacAddr },
    /// The loop was late by more than an interval.
    Stalled { late: Duration },
    /// The log is too slow: this number of events was not logged.
    Lost { count: u64 },
}
