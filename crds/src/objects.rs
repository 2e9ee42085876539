//! The API objects of Landfall and their CustomResourceDefinitions.

pub mod ip_address_pool;
pub mod l2_advertisement;
pub mod load_balancer_ip;
pub mod manifest;
pub mod node_network;
mod range_rules;
