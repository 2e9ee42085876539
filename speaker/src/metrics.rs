//! Events for the log, and counters.

mod counters;
mod events;
mod takeovers;

pub use counters::{Counters, Dropped, FrameCounters};
pub use events::Event;
pub use takeovers::{Cause, Move, SilenceHistogram, Takeovers};
