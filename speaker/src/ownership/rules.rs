//! The rules of ownership: which node owns an lb_ip on a link.
//!
//! The input is a [`View`] of one address; the output is a [`Decision`]. The rules keep no state. All nodes apply the
//! same rules to the claims they hear:
//!
//! - The greatest claim wins: the higher epoch, then backed over not backed, then not ceded over ceded, then the
//!   higher [`rank`].
//! - An address without a claim goes to the best live candidate: the most preferred one, and among equally preferred
//!   candidates the one with the highest rank. The best candidate claims the next epoch at once. The others wait for
//!   their turn, and claim only if no better candidate has claimed by then.
//! - There is no failback. A claim ends when a greater one is heard, when its owner must stop announcing, or when its
//!   owner dies.
//! - An owner *cedes* an address when it sees a live candidate that is more preferred, or when it is itself no longer a
//!   candidate. It sets the flag in its claim and keeps announcing. A candidate that considers itself more preferred
//!   than the owner claims the next epoch and announces. The owner stops only then. So a planned move has no gap, and a
//!   node that cannot announce triggers no move. A move needs the consent of both nodes, so two nodes with different
//!   API state do not take an address from each other repeatedly.
//! - A claim made without a quorum of peers is not backed and keeps the epoch, unless the node is the only candidate.
//!   An isolated node assumes that all peers are dead. When it returns, its new claims lose against those of the
//!   majority, and its old claims lose against those that replaced them: nothing moves.
//! - With two nodes, neither has a quorum without the other. If one of them has heard another host on the LAN since its
//!   peer fell silent, it is not isolated. Then its claims are backed. So when a cut ends, the node that clients
//!   could reach has all addresses. If neither heard any other host, each node has its former addresses again.
//!
//! A takeover does not probe whether the silent owner still answers (RFC 5227 §2.1.1). The owner's Hellos travel the
//! same path as its answers, and the wait would lengthen every outage.

use std::net::IpAddr;
use std::time::Duration;

use crate::ownership::claims::{Claim, MAX_EPOCH};
use model::stable_hash;

/// A more preferred candidate gets an address only after it has been alive for this long. Otherwise a node that
/// restarts repeatedly would take the address each time, and each of its deaths would be a gap.
pub const PREFERRED_AFTER: Duration = Duration::from_secs(5);

/// An owner that is no longer a candidate keeps announcing for at most this long, if there is a live successor. The
/// successor may hear of the change later, or may have to program its kernel first. After this time the owner stops
/// even if the successor has not taken over, because the user's configuration must take effect.
pub const INELIGIBLE_GRACE: Duration = Duration::from_secs(5);

/// The rank of a node for an address (rendezvous hashing); the highest rank is best. All nodes compute the same value.
/// The addresses of a dead node spread over all others, and no other address moves.
pub fn rank(node: &str, lb_ip: IpAddr) -> u64 {
    stable_hash::mix64(stable_hash::hash(node.as_bytes()) ^ stable_hash::hash_ip(lb_ip))
}

/// The state of one address on one link, as seen by this node.
#[derive(Clone, Debug)]
pub struct View {
    pub now: Duration,
    /// The claim of this node, if it announces the address.
    pub own: Option<Claim>,
    /// The rank of this node.
    pub rank: u64,
    /// Whether this node may announce the address, and if not, why.
    pub eligibility: Result<(), Reason>,
    /// The preference for this node; `None` if it is not a candidate on this link.
    pub preference: Option<u32>,
    /// The time since which a better successor is alive: a more preferred candidate, or any candidate if this node is
    /// not a candidate. Set only for an owner.
    pub successor_since: Option<Duration>,
    /// Why this node, the owner, cedes the address as soon as a successor is ready; `None` if it keeps the address.
    pub ceding: Option<Ceding>,
    /// The active claims of live peers that are not leaving.
    pub peer_claims: Vec<PeerClaim>,
    /// Whether a peer reports a claim that has ended. That peer may have announced the address last.
    pub tombstone_heard: bool,
    /// The greatest epoch seen for the address.
    pub epoch: u64,
    pub position: Position,
    /// The number of live candidates that come before this node.
    pub better_candidates: usize,
    /// The time since which this node waits for its turn to claim the address.
    pub orphaned_since: Duration,
    /// How long to wait for each better candidate before this node claims.
    pub step_in: Duration,
}

impl View {
    /// Whether this node may own the address: no peer has a claim, or each peer with a claim cedes the address to this
    /// node.
    pub fn is_available(&self) -> bool {
        self.peer_claims.iter().all(|peer| peer.yields_to(self.preference))
    }

    /// Whether no node has ever owned the address.
    pub fn is_first(&self) -> bool {
        self.epoch == 0 && self.own.is_none()
    }
}

/// Why an owned address is ceded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceding {
    /// Another candidate is more preferred.
    ToPreferred,
    /// This node is no longer a candidate.
    Ineligible { since: Duration },
}

/// The claim of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerClaim {
    pub claim: Claim,
    /// The rank of the peer.
    pub rank: u64,
    /// The preference for the peer, as seen by this node; `None` if the peer is not a candidate on its link.
    pub preference: Option<u32>,
    /// Whether the peer hears this node.
    pub hears_us: bool,
}

impl PeerClaim {
    /// Whether the peer cedes the address to a node with this preference.
    pub fn yields_to(&self, preference: Option<u32>) -> bool {
        !self.claim.retained && self.preference < preference
    }
}

/// Whether this node may make new claims, and whether they are backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// This node makes no new claims: it has just started or resumed, is about to stop, has no key, knows of unread
    /// claims, or has heard too few peers just now.
    Listening,
    /// This node hears less than a quorum of its peers, and is in none of the other cases of `Backed`.
    Isolated,
    /// This node hears a quorum of its peers, is the only candidate, or is one of two nodes and has heard another host.
    Backed,
}

/// The decision about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do nothing: the address belongs to another node, or may not be announced here.
    Leave,
    /// Do not claim it yet. Decide again at this time; without a time, when an input changes.
    Wait(Option<Duration>),
    /// Claim it, or renew the claim.
    Claim(Claim),
    Keep {
        /// Whether a peer has a weaker claim, or one that has ended.
        contested: bool,
        /// Whether to cede it to a successor.
        cede: bool,
        /// When to decide again if nothing changes.
        decide_again_at: Option<Duration>,
    },
    /// Stop announcing it.
    Withdraw(Reason),
}

/// Why an address is withdrawn or not announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No Service holds it.
    Unwanted,
    /// This node may not announce it, because of a label, a traffic policy or missing endpoints.
    NotCandidate,
    /// The dataplane does not forward it.
    NotForwarded,
    /// The list of addresses has not arrived from the API server.
    Blind,
    /// A peer has a greater claim.
    Outbid,
    /// A successor has taken the ceded address.
    Ceded,
    /// A peer claims it and does not hear this node's greater claim.
    Unheard,
    /// The link is gone, or the address belongs to another link.
    LinkLost,
    /// The speaker stops.
    Leaving,
}

impl Reason {
    /// The value in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unwanted => "unwanted",
            Self::NotCandidate => "not_candidate",
            Self::NotForwarded => "not_forwarded",
            Self::Blind => "blind",
            Self::Outbid => "outbid",
            Self::Ceded => "ceded",
            Self::Unheard => "unheard",
            Self::LinkLost => "link_lost",
            Self::Leaving => "leaving",
        }
    }
}

/// Decides about one address.
pub fn decide(view: &View) -> Decision {
    match view.own {
        Some(own) => decide_owned(view, own),
        None if view.eligibility.is_err() => Decision::Leave,
        None if !view.is_available() => Decision::Leave,
        None => {
            let turn = view.orphaned_since + view.step_in * u32::try_from(view.better_candidates).unwrap_or(u32::MAX);
            match view.position {
                Position::Listening => Decision::Wait(None),
                // The owner cedes the address, but keeps announcing it, so a claim is not urgent. An unbacked claim
                // would be weaker than that of the owner.
                Position::Isolated if !view.peer_claims.is_empty() => Decision::Wait(None),
                // An owner that does not hear this node would not stop.
                _ if view.peer_claims.iter().any(|peer| !peer.hears_us) => Decision::Wait(None),
                _ if view.now < turn => Decision::Wait(Some(turn)),
                position => Decision::Claim(next_claim(view.epoch, position == Position::Backed)),
            }
        }
    }
}

/// Decides about an address that this node announces.
fn decide_owned(view: &View, own: Claim) -> Decision {
    match view.eligibility {
        Ok(()) | Err(Reason::NotCandidate) => {}
        Err(reason) => return Decision::Withdraw(reason),
    }
    let strongest = view.peer_claims.iter().map(|peer| (peer.claim, peer.rank)).max();
    if strongest.is_some_and(|strongest| strongest > (own, view.rank)) {
        return Decision::Withdraw(if own.retained { Reason::Outbid } else { Reason::Ceded });
    }
    if view.peer_claims.iter().any(|peer| !peer.hears_us) {
        // The peer does not know of this node's claim, so this node withdraws.
        return Decision::Withdraw(Reason::Unheard);
    }
    let contested = view.tombstone_heard || !view.peer_claims.is_empty();
    let (cede, decide_again_at) = if view.eligibility.is_ok() {
        if !own.backed && view.position == Position::Backed && view.peer_claims.is_empty() {
            return Decision::Claim(next_claim(view.epoch.max(own.epoch), true));
        }
        let settled = view.successor_since.map(|since| since + PREFERRED_AFTER);
        (settled.is_some_and(|settled| settled <= view.now), settled.filter(|settled| view.now < *settled))
    } else {
        let since = if let Some(Ceding::Ineligible { since }) = view.ceding { since } else { view.now };
        let end = since + INELIGIBLE_GRACE;
        if view.successor_since.is_none() || end <= view.now {
            return Decision::Withdraw(Reason::NotCandidate);
        }
        (true, Some(end))
    };
    Decision::Keep { contested, cede, decide_again_at }
}

fn next_claim(epoch: u64, backed: bool) -> Claim {
    let epoch = if backed { epoch.saturating_add(1) } else { epoch.max(1) };
    Claim { epoch: epoch.min(MAX_EPOCH), backed, active: true, retained: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);
    const STEP_IN: Duration = Duration::from_millis(100);

    fn claim(epoch: u64, backed: bool) -> Claim {
        Claim { epoch, backed, active: true, retained: true }
    }

    fn peer(epoch: u64, backed: bool, rank: u64) -> PeerClaim {
        PeerClaim { claim: claim(epoch, backed), rank, preference: Some(0), hears_us: true }
    }

    fn keep(contested: bool) -> Decision {
        Decision::Keep { contested, cede: false, decide_again_at: None }
    }

    /// The view of a backed node with rank 50, of an address with epoch 7 that lost its owner just now.
    fn view(own: Option<Claim>, peer_claims: &[PeerClaim]) -> View {
        View {
            now: NOW,
            own,
            rank: 50,
            eligibility: Ok(()),
            preference: Some(0),
            successor_since: None,
            ceding: None,
            peer_claims: peer_claims.to_vec(),
            tombstone_heard: false,
            epoch: 7,
            position: Position::Backed,
            better_candidates: 0,
            orphaned_since: NOW,
            step_in: STEP_IN,
        }
    }

    #[test]
    fn owner_keeps_its_address_until_outbid_or_ineligible() {
        let own = claim(7, true);
        for (case, peer_claims, expected) in [
            ("no other claim", vec![], keep(false)),
            ("an earlier epoch", vec![peer(6, true, 99)], keep(true)),
            ("same epoch, not backed", vec![peer(7, false, 99)], keep(true)),
            ("same epoch, lower rank", vec![peer(7, true, 49)], keep(true)),
            ("same epoch, higher rank", vec![peer(7, true, 51)], Decision::Withdraw(Reason::Outbid)),
            ("a later epoch", vec![peer(8, false, 1)], Decision::Withdraw(Reason::Outbid)),
            ("one later epoch", vec![peer(6, true, 1), peer(8, true, 1)], Decision::Withdraw(Reason::Outbid)),
            (
                "a weaker peer that does not hear us",
                vec![PeerClaim { hears_us: false, ..peer(6, true, 1) }],
                Decision::Withdraw(Reason::Unheard),
            ),
        ] {
            assert_eq!(decide(&view(Some(own), &peer_claims)), expected, "{case}");
        }
        let tombstone = View { tombstone_heard: true, ..view(Some(own), &[]) };
        assert_eq!(decide(&tombstone), keep(true), "a peer has just withdrawn it");
        for reason in [Reason::Unwanted, Reason::NotCandidate, Reason::NotForwarded, Reason::Blind] {
            let eligibility = Err(reason);
            assert_eq!(decide(&View { eligibility, ..view(Some(own), &[]) }), Decision::Withdraw(reason));
            assert_eq!(decide(&View { eligibility, ..view(None, &[]) }), Decision::Leave);
        }
    }

    #[test]
    fn owner_cedes_to_more_preferred_or_any_if_ineligible() {
        let (retained, ceded) = (claim(7, true), Claim { retained: false, ..claim(7, true) });
        let ago = |ms: u64| Some(NOW - Duration::from_millis(ms));
        let later = |ms: u64| Some(NOW + Duration::from_millis(ms));
        let cede = |decide_again_at| Decision::Keep { contested: false, cede: true, decide_again_at };
        let wait = |decide_again_at| Decision::Keep { contested: false, cede: false, decide_again_at };
        let ineligible = Err(Reason::NotCandidate);
        for (case, own, eligibility, successor_since, ineligible_since, expected) in [
            ("no better candidate", retained, Ok(()), None, None, wait(None)),
            ("the better candidate has just started", retained, Ok(()), ago(0), None, wait(later(5000))),
            ("almost settled", retained, Ok(()), ago(4999), None, wait(later(1))),
            ("the better candidate is settled", retained, Ok(()), ago(5000), None, cede(None)),
            ("the address was ceded before", ceded, Ok(()), ago(5000), None, cede(None)),
            ("the better candidate is gone again", ceded, Ok(()), None, None, wait(None)),
            ("no longer a candidate", retained, ineligible, ago(0), None, cede(later(5000))),
            ("no longer a candidate for a while", ceded, ineligible, ago(9000), ago(4999), cede(later(1))),
            ("ineligible for 5 s", ceded, ineligible, ago(9000), ago(5000), Decision::Withdraw(Reason::NotCandidate)),
            ("no successor", retained, ineligible, None, None, Decision::Withdraw(Reason::NotCandidate)),
        ] {
            let ceding = ineligible_since.map(|since| Ceding::Ineligible { since });
            let view = View { eligibility, successor_since, ceding, ..view(Some(own), &[]) };
            assert_eq!(decide(&view), expected, "{case}");
        }
        let taken = [peer(8, true, 1)];
        assert_eq!(decide(&view(Some(ceded), &taken)), Decision::Withdraw(Reason::Ceded));
        let ineligible = View { eligibility: ineligible, successor_since: ago(0), ..view(Some(ceded), &taken) };
        assert_eq!(decide(&ineligible), Decision::Withdraw(Reason::Ceded));
    }

    #[test]
    fn preferred_candidate_claims_a_ceded_address_in_turn() {
        let ceded = PeerClaim { claim: Claim { retained: false, ..claim(7, true) }, ..peer(7, true, 99) };
        let retained = peer(7, true, 99);
        let none = PeerClaim { preference: None, ..ceded };
        let deaf = PeerClaim { hears_us: false, ..ceded };
        let take = Decision::Claim(claim(8, true));
        for (case, preference, peer_claims, position, better_candidates, expected) in [
            ("more preferred", 1, vec![ceded], Position::Backed, 0, take),
            ("equally preferred", 0, vec![ceded], Position::Backed, 0, Decision::Leave),
            ("the owner is no candidate", 0, vec![none], Position::Backed, 0, take),
            ("not ceded", 1, vec![retained], Position::Backed, 0, Decision::Leave),
            ("the owner does not hear us yet", 1, vec![deaf], Position::Backed, 0, Decision::Wait(None)),
            ("another owner", 1, vec![ceded, retained], Position::Backed, 0, Decision::Leave),
            ("isolated", 1, vec![ceded], Position::Isolated, 0, Decision::Wait(None)),
            ("listening", 1, vec![ceded], Position::Listening, 0, Decision::Wait(None)),
            ("a better candidate", 1, vec![ceded], Position::Backed, 1, Decision::Wait(Some(NOW + STEP_IN))),
        ] {
            let view = View { preference: Some(preference), position, better_candidates, ..view(None, &peer_claims) };
            assert_eq!(decide(&view), expected, "{case}");
        }
    }

    #[test]
    fn candidates_claim_an_orphan_in_order_of_rank() {
        let later = |ms: u64| NOW + Duration::from_millis(ms);
        for (case, position, better_candidates, now, expected) in [
            ("the best", Position::Backed, 0, NOW, Decision::Claim(claim(8, true))),
            ("the best, isolated", Position::Isolated, 0, NOW, Decision::Claim(claim(7, false))),
            ("the best, listening", Position::Listening, 0, later(900), Decision::Wait(None)),
            ("the second", Position::Backed, 1, NOW, Decision::Wait(Some(later(100)))),
            ("the second, just before its turn", Position::Backed, 1, later(99), Decision::Wait(Some(later(100)))),
            ("the second, in its turn", Position::Backed, 1, later(100), Decision::Claim(claim(8, true))),
            ("the third", Position::Backed, 2, later(100), Decision::Wait(Some(later(200)))),
        ] {
            let view = View { position, better_candidates, now, ..view(None, &[]) };
            assert_eq!(decide(&view), expected, "{case}");
        }
        assert_eq!(decide(&view(None, &[peer(1, false, 1)])), Decision::Leave, "it has an owner");
    }

    #[test]
    fn unbacked_claim_is_renewed_with_quorum_unless_contested() {
        let unbacked = claim(7, false);
        assert_eq!(decide(&view(Some(unbacked), &[])), Decision::Claim(claim(8, true)));
        assert_eq!(decide(&view(Some(unbacked), &[peer(6, true, 1)])), keep(true));
        let listening = View { position: Position::Listening, ..view(Some(unbacked), &[]) };
        assert_eq!(decide(&listening), keep(false));
    }

    #[test]
    fn epochs_stop_at_the_greatest_epoch() {
        assert_eq!(decide(&View { epoch: u64::MAX, ..view(None, &[]) }), Decision::Claim(claim(MAX_EPOCH, true)));
    }

    #[test]
    fn ranks_are_stable_and_spread_addresses_over_nodes() {
        let addresses = || (0..3000u32).map(|n| IpAddr::from((0xc000_0200 + n).to_be_bytes()));
        let mut owned = std::collections::BTreeMap::<&str, usize>::new();
        for lb_ip in addresses() {
            let best = ["n1", "n2", "n3"].into_iter().max_by_key(|node| rank(node, lb_ip)).expect("a node");
            *owned.entry(best).or_default() += 1;
        }
        assert!(owned.values().all(|count| (900..1100).contains(count)), "{owned:?}");
        assert_eq!(rank("n1", [192, 0, 2, 1].into()), 0x7907_993b_d30d_4283);
    }

    proptest! {
        #[test]
        fn mutually_visible_owners_converge_to_one(
            owners in proptest::collection::btree_map(any::<u64>(), (0u64..3, any::<bool>()), 1..6),
        ) {
            let all = owners.iter().map(|(rank, (epoch, backed))| peer(*epoch, *backed, *rank));
            let all: Vec<PeerClaim> = all.collect();
            let stay = all.iter().filter(|own| {
                let others: Vec<PeerClaim> = all.iter().filter(|other| other != own).copied().collect();
                let decision = decide(&View { rank: own.rank, ..view(Some(own.claim), &others) });
                !matches!(decision, Decision::Withdraw(_))
            });
            prop_assert_eq!(stay.count(), 1);
        }
    }
}
