//! The processes and objects of Kubernetes in a cluster.

pub(crate) mod certificates;
pub(crate) mod control_plane;
pub(crate) mod light_node;
pub(crate) mod node;
pub(crate) mod readiness;
