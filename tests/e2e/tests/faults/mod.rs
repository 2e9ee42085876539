//! Faults of hosts, of the LAN and of the Kubernetes API. All scenes of a file share one cluster.
//!
//! | file | content |
//! |---|---|
//! | [`api`] | an API server that is down, slow, refuses, hangs or loses writes, and silent watches |
//! | [`lan`] | cut nodes and pairs, lost, filtered, late and doubled frames, a restart of the switch |

mod api;
mod lan;
