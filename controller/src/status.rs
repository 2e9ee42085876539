//! Conditions and events of Services and pools.
//!
//! | file | contents |
//! |---|---|
//! | `allocated` | the condition `Allocated` of a Service, and its ingress |
//! | `announced`, `forwarding` | the conditions `Announced` and `Forwarding` of a Service |
//! | `conditions` | the write of `Announced` and `Forwarding`, which are written together |
//! | `change` | whether a condition is up to date |
//! | `pool` | the status of a pool |
//! | `refused_write` | the reports of writes that the API server refuses |
//! | `reason` | the reasons of conditions and events, and the types of the conditions of a pool |

pub(crate) mod allocated;
pub(crate) mod announced;
pub(crate) mod change;
mod conditions;
pub(crate) mod forwarding;
pub(crate) mod pool;
pub(crate) mod reason;
mod refused_write;
