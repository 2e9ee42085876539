//! Pools, the addresses that belong to them, and which address is assigned next.
//!
//! | file | contents |
//! |---|---|
//! | `pool`, `address_map` | the pools; which pool an address belongs to, which are withheld or used by the cluster |
//! | `cluster_range` | addresses that nodes, pods and ClusterIPs use |
//! | `selector` | which Services a pool admits |
//! | `occupied` | addresses of nodes and gateways, and the networks of nodes |
//! | `free`, `cooldown` | free addresses, and addresses in cool-down |
//! | `intervals`, `numbering` | sets of addresses whose cost does not depend on their size |
//! | `truncated` | lists that show their first entries and count the others |

mod address_map;
pub(crate) mod cluster_range;
mod cooldown;
pub(crate) mod free;
pub(crate) mod intervals;
mod numbering;
pub(crate) mod occupied;
mod pool;
mod selector;
pub(crate) mod truncated;

pub use pool::{OccupiedAddress, Overlap, Pool, Pools, Withheld};
