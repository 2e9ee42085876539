//! Typed views of the Kubernetes objects that Landfall reads: only the fields it uses, parsed and checked.

pub mod backend;
pub mod endpoints;
pub mod forwarding;
pub mod namespace;
pub mod node;
pub mod request;
pub mod service;
