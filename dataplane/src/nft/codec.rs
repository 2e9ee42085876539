//! The netlink messages of nf_tables, written and read. Pure.
//!
//! | file | content |
//! |---|---|
//! | [`expression`] | rules as the kernel's bytecode, exactly as `nft` writes them |
//! | `element` | elements of sets and maps ⇄ attributes |
//! | `userdata` | notes for `nft`, which the kernel only stores |
//! | [`contents`] | the elements of a new table, as messages |
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

pub(super) use element::encode_key;

#[cfg(test)]
mod tests;
