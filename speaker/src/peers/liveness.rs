//! Whether a peer is alive on a link.
//!
//! The input is times; the output is a [`PeerState`]. A peer is *alive* if it was heard within a few of its intervals
//! and reports that it hears at least one peer. If it reports for a whole window that it hears no peer, it is *deaf*:
//! it does not hear clients either, so its claims are void. (A peer that hears others, but not this node, is alive.
//! Only the path from this node to the peer is cut, and the peer still serves its clients. If this node took over, the
//! address would have two owners until the cut ends.)
//!
//! Three mechanisms protect a live peer from being taken for dead:
//!
//! - *Vouching.* Each Hello reports when its sender last heard each peer. If another peer has heard a peer later than
//!   this node has, the window of that peer starts at the later time. So a few Hellos lost between two nodes have no
//!   effect. Vouching does not delay the detection of a death, because all nodes last heard the dead peer at the same
//!   time. A peer that only others hear counts as alive for about 20 intervals after its last packet, and one of the
//!   others forwards its packets ([`crate::peers::relay`]).
//! - *Probing.* If few peers can vouch, this node probes a peer whose Hello is late: it requests an answer at once,
//!   repeatedly ([`Liveness::probe_due`]), until the window of the peer ends. With two nodes there is no voucher. With
//!   2 % packet loss, two consecutive Hellos are lost every two minutes, and the third one arrives when the window
//!   ends.
//! - *Self-distrust.* A node that was suspended could hear no peer, so silence proves nothing: [`Liveness::excuse`]
//!   starts a new window for each peer.

use std::time::Duration;

/// Other peers can vouch for a peer for at most this many of its intervals after its last packet, forwarded ones
/// included. This time outlasts any series of lost packets. It is limited, because this node does not know the claims
/// of a peer without packets.
const VOUCHED_INTERVALS: u32 = 20;

/// A peer is probed if at most this many other peers can vouch for it. With three or more, no probes are needed,
/// because the Hellos of all of them would have to be lost as well. In a large cluster, probes by hundreds of nodes
/// would be a useless burst.
pub const MAX_VOUCHERS_PROBED: usize = 2;

/// The state of a peer on a link. Only the claims of a live peer count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    /// Not heard within its window.
    Dead,
    /// Heard, but it has reported for a window that it hears no peer.
    Deaf,
    /// Heard, and hears peers.
    Alive,
}

/// The times that decide the state of a peer on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// The number of missed Hellos after which the peer is dead.
    multiplier: u32,
    /// The interval of its Hellos.
    pub interval: Duration,
    /// When this node last heard the peer.
    pub last_heard: Duration,
    /// When another peer last heard the peer.
    last_vouched: Duration,
    /// When another peer last forwarded a packet of the peer.
    last_relayed: Duration,
    /// The time since which the peer reports that it hears no peer.
    hears_none_since: Option<Duration>,
    /// The time since which the peer does not list this node as heard.
    misses_us_since: Option<Duration>,
    /// When this node resumed and gave the peer a new window.
    excused_at: Duration,
    /// When the peer was last probed.
    last_probe: Duration,
}

impl Liveness {
    /// A peer heard for the first time.
    pub fn new(now: Duration, interval: Duration, multiplier: u32) -> Self {
        Self {
            multiplier,
            interval,
            last_heard: now,
            last_vouched: now,
            last_relayed: Duration::ZERO,
            hears_none_since: None,
            misses_us_since: None,
            excused_at: Duration::ZERO,
            last_probe: Duration::ZERO,
        }
    }

    /// A peer that this node has never heard. Another one has forwarded its packet.
    pub fn new_relayed(now: Duration, interval: Duration, multiplier: u32) -> Self {
        Self { last_heard: Duration::ZERO, last_relayed: now, ..Self::new(now, interval, multiplier) }
    }

    /// Records a Hello that another peer has forwarded.
    pub fn record_relayed(&mut self, now: Duration, interval: Duration) {
        self.forget_outdated_lists(now);
        self.last_relayed = now;
        self.interval = interval;
    }

    /// Forgets the reports of the peer from before it was away.
    fn forget_outdated_lists(&mut self, now: Duration) {
        if !self.is_received(now) {
            (self.hears_none_since, self.misses_us_since) = (None, None);
        }
    }

    /// Whether this node received a packet of the peer within its window, directly or forwarded.
    pub fn is_received(&self, now: Duration) -> bool {
        self.is_heard(now) || self.is_relayed(now)
    }

    /// Whether another peer has forwarded a packet of this one within its window.
    pub fn is_relayed(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_relayed) < self.window()
    }

    /// Whether this node has not heard the peer for longer than any series of lost packets lasts.
    pub fn is_unheard_for_long(&self, now: Duration) -> bool {
        self.age(now) >= self.interval * VOUCHED_INTERVALS
    }

    /// Whether another peer should forward the packets of this one: it hears the peer, and this node does not.
    pub fn needs_relay(&self, now: Duration) -> bool {
        !self.is_heard(now) && self.is_vouched(now)
    }

    /// Records a Hello of the peer, and its interval.
    pub fn record_hello(&mut self, now: Duration, interval: Duration) {
        self.forget_outdated_lists(now);
        self.last_heard = now;
        self.interval = interval;
    }

    /// Records whether the peer hears any peer, and whether it hears this node, if the packet covers that.
    pub fn record_lists(&mut self, now: Duration, hears_any: bool, hears_us: Option<bool>) {
        let since = |before: Option<Duration>| Some(before.unwrap_or(now));
        if hears_any && self.is_deaf(now) {
            // It hears peers again, one after the other: it may hear this node with the next Hello.
            self.misses_us_since = None;
        }
        self.hears_none_since = if hears_any { None } else { since(self.hears_none_since) };
        match hears_us {
            Some(true) => self.misses_us_since = None,
            Some(false) => self.misses_us_since = since(self.misses_us_since),
            None => {}
        }
    }

    /// Records that another peer heard this one at `at`.
    pub fn record_voucher(&mut self, at: Duration) {
        self.last_vouched = self.last_vouched.max(at);
    }

    /// Whether another peer heard this one within its window.
    pub fn is_vouched(&self, now: Duration) -> bool {
        now.saturating_sub(self.last_vouched) < self.window()
    }

    /// How long the peer may be silent.
    pub fn window(&self) -> Duration {
        self.interval * self.multiplier
    }

    /// Starts a new window for the peer, because this node was suspended until now.
    pub fn excuse(&mut self, now: Duration) {
        self.excused_at = now;
    }

    /// When the peer was last heard or excused.
    pub fn silent_since(&self) -> Duration {
        self.last_heard.max(self.excused_at)
    }

    /// The time since which a Hello of the peer is overdue.
    pub fn overdue_since(&self) -> Duration {
        self.silent_since() + self.interval * 3 / 2
    }

    /// The time since this node last heard the peer.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last_heard)
    }

    /// Whether at most one Hello of the peer is missing.
    pub fn is_fresh(&self, now: Duration) -> bool {
        self.age(now) < self.interval * 3 / 2
    }

    /// Whether this node heard the peer within its window.
    pub fn is_heard(&self, now: Duration) -> bool {
        self.age(now) < self.window()
    }

    pub fn state(&self, now: Duration) -> PeerState {
        if now >= self.dead_from() {
            PeerState::Dead
        } else if self.is_deaf(now) {
            PeerState::Deaf
        } else {
            PeerState::Alive
        }
    }

    /// Whether the peer has reported for a window that it hears no peer.
    fn is_deaf(&self, now: Duration) -> bool {
        self.confirmed_at(self.hears_none_since).is_some_and(|from| now >= from)
    }

    /// When to probe the peer: first when its Hello is late by a fifth of an interval, then every three tenths of an
    /// interval. The peer is dead three intervals after it was last heard. Until then a node probes four to six times:
    /// it may notice the delay only when its own Hello is due, and then wakes for each further probe. With 2 % packet
    /// loss, the probability is 10^-9 that two Hellos and then all probes or their answers are lost.
    pub fn probe_due(&self) -> Duration {
        (self.last_heard + self.interval * 6 / 5).max(self.last_probe + self.interval * 3 / 10)
    }

    pub fn record_probe(&mut self, now: Duration) {
        self.last_probe = now;
    }

    /// Whether the peer hears this node, as far as this node knows.
    pub fn hears_us(&self, now: Duration) -> bool {
        self.confirmed_at(self.misses_us_since).is_none_or(|from| now < from)
    }

    /// When the state changes next if the peer stays silent.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let times = [Some(self.dead_from()), self.confirmed_at(self.hears_none_since)];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// When this node believes a report that the peer has repeated since `since`: one window later. A new or returning
    /// peer makes such a report, too, until it has heard other nodes.
    fn confirmed_at(&self, since: Option<Duration>) -> Option<Duration> {
        Some(since?.max(self.excused_at) + self.window())
    }

    /// The time from which the peer is dead if it stays silent.
    fn dead_from(&self) -> Duration {
        let last_packet = self.last_heard.max(self.last_relayed);
        let vouched = self.last_vouched.min(last_packet + self.interval * VOUCHED_INTERVALS);
        self.last_heard.max(vouched).max(self.excused_at) + self.window()
    }
}

/// Whether a node that hears `live` of its `known` peers is in the majority. The node counts itself. A node in the
/// minority may itself be cut off.
pub fn is_majority(live: usize, known: usize) -> bool {
    live > 0 && 2 * (live + 1) > known + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use PeerState::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A peer last heard at 1000 ms, which then reported that it hears this node.
    fn peer() -> Liveness {
        let mut peer = Liveness::new(ms(0), INTERVAL, 3);
        peer.record_hello(ms(1000), INTERVAL);
        peer.record_lists(ms(1000), true, Some(true));
        peer
    }

    #[test]
    fn silent_peer_dies_and_peer_hearing_none_is_deaf() {
        for (case, change, times) in [
            ("silent", (|_| ()) as fn(&mut Liveness), [(1149, Alive), (1150, Dead)]),
            (
                "hears no peer",
                |p| {
                    p.record_hello(ms(1100), INTERVAL);
                    p.record_lists(ms(1050), false, Some(false));
                    p.record_lists(ms(1100), false, Some(false));
                    p.record_hello(ms(1190), INTERVAL);
                },
                [(1199, Alive), (1200, Deaf)],
            ),
            (
                "heard no peer, and now one",
                |p| {
                    p.record_lists(ms(1050), false, Some(false));
                    p.record_lists(ms(1100), true, Some(false));
                    p.record_hello(ms(1100), INTERVAL);
                },
                [(1249, Alive), (1250, Dead)],
            ),
            ("heard by another peer", |p| p.record_voucher(ms(1100)), [(1249, Alive), (1250, Dead)]),
            ("heard only by another peer for too long", |p| p.record_voucher(ms(9000)), [(2149, Alive), (2150, Dead)]),
            (
                "heard by another peer, which forwards its packets",
                |p| {
                    p.record_relayed(ms(8990), INTERVAL);
                    p.record_voucher(ms(9000));
                },
                [(9149, Alive), (9150, Dead)],
            ),
            ("an old packet is forwarded", |p| p.record_relayed(ms(9000), INTERVAL), [(1149, Alive), (1150, Dead)]),
            ("this node was suspended", |p| p.excuse(ms(5000)), [(5149, Alive), (5150, Dead)]),
            ("a long interval", |p| p.record_hello(ms(1000), ms(500)), [(2499, Alive), (2500, Dead)]),
        ] {
            let mut peer = peer();
            change(&mut peer);
            for (at, state) in times {
                assert_eq!(peer.state(ms(at)), state, "{case}, at {at} ms");
            }
        }
    }

    #[test]
    fn deadline_is_the_next_change_of_state() {
        let mut peer = peer();
        peer.record_lists(ms(1010), false, Some(false));
        peer.record_hello(ms(1040), INTERVAL);
        assert_eq!(peer.next_deadline(ms(1040)), Some(ms(1160)));
        assert_eq!((peer.state(ms(1159)), peer.state(ms(1160))), (Alive, Deaf));
        assert_eq!(peer.next_deadline(ms(1160)), Some(ms(1190)));
        assert_eq!((peer.state(ms(1189)), peer.state(ms(1190))), (Deaf, Dead));
        assert_eq!(peer.next_deadline(ms(1190)), None);
    }

    #[test]
    fn we_are_unheard_after_a_window_without_being_listed() {
        let mut peer = peer();
        peer.record_hello(ms(1150), INTERVAL);
        peer.record_lists(ms(1000), true, Some(false));
        peer.record_lists(ms(1150), true, Some(false));
        assert_eq!((peer.state(ms(1150)), peer.hears_us(ms(1149)), peer.hears_us(ms(1150))), (Alive, true, false));
        peer.record_lists(ms(1160), true, Some(true));
        assert!(peer.hears_us(ms(1160)));
    }

    #[test]
    fn peer_that_was_deaf_has_a_window_to_list_us() {
        let mut peer = peer();
        for at in [1050, 1100, 1150, 1200, 1250] {
            peer.record_hello(ms(at), INTERVAL);
            peer.record_lists(ms(at), false, Some(false));
        }
        assert_eq!(peer.state(ms(1250)), Deaf);
        peer.record_hello(ms(1300), INTERVAL);
        peer.record_lists(ms(1300), true, Some(false));
        assert_eq!((peer.state(ms(1300)), peer.hears_us(ms(1300))), (Alive, true), "it hears another peer first");
        peer.record_lists(ms(1350), true, Some(false));
        assert_eq!((peer.hears_us(ms(1449)), peer.hears_us(ms(1450))), (true, false));
    }

    #[test]
    fn late_peer_is_probed_six_times_before_its_death() {
        let mut peer = peer();
        let mut probes = Vec::new();
        while peer.probe_due() < ms(1150) {
            probes.push(peer.probe_due().as_millis());
            peer.record_probe(peer.probe_due());
        }
        assert_eq!(probes, [1060, 1075, 1090, 1105, 1120, 1135]);
        peer.record_hello(ms(1140), INTERVAL);
        assert_eq!(peer.probe_due(), ms(1200));
    }

    #[test]
    fn more_than_half_is_a_majority() {
        for (live, known, expected) in
            [(0, 0, false), (1, 1, true), (0, 1, false), (1, 2, true), (1, 3, false), (2, 3, true), (2, 4, true)]
        {
            assert_eq!(is_majority(live, known), expected, "{live} of {known} peers");
        }
    }
}
