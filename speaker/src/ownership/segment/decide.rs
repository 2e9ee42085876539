//! Decides about the addresses of a segment, and applies the decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Context, INSIST_TIME, Quorum, Segment};
use crate::metrics::{Cause, Event, Move};
use crate::ownership::claims::Claim;
use crate::ownership::rules::{self, Decision, Reason, View};

impl Segment {
    /// Decides about all addresses for which an input of the decision has changed.
    pub fn decide(&mut self, context: &mut Context) {
        while let Some((turn, lb_ip)) = self.turns.first().copied().filter(|(turn, _)| *turn <= context.now) {
            self.turns.remove(&(turn, lb_ip));
            // By now another candidate may own the address. Then the turn is void.
            if self.orphans.contains_key(&lb_ip) || self.ceding.contains_key(&lb_ip) {
                self.dirty.insert(lb_ip);
            }
        }
        if self.dirty.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let names: Vec<String> = self.peers.keys().cloned().collect();
        let claims = self.claims_of_peers(&names, &dirty);
        let mut changed = false;
        for lb_ip in dirty {
            let others = claims.get(&lb_ip).map(Vec::as_slice).unwrap_or_default();
            changed |= self.decide_one(context, lb_ip, others);
        }
        if changed {
            self.hello_sender.send_soon();
            context.reports_changed = true;
        }
    }

    /// All claims of peers to these addresses, including those of dead peers. `names` are the names of all peers, in
    /// order.
    fn claims_of_peers<'a>(
        &self,
        names: &'a [String],
        lb_ips: &BTreeSet<IpAddr>,
    ) -> BTreeMap<IpAddr, Vec<(&'a str, Claim)>> {
        let mut claims = BTreeMap::<IpAddr, Vec<(&str, Claim)>>::new();
        for (node, peer) in names.iter().zip(self.peers.values()) {
            let mut add = |lb_ip: IpAddr, claim: Claim| claims.entry(lb_ip).or_default().push((node, claim));
            if peer.claims.len() < lb_ips.len() {
                peer.claims.iter().filter(|(lb_ip, _)| lb_ips.contains(lb_ip)).for_each(|(l, c)| add(l, c));
            } else {
                lb_ips.iter().filter_map(|l| Some((*l, peer.claims.get(*l)?))).for_each(|(l, c)| add(l, c));
            }
        }
        claims
    }

    /// Decides about one address. Returns whether the claims of this node changed.
    fn decide_one(&mut self, context: &mut Context, lb_ip: IpAddr, others: &[(&str, Claim)]) -> bool {
        let view = self.view(context, lb_ip, others);
        let decision = rules::decide(&view);
        if let Some(until) = self.check_conflicts(context, lb_ip, &view, decision) {
            // The address stays an orphan with a turn at `until`, when it is decided again.
            self.orphans.insert(lb_ip, Some(view.orphaned_since));
            self.turns.insert((until, lb_ip));
            return false;
        }
        self.apply(context, lb_ip, others, &view, decision)
    }

    /// Starts or stops probing the address. Returns the time until which a claim must wait.
    fn check_conflicts(
        &mut self,
        context: &mut Context,
        lb_ip: IpAddr,
        view: &View,
        decision: Decision,
    ) -> Option<Duration> {
        match decision {
            Decision::Claim(_) if view.is_first() => self.conflicts.check_free(context.now, lb_ip),
            Decision::Claim(_) | Decision::Wait(_) | Decision::Keep { .. } => None,
            Decision::Leave | Decision::Withdraw(_) => {
                context.reports_changed |= self.conflicts.cancel(lb_ip);
                None
            }
        }
    }

    /// Applies a decision. Returns whether the claims of this node changed.
    fn apply(
        &mut self,
        context: &mut Context,
        lb_ip: IpAddr,
        others: &[(&str, Claim)],
        view: &View,
        decision: Decision,
    ) -> bool {
        if !matches!(decision, Decision::Wait(_)) {
            self.orphans.remove(&lb_ip);
        }
        let is_contested = matches!(decision, Decision::Keep { contested: true, .. });
        let was_contested = if is_contested { !self.contested.insert(lb_ip) } else { self.contested.remove(&lb_ip) };
        match decision {
            Decision::Leave => false,
            Decision::Wait(turn) => {
                self.orphans.insert(lb_ip, turn.map(|_| view.orphaned_since));
                self.turns.extend(turn.map(|turn| (turn, lb_ip)));
                false
            }
            Decision::Keep { cede, decide_again_at, .. } => {
                self.turns.extend(decide_again_at.map(|time| (time, lb_ip)));
                self.set_ceding(lb_ip, view, cede);
                if is_contested != was_contested {
                    self.insist(context.now, lb_ip);
                }
                false
            }
            Decision::Claim(claim) => {
                self.claim(context, lb_ip, claim, others);
                // A more preferred candidate may be alive. Then the next decision cedes the address.
                let greatest = context.policy(lb_ip).map(|policy| policy.candidates.greatest_preference());
                self.dirty.extend((view.preference < greatest).then_some(lb_ip));
                true
            }
            Decision::Withdraw(reason) => {
                self.withdraw(context, lb_ip, reason);
                // The new owner may cede the address to this node.
                self.dirty.extend((view.is_available() && !view.peer_claims.is_empty()).then_some(lb_ip));
                true
            }
        }
    }

    /// Records whether the owned address is ceded. Sends a change to the peers.
    fn set_ceding(&mut self, lb_ip: IpAddr, view: &View, cede: bool) {
        let Some(claim) = view.own else { return };
        match view.ceding {
            Some(ceding) => self.ceding.insert(lb_ip, ceding),
            None => self.ceding.remove(&lb_ip),
        };
        if claim.retained == cede {
            self.own_claims.insert(lb_ip, Claim { retained: !cede, ..claim });
            self.hello_sender.record_claim_change(lb_ip);
            self.hello_sender.send_soon();
        }
    }

    /// Announces an owned address again, because a peer has just begun or ceased to claim it. That peer may have
    /// announced it until now, and the last node to announce must be the owner.
    fn insist(&mut self, now: Duration, lb_ip: IpAddr) {
        self.schedule.start(lb_ip, now);
        self.insist_until.insert(lb_ip, now + INSIST_TIME);
        self.hello_sender.send_soon();
    }

    fn claim(&mut self, context: &mut Context, lb_ip: IpAddr, claim: Claim, others: &[(&str, Claim)]) {
        self.hello_sender.record_claim_change(lb_ip);
        let link = self.link.name.clone();
        let is_renewed = self.own_claim(lb_ip).is_some();
        self.tombstones.remove(&lb_ip);
        self.own_claims.insert(lb_ip, claim);
        if is_renewed {
            context.events.push(Event::Renewed { lb_ip, link, epoch: claim.epoch });
            return;
        }
        self.schedule.start(lb_ip, context.now);
        context.counters.announced += 1;
        let former = others.iter().max_by_key(|(_, claim)| *claim);
        let peer = former.and_then(|(node, claim)| Some((node, claim, self.peers.get(*node)?)));
        if let Some((node, claim, peer)) = peer {
            let (cause, heard) = (Cause::from_peer(peer, *claim), peer.liveness.last_heard);
            context.counters.takeovers.observe(cause, peer.liveness.age(context.now));
            self.moves.insert(lb_ip, Move::begin(context.now, node, cause, heard));
        }
        let from = former.map(|(node, _)| (*node).to_owned());
        let Claim { epoch, backed, .. } = claim;
        context.events.push(Event::Announced { lb_ip, link, epoch, backed, from });
    }

    pub(super) fn withdraw(&mut self, context: &mut Context, lb_ip: IpAddr, reason: Reason) {
        self.schedule.stop(lb_ip);
        self.moves.remove(&lb_ip);
        self.contested.remove(&lb_ip);
        self.ceding.remove(&lb_ip);
        self.insist_until.remove(&lb_ip);
        self.last_defended.remove(&lb_ip);
        self.hello_sender.record_claim_change(lb_ip);
        let Some(claim) = self.own_claim(lb_ip) else { return };
        let cut_off = self.quorum == Quorum::Minority && !self.peers.is_empty();
        if matches!(reason, Reason::Outbid | Reason::Ceded | Reason::Unheard) || cut_off {
            // Another node owns the address, or will own it. It may not hear this node now, so the ended claim is sent
            // for a while.
            self.own_claims.insert(lb_ip, Claim { active: false, ..claim });
            self.tombstones.insert(lb_ip, context.now + context.config.tombstone_ttl(self.slowest_interval()));
        } else {
            self.own_claims.remove(lb_ip);
        }
        context.counters.withdrawn += 1;
        let (link, epoch) = (self.link.name.clone(), claim.epoch);
        context.events.push(Event::Withdrawn { lb_ip, link, epoch, reason });
    }
}
