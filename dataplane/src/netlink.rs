//! Netlink, as far as netfilter speaks it, and routing a little.
//!
//! | room | what is in it |
//! |---|---|
//! | [`attribute`] | the type-length-value language: written into a message, read without trust (pure) |
//! | [`message`] | headers: requests put together, replies taken apart (pure) |
//! | [`flow`] | tracked flows in messages (pure) |
//! | [`route`] | links, routes and rules in messages (pure) |
//! | [`notices`] | that links, routes or rules have changed (shell) |
//! | [`socket`] | the socket itself: transactions and dumps (shell) |

pub mod attribute;
pub mod flow;
pub mod message;
pub mod notices;
pub mod route;
pub mod socket;
