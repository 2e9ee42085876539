//! The netlink messages of nf_tables, written and read. Pure.
//!
//! | file | content |
//! |---|---|
//! | [`expression`] | rules as the kernel's bytecode, exactly as `nft` writes them |
//! | `element` | elements of sets and maps, and their parts ⇄ attributes |
//! | `userdata` | notes for `nft`, which the kernel only stores |
//! | [`contents`] | lists of elements, and the contents of a new table, as messages |
//! | [`request`] | messages that change tables |
//! | [`dump`] | queries, and the answers that describe a table |
//! | `numbers` | message types and attributes |

pub mod contents;
pub mod dump;
mod element;
pub mod expression;
mod key_bytes;
mod numbers;
pub mod request;
mod userdata;

pub(super) use element::with_parts;

#[cfg(test)]
mod tests;
