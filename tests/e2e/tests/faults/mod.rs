//! Faults of hosts and of the LAN. All scenes of a file share one cluster.
//!
//! | file | content |
//! |---|---|
//! | [`lan`] | cut nodes and pairs, lost, filtered, late and doubled frames, a restart of the switch |

mod lan;
