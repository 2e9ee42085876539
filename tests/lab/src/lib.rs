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
//! | `network` | the switch, cables, addresses and routes |
//! | `control_plane`, `node`, `light_node` | the processes and objects of a cluster |
//! | [`image`] | container images without a builder |
//! | `host`, `process`, `answer` | handles on hosts and daemons, requests from a host |
//! | `faults` | cuts, losses, freezes, power-offs |
//! | `cgroup` | control groups of hosts and daemons |
//! | `state` | directories, locks, removal |
//! | `readiness`, `wait` | waiting, with time limits |
//! | `collect` | evidence of a failed test |
//! | [`cluster`] | all of these together |
#![allow(missing_docs, reason = "only this repository uses this library")]

mod answer;
mod certificates;
mod cgroup;
pub mod cluster;
mod collect;
mod control_plane;
mod faults;
mod host;
pub mod image;
mod light_node;
mod network;
mod node;
mod process;
mod readiness;
mod state;
pub mod topology;
mod wait;

pub use answer::Answer;
pub use cluster::Cluster;
pub use faults::Direction;
pub use host::Host;
pub use light_node::LABEL as LIGHT_NODE_LABEL;
pub use nix::sys::signal::Signal;
pub use process::Process;
pub use topology::{KubeProxy, Topology};
pub use wait::wait_until;
