//! The observer of an end-to-end test: it checks Landfall's invariants from the first step of the test to the last.
//!
//! ```text
//!   LAN ── lan ──────────┐
//!   nodes ── nodes ──────┼─ facts ─▶ Checks (pure) ─▶ breaches ─▶ the scene fails
//!   API server ── watch ─┘              ▲
//!                     faults that a scene declares
//! ```
//!
//! | file | content |
//! |---|---|
//! | [`breach`] | invariants, subjects, breaches (pure) |
//! | [`fault`] | faults that a scene declares, and the breaches that they permit (pure) |
//! | [`checks`] | facts → breaches (pure) |
//! | [`frame`] | ARP and neighbour discovery (pure) |
//! | `gather` | shells that gather facts |
//! | [`observer`] | starts the shells, and ends them with the test |
//!
//! `docs/dev/testing.md` has the list of invariants, and how to declare a fault.
#![allow(missing_docs, reason = "only this repository uses this library")]

pub mod breach;
pub mod checks;
pub mod fault;
pub mod frame;
mod gather;
pub mod observer;

pub use breach::{Component, FoundBreaches, Invariant, Subject};
pub use fault::Fault;
pub use observer::Observer;
