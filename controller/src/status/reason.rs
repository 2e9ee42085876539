//! The reasons of the conditions of a Service, as machines read them.

use crds::{ProblemReason, Reach, words};

words! {
    /// Why a Service is refused an address: reasons of `landfall.dev/Allocated`, status `False`.
    RefusalReason {
        AddressExcluded,
        AddressInUse,
        AddressNotInPool,
        AddressReserved,
        AddressUnusable,
        DualStackUnavailable,
        FamilyMismatch,
        InvalidRequest,
        NamespaceQuota,
        NamespaceUnknown,
        NoAutomaticPool,
        NoPool,
        PoolDraining,
        PoolExhausted,
        PoolNotAllowed,
        PoolNotFound,
        PoolsExhausted,
        SharingConflict,
    }
}

words! {
    /// The state of the addresses that a Service has: reasons of `landfall.dev/Allocated`, status `True`. The worst is
    /// last.
    AllocatedReason {
        Allocated,
        /// The pool would no longer assign the address to this Service.
        PoolChanged,
        PoolDraining,
        /// No pool contains the address.
        PoolGone,
        /// The address is an end of a network of nodes.
        AddressUnusable,
        /// A node or a gateway has the address.
        NodeHasAddress,
    }
}

words! {
    /// Reasons of `landfall.dev/Announced`. Of the problems, the worst is first.
    AnnouncedReason {
        Announced,
        /// Another host on the LAN uses the address.
        Conflict,
        NoEligibleNode,
        /// Nodes are eligible, and lack the key without which no node announces.
        NoHelloKey,
        /// Nodes are eligible, and none has reported that it announces the address.
        Pending,
    }
}

/// Reasons of `landfall.dev/Forwarding`. The worst is last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardingReason {
    /// Packets reach the endpoints in this way.
    Reached(Reach),
    /// The announcing nodes do not report how they forward.
    Unreported,
    NotAnnounced,
    /// Something is not forwarded as the Service specifies.
    Problem(ProblemReason),
}

impl ForwardingReason {
    /// All reasons, those of newer agents included.
    pub fn all() -> impl Iterator<Item = Self> {
        let reached = Reach::ALL.iter().copied().map(Self::Reached);
        let problems = ProblemReason::ALL.iter().copied().map(Self::Problem);
        reached.chain([Self::Unreported, Self::NotAnnounced]).chain(problems)
    }

    /// The word in the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reached(reach) => reach.as_str(),
            Self::Unreported => "Unreported",
            Self::NotAnnounced => "NotAnnounced",
            Self::Problem(problem) => problem.as_str(),
        }
    }
}
