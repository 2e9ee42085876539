//! Why a Service doesn't get the address it asks for: a reason for machines, and a sentence for people with the fix.
//!
//! Sentences name nothing that changes by itself (such as counts): each change is a write and an event.

use std::fmt;
use std::net::IpAddr;

use crds::Key;
use crds::service::Family;

use crate::allocate::sharing::Clash;
use crate::status::reason::RefusalReason;

/// How many names a sentence lists before it only counts the others.
const LISTED: usize = 5;

/// Why a Service doesn't get the address it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no pool.
    NoPool,
    /// No pool gives it addresses of that family by itself: these would if it asked for them by name.
    NoAutomaticPool(Family, Vec<String>),
    /// All addresses of that family of these pools are in use.
    PoolsExhausted(Family, Vec<String>),
    /// There is no pool of the name that it asks for.
    PoolNotFound(String),
    /// No address of that family is free in the pool that it asks for.
    PoolExhausted(Family, String),
    /// That pool is not for it.
    PoolNotAllowed(String),
    /// That pool is being emptied.
    PoolDraining(String),
    /// Its namespace has as many addresses of that pool as it may have.
    NamespaceQuota(String),
    /// What it asks for makes no sense.
    InvalidRequest(String),
    /// The address is in no pool, or not in the one that it asks for as well.
    AddressNotInPool(IpAddr, Option<String>),
    /// The address is in that pool, which gives it to nobody.
    AddressExcluded(IpAddr, String),
    /// The address is somebody else's.
    AddressInUse(IpAddr, InUse),
    /// The address is kept for somebody else.
    AddressReserved(IpAddr),
    /// The address is that Service's too, and the two can't share it.
    SharingConflict(IpAddr, Key, Clash),
    /// The address is not of one of its families, which are these.
    FamilyMismatch(IpAddr, Vec<Family>),
    /// It wants both families or nothing, and there is none of this one.
    DualStackUnavailable(Family, Box<Refusal>),
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It is this Service's.
    Service(Key),
    /// It is this node's own.
    Node(String),
    /// It is a gateway of this node.
    Gateway(String),
    /// Its LoadBalancerIP can't be read.
    Unknown,
    /// It was somebody's, and is being withdrawn.
    Withdrawn,
    /// It is that of somebody on the LAN, by MAC address.
    Stranger(String),
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
            Self::InvalidRequest(_) => RefusalReason::InvalidRequest,
            Self::AddressNotInPool(..) => RefusalReason::AddressNotInPool,
            Self::AddressExcluded(..) => RefusalReason::AddressExcluded,
            Self::AddressInUse(..) => RefusalReason::AddressInUse,
            Self::AddressReserved(_) => RefusalReason::AddressReserved,
            Self::SharingConflict(..) => RefusalReason::SharingConflict,
            Self::FamilyMismatch(..) => RefusalReason::FamilyMismatch,
            Self::DualStackUnavailable(..) => RefusalReason::DualStackUnavailable,
        }
    }
}

/// The sentence for people.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool => f.write_str(
                "no IPAddressPool exists: create one with addresses of the nodes' network that nothing else uses, \
                 such as spec.addresses: [192.0.2.200-192.0.2.250]",
            ),
            Self::NoAutomaticPool(family, pools) if pools.is_empty() => {
                write!(f, "no IPAddressPool gives {family} addresses to this Service: create one that does")
            }
            Self::NoAutomaticPool(family, pools) => write!(
                f,
                "no IPAddressPool gives {family} addresses to this Service by itself: ask for one of {} in \
                 landfall.dev/address-pool, or set spec.autoAssign of a pool, or create another",
                listed(pools)
            ),
            Self::PoolsExhausted(family, pools) => write!(
                f,
                "no {family} address is free in {}: add addresses there, or create another IPAddressPool",
                listed(pools)
            ),
            Self::PoolNotFound(pool) => {
                write!(f, "there is no IPAddressPool {pool}: ask for another, or leave landfall.dev/address-pool out")
            }
            Self::PoolExhausted(family, pool) => {
                write!(
                    f,
                    "no {family} address is free in {pool}: add addresses there, or ask for another IPAddressPool"
                )
            }
            Self::PoolNotAllowed(pool) => write!(
                f,
                "IPAddressPool {pool} is not for this Service: ask for another, or have its spec.serviceAllocation \
                 admit this one"
            ),
            Self::PoolDraining(pool) => {
                write!(f, "IPAddressPool {pool} is being drained: ask for another, or have its spec.drain unset")
            }
            Self::NamespaceQuota(pool) => write!(
                f,
                "this namespace has as many addresses of IPAddressPool {pool} as its spec.maxPerNamespace allows: \
                 delete Services that need none, or have it raised"
            ),
            Self::InvalidRequest(text) => f.write_str(text),
            Self::AddressNotInPool(address, None) => {
                write!(f, "{address} is in no IPAddressPool: ask for an address of a pool, or add it to one")
            }
            Self::AddressNotInPool(address, Some(pool)) => write!(
                f,
                "{address} is not in IPAddressPool {pool}, which this Service asks for as well: leave one of them out"
            ),
            Self::AddressExcluded(address, pool) => write!(
                f,
                "{address} is left out of IPAddressPool {pool} by its spec.exclude or spec.avoidBuggyIPs: ask for \
                 another address"
            ),
            Self::AddressInUse(address, by) => {
                write!(f, "{address} ")?;
                match by {
                    InUse::Service(key) => write!(f, "is held by Service {key}")?,
                    InUse::Node(node) => write!(f, "is the address of node {node}")?,
                    InUse::Gateway(node) => write!(f, "is the address of the gateway of node {node}")?,
                    InUse::Unknown => {
                        write!(f, "is taken: see kubectl get lbip {}", crds::address::object_name(*address))?
                    }
                    InUse::Stranger(mac) => write!(f, "was found to be used by {mac} on the LAN")?,
                    InUse::Withdrawn => f.write_str("is being withdrawn: it will be given as soon as it is free")?,
                }
                if *by != InUse::Withdrawn {
                    f.write_str("; ask for another address, or leave it out")?;
                }
                Ok(())
            }
            Self::AddressReserved(address) => write!(
                f,
                "{address} is reserved for somebody else: see kubectl get lbip {}; ask for another address, or leave \
                 it out",
                crds::address::object_name(*address)
            ),
            Self::SharingConflict(address, key, clash) => write!(
                f,
                "{address} can't be shared with Service {key}, which {clash}; ask for another address, or make them fit"
            ),
            Self::FamilyMismatch(address, families) => write!(
                f,
                "{address} is {}, and this Service has {}: ask for an address of that family, or change \
                 spec.ipFamilies",
                Family::from(*address),
                listed(families)
            ),
            Self::DualStackUnavailable(family, why) => write!(
                f,
                "spec.ipFamilyPolicy RequireDualStack wants both families or nothing, and there is no {family} \
                 address: {why}; or use PreferDualStack"
            ),
        }
    }
}

/// Some names as a sentence has them.
fn listed<T: fmt::Display>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(ToString::to_string).collect();
    match names.len().checked_sub(LISTED) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_lists_a_few_names_and_counts_the_others() {
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["a", "b", "c", "d", "e"]), "a, b, c, d, e");
        assert_eq!(listed(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
