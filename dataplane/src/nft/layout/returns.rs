//! The chains that mark connections with the link that they came in by, and answers with the same: one of each for each
//! link, where a node has several. See [`crate::reply_path`].

use crds::service::Family;

use super::field::{Field, equals, load, lookup, rule};
use super::{Chain, Hook};
use crate::nft::codec::expression::{Expression, Marked, Meta, Register};
use crate::nft::elements::{Returning, returning as name};
use crate::reply_path::Mark;
use crate::snapshot::LinkName;

/// Before the destination is translated, by us (-110) or anybody else.
const BEFORE_DSTNAT: i32 = -120;
/// Where marks are made as a rule (mangle): before the way of the packet is looked up.
const MANGLE: i32 = -150;
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
/// The direction of answers (IP_CT_DIR_REPLY).
const ANSWER: u8 = 1;

/// Such a chain.
///
/// Only the first packet of a connection passes the one that marks it. An answer is told by its direction: on its way to
/// an endpoint, a packet must not take the way of answers.
pub fn returning(family: Family, returning: Returning) -> Chain {
    let (kind, number, priority, rule) = match returning {
        Returning::Arrives(link, mark) => ("nat", PREROUTING, BEFORE_DSTNAT, arrives(family, link, mark)),
        Returning::Leaves(mark) => ("filter", PREROUTING, MANGLE, leaves(mark)),
        Returning::LeavesFromHere(mark) => ("route", OUTPUT, MANGLE, leaves(mark)),
    };
    Chain { name: name(returning), hook: Some(Hook { kind, number, priority, link: None }), rules: vec![rule] }
}

/// `iifname "eth1" ip daddr @addresses ct mark set ct mark & 0xffffff8f | 0x10`
fn arrives(family: Family, link: LinkName, mark: Mark) -> Vec<Expression> {
    let by = [Expression::Meta { what: Meta::InterfaceName, into: Register::FIRST }, equals(link.bytes().into())];
    let to_lb_ip = rule(load(family, &[Field::Destination]), [lookup("addresses")]);
    [by.into(), to_lb_ip, marked(Marked::Connection, mark)].concat()
}

/// `ct direction reply ct mark & 0x70 == 0x10 meta mark set meta mark & 0xffffff8f | 0x10`
fn leaves(mark: Mark) -> Vec<Expression> {
    let is_answer = vec![Expression::Direction { into: Register::FIRST }, equals(vec![ANSWER])];
    let came_by_it = vec![
        Expression::Mark(Marked::Connection),
        Expression::Mask(mark.mask.bits().to_ne_bytes().into()),
        equals(mark.value.to_ne_bytes().into()),
    ];
    [is_answer, came_by_it, marked(Marked::Packet, mark)].concat()
}

/// Our bits are made these; all others stay as they are.
fn marked(what: Marked, mark: Mark) -> Vec<Expression> {
    let blend = Expression::Blend { keep: !mark.mask.bits(), set: mark.value };
    vec![Expression::Mark(what), blend, Expression::SetMark(what)]
}
