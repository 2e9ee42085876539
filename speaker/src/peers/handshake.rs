//! Handshakes with speakers that have not yet proved that they are alive. The seal of a packet proves that a node of
//! the cluster sent it at some time, not that this node is alive now. A speaker with a proof is *believed*.
//!
//! Any host on the LAN can record packets and replay them. Within one run of a speaker, the sequence in its packets
//! distinguishes new packets from replayed ones. After a restart of either node, or after a silence, the sequence does
//! not. So a speaker that was not heard recently must prove that it is alive now, in one of two ways:
//!
//! - The speaker echoes a Hello that this node sent just now. The echo contains this node's id on this link, and the
//!   sequence of one of its last [`ECHO_WINDOW`] Hellos. The id is new at each start, so no older packet contains it.
//! - A believed peer reports in its Hello that it hears the speaker.
//!
//! ```text
//!   new -> all      Hello 1                     unknown to old, which echoes it in its next Hello at once
//!   old -> all      Hello 70, echo: new 1       new believes old, and echoes Hello 70 at once
//!   new -> all      Hello 2, echo: old 70       old believes new
//! ```
//!
//! This file holds the unfinished handshakes. A packet of an unproven speaker only triggers an echo. A replayed packet
//! triggers an echo, too, but an attacker without a key cannot answer it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::wire::hello;

/// An echo proves life if it has the sequence of one of the last 32 Hellos of this node: 1.6 s at 20 Hellos per second.
/// An echo arrives after some milliseconds, so there is time for further echoes if some are lost.
pub const ECHO_WINDOW: u32 = 32;

/// This node echoes the last packet of an unproven speaker for this time. It equals the longest interval of Hellos, so
/// that a live speaker sends its next packet within it.
const LIFETIME: Duration = Duration::from_secs(1);

/// The maximum number of handshakes. An attacker without a key can create at most one for each incarnation whose
/// packets it has recorded.
const MAX_HANDSHAKES: usize = 1024;

/// The last packet of a speaker that is not believed yet.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    sequence: u64,
    at: Duration,
    /// When a believed peer last heard the speaker.
    vouched_at: Option<Duration>,
}

/// The unfinished handshakes, by incarnation.
#[derive(Clone, Debug, Default)]
pub struct Handshakes(BTreeMap<u64, Handshake>);

impl Handshakes {
    /// Records a packet of an unproven speaker. Returns whether the packet began a handshake.
    pub fn record_unproven(&mut self, now: Duration, incarnation: u64, sequence: u64) -> bool {
        self.0.retain(|_, handshake| now < handshake.at + LIFETIME);
        if let Some(handshake) = self.0.get_mut(&incarnation) {
            (handshake.sequence, handshake.at) = (sequence, now);
            return false;
        }
        let has_room = self.0.len() < MAX_HANDSHAKES;
        if has_room {
            self.0.insert(incarnation, Handshake { sequence, at: now, vouched_at: None });
        }
        has_room
    }

    pub fn remove(&mut self, incarnation: u64) {
        self.0.remove(&incarnation);
    }

    /// Records that a believed peer heard a speaker with this id at `at`.
    pub fn record_voucher(&mut self, id: u32, at: Duration) {
        for (_, handshake) in self.0.iter_mut().filter(|(incarnation, _)| hello::id(**incarnation) == id) {
            handshake.vouched_at = handshake.vouched_at.max(Some(at));
        }
    }

    /// Whether a believed peer heard the speaker recently, and after `since`.
    pub fn is_vouched(&self, now: Duration, incarnation: u64, since: Option<Duration>) -> bool {
        let vouched = self.0.get(&incarnation).and_then(|handshake| handshake.vouched_at);
        vouched.is_some_and(|at| now < at + LIFETIME && since.is_none_or(|since| at > since))
    }

    /// The echoes to send.
    pub fn echoes(&self, now: Duration) -> impl Iterator<Item = hello::Echo> {
        let live = self.0.iter().filter(move |(_, handshake)| now < handshake.at + LIFETIME);
        live.map(|(incarnation, handshake)| hello::Echo {
            id: hello::id(*incarnation),
            sequence: handshake.sequence as u32,
        })
    }
}

/// Whether `echoes` contain a recent Hello of this node. `incarnation` is that of this node on the link, and `sequence`
/// is that of its last Hello.
pub fn is_echoed(echoes: &[hello::Echo], incarnation: u64, sequence: u64) -> bool {
    let own_id = hello::id(incarnation);
    echoes.iter().any(|echo| echo.id == own_id && (sequence as u32).wrapping_sub(echo.sequence) < ECHO_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_an_echo_of_a_recent_packet_proves_life() {
        let echo = |incarnation, sequence| vec![hello::Echo { id: hello::id(incarnation), sequence }];
        for (case, echoes, sequence, expected) in [
            ("the last packet", echo(7, 100), 100, true),
            ("a recent packet", echo(7, 69), 100, true),
            ("an old packet", echo(7, 68), 100, false),
            ("a future packet", echo(7, 101), 100, false),
            ("a packet of another speaker", echo(8, 100), 100, false),
            ("a sequence longer than its echo", echo(7, u32::MAX), 0x1_0000_0001, true),
            ("no echo", vec![], 100, false),
        ] {
            assert_eq!(is_echoed(&echoes, 7, sequence), expected, "{case}");
        }
    }

    #[test]
    fn unproven_speaker_is_echoed_and_vouched_for_only_briefly() {
        let mut handshakes = Handshakes::default();
        assert!(handshakes.record_unproven(ms(1000), 7, 1));
        assert!(!handshakes.record_unproven(ms(1050), 7, 2));
        assert!(!handshakes.is_vouched(ms(1050), 7, None));
        handshakes.record_voucher(hello::id(7), ms(1040));
        handshakes.record_voucher(hello::id(7), ms(1030));
        for (at, since, expected) in [
            (1060, None, true),
            (1060, Some(1039), true),
            (1060, Some(1040), false), // no peer heard it after the last packet of the former incarnation
            (2039, None, true),
            (2040, None, false),
        ] {
            assert_eq!(handshakes.is_vouched(ms(at), 7, since.map(ms)), expected, "{at} {since:?}");
        }
        let echo = hello::Echo { id: hello::id(7), sequence: 2 };
        assert_eq!(handshakes.echoes(ms(2049)).collect::<Vec<_>>(), [echo]);
        assert_eq!(handshakes.echoes(ms(2050)).count(), 0);
        handshakes.remove(7);
        assert_eq!(handshakes.echoes(ms(1060)).count(), 0);
    }

    #[test]
    fn number_of_handshakes_is_bounded() {
        let mut handshakes = Handshakes::default();
        let new = (0..2000).filter(|incarnation| handshakes.record_unproven(ms(0), *incarnation, 1)).count();
        assert_eq!(new, MAX_HANDSHAKES);
        assert!(handshakes.record_unproven(LIFETIME, 5000, 1), "the others have expired");
    }
}
