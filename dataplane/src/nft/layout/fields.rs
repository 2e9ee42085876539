//! Parts of packets that rules load into registers, and steps that many rules share.

use crds::service::Family;

use super::Type;
use crate::nft::codec::expression::{Expression, Header, Meta, Register, Relation, Verdict};
use crate::rules::Pick;

/// A part of a packet, or of its connection or frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Source,
    Destination,
    /// The destination of the connection before translation.
    OriginalDestination,
    OriginalPort,
    /// The source port of the connection's replies.
    ReplySourcePort,
    Protocol,
    /// The protocol as a part of a key in an interval set.
    ProtocolInInterval,
    DestinationPort,
    SourcePort,
    /// The index of a random endpoint of these.
    Random(Pick),
    DestinationMac,
    SourceMac,
    /// The link that the frame came in by.
    LinkName,
    /// The protocol of the packet that an ICMP error quotes.
    QuotedProtocol,
    QuotedDestination,
    QuotedSourcePort,
    QuotedDestinationPort,
}

/// `ip daddr . meta l4proto . th dport`
pub(super) const FRONTEND: &[Field] = &[Field::Destination, Field::Protocol, Field::DestinationPort];

/// The offsets of MAC addresses in a frame, and their length (IEEE 802.3 §3.2).
pub(super) const DESTINATION_MAC: u32 = 0;
pub(super) const SOURCE_MAC: u32 = 6;
pub(super) const MAC_LENGTH: u32 = 6;

/// Loads fields one after the other, as the key of a set.
pub(super) fn load(family: Family, fields: &[Field]) -> Vec<Expression> {
    load_at(0, family, fields).0
}

/// Loads fields one after the other from the word `start` on. Also returns the first free word after them.
pub(super) fn load_at(start: u8, family: Family, fields: &[Field]) -> (Vec<Expression>, u8) {
    let mut word = start;
    let mut loads = Vec::new();
    for field in fields {
        let into = Register::Word(word);
        let (load, kind) = load_field(family, *field, into);
        loads.push(load);
        if matches!(field, Field::ProtocolInInterval) {
            loads.push(Expression::Byteorder { register: into });
        }
        word += kind.words();
    }
    (loads, word)
}

/// The expression that loads a field, and the type of the field.
fn load_field(family: Family, field: Field, into: Register) -> (Expression, Type) {
    // Offsets and length of the addresses in the header (RFC 791 §3.1, RFC 8200 §3).
    let (source, destination, length) = match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    // The quoted packet begins after the 8 bytes of the error. Its header has no options, since a node of this cluster
    // has sent it. The ports are after it (RFC 792, RFC 4443 §3).
    let (quoted_protocol, quoted_destination, quoted_ports) = match family {
        Family::V4 => (8 + 9, 8 + 16, 8 + 20),
        Family::V6 => (8 + 6, 8 + 24, 8 + 40),
    };
    let address = Type::address(family);
    let network = |offset| Expression::Payload { header: Header::Network, offset, length, into };
    let mac = |offset| Expression::Payload { header: Header::Link, offset, length: MAC_LENGTH, into };
    match field {
        Field::Source => (network(source), address),
        Field::Destination => (network(destination), address),
        Field::OriginalDestination => (Expression::CtOriginalDestination { family, into }, address),
        Field::OriginalPort => (Expression::CtOriginalPort { into }, Type::Port),
        Field::ReplySourcePort => (Expression::CtReplySourcePort { into }, Type::Port),
        Field::Protocol | Field::ProtocolInInterval => (Expression::MetaL4Proto { into }, Type::Protocol),
        Field::DestinationPort => (transport(2, 2, into), Type::Port),
        Field::SourcePort => (transport(0, 2, into), Type::Port),
        Field::QuotedProtocol => (transport(quoted_protocol, 1, into), Type::Protocol),
        Field::QuotedDestination => (transport(quoted_destination, length, into), address),
        Field::QuotedSourcePort => (transport(quoted_ports, 2, into), Type::Port),
        Field::QuotedDestinationPort => (transport(quoted_ports + 2, 2, into), Type::Port),
        Field::DestinationMac => (mac(DESTINATION_MAC), Type::Mac),
        Field::SourceMac => (mac(SOURCE_MAC), Type::Mac),
        Field::LinkName => (Expression::Meta { key: Meta::IifName, into }, Type::LinkName),
        Field::Random(Pick { from, count }) => {
            (Expression::Numgen { modulus: count, offset: from, into }, Type::Integer)
        }
    }
}

fn transport(offset: u32, length: u32, into: Register) -> Expression {
    Expression::Payload { header: Header::Transport, offset, length, into }
}

pub(super) fn is_protocol(number: u8) -> Vec<Expression> {
    vec![Expression::MetaL4Proto { into: Register::FIRST }, equals(vec![number])]
}

pub(super) fn equals(value: Vec<u8>) -> Expression {
    Expression::Compare { relation: Relation::Equal, value }
}

/// Loads the type of a packet of this ICMP protocol.
pub(super) fn load_icmp_type(protocol: u8) -> Vec<Expression> {
    rule(is_protocol(protocol), [transport(0, 1, Register::FIRST)])
}

pub(super) fn lookup(set: &str) -> Expression {
    Expression::Lookup { set: set.to_owned(), into: None }
}

/// Loads the value of a map into the first register.
pub(super) fn lookup_value(map: &str) -> Expression {
    Expression::Lookup { set: map.to_owned(), into: Some(Register::FIRST) }
}

pub(super) fn lookup_verdict(map: &str) -> Expression {
    Expression::Lookup { set: map.to_owned(), into: Some(Register::Verdict) }
}

pub(super) fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

/// The rule `first`, then the rules `then`.
pub(super) fn rule_first(first: Vec<Expression>, then: Vec<Vec<Expression>>) -> Vec<Vec<Expression>> {
    [vec![first], then].concat()
}

/// One rule with the expressions `first`, then `then`.
pub(super) fn rule(first: Vec<Expression>, then: impl IntoIterator<Item = Expression>) -> Vec<Expression> {
    first.into_iter().chain(then).collect()
}
