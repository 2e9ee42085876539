//! Typed views of the Kubernetes objects that Landfall reads: the fields that it uses, parsed and checked.

pub mod endpoints;
pub mod forwarding;
pub mod namespace;
pub mod node;
pub mod request;
pub mod service;
pub mod service_range;
