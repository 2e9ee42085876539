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
//! | [`rules`] | snapshot → ruleset: what must happen to packets; knows no kernel (pure) |
//! | [`nft`] | ruleset → nf_tables: elements, tables, messages (pure), and the engine (shell) |
//! | [`netlink`] | the language of the kernel, and the socket |
//! | [`flows`] | tracked flows and sticky clients that the kernel must forget |
//! | [`reply_path`] | on a node with several links, answers leave by the link that the request came in by |
//! | [`run`](mod@run) | the loop |
//! | [`metrics`] | numbers of changes and of traffic (pure) |
//!
//! A frame from outside goes to a node that has an endpoint, which translates it to one of its own, chosen at random, and
//! answers the client. Where frames can't be handed on, a packet goes to a random endpoint on any node: one on this node
//! sees the client's address; for one on another node the packet is masqueraded, so that the answer comes back through
//! here. What a Service has no endpoint for is refused, and what nobody serves is dropped, as is who may not use it. IPv4
//! and IPv6 are forwarded alike.

pub mod flows;
pub mod metrics;
pub mod netlink;
pub mod nft;
pub mod reply_path;
pub mod rules;
pub mod run;
pub mod snapshot;

pub use metrics::counters::Counters;
pub use nft::engine::{Error, count, remove};
pub use rules::ruleset::Ruleset;
pub use run::{Forwarding, run};
pub use snapshot::Snapshot;
