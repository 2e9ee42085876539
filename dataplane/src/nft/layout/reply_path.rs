//! The chains that mark connections with the link by which they came in, and replies with the same mark. On a node with
//! several links, each link has its own chains. See [`crate::reply_path`].

use crds::service::Family;

use super::fields::Field;
use super::rule::{ChainRule, equals};
use super::{Chain, Hook, OUTPUT, PREROUTING};
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::codec::expression::{Ct, Expression, Meta, Register};
use crate::reply_path::Mark;

/// Before any translation of the destination: our own has the priority -110.
const BEFORE_DSTNAT: i32 = -120;
/// The usual priority for marks (mangle): before the route of the packet is looked up.
const MANGLE: i32 = -150;
/// IP_CT_DIR_REPLY.
const REPLY: u8 = 1;

/// Marks connections to an lb_ip that come in by this link. Only the first packet of a connection passes this chain.
pub(super) fn mark_connections(family: Family, link: LinkName, mark: Mark) -> Chain {
    let by_link = [Expression::Meta { key: Meta::IifName, into: Register::FIRST }, equals(link.bytes())];
    let set_mark = [load_ct(Ct::Mark), set_bits(mark), Expression::SetCtMark];
    let rule = ChainRule::new(family)
        .push(by_link, &format!("iifname \"{link}\""))
        .lookup(&[Field::Destination], "addresses")
        .push(set_mark, &set_text("ct mark", mark));
    let hook = Hook::new("nat", PREROUTING, BEFORE_DSTNAT);
    Chain::base(ChainName::MarkConnection(link, mark), hook, vec![rule])
}

/// Marks replies that this node forwards.
pub(super) fn mark_forwarded_replies(family: Family, mark: Mark) -> Chain {
    let hook = Hook::new("filter", PREROUTING, MANGLE);
    Chain::base(ChainName::MarkForwardedReply(mark), hook, vec![mark_reply(family, mark)])
}

/// Marks replies of this node itself.
pub(super) fn mark_local_replies(family: Family, mark: Mark) -> Chain {
    let hook = Hook::new("route", OUTPUT, MANGLE);
    Chain::base(ChainName::MarkLocalReply(mark), hook, vec![mark_reply(family, mark)])
}

/// Gives a reply the mark of its connection. A reply is recognised by its direction. A packet to the endpoint has the
/// same connection mark, but must not take the route of replies.
fn mark_reply(family: Family, mark: Mark) -> ChainRule {
    let (bits, value) = (mark.mask.bits(), mark.value);
    let is_reply = [load_ct(Ct::Direction), equals([REPLY])];
    let has_mark = [load_ct(Ct::Mark), Expression::Mask(bits.to_ne_bytes().into()), equals(value.to_ne_bytes())];
    let load = Expression::Meta { key: Meta::Mark, into: Register::FIRST };
    ChainRule::new(family)
        .push(is_reply, "ct direction reply")
        .push(has_mark, &format!("ct mark & {bits:#010x} == {value:#010x}"))
        .push([load, set_bits(mark), Expression::SetMeta(Meta::Mark)], &set_text("meta mark", mark))
}

/// Sets the bits of the mask; all others stay.
fn set_bits(mark: Mark) -> Expression {
    Expression::MaskOr { mask: !mark.mask.bits(), or: mark.value }
}

fn set_text(name: &str, mark: Mark) -> String {
    format!("{name} set {name} & {:#010x} | {:#010x}", !mark.mask.bits(), mark.value)
}

fn load_ct(key: Ct) -> Expression {
    Expression::Ct { key, into: Register::FIRST }
}
