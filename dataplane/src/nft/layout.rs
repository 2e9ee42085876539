//! What never changes in a table: its sets and maps, its chains and their rules.
//!
//! This is data; [`super::codec::request`] tells the kernel, and [`super::codec::dump`] compares it with what the kernel has. A table
//! whose skeleton is not exactly this one was made by another version or changed by somebody, and is replaced whole.

mod family;
mod field;
mod link;
mod returns;

pub use family::{hooked, remember, way};
pub use link::ingress;
pub use returns::returning;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crds::service::Family;

use super::codec::expression::Expression;
use crate::snapshot::LinkName;

/// The name of the tables. Nobody else's is ever touched.
pub const NAME: &str = "landfall";
/// What a person who finds a table should know. It is part of the skeleton: another wording is another version.
pub const COMMENT: &str = "Landfall forwards LoadBalancer addresses here; made by landfall node; version 7";

/// A table of ours. There is one for each family, since IPv4 should not pay for rules of IPv6, and one for frames that
/// have not come as far as that; one transaction changes all of them. Each is there only if it has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `ip landfall`.
    V4,
    /// `ip6 landfall`.
    V6,
    /// `netdev landfall`: frames as they come in by a link, of both families.
    Link,
}

impl Table {
    /// All of them, in the order in which they are changed.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Link];

    /// The one that packets to an lb_ip are translated in.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one for this family.
    pub fn of_family(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// The family of the addresses in it, if there is but one.
    pub fn family(self) -> Option<Family> {
        match self {
            Self::V4 => Some(Family::V4),
            Self::V6 => Some(Family::V6),
            Self::Link => None,
        }
    }

    /// How messages name its family (NFPROTO_*).
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
            Self::Link => 5,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
            Self::Link => "netdev",
        };
        write!(f, "{family} {NAME}")
    }
}

/// What the values of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// There are none: a set.
    None,
    /// Verdicts.
    Verdict,
    /// Addresses of this family with ports.
    Endpoint(Family),
    /// Values of this type.
    Plain(Type),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// The types of the parts of its key.
    pub key: Vec<Type>,
    /// What its values are.
    pub data: Data,
    /// Whether its keys are ranges.
    pub ranges: bool,
    /// Whether rules put something in that goes by itself after a while, and then how many there may be at once. Not
    /// our business what.
    pub learned: Option<u32>,
    /// Whether every look that finds an element counts the packet there.
    pub counts: bool,
    /// Whether it has some elements for each Service.
    pub many: bool,
    /// What a person should know about it.
    pub comment: &'static str,
}

impl Set {
    /// One whose keys are no ranges, and in which only the agent puts something.
    fn new(name: &'static str, key: &[Type], data: Data, comment: &'static str) -> Self {
        Self { name, key: key.to_vec(), data, ranges: false, learned: None, counts: false, many: false, comment }
    }

    /// The type of its key as one number, as `nft` writes it.
    pub fn key_type(&self) -> u32 {
        concatenated(&self.key)
    }

    /// How many bytes its key has.
    pub fn key_length(&self) -> u32 {
        // Only where parts are put together, each of them begins a quarter of a register.
        match self.key[..] {
            [only] => only.bytes(),
            _ => length(&self.key),
        }
    }

    /// The type and the length of its values.
    pub fn data(&self) -> Option<(u32, u32)> {
        match self.data {
            Data::None => None,
            Data::Verdict => Some((VERDICT, 0)),
            Data::Endpoint(family) => {
                let parts = endpoint(family);
                Some((concatenated(&parts), length(&parts)))
            }
            Data::Plain(kind) => Some((kind as u32, kind.bytes())),
        }
    }

    /// Its flags (enum nft_set_flags).
    pub fn flags(&self) -> u32 {
        let ranges = match (self.ranges, self.parts().is_some()) {
            (true, true) => SET_INTERVAL | SET_CONCATENATION,
            (true, false) => SET_INTERVAL,
            (false, _) => 0,
        };
        let learned = if self.learned.is_some() { SET_TIMEOUT | SET_DYNAMIC } else { 0 };
        let many = if self.many { SET_TIMEOUT } else { 0 };
        let map = if self.data == Data::None { 0 } else { SET_MAP };
        ranges | learned | many | map
    }

    /// How many elements it may have, where it gets `count` at once; `None`: any number.
    ///
    /// The kernel keeps elements in a hash table. One that was not made for as many as come in a transaction it can't make
    /// larger before that is over: it puts a second one beside it, a third, and looks into each of them for every element.
    /// A set has to have a size to be made for so many; and has to be one whose elements can go by themselves, or else its
    /// table will never be made larger at all. The kernel takes a third more, up to a power of two: so does this. But it looks
    /// at the lower 16 bits alone: beyond those, all of them are set, and a table is made for 65,535.
    pub fn size(&self, count: usize) -> Option<u32> {
        let count = u32::try_from(count).unwrap_or(MOST).clamp(LEAST, MOST);
        let room = (count + count.div_ceil(3)).next_power_of_two() / 4 * 3;
        let low = u32::from(u16::MAX);
        self.learned.or(self.many.then_some(if room > low { room | low } else { room }))
    }

    /// How many bytes each part of its key has, if the kernel must know: for ranges in several parts.
    pub fn parts(&self) -> Option<Vec<u32>> {
        (self.ranges && self.key.len() > 1).then(|| self.key.iter().map(|kind| kind.bytes()).collect())
    }
}

/// How often the kernel looks through such a set for elements whose time is over, which none of them has: as seldom as can be
/// said in a round number.
pub const LOOK_THROUGH: Duration = Duration::from_hours(24);
/// A set of many has room for so many at least.
const LEAST: u32 = 768;
/// And at most.
const MOST: u32 = 3 << 28;

/// The type of a verdict (NFT_DATA_VERDICT).
pub const VERDICT: u32 = 0xffff_ff00;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
const SET_CONCATENATION: u32 = 0x80;

/// Types one after the other, six bits each.
fn concatenated(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, kind| all << 6 | *kind as u32)
}

/// How many bytes these take one after the other: each begins a quarter of a register.
fn length(types: &[Type]) -> u32 {
    types.iter().map(|kind| 4 * u32::from(kind.quarters())).sum()
}

/// The parts of an endpoint.
pub fn endpoint(family: Family) -> [Type; 2] {
    [Type::address(family), Type::Port]
}

/// The type of a part of a key: its number in `nft`, by which `nft` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    /// A number: what `numgen` yields. It has no name in `nft`.
    Integer = 4,
    /// An IPv4 address.
    V4 = 7,
    /// An IPv6 address.
    V6 = 8,
    /// A MAC address.
    Mac = 9,
    /// A transport protocol.
    Protocol = 12,
    /// A port.
    Port = 13,
    /// A class of packets in queues: a number in two parts.
    Class = 23,
    /// The name of a network interface.
    LinkName = 41,
}

impl Type {
    /// An address of this family.
    pub fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// How many bytes it has.
    fn bytes(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Integer | Self::V4 | Self::Class => 4,
            Self::Mac => 6,
            Self::V6 | Self::LinkName => 16,
        }
    }

    /// How many quarters of registers it takes.
    fn quarters(self) -> u8 {
        match self {
            Self::V6 | Self::LinkName => 4,
            Self::Mac => 2,
            Self::Integer | Self::V4 | Self::Protocol | Self::Port | Self::Class => 1,
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel calls it, if it does.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Vec<Expression>>,
}

/// Where the kernel calls a chain. The policy is always to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The type of the chain: `nat`, `filter` or `route`.
    pub kind: &'static str,
    /// The hook (NF_INET_*, or NF_NETDEV_*).
    pub number: u32,
    /// The priority.
    pub priority: i32,
    /// The link that it is at, in the table of frames.
    pub link: Option<LinkName>,
}

/// All sets and maps of a table, in the order in which they are made.
pub fn sets(table: Table) -> Vec<Set> {
    table.family().map_or_else(link::sets, family::sets)
}

/// All chains of a table that are always there, those first that others go to.
pub fn chains(table: Table) -> Vec<Chain> {
    table.family().map_or_else(link::chains, family::chains)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_many_is_made_for_all_that_come_as_far_as_the_kernel_lets_it() {
        let set = Set { many: true, ..Set::new("many", &[Type::V4], Data::None, "") };
        for count in [0, 1, 768, 769, 49_152, 49_153, 65_536, 98_304, 100_000, 196_608, 240_000, 5_000_000] {
            let size = set.size(count).expect("a size") as usize;
            assert!(size >= count, "{count}");
            // Of the size it takes 16 bits, a third more, and up to a power of two.
            let buckets = ((size & 0xffff) * 4 / 3).next_power_of_two();
            assert!(buckets >= count.min(131_072), "{count}: {size}, {buckets}");
            assert!(buckets <= (4 * count).max(1024), "{count}: {size}, {buckets}");
        }
        let few = Set::new("few", &[Type::V4], Data::None, "");
        assert_eq!(few.size(5), None);
    }
}
