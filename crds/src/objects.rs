//! The objects that Landfall adds to Kubernetes, and their definitions.

pub mod ip_address_pool;
pub mod l2_advertisement;
pub mod load_balancer_ip;
pub mod manifest;
pub mod node_network;
