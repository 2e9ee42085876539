//! The declarations of all sets and maps: [`DECLARATIONS`]. A new one needs a variant of [`SetId`], a line there, and
//! its elements in `nft/projection.rs`, unless rules fill it.

use std::time::Duration;

use crds::service::Family;

use super::Table;

/// A set or map, in the order in which they are created. The name of each is its name in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    Addresses,
    Pods,
    Services,
    Inside,
    Ways,
    Refused,
    NodePorts,
    Nodes,
    ClusterIps,
    Sources,
    Endpoints,
    Remember,
    Affinity,
    Local,
    Hairpin,
    Traffic,
    Begun,
    Denied,
    Refusals,
    Strays,
    Elsewhere,
    Spread4,
    Spread6,
    Peers,
    Own,
    Alive,
    Macs,
    Classes4,
    Classes6,
    /// For fragments.
    Wholes4,
    Wholes6,
    Slots,
    Hops,
    Connections4,
    Connections6,
}

/// The first set of `netdev landfall`. Those before are in `ip landfall` and `ip6 landfall`.
const FIRST_NETDEV: usize = SetId::Spread4 as usize;

/// At most this many clients, with their ports, in `affinity` of each family, of all Services. Beyond that, new clients
/// go to any endpoint until others expire. An entry takes some 120 bytes of the kernel, and made-up addresses must not
/// fill its memory.
const AFFINITY_SIZE: u32 = 1 << 18;
/// At most this many entries in a set of each family that rules count in. Packets cannot make up a frontend, so there
/// are no more than Services have; beyond that, packets are dropped uncounted.
const COUNTED_SIZE: u32 = 1 << 16;
/// At most this many TCP connections in each family. Beyond that, new ones go by the share table alone. An entry takes
/// some 150 bytes of the kernel, and made-up addresses must not fill its memory.
const CONNECTIONS_SIZE: u32 = 1 << 18;

/// All sets and maps, by [`SetId`].
static DECLARATIONS: [Declaration; 35] = {
    use SetId::*;
    use Type::{Address as A, Integer, LinkName, Mac, Port, Priority, Protocol, V4, V6};
    const FRONTEND: &[Type] = &[A, Protocol, Port];
    const DISPATCH: Data = Data::Plain(Priority);
    const MAC: Data = Data::Plain(Mac);
    [
        set(Addresses, "addresses", &[A], "every lb_ip").per_service(),
        set(Pods, "pods", &[A], "where this node's pods have their addresses from").interval(),
        map(Services, "services", FRONTEND, DISPATCH, "what is served, and by how many endpoints").per_service(),
        map(Inside, "inside", FRONTEND, DISPATCH, "what else is served to this node and its pods").per_service(),
        map(Ways, "ways", &[Priority], Data::Verdict, "what those stand for"),
        map(Refused, "refused", FRONTEND, Data::Verdict, "what has no endpoint anywhere").per_service(),
        map(NodePorts, "node-ports", FRONTEND, Data::Plain(Port), "which node port leads to the same").per_service(),
        map(Nodes, "nodes", &[A], Data::Plain(A), "this node, as its Service proxy knows it").per_service(),
        map(ClusterIps, "cluster-ips", FRONTEND, Data::Plain(A), "which ClusterIP leads to the same").per_service(),
        set(Sources, "sources", &[A, Protocol, Port, A], "who may use what not everybody may").interval(),
        map(Endpoints, "endpoints", &[A, Protocol, Port, Integer], Data::Endpoint, "where packets are sent to")
            .per_service(),
        map(Remember, "remember", FRONTEND, Data::Verdict, "whose clients stay with their endpoints, and for how long")
            .per_service(),
        map(
            Affinity,
            "affinity",
            &[A, A, Protocol, Port],
            Data::Endpoint,
            "which endpoint a client has; learned by the rules",
        )
        .dynamic(AFFINITY_SIZE),
        set(Local, "local", &[A, A], "endpoints on this node, which see the client's address").per_service(),
        set(Hairpin, "hairpin", &[A, A, A], "endpoints that call themselves").per_service(),
        set(Traffic, "traffic", FRONTEND, "packets that came").per_service().counting(),
        set(Begun, "begun", FRONTEND, "connections that were sent on").per_service().counting(),
        set(Denied, "denied", FRONTEND, "packets dropped because of where they come from").dynamic(COUNTED_SIZE),
        set(Refusals, "refusals", FRONTEND, "packets refused because there is no endpoint").dynamic(COUNTED_SIZE),
        set(Strays, "strays", &[A], "packets dropped because nobody serves them here").dynamic(COUNTED_SIZE),
        set(Elsewhere, "elsewhere", FRONTEND, "endpoints on other nodes that connections were sent to")
            .dynamic(COUNTED_SIZE),
        set(Spread4, "spread4", &[V4], "lb_ips whose frames are spread").per_service(),
        set(Spread6, "spread6", &[V6], "lb_ips whose frames are spread").per_service(),
        set(Peers, "peers", &[Mac], "other nodes: what comes from them is not handed on"),
        set(Own, "own", &[LinkName, Mac], "this node"),
        set(Alive, "alive", &[LinkName, Mac], "this node, and others that live"),
        map(Macs, "macs", &[LinkName], MAC, "this node's address on each link"),
        map(Classes4, "classes4", &[V4, Protocol, Port], MAC, "which table says who gets what").per_service(),
        map(Classes6, "classes6", &[V6, Protocol, Port], MAC, "which table says who gets what").per_service(),
        map(Wholes4, "wholes4", &[V4, Protocol], MAC, "the same for what is in fragments").per_service(),
        map(Wholes6, "wholes6", &[V6, Protocol], MAC, "the same for what is in fragments").per_service(),
        map(Slots, "slots", &[Mac, Integer], MAC, "which nodes get which part of each table").per_service(),
        map(Hops, "hops", &[LinkName, Mac], MAC, "where to find those").per_service(),
        map(
            Connections4,
            "connections4",
            &[V4, Port, V4, Port],
            MAC,
            "connections of TCP and where they are; learned by the rules",
        )
        .dynamic(CONNECTIONS_SIZE),
        map(
            Connections6,
            "connections6",
            &[V6, Port, V6, Port],
            MAC,
            "connections of TCP and where they are; learned by the rules",
        )
        .dynamic(CONNECTIONS_SIZE),
    ]
};

impl SetId {
    pub fn name(self) -> &'static str {
        DECLARATIONS[self as usize].name
    }

    /// The set of a pair for IPv4 and IPv6.
    pub fn by_family(family: Family, [v4, v6]: [Self; 2]) -> Self {
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// The values of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// A set has no values.
    None,
    Verdict,
    /// An address and a port.
    Endpoint,
    /// Values of this type.
    Plain(Type),
}

/// The type of a part of a key or value: its number in `nft`, which prints it accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    /// An address of the family of the table. Only in declarations: a [`Set`] has [`Type::V4`] or [`Type::V6`] instead.
    Address = 0,
    /// A number from `numgen`. `nft` has no name for the type.
    Integer = 4,
    V4 = 7,
    V6 = 8,
    Mac = 9,
    /// A transport protocol.
    Protocol = 12,
    Port = 13,
    /// A packet's priority in queues: `classid` in `nft`.
    Priority = 23,
    /// The name of a network interface.
    LinkName = 41,
}

impl Type {
    pub fn address(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// The type in a table of this family; `None` for the table of both.
    fn resolve(self, family: Option<Family>) -> Self {
        match (self, family) {
            (Self::Address, Some(family)) => Self::address(family),
            _ => self,
        }
    }

    /// The length in bytes.
    fn length(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Integer | Self::V4 | Self::Priority => 4,
            Self::Mac => 6,
            Self::V6 | Self::LinkName => 16,
            Self::Address => unreachable!("invariant: sets have resolved types"),
        }
    }

    /// The number of register words that it takes.
    pub(super) fn words(self) -> u8 {
        u8::try_from(self.length().div_ceil(4)).expect("invariant: at most 16 bytes")
    }
}

/// A set or map, for both IP tables or for the table of frames.
#[derive(Clone, Copy, Debug)]
struct Declaration {
    id: SetId,
    name: &'static str,
    key: &'static [Type],
    data: Data,
    interval: bool,
    dynamic: Option<u32>,
    counter: bool,
    per_service: bool,
    comment: &'static str,
}

const fn set(id: SetId, name: &'static str, key: &'static [Type], comment: &'static str) -> Declaration {
    map(id, name, key, Data::None, comment)
}

const fn map(id: SetId, name: &'static str, key: &'static [Type], data: Data, comment: &'static str) -> Declaration {
    Declaration { id, name, key, data, interval: false, dynamic: None, counter: false, per_service: false, comment }
}

impl Declaration {
    /// Its keys are ranges.
    const fn interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// Rules add elements with a timeout, at most `size`. The agent ignores them.
    const fn dynamic(self, size: u32) -> Self {
        Self { dynamic: Some(size), ..self }
    }

    /// Each element counts the packets that match it.
    const fn counting(self) -> Self {
        Self { counter: true, ..self }
    }

    /// It has some elements for each Service, so it needs a size.
    const fn per_service(self) -> Self {
        Self { per_service: true, ..self }
    }
}

/// A set or map of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub id: SetId,
    pub name: &'static str,
    /// The types of the parts of a key.
    pub key: Vec<Type>,
    pub data: Data,
    /// The family of its table; `None` for the table of both.
    pub family: Option<Family>,
    /// Whether keys are ranges.
    pub interval: bool,
    /// The size of a set that rules fill; `None` if the agent fills it.
    pub dynamic: Option<u32>,
    /// Whether each element counts the packets that match it.
    pub counter: bool,
    /// Whether it has some elements for each Service.
    pub per_service: bool,
    pub comment: &'static str,
}

/// All sets and maps of a table, in the order in which they are created.
pub fn sets(table: Table) -> Vec<Set> {
    let family = table.family();
    let (ip, netdev) = DECLARATIONS.split_at(FIRST_NETDEV);
    let declarations = if family.is_some() { ip } else { netdev };
    declarations.iter().map(|declaration| Set::new(declaration, family)).collect()
}

impl Set {
    fn new(declaration: &Declaration, family: Option<Family>) -> Self {
        let Declaration { id, name, key, data, interval, dynamic, counter, per_service, comment } = *declaration;
        let data = match data {
            Data::Plain(kind) => Data::Plain(kind.resolve(family)),
            other => other,
        };
        let key = key.iter().map(|kind| kind.resolve(family)).collect();
        Self { id, name, key, data, family, interval, dynamic, counter, per_service, comment }
    }

    /// The type of a key as one number, as in `nft`.
    pub fn key_type(&self) -> u32 {
        concatenated_type(&self.key)
    }

    /// The length of a key in bytes.
    pub fn key_length(&self) -> u32 {
        // Only in a concatenation does each part begin a word.
        match self.key[..] {
            [only] => only.length(),
            _ => concatenated_length(&self.key),
        }
    }

    /// The type and length of a value.
    pub fn data(&self) -> Option<(u32, u32)> {
        match self.data {
            Data::None => None,
            Data::Verdict => Some((VERDICT, 0)),
            Data::Endpoint => {
                let parts = self.endpoint_types();
                Some((concatenated_type(&parts), concatenated_length(&parts)))
            }
            Data::Plain(kind) => Some((kind as u32, kind.length())),
        }
    }

    /// The parts of a value of [`Data::Endpoint`].
    pub fn endpoint_types(&self) -> [Type; 2] {
        endpoint_types(self.family.expect("invariant: endpoints are in tables of one family"))
    }

    /// Its flags (enum nft_set_flags).
    pub fn flags(&self) -> u32 {
        let interval = match (self.interval, self.field_lengths().is_some()) {
            (true, true) => SET_INTERVAL | SET_CONCAT,
            (true, false) => SET_INTERVAL,
            (false, _) => 0,
        };
        let dynamic = if self.dynamic.is_some() { SET_TIMEOUT | SET_EVAL } else { 0 };
        let per_service = if self.per_service { SET_TIMEOUT } else { 0 };
        let map = if self.data == Data::None { 0 } else { SET_MAP };
        interval | dynamic | per_service | map
    }

    /// The size to create it with, for `count` elements at once; `None`: unlimited.
    ///
    /// The kernel keeps elements in a hash table. It cannot enlarge one within a transaction: it chains a second table,
    /// a third, and searches all of them for every element. To be created for many elements, a set needs a size. To be
    /// enlarged later, its elements must be able to expire. The kernel adds a third, and rounds up to a power of two;
    /// so does this. But the kernel uses only the lower 16 bits of the size: above, all of them are set, and the table
    /// is created for 65,535.
    pub fn size(&self, count: usize) -> Option<u32> {
        let count = u32::try_from(count).unwrap_or(MAX_SIZE).clamp(MIN_SIZE, MAX_SIZE);
        let room = (count + count.div_ceil(3)).next_power_of_two() / 4 * 3;
        let low = u32::from(u16::MAX);
        self.dynamic.or(self.per_service.then_some(if room > low { room | low } else { room }))
    }

    /// The length of each part of a key in bytes; `Some` only for concatenated ranges, where the kernel requires it.
    pub fn field_lengths(&self) -> Option<Vec<u32>> {
        (self.interval && self.key.len() > 1).then(|| self.key.iter().map(|kind| kind.length()).collect())
    }
}

/// The `gc-interval` of a set whose elements never expire: a long and round one.
pub const GC_INTERVAL: Duration = Duration::from_hours(24);
/// The least size of a set with elements of each Service.
const MIN_SIZE: u32 = 768;
/// The greatest size.
const MAX_SIZE: u32 = 3 << 28;

/// The type of a verdict (NFT_DATA_VERDICT).
pub const VERDICT: u32 = 0xffff_ff00;
// enum nft_set_flags.
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;

/// Concatenated types: six bits each.
fn concatenated_type(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, kind| all << 6 | *kind as u32)
}

/// The length of concatenated parts in bytes: each begins a word.
fn concatenated_length(types: &[Type]) -> u32 {
    types.iter().map(|kind| 4 * u32::from(kind.words())).sum()
}

/// The types of an endpoint: address and port.
pub fn endpoint_types(family: Family) -> [Type; 2] {
    [Type::address(family), Type::Port]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_in_the_order_of_their_ids() {
        for (index, declaration) in DECLARATIONS.iter().enumerate() {
            assert_eq!(declaration.id as usize, index, "{}", declaration.name);
        }
    }

    #[test]
    fn a_set_is_created_for_all_its_elements() {
        let set = |per_service| Set { per_service, ..sets(Table::V4).remove(0) };
        let many = set(true);
        for count in [0, 1, 768, 769, 49_152, 49_153, 65_536, 98_304, 100_000, 196_608, 240_000, 5_000_000] {
            let size = many.size(count).expect("a size") as usize;
            assert!(size >= count, "{count}");
            // The kernel uses 16 bits of the size, adds a third, and rounds up to a power of two.
            let buckets = ((size & 0xffff) * 4 / 3).next_power_of_two();
            assert!(buckets >= count.min(131_072), "{count}: {size}, {buckets}");
            assert!(buckets <= (4 * count).max(1024), "{count}: {size}, {buckets}");
        }
        assert_eq!(set(false).size(5), None);
    }
}
