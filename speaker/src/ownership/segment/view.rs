//! The [`View`] of one address on a segment, on which the rules decide.

use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Quorum, Segment};
use crate::ownership::claims::Claim;
use crate::ownership::rules::{self, Ceding, PeerClaim, Position, Reason, View};
use crate::peers::liveness::{self, PeerState};
use crate::peers::peer::Peer;
use model::eligibility::AnnouncementPolicy;

impl Segment {
    /// The view for the rules. `others` are all claims of peers: active and ended ones, and those of dead peers. Also
    /// records the greatest epoch of the address.
    pub(super) fn view(&mut self, context: &Context, lb_ip: IpAddr, others: &[(&str, Claim)]) -> View {
        let (now, node, own) = (context.now, &context.config.node, self.own_claim(lb_ip));
        let policy = context.policy(lb_ip);
        let preference = policy.and_then(|policy| policy.candidates.preference(node, &self.link.name));
        let ceding = own.and_then(|_| self.ceding(context, lb_ip, policy?, preference));
        let has_ended =
            |(node, claim): &(&str, Claim)| !claim.active && self.peers.get(*node).is_some_and(Peer::is_serving);
        let mut view = View {
            now,
            own,
            rank: rules::rank(node, lb_ip),
            eligibility: self.eligibility(context, lb_ip),
            preference,
            successor_since: ceding.and(policy).and_then(|policy| self.successor_since(policy, preference)),
            ceding,
            peer_claims: self.active_peer_claims(context, lb_ip, others),
            tombstone_heard: others.iter().any(has_ended),
            epoch: self.greatest_epoch(lb_ip, policy, others.iter().map(|(_, claim)| *claim).chain(own)),
            position: self.position(context, lb_ip, others),
            better_candidates: 0,
            orphaned_since: self.orphans.get(&lb_ip).copied().flatten().unwrap_or(now),
            step_in: context.config.step_in_delay(self.slowest_interval()),
        };
        // With many peers it is expensive to count better candidates. So they are counted only for an address that may
        // be claimed.
        let may_claim = own.is_none() && view.position != Position::Listening && view.is_available();
        if let Some(policy) = policy.filter(|_| may_claim) {
            view.better_candidates = self.better_candidates(lb_ip, policy, preference, view.rank);
        }
        if view.is_first() {
            // If many addresses are being probed, the better candidates must also wait for their probes.
            view.step_in += self.conflicts.queue_delay(now);
        }
        view
    }

    /// The greatest epoch seen for the address. It is remembered while a Service holds the address.
    fn greatest_epoch(
        &mut self,
        lb_ip: IpAddr,
        policy: Option<&AnnouncementPolicy>,
        claims: impl Iterator<Item = Claim>,
    ) -> u64 {
        let claimed = claims.map(|claim| claim.epoch).max().unwrap_or(0);
        let Some(policy) = policy else { return self.epochs.remove(&lb_ip).unwrap_or(0).max(claimed) };
        let known = self.epochs.entry(lb_ip).or_default();
        *known = claimed.max(*known);
        policy.epoch.max(*known)
    }

    /// The active claims of live peers that are not leaving.
    fn active_peer_claims(&self, context: &Context, lb_ip: IpAddr, others: &[(&str, Claim)]) -> Vec<PeerClaim> {
        let policy = context.policy(lb_ip);
        let serving = others.iter().filter(|(_, claim)| claim.active).filter_map(|(node, claim)| {
            let peer = self.peers.get(*node).filter(|peer| peer.is_serving())?;
            let preference = policy.and_then(|policy| policy.candidates.preference(node, &peer.link));
            let hears_us = peer.liveness.hears_us(context.now);
            Some(PeerClaim { claim: *claim, rank: rules::rank(node, lb_ip), preference, hears_us })
        });
        serving.collect()
    }

    /// Whether this node may announce `lb_ip` here.
    pub(super) fn eligibility(&self, context: &Context, lb_ip: IpAddr) -> Result<(), Reason> {
        if context.snapshot.is_none() {
            return Err(Reason::Blind);
        }
        let policy = context.policy(lb_ip).ok_or(Reason::Unwanted)?;
        if !self.placed.contains(&lb_ip) {
            return Err(Reason::LinkLost);
        }
        if !policy.candidates.contains(&context.config.node) {
            return Err(Reason::NotCandidate);
        }
        if !context.forwarded.contains(&lb_ip) {
            return Err(Reason::NotForwarded);
        }
        Ok(())
    }

    fn position(&self, context: &Context, lb_ip: IpAddr, others: &[(&str, Claim)]) -> Position {
        let now = context.now;
        let has_unread = || self.peers.values().any(|peer| peer.may_claim(lb_ip, now));
        let listening = !context.keys.can_seal() || self.is_listening(now, &context.config);
        if context.leaving || listening || (has_unread() && !self.owner_just_died(now, lb_ip, others)) {
            return Position::Listening;
        }
        let fresh = self.peers.values().filter(|peer| peer.state == PeerState::Alive && peer.liveness.is_fresh(now));
        let is_majority = || liveness::is_majority(fresh.count(), self.peers.len());
        if self.quorum == Quorum::Majority && !is_majority() && !self.is_only_candidate(context, lb_ip) {
            // A node that is cut off loses its peers one by one, in the order of their last Hellos. When the first one
            // is dead, the others still count as alive, but too few of them were heard just now.
            return Position::Listening;
        }
        if self.is_backed(context, lb_ip) { Position::Backed } else { Position::Isolated }
    }

    /// Whether the owner of the address has just died and meant to keep it. A peer with unread claims can have taken
    /// the address only because of the same death, and between two such claims the rank decides. So this node need not
    /// wait for unread claims.
    fn owner_just_died(&self, now: Duration, lb_ip: IpAddr, others: &[(&str, Claim)]) -> bool {
        let Some((owner, claim)) = others.iter().max_by_key(|(_, claim)| *claim) else { return false };
        let has_just_died = |peer: &Peer| peer.has_just_died(lb_ip, now);
        claim.active && claim.retained && self.peers.get(*owner).is_some_and(has_just_died)
    }

    /// Whether this node may send gratuitous ARP or unsolicited NAs for an address: it hears enough peers, or it is the
    /// only candidate.
    pub(super) fn is_backed(&self, context: &Context, lb_ip: IpAddr) -> bool {
        self.quorum != Quorum::Minority || self.is_only_candidate(context, lb_ip)
    }

    /// Whether this node is the only candidate, so that no other node can own the address.
    fn is_only_candidate(&self, context: &Context, lb_ip: IpAddr) -> bool {
        let policy = context.policy(lb_ip);
        policy.is_some_and(|policy| policy.candidates.iter().all(|(node, _)| *node == context.config.node))
    }

    /// The number of live candidates that are more preferred than this node, or equally preferred with a higher rank.
    fn better_candidates(
        &self,
        lb_ip: IpAddr,
        policy: &AnnouncementPolicy,
        preference: Option<u32>,
        rank: u64,
    ) -> usize {
        let candidates = self.peers.iter().filter(|(_, peer)| peer.can_take_over()).filter_map(|(node, peer)| {
            let preference = policy.candidates.preference(node, &peer.link)?;
            Some((Some(preference), rules::rank(node, lb_ip)))
        });
        candidates.filter(|candidate| *candidate > (preference, rank)).count()
    }

    /// Why this node, the owner, should cede the address; `None` if it should keep it. It cedes if it is no candidate,
    /// or if another candidate is more preferred, alive or not.
    fn ceding(
        &self,
        context: &Context,
        lb_ip: IpAddr,
        policy: &AnnouncementPolicy,
        preference: Option<u32>,
    ) -> Option<Ceding> {
        match (preference, self.ceding.get(&lb_ip)) {
            (None, Some(Ceding::Ineligible { since })) => Some(Ceding::Ineligible { since: *since }),
            (None, _) => Some(Ceding::Ineligible { since: context.now }),
            (Some(own), _) => (own < policy.candidates.greatest_preference()).then_some(Ceding::ToPreferred),
        }
    }

    /// The time since which a candidate more preferred than this node is alive.
    fn successor_since(&self, policy: &AnnouncementPolicy, preference: Option<u32>) -> Option<Duration> {
        let able = self.peers.iter().filter(|(_, peer)| peer.can_take_over());
        let successors = able.filter(|(node, peer)| policy.candidates.preference(node, &peer.link) > preference);
        successors.map(|(_, peer)| peer.state_since).min()
    }
}
