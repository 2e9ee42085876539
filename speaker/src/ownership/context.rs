//! The state of the machine that its segments share.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::metrics::{Counters, Event};
use crate::snapshot::Snapshot;
use crate::wire::frame::Frame;
use crate::wire::seal::KeyRing;
use model::eligibility::AnnouncementPolicy;

/// The inputs that all segments read, and the outputs to which they add.
#[derive(Debug)]
pub struct Context {
    /// The time of the current input.
    pub now: Duration,
    pub config: Config,
    pub keys: KeyRing,
    /// The snapshot of the cluster; `None` until it has arrived.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The addresses that the dataplane forwards.
    pub forwarded: Arc<BTreeSet<IpAddr>>,
    /// Whether this speaker is about to stop.
    pub leaving: bool,
    pub frames: Vec<Frame>,
    pub events: Vec<Event>,
    pub counters: Counters,
    /// Whether the announcements or conflicts to report have changed.
    pub reports_changed: bool,
}

impl Context {
    pub fn new(config: Config) -> Self {
        Self {
            now: Duration::ZERO,
            config,
            keys: KeyRing::default(),
            snapshot: None,
            forwarded: Arc::default(),
            leaving: false,
            frames: Vec::new(),
            events: Vec::new(),
            counters: Counters::default(),
            reports_changed: false,
        }
    }

    /// Which nodes may announce `lb_ip`; `None` if no Service holds it.
    pub fn policy(&self, lb_ip: IpAddr) -> Option<&AnnouncementPolicy> {
        self.snapshot.as_ref()?.addresses.get(&lb_ip)
    }
}
