//! The chains that mark connections with the link that they came in by, and replies with the same mark: one of each for
//! each link, on a node with several. See [`crate::reply_path`].

use crds::service::Family;

use super::fields::{Field, equals, load, lookup, rule};
use super::{Chain, Hook};
use crate::link_name::LinkName;
use crate::nft::chain_name::ReplyPathChain;
use crate::nft::codec::expression::{Expression, MarkOf, Meta, Register};
use crate::reply_path::Mark;

/// Before any translation of the destination; ours has -110.
const BEFORE_DSTNAT: i32 = -120;
/// The usual priority for marks (mangle): before the route of the packet is looked up.
const MANGLE: i32 = -150;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
/// IP_CT_DIR_REPLY.
const REPLY: u8 = 1;

/// Such a chain.
///
/// Only the first packet of a connection passes the chain that marks it. A reply is recognised by its direction: a
/// packet to an endpoint must not take the route of replies.
pub(super) fn chain(family: Family, chain: ReplyPathChain) -> Chain {
    let (kind, number, priority, rule) = match chain {
        ReplyPathChain::MarkConnection(link, mark) => {
            ("nat", PREROUTING, BEFORE_DSTNAT, mark_connection(family, link, mark))
        }
        ReplyPathChain::MarkForwardedReply(mark) => ("filter", PREROUTING, MANGLE, mark_reply(mark)),
        ReplyPathChain::MarkLocalReply(mark) => ("route", OUTPUT, MANGLE, mark_reply(mark)),
    };
    Chain { name: chain.to_string(), hook: Some(Hook { kind, number, priority, link: None }), rules: vec![rule] }
}

/// `iifname "eth1" ip daddr @addresses ct mark set ct mark & 0xffffff8f | 0x10`
fn mark_connection(family: Family, link: LinkName, mark: Mark) -> Vec<Expression> {
    let by_link = [Expression::Meta { key: Meta::IifName, into: Register::FIRST }, equals(link.bytes().into())];
    let to_lb_ip = rule(load(family, &[Field::Destination]), [lookup("addresses")]);
    [by_link.into(), to_lb_ip, set_mark(MarkOf::Connection, mark)].concat()
}

/// `ct direction reply ct mark & 0x70 == 0x10 meta mark set meta mark & 0xffffff8f | 0x10`
fn mark_reply(mark: Mark) -> Vec<Expression> {
    let is_reply = vec![Expression::CtDirection { into: Register::FIRST }, equals(vec![REPLY])];
    let has_mark = vec![
        Expression::LoadMark(MarkOf::Connection),
        Expression::Mask(mark.mask.bits().to_ne_bytes().into()),
        equals(mark.value.to_ne_bytes().into()),
    ];
    [is_reply, has_mark, set_mark(MarkOf::Packet, mark)].concat()
}

/// Sets the bits of the mask; all others stay.
fn set_mark(of: MarkOf, mark: Mark) -> Vec<Expression> {
    let mask_or = Expression::MaskOr { mask: !mark.mask.bits(), or: mark.value };
    vec![Expression::LoadMark(of), mask_or, Expression::SetMark(of)]
}
