//! The facts about one address on a segment, and the [`View`] on which the rules decide.

use std::net::IpAddr;
use std::time::Duration;

use super::{Ceding, Context, Quorum, Segment};
use crate::ownership::claims::Claim;
use crate::ownership::rules::{self, PeerClaim, Position, Reason, View};
use crate::peers::liveness::{self, PeerState};
use crate::peers::peer::Peer;
use model::eligibility::AnnouncementPolicy;

/// The facts about one address.
pub(super) struct Facts<'a> {
    pub(super) lb_ip: IpAddr,
    pub(super) wanted: Option<&'a AnnouncementPolicy>,
    pub(super) own: Option<Claim>,
    /// All claims of peers: active and ended ones, and those of dead peers.
    pub(super) others: &'a [(&'a str, Claim)],
    /// The active claims of live peers that are not leaving.
    pub(super) peer_claims: Vec<PeerClaim>,
    /// The preference for this node; `None` if it is not a candidate here.
    pub(super) preference: Option<u32>,
    /// The greatest epoch seen.
    epoch: u64,
    pub(super) ceding: Option<Ceding>,
    /// Whether no peer keeps this node from owning the address.
    pub(super) is_available: bool,
    /// Whether no node has ever owned the address.
    pub(super) is_first: bool,
}

impl Segment {
    /// Collects the facts about `lb_ip`, and remembers its greatest epoch.
    pub(super) fn facts<'a>(
        &mut self,
        context: &Context<'a>,
        lb_ip: IpAddr,
        others: &'a [(&'a str, Claim)],
    ) -> Facts<'a> {
        let wanted = context.snapshot.and_then(|snapshot| snapshot.addresses.get(&lb_ip));
        let own = self.own_claim(lb_ip);
        let claimed = others.iter().map(|(_, claim)| claim.epoch).chain(own.map(|claim| claim.epoch)).max();
        let known = if wanted.is_some() {
            let known = self.epochs.entry(lb_ip).or_default();
            *known = claimed.map_or(*known, |claimed| claimed.max(*known));
            *known
        } else {
            self.epochs.remove(&lb_ip).max(claimed).unwrap_or(0)
        };
        let epoch = known.max(wanted.map_or(0, |wanted| wanted.epoch));
        let peer_claims = self.active_peer_claims(context.now, lb_ip, wanted, others);
        let preference = wanted.and_then(|wanted| wanted.candidates.preference(&context.config.node, &self.link.name));
        Facts {
            lb_ip,
            wanted,
            own,
            others,
            preference,
            epoch,
            ceding: own.and_then(|_| self.ceding(context, lb_ip, wanted?, preference)),
            is_available: peer_claims.iter().all(|peer| peer.yields_to(preference)),
            is_first: epoch == 0 && own.is_none(),
            peer_claims,
        }
    }

    fn active_peer_claims(
        &self,
        now: Duration,
        lb_ip: IpAddr,
        wanted: Option<&AnnouncementPolicy>,
        others: &[(&str, Claim)],
    ) -> Vec<PeerClaim> {
        let serving = others.iter().filter(|(_, claim)| claim.active).filter_map(|(node, claim)| {
            let peer = self.peers.get(*node).filter(|peer| peer.is_serving())?;
            let preference = wanted.and_then(|wanted| wanted.candidates.preference(node, &peer.link));
            let hears_us = peer.liveness.hears_us(now);
            Some(PeerClaim { claim: *claim, rank: rules::rank(node, lb_ip), preference, hears_us })
        });
        serving.collect()
    }

    /// The view for the rules.
    pub(super) fn view<'a>(&self, context: &Context<'_>, facts: &'a Facts<'_>) -> View<'a> {
        let Facts { lb_ip, wanted, own, preference, epoch, .. } = *facts;
        let (now, rank) = (context.now, rules::rank(&context.config.node, lb_ip));
        let position = self.position(context, facts);
        // Counting better candidates is expensive with many peers, so it is done only for an address that may be claimed.
        let claimable = wanted.filter(|_| own.is_none() && position != Position::Listening && facts.is_available);
        let successors = facts.ceding.and(wanted);
        // If many addresses are probed, the better candidates are delayed as well.
        let probe_delay = if facts.is_first { self.conflicts.queue_delay(now) } else { Duration::ZERO };
        let has_ended =
            |(node, claim): &(&str, Claim)| !claim.active && self.peers.get(*node).is_some_and(Peer::is_serving);
        View {
            now,
            own,
            rank,
            eligibility: self.eligibility(context, lb_ip, wanted),
            preference,
            successor_since: successors.and_then(|wanted| self.successor_since(wanted, preference)),
            ineligible_since: facts.ceding.and_then(Ceding::ineligible_since),
            peer_claims: &facts.peer_claims,
            tombstone_heard: facts.others.iter().any(has_ended),
            epoch,
            position,
            better_candidates: claimable.map_or(0, |wanted| self.better_candidates(lb_ip, wanted, preference, rank)),
            orphaned_since: self.orphaned_since(lb_ip, now),
            step_in: context.config.step_in_delay(self.slowest_interval()) + probe_delay,
        }
    }

    /// Whether this node may announce `lb_ip` here.
    pub(super) fn eligibility(
        &self,
        context: &Context<'_>,
        lb_ip: IpAddr,
        wanted: Option<&AnnouncementPolicy>,
    ) -> Result<(), Reason> {
        if context.snapshot.is_none() {
            return Err(Reason::Blind);
        }
        let wanted = wanted.ok_or(Reason::Unwanted)?;
        if !self.placed.contains(&lb_ip) {
            return Err(Reason::LinkLost);
        }
        if !wanted.candidates.contains(&context.config.node) {
            return Err(Reason::NotCandidate);
        }
        if !context.forwarded.contains(&lb_ip) {
            return Err(Reason::NotForwarded);
        }
        Ok(())
    }

    fn position(&self, context: &Context<'_>, facts: &Facts<'_>) -> Position {
        let (now, lb_ip) = (context.now, facts.lb_ip);
        let has_unread = || self.peers.values().any(|peer| peer.may_claim(lb_ip, now));
        let listening = !context.keys.can_seal() || self.is_listening(now, context.config);
        if context.leaving || listening || (has_unread() && !self.owner_just_died(now, facts)) {
            return Position::Listening;
        }
        let fresh = self.peers.values().filter(|peer| peer.state == PeerState::Alive && peer.liveness.is_fresh(now));
        let is_majority = || liveness::is_majority(fresh.count(), self.peers.len());
        if self.quorum == Quorum::Majority && !is_majority() && !self.is_only_candidate(context, facts.wanted) {
            // A node that is cut off loses its peers one by one, in the order of their last Hellos. When it misses the
            // first, the others are no quorum either: they were not heard since.
            return Position::Listening;
        }
        if self.is_backed(context, facts.wanted) { Position::Backed } else { Position::Isolated }
    }

    /// Whether the owner of the address has just died and meant to keep it. A peer with unread claims can have taken it
    /// only for the same reason, and between two such claims the rank decides. So the unread claims need not be awaited.
    fn owner_just_died(&self, now: Duration, facts: &Facts<'_>) -> bool {
        let Some((owner, claim)) = facts.others.iter().max_by_key(|(_, claim)| *claim) else { return false };
        let has_just_died = |peer: &Peer| peer.has_just_died(facts.lb_ip, now);
        claim.active && claim.retained && self.peers.get(*owner).is_some_and(has_just_died)
    }

    /// Whether this node hears enough peers to announce an address unasked.
    pub(super) fn is_backed(&self, context: &Context<'_>, wanted: Option<&AnnouncementPolicy>) -> bool {
        self.quorum != Quorum::Minority || self.is_only_candidate(context, wanted)
    }

    /// Whether no peer is a candidate, so that none can be missed.
    fn is_only_candidate(&self, context: &Context<'_>, wanted: Option<&AnnouncementPolicy>) -> bool {
        wanted.is_some_and(|wanted| wanted.candidates.iter().all(|(node, _)| *node == context.config.node))
    }

    /// The number of live candidates that are more preferred than this node, or equally preferred with a higher rank.
    fn better_candidates(
        &self,
        lb_ip: IpAddr,
        wanted: &AnnouncementPolicy,
        preference: Option<u32>,
        rank: u64,
    ) -> usize {
        let candidates = self.peers.iter().filter(|(_, peer)| peer.can_take_over()).filter_map(|(node, peer)| {
            let preference = wanted.candidates.preference(node, &peer.link)?;
            Some((Some(preference), rules::rank(node, lb_ip)))
        });
        candidates.filter(|candidate| *candidate > (preference, rank)).count()
    }

    /// Why this node, the owner, should cede the address, if it should: it is no candidate, or not one of the most
    /// preferred candidates, alive or not.
    fn ceding(
        &self,
        context: &Context<'_>,
        lb_ip: IpAddr,
        wanted: &AnnouncementPolicy,
        preference: Option<u32>,
    ) -> Option<Ceding> {
        match (preference, self.ceding.get(&lb_ip)) {
            (None, Some(Ceding::Ineligible { since })) => Some(Ceding::Ineligible { since: *since }),
            (None, _) => Some(Ceding::Ineligible { since: context.now }),
            (Some(own), _) => (own < wanted.candidates.most_preferred()).then_some(Ceding::ToPreferred),
        }
    }

    /// The time since which a candidate is alive that is more preferred than this node.
    fn successor_since(&self, wanted: &AnnouncementPolicy, preference: Option<u32>) -> Option<Duration> {
        let able = self.peers.iter().filter(|(_, peer)| peer.can_take_over());
        let successors = able.filter(|(node, peer)| wanted.candidates.preference(node, &peer.link) > preference);
        successors.map(|(_, peer)| peer.state_since).min()
    }
}
