//! The state of the machine that its segments share during one call.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::metrics::{Counters, Event};
use crate::snapshot::Snapshot;
use crate::wire::frame::Frame;
use crate::wire::seal::KeyRing;

/// The inputs of a segment beyond its own state, and its outputs.
pub struct Context<'a> {
    pub now: Duration,
    pub config: &'a Config,
    pub keys: &'a KeyRing,
    /// `None` until it has arrived.
    pub snapshot: Option<&'a Snapshot>,
    /// The addresses that the dataplane forwards.
    pub forwarded: &'a BTreeSet<IpAddr>,
    /// Whether this speaker is about to stop.
    pub leaving: bool,
    pub frames: &'a mut Vec<Frame>,
    pub events: &'a mut Vec<Event>,
    pub counters: &'a mut Counters,
    /// Whether the announcements or conflicts to report have changed.
    pub reports_changed: &'a mut bool,
}
