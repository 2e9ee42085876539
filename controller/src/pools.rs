//! Pools, the addresses that belong to them, and which address is assigned next.
//!
//! | file | contents |
//! |---|---|
//! | `layout`, `address_map` | all pools; which pool an address belongs to, and which addresses are withheld |
//! | `pool`, `selector` | one pool; which Services it admits |
//! | `occupied` | addresses of nodes and gateways |
//! | `free`, `cooldown` | free addresses, and addresses in cool-down |
//! | `intervals`, `numbering` | sets of addresses whose cost does not depend on their size |
//! | `truncated` | lists that show their first entries and count the others |

mod address_map;
mod cooldown;
pub(crate) mod free;
pub(crate) mod intervals;
mod layout;
mod numbering;
pub(crate) mod occupied;
mod pool;
mod selector;
pub(crate) mod truncated;

pub use layout::{Pools, Withheld};
pub use pool::{OccupiedAddress, Overlap, Pool};
