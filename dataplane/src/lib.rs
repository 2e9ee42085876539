//! Forwarding: plans what the kernel must do with a packet to an lb_ip, and programs the kernel.
//!
//! ```text
//!   Snapshot ──plan──▶ Ruleset ──projection──▶ Elements ──diff──▶ ElementChanges ──requests──▶ the kernel's tables
//!                                                                                                 │ acknowledged
//!                                                      Forwarding  ◀──────────────────────────────┘
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`snapshot`] | the observed input |
//! | [`rules`] | snapshot → ruleset, without any knowledge of a kernel (pure) |
//! | [`nft`] | the engine: ruleset → tables of nf_tables |
//! | [`flows`] | tracked flows and clients that the kernel must forget |
//! | [`reply_path`] | on a node with several links, replies leave by the link of the request |
//! | [`run`](mod@run) | the loop |
//! | [`metrics`] | counters of changes and of traffic (pure) |
//!
//! # One Service, from watch to element
//!
//! | step | file | from → to |
//! |---|---|---|
//! | the agent composes | `snapshot.rs` | Service, EndpointSlices, LoadBalancerIP → [`Snapshot`] |
//! | find changes | `rules/planner.rs` | two snapshots → affected lb_ips |
//! | plan | `rules/plan.rs` | Service, slices → `LbIp` with a `Target` for each port |
//! | collect | `rules/ruleset.rs` | `LbIp` → [`Ruleset`](rules::Ruleset): addresses, dispatches, share tables |
//! | next hops | `rules/next_hops.rs` | share tables, links, dead nodes → MAC addresses |
//! | project | `nft/projection.rs` | `LbIp` → `ElementKey` and `ElementValue` |
//! | diff | `nft/diff.rs` | two rulesets → `ElementChange`s |
//! | encode | `nft/codec/request.rs` | changes → messages of one transaction |
//! | apply | `nft/engine.rs` | messages → the kernel |
//! | publish | `run/forwarding.rs` | the acknowledged ruleset → [`Forwarding`] |
//!
//! A frame from outside is re-sent to a node with an endpoint. That node translates it to one of its own endpoints,
//! chosen at random, and replies to the client directly. If frames cannot be re-sent, a packet goes to a random
//! endpoint on any node. An endpoint on this node sees the client's address. A packet to an endpoint on another node is
//! masqueraded, so that the reply comes back through this node. A packet to a port without endpoints is refused. A
//! packet is dropped if no Service on this node serves it, or if its client is forbidden. IPv4 and IPv6 are forwarded
//! alike.

mod error_chain;
pub mod flows;
mod link_name;
pub mod metrics;
pub mod nft;
pub mod reply_path;
pub mod rules;
mod run;
pub mod snapshot;

pub use metrics::Counters;
pub use nft::{read_kernel_counters, remove};
pub use run::{Forwarding, run};
pub use snapshot::Snapshot;
