//! The variable part of the tables: elements of sets and maps, and chains that exist only while they are needed. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crds::{MacAddr, Protocol, Range};

use super::chain_name::ChainName;
use super::dispatch_id::DispatchId;
use super::layout::{SetId, Table};
use crate::link_name::LinkName;
use crate::rules::Frontend;

/// All elements of some tables.
pub type Elements = BTreeMap<ElementKey, ElementValue>;

/// Identifies an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementKey {
    /// A chain that exists only while it is needed.
    Chain(Table, ChainName),
    /// An element of a set or map.
    In(Table, SetId, KeyParts),
}

/// The key of an element in its set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyParts {
    Address(IpAddr),
    Frontend(Frontend),
    /// A frontend and a range of allowed clients.
    FrontendRange(Frontend, Range),
    /// A frontend and the index of an endpoint.
    FrontendIndex(Frontend, u32),
    /// An lb_ip and an endpoint.
    Pair(IpAddr, IpAddr),
    /// An lb_ip, and an endpoint as both source and destination.
    Hairpin(IpAddr, IpAddr),
    AddressProtocol(IpAddr, Protocol),
    DispatchId(DispatchId),
    /// The marker of a share table, and a slot.
    Slot(MacAddr, u32),
    Mac(MacAddr),
    Link(LinkName),
    /// The type of a link.
    LinkType(u16),
    LinkMac(LinkName, MacAddr),
}

/// The value of an element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementValue {
    /// No value: the element of a set, or a chain.
    Present,
    /// A verdict: goto this chain.
    Goto(ChainName),
    /// A verdict: return, since another proxy forwards the port.
    Return,
    DispatchId(DispatchId),
    Endpoint(SocketAddr),
    Address(IpAddr),
    Port(u16),
    /// A MAC address, or the marker of a share table or of a pair of nodes.
    Mac(MacAddr),
}

impl ElementKey {
    pub fn table(&self) -> Table {
        match self {
            Self::Chain(table, _) | Self::In(table, ..) => *table,
        }
    }

    /// The set or map of the element; `None` for a chain.
    pub fn set(&self) -> Option<SetId> {
        match self {
            Self::Chain(..) => None,
            Self::In(_, set, _) => Some(*set),
        }
    }
}

impl fmt::Display for ElementKey {
    /// The text by which a user finds the element in the output of `nft list table`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(table, name) => write!(f, "chain {name} of {table}"),
            Self::In(table, set, key @ KeyParts::DispatchId(_)) => write!(f, "{key} in {} of {table}", set.name()),
            Self::In(_, set, key) => write!(f, "{key} in {}", set.name()),
        }
    }
}

impl fmt::Display for KeyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Frontend(frontend) => write!(f, "{frontend}"),
            Self::FrontendRange(frontend, range) => write!(f, "{frontend} from {range}"),
            Self::FrontendIndex(frontend, index) => write!(f, "{frontend} number {index}"),
            Self::Pair(address, endpoint) | Self::Hairpin(address, endpoint) => write!(f, "{address} . {endpoint}"),
            Self::AddressProtocol(address, protocol) => write!(f, "{address} . {protocol}"),
            Self::DispatchId(id) => write!(f, "{id}"),
            Self::Slot(table, slot) => write!(f, "{table} . {slot}"),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Link(link) => write!(f, "{link}"),
            Self::LinkType(number) => write!(f, "link type {number}"),
            Self::LinkMac(link, mac) => write!(f, "{link} . {mac}"),
        }
    }
}
