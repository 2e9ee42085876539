//! Benchmarks on the lab: Landfall beside the least possible work, in the same run.
//!
//! No figure stands alone, because the machine, the API server and their load differ from day to day. Each contender
//! has a rival that makes the same writes without any decision; the result is the ratio of the two. Contender and rival
//! take turns. Each ratio compares two adjacent runs, and is printed with the range of all ratios. The rival of
//! failover is keepalived, in the same run and measured by the same probe.
//!
//! | module | contents |
//! |---|---|
//! | [`distribution`] | medians, percentiles, ratios (pure) |
//! | [`report`] | the table for people and the figures for programs (pure) |
//! | [`figures`] | one figure, and the file of figures (pure) |
//! | [`writes`] | the two writes that give a Service an address, as the rivals make them |
//! | [`rivals`] | processes that make only these writes (a bare loop, an echo of a watch), or that only list |
//! | [`sightings`] | a watch of Services with the time when each got its address |
//! | [`stage`] | a control plane for measurements, the processes on it, and their cost |
//! | [`metrics`] | the API server's count of requests (pure) |
//! | [`progress`] | elapsed time, quick mode and random times of a benchmark |
//! | [`probe`] | continuous requests to an address, from a host on the LAN |
//! | [`connector`] | continuous connection attempts, from a host on the LAN |
//! | [`gaps`] | outages in the log of a probe (pure) |
//! | [`sniffer`] | gratuitous ARP as a host on the LAN receives it |
//! | [`usage`] | the CPU time of a process, and of one of its threads |
//!
//! The benchmarks are programs in `src/bin`.

pub mod connector;
pub mod gaps;
pub mod metrics;
pub mod probe;
pub mod report;
pub mod rivals;
pub mod sightings;
pub mod sniffer;
pub mod stage;
pub mod usage;
pub mod writes;

pub use report::{distribution, figures, progress};

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}
