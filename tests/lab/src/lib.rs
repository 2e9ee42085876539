//! A real Kubernetes cluster of several nodes on one machine, in network namespaces.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use lab::{Cluster, Direction, Topology};
//! let cluster = Cluster::up("example", &Topology { nodes: 2, ..Topology::default() }).await?;
//! cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: example}}")?;
//! cluster.cut("n1", Direction::Both)?;
//! # Ok(()) }
//! ```
//!
//! Everything in it is real but the hardware: kernels' network stacks, etcd, the Kubernetes components, containerd. A
//! cluster touches the machine only in places it removes: namespaces `lf-NAME-*`, `/run/landfall-lab/NAME`, control
//! groups `landfall-lab/NAME`, one port on 127.0.0.1. `docs/lab.md` is the guide.
//!
//! The rooms: [`topology`] (what there is and its addresses, pure), `network` (cables), `control_plane`, `node` and
//! `light_node` (what runs), [`image`], `host`, `process` and `answer` (handles), `faults` (what goes wrong on purpose),
//! `cgroup` (who is whose process), `state` (files, locks, removal), `readiness` and `wait`, `collect`, and [`cluster`],
//! which joins them.

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
