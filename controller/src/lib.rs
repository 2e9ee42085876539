//! Allocation: which Service gets which address, and why not.
//!
//! ```text
//! API server --watch--> stores --snapshot--> plan --series of effects--> apply --writes--> API server
//!                         ^                  (pure)                        |
//!                         +-------------------- answers -------------------+
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`snapshot`] | what was observed, all at once |
//! | [`pools`], [`occupied`], `fence` | what the pools come to: which pool an address belongs to, what overlaps, who may have it |
//! | [`free`], `rest` | which address is given next |
//! | [`intervals`], `numbering`, [`few`] | sets of addresses that cost nothing; lists that people can read |
//! | `allocation` | who gets which address, and who keeps, gives up or is refused |
//! | [`refusal`] | why a Service doesn't get what it asks for, with the fix |
//! | `pool_status` | what is said of a pool |
//! | [`mod@plan`], [`effect`] | what is to be written, as data |
//! | `pace` | when something may be tried again |
//! | `lease`, `election` | who of several controllers leads; taking part in that |
//! | `stores`, `apply`, `report` | what is known; doing what was planned; telling people |
//! | [`mod@run`] | the loop |
//!
//! What it needs to be allowed to do: list and watch Services, Nodes, IPAddressPools and LoadBalancerIPs; get the same but
//! Nodes; patch `services/status` and `ipaddresspools/status`; create and delete LoadBalancerIPs; create events
//! (events.k8s.io); get, watch, create and patch the Lease.

#![forbid(unsafe_code)]

mod allocation;
mod apply;
pub mod effect;
mod election;
mod fence;
pub mod few;
#[cfg(test)]
mod fixtures;
pub mod free;
#[cfg(test)]
mod history;
pub mod intervals;
mod lease;
mod numbering;
pub mod occupied;
mod pace;
pub mod plan;
mod pool_status;
pub mod pools;
pub mod refusal;
mod report;
mod rest;
pub mod run;
pub mod snapshot;
mod stores;
#[cfg(test)]
mod world;

pub use election::Election;
pub use plan::{Plan, plan};
pub use run::{Config, Error, run};
pub use snapshot::Snapshot;
