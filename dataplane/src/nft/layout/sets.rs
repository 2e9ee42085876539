//! The declarations of all sets and maps: one line for each in [`declare_sets!`]. The elements of a new set come from
//! `nft/projection.rs`, unless rules fill the set.

use std::time::Duration;

use Type::{Address as A, Integer, LinkName, LinkType, Mac, Port, Priority, Protocol, V4, V6};
use crds::service::Family;

use super::Table;

/// The greatest number of entries in `affinity` of each family, for all Services together. Beyond that, new clients go
/// to any endpoint until other entries expire. An entry takes some 120 bytes of kernel memory, and forged addresses
/// must not fill that memory.
const AFFINITY_SIZE: u32 = 1 << 18;
/// The greatest number of entries in each set in which rules count. The keys are frontends, lb_ips and endpoints, so
/// forged packets cannot add more entries than there are of these. Beyond the limit, packets are handled alike, but not
/// counted, and `elsewhere` gets no more endpoints.
const COUNTED_SIZE: u32 = 1 << 16;
/// The greatest number of TCP connections in the set of each family. Beyond that, new connections follow the share
/// table alone. An entry takes some 150 bytes of kernel memory, and forged addresses must not fill that memory.
const CONNECTIONS_SIZE: u32 = 1 << 18;

const FRONTEND: &[Type] = &[A, Protocol, Port];
const DISPATCH: Data = Data::Values(&[Priority]);
const ENDPOINT: Data = Data::Values(&[A, Port]);
const ADDRESS: Data = Data::Values(&[A]);
const PORT: Data = Data::Values(&[Port]);
const MAC: Data = Data::Values(&[Mac]);

/// Declares the sets and maps of tables, in the order in which they are created. Each line has id, name in the kernel,
/// types of the parts of a key, values of a map, comment, options.
macro_rules! declare_sets {
    ($($sets:ident {
        $($id:ident = $kind:ident($name:literal, $($part:expr),*)$(.$option:ident($($size:expr)?))*;)*
    })*) => {
        /// A set or map. A number after the name is its family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum SetId { $($($id,)*)* }

        impl SetId {
            /// The name in the kernel.
            pub fn name(self) -> &'static str {
                match self { $($(Self::$id => $name,)*)* }
            }
        }

        $(static $sets: &[Set] = &[$($kind(SetId::$id, $name, $($part),*)$(.$option($($size)?))*),*];)*
    };
}

declare_sets! {
    IP_SETS {
        Addresses = set("addresses", &[A], "all lb_ips").per_service();
        Links = set("links", &[LinkName], "links that clients may be on; pods are on others");
        PodLinkTypes = set("pod-link-types", &[LinkType], "types of the links of pods; empty while links is empty");
        Services = map("services", FRONTEND, DISPATCH, "number of the chain for each port, in ways").per_service();
        Inside = map("inside", FRONTEND, DISPATCH, "the same for this node and its pods, where it differs")
            .per_service();
        Ways = map("ways", &[Priority], Data::Verdict, "chains by their numbers");
        Refused = map("refused", FRONTEND, Data::Verdict, "ports without any endpoint").per_service();
        NodePorts = map("node-ports", FRONTEND, PORT, "node port of each port").per_service();
        Nodes = map("nodes", &[A], ADDRESS, "address of this node at which its Service proxy serves node ports")
            .per_service();
        ClusterIps = map("cluster-ips", FRONTEND, ADDRESS, "ClusterIP of each port").per_service();
        Sources = set("sources", &[A, Protocol, Port, A], "allowed clients of ports with source ranges").interval();
        Endpoints = map("endpoints", &[A, Protocol, Port, Integer], ENDPOINT, "endpoints of each port, by index")
            .per_service();
        Remember = map("remember", FRONTEND, Data::Verdict, "chain for each port with session affinity").per_service();
        Rings = map("rings", FRONTEND, DISPATCH, "number of the ring of nodes that may know a TCP connection")
            .per_service();
        Tries = map("tries", &[Priority], Data::Verdict, "chains that hand segments on, by the number of the ring");
        Successors = map("successors", &[Priority], ADDRESS, "next node, by the number of the ring");
        Affinity = map("affinity", &[A, A, Protocol, Port], ENDPOINT, "endpoint of each client; filled by rules")
            .dynamic(AFFINITY_SIZE);
        Local = set("local", &[A, A], "endpoints on this node, which see the client's address").per_service();
        Hairpin = set("hairpin", &[A, A, A], "endpoints that connect to themselves").per_service();
        Traffic = set("traffic", FRONTEND, "packets from clients").per_service().counting();
        Begun = set("begun", FRONTEND, "new connections").per_service().counting();
        Denied = set("denied", FRONTEND, "packets dropped because of their source").dynamic(COUNTED_SIZE);
        Refusals = set("refusals", FRONTEND, "packets refused because there is no endpoint").dynamic(COUNTED_SIZE);
        Strays = set("strays", &[A], "packets dropped because no Service on this node serves them")
            .dynamic(COUNTED_SIZE);
        Elsewhere = set("elsewhere", FRONTEND, "endpoints on other nodes that connections were sent to")
            .dynamic(COUNTED_SIZE);
    }
    NETDEV_SETS {
        Spread4 = set("spread4", &[V4], "lb_ips whose frames are spread").per_service();
        Spread6 = set("spread6", &[V6], "lb_ips whose frames are spread").per_service();
        Peers = set("peers", &[Mac], "other nodes, whose frames are never re-sent");
        Own = set("own", &[LinkName, Mac], "this node");
        Alive = set("alive", &[LinkName, Mac], "this node and living peers");
        Macs = map("macs", &[LinkName], MAC, "this node's MAC address on each link");
        Classes4 = map("classes4", &[V4, Protocol, Port], MAC, "share table of each port").per_service();
        Classes6 = map("classes6", &[V6, Protocol, Port], MAC, "share table of each port").per_service();
        Wholes4 = map("wholes4", &[V4, Protocol], MAC, "share table for fragments").per_service();
        Wholes6 = map("wholes6", &[V6, Protocol], MAC, "share table for fragments").per_service();
        Slots = map("slots", &[Mac, Integer], MAC, "pair of nodes for each slot of a share table").per_service();
        Hops = map("hops", &[LinkName, Mac], MAC, "next hop for each pair of nodes").per_service();
        Connections4 = map("connections4", &[V4, Port, V4, Port], MAC, "node of each TCP connection; filled by rules")
            .dynamic(CONNECTIONS_SIZE);
        Connections6 = map("connections6", &[V6, Port, V6, Port], MAC, "node of each TCP connection; filled by rules")
            .dynamic(CONNECTIONS_SIZE);
    }
}

/// All sets and maps of a table, in the order in which they are created.
pub fn sets(table: Table) -> Vec<Set> {
    let family = table.family();
    let sets = if family.is_some() { IP_SETS } else { NETDEV_SETS };
    sets.iter().map(|set| Set { family, ..*set }).collect()
}

impl SetId {
    /// The set for this family, out of a pair for IPv4 and IPv6.
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
    /// Values with parts of these types.
    Values(&'static [Type]),
}

/// The type of a part of a key or value: its number in `nft`, which prints it accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    /// An address of the family of the table. Only in declarations: it is resolved to [`Type::V4`] or [`Type::V6`].
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
    /// The type of a network interface (ARPHRD_*): `iface_type` in `nft`.
    LinkType = 21,
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

    /// The length in bytes.
    pub fn length(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port | Self::LinkType => 2,
            Self::Integer | Self::V4 | Self::Priority => 4,
            Self::Mac => 6,
            Self::V6 | Self::LinkName => 16,
            Self::Address => unreachable!("invariant: types are resolved before use"),
        }
    }

    /// The number of register words that it takes.
    pub(super) fn words(self) -> u8 {
        u8::try_from(self.length().div_ceil(4)).expect("invariant: at most 16 bytes")
    }
}

/// A set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    pub id: SetId,
    pub name: &'static str,
    key: &'static [Type],
    pub data: Data,
    /// The family of its table; `None` for the table of both families.
    family: Option<Family>,
    /// Whether keys are ranges.
    pub interval: bool,
    /// The size of a set that rules fill; `None` if the agent fills it.
    pub dynamic: Option<u32>,
    /// Whether the kernel gives each new element a counter. In sets that rules fill, the rule adds the counter.
    pub counter: bool,
    /// Whether it has some elements for each Service.
    pub per_service: bool,
    pub comment: &'static str,
}

const fn set(id: SetId, name: &'static str, key: &'static [Type], comment: &'static str) -> Set {
    map(id, name, key, Data::None, comment)
}

const fn map(id: SetId, name: &'static str, key: &'static [Type], data: Data, comment: &'static str) -> Set {
    let (family, dynamic) = (None, None);
    Set { id, name, key, data, family, interval: false, dynamic, counter: false, per_service: false, comment }
}

impl Set {
    const fn interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// Rules add elements with a timeout, at most `size`. The agent ignores them.
    const fn dynamic(self, size: u32) -> Self {
        Self { dynamic: Some(size), ..self }
    }

    const fn counting(self) -> Self {
        Self { counter: true, ..self }
    }

    const fn per_service(self) -> Self {
        Self { per_service: true, ..self }
    }

    /// The time between two searches for expired elements; `None`: elements have no timeout.
    pub fn gc_interval(&self) -> Option<Duration> {
        match (self.per_service, self.dynamic) {
            (true, _) => Some(NEVER),
            (false, Some(_)) => Some(EXPIRED),
            (false, None) => None,
        }
    }

    /// The types of the parts of a key.
    pub fn key(&self) -> impl ExactSizeIterator<Item = Type> + Clone {
        self.resolve(self.key)
    }

    /// The types of the parts of a value; none for a set and a map of verdicts.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Type> + Clone {
        self.resolve(match self.data {
            Data::Values(types) => types,
            Data::None | Data::Verdict => &[],
        })
    }

    fn resolve(&self, types: &'static [Type]) -> impl ExactSizeIterator<Item = Type> + Clone {
        let address = self.family.map_or(Type::Address, Type::address);
        types.iter().map(move |kind| if *kind == Type::Address { address } else { *kind })
    }

    /// The type of a key as one number, and its length.
    pub fn key_type_and_length(&self) -> (u32, u32) {
        type_and_length(self.key())
    }

    /// The type of a value as one number, and its length; `None` for a set.
    pub fn data_type_and_length(&self) -> Option<(u32, u32)> {
        match self.data {
            Data::None => None,
            Data::Verdict => Some((VERDICT, 0)),
            Data::Values(_) => Some(type_and_length(self.values())),
        }
    }

    /// Whether `nft` needs an example of its key and value, because `nft` has no name for the type of a number or
    /// endpoint.
    pub fn is_typed_by_example(&self) -> bool {
        self.key.contains(&Integer) || self.data == ENDPOINT
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

    /// The size with which the set is created for `count` elements; `None`: unlimited.
    ///
    /// The kernel keeps elements in a hash table, and cannot enlarge that table within a transaction. Instead it chains
    /// a second table, then a third, and searches all of them for every element. So a set that is created with many
    /// elements needs a size. The kernel can enlarge a set later only if its elements can expire. It adds a third to
    /// the size, and rounds up to a power of two; this function does the same. But the kernel uses only the lower 16
    /// bits of the size. So above 65,535 elements all 16 bits are set, and the table is created for 65,535 elements.
    pub fn size(&self, count: usize) -> Option<u32> {
        let count = u32::try_from(count).unwrap_or(MAX_SIZE).clamp(MIN_SIZE, MAX_SIZE);
        let room = (count + count.div_ceil(3)).next_power_of_two() / 4 * 3;
        let low = u32::from(u16::MAX);
        self.dynamic.or(self.per_service.then_some(if room > low { room | low } else { room }))
    }

    /// The length of each part of a key in bytes; `Some` only for concatenated ranges, where the kernel requires it.
    pub fn field_lengths(&self) -> Option<Vec<u32>> {
        (self.interval && self.key.len() > 1).then(|| self.key().map(Type::length).collect())
    }
}

/// The `gc-interval` of a set whose elements never expire: a long time.
const NEVER: Duration = Duration::from_hours(24);
/// The `gc-interval` of a set that rules fill. The kernel walks the whole set each time, so the default of one second
/// is too short for 2^18 elements.
const EXPIRED: Duration = Duration::from_secs(30);
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

/// Concatenated types as one number, with six bits for each, and their total length. Each part begins a word. A single
/// part is not padded.
fn type_and_length(types: impl ExactSizeIterator<Item = Type> + Clone) -> (u32, u32) {
    let number = types.clone().fold(0, |all, kind| all << 6 | kind as u32);
    let is_alone = types.len() == 1;
    (number, types.map(|kind| if is_alone { kind.length() } else { 4 * u32::from(kind.words()) }).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

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
