//! The chains that hand segments of unknown connections on to other nodes: a second chance for each segment.
//!
//! ```text
//!   TCP without SYN, not tracked here ──▶ rings [ lb_ip . tcp . port ] ──▶ tries [ ring ] ──▶ tries-N
//!
//!   tries-N: first node  ──▶ hop limit N + 2 ─┐
//!            later nodes ─────────────────────┴──▶ a copy to successors [ ring ], drop
//!            hop limit 1 ──▶ all nodes had it: handled here as without these chains
//! ```
//!
//! The hop limit counts the nodes: at most [`MAX_HOPS`] means that another node has handed the segment on. The kernel
//! decrements it in each copy, so a segment never circulates. After all other nodes of the ring, the segment returns to
//! the first one, where connection tracking picks the connection up. So after a flush of connection tracking, a node
//! with a single endpoint continues its connections. A node with several may choose another endpoint, which answers
//! with a reset.
//!
//! Valid packets of tracked connections pass none of these rules. The rules apply to a segment without SYN that begins
//! a connection in connection tracking. They also apply to segments that connection tracking regards as invalid, such
//! as FIN and RST of unknown connections. An invalid segment is dropped at the end.

use crds::service::Family;

use super::fields::{FRONTEND, Field};
use super::rule::{ChainRule, STATE_INVALID};
use super::{Chain, Hook, PREROUTING};
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Expression, Meta, Relation, Verdict};
use crate::nft::optional_chains::OptionalChain;

/// Before our translation of the destination at -110.
const PRIORITY: i32 = -115;
/// Segments of clients arrive with a greater hop limit. A segment with a lesser one may reach only some of the nodes.
pub(super) const MAX_HOPS: u8 = 16;
/// The hop limit of a segment that this node handles after all others.
const USUAL_HOPS: u8 = 64;

/// The chain for the first packet of each connection.
pub(super) fn base_chain(family: Family) -> Chain {
    let hook = Hook::new("nat", PREROUTING, PRIORITY);
    Chain::base(ChainName::Optional(OptionalChain::SecondChance), hook, vec![hand_on(family)])
}

/// Continues with the chain of the ring, if the port has one.
pub(super) fn hand_on(family: Family) -> ChainRule {
    let segment = ChainRule::new(family).has_syn(Relation::Equal, "! syn");
    let key = segment.key(FRONTEND);
    let ring = segment.map("meta priority set", key, "rings", Expression::SetMeta(Meta::Priority));
    ring.vmap(&[Field::Priority], "tries")
}

/// The chain that hands a segment on to at most this number of other nodes. In the end, the chain `stray` drops FIN and
/// RST.
pub(super) fn tries_chain(family: Family, others: u8, stray: &str) -> Chain {
    let rule = || ChainRule::new(family);
    let reset = [Expression::LoadZero, Expression::SetMeta(Meta::Priority)];
    let rules = vec![
        rule().hop_limit_above(MAX_HOPS).set_hop_limit((others + 2).min(MAX_HOPS)),
        rule().hop_limit_above(1).dup(&[Field::Priority], "successors").verdict(Verdict::Drop),
        rule().has_state(STATE_INVALID).goto(stray),
        rule().set_hop_limit(USUAL_HOPS),
        rule().push(reset, "meta priority set none"),
    ];
    Chain::regular(ChainName::Tries(others), rules)
}
