//! Parts of packets that rules load into registers: [`Field`] → [`Key`].

use crds::service::Family;

use super::Type;
use crate::nft::codec::expression::{Ct, Expression, Header, Meta, Register};
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
    DestinationPort,
    SourcePort,
    /// The index of an endpoint, chosen at random from this pick.
    Random(Pick),
    Priority,
    DestinationMac,
    SourceMac,
    /// The link that the frame or packet came in by.
    LinkName,
    /// The type of that link.
    LinkType,
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

/// Fields in registers, one after the other.
#[derive(Debug)]
pub(super) struct Key {
    /// The expressions that load them.
    pub(super) loads: Vec<Expression>,
    /// As `nft` prints them.
    pub(super) words: String,
    /// The first free word after them.
    pub(super) end: u8,
}

impl Key {
    /// Loads fields from the word `start` on. `transport` is the protocol that the rule has checked, by name, or `th`.
    pub(super) fn load(start: u8, family: Family, transport: &str, fields: &[Field]) -> Self {
        let mut key = Self { loads: Vec::new(), words: String::new(), end: start };
        for field in fields {
            let into = Register::Word(key.end);
            let (load, kind, words) = load_field(family, transport, *field, into);
            key.loads.push(load);
            key.words += if key.end == start { "" } else { " . " };
            key.words += &words;
            key.end += kind.words();
        }
        key
    }
}

/// The expression that loads a field, the type of the field, and the words for it.
fn load_field(family: Family, transport: &str, field: Field, into: Register) -> (Expression, Type, String) {
    // Offsets and length of the addresses in the header (RFC 791 §3.1, RFC 8200 §3).
    let (ip, source, destination, length) = match family {
        Family::V4 => ("ip", 12, 16, 4),
        Family::V6 => ("ip6", 8, 24, 16),
    };
    // The quoted packet begins after the 8 bytes of the error. Its header has no options, since a node of this cluster
    // has sent it. The ports follow that header (RFC 792, RFC 4443 §3).
    let (quoted_protocol, quoted_destination, quoted_ports) = match family {
        Family::V4 => (8 + 9, 8 + 16, 8 + 20),
        Family::V6 => (8 + 6, 8 + 24, 8 + 40),
    };
    let address = Type::address(family);
    let network = |offset| Expression::Payload { header: Header::Network, offset, length, into };
    let port = |offset| Expression::Payload { header: Header::Transport, offset, length: 2, into };
    let mac = |offset| Expression::Payload { header: Header::Link, offset, length: MAC_LENGTH, into };
    let ct = |key| Expression::Ct { key, into };
    let meta = |key| Expression::Meta { key, into };
    let quoted = |offset, length, kind| {
        let load = Expression::Payload { header: Header::Transport, offset, length, into };
        (load, kind, format!("@th,{},{}", offset * 8, length * 8))
    };
    match field {
        Field::Source => (network(source), address, format!("{ip} saddr")),
        Field::Destination => (network(destination), address, format!("{ip} daddr")),
        Field::OriginalDestination => (ct(Ct::OriginalDestination(family)), address, format!("ct original {ip} daddr")),
        Field::OriginalPort => (ct(Ct::OriginalPort), Type::Port, "ct original proto-dst".to_owned()),
        Field::ReplySourcePort => (ct(Ct::ReplySourcePort), Type::Port, "ct reply proto-src".to_owned()),
        Field::Protocol => (meta(Meta::L4Proto), Type::Protocol, "meta l4proto".to_owned()),
        Field::DestinationPort => (port(2), Type::Port, format!("{transport} dport")),
        Field::SourcePort => (port(0), Type::Port, format!("{transport} sport")),
        Field::QuotedProtocol => quoted(quoted_protocol, 1, Type::Protocol),
        Field::QuotedDestination => quoted(quoted_destination, length, address),
        Field::QuotedSourcePort => quoted(quoted_ports, 2, Type::Port),
        Field::QuotedDestinationPort => quoted(quoted_ports + 2, 2, Type::Port),
        Field::Priority => (meta(Meta::Priority), Type::Priority, "meta priority".to_owned()),
        Field::DestinationMac => (mac(DESTINATION_MAC), Type::Mac, "ether daddr".to_owned()),
        Field::SourceMac => (mac(SOURCE_MAC), Type::Mac, "ether saddr".to_owned()),
        Field::LinkName => (meta(Meta::IifName), Type::LinkName, "iifname".to_owned()),
        Field::LinkType => (meta(Meta::IifType), Type::LinkType, "meta iiftype".to_owned()),
        Field::Random(Pick { from, count }) => {
            let words = format!("numgen random mod {count}{}", print_offset(from));
            (Expression::Numgen { modulus: count, offset: from, into }, Type::Integer, words)
        }
    }
}

/// The text for the offset of a random number or hash.
pub(super) fn print_offset(offset: u32) -> String {
    if offset == 0 { String::new() } else { format!(" offset {offset}") }
}
