//! Who owns an lb_ip on a link, as one node sees it.
//!
//! A [`View`] of one address in, a [`Verdict`] out; nothing is remembered here. All nodes decide by the same rules on what
//! they hear from each other:
//!
//! - The greatest claim wins: by epoch, then backed over not backed, then by [`rank`].
//! - An address that nobody claims is for the best-ranked candidate that is alive. It claims the next epoch at once; the
//!   others wait for their turn and step in only if it doesn't.
//! - There is no failback: a claim ends when it is outbid, when its owner must not announce any more, or with its owner.
//! - A claim that is made without the company of most peers is not backed, and keeps the epoch. The one that is cut off
//!   thinks that everybody else is dead. When it returns, what it took is worth less than what the others went on with,
//!   and what the others took from it is worth more than what it had: nothing moves.
//!
//! TODO(correctness): of two nodes neither ever has company without the other: after a cut each gets back what it had. A
//! lonely candidate should ask the wire for the address (RFC 5227 §2.1.1) before it takes it.

use std::net::IpAddr;
use std::time::Duration;

use crate::claims::{Claim, MAX_EPOCH};
use crate::hash;

/// The rank of a node for an address (rendezvous hashing): the highest one is the best. All nodes compute the same, the
/// addresses of a dead node spread over all others, and no other address is affected.
pub fn rank(node: &str, lb_ip: IpAddr) -> u64 {
    hash::mix(hash::hash(node.as_bytes()) ^ hash::of_address(lb_ip))
}

/// What a node knows of one address on one link.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The time.
    pub now: Duration,
    /// The claim of this node, if it has one, and its rank.
    pub mine: (Option<Claim>, u64),
    /// Whether this node may announce the address, or why not.
    pub may: Result<(), Reason>,
    /// The claims of others that count: held, and of peers that are alive and don't leave.
    pub rivals: &'a [Rival],
    /// Whether somebody tells of a claim that is over, and may have announced it.
    pub lost: bool,
    /// The greatest epoch that was ever seen for it.
    pub epoch: u64,
    /// How this node stands to the others.
    pub company: Company,
    /// How many candidates that are alive rank before this node.
    pub before: usize,
    /// Since when nobody claims it.
    pub orphaned: Duration,
    /// How long each candidate is waited for before the next one steps in.
    pub step_in: Duration,
}

/// Somebody else's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// What it claims.
    pub claim: Claim,
    /// Its rank.
    pub rank: u64,
    /// Whether it hears this node.
    pub hears_us: bool,
}

/// How this node stands to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// It has just come, woken up, or is about to go, or knows that there are claims that it hasn't read: it listens,
    /// and claims nothing new.
    Listening,
    /// It hears few of the others or none.
    Lonely,
    /// It hears most of them, or there are no others to hear.
    Backed,
}

/// What to do about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is somebody else's, or not to be announced from here.
    Leave,
    /// Nobody has it. Decide again when the time has come, if there is one.
    Wait(Option<Duration>),
    /// Claim it, or claim it anew.
    Claim(Claim),
    /// Keep it. If it is contested, a claim to it is heard that is weaker, or over.
    Keep {
        /// Whether it is contested.
        contested: bool,
    },
    /// Give it up.
    Withdraw(Reason),
}

/// Why an address is given up, or isn't announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No Service holds it any more.
    Unwanted,
    /// This node may not announce it: a label, a traffic policy, no endpoint.
    NotCandidate,
    /// The dataplane doesn't forward it.
    NotForwarded,
    /// The API server hasn't told yet which addresses there are.
    Blind,
    /// Somebody else has a greater claim.
    Outbid,
    /// Somebody else claims it and can't hear that our claim is greater.
    Unheard,
    /// The link is gone, or the address belongs to another one.
    LinkLost,
    /// The speaker stops.
    Leaving,
}

impl Reason {
    /// One word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unwanted => "unwanted",
            Self::NotCandidate => "not_candidate",
            Self::NotForwarded => "not_forwarded",
            Self::Blind => "blind",
            Self::Outbid => "outbid",
            Self::Unheard => "unheard",
            Self::LinkLost => "link_lost",
            Self::Leaving => "leaving",
        }
    }
}

/// Decides about one address.
pub fn decide(view: &View<'_>) -> Verdict {
    let strongest = view.rivals.iter().map(|rival| (rival.claim, rival.rank)).max();
    let (mine, rank) = view.mine;
    match (mine, view.may) {
        (None, Err(_)) => Verdict::Leave,
        (Some(_), Err(reason)) => Verdict::Withdraw(reason),
        (Some(mine), Ok(())) => {
            if strongest.is_some_and(|strongest| strongest > (mine, rank)) {
                Verdict::Withdraw(Reason::Outbid)
            } else if view.rivals.iter().any(|rival| !rival.hears_us) {
                // Only this side knows that there are two: whoever knows gives way.
                Verdict::Withdraw(Reason::Unheard)
            } else if !mine.backed && view.company == Company::Backed && view.rivals.is_empty() {
                Verdict::Claim(next(view.epoch.max(mine.epoch), true))
            } else {
                Verdict::Keep { contested: view.lost || !view.rivals.is_empty() }
            }
        }
        (None, Ok(())) if strongest.is_some() => Verdict::Leave,
        (None, Ok(())) => {
            let turn = view.orphaned + view.step_in * u32::try_from(view.before).unwrap_or(u32::MAX);
            match view.company {
                Company::Listening => Verdict::Wait(None),
                _ if view.now < turn => Verdict::Wait(Some(turn)),
                company => Verdict::Claim(next(view.epoch, company == Company::Backed)),
            }
        }
    }
}

fn next(epoch: u64, backed: bool) -> Claim {
    let epoch = if backed { epoch.saturating_add(1) } else { epoch.max(1) };
    Claim { epoch: epoch.min(MAX_EPOCH), backed, held: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);
    const STEP_IN: Duration = Duration::from_millis(100);

    fn claim(epoch: u64, backed: bool) -> Claim {
        Claim { epoch, backed, held: true }
    }

    fn rival(epoch: u64, backed: bool, rank: u64) -> Rival {
        Rival { claim: claim(epoch, backed), rank, hears_us: true }
    }

    /// A view of somebody with rank 50 in good company, of an address with epoch 7 that was orphaned just now.
    fn view(mine: Option<Claim>, rivals: &[Rival]) -> View<'_> {
        let (may, epoch, company) = (Ok(()), 7, Company::Backed);
        View {
            now: NOW,
            mine: (mine, 50),
            may,
            rivals,
            lost: false,
            epoch,
            company,
            before: 0,
            orphaned: NOW,
            step_in: STEP_IN,
        }
    }

    #[test]
    fn an_owner_keeps_its_address_until_it_is_outbid_or_must_not_announce() {
        let mine = claim(7, true);
        for (what, rivals, expected) in [
            ("alone", vec![], Verdict::Keep { contested: false }),
            ("an earlier epoch", vec![rival(6, true, 99)], Verdict::Keep { contested: true }),
            ("same epoch, not backed", vec![rival(7, false, 99)], Verdict::Keep { contested: true }),
            ("same epoch, worse rank", vec![rival(7, true, 49)], Verdict::Keep { contested: true }),
            ("same epoch, better rank", vec![rival(7, true, 51)], Verdict::Withdraw(Reason::Outbid)),
            ("a later epoch", vec![rival(8, false, 1)], Verdict::Withdraw(Reason::Outbid)),
            ("one of two", vec![rival(6, true, 1), rival(8, true, 1)], Verdict::Withdraw(Reason::Outbid)),
            (
                "a weaker one that can't hear",
                vec![Rival { hears_us: false, ..rival(6, true, 1) }],
                Verdict::Withdraw(Reason::Unheard),
            ),
        ] {
            assert_eq!(decide(&view(Some(mine), &rivals)), expected, "{what}");
        }
        let lost = View { lost: true, ..view(Some(mine), &[]) };
        assert_eq!(decide(&lost), Verdict::Keep { contested: true }, "somebody has just lost it");
        for reason in [Reason::Unwanted, Reason::NotCandidate, Reason::NotForwarded, Reason::Blind] {
            assert_eq!(decide(&View { may: Err(reason), ..view(Some(mine), &[]) }), Verdict::Withdraw(reason));
            assert_eq!(decide(&View { may: Err(reason), ..view(None, &[]) }), Verdict::Leave);
        }
    }

    #[test]
    fn an_orphan_is_claimed_by_the_best_at_once_and_by_the_others_in_turn() {
        let later = |ms: u64| NOW + Duration::from_millis(ms);
        for (what, company, before, now, expected) in [
            ("the best", Company::Backed, 0, NOW, Verdict::Claim(claim(8, true))),
            ("the best, lonely", Company::Lonely, 0, NOW, Verdict::Claim(claim(7, false))),
            ("the best, listening", Company::Listening, 0, later(900), Verdict::Wait(None)),
            ("the second", Company::Backed, 1, NOW, Verdict::Wait(Some(later(100)))),
            ("the second, just before its turn", Company::Backed, 1, later(99), Verdict::Wait(Some(later(100)))),
            ("the second, in its turn", Company::Backed, 1, later(100), Verdict::Claim(claim(8, true))),
            ("the third", Company::Backed, 2, later(100), Verdict::Wait(Some(later(200)))),
        ] {
            assert_eq!(decide(&View { company, before, now, ..view(None, &[]) }), expected, "{what}");
        }
        assert_eq!(decide(&view(None, &[rival(1, false, 1)])), Verdict::Leave, "somebody has it");
    }

    #[test]
    fn a_claim_made_in_loneliness_is_renewed_in_company_unless_somebody_contests_it() {
        let lonely = claim(7, false);
        assert_eq!(decide(&view(Some(lonely), &[])), Verdict::Claim(claim(8, true)));
        assert_eq!(decide(&view(Some(lonely), &[rival(6, true, 1)])), Verdict::Keep { contested: true });
        let listening = View { company: Company::Listening, ..view(Some(lonely), &[]) };
        assert_eq!(decide(&listening), Verdict::Keep { contested: false });
    }

    #[test]
    fn epochs_end_where_the_api_ends() {
        assert_eq!(decide(&View { epoch: u64::MAX, ..view(None, &[]) }), Verdict::Claim(claim(MAX_EPOCH, true)));
    }

    #[test]
    fn ranks_are_what_every_version_computes_and_spread_addresses_over_nodes() {
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
        fn of_owners_that_see_each_other_exactly_one_stays(
            owners in proptest::collection::btree_map(any::<u64>(), (0u64..3, any::<bool>()), 1..6),
        ) {
            let rivals: Vec<Rival> = owners.iter().map(|(rank, (epoch, backed))| rival(*epoch, *backed, *rank)).collect();
            let stay = rivals.iter().filter(|own| {
                let others: Vec<Rival> = rivals.iter().filter(|other| other != own).copied().collect();
                let verdict = decide(&View { mine: (Some(own.claim), own.rank), ..view(None, &others) });
                !matches!(verdict, Verdict::Withdraw(_))
            });
            prop_assert_eq!(stay.count(), 1);
        }
    }
}
