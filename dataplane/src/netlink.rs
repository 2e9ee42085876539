//! Netlink, as far as nf_tables, connection tracking and routing need it.
//!
//! | file | content |
//! |---|---|
//! | [`attribute`] | attributes, written into messages and read without trust (pure) |
//! | [`message`] | requests encoded, replies decoded (pure) |
//! | [`conntrack`] | messages about tracked flows (pure) |
//! | [`route`] | messages about links, routes and rules (pure) |
//! | [`notifications`] | wakes when links, routes or rules change (shell) |
//! | [`socket`] | transactions, commands and dumps (shell) |

pub mod attribute;
pub(crate) mod conntrack;
pub mod message;
pub(crate) mod notifications;
pub mod route;
pub mod socket;
