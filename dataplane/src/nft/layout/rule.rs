//! Rules: their expressions, and the text that `nft list` prints for them.
//!
//! A rule is built statement by statement. Each method adds the expressions of one statement and its text. `nft` also
//! checks that a header is present before it reads the header, and does not print this check. Methods that begin with
//! `has_` add such a check.

use crds::service::Family;

use super::fields::{DESTINATION_MAC, Field, Key, MAC_LENGTH};
use crate::nft::codec::expression::{Ct, Expression, Header, Meta, Register, Relation, Verdict};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;
/// The offset of the TCP flags, and the flag that begins a connection (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;
/// The time to live or hop limit: its name in `nft`, and its offset in the header (RFC 791 §3.1, RFC 8200 §3).
const HOP_LIMIT_V4: (&str, u32) = ("ip ttl", 8);
const HOP_LIMIT_V6: (&str, u32) = ("ip6 hoplimit", 7);
/// The states of a packet of no connection, and of a packet that is not tracked: the bit (NF_CT_STATE_*) and the name
/// in `nft` of each.
pub(super) const STATE_INVALID: (u32, &str) = (1, "invalid");
pub(super) const STATE_UNTRACKED: (u32, &str) = (1 << 6, "untracked");
/// ARPHRD_ETHER.
pub const ETHERNET: u16 = 1;
/// The timeout of elements with counters that rules add, in seconds: a day. So no element of a deleted Service stays
/// for longer.
const COUNTED_TIMEOUT: u32 = 86_400;

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRule {
    pub expressions: Vec<Expression>,
    pub text: String,
    family: Family,
    /// The name of the transport protocol that the rule has checked, or `th` for any. `nft` prints it before a port.
    transport: &'static str,
}

impl ChainRule {
    /// A rule about packets of this family.
    pub(super) fn new(family: Family) -> Self {
        Self { expressions: Vec::new(), text: String::new(), family, transport: "th" }
    }

    /// Adds expressions with their text.
    pub(super) fn push(mut self, expressions: impl IntoIterator<Item = Expression>, text: &str) -> Self {
        self.expressions.extend(expressions);
        self.text += if self.text.is_empty() || text.is_empty() { "" } else { " " };
        self.text += text;
        self
    }

    /// A key that loads fields into the registers, from the first one on.
    pub(super) fn key(&self, fields: &[Field]) -> Key {
        self.key_at(0, fields)
    }

    /// A key that loads fields into the registers, from this word on.
    pub(super) fn key_at(&self, start: u8, fields: &[Field]) -> Key {
        Key::load(start, self.family, self.transport, fields)
    }

    /// Adds the loads of a key and one expression.
    fn push_key(self, key: Key, then: Expression, text: &str) -> Self {
        self.push(key.loads.into_iter().chain([then]), text)
    }

    /// Checks for an Ethernet frame.
    pub(super) fn has_ethernet(self) -> Self {
        self.push([Expression::Meta { key: Meta::IifType, into: Register::FIRST }, equals(ETHERNET.to_ne_bytes())], "")
    }

    /// Checks for a packet of the family.
    pub(super) fn has_family(self) -> Self {
        let is_family = equals(ether_type(self.family).to_be_bytes());
        self.push([Expression::Meta { key: Meta::Protocol, into: Register::FIRST }, is_family], "")
    }

    /// Checks for an Ethernet frame with a packet of the family.
    pub(super) fn has_ethernet_and_family(self) -> Self {
        self.has_ethernet().has_ether_type()
    }

    /// Checks for a packet of the family, in a frame that is known to be Ethernet.
    pub(super) fn has_ether_type(self) -> Self {
        let load = Expression::Payload { header: Header::Link, offset: 12, length: 2, into: Register::FIRST };
        let is_family = equals(ether_type(self.family).to_be_bytes());
        self.push([load, is_family], "")
    }

    /// Checks for a packet of this transport protocol. Later text of the rule contains the name of the protocol.
    pub(super) fn has_transport(mut self, protocol: u8) -> Self {
        self.transport = protocol_name(protocol);
        self.push(is_protocol(protocol), "")
    }

    /// `meta l4proto PROTOCOL`
    pub(super) fn l4proto(self, protocol: u8) -> Self {
        self.push(is_protocol(protocol), &format!("meta l4proto {}", protocol_name(protocol)))
    }

    /// `tcp flags …`: a segment with the flag SYN for [`Relation::NotEqual`], without it for [`Relation::Equal`].
    pub(super) fn has_syn(self, relation: Relation, text: &str) -> Self {
        self.has_tcp_flags(SYN, relation, text)
    }

    /// `tcp flags …`: a segment with any of these flags for [`Relation::NotEqual`], with none of them for
    /// [`Relation::Equal`].
    pub(super) fn has_tcp_flags(self, bits: u8, relation: Relation, text: &str) -> Self {
        let into = Register::FIRST;
        let flags = Expression::Payload { header: Header::Transport, offset: TCP_FLAGS, length: 1, into };
        let is_set = Expression::Compare { relation, value: vec![0] };
        self.has_transport(TCP).push([flags, Expression::Mask(vec![bits]), is_set], &format!("tcp flags {text}"))
    }

    /// `ct state STATE`
    pub(super) fn has_state(self, (bit, name): (u32, &str)) -> Self {
        let load = Expression::Ct { key: Ct::State, into: Register::FIRST };
        let mask = Expression::Mask(bit.to_ne_bytes().into());
        self.push([load, mask, is_not_zero(4)], &format!("ct state {name}"))
    }

    /// `ip ttl > VALUE`: more hops left than this.
    pub(super) fn hop_limit_above(self, value: u8) -> Self {
        self.compare_hop_limit((Relation::Above, ">"), value)
    }

    /// `ip ttl <= VALUE`: at most this number of hops left.
    pub(super) fn hop_limit_at_most(self, value: u8) -> Self {
        self.compare_hop_limit((Relation::AtMost, "<="), value)
    }

    fn compare_hop_limit(self, (relation, sign): (Relation, &str), value: u8) -> Self {
        let (name, offset) = hop_limit(self.family);
        let load = Expression::Payload { header: Header::Network, offset, length: 1, into: Register::FIRST };
        let text = format!("{name} {sign} {value}");
        self.push([load, Expression::Compare { relation, value: vec![value] }], &text)
    }

    /// `ip ttl set VALUE`
    pub(super) fn set_hop_limit(self, value: u8) -> Self {
        let (family, (name, offset)) = (self.family, hop_limit(self.family));
        let into = Register::FIRST;
        let load = match family {
            // The checksum has 16 bits, so the byte after the time to live is written as well.
            Family::V4 => vec![
                Expression::Payload { header: Header::Network, offset, length: 2, into },
                Expression::MaskXor { mask: [0, 0xff], xor: [value, 0] },
            ],
            Family::V6 => vec![Expression::LoadByte(value)],
        };
        self.push(load.into_iter().chain([Expression::SetHopLimit(family)]), &format!("{name} set {value}"))
    }

    /// `dup to KEY map @MAP`
    pub(super) fn dup(self, key: &[Field], map: &str) -> Self {
        let key = self.key(key);
        self.map("dup to", key, map, Expression::Dup)
    }

    /// `icmp type …`, with `text` for these comparisons.
    pub(super) fn icmp_type<const N: usize>(self, comparisons: [(Relation, u8); N], text: &str) -> Self {
        let (protocol, name) = match self.family {
            Family::V4 => (ICMP, "icmp"),
            Family::V6 => (ICMPV6, "icmpv6"),
        };
        let load = Expression::Payload { header: Header::Transport, offset: 0, length: 1, into: Register::FIRST };
        let compare = comparisons.map(|(relation, kind)| Expression::Compare { relation, value: vec![kind] });
        self.has_transport(protocol).push([load].into_iter().chain(compare), &format!("{name} type {text}"))
    }

    /// `KEY @SET`
    pub(super) fn lookup(self, key: &[Field], set: &str) -> Self {
        let key = self.key(key);
        let text = format!("{} @{set}", key.words);
        self.push_key(key, Expression::Lookup { set: set.to_owned(), into: None }, &text)
    }

    /// `KEY != @SET`
    pub(super) fn lookup_inverted(self, key: &[Field], set: &str) -> Self {
        let key = self.key(key);
        let text = format!("{} != @{set}", key.words);
        self.push_key(key, Expression::LookupInverted { set: set.to_owned() }, &text)
    }

    /// `KEY vmap @MAP`
    pub(super) fn vmap(self, key: &[Field], map: &str) -> Self {
        let key = self.key(key);
        let text = format!("{} vmap @{map}", key.words);
        self.push_key(key, Expression::Lookup { set: map.to_owned(), into: Some(Register::Verdict) }, &text)
    }

    /// `STATEMENT KEY map @MAP`: loads the value of a map, and executes `then` with it.
    pub(super) fn map(self, statement: &str, key: Key, map: &str, then: Expression) -> Self {
        let text = format!("{statement} {} map @{map}", key.words);
        self.push_key(key, Expression::Lookup { set: map.to_owned(), into: Some(Register::FIRST) }, &text)
            .push([then], "")
    }

    /// `update @SET { KEY timeout 1d counter }`
    pub(super) fn count(self, key: &[Field], set: &str) -> Self {
        let (key, seconds) = (self.key(key), COUNTED_TIMEOUT);
        let text = format!("update @{set} {{ {} timeout {} counter }}", key.words, print_duration(seconds));
        self.push_key(key, Expression::DynsetCount { set: set.to_owned(), seconds }, &text)
    }

    /// `update @MAP { KEY timeout … : VALUE }`
    pub(super) fn update(self, map: &str, key: &[Field], seconds: u32, value: &[Field]) -> Self {
        let (key, map) = (self.key(key), map.to_owned());
        let (start, value) = (Register::Word(key.end), self.key_at(key.end, value));
        let timeout = print_duration(seconds);
        let text = format!("update @{map} {{ {} timeout {timeout} : {} }}", key.words, value.words);
        self.push(key.loads, "").push_key(value, Expression::DynsetUpdate { map, value: start, seconds }, &text)
    }

    /// `delete @MAP { KEY : VALUE }`
    pub(super) fn delete(self, map: &str, key: &[Field], value: &[Field]) -> Self {
        let (key, map) = (self.key(key), map.to_owned());
        let (start, value) = (Register::Word(key.end), self.key_at(key.end, value));
        let text = format!("delete @{map} {{ {} : {} }}", key.words, value.words);
        self.push(key.loads, "").push_key(value, Expression::DynsetDelete { map, value: start }, &text)
    }

    /// `ether daddr set KEY map @MAP`
    pub(super) fn set_destination_mac(self, key: Key, map: &str) -> Self {
        self.map("ether daddr set", key, map, Expression::SetLinkHeader { offset: DESTINATION_MAC, length: MAC_LENGTH })
    }

    /// `ip daddr set KEY map @MAP`
    pub(super) fn set_destination(self, key: &[Field], map: &str) -> Self {
        let (key, family) = (self.key(key), self.family);
        self.map(&format!("{} daddr set", family_name(family)), key, map, Expression::SetDestination(family))
    }

    /// `dnat ip to KEY map @MAP`
    pub(super) fn dnat(self, key: &[Field], map: &str) -> Self {
        let (key, family) = (self.key(key), self.family);
        self.map(&format!("dnat {} to", family_name(family)), key, map, Expression::Dnat(family))
    }

    pub(super) fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto(chain.to_owned()))
    }

    pub(super) fn verdict(self, verdict: Verdict) -> Self {
        let text = verdict.to_string();
        self.push([Expression::Verdict(verdict)], &text)
    }
}

pub(super) fn equals(value: impl Into<Vec<u8>>) -> Expression {
    Expression::Compare { relation: Relation::Equal, value: value.into() }
}

/// Whether any bit is set in a value of this length.
pub(super) fn is_not_zero(length: usize) -> Expression {
    Expression::Compare { relation: Relation::NotEqual, value: vec![0; length] }
}

fn is_protocol(number: u8) -> [Expression; 2] {
    [Expression::Meta { key: Meta::L4Proto, into: Register::FIRST }, equals([number])]
}

/// The protocol of Ethernet for this family (ETH_P_*).
fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

fn hop_limit(family: Family) -> (&'static str, u32) {
    match family {
        Family::V4 => HOP_LIMIT_V4,
        Family::V6 => HOP_LIMIT_V6,
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        TCP => "tcp",
        UDP => "udp",
        SCTP => "sctp",
        _ => "th",
    }
}

/// A duration as `nft` prints it: `1d2h3m4s`.
pub fn print_duration(seconds: u32) -> String {
    let mut left = seconds;
    let mut text = String::new();
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")] {
        if left >= unit {
            text += &format!("{}{name}", left / unit);
            left %= unit;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_in_the_largest_units() {
        for (seconds, text) in [(10_800, "3h"), (60, "1m"), (86_400, "1d"), (93_784, "1d2h3m4s"), (59, "59s")] {
            assert_eq!(print_duration(seconds), text);
        }
    }
}
