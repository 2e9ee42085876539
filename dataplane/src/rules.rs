//! The rules for packets: [`Snapshot`](crate::Snapshot) → [`Ruleset`], without any knowledge of a kernel. Pure.
//!
//! | file | content |
//! |---|---|
//! | `sources` | the clients allowed to use a Service |
//! | `backend` | the backend of a port: endpoints or the Service proxy |
//! | `spread` | the part of the packets that each node gets |
//! | `plan` | snapshot → ruleset, one lb_ip at a time |
//! | `planner` | plans only the lb_ips that may have changed |
//! | `ruleset` | the types of a ruleset |
//! | `ring` | the nodes that may track an open connection |
//! | `next_hops` | the next hops of spread frames and of segments that are handed on |
//! | `diff` | the differences between two rulesets |
//! | `problem` | problems of Services for users |
//! | `health_check` | the health checks that this node serves |

mod backend;
mod diff;
mod health_check;
mod next_hops;
mod plan;
mod planner;
mod problem;
mod ring;
mod ruleset;
mod sources;
mod spread;

pub use backend::{Fallback, FallbackReason, ProxyTarget};
pub(crate) use diff::{changed_lb_ips, full_outer_join};
pub use health_check::{HealthCheck, health_checks};
pub use next_hops::NextHops;
pub(crate) use plan::holding_services;
pub use plan::plan_ruleset;
pub use planner::Planner;
pub use problem::Problem;
pub use ring::{Ring, RingId, Successor};
pub use ruleset::{Dispatch, Endpoint, Frontend, LbIp, Pick, Ruleset, SpreadKey, Target};
pub use sources::Sources;
pub(crate) use sources::contains_address;
pub(crate) use spread::{FIRST_PIECE, PIECES, SLOTS};
pub use spread::{HashBy, PairId, SlotTable, TableId};
