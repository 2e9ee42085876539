//! Faults of hosts, of the LAN and of the Kubernetes API. All scenes of a file share one cluster.
//!
//! | file | content |
//! |---|---|
//! | [`api`] | an API server that is down, slow, refuses, hangs or loses writes, and silent watches |
//! | [`clients`] | new and open connections to an address, beside a control |
//! | [`host`] | frozen, throttled and killed agents, hostile commands, full disks, a replaced node |
//! | [`lan`] | cut nodes and pairs, lost, filtered, late and doubled frames, a restart of the switch |

mod api;
mod clients;
mod host;
mod lan;
