//! Why a Service does not get an address: a reason for machines, and a sentence with the fix.
//!
//! No sentence contains a value that changes while the reason stays the same, such as a count. Each change would cause
//! a write and an event.

use std::fmt;
use std::net::IpAddr;

use crds::Key;
use crds::condition::{MAX_QUOTED, Quoted};
use crds::service::Family;

use crate::allocate::sharing::Clash;
use crate::plan::effect::WriteKind;
use crate::pools::occupied::{NetworkEnd, Occupant};
use crate::pools::truncated::Truncated;
use crate::status::reason::RefusalReason;

/// Why a Service does not get an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoPool,
    /// No pool assigns addresses of this family to the Service automatically; these pools assign them on request.
    NoAutomaticPool(Family, Truncated<String>),
    /// No address of this family is free in these pools.
    PoolsExhausted(Family, Truncated<String>),
    /// The requested pool does not exist.
    PoolNotFound(String),
    /// No address of this family is free in the requested pool.
    PoolExhausted(Family, String),
    /// The pool does not admit the Service.
    PoolNotAllowed(String),
    PoolDraining(String),
    /// The namespace has reached its limit in this pool.
    NamespaceQuota(String),
    /// Pools select namespaces by their labels, and the Namespace has not been observed.
    NamespaceUnknown(String),
    InvalidRequest(String),
    /// `None`: no pool contains the address. `Some`: the Service requests this pool too, which does not contain it.
    AddressNotInPool(IpAddr, Option<String>),
    /// This pool excludes the address.
    AddressExcluded(IpAddr, String),
    AddressInUse(IpAddr, InUse),
    /// The address is reserved for another namespace or Service.
    AddressReserved(IpAddr),
    /// The address is an end of a network of nodes.
    AddressUnusable(NetworkEnd),
    /// The Service with this key has the address, and the refused Service cannot share the address with it.
    SharingConflict(IpAddr, Key, Clash),
    /// The Service has these families, and the address has another one.
    FamilyMismatch(IpAddr, Vec<Family>),
    /// The Service requires both families, and this one is unavailable.
    DualStackUnavailable(Family, Box<Refusal>),
    /// The API server refuses this write, with this message.
    WriteRefused(WriteKind, String),
}

/// The user of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUse {
    Service(Key),
    /// A node or a gateway.
    Occupant(Occupant),
    /// Unknown, because its LoadBalancerIP is unreadable.
    Unknown,
    /// A former holder: the record is being deleted or changed.
    Withdrawn,
    /// Another host on the LAN, by its MAC address.
    OtherHost(String),
}

impl Refusal {
    pub(crate) fn reason(&self) -> RefusalReason {
        match self {
            Self::NoPool => RefusalReason::NoPool,
            Self::NoAutomaticPool(..) => RefusalReason::NoAutomaticPool,
            Self::PoolsExhausted(..) => RefusalReason::PoolsExhausted,
            Self::PoolNotFound(_) => RefusalReason::PoolNotFound,
            Self::PoolExhausted(..) => RefusalReason::PoolExhausted,
            Self::PoolNotAllowed(_) => RefusalReason::PoolNotAllowed,
            Self::PoolDraining(_) => RefusalReason::PoolDraining,
            Self::NamespaceQuota(_) => RefusalReason::NamespaceQuota,
            Self::NamespaceUnknown(_) => RefusalReason::NamespaceUnknown,
            Self::InvalidRequest(_) => RefusalReason::InvalidRequest,
            Self::AddressNotInPool(..) => RefusalReason::AddressNotInPool,
            Self::AddressExcluded(..) => RefusalReason::AddressExcluded,
            Self::AddressInUse(..) => RefusalReason::AddressInUse,
            Self::AddressReserved(_) => RefusalReason::AddressReserved,
            Self::AddressUnusable(_) => RefusalReason::AddressUnusable,
            Self::SharingConflict(..) => RefusalReason::SharingConflict,
            Self::FamilyMismatch(..) => RefusalReason::FamilyMismatch,
            Self::DualStackUnavailable(..) => RefusalReason::DualStackUnavailable,
            Self::WriteRefused(..) => RefusalReason::WriteRefused,
        }
    }
}

/// The sentence with the fix.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool => f.write_str(
                "no IPAddressPool exists: create one with addresses of the nodes' network that nothing else uses, \
                 such as spec.addresses: [192.0.2.200-192.0.2.250]",
            ),
            Self::NoAutomaticPool(family, pools) if pools.is_empty() => {
                write!(f, "no IPAddressPool has {family} addresses for this Service: create a pool with such addresses")
            }
            Self::NoAutomaticPool(family, pools) => write!(
                f,
                "no IPAddressPool assigns {family} addresses to this Service automatically: request a pool in \
                 landfall.dev/address-pool ({pools}), set spec.autoAssign of a pool to true, or create another pool"
            ),
            Self::PoolsExhausted(family, pools) => write!(
                f,
                "no {family} address is free in {pools}: add addresses there, or create another IPAddressPool"
            ),
            Self::PoolNotFound(pool) => {
                let pool = ObjectName(pool);
                write!(f, "no IPAddressPool {pool} exists: request another pool, or remove landfall.dev/address-pool")
            }
            Self::PoolExhausted(family, pool) => write!(
                f,
                "no {family} address is free in {pool}: add addresses there, or request another IPAddressPool"
            ),
            Self::PoolNotAllowed(pool) => write!(
                f,
                "spec.serviceAllocation of IPAddressPool {pool} does not admit this Service: request another pool, or \
                 change that field"
            ),
            Self::PoolDraining(pool) => {
                write!(f, "IPAddressPool {pool} is being drained: request another pool, or unset its spec.drain")
            }
            Self::NamespaceQuota(pool) => write!(
                f,
                "this namespace has reached its limit of addresses in IPAddressPool {pool}: release an address of \
                 another Service, or raise spec.maxPerNamespace of the pool"
            ),
            Self::NamespaceUnknown(namespace) => write!(
                f,
                "an IPAddressPool selects namespaces by their labels, and the controller has not received Namespace \
                 {namespace} from the API server: see the log of the controller, and whether it may list and watch \
                 Namespaces"
            ),
            Self::InvalidRequest(text) => f.write_str(text),
            Self::AddressNotInPool(lb_ip, None) => {
                write!(f, "{lb_ip} is in no IPAddressPool: request an address of a pool, or add this address to a pool")
            }
            Self::AddressNotInPool(lb_ip, Some(pool)) => write!(
                f,
                "{lb_ip} is not in IPAddressPool {}, which this Service requests too: remove one of the requests",
                ObjectName(pool)
            ),
            Self::AddressExcluded(lb_ip, pool) => write!(
                f,
                "{lb_ip} is excluded from IPAddressPool {pool} by its spec.exclude or spec.avoidBuggyIPs: request \
                 another address"
            ),
            Self::AddressInUse(lb_ip, by) => write_in_use(f, *lb_ip, by),
            Self::AddressReserved(lb_ip) => write!(
                f,
                "{lb_ip} is reserved for another namespace or Service: see kubectl get lbip {}; request another \
                 address, or remove the request",
                crds::address::object_name(*lb_ip)
            ),
            Self::AddressUnusable(end) => write!(
                f,
                "{} is {end}, a network of the nodes, so no Service can have it: request another address",
                end.address
            ),
            Self::SharingConflict(lb_ip, key, clash) => write!(
                f,
                "{lb_ip} can't be shared with Service {key}, which {clash}; request another address, or change one of \
                 the two Services"
            ),
            Self::FamilyMismatch(lb_ip, families) => write_family_mismatch(f, *lb_ip, families),
            Self::DualStackUnavailable(family, why) => write!(
                f,
                "spec.ipFamilyPolicy RequireDualStack requires both families, and no {family} address is available: \
                 {why}; with PreferDualStack, one family is enough"
            ),
            Self::WriteRefused(kind, answer) => {
                write!(f, "the API server refuses to {kind}, and the controller repeats the request: {answer}")
            }
        }
    }
}

/// The name of an object in a request: as it is written, or quoted if it cannot be a name.
struct ObjectName<'a>(&'a str);

impl fmt::Display for ObjectName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if self.0.len() <= MAX_QUOTED && self.0.chars().all(is_name_char) {
            f.write_str(self.0)
        } else {
            Quoted(self.0).fmt(f)
        }
    }
}

fn write_family_mismatch(f: &mut fmt::Formatter<'_>, lb_ip: IpAddr, families: &[Family]) -> fmt::Result {
    write!(
        f,
        "{lb_ip} is {}, and this Service has {}: request an address of that family, or change spec.ipFamilies",
        Family::from(lb_ip),
        truncate(families)
    )
}

fn write_in_use(f: &mut fmt::Formatter<'_>, lb_ip: IpAddr, by: &InUse) -> fmt::Result {
    write!(f, "{lb_ip} ")?;
    match by {
        InUse::Service(key) => write!(f, "is held by Service {key}")?,
        InUse::Occupant(occupant) => write!(f, "is the address of {occupant}")?,
        InUse::Unknown => write!(f, "is in use: see kubectl get lbip {}", crds::address::object_name(lb_ip))?,
        InUse::OtherHost(mac) => write!(f, "is used by {mac} on the LAN")?,
        InUse::Withdrawn => return f.write_str("is being withdrawn: it will be assigned as soon as it is free"),
    }
    f.write_str("; request another address, or remove the request")
}

fn truncate<T: fmt::Display>(names: &[T]) -> Truncated<&T> {
    names.iter().collect()
}
