//! The agent of one node: watches the API server once, and composes the dataplane and the speaker.
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
//! | room | contents |
//! |---|---|
//! | [`run`](mod@run) | the tasks and the channels between them |
//! | [`compose`] | what the libraries know, from what was observed (pure), and the task that sends it |
//! | [`report`] | writes announcers and conflicts to the status of LoadBalancerIPs |
//! | [`network`] | writes this node's links and gateways to its NodeNetwork |
//! | [`health`] | answers at `healthCheckNodePort`s |
//! | [`metrics`] | numbers for Prometheus, and readiness |
//! | [`keys`] | the Secret that Hellos are sealed with: read here, made and rotated by a controller |

mod compose;
mod health;
pub mod keys;
mod metrics;
mod network;
mod report;
mod run;

pub use compose::{Planned, plan_once};
pub use metrics::Metrics;
pub use run::{Config, run};
