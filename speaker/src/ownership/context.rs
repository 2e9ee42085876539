//! The state of the machine that all its segments share for one call.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::metrics::events::{Counters, Event};
use crate::snapshot::Snapshot;
use crate::wire::frame::Frame;
use crate::wire::seal::KeyRing;

/// What a segment looks at beyond itself, and where it puts what follows.
pub struct Context<'a> {
    /// The time.
    pub now: Duration,
    /// Who we are.
    pub config: &'a Config,
    /// What packets are sealed with.
    pub keys: &'a KeyRing,
    /// Which addresses there are, once known.
    pub snapshot: Option<&'a Snapshot>,
    /// Which addresses the dataplane forwards.
    pub forwarded: &'a BTreeSet<IpAddr>,
    /// Whether we are about to go.
    pub leaving: bool,
    /// Frames to send.
    pub frames: &'a mut Vec<Frame>,
    /// What to tell.
    pub events: &'a mut Vec<Event>,
    /// What to count.
    pub counters: &'a mut Counters,
}
