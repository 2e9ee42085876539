//! The hosts of a cluster on this machine: namespaces, cables, control groups and processes.

pub(crate) mod answer;
pub(crate) mod cable;
pub(crate) mod cgroup;
mod frame_queue;
pub(crate) mod host;
pub(crate) mod network;
pub(crate) mod process;
