//! A rule as the line that `nft list` prints for it: [`print_rule`]. Pure.
//!
//! It executes the rule like the kernel, but with words in the registers: a load stores the name of the field, and an
//! action puts the names into the line. `nft` adds checks for headers to a rule, and omits them from the output; so
//! does this.

use std::collections::BTreeMap;

use crds::service::Family;

use crate::nft::codec::expression::{Expression, Header, MarkOf, Meta, Register, Relation, Verdict};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// The line for a rule.
pub(super) fn print_rule(rule: &[Expression]) -> String {
    let mut line = Line::default();
    rule.iter().for_each(|step| line.step(step));
    line.finish()
}

/// The content of a register.
#[derive(Clone, Debug)]
struct Content {
    words: String,
    kind: Kind,
}

/// How a content is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In general.
    Plain,
    /// Only to check for a header.
    Implied,
    Protocol,
    IcmpType,
    TcpFlags,
    Checksum,
    FragmentOffset,
    Fragment,
    State,
    Status,
    SourceType,
    Direction,
    Mark,
    Interface,
    InterfaceName,
}

#[derive(Default)]
struct Line {
    words: Vec<String>,
    /// By first word of the register.
    registers: BTreeMap<u8, Content>,
    mask: Option<Vec<u8>>,
    /// The value of the last comparison, if it was a minimum.
    least: Option<u8>,
    /// The protocol of the packet.
    protocol: Option<u8>,
    /// Where the protocol must be printed, unless the next words imply it.
    protocol_at: Option<usize>,
}

impl Line {
    fn step(&mut self, step: &Expression) {
        if !self.load_step(step) {
            self.action_step(step);
        }
    }

    /// Executes an expression that only loads. Returns whether it is one.
    fn load_step(&mut self, step: &Expression) -> bool {
        match step {
            Expression::Payload { header, offset, length, into } => {
                let (words, kind) = self.payload(*header, *offset, *length);
                self.load(*into, words, kind);
            }
            Expression::MetaL4Proto { into } => self.load(*into, "meta l4proto", Kind::Protocol),
            Expression::Meta { key, into } => {
                let (words, kind) = match key {
                    Meta::Protocol => ("meta protocol", Kind::Implied),
                    Meta::IifType => ("meta iiftype", Kind::Implied),
                    Meta::Priority => ("meta priority", Kind::Plain),
                    Meta::Iif => ("iif", Kind::Interface),
                    Meta::IifName => ("iifname", Kind::InterfaceName),
                };
                self.load(*into, words, kind);
            }
            Expression::ExthdrFragment { into } => self.load(*into, "exthdr frag", Kind::Fragment),
            Expression::Jhash { from, length, modulus, offset, into } => {
                let input = self.take_words(*from, *length);
                let seed = Expression::SEED;
                let words = format!("jhash {input} mod {modulus} seed {seed:#x}{}", print_offset(*offset));
                self.registers.insert(first_word(*into), Content { words, kind: Kind::Plain });
            }
            Expression::Numgen { modulus, offset, into } => {
                self.load(*into, format!("numgen random mod {modulus}{}", print_offset(*offset)), Kind::Plain);
            }
            Expression::CtState { into } => self.load(*into, "ct state", Kind::State),
            Expression::CtStatus { into } => self.load(*into, "ct status", Kind::Status),
            Expression::CtOriginalDestination { family, into } => {
                self.load(*into, format!("ct original {} daddr", family_name(*family)), Kind::Plain);
            }
            Expression::CtOriginalPort { into } => self.load(*into, "ct original proto-dst", Kind::Plain),
            Expression::CtReplySourcePort { into } => self.load(*into, "ct reply proto-src", Kind::Plain),
            Expression::CtDirection { into } => self.load(*into, "ct direction", Kind::Direction),
            Expression::FibSourceType { into } => self.load(*into, "fib saddr type", Kind::SourceType),
            Expression::LoadMark(of) => self.load(Register::FIRST, mark_name(*of), Kind::Mark),
            Expression::LoadZero => self.load(Register::FIRST, "none", Kind::Plain),
            Expression::Lookup { set, into: Some(into) } if *into != Register::Verdict => {
                let words = format!("{} map @{set}", self.key());
                self.load(*into, words, Kind::Plain);
            }
            Expression::MaskOr { mask, or } => {
                let words = format!("{} & {mask:#010x} | {or:#010x}", self.key());
                self.load(Register::FIRST, words, Kind::Mark);
            }
            Expression::Mask(mask) => self.mask = Some(mask.clone()),
            // One byte has no order.
            Expression::Byteorder { .. } => {}
            _ => return false,
        }
        true
    }

    /// Executes any other expression.
    fn action_step(&mut self, step: &Expression) {
        let key = self.key();
        let words = match step {
            Expression::Compare { relation, value } => return self.compare(*relation, value),
            Expression::Lookup { set, into: None } => format!("{key} @{set}"),
            Expression::Lookup { set, into: Some(_) } => format!("{key} vmap @{set}"),
            Expression::LookupInverted { set } => format!("{key} != @{set}"),
            Expression::DynsetUpdate { map, value, seconds } => {
                let value = self.take_from(*value);
                format!("update @{map} {{ {} timeout {} : {value} }}", self.key(), print_duration(*seconds))
            }
            Expression::DynsetDelete { map, value } => {
                let value = self.take_from(*value);
                format!("delete @{map} {{ {} : {value} }}", self.key())
            }
            Expression::DynsetCount { set, seconds } => {
                format!("update @{set} {{ {key} timeout {} counter }}", print_duration(*seconds))
            }
            Expression::SetLinkHeader { offset, .. } => {
                let (to, _) = self.payload(Header::Link, *offset, 6);
                format!("{to} set {key}")
            }
            Expression::SetDestination(family) => format!("{} daddr set {key}", family_name(*family)),
            Expression::SetPort { protocol } => format!("{} dport set {key}", protocol_name(*protocol)),
            Expression::SetPortUnchecked => format!("udp dport set {key}"),
            Expression::SetMark(of) => format!("{} set {key}", mark_name(*of)),
            Expression::SetPriority => format!("meta priority set {key}"),
            Expression::Fwd => format!("fwd to {key}"),
            Expression::Dnat(family) => format!("dnat {} to {key}", family_name(*family)),
            Expression::Verdict(Verdict::Accept) => "accept".to_owned(),
            Expression::Verdict(Verdict::Drop) => "drop".to_owned(),
            Expression::Verdict(Verdict::Return) => "return".to_owned(),
            Expression::Verdict(Verdict::Goto(chain)) => format!("goto {chain}"),
            Expression::Masquerade => "masquerade fully-random".to_owned(),
            Expression::Redirect => "redirect".to_owned(),
            Expression::RejectReset => {
                self.protocol_at = None;
                "reject with tcp reset".to_owned()
            }
            Expression::RejectUnreachable(_) => "reject".to_owned(),
            load => unreachable!("invariant: load_step executes {load:?}"),
        };
        self.print(words);
    }

    fn finish(mut self) -> String {
        if let (Some(at), Some(protocol)) = (self.protocol_at, self.protocol) {
            self.words.insert(at, format!("meta l4proto {}", protocol_name(protocol)));
        }
        self.words.join(" ")
    }

    fn print(&mut self, words: String) {
        self.words.push(words);
        self.least = None;
    }

    /// A load into the first register begins a new key.
    fn load(&mut self, into: Register, words: impl Into<String>, kind: Kind) {
        if into == Register::FIRST {
            self.registers.clear();
        }
        self.registers.insert(first_word(into), Content { words: words.into(), kind });
    }

    /// All registers as one key.
    fn key(&self) -> String {
        self.registers.values().map(|content| content.words.as_str()).collect::<Vec<_>>().join(" . ")
    }

    /// The registers from this one on as one key; removes them.
    fn take_from(&mut self, from: Register) -> String {
        let value = self.registers.split_off(&first_word(from));
        value.into_values().map(|content| content.words).collect::<Vec<_>>().join(" . ")
    }

    /// The registers from this one on, up to this length in bytes, as one key; removes them.
    fn take_words(&mut self, from: Register, length: u32) -> String {
        let first = first_word(from);
        let end = u32::from(first) + length / 4;
        let taken: Vec<u8> =
            self.registers.range(first..).map(|(at, _)| *at).filter(|at| u32::from(*at) < end).collect();
        let words: Vec<_> =
            taken.iter().filter_map(|at| self.registers.remove(at)).map(|content| content.words).collect();
        words.join(" . ")
    }

    /// The name of these bytes of a packet.
    fn payload(&mut self, header: Header, offset: u32, length: u32) -> (String, Kind) {
        let plain = |words: &str| (words.to_owned(), Kind::Plain);
        match (header, offset, length) {
            (Header::Link, 0, _) => plain("ether daddr"),
            (Header::Link, 6, _) => plain("ether saddr"),
            (Header::Link, ..) => ("ether type".to_owned(), Kind::Implied),
            (Header::Network, 12, 4) => plain("ip saddr"),
            (Header::Network, 16, 4) => plain("ip daddr"),
            (Header::Network, 8, 16) => plain("ip6 saddr"),
            (Header::Network, 24, 16) => plain("ip6 daddr"),
            (Header::Network, 6, 2) => ("ip frag-off".to_owned(), Kind::FragmentOffset),
            (Header::Network, ..) => plain(&format!("@nh,{},{}", offset * 8, length * 8)),
            (Header::Transport, 0, 1) if [Some(ICMP), Some(ICMPV6)].contains(&self.protocol) => {
                self.protocol_at = None;
                let version = if self.protocol == Some(ICMP) { "icmp" } else { "icmpv6" };
                (format!("{version} type"), Kind::IcmpType)
            }
            (Header::Transport, 13, 1) if self.protocol == Some(TCP) => {
                self.protocol_at = None;
                ("tcp flags".to_owned(), Kind::TcpFlags)
            }
            (Header::Transport, 0 | 2, 2) => {
                let known = self.protocol.filter(|protocol| [TCP, UDP, SCTP].contains(protocol));
                if known.is_some() {
                    self.protocol_at = None;
                }
                let protocol = known.map_or_else(|| "th".to_owned(), protocol_name);
                plain(&format!("{protocol} {}", if offset == 0 { "sport" } else { "dport" }))
            }
            (Header::Transport, 6, 2) if self.protocol == Some(UDP) => {
                self.protocol_at = None;
                ("udp checksum".to_owned(), Kind::Checksum)
            }
            (Header::Transport, ..) => plain(&format!("@th,{},{}", offset * 8, length * 8)),
        }
    }

    fn compare(&mut self, relation: Relation, value: &[u8]) {
        let Some(Content { words, kind }) = self.registers.get(&0).cloned() else { return };
        let mask = self.mask.take();
        let first = value.first().copied().unwrap_or_default();
        let sign = sign(relation);
        let line = match kind {
            Kind::Implied => return,
            Kind::Protocol if relation == Relation::Equal => {
                self.protocol = Some(first);
                self.protocol_at = Some(self.words.len());
                return;
            }
            Kind::TcpFlags => format!("{words} {}syn", if relation == Relation::Equal { "! " } else { "" }),
            Kind::Checksum => format!("{words} {sign}0"),
            // A masked comparison is for single bits, an unmasked one for all.
            Kind::State if mask.is_some() => format!("{words} invalid"),
            Kind::State => format!("{words} {sign}established"),
            Kind::Interface => format!("{words} {sign}{first}"),
            Kind::Status => format!("{words} dnat"),
            Kind::SourceType => format!("{words} local"),
            Kind::Direction => format!("{words} {}", if first == 0 { "original" } else { "reply" }),
            Kind::InterfaceName => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                format!("{words} {sign}{:?}", String::from_utf8_lossy(&value[..end]))
            }
            Kind::Mark => {
                let mask = mask.map(|mask| format!(" & {:#010x}", host_number(&mask))).unwrap_or_default();
                let sign = if relation == Relation::Equal { "== " } else { sign };
                format!("{words}{mask} {sign}{:#010x}", host_number(value))
            }
            Kind::Fragment => format!("{words} exists"),
            Kind::FragmentOffset => {
                let mask = mask.unwrap_or_default().iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
                format!("{words} & {mask} != 0")
            }
            Kind::IcmpType => return self.compare_icmp_type(&words, relation, first),
            Kind::Plain | Kind::Protocol => {
                let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{words} {sign}0x{value}")
            }
        };
        self.print(line);
    }

    /// Two comparisons with a minimum and a maximum become a range.
    fn compare_icmp_type(&mut self, words: &str, relation: Relation, number: u8) {
        if let (Relation::AtMost, Some(least)) = (relation, self.least.take()) {
            self.words.pop();
            self.print(format!("{words} {least}-{number}"));
            return;
        }
        self.print(format!("{words} {}{}", sign(relation), icmp_type_name(words, number)));
        self.least = (relation == Relation::AtLeast).then_some(number);
    }
}

fn sign(relation: Relation) -> &'static str {
    match relation {
        Relation::Equal => "",
        Relation::NotEqual => "!= ",
        Relation::AtMost => "<= ",
        Relation::AtLeast => ">= ",
    }
}

/// A number in host byte order.
fn host_number(bytes: &[u8]) -> u32 {
    bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default()
}

/// The name of a type, if rules compare with it.
fn icmp_type_name(field: &str, number: u8) -> String {
    let name = match (field, number) {
        ("icmp type", 3) => "destination-unreachable",
        ("icmp type", 8) | ("icmpv6 type", 128) => "echo-request",
        ("icmp type", 11) => "time-exceeded",
        ("icmp type", 12) | ("icmpv6 type", 4) => "parameter-problem",
        _ => return number.to_string(),
    };
    name.to_owned()
}

fn print_offset(offset: u32) -> String {
    if offset == 0 { String::new() } else { format!(" offset {offset}") }
}

/// A duration as `nft` prints it: `1d2h3m4s`.
fn print_duration(seconds: u32) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut left = seconds;
    let mut text = String::new();
    for (unit, name) in units {
        if left >= unit {
            text += &format!("{}{name}", left / unit);
            left %= unit;
        }
    }
    text
}

fn mark_name(of: MarkOf) -> &'static str {
    match of {
        MarkOf::Packet => "meta mark",
        MarkOf::Connection => "ct mark",
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The number of the first word. No load goes to the register of verdicts.
fn first_word(register: Register) -> u8 {
    match register {
        Register::Verdict => 0,
        Register::Word(word) => word,
    }
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
