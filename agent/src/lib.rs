//! The agent of one node: runs the dataplane and the speaker, and watches the objects of the API server for both.
//!
//! ```text
//!                 +-> dataplane::Snapshot --> dataplane --> kernel
//!                 |      ^ dead nodes             | acknowledged addresses
//!   API server -> |      +--------------------+   |
//!     (observe)   +-> speaker::Snapshot ----> speaker ----> wire
//!                 |                            ^  | announcements
//!                 +-> Secret ---------- keys --+  |
//!   API server <----------- report <--------------+
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`run`](mod@run) | starts the tasks and ends them |
//! | [`channels`] | the watch channels between the tasks, and which addresses the speaker may announce |
//! | [`compose`] | the snapshots of the dataplane and the speaker, from the observed objects |
//! | [`report`] | writes announcers and conflicts to the status of LoadBalancerIPs |
//! | [`network`] | writes this node's links and gateways to its NodeNetwork |
//! | [`health`] | answers health checks at the `healthCheckNodePort` of Services |
//! | [`metrics`] | metrics for Prometheus, and readiness |
//! | [`removal`] | whether Landfall is being removed from the cluster |
//! | [`keys`] | the Secret with the keys that seal Hellos: agents read it, controllers create and rotate it |
//! | [`identity`] | the identifiers of this cluster and of this start of the agent |

mod channels;
mod compose;
mod config;
mod health;
mod identity;
pub mod keys;
mod metrics;
mod network;
mod removal;
mod report;
mod run;

pub use compose::{DataplaneInput, compose_once};
pub use config::Config;
pub use metrics::Metrics;
pub use run::run;
