//! What rules are made of: fields of packets put into registers, and small steps that many rules take.

use crds::service::Family;

use super::Type;
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation};
use crate::rules::ruleset::Pick;

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
    /// The source port.
    SourcePort,
    /// A random number for one of these.
    Random(Pick),
    /// The MAC address that a frame is for.
    To,
    /// The MAC address that a frame is from.
    From,
    /// The link that it came in by.
    LinkName,
    /// The protocol of the packet that an error of ICMP quotes.
    QuotedProtocol,
    /// The destination of that: who has sent what it answers.
    QuotedDestination,
    /// Its source port.
    QuotedSourcePort,
    /// Its destination port.
    QuotedPort,
}

/// `ip daddr . meta l4proto . th dport`
pub(super) const FRONTEND: &[Field] = &[Field::Destination, Field::Protocol, Field::Port];

/// Loads fields one after the other, as the key of a set.
pub(super) fn load(family: Family, fields: &[Field]) -> Vec<Expression> {
    load_at(0, family, fields).0
}

/// Loads fields one after the other from this quarter of a register on; also returns the first that is free behind them.
pub(super) fn load_at(start: u8, family: Family, fields: &[Field]) -> (Vec<Expression>, u8) {
    let mut quarter = start;
    let mut loads = Vec::new();
    // Where source and destination stand in the header, and how long they are (RFC 791 §3.1, RFC 8200 §3).
    let (source, destination, length) = match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    // What an error quotes stands behind its own 8 bytes: protocol and destination in the header, which has no options
    // since this cluster has sent it; behind that the ports (RFC 792, RFC 4443 §3).
    let (quoted_protocol, quoted_destination, quoted_ports) = match family {
        Family::V4 => (8 + 9, 8 + 16, 8 + 20),
        Family::V6 => (8 + 6, 8 + 24, 8 + 40),
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
            Field::Port => (transport(2, 2, into), Type::Port),
            Field::SourcePort => (transport(0, 2, into), Type::Port),
            Field::QuotedProtocol => (transport(quoted_protocol, 1, into), Type::Protocol),
            Field::QuotedDestination => (transport(quoted_destination, length, into), Type::address(family)),
            Field::QuotedSourcePort => (transport(quoted_ports, 2, into), Type::Port),
            Field::QuotedPort => (transport(quoted_ports + 2, 2, into), Type::Port),
            Field::To => (Expression::Payload { header: Header::Link, offset: TO, length: MAC, into }, Type::Mac),
            Field::From => (Expression::Payload { header: Header::Link, offset: FROM, length: MAC, into }, Type::Mac),
            Field::LinkName => (Expression::Meta { what: Meta::InterfaceName, into }, Type::LinkName),
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
    (loads, quarter)
}

/// Where the two MAC addresses stand in a frame, and how long they are (IEEE 802.3 §3.2).
pub(super) const TO: u32 = 0;
pub(super) const FROM: u32 = 6;
pub(super) const MAC: u32 = 6;

fn transport(offset: u32, length: u32, into: Register) -> Expression {
    Expression::Payload { header: Header::Transport, offset, length, into }
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
