//! What rules are made of: fields of packets put into registers, and small steps that many rules take.

use crds::service::Family;

use super::Type;
use crate::nft::expression::{Expression, Header, Register, Relation};
use crate::ruleset::Pick;

/// Something of a packet that a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Source,
    Destination,
    /// Where the connection was first addressed to.
    LbIp,
    /// The port of that.
    LbPort,
    /// The port that the connection is answered from.
    AnsweringPort,
    Protocol,
    /// The same, as a part of the key of a set of ranges.
    ProtocolInRange,
    /// The destination port.
    Port,
    /// A random number for one of these.
    Random(Pick),
}

/// `ip daddr . meta l4proto . th dport`
pub(super) const FRONTEND: &[Field] = &[Field::Destination, Field::Protocol, Field::Port];

/// Loads fields one after the other, as the key of a set.
pub(super) fn load(family: Family, fields: &[Field]) -> Vec<Expression> {
    let mut quarter = 0;
    let mut loads = Vec::new();
    // Where source and destination stand in the header, and how long they are (RFC 791 §3.1, RFC 8200 §3).
    let (source, destination, length) = match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    for field in fields {
        let into = Register::Quarter(quarter);
        let address = |offset| Expression::Payload { header: Header::Network, offset, length, into };
        let (load, kind) = match field {
            Field::Source => (address(source), Type::address(family)),
            Field::Destination => (address(destination), Type::address(family)),
            Field::LbIp => (Expression::OriginalDestination { family, into }, Type::address(family)),
            Field::LbPort => (Expression::OriginalPort { into }, Type::Port),
            Field::AnsweringPort => (Expression::AnsweringPort { into }, Type::Port),
            Field::Protocol | Field::ProtocolInRange => (Expression::Protocol { into }, Type::Protocol),
            Field::Port => (Expression::Payload { header: Header::Transport, offset: 2, length: 2, into }, Type::Port),
            Field::Random(Pick { from, count }) => {
                (Expression::Random { modulus: *count, offset: *from, into }, Type::Integer)
            }
        };
        loads.push(load);
        if matches!(field, Field::ProtocolInRange) {
            loads.push(Expression::ToNetworkOrder { register: into });
        }
        quarter += kind.quarters();
    }
    loads
}

pub(super) fn protocol_is(number: u8) -> Vec<Expression> {
    vec![Expression::Protocol { into: Register::FIRST }, equals(vec![number])]
}

pub(super) fn equals(value: Vec<u8>) -> Expression {
    Expression::Compare { relation: Relation::Equal, value }
}

/// Loads the type of a packet of this ICMP.
pub(super) fn icmp_type(protocol: u8) -> Vec<Expression> {
    let kind = Expression::Payload { header: Header::Transport, offset: 0, length: 1, into: Register::FIRST };
    rule(protocol_is(protocol), [kind])
}

pub(super) fn lookup(set: &str) -> Expression {
    Expression::Lookup { set: set.to_owned(), into: None }
}

pub(super) fn verdict_map(map: &str) -> Expression {
    Expression::Lookup { set: map.to_owned(), into: Some(Register::Verdict) }
}

/// This rule before those.
pub(super) fn rule_first(first: Vec<Expression>, then: Vec<Vec<Expression>>) -> Vec<Vec<Expression>> {
    [vec![first], then].concat()
}

pub(super) fn rule(first: Vec<Expression>, then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    first.into_iter().chain(then).collect()
}
