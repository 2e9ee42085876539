//! A real Kubernetes cluster of several nodes on one machine, in network namespaces.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use lab::{Cluster, Direction, Topology};
//! let cluster = Cluster::start("example", &Topology { nodes: 2, ..Topology::default() }).await?;
//! cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: example}}")?;
//! cluster.cut("n1", Direction::Both)?;
//! # Ok(()) }
//! ```
//!
//! Everything is real except the hardware: kernels' network stacks, etcd, the Kubernetes components, containerd. A
//! cluster touches only these parts of the machine, and removes them at its end: namespaces `lf-NAME-*`,
//! `/run/landfall-lab/NAME`, control groups `landfall-lab/NAME`, one port on 127.0.0.1. `docs/lab.md` is the guide.
//!
//! | file | content |
//! |---|---|
//! | [`topology`] | numbers of hosts → their names and addresses; pure |
//! | `machine` | the hosts: switch, cables, addresses and routes; control groups; daemons; requests from a host |
//! | `kubernetes` | the processes and objects of a cluster, and when they are ready |
//! | [`image`] | container images without a builder |
//! | `faults` | cuts, losses, ports without a carrier, freezes, power-offs, limits of processes, full disks |
//! | `state` | directories, locks, removal |
//! | `wait` | waiting, with time limits |
//! | `collect` | evidence of a failed test |
//! | [`cluster`] | all of these together |
#![allow(missing_docs, reason = "only this repository uses this library")]

pub mod cluster;
mod collect;
mod faults;
pub mod image;
mod kubernetes;
mod machine;
mod state;
pub mod topology;
mod wait;

pub use cluster::{Cluster, evidence_folder};
pub use faults::Direction;
pub use faults::limits::{CpuLimit, FileLimit, FullDisk};
pub use kubernetes::light_node::LABEL as LIGHT_NODE_LABEL;
pub use machine::answer::Answer;
pub use machine::cable::{Cable, CablePlan};
pub use machine::host::Host;
pub use machine::process::Process;
pub use nix::sys::signal::Signal;
pub use topology::{KubeProxy, Topology};
pub use wait::{extend_limit, wait_until};
