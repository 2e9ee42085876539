//! Allocation: which Service gets which address, and why not.
//!
//! ```text
//! API server --watch--> stores --changes--> index --> plan --series--> queue --> apply --writes--> API server
//!                         ^                 (     pure     )          (pure)       |
//!                         +------------------------- answers ----------------------+
//! ```
//!
//! | room | contents |
//! |---|---|
//! | `state` | the observed objects with their indexes, and the keys that a change makes dirty |
//! | `pools` | pools without overlaps; sets of addresses; which address is assigned next |
//! | `allocate` | which Service keeps, gets, shares or releases an address, or is refused one |
//! | `plan` | series of effects: the writes to make, as data, and the order in which they start |
//! | `status` | conditions and events of Services and pools |
//! | `apply` | application of the effects, events, leader election |
//! | `run`, `metrics` | the main loop; metrics for Prometheus |
//!
//! Required permissions:
//!
//! - list and watch Services, ServiceCIDRs, EndpointSlices, Namespaces, Nodes, NodeNetworks, IPAddressPools,
//!   L2Advertisements and LoadBalancerIPs
//! - get Services, IPAddressPools and LoadBalancerIPs
//! - patch `services/status` and `ipaddresspools/status`
//! - create, patch and delete LoadBalancerIPs
//! - create events (events.k8s.io)
//! - get, watch, create and patch the Lease

#![forbid(unsafe_code)]

mod allocate;
mod apply;
mod metrics;
mod plan;
mod pools;
mod run;
mod state;
mod status;

#[cfg(test)]
#[path = "../tests/unit/fixtures.rs"]
mod fixtures;
#[cfg(test)]
#[path = "../tests/unit/history.rs"]
mod history;
#[cfg(test)]
#[path = "../tests/unit/live.rs"]
mod live;
#[cfg(test)]
#[path = "../tests/unit/reference_model.rs"]
mod reference_model;
#[cfg(test)]
#[path = "../tests/unit/snapshot.rs"]
mod snapshot;
#[cfg(test)]
#[path = "../tests/unit/stories.rs"]
mod stories;
#[cfg(test)]
#[path = "../tests/unit/world.rs"]
mod world;

pub use metrics::Metrics;
pub use plan::effect::{Effect, Series, Subject};
pub use pools::Pools;
pub use pools::free::Free;
pub use pools::occupied::Occupied;
pub use run::{Config, Error, LeaseConfig, run};
pub use state::index::{ClusterIndex, Obstacle};
pub use status::reason::{
    AllocatedReason, AnnouncedReason, EventReason, ForwardingReason, PoolCondition, PoolReason, RefusalReason,
};
