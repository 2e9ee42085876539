//! Benchmarks on the lab: Landfall beside the least that anybody could do, in the same run.
//!
//! No figure stands alone. The machine, the API server and the load on both differ from one day to the next, so each
//! contender has a rival that makes the same writes with no thought behind them, and what counts is the ratio. Contender
//! and rival take turns; every ratio is of two neighbours in time, and the spread of the ratios is printed with them. Where
//! seconds on the wire are measured, the rival is keepalived, in the same run and asked by the same probe.
//!
//! | room | what is in it |
//! |---|---|
//! | [`spread`] | medians, percentiles, ratios (pure) |
//! | [`report`] | the table that people read and the JSON that programs read (pure) |
//! | [`writes`] | the two writes that give a Service an address, as the rivals make them |
//! | [`rivals`] | who does nothing but these writes: a bare loop, an echo of a watch; and who only lists |
//! | [`sightings`] | a watch of Services that knows when each got its address |
//! | [`stage`] | a control plane to measure on, who runs on it, and what that costs |
//! | [`metrics`] | the API server's own count of requests (pure) |
//! | [`progress`] | how far a benchmark is, how much of it is wanted, and its dice |
//! | [`probe`] | asking an address all the time, from a host on the LAN |
//! | [`connector`] | connecting all the time, from a host on the LAN |
//! | [`gaps`] | how long nobody answered, from what a probe saw (pure) |
//! | [`sniffer`] | who says unasked that an address is his |
//! | [`usage`] | the CPU time of a process, and of one of its threads |
//!
//! The benchmarks are programs in `src/bin`.

pub mod connector;
pub mod gaps;
pub mod metrics;
pub mod probe;
pub mod progress;
pub mod report;
pub mod rivals;
pub mod sightings;
pub mod sniffer;
pub mod spread;
pub mod stage;
pub mod usage;
pub mod writes;

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}
