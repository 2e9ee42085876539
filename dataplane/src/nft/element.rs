//! What the maps of the tables hold: [`Ruleset`] → [`Elements`], by [`elements`].
//!
//! Chains that are a way to one of N endpoints count as elements here: they come and go with the numbers of endpoints
//! there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crds::service::Family;
use crds::{Protocol, Range};

use super::skeleton::Table;
use crate::ruleset::{LbIp, Pick, Ruleset, Way};

/// Everything the tables hold besides their skeletons.
pub type Elements = BTreeMap<Key, Value>;

/// An lb_ip, a protocol and a port: where a client's packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The lb_ip.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Which element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// All of the set `pods`.
    Pods(Table),
    /// A chain `…pick-…`.
    Way(Table, Way),
    /// A chain `remember-…`: for how many seconds.
    Remember(Table, u32),
    /// In `addresses`: an lb_ip.
    Address(IpAddr),
    /// In `services`.
    Service(Frontend),
    /// In `inside`.
    Inside(Frontend),
    /// In `refused`.
    Refused(Frontend),
    /// In `remember`.
    Remembered(Frontend),
    /// In `sources`: clients from this range may.
    Source(Frontend, Range),
    /// In `endpoints`: the endpoint with this index.
    Endpoint(Frontend, u32),
    /// In `local`: an lb_ip and the address of an endpoint of it on this node.
    Local(IpAddr, IpAddr),
    /// In `hairpin`: the same, as source and destination at once.
    Hairpin(IpAddr, IpAddr),
}

/// What an element holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing: it is there.
    Present,
    /// A verdict: to the chain that is this way.
    Way(Way),
    /// A verdict: to the chain that remembers for so many seconds.
    Remember(u32),
    /// A verdict: to the chain that refuses.
    Refuse {
        /// Only clients that may use it are told; others hear nothing.
        restricted: bool,
    },
    /// Where to send the packet.
    Endpoint(SocketAddr),
    /// Ranges, in order, of which no two touch.
    Ranges(Vec<Range>),
}

impl Key {
    /// The table that it is in.
    pub fn table(&self) -> Table {
        match self {
            Self::Pods(table) | Self::Way(table, _) | Self::Remember(table, _) => *table,
            Self::Address(address) | Self::Local(address, _) | Self::Hairpin(address, _) => Table::of(*address),
            Self::Service(frontend)
            | Self::Inside(frontend)
            | Self::Refused(frontend)
            | Self::Remembered(frontend)
            | Self::Source(frontend, _)
            | Self::Endpoint(frontend, _) => Table::of(frontend.address),
        }
    }
}

impl fmt::Display for Key {
    /// As a person would look it up in the output of `nft list table`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(table) => write!(f, "set pods of {table}"),
            Self::Way(table, way) => write!(f, "chain {} of {table}", chain(*way)),
            Self::Address(address) => write!(f, "{address} in addresses"),
            Self::Service(frontend) => write!(f, "{frontend} in services"),
            Self::Inside(frontend) => write!(f, "{frontend} in inside"),
            Self::Refused(frontend) => write!(f, "{frontend} in refused"),
            Self::Remember(table, seconds) => write!(f, "chain {} of {table}", remembering(*seconds)),
            Self::Remembered(frontend) => write!(f, "{frontend} in remember"),
            Self::Source(frontend, range) => write!(f, "{frontend} from {range} in sources"),
            Self::Endpoint(frontend, index) => write!(f, "{frontend} number {index} in endpoints"),
            Self::Local(address, endpoint) => write!(f, "{address} . {endpoint} in local"),
            Self::Hairpin(address, endpoint) => write!(f, "{address} . {endpoint} in hairpin"),
        }
    }
}

/// What the name of a chain begins with that only some clients may go.
const RESTRICTED: &str = "restricted-";
/// What the name of a chain begins with that is remembered, before for how long.
const STICKY: &str = "sticky-";
/// The name of the chain that refuses.
const REFUSE: &str = "refuse";
/// What the name of a chain begins with that remembers, before for how long.
const REMEMBER: &str = "remember-";

/// The name of the chain that is this way.
pub fn chain(way: Way) -> String {
    let restricted = if way.restricted { RESTRICTED } else { "" };
    let sticky = way.affinity.map(|seconds| format!("{STICKY}{seconds}-")).unwrap_or_default();
    match way.pick {
        Pick { from: 0, count } => format!("{restricted}{sticky}pick-{count}"),
        Pick { from, count } => format!("{restricted}{sticky}pick-{count}-from-{from}"),
    }
}

/// The way that a chain of this name is.
pub fn way(name: &str) -> Option<Way> {
    let (restricted, rest) = name.strip_prefix(RESTRICTED).map_or((false, name), |rest| (true, rest));
    let (affinity, rest) = match rest.strip_prefix(STICKY) {
        Some(sticky) => {
            let (seconds, rest) = sticky.split_once('-')?;
            (Some(seconds.parse().ok()?), rest)
        }
        None => (None, rest),
    };
    let numbers = rest.strip_prefix("pick-")?;
    let (count, from) = numbers.split_once("-from-").unwrap_or((numbers, "0"));
    let pick = Pick { from: from.parse().ok()?, count: count.parse().ok()? };
    let way = Way { pick, restricted, affinity };
    // One way has one name.
    (chain(way) == name).then_some(way)
}

/// The name of the chain that remembers for so many seconds.
pub fn remembering(seconds: u32) -> String {
    format!("{REMEMBER}{seconds}")
}

/// For how many seconds a chain of this name remembers.
pub fn remembers(name: &str) -> Option<u32> {
    let seconds = name.strip_prefix(REMEMBER)?.parse().ok()?;
    (remembering(seconds) == name).then_some(seconds)
}

/// The name of the chain that refuses: all, or only clients that may use what they ask for.
pub fn refusing(restricted: bool) -> String {
    if restricted { format!("{RESTRICTED}{REFUSE}") } else { REFUSE.to_owned() }
}

/// The elements of a whole ruleset.
pub fn elements(ruleset: &Ruleset) -> Elements {
    let mut elements: Elements = shared(ruleset).into_iter().collect();
    for (address, lb_ip) in &ruleset.addresses {
        elements.extend(of_address(*address, lb_ip));
    }
    elements
}

/// The elements that don't belong to a single lb_ip.
pub fn shared(ruleset: &Ruleset) -> Vec<(Key, Value)> {
    let pods = Table::ALL.into_iter().filter_map(|table| {
        let ranges = ruleset.pod_ranges.iter().filter(|range| Table::of(range.first()) == table);
        let ranges: Vec<_> = ranges.copied().collect();
        // A table without any lb_ip is not needed, so it holds nothing either.
        (!ranges.is_empty() && is_needed(ruleset, table)).then_some((Key::Pods(table), Value::Ranges(ranges)))
    });
    let ways = ruleset.ways().map(|(family, way)| (Key::Way(Table::of_family(family), way), Value::Present));
    let times = ruleset.ways().filter_map(|(family, way)| way.affinity.map(|seconds| (family, seconds)));
    let times: BTreeSet<(Family, u32)> = times.collect();
    let remember =
        times.into_iter().map(|(family, seconds)| (Key::Remember(Table::of_family(family), seconds), Value::Present));
    pods.chain(ways).chain(remember).collect()
}

/// Whether there is anything to forward in this table.
pub fn is_needed(ruleset: &Ruleset, table: Table) -> bool {
    // Addresses are in order, IPv4 before IPv6.
    let some = match table {
        Table::V4 => ruleset.addresses.first_key_value(),
        Table::V6 => ruleset.addresses.last_key_value(),
    };
    some.is_some_and(|(address, _)| Table::of(*address) == table)
}

/// The elements of one lb_ip.
pub fn of_address(address: IpAddr, lb_ip: &LbIp) -> Vec<(Key, Value)> {
    let mut elements = vec![(Key::Address(address), Value::Present)];
    let mut local = BTreeSet::new();
    for (&(protocol, port), target) in &lb_ip.ports {
        let frontend = Frontend { address, protocol, port };
        if target.endpoints.is_empty() {
            elements.push((Key::Refused(frontend), Value::Refuse { restricted: target.sources.is_some() }));
        }
        let (outside, inside) = (target.way_from_outside(), target.way_from_inside());
        if let Some(way) = outside {
            elements.push((Key::Service(frontend), Value::Way(way)));
        }
        if let Some(way) = inside.filter(|_| inside != outside) {
            elements.push((Key::Inside(frontend), Value::Way(way)));
        }
        if let Some(seconds) = target.affinity.filter(|_| !target.endpoints.is_empty()) {
            elements.push((Key::Remembered(frontend), Value::Remember(seconds)));
        }
        let sources = target.sources.iter().flat_map(|ranges| ranges.iter());
        elements.extend(sources.map(|range| (Key::Source(frontend, *range), Value::Present)));
        for (index, endpoint) in (0..).zip(&target.endpoints) {
            elements.push((Key::Endpoint(frontend, index), Value::Endpoint(endpoint.address)));
            if !endpoint.remote {
                local.insert(endpoint.address.ip());
            }
        }
    }
    for endpoint in local {
        elements.push((Key::Local(address, endpoint), Value::Present));
        elements.push((Key::Hairpin(address, endpoint), Value::Present));
    }
    elements
}
