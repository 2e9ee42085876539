//! The fixed part of the tables: sets, maps, chains and rules. Pure.
//!
//! This is data. [`super::codec::request`] sends it to the kernel, and [`super::codec::dump`] compares it with the
//! kernel's tables. A table with any other layout was made by another version or changed by another program, and is
//! replaced whole.
//!
//! | file | content |
//! |---|---|
//! | `sets` | the declarations of all sets and maps |
//! | `ip` | the chains of `ip landfall` and `ip6 landfall`, which translate and refuse |
//! | `netdev` | the chains of `netdev landfall`, which spreads frames |
//! | `second_chance` | the chains that hand segments of unknown connections on to other nodes |
//! | `reply_path` | the chains that mark connections and replies |
//! | `rule` | rules, with their expressions and their text |
//! | `fields` | parts of packets |

mod fields;
mod ip;
mod netdev;
mod reply_path;
mod rule;
mod second_chance;
mod sets;

use std::fmt;
use std::net::IpAddr;

use crds::service::Family;

pub use netdev::FIRST_CLIENT_SLOT;
pub(super) use rule::print_duration;
pub use rule::{ChainRule, ETHERNET};
pub use sets::{Data, Set, SetId, Type, VERDICT, sets};

use super::chain_name::ChainName;
use crate::link_name::LinkName;

/// The name of the tables. Tables of other names are never touched.
pub const NAME: &str = "landfall";
/// The comment on the tables, for a person who finds one. It is part of the layout: another text means another version.
pub const COMMENT: &str = "Landfall forwards LoadBalancer addresses here; made by landfall node; version 9";

/// Hooks of `ip` and `ip6` in several files (NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT).
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;

/// A table of Landfall.
///
/// Each IP family has its own table, so that IPv4 packets do not pass rules of IPv6. A third table handles frames,
/// before the IP tables get the packets. One transaction changes all of them. A table exists only while it has
/// something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `ip landfall`.
    V4,
    /// `ip6 landfall`.
    V6,
    /// `netdev landfall`: frames of both families at the ingress of links.
    Link,
}

impl Table {
    /// All tables, in the order in which a transaction changes them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Link];

    /// The table that translates packets to this lb_ip.
    pub fn for_address(address: IpAddr) -> Self {
        Self::for_family(Family::from(address))
    }

    /// The table that translates packets of this family.
    pub fn for_family(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// The family of its addresses; `None` if it has both.
    pub fn family(self) -> Option<Family> {
        match self {
            Self::V4 => Some(Family::V4),
            Self::V6 => Some(Family::V6),
            Self::Link => None,
        }
    }

    /// The number of its family in messages (NFPROTO_*).
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

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None` for a chain without a hook.
    pub hook: Option<Hook>,
    pub rules: Vec<ChainRule>,
}

/// The hook of a base chain. The policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The type of the chain: `nat`, `filter` or `route`.
    pub kind: &'static str,
    /// NF_INET_* or NF_NETDEV_*.
    pub number: u32,
    pub priority: i32,
    /// The link of the hook; `None` in the IP tables.
    pub link: Option<LinkName>,
}

impl Chain {
    fn regular(name: impl fmt::Display, rules: Vec<ChainRule>) -> Self {
        Self { name: name.to_string(), hook: None, rules }
    }

    fn base(name: impl fmt::Display, hook: Hook, rules: Vec<ChainRule>) -> Self {
        Self { name: name.to_string(), hook: Some(hook), rules }
    }
}

impl Hook {
    fn new(kind: &'static str, number: u32, priority: i32) -> Self {
        Self { kind, number, priority, link: None }
    }
}

/// The fixed chains of a table. Each chain comes after the chains to which its rules go.
pub fn chains(table: Table) -> Vec<Chain> {
    table.family().map_or_else(netdev::chains, ip::chains)
}

/// The chain of this name, which exists only while it is needed; `None` if this table cannot have the chain.
pub fn variable_chain(table: Table, name: ChainName) -> Option<Chain> {
    match (table.family(), name) {
        (Some(family), ChainName::Dispatch(dispatch)) => Some(ip::dispatch_chain(family, dispatch)),
        (Some(family), ChainName::Remember(seconds)) => Some(ip::remember_chain(family, seconds)),
        (Some(family), ChainName::Tries(others)) => Some(second_chance::tries_chain(family, others, ip::STRAY)),
        (Some(family), ChainName::MarkConnection(link, mark)) => Some(reply_path::mark_connections(family, link, mark)),
        (Some(family), ChainName::MarkForwardedReply(mark)) => Some(reply_path::mark_forwarded_replies(family, mark)),
        (Some(family), ChainName::MarkLocalReply(mark)) => Some(reply_path::mark_local_replies(family, mark)),
        (Some(family), ChainName::Optional(chain)) => Some(ip::optional_chain(family, chain)),
        (None, ChainName::Ingress(link)) => Some(netdev::ingress_chain(link)),
        _ => None,
    }
}
