//! The announcements and conflicts that the speaker publishes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::machine::Machine;
use crate::metrics::Move;
use crds::MacAddr;

/// The announcements of this node: the links on which it announces each lb_ip.
pub type Announcements = BTreeMap<IpAddr, Vec<Announcement>>;

/// The announcement of an lb_ip on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The name of the link.
    pub link: String,
    /// The epoch of the claim.
    pub epoch: u64,
    /// When this node first published the claim with this epoch.
    pub since: Timestamp,
    /// The takeover, if another node had the address before.
    pub moved: Option<Move>,
}

/// The load-balancer addresses that hosts outside the cluster use, each with its conflict.
pub type Conflicts = BTreeMap<IpAddr, Conflict>;

/// A host outside the cluster that uses an lb_ip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name of the link.
    pub link: String,
    /// The MAC address of the host.
    pub mac: MacAddr,
    /// Whether the address is not announced because of the conflict. An address that was announced before stays
    /// announced.
    pub held_back: bool,
    /// When this node first published the conflict.
    pub since: Timestamp,
}

/// The announcements to publish. `at` is the current time of the machine, and `now` is the same moment by the system
/// clock. An announcement with the same link and epoch as in `before` is unchanged. A new one begins at `now`.
pub(super) fn announcements(machine: &Machine, at: Duration, before: &Announcements, now: Timestamp) -> Announcements {
    let mut all = Announcements::new();
    for (lb_ip, link, claim, moved) in machine.reportable(at) {
        let mut known = before.get(&lb_ip).into_iter().flatten();
        let known = known.find(|known| known.link == link && known.epoch == claim.epoch);
        let new = || Announcement { link: link.into(), epoch: claim.epoch, since: now, moved: moved.cloned() };
        all.entry(lb_ip).or_default().push(known.cloned().unwrap_or_else(new));
    }
    all
}

/// The conflicts to publish. A conflict with the same link and host as in `before` keeps its beginning. A new one
/// begins at `now`.
pub(super) fn conflicts(machine: &Machine, before: &Conflicts, now: Timestamp) -> Conflicts {
    let conflicts = machine.conflicts().map(|(lb_ip, link, host)| {
        let known = before.get(&lb_ip).filter(|known| known.link == link && known.mac == host.mac);
        let since = known.map_or(now, |known| known.since);
        (lb_ip, Conflict { link: link.into(), mac: host.mac, held_back: host.held_back, since })
    });
    conflicts.collect()
}
