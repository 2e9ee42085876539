//! Forwarding beside each kind of Service proxy, and without one.
//!
//! | file | content |
//! |---|---|
//! | [`first_answer`] | from `<pending>` to an answer on the LAN |
//! | [`health_checks`] | health checks for external load balancers |
//! | [`truth_table`] | the outcome of requests, by source, traffic policy and endpoints |

mod first_answer;
mod health_checks;
mod truth_table;
