//! The words of conditions and events, as machines read them. The reference (`docs/reference/api.md`) contains them
//! with these comments.

use crds::{ProblemReason, Reach, words};

words! {
    /// Why a Service is refused an address: reasons of `landfall.dev/Allocated`, status `False`.
    RefusalReason {
        /// The pool excludes the requested address, or avoids it (`avoidBuggyIPs`).
        AddressExcluded,
        /// Another Service, a node, a gateway or another host on the LAN has the requested address.
        AddressInUse,
        /// No pool contains the requested address, or the requested pool does not.
        AddressNotInPool,
        /// The requested address is reserved for another namespace or Service.
        AddressReserved,
        /// The requested address is the network, broadcast or subnet-router anycast address of a network of the nodes.
        AddressUnusable,
        /// The Service has `RequireDualStack`, and one family is unavailable.
        DualStackUnavailable,
        /// The family of the requested address is not in `spec.ipFamilies`.
        FamilyMismatch,
        /// An annotation or field of the request is invalid, or contradicts another one.
        InvalidRequest,
        /// The namespace has reached its limit of addresses in the pool (`maxPerNamespace`).
        NamespaceQuota,
        /// A pool selects namespaces by their labels, and the Namespace has not been observed.
        NamespaceUnknown,
        /// No pool assigns an address of this family to the Service without a request.
        NoAutomaticPool,
        /// There is no IPAddressPool.
        NoPool,
        /// The pool is being emptied.
        PoolDraining,
        /// The requested pool has no free address of the family.
        PoolExhausted,
        /// The `serviceAllocation` of the pool does not admit the Service.
        PoolNotAllowed,
        /// The requested pool does not exist.
        PoolNotFound,
        /// No pool that admits the Service has a free address.
        PoolsExhausted,
        /// The address is shared, and the Service is not compatible with another holder.
        SharingConflict,
        /// The API server refuses a write of the controller: by validation, a policy, a webhook, a quota or permissions.
        WriteRefused,
    }
}

words! {
    /// The state of the addresses that a Service has: reasons of `landfall.dev/Allocated`, status `True`. The worst is
    /// last.
    AllocatedReason {
        /// No irregularity.
        Allocated,
        /// The pool would no longer assign the address to this Service.
        PoolChanged,
        /// The pool of the address is being emptied.
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
        /// A node announces each address.
        Announced,
        /// Another host on the LAN uses the address.
        Conflict,
        /// No node may announce the address.
        NoEligibleNode,
        /// Nodes are eligible, and lack the key without which no node announces.
        NoHelloKey,
        /// Nodes are eligible, and none has reported that it announces the address.
        Pending,
    }
}

words! {
    /// Condition types of an IPAddressPool.
    PoolCondition {
        /// True: Services can get addresses of the pool, and its spec has no error.
        Ready,
        /// True: some of its addresses belong to an older pool.
        Overlap,
        /// True: the pool has no free address of a family that it assigns.
        Exhausted,
        /// Exists only while the pool drains. True: no Service holds an address of the pool.
        Drained,
        /// Exists only while addresses are quarantined, because other hosts on the LAN use them.
        Conflict,
        /// Exists only while an agent reports more addresses of pools than its node can withhold.
        ExcessNodeAddresses,
        /// Exists only while nodes, pods or Services of the cluster use some of its addresses.
        OverlapsCluster,
        /// Exists only while no network of a node contains some of its addresses: clients need a route.
        OffSubnet,
    }
}

impl PoolCondition {
    /// Whether the condition exists only while there is something to report.
    pub(crate) fn is_temporary(self) -> bool {
        !matches!(self, Self::Ready | Self::Overlap | Self::Exhausted)
    }
}

words! {
    /// Reasons of the conditions of an IPAddressPool.
    PoolReason {
        /// `Ready` is true.
        Ready,
        /// An entry of `addresses` or `exclude` is invalid.
        InvalidRange,
        /// A selector of `serviceAllocation` is invalid.
        InvalidSelector,
        /// Older pools have all or some of its addresses.
        Overlap,
        /// The pool has no addresses, or none that it assigns without a request by name.
        NoAddresses,
        /// `spec.drain` is true.
        Draining,
        /// No older pool has any of its addresses.
        NoOverlap,
        /// A family has no free address.
        Exhausted,
        /// Each family has free addresses.
        NotExhausted,
        /// No Service holds an address of the draining pool.
        Drained,
        /// Services still hold addresses of the draining pool.
        Held,
        /// Other hosts on the LAN use addresses of the pool.
        AddressConflict,
        /// Agents report more addresses of pools than their nodes can withhold.
        ExcessNodeAddresses,
        /// Nodes, pods or Services of the cluster use addresses of the pool.
        OverlapsCluster,
        /// No network of a node contains some of its addresses.
        OffSubnet,
    }
}

words! {
    /// Reasons of events. An irregularity of an assigned address has its [`AllocatedReason`].
    EventReason {
        /// Service, Normal: it has the addresses that it requests.
        IPAllocated,
        /// Service, Warning: it does not get the addresses that it requests.
        AllocationFailed,
        /// Service, Warning: another client wrote its status, and Landfall restored it.
        StatusRepaired,
        /// Service, Warning: another client keeps changing its status.
        StatusContested,
        /// Service or IPAddressPool, Warning: another host on the LAN uses an address.
        AddressConflict,
        /// Service, Warning: it has an address that no node announces.
        NotAnnounced,
        /// Service, Normal: nodes announce its addresses.
        Announced,
        /// Service, Warning: some packets are not forwarded because of a mistake in an object.
        NotForwarded,
        /// Service, LoadBalancerIP or IPAddressPool, Warning: the API server refuses a write of the controller.
        WriteRefused,
        /// IPAddressPool, Warning: `Ready` became false.
        NotReady,
        /// IPAddressPool, Warning: an older pool has some of its addresses.
        Overlap,
        /// IPAddressPool, Warning: a family has no free address.
        Exhausted,
        /// IPAddressPool, Warning: an agent reports more addresses than its node can withhold.
        ExcessNodeAddresses,
        /// IPAddressPool, Warning: the cluster uses some of its addresses.
        OverlapsCluster,
    }
}

/// Reasons of `landfall.dev/Forwarding`. The worst is last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardingReason {
    /// Packets reach the endpoints in this way.
    Reached(Reach),
    /// The announcing nodes do not report how they forward.
    Unreported,
    /// No node announces the addresses.
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
