//! A rule as the line that `nft list` prints for it. Pure.
//!
//! Goes through the steps of a rule as the kernel does, but with words in the registers: what is loaded is named, and
//! what is done with it becomes a part of the line. What `nft` itself adds to a rule, to make sure that there is a header
//! before it looks into one, it leaves out when it prints; so does this.

use std::collections::BTreeMap;

use crds::service::Family;

use crate::nft::codec::expression::{Expression, Header, Marked, Meta, Register, Relation, Verdict};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// The line of a rule with these steps.
pub(super) fn line(rule: &[Expression]) -> String {
    let mut line = Line::default();
    rule.iter().for_each(|step| line.step(step));
    line.end()
}

/// What a register holds.
#[derive(Clone, Debug)]
struct Held {
    words: String,
    kind: Kind,
}

/// How it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// As words that nothing is compared with.
    Plain,
    /// Only to make sure of a header.
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
    /// By the quarter that it begins with.
    held: BTreeMap<u8, Held>,
    mask: Option<Vec<u8>>,
    /// The least value, if the last comparison was with one.
    least: Option<u8>,
    /// The protocol that the packet has, and where that would have to be said, unless what follows says it.
    protocol: Option<u8>,
    unsaid: Option<usize>,
}

impl Line {
    fn step(&mut self, step: &Expression) {
        match step {
            Expression::Payload { header, offset, length, into } => {
                let (words, kind) = self.payload(*header, *offset, *length);
                self.load(*into, words, kind);
            }
            Expression::Protocol { into } => self.load(*into, "meta l4proto", Kind::Protocol),
            Expression::Meta { what, into } => {
                let (words, kind) = match what {
                    Meta::NetworkProtocol => ("meta protocol", Kind::Implied),
                    Meta::InterfaceType => ("meta iiftype", Kind::Implied),
                    Meta::Priority => ("meta priority", Kind::Plain),
                    Meta::Interface => ("iif", Kind::Interface),
                    Meta::InterfaceName => ("iifname", Kind::InterfaceName),
                };
                self.load(*into, words, kind);
            }
            Expression::IsFragment { into } => self.load(*into, "exthdr frag", Kind::Fragment),
            Expression::Hash { from, length, modulus, offset, into } => {
                let first = quarter(*from);
                let behind = u32::from(first) + length / 4;
                let hashed: Vec<u8> =
                    self.held.range(first..).map(|(at, _)| *at).filter(|at| u32::from(*at) < behind).collect();
                let words: Vec<_> =
                    hashed.iter().filter_map(|at| self.held.remove(at)).map(|held| held.words).collect();
                let words = format!(
                    "jhash {} mod {modulus} seed {:#x}{}",
                    words.join(" . "),
                    Expression::SEED,
                    from_on(*offset)
                );
                self.held.insert(quarter(*into), Held { words, kind: Kind::Plain });
            }
            Expression::Random { modulus, offset, into } => {
                self.load(*into, format!("numgen random mod {modulus}{}", from_on(*offset)), Kind::Plain);
            }
            Expression::State { into } => self.load(*into, "ct state", Kind::State),
            Expression::Status { into } => self.load(*into, "ct status", Kind::Status),
            Expression::OriginalDestination { family, into } => {
                self.load(*into, format!("ct original {} daddr", name(*family)), Kind::Plain);
            }
            Expression::OriginalPort { into } => self.load(*into, "ct original proto-dst", Kind::Plain),
            Expression::AnsweringPort { into } => self.load(*into, "ct reply proto-src", Kind::Plain),
            Expression::SourceType { into } => self.load(*into, "fib saddr type", Kind::SourceType),
            Expression::Mask(mask) => self.mask = Some(mask.clone()),
            Expression::Compare { relation, value } => self.compare(*relation, value),
            Expression::Lookup { set, into: None } => {
                let key = self.key();
                self.say(format!("{key} @{set}"));
            }
            Expression::Lookup { set, into: Some(Register::Verdict) } => {
                let key = self.key();
                self.say(format!("{key} vmap @{set}"));
            }
            Expression::Lookup { set, into: Some(into) } => {
                let words = format!("{} map @{set}", self.key());
                self.load(*into, words, Kind::Plain);
            }
            Expression::Absent { set } => {
                let key = self.key();
                self.say(format!("{key} != @{set}"));
            }
            Expression::Update { map, value, seconds } => {
                let value = self.split(*value);
                let key = self.key();
                self.say(format!("update @{map} {{ {key} timeout {} : {value} }}", duration(*seconds)));
            }
            Expression::Forget { map, value } => {
                let value = self.split(*value);
                let key = self.key();
                self.say(format!("delete @{map} {{ {key} : {value} }}"));
            }
            Expression::Count { set, seconds } => {
                let key = self.key();
                self.say(format!("update @{set} {{ {key} timeout {} counter }}", duration(*seconds)));
            }
            Expression::Write { offset, .. } => {
                let (to, _) = self.payload(Header::Link, *offset, 6);
                let value = self.key();
                self.say(format!("{to} set {value}"));
            }
            Expression::SetDestination(family) => {
                let value = self.key();
                self.say(format!("{} daddr set {value}", name(*family)));
            }
            Expression::SetPort { protocol } => {
                let value = self.key();
                self.say(format!("{} dport set {value}", protocol_name(*protocol)));
            }
            Expression::SetPortAlone => {
                let value = self.key();
                self.say(format!("udp dport set {value}"));
            }
            Expression::Direction { into } => self.load(*into, "ct direction", Kind::Direction),
            Expression::Mark(what) => self.load(Register::FIRST, mark(*what), Kind::Mark),
            Expression::Blend { keep, set } => {
                let words = format!("{} & {keep:#010x} | {set:#010x}", self.key());
                self.load(Register::FIRST, words, Kind::Mark);
            }
            Expression::SetMark(what) => {
                let value = self.key();
                self.say(format!("{} set {value}", mark(*what)));
            }
            Expression::Nothing => self.load(Register::FIRST, "none", Kind::Plain),
            Expression::SetPriority => {
                let value = self.key();
                self.say(format!("meta priority set {value}"));
            }
            Expression::Forward => {
                let to = self.key();
                self.say(format!("fwd to {to}"));
            }
            Expression::Dnat(family) => {
                let to = self.key();
                self.say(format!("dnat {} to {to}", name(*family)));
            }
            Expression::Verdict(verdict) => self.say(match verdict {
                Verdict::Accept => "accept".to_owned(),
                Verdict::Drop => "drop".to_owned(),
                Verdict::Return => "return".to_owned(),
                Verdict::Jump(chain) => format!("jump {chain}"),
                Verdict::Goto(chain) => format!("goto {chain}"),
            }),
            Expression::Masquerade => self.say("masquerade fully-random".to_owned()),
            Expression::Redirect => self.say("redirect".to_owned()),
            Expression::Reset => {
                self.unsaid = None;
                self.say("reject with tcp reset".to_owned());
            }
            Expression::Unreachable(_) => self.say("reject".to_owned()),
            // One byte has no order.
            Expression::ToNetworkOrder { .. } => {}
        }
    }

    fn end(mut self) -> String {
        if let (Some(at), Some(protocol)) = (self.unsaid, self.protocol) {
            self.words.insert(at, format!("meta l4proto {}", protocol_name(protocol)));
        }
        self.words.join(" ")
    }

    fn say(&mut self, words: String) {
        self.words.push(words);
        self.least = None;
    }

    /// What begins the first register begins a new key.
    fn load(&mut self, into: Register, words: impl Into<String>, kind: Kind) {
        if into == Register::FIRST {
            self.held.clear();
        }
        self.held.insert(quarter(into), Held { words: words.into(), kind });
    }

    /// All that the registers hold, as one key.
    fn key(&self) -> String {
        self.held.values().map(|held| held.words.as_str()).collect::<Vec<_>>().join(" . ")
    }

    /// What they hold from this one on, which is the key no more.
    fn split(&mut self, from: Register) -> String {
        let value = self.held.split_off(&quarter(from));
        value.into_values().map(|held| held.words).collect::<Vec<_>>().join(" . ")
    }

    /// What these bytes of a packet are called.
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
                self.unsaid = None;
                let version = if self.protocol == Some(ICMP) { "icmp" } else { "icmpv6" };
                (format!("{version} type"), Kind::IcmpType)
            }
            (Header::Transport, 13, 1) if self.protocol == Some(TCP) => {
                self.unsaid = None;
                ("tcp flags".to_owned(), Kind::TcpFlags)
            }
            (Header::Transport, 0 | 2, 2) => {
                let known = self.protocol.filter(|protocol| [TCP, UDP, SCTP].contains(protocol));
                if known.is_some() {
                    self.unsaid = None;
                }
                let of = known.map_or_else(|| "th".to_owned(), protocol_name);
                plain(&format!("{of} {}", if offset == 0 { "sport" } else { "dport" }))
            }
            (Header::Transport, 6, 2) if self.protocol == Some(UDP) => {
                self.unsaid = None;
                ("udp checksum".to_owned(), Kind::Checksum)
            }
            (Header::Transport, ..) => plain(&format!("@th,{},{}", offset * 8, length * 8)),
        }
    }

    fn compare(&mut self, relation: Relation, value: &[u8]) {
        let Some(Held { words, kind }) = self.held.get(&0).cloned() else { return };
        let mask = self.mask.take();
        let first = value.first().copied().unwrap_or_default();
        match (kind, relation) {
            (Kind::Implied, _) => {}
            (Kind::Protocol, Relation::Equal) => {
                self.protocol = Some(first);
                self.unsaid = Some(self.words.len());
            }
            (Kind::TcpFlags, relation) => {
                let no = if relation == Relation::Equal { "! " } else { "" };
                self.say(format!("{words} {no}syn"));
            }
            (Kind::Checksum, relation) => self.say(format!("{words} {}0", sign(relation))),
            // Only some bits of it are asked for by their mask, and all of it as a whole.
            (Kind::State, _) if mask.is_some() => self.say(format!("{words} invalid")),
            (Kind::State, relation) => self.say(format!("{words} {}established", sign(relation))),
            (Kind::Interface, relation) => self.say(format!("{words} {}{first}", sign(relation))),
            (Kind::Status, _) => self.say(format!("{words} dnat")),
            (Kind::SourceType, _) => self.say(format!("{words} local")),
            (Kind::Direction, _) => self.say(format!("{words} {}", if first == 0 { "original" } else { "reply" })),
            (Kind::InterfaceName, _) => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                self.say(format!("{words} {}{:?}", sign(relation), String::from_utf8_lossy(&value[..end])));
            }
            // Numbers of the machine's own order.
            (Kind::Mark, _) => {
                let of = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default();
                let mask = mask.map(|mask| format!(" & {:#010x}", of(&mask))).unwrap_or_default();
                let sign = if relation == Relation::Equal { "== " } else { sign(relation) };
                self.say(format!("{words}{mask} {sign}{:#010x}", of(value)));
            }
            (Kind::Fragment, _) => self.say(format!("{words} exists")),
            (Kind::FragmentOffset, _) => {
                let mask = mask.unwrap_or_default().iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
                self.say(format!("{words} & {mask} != 0"));
            }
            (Kind::IcmpType, Relation::AtMost) if self.least.is_some() => {
                let least = self.least.take().unwrap_or_default();
                self.words.pop();
                self.say(format!("{words} {least}-{first}"));
            }
            (Kind::IcmpType, relation) => {
                self.say(format!("{words} {}{}", sign(relation), icmp_type(&words, first)));
                self.least = (relation == Relation::AtLeast).then_some(first);
            }
            (Kind::Plain | Kind::Protocol, relation) => {
                let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                self.say(format!("{words} {}0x{value}", sign(relation)));
            }
        }
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

/// The names of those that rules look for.
fn icmp_type(of: &str, number: u8) -> String {
    let name = match (of, number) {
        ("icmp type", 3) => "destination-unreachable",
        ("icmp type", 8) | ("icmpv6 type", 128) => "echo-request",
        ("icmp type", 11) => "time-exceeded",
        ("icmp type", 12) | ("icmpv6 type", 4) => "parameter-problem",
        _ => return number.to_string(),
    };
    name.to_owned()
}

fn from_on(offset: u32) -> String {
    if offset == 0 { String::new() } else { format!(" offset {offset}") }
}

/// As `nft` writes it: `1d2h3m4s`.
fn duration(seconds: u32) -> String {
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

fn mark(of: Marked) -> &'static str {
    match of {
        Marked::Packet => "meta mark",
        Marked::Connection => "ct mark",
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

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The number of a register; where a verdict goes is none that is loaded.
fn quarter(register: Register) -> u8 {
    match register {
        Register::Verdict => 0,
        Register::Quarter(quarter) => quarter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_the_largest_units() {
        for (seconds, text) in [(10_800, "3h"), (60, "1m"), (86_400, "1d"), (93_784, "1d2h3m4s"), (59, "59s")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
