//! Limits on the rate of work: backoff between attempts, and budgets of deferrable work.
//!
//! Time and randomness are arguments.

mod backoff;
mod token_bucket;

pub use backoff::{Backoff, add_jitter};
pub use token_bucket::TokenBucket;
