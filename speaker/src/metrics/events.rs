//! Events for the log, each with its log line. The machine creates them, and [`crate::run`](fn@crate::run) writes them.

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
        /// Whether the claim is backed: see [`Claim`](crate::ownership::claims::Claim).
        backed: bool,
        /// The node that claimed the address before; `None` if no such claim is known.
        from: Option<String>,
    },
    /// A claim that this node made without a quorum of peers was renewed with one.
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
    /// A peer that this node does not hear is heard by another one, which forwards its packets; or this node hears the
    /// peer again.
    Path { node: String, link: String, relayed: bool },
    /// This node began or ceased to hear a quorum of the peers on a link.
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
    /// The agent of a node is silent, but the kernel of the node answers (see [`crate::peers::reachability`]).
    SilentAgent { node: String },
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

impl Event {
    /// Writes the event to the log. `own_node` is the name of this node.
    pub(crate) fn log(self, own_node: &str) {
        match self {
            Self::Announced { lb_ip, link, epoch, backed, from } => {
                tracing::info!(%lb_ip, node = own_node, link, epoch, backed, from, "announced");
            }
            Self::Renewed { lb_ip, link, epoch } => {
                tracing::info!(%lb_ip, node = own_node, link, epoch, "renewed with a quorum of peers");
            }
            Self::Withdrawn { lb_ip, link, epoch, reason } => {
                tracing::info!(%lb_ip, node = own_node, link, epoch, reason = reason.as_str(), "withdrawn");
            }
            Self::Peer { node, link, state } => match state {
                PeerState::Alive => tracing::info!(node, link, "peer is alive"),
                PeerState::Deaf => tracing::warn!(node, link, "peer hears no other peer: its claims are void"),
                PeerState::Dead => tracing::warn!(node, link, "peer is silent: its addresses are taken over"),
            },
            Self::Path { node, link, relayed: true } => tracing::warn!(
                node,
                link,
                "peer is not heard, but another one hears it and forwards its Hellos: look for a fault of the network"
            ),
            Self::Path { node, link, relayed: false } => tracing::info!(node, link, "peer is heard again"),
            Self::Node { node, dead: true } => tracing::warn!(node, "node is dead: it gets no new connections"),
            Self::Node { node, dead: false } => tracing::info!(node, "node is no longer dead"),
            Self::SilentAgent { node } => {
                tracing::warn!(
                    node,
                    "agent of the node is silent, its kernel answers: its addresses move, its endpoints stay"
                );
            }
            Self::Quorum { link, backed: true, live, known } => {
                tracing::info!(link, live, known, "a quorum of peers is heard");
            }
            Self::Quorum { link, backed: false, live, known } => {
                tracing::warn!(
                    link,
                    live,
                    known,
                    "no quorum of peers is heard: gratuitous ARP and unsolicited NAs stop"
                );
            }
            Self::Conflict { lb_ip, link, mac, held_back } => {
                tracing::warn!(
                    %lb_ip, node = own_node, link, %mac, held_back,
                    "a host outside the cluster uses this address"
                );
            }
            Self::DuplicateNode { link, mac } => {
                tracing::warn!(node = own_node, link, %mac, "another speaker uses the name of this node");
            }
            Self::Stalled { late } => {
                tracing::warn!(node = own_node, ?late, "event loop stalled: ignoring missed Hellos");
            }
            Self::Lost { count } => tracing::warn!(node = own_node, count, "events lost: the log is too slow"),
        }
    }
}
