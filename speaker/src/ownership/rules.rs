//! Who owns an lb_ip on a link, as one node sees it.
//!
//! A [`View`] of one address in, a [`Verdict`] out; nothing is remembered here. All nodes decide by the same rules on what
//! they hear from each other:
//!
//! - The greatest claim wins: by epoch, then backed over not backed, then by [`rank`].
//! - An address that nobody claims is for the best candidate that is alive: the most preferred one and, of those that are
//!   preferred alike, the best-ranked. It claims the next epoch at once; the others wait for their turn and step in only if
//!   it doesn't.
//! - There is no failback: a claim ends when it is outbid, when its owner must not announce any more, or with its owner.
//! - An owner *cedes* an address when, as it sees things, a candidate is alive that is more preferred, or it is itself no
//!   candidate any more. It says so in its claim and goes on. A candidate that is, as *that one* sees things, more preferred
//!   than the owner claims the next epoch and announces; only then the owner stops. So a planned move leaves no gap, nobody
//!   who isn't able to announce makes anything move, and two nodes that have seen different things of the API server don't
//!   take an address from each other over and over: it takes both to move one.
//! - A claim that is made without the company of most peers is not backed, and keeps the epoch. The one that is cut off
//!   thinks that everybody else is dead. When it returns, what it took is worth less than what the others went on with,
//!   and what the others took from it is worth more than what it had: nothing moves.
//!
//! - Of two nodes neither has company without the other. There, whoever hears anybody else on the LAN since the other fell
//!   silent isn't cut off, and its claims are backed. So the one that clients could reach keeps all of them after a cut. Where
//!   nobody else was heard by either, each gets back what it had.
//!
//! The wire is not asked whether the silent owner still answers (RFC 5227 §2.1.1) before somebody takes its address over: its
//! Hellos go the same way as its answers would, and the wait would be added to every outage.

use std::net::IpAddr;
use std::time::Duration;

use crate::ownership::claims::{Claim, MAX_EPOCH};
use model::stable_hash;

/// A more preferred candidate gets an address only when it has been alive for so long: one that comes and goes should not
/// take the address along each time, for each of its deaths is a gap.
pub const SETTLED: Duration = Duration::from_secs(5);

/// An owner that is no candidate any more waits for so long that somebody else takes over, who may hear of the same change
/// later from the API server, or may have to program its kernel first. Then it stops, for what users forbid must end.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The rank of a node for an address (rendezvous hashing): the highest one is the best. All nodes compute the same, the
/// addresses of a dead node spread over all others, and no other address is affected.
pub fn rank(node: &str, lb_ip: IpAddr) -> u64 {
    stable_hash::mix64(stable_hash::hash(node.as_bytes()) ^ stable_hash::hash_ip(lb_ip))
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
    /// How much it is preferred, if it is a candidate.
    pub preference: Option<u32>,
    /// Since when somebody has been alive who should rather have the address than this node: a candidate that is more
    /// preferred, or any if this node is none. Asked only of an owner.
    pub heir: Option<Duration>,
    /// Since when this node, the owner, is no candidate any more, if it is none.
    pub barred: Option<Duration>,
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
    /// How much it is preferred, if it is a candidate, as this node sees it.
    pub preference: Option<u32>,
    /// Whether it hears this node.
    pub hears_us: bool,
}

impl Rival {
    /// Whether it leaves the address to a node that is preferred so much.
    pub fn yields_to(&self, preference: Option<u32>) -> bool {
        !self.claim.kept && self.preference < preference
    }
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
    /// Keep it.
    Keep {
        /// Whether a claim to it is heard that is weaker, or over.
        contested: bool,
        /// Whether it is for somebody else to take.
        cede: bool,
        /// When to decide again, if nothing else happens.
        again: Option<Duration>,
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
    /// Somebody else has taken what was ceded.
    Ceded,
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
            Self::Ceded => "ceded",
            Self::Unheard => "unheard",
            Self::LinkLost => "link_lost",
            Self::Leaving => "leaving",
        }
    }
}

/// Decides about one address.
pub fn decide(view: &View<'_>) -> Verdict {
    match view.mine {
        (Some(mine), rank) => decide_mine(view, mine, rank),
        (None, _) if view.may.is_err() => Verdict::Leave,
        (None, _) if view.rivals.iter().any(|rival| !rival.yields_to(view.preference)) => Verdict::Leave,
        (None, _) => {
            let turn = view.orphaned + view.step_in * u32::try_from(view.before).unwrap_or(u32::MAX);
            match view.company {
                Company::Listening => Verdict::Wait(None),
                // Its owner goes on, so there is no hurry; and a claim that isn't backed would be weaker.
                Company::Lonely if !view.rivals.is_empty() => Verdict::Wait(None),
                // It wouldn't stop.
                _ if view.rivals.iter().any(|rival| !rival.hears_us) => Verdict::Wait(None),
                _ if view.now < turn => Verdict::Wait(Some(turn)),
                company => Verdict::Claim(next(view.epoch, company == Company::Backed)),
            }
        }
    }
}

/// Decides about an address that is claimed here.
fn decide_mine(view: &View<'_>, mine: Claim, rank: u64) -> Verdict {
    match view.may {
        Ok(()) | Err(Reason::NotCandidate) => {}
        Err(reason) => return Verdict::Withdraw(reason),
    }
    let strongest = view.rivals.iter().map(|rival| (rival.claim, rival.rank)).max();
    if strongest.is_some_and(|strongest| strongest > (mine, rank)) {
        return Verdict::Withdraw(if mine.kept { Reason::Outbid } else { Reason::Ceded });
    }
    if view.rivals.iter().any(|rival| !rival.hears_us) {
        // Only this side knows that there are two: whoever knows gives way.
        return Verdict::Withdraw(Reason::Unheard);
    }
    let contested = view.lost || !view.rivals.is_empty();
    let (cede, again) = if view.may.is_ok() {
        if !mine.backed && view.company == Company::Backed && view.rivals.is_empty() {
            return Verdict::Claim(next(view.epoch.max(mine.epoch), true));
        }
        let settled = view.heir.map(|since| since + SETTLED);
        (settled.is_some_and(|settled| settled <= view.now), settled.filter(|settled| view.now < *settled))
    } else {
        let end = view.barred.unwrap_or(view.now) + PATIENCE;
        if view.heir.is_none() || end <= view.now {
            return Verdict::Withdraw(Reason::NotCandidate);
        }
        (true, Some(end))
    };
    Verdict::Keep { contested, cede, again }
}

fn next(epoch: u64, backed: bool) -> Claim {
    let epoch = if backed { epoch.saturating_add(1) } else { epoch.max(1) };
    Claim { epoch: epoch.min(MAX_EPOCH), backed, held: true, kept: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);
    const STEP_IN: Duration = Duration::from_millis(100);

    fn claim(epoch: u64, backed: bool) -> Claim {
        Claim { epoch, backed, held: true, kept: true }
    }

    fn rival(epoch: u64, backed: bool, rank: u64) -> Rival {
        Rival { claim: claim(epoch, backed), rank, preference: Some(0), hears_us: true }
    }

    fn keep(contested: bool) -> Verdict {
        Verdict::Keep { contested, cede: false, again: None }
    }

    /// A view of somebody with rank 50 in good company, of an address with epoch 7 that was orphaned just now.
    fn view(mine: Option<Claim>, rivals: &[Rival]) -> View<'_> {
        let (may, epoch, company) = (Ok(()), 7, Company::Backed);
        View {
            now: NOW,
            mine: (mine, 50),
            may,
            preference: Some(0),
            heir: None,
            barred: None,
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
            ("alone", vec![], keep(false)),
            ("an earlier epoch", vec![rival(6, true, 99)], keep(true)),
            ("same epoch, not backed", vec![rival(7, false, 99)], keep(true)),
            ("same epoch, worse rank", vec![rival(7, true, 49)], keep(true)),
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
        assert_eq!(decide(&lost), keep(true), "somebody has just lost it");
        for reason in [Reason::Unwanted, Reason::NotCandidate, Reason::NotForwarded, Reason::Blind] {
            assert_eq!(decide(&View { may: Err(reason), ..view(Some(mine), &[]) }), Verdict::Withdraw(reason));
            assert_eq!(decide(&View { may: Err(reason), ..view(None, &[]) }), Verdict::Leave);
        }
    }

    #[test]
    fn an_owner_cedes_to_who_is_more_preferred_or_to_anybody_if_it_may_not_announce() {
        let (kept, ceded) = (claim(7, true), Claim { kept: false, ..claim(7, true) });
        let ago = |ms: u64| Some(NOW - Duration::from_millis(ms));
        let later = |ms: u64| Some(NOW + Duration::from_millis(ms));
        let cede = |again| Verdict::Keep { contested: false, cede: true, again };
        let wait = |again| Verdict::Keep { contested: false, cede: false, again };
        let barred = Err(Reason::NotCandidate);
        for (what, mine, may, heir, since, expected) in [
            ("nobody is better", kept, Ok(()), None, None, wait(None)),
            ("somebody has just come", kept, Ok(()), ago(0), None, wait(later(5000))),
            ("almost", kept, Ok(()), ago(4999), None, wait(later(1))),
            ("somebody is here to stay", kept, Ok(()), ago(5000), None, cede(None)),
            ("and it was ceded before", ceded, Ok(()), ago(5000), None, cede(None)),
            ("and is gone again", ceded, Ok(()), None, None, wait(None)),
            ("no candidate any more", kept, barred, ago(0), None, cede(later(5000))),
            ("since a while", ceded, barred, ago(9000), ago(4999), cede(later(1))),
            ("too long", ceded, barred, ago(9000), ago(5000), Verdict::Withdraw(Reason::NotCandidate)),
            ("nobody is there", kept, barred, None, None, Verdict::Withdraw(Reason::NotCandidate)),
        ] {
            let view = View { may, heir, barred: since, ..view(Some(mine), &[]) };
            assert_eq!(decide(&view), expected, "{what}");
        }
        let taken = [rival(8, true, 1)];
        assert_eq!(decide(&view(Some(ceded), &taken)), Verdict::Withdraw(Reason::Ceded));
        let barred = View { may: barred, heir: ago(0), ..view(Some(ceded), &taken) };
        assert_eq!(decide(&barred), Verdict::Withdraw(Reason::Ceded));
    }

    #[test]
    fn what_is_ceded_is_claimed_by_who_is_more_preferred_in_good_company_and_in_turn() {
        let ceded = Rival { claim: Claim { kept: false, ..claim(7, true) }, ..rival(7, true, 99) };
        let kept = rival(7, true, 99);
        let none = Rival { preference: None, ..ceded };
        let deaf = Rival { hears_us: false, ..ceded };
        let take = Verdict::Claim(claim(8, true));
        for (what, preference, rivals, company, before, expected) in [
            ("more preferred", 1, vec![ceded], Company::Backed, 0, take),
            ("preferred alike", 0, vec![ceded], Company::Backed, 0, Verdict::Leave),
            ("the owner is no candidate", 0, vec![none], Company::Backed, 0, take),
            ("it isn't ceded", 1, vec![kept], Company::Backed, 0, Verdict::Leave),
            ("the owner doesn't hear us yet", 1, vec![deaf], Company::Backed, 0, Verdict::Wait(None)),
            ("there is another owner", 1, vec![ceded, kept], Company::Backed, 0, Verdict::Leave),
            ("in loneliness", 1, vec![ceded], Company::Lonely, 0, Verdict::Wait(None)),
            ("listening", 1, vec![ceded], Company::Listening, 0, Verdict::Wait(None)),
            ("somebody else is better", 1, vec![ceded], Company::Backed, 1, Verdict::Wait(Some(NOW + STEP_IN))),
        ] {
            let view = View { preference: Some(preference), company, before, ..view(None, &rivals) };
            assert_eq!(decide(&view), expected, "{what}");
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
        assert_eq!(decide(&view(Some(lonely), &[rival(6, true, 1)])), keep(true));
        let listening = View { company: Company::Listening, ..view(Some(lonely), &[]) };
        assert_eq!(decide(&listening), keep(false));
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
