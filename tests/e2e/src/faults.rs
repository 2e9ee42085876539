//! Faults as verbs of [`World`](crate::World). Each declares to the observer which breaches it permits. A fault that
//! lasts ends when its value is dropped, at the latest at the end of the scene.
//!
//! | file | content |
//! |---|---|
//! | [`api`] | an API server that is down, slow, refuses, hangs or loses writes, and silent watches |
//! | [`host`] | processes, nodes and kernels: frozen, throttled, killed, without disk, replaced; hostile commands |
//! | [`lan`] | cut nodes and pairs, lost, filtered, late and doubled frames, ports without a carrier |

pub mod api;
pub mod host;
pub mod lan;
