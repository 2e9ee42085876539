//! Writes the events of the speaker to the log.

use crate::metrics::Event;
use crate::peers::liveness::PeerState;

/// Writes an event. `own_node` is the name of this node.
pub(super) fn write(own_node: &str, event: Event) {
    match event {
        Event::Announced { lb_ip, link, epoch, backed, from } => {
            tracing::info!(%lb_ip, node = own_node, link, epoch, backed, from, "announced");
        }
        Event::Renewed { lb_ip, link, epoch } => {
            tracing::info!(%lb_ip, node = own_node, link, epoch, "renewed with a quorum of peers");
        }
        Event::Withdrawn { lb_ip, link, epoch, reason } => {
            tracing::info!(%lb_ip, node = own_node, link, epoch, reason = reason.as_str(), "withdrawn");
        }
        Event::Peer { node, link, state } => match state {
            PeerState::Alive => tracing::info!(node, link, "peer is alive"),
            PeerState::Deaf => tracing::warn!(node, link, "peer hears no other peer: its claims are void"),
            PeerState::Dead => tracing::warn!(node, link, "peer is silent: its addresses are taken over"),
        },
        Event::Node { node, dead: true } => tracing::warn!(node, "node is dead: it gets no new connections"),
        Event::Node { node, dead: false } => tracing::info!(node, "node is no longer dead"),
        Event::Quorum { link, backed: true, live, known } => {
            tracing::info!(link, live, known, "a quorum of peers is heard");
        }
        Event::Quorum { link, backed: false, live, known } => {
            tracing::warn!(link, live, known, "no quorum of peers is heard: unasked announcements stop");
        }
        Event::Conflict { lb_ip, link, mac, held_back } => {
            tracing::warn!(
                %lb_ip, node = own_node, link, %mac, held_back,
                "a host outside the cluster uses this address"
            );
        }
        Event::DuplicateNode { link, mac } => {
            tracing::warn!(node = own_node, link, %mac, "another speaker uses the name of this node");
        }
        Event::Stalled { late } => {
            tracing::warn!(node = own_node, ?late, "event loop stalled: ignoring missed Hellos");
        }
        Event::Lost { count } => tracing::warn!(node = own_node, count, "events lost: the log is too slow"),
    }
}
