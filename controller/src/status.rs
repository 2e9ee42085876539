//! Conditions and events of Services and pools.
//!
//! | file | contents |
//! |---|---|
//! | `allocated` | the condition `Allocated` of a Service, and its ingress |
//! | `announced` | the condition `Announced` of a Service |
//! | `forwarding` | the condition `Forwarding` of a Service |
//! | `change` | how a condition should change |
//! | `pool` | the status of a pool |
//! | `reason` | the reasons of the conditions of a Service |

pub(crate) mod allocated;
pub(crate) mod announced;
mod change;
pub(crate) mod forwarding;
pub(crate) mod pool;
pub(crate) mod reason;
