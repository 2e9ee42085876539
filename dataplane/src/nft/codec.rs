//! nf_tables' netlink messages: written and read.
//!
//! | room | what is in it |
//! |---|---|
//! | [`expression`] | rules as the kernel's bytecode, only as `nft` itself would write it (pure) |
//! | [`userdata`] | notes for `nft`, which the kernel only keeps (pure) |
//! | [`contents`] | the elements of a new table, as messages (pure) |
//! | [`request`], [`dump`] | messages that change a table, and the answers that describe it (pure) |

mod bytes;
pub mod contents;
pub mod dump;
pub mod expression;
pub mod request;
pub mod userdata;
