//! Pools, the addresses that belong to them, and which address is given next.
//!
//! | file | contents |
//! |---|---|
//! | `layout` | which pool an address belongs to, overlaps, and which addresses a pool withholds |
//! | `selector` | which Services a pool serves |
//! | `occupied` | addresses of nodes and gateways |
//! | `free`, `cooldown` | free addresses, and addresses in cool-down |
//! | `intervals`, `numbering` | sets of addresses whose cost does not depend on their size |
//! | `truncated` | lists that show their first entries and count the rest |

pub(crate) mod cooldown;
pub(crate) mod free;
pub(crate) mod intervals;
mod layout;
mod numbering;
pub(crate) mod occupied;
mod selector;
pub(crate) mod truncated;

pub(crate) use layout::{Land, Lot};
pub use layout::{LeftOut, Overlap, Pool, Pools, Withheld};
