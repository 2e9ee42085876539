//! Messages of the kernel, and the sockets that carry them: nf_tables, connection tracking, links and routing.
//!
//! | file | content |
//! |---|---|
//! | [`attribute`] | attributes of netfilter: written into messages, and read from untrusted bytes (pure) |
//! | [`message`] | requests encoded, replies decoded (pure) |
//! | [`conntrack`] | messages about tracked flows (pure) |
//! | [`links`] | messages about links and addresses → the links of this node (pure) |
//! | [`route`] | messages about routes and rules (pure) |
//! | [`socket`] | transactions, commands and dumps (shell) |
//! | [`notifications`] | wakes when links, addresses, routes or rules change (shell) |
//! | [`watch`] | the links, kept up to date, and the gateways (shell) |
//!
//! A pure file decides or converts; a shell does input and output.
//!
//! This crate encodes the messages of netfilter itself (ADR 1). Messages about links and routing are types of
//! [`packet_route`].

pub mod attribute;
pub mod conntrack;
pub mod links;
pub mod message;
pub mod notifications;
pub mod route;
pub mod socket;
pub mod watch;

pub use netlink_packet_route as packet_route;
