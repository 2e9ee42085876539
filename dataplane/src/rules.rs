//! What must happen to packets: pure decisions over the observed cluster.

pub mod backend;
pub mod health_check;
pub mod plan;
pub mod planner;
pub mod ruleset;
pub mod sources;
pub mod spread;
