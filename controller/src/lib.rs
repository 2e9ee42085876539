//! Allocation: which Service gets which address, and why not.
//!
//! ```text
//! API server --watch--> stores --changes--> ledger --> plan --series of effects--> queue --> apply --writes--> API server
//!                         ^                 (      pure      )                    (pure)       |
//!                         +------------------------------ answers -----------------------------+
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`ledger`], [`snapshot`] | what is known, with what follows from it and whom a change concerns; the same all at once |
//! | [`pools`], [`occupied`], `fence` | what the pools come to: which pool an address belongs to, what overlaps, who may have it |
//! | [`free`], `rest` | which address is given next |
//! | [`intervals`], `numbering`, [`few`] | sets of addresses that cost nothing; lists that people can read |
//! | `wishes`, `sharing` | what a Service wants; which Services may share an address |
//! | `allocation` | who gets which address, and who keeps, gives up or is refused |
//! | `conflicts` | whose address somebody else on the LAN uses, and what becomes of that |
//! | `settled` | about whom there is nothing to decide |
//! | [`refusal`] | why a Service doesn't get what it asks for, with the fix |
//! | `pool_status`, `service_status` | what is said of a pool, and of a Service |
//! | [`announced`] | what is said of who announces a Service's addresses, and why nobody does |
//! | `forwarding` | what is said of how packets to them get to endpoints, and of what does not |
//! | [`mod@plan`], `holders`, [`effect`] | what is to be written, as data; about Services, and about shared addresses |
//! | `queue`, `pace`, `leisure` | what is to begin next; when something may be tried again; when there is time to tell |
//! | [`metrics`], `latency`, `repeats` | numbers for Prometheus; which events are told again and again |
//! | `lease`, `election` | who of several controllers leads; taking part in that |
//! | `stores`, `apply`, `report` | what is known; doing what was planned; telling people |
//! | [`mod@run`] | the loop |
//!
//! What it needs to be allowed to do: list and watch Services, EndpointSlices, Namespaces, Nodes, NodeNetworks,
//! IPAddressPools, L2Advertisements and LoadBalancerIPs; get Services, IPAddressPools and LoadBalancerIPs; patch `services/status` and `ipaddresspools/status`;
//! create, patch and delete LoadBalancerIPs; create events (events.k8s.io); get, watch, create and patch the Lease.

#![forbid(unsafe_code)]

mod allocation;
pub mod announced;
mod apply;
mod conflicts;
pub mod effect;
mod election;
mod fence;
pub mod few;
#[cfg(test)]
mod fixtures;
mod forwarding;
pub mod free;
#[cfg(test)]
mod history;
mod holders;
pub mod intervals;
mod latency;
mod lease;
pub mod ledger;
mod leisure;
#[cfg(test)]
mod live;
pub mod metrics;
#[cfg(test)]
mod model;
mod numbering;
pub mod occupied;
mod pace;
pub mod plan;
mod pool_status;
pub mod pools;
mod queue;
pub mod refusal;
mod repeats;
mod report;
mod rest;
pub mod run;
mod service_status;
mod settled;
mod sharing;
pub mod snapshot;
mod stores;
#[cfg(test)]
mod stories;
mod wishes;
#[cfg(test)]
mod world;

pub use announced::{Circumstances, Nowhere};
pub use election::Election;
pub use ledger::Ledger;
pub use metrics::Metrics;
pub use plan::{Plan, plan};
pub use run::{Config, Error, run};
pub use snapshot::Snapshot;
