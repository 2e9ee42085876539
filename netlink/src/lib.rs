//! Messages of the kernel, and the sockets that carry them: nf_tables, connection tracking, links and routing.
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
pub mod conntrack;
pub mod message;
pub mod notifications;
pub mod route;
pub mod socket;
