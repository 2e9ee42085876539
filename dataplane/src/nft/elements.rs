//! What the maps of the tables hold: [`Ruleset`] → [`Elements`], by [`elements`].
//!
//! Chains that are a way to one of N endpoints count as elements here: they come and go with the numbers of endpoints
//! there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::service::Family;
use crds::{Backend, Protocol, Range};

use super::dispatch_id::Lead;
use super::layout::Table;
use super::optional_chains::Hooked;
use crate::reply_path::Mark;
use crate::rules::backend::Proxied;
use crate::rules::ruleset::{LbIp, Pick, Ruleset, Spreads, Way, Wires};
use crate::rules::spread::{self, Token};
use crate::snapshot::LinkName;
use crds::MacAddr;

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
    Pods(Family),
    /// A chain `…pick-…`.
    Way(Family, Way),
    /// A chain `remember-…`: for how many seconds.
    Remember(Family, u32),
    /// A chain `by-…` or `back-…`, for connections that came in by a link.
    Return(Family, Returning),
    /// A chain at a hook that is there only while it is wanted.
    Hooked(Family, Hooked),
    /// A chain `on-…`, at the ingress of this link.
    Link(LinkName),
    /// In `addresses`: an lb_ip.
    Address(IpAddr),
    /// In `ways`: what stands for a way.
    Lead(Family, Lead),
    /// In `services`.
    Service(Frontend),
    /// In `inside`.
    Inside(Frontend),
    /// In `refused`.
    Refused(Frontend),
    /// In `node-ports`: what packets are readdressed to.
    NodePort(Frontend),
    /// In `cluster-ips`: the same.
    ClusterIp(Frontend),
    /// In `nodes`: this node's own address for node ports of an lb_ip.
    Node(IpAddr),
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
    /// In `traffic`: counts packets.
    Traffic(Frontend),
    /// In `begun`: counts connections.
    Begun(Frontend),
    /// In `spread4` or `spread6`: an lb_ip whose frames are spread.
    Spread(IpAddr),
    /// In `classes4` or `classes6`.
    Class(Frontend),
    /// In `wholes4` or `wholes6`: what is in fragments.
    Whole(IpAddr, Protocol),
    /// In `slots`: a slot of the table that this stands for.
    Slot(Token, u32),
    /// In `hops`: where a frame goes on this link for what stands for nodes.
    Hop(LinkName, Token),
    /// In `peers`: another node.
    Peer(MacAddr),
    /// In `own`: this node, on this link.
    Own(LinkName, MacAddr),
    /// In `alive`: this node or another one that lives, on this link.
    Alive(LinkName, MacAddr),
    /// In `macs`: this node's MAC address on this link.
    Mac(LinkName),
}

/// What a chain does for answers to leave by the link that the request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Returning {
    /// Marks connections that come in by this link.
    Arrives(LinkName, Mark),
    /// Marks answers that are forwarded.
    Leaves(Mark),
    /// Marks answers of this node itself.
    LeavesFromHere(Mark),
}

/// What an element holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Nothing: it is there.
    Present,
    /// A verdict: to the chain that is this way.
    Way(Way),
    /// What stands for a way. No verdict: at each change of a verdict that leads to a chain the kernel looks through all
    /// verdicts of the table, which takes a hundred milliseconds where there are 30,000 Services.
    Lead(Lead),
    /// A verdict: to the chain that remembers for so many seconds.
    Remember(u32),
    /// A verdict: to the chain that refuses.
    Refuse {
        /// Only clients that may use it are told; others hear nothing.
        restricted: bool,
    },
    /// A verdict: back, for it is another proxy's business.
    Leave,
    /// Where to send the packet.
    Endpoint(SocketAddr),
    /// An address in its place.
    NewAddress(IpAddr),
    /// A port in its place.
    NewPort(u16),
    /// Ranges, in order, of which no two touch.
    Ranges(Vec<Range>),
    /// What stands for a table, or for nodes in one.
    Token(Token),
    /// A MAC address.
    Mac(MacAddr),
}

impl Key {
    /// The table that it is in.
    pub fn table(&self) -> Table {
        match self {
            Self::Pods(family)
            | Self::Way(family, _)
            | Self::Lead(family, _)
            | Self::Remember(family, _)
            | Self::Return(family, _)
            | Self::Hooked(family, _) => Table::of_family(*family),
            Self::Link(_)
            | Self::Spread(_)
            | Self::Class(_)
            | Self::Whole(..)
            | Self::Slot(..)
            | Self::Hop(..)
            | Self::Peer(_)
            | Self::Own(..)
            | Self::Alive(..)
            | Self::Mac(_) => Table::Link,
            Self::Address(address) | Self::Node(address) | Self::Local(address, _) | Self::Hairpin(address, _) => {
                Table::of(*address)
            }
            Self::Service(frontend)
            | Self::Inside(frontend)
            | Self::Refused(frontend)
            | Self::Remembered(frontend)
            | Self::NodePort(frontend)
            | Self::ClusterIp(frontend)
            | Self::Source(frontend, _)
            | Self::Endpoint(frontend, _)
            | Self::Traffic(frontend)
            | Self::Begun(frontend) => Table::of(frontend.address),
        }
    }
}

impl fmt::Display for Key {
    /// As a person would look it up in the output of `nft list table`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(_) => write!(f, "set pods of {}", self.table()),
            Self::Way(_, way) => write!(f, "chain {} of {}", chain(*way), self.table()),
            Self::Return(_, one) => write!(f, "chain {} of {}", returning(*one), self.table()),
            Self::Hooked(_, one) => write!(f, "chain {} of {}", one.name(), self.table()),
            Self::Link(link) => write!(f, "chain {} of {}", at(link), self.table()),
            Self::Address(address) => write!(f, "{address} in addresses"),
            Self::Lead(_, lead) => write!(f, "{lead} in ways of {}", self.table()),
            Self::Service(frontend) => write!(f, "{frontend} in services"),
            Self::Inside(frontend) => write!(f, "{frontend} in inside"),
            Self::Refused(frontend) => write!(f, "{frontend} in refused"),
            Self::NodePort(frontend) => write!(f, "{frontend} in node-ports"),
            Self::ClusterIp(frontend) => write!(f, "{frontend} in cluster-ips"),
            Self::Node(address) => write!(f, "{address} in nodes"),
            Self::Remember(_, seconds) => write!(f, "chain {} of {}", remembering(*seconds), self.table()),
            Self::Remembered(frontend) => write!(f, "{frontend} in remember"),
            Self::Source(frontend, range) => write!(f, "{frontend} from {range} in sources"),
            Self::Endpoint(frontend, index) => write!(f, "{frontend} number {index} in endpoints"),
            Self::Local(address, endpoint) => write!(f, "{address} . {endpoint} in local"),
            Self::Hairpin(address, endpoint) => write!(f, "{address} . {endpoint} in hairpin"),
            Self::Traffic(frontend) => write!(f, "{frontend} in traffic"),
            Self::Begun(frontend) => write!(f, "{frontend} in begun"),
            Self::Spread(address) => write!(f, "{address} in spread"),
            Self::Class(frontend) => write!(f, "{frontend} in classes"),
            Self::Whole(address, protocol) => write!(f, "{address} . {protocol} in wholes"),
            Self::Slot(table, slot) => write!(f, "{table} . {slot} in slots"),
            Self::Hop(link, nodes) => write!(f, "{link} . {nodes} in hops"),
            Self::Peer(mac) => write!(f, "{mac} in peers"),
            Self::Own(link, mac) => write!(f, "{link} . {mac} in own"),
            Self::Alive(link, mac) => write!(f, "{link} . {mac} in alive"),
            Self::Mac(link) => write!(f, "{link} in macs"),
        }
    }
}

/// What the name of a chain begins with that only some clients may go.
const RESTRICTED: &str = "restricted-";
/// The names of the chains that hand packets to the Service proxy.
const TO_NODE_PORT: &str = "to-node-port";
const TO_CLUSTER_IP: &str = "to-cluster-ip";
/// What the name of a chain begins with that is remembered, before for how long.
const STICKY: &str = "sticky-";
/// The name of the chain that refuses.
const REFUSE: &str = "refuse";
/// What the name of a chain begins with that remembers, before for how long.
const REMEMBER: &str = "remember-";

/// What the name of a chain begins with that is at the ingress of a link, before its name.
const AT: &str = "on-";

/// The name of the chain at the ingress of this link.
pub fn at(link: &LinkName) -> String {
    format!("{AT}{link}")
}

/// The link at whose ingress a chain of this name is.
pub fn link(name: &str) -> Option<LinkName> {
    LinkName::new(name.strip_prefix(AT)?)
}

/// The name of the chain that is this way.
pub fn chain(way: Way) -> String {
    let restricted = if way.restricted { RESTRICTED } else { "" };
    match way.backend {
        Backend::Endpoints => {}
        Backend::NodePort => return format!("{restricted}{TO_NODE_PORT}"),
        Backend::ClusterIp => return format!("{restricted}{TO_CLUSTER_IP}"),
    }
    let sticky = way.affinity.map(|seconds| format!("{STICKY}{seconds}-")).unwrap_or_default();
    match way.pick {
        Pick { from: 0, count } => format!("{restricted}{sticky}pick-{count}"),
        Pick { from, count } => format!("{restricted}{sticky}pick-{count}-from-{from}"),
    }
}

/// The way that a chain of this name is.
pub fn way(name: &str) -> Option<Way> {
    let (restricted, rest) = name.strip_prefix(RESTRICTED).map_or((false, name), |rest| (true, rest));
    let backends = [(TO_NODE_PORT, Backend::NodePort), (TO_CLUSTER_IP, Backend::ClusterIp)];
    if let Some((_, backend)) = backends.into_iter().find(|(chain, _)| *chain == rest) {
        return Some(Way { restricted, backend, ..Way::default() });
    }
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
    let way = Way { pick, restricted, affinity, backend: Backend::Endpoints };
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

/// What the name of a chain begins with that marks connections, before the mark and the link.
const ARRIVES: &str = "by-";
/// The same of chains that mark answers, before the mark.
const LEAVES: &str = "back-";
const LEAVES_FROM_HERE: &str = "back-from-here-";

/// The name of a chain that marks something.
pub fn returning(returning: Returning) -> String {
    let bits = |mark: Mark| format!("{:#x}-of-{}", mark.value, mark.mask);
    match returning {
        Returning::Arrives(link, mark) => format!("{ARRIVES}{}-{link}", bits(mark)),
        Returning::Leaves(mark) => format!("{LEAVES}{}", bits(mark)),
        Returning::LeavesFromHere(mark) => format!("{LEAVES_FROM_HERE}{}", bits(mark)),
    }
}

/// What a chain of this name marks.
pub fn returns(name: &str) -> Option<Returning> {
    let bits = |text: &str| {
        let (value, mask) = text.split_once("-of-")?;
        let value = u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()?;
        Some(Mark { value, mask: mask.parse().ok()? })
    };
    let found = if let Some(rest) = name.strip_prefix(ARRIVES) {
        let (value, rest) = rest.split_once("-of-")?;
        let (mask, link) = rest.split_once('-')?;
        Returning::Arrives(LinkName::new(link)?, bits(&format!("{value}-of-{mask}"))?)
    } else if let Some(rest) = name.strip_prefix(LEAVES_FROM_HERE) {
        Returning::LeavesFromHere(bits(rest)?)
    } else {
        Returning::Leaves(bits(name.strip_prefix(LEAVES)?)?)
    };
    // One chain has one name.
    (returning(found) == name).then_some(found)
}

/// The name of the chain that refuses: all, or only clients that may use what they ask for.
pub fn refusing(restricted: bool) -> String {
    if restricted { format!("{RESTRICTED}{REFUSE}") } else { REFUSE.to_owned() }
}

/// The elements of a whole ruleset.
pub fn elements(ruleset: &Ruleset) -> Elements {
    all(ruleset).collect()
}

/// The same in no order, each of them once.
pub fn all(ruleset: &Ruleset) -> impl Iterator<Item = (Key, Value)> {
    let mut few: Elements = shared(ruleset).into_iter().collect();
    for (token, table) in ruleset.tables() {
        few.extend(of_table(token, table));
    }
    few.extend(of_wires(&ruleset.wires));
    let of_addresses = ruleset.addresses.iter().flat_map(|(address, lb_ip)| of_address(*address, lb_ip));
    few.into_iter().chain(of_addresses)
}

/// The elements of a table by which frames are spread.
pub fn of_table(token: Token, table: &spread::Table) -> Vec<(Key, Value)> {
    table.slots.iter().map(|(slot, nodes)| (Key::Slot(token, *slot), Value::Token(*nodes))).collect()
}

/// The elements that say where frames go.
pub fn of_wires(wires: &Wires) -> Vec<(Key, Value)> {
    let mut elements = Vec::new();
    for (name, link) in &wires.links {
        elements.push((Key::Link(*name), Value::Present));
        elements.push((Key::Own(*name, link.mac), Value::Present));
        elements.push((Key::Mac(*name), Value::Mac(link.mac)));
        elements.push((Key::Alive(*name, link.mac), Value::Present));
        elements.extend(link.peers.values().map(|mac| (Key::Peer(*mac), Value::Present)));
        let alive = link.peers.iter().filter(|(node, _)| !wires.dead.contains(*node));
        elements.extend(alive.map(|(_, mac)| (Key::Alive(*name, *mac), Value::Present)));
    }
    elements.extend(wires.hops.iter().map(|((link, nodes), mac)| (Key::Hop(*link, *nodes), Value::Mac(*mac))));
    elements
}

/// The elements that don't belong to a single lb_ip.
pub fn shared(ruleset: &Ruleset) -> Vec<(Key, Value)> {
    let pods = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        let ranges = ruleset.pod_ranges.iter().filter(|range| Family::from(range.first()) == family);
        let ranges: Vec<_> = ranges.copied().collect();
        // A table without any lb_ip is not needed, so it holds nothing either.
        let needed = !ranges.is_empty() && is_needed(ruleset, Table::of_family(family));
        needed.then_some((Key::Pods(family), Value::Ranges(ranges)))
    });
    let ways = ruleset.ways().flat_map(|(family, way)| {
        [(Key::Way(family, way), Value::Present), (Key::Lead(family, Lead::to(way)), Value::Way(way))]
    });
    let times = ruleset.ways().filter_map(|(family, way)| way.affinity.map(|seconds| (family, seconds)));
    let times: BTreeSet<(Family, u32)> = times.collect();
    let learning: BTreeSet<Family> = times.iter().map(|(family, _)| *family).collect();
    let learning = learning
        .into_iter()
        .flat_map(|family| [Hooked::LearnsHere, Hooked::Learns].map(|one| (Key::Hooked(family, one), Value::Present)));
    let remember = times.into_iter().map(|(family, seconds)| (Key::Remember(family, seconds), Value::Present));
    let returns =
        ruleset.returns.iter().filter(|one| is_needed(ruleset, Table::of_family(one.family))).flat_map(|one| {
            let chains = [
                Returning::Arrives(one.link, one.mark),
                Returning::Leaves(one.mark),
                Returning::LeavesFromHere(one.mark),
            ];
            chains.map(|chain| (Key::Return(one.family, chain), Value::Present))
        });
    let families = [Family::V4, Family::V6].into_iter();
    let counted = families.filter(|family| some_address(ruleset, *family).is_some_and(|lb_ip| lb_ip.counted));
    let counting = counted.map(|family| (Key::Hooked(family, Hooked::Counts), Value::Present));
    pods.chain(ways).chain(remember).chain(learning).chain(returns).chain(counting).collect()
}

/// An lb_ip of this family that is not left to another proxy, if there is one.
fn some_address(ruleset: &Ruleset, family: Family) -> Option<&Arc<LbIp>> {
    // Addresses are in order, IPv4 before IPv6.
    let is_mine = |(address, _): &(&IpAddr, &Arc<LbIp>)| Family::from(**address) == family;
    let is_ours = |(_, lb_ip): &(&IpAddr, &Arc<LbIp>)| !lb_ip.is_left();
    let found = match family {
        Family::V4 => ruleset.addresses.iter().take_while(is_mine).find(is_ours),
        Family::V6 => ruleset.addresses.iter().rev().take_while(is_mine).find(is_ours),
    };
    found.map(|(_, lb_ip)| lb_ip)
}

/// Whether there is anything to forward in this table.
pub fn is_needed(ruleset: &Ruleset, table: Table) -> bool {
    match table.family() {
        Some(family) => some_address(ruleset, family).is_some(),
        None => ruleset.tables().next().is_some(),
    }
}

/// For how many elements of an lb_ip to make room at first: it is enough for most, and too much for none.
const USUAL: usize = 24;

/// The elements of one lb_ip; none if all of it is left to another proxy.
pub fn of_address(address: IpAddr, lb_ip: &LbIp) -> Vec<(Key, Value)> {
    if lb_ip.is_left() {
        return Vec::new();
    }
    let mut elements = Vec::with_capacity(USUAL);
    elements.push((Key::Address(address), Value::Present));
    let (mut local, mut node) = (BTreeSet::new(), None);
    for (&(protocol, port), target) in &lb_ip.ports {
        let frontend = Frontend { address, protocol, port };
        if target.left {
            elements.push((Key::Refused(frontend), Value::Leave));
            continue;
        }
        match target.proxied {
            Some(Proxied::NodePort(at)) => {
                elements.push((Key::NodePort(frontend), Value::NewPort(at.port())));
                node = Some(at.ip());
            }
            Some(Proxied::ClusterIp(at)) => elements.push((Key::ClusterIp(frontend), Value::NewAddress(at))),
            None => {}
        }
        // There as long as the port is, whatever becomes of endpoints: nothing that was counted is lost.
        elements.push((Key::Begun(frontend), Value::Present));
        if lb_ip.counted {
            elements.push((Key::Traffic(frontend), Value::Present));
        }
        if target.endpoints.is_empty() {
            elements.push((Key::Refused(frontend), Value::Refuse { restricted: target.sources.is_some() }));
        }
        let (outside, inside) = (target.way_from_outside(), target.way_from_inside());
        if let Some(way) = outside {
            elements.push((Key::Service(frontend), Value::Lead(Lead::to(way))));
        }
        if let Some(way) = inside.filter(|_| inside != outside) {
            elements.push((Key::Inside(frontend), Value::Lead(Lead::to(way))));
        }
        if let Some(seconds) = target.affinity.filter(|_| !target.endpoints.is_empty()) {
            elements.push((Key::Remembered(frontend), Value::Remember(seconds)));
        }
        let sources = target.sources.iter().flat_map(|ranges| ranges.iter());
        elements.extend(sources.map(|range| (Key::Source(frontend, *range), Value::Present)));
        for (index, endpoint) in (0..).zip(&target.endpoints) {
            if target.proxied.is_none() {
                elements.push((Key::Endpoint(frontend, index), Value::Endpoint(endpoint.address)));
            }
            if !endpoint.remote {
                local.insert(endpoint.address.ip());
            }
        }
    }
    if let Some(node) = node {
        elements.push((Key::Node(address), Value::NewAddress(node)));
    }
    let mut is_spread = false;
    for (spreads, share, by) in lb_ip.shares() {
        is_spread = true;
        let key = match spreads {
            Spreads::Port(protocol, port) => Key::Class(Frontend { address, protocol, port }),
            Spreads::Whole(protocol) => Key::Whole(address, protocol),
        };
        elements.push((key, Value::Token(share.token_by(by))));
    }
    if is_spread {
        elements.push((Key::Spread(address), Value::Present));
    }
    for endpoint in local {
        elements.push((Key::Local(address, endpoint), Value::Present));
        elements.push((Key::Hairpin(address, endpoint), Value::Present));
    }
    elements
}
