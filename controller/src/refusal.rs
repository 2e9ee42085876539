//! Why a Service doesn't get the address it asks for: a reason for machines, and a sentence for people with the fix.
//!
//! Sentences name nothing that changes by itself (such as counts): each change is a write and an event.

use std::fmt;
use std::net::IpAddr;

use crds::Key;

/// How many names a sentence lists before it only counts the others.
const LISTED: usize = 5;

/// Why a Service doesn't get the address it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no pool.
    NoPool,
    /// No pool gives addresses to who doesn't ask for one by name: these exist.
    NoAutomaticPool(Vec<String>),
    /// All addresses of these pools are in use.
    PoolsExhausted(Vec<String>),
    /// `spec.loadBalancerIP` is no address.
    InvalidRequest(String),
    /// `spec.loadBalancerIP` is in no pool.
    AddressNotInPool(IpAddr),
    /// `spec.loadBalancerIP` is somebody else's.
    AddressInUse(IpAddr, InUse),
    /// It wants IPv6 and nothing else: in `spec.ipFamilies`, or as this address.
    IPv6NotSupported(Option<IpAddr>),
    /// It wants both families or nothing.
    DualStackNotSupported,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It is this Service's.
    Service(Key),
    /// It is this node's own.
    Node(String),
    /// Its LoadBalancerIP names no Service, or nobody can read it.
    Unknown,
    /// It was somebody's, and is being withdrawn.
    Withdrawn,
}

impl Refusal {
    /// One CamelCase word for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPool => "NoPool",
            Self::NoAutomaticPool(_) => "NoAutomaticPool",
            Self::PoolsExhausted(_) => "PoolsExhausted",
            Self::InvalidRequest(_) => "InvalidRequest",
            Self::AddressNotInPool(_) => "AddressNotInPool",
            Self::AddressInUse(..) => "AddressInUse",
            Self::IPv6NotSupported(_) => "IPv6NotSupported",
            Self::DualStackNotSupported => "DualStackNotSupported",
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
            Self::NoAutomaticPool(pools) => write!(
                f,
                "no IPAddressPool gives IPv4 addresses by itself: ask for one of {} in spec.loadBalancerIP, or set \
                 spec.autoAssign of a pool, or create another",
                listed(pools)
            ),
            Self::PoolsExhausted(pools) => write!(
                f,
                "no address is free in {}: add addresses there, or create another IPAddressPool",
                listed(pools)
            ),
            Self::InvalidRequest(text) => f.write_str(text),
            Self::AddressNotInPool(address) => write!(
                f,
                "spec.loadBalancerIP {address} is in no IPAddressPool: ask for an address of a pool, or add it to one"
            ),
            Self::AddressInUse(address, by) => {
                write!(f, "spec.loadBalancerIP {address} ")?;
                match by {
                    InUse::Service(key) => write!(f, "is held by Service {key}")?,
                    InUse::Node(node) => write!(f, "is the address of node {node}")?,
                    InUse::Unknown => write!(f, "is taken: see kubectl get lbip {}", crds::address::name(*address))?,
                    InUse::Withdrawn => f.write_str("is being withdrawn: it will be given as soon as it is free")?,
                }
                if *by != InUse::Withdrawn {
                    f.write_str("; ask for another address, or leave it out")?;
                }
                Ok(())
            }
            Self::IPv6NotSupported(None) => f.write_str(
                "IPv6 addresses are not given out yet: use IPv4 in spec.ipFamilies, alone or with PreferDualStack",
            ),
            Self::IPv6NotSupported(Some(address)) => {
                write!(
                    f,
                    "spec.loadBalancerIP {address}: IPv6 addresses are not given out yet; ask for an IPv4 address"
                )
            }
            Self::DualStackNotSupported => f.write_str(
                "IPv6 addresses are not given out yet, and RequireDualStack wants both or none: use PreferDualStack or \
                 SingleStack in spec.ipFamilyPolicy",
            ),
        }
    }
}

/// Some names as a sentence has them.
pub(crate) fn listed<T: fmt::Display>(names: &[T]) -> String {
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
