//! Forwarding: what the kernel must do with a packet to an lb_ip, and making it do so.
//!
//! ```text
//!   Snapshot ──ruleset()──▶ Ruleset ──diff──▶ changes ──one transaction──▶ the kernel's tables `landfall`
//!                                                                               │ acknowledged
//!                                                      Forwarding  ◀────────────┘
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`snapshot`] | what was observed |
//! | [`sources`] | who may use a Service (pure) |
//! | [`backend`] | what goes by the Service proxy (pure) |
//! | [`spread`] | which node gets which part of the packets (pure) |
//! | [`health`] | what a load balancer in front is told (pure) |
//! | [`ruleset`] | what must happen to packets; knows no kernel (pure) |
//! | [`planner`] | plans again only what has changed (pure) |
//! | [`diff`] | what to change (pure) |
//! | [`nft`] | how nf_tables is told: the tables, their elements, their bytes (pure) |
//! | [`netlink`] | the language of the kernel, and the socket |
//! | [`engine`] | makes the kernel's tables what a ruleset says (shell) |
//! | [`stale`] | which tracked flows go nowhere any more (pure) |
//! | [`affinity`] | which clients must not go where they went before (pure) |
//! | [`conntrack`] | makes the kernel forget those (shell) |
//! | [`returns`] | on a node with several links, answers leave by the link that the request came in by |
//! | [`run`](mod@run) | the loop |
//! | [`counters`] | what was done, in numbers (pure) |
//! | [`traffic`] | how much came for each Service (pure) |
//!
//! A frame from outside goes to a node that has an endpoint, which translates it to one of its own, chosen at random, and
//! answers the client. Where frames can't be handed on, a packet goes to a random endpoint on any node: one on this node
//! sees the client's address; for one on another node the packet is masqueraded, so that the answer comes back through
//! here. What a Service has no endpoint for is refused, and what nobody serves is dropped, as is who may not use it. IPv4
//! and IPv6 are forwarded alike.

pub mod affinity;
pub mod backend;
pub mod conntrack;
pub mod counters;
pub mod diff;
pub mod engine;
pub mod health;
pub mod netlink;
pub mod nft;
pub mod planner;
pub mod returns;
pub mod ruleset;
pub mod run;
pub mod snapshot;
pub mod sources;
pub mod spread;
pub mod stale;
pub mod traffic;

pub use counters::Counters;
pub use engine::{Error, count, remove};
pub use ruleset::Ruleset;
pub use run::{Forwarding, run};
pub use snapshot::Snapshot;
