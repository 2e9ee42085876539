//! What a segment makes of the verdicts about its addresses: the view of each one, and what follows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{Ceding, Context, Hears, INSIST, Segment};
use model::eligibility::AnnouncementPolicy;

use crate::metrics::events::Event;
use crate::metrics::takeovers::{Cause, Move};
use crate::ownership::claims::Claim;
use crate::ownership::rules::{self, Company, Reason, Rival, Verdict, View};
use crate::peers::liveness::{self, Standing};
use crate::peers::peer::Peer;

impl Segment {
    /// Decides about all addresses on which something has changed. Returns whether our claims changed.
    pub fn decide(&mut self, context: &mut Context<'_>) -> bool {
        while let Some((turn, lb_ip)) = self.turns.first().copied().filter(|(turn, _)| *turn <= context.now) {
            self.turns.remove(&(turn, lb_ip));
            // Somebody else may have it by now, as has most of what a dead node had.
            if self.orphans.contains_key(&lb_ip) || self.ceding.contains_key(&lb_ip) {
                self.dirty.insert(lb_ip);
            }
        }
        if self.dirty.is_empty() {
            return false;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let names: Vec<String> = self.peers.keys().cloned().collect();
        let claimants = self.claimants(&names, &dirty);
        let mut changed = false;
        for lb_ip in dirty {
            let others = claimants.get(&lb_ip).map(Vec::as_slice).unwrap_or_default();
            changed |= self.decide_one(context, lb_ip, others);
        }
        if changed {
            self.greeting.hasten();
        }
        changed
    }

    /// All claims of others to these addresses, of the dead too. `names` are those of all peers, in order.
    fn claimants<'a>(&self, names: &'a [String], lb_ips: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Vec<(&'a str, Claim)>> {
        let mut claimants = BTreeMap::<IpAddr, Vec<(&str, Claim)>>::new();
        for (node, peer) in names.iter().zip(self.peers.values()) {
            let mut note = |lb_ip: IpAddr, claim: Claim| {
                claimants.entry(lb_ip).or_default().push((node, claim));
            };
            if peer.claims.len() < lb_ips.len() {
                peer.claims.iter().filter(|(lb_ip, _)| lb_ips.contains(lb_ip)).for_each(|(l, c)| note(l, c));
            } else {
                lb_ips.iter().filter_map(|l| Some((*l, peer.claims.get(*l)?))).for_each(|(l, c)| note(l, c));
            }
        }
        claimants
    }

    fn decide_one(&mut self, context: &mut Context<'_>, lb_ip: IpAddr, others: &[(&str, Claim)]) -> bool {
        let now = context.now;
        let wanted = context.snapshot.and_then(|snapshot| snapshot.addresses.get(&lb_ip));
        let mine = self.mine(lb_ip);
        let my_rank = rules::rank(&context.config.node, lb_ip);
        let rivals: Vec<Rival> = others
            .iter()
            .filter(|(_, claim)| claim.held)
            .filter_map(|(node, claim)| {
                let peer = self.peers.get(*node).filter(|peer| peer.holds())?;
                let preference = wanted.and_then(|wanted| self.preference(wanted, node, peer));
                let hears_us = peer.liveness.hears_us(now);
                Some(Rival { claim: *claim, rank: rules::rank(node, lb_ip), preference, hears_us })
            })
            .collect();
        let claimed = others.iter().map(|(_, claim)| claim.epoch).chain(mine.map(|claim| claim.epoch)).max();
        let known = if wanted.is_some() {
            let known = self.epochs.entry(lb_ip).or_default();
            *known = claimed.map_or(*known, |claimed| claimed.max(*known));
            *known
        } else {
            self.epochs.remove(&lb_ip).max(claimed).unwrap_or(0)
        };
        let company = self.company(context, lb_ip, wanted, others);
        // Looking at each peer for each address is much, where there are many, and for nothing while we listen.
        let may = self.may(context, lb_ip, wanted);
        let preference = wanted.and_then(|wanted| wanted.candidates.preference(&context.config.node, &self.link.name));
        let is_free = rivals.iter().all(|rival| rival.yields_to(preference));
        let takes = wanted.filter(|_| mine.is_none() && company != Company::Listening && is_free);
        let ceding = mine.and_then(|_| self.ceding(context, lb_ip, wanted?, preference));
        let heir = ceding.and(wanted).and_then(|wanted| self.heir(wanted, preference));
        // Nobody ever had it: somebody else may, who is no peer.
        let first = known.max(wanted.map_or(0, |wanted| wanted.epoch)) == 0 && mine.is_none();
        // Where many are asked for, as many keep the others busy, whose turn comes first.
        let queue = if first { self.strangers.queue(now) } else { Duration::ZERO };
        let step_in = context.config.step_in(self.pace()) + queue;
        let verdict = rules::decide(&View {
            now,
            mine: (mine, my_rank),
            may,
            preference,
            heir,
            barred: ceding.and_then(|ceding| if let Ceding::Since(since) = ceding { Some(since) } else { None }),
            rivals: &rivals,
            lost: others.iter().any(|(node, claim)| !claim.held && self.peers.get(*node).is_some_and(Peer::holds)),
            epoch: known.max(wanted.map_or(0, |wanted| wanted.epoch)),
            company,
            before: takes.map_or(0, |wanted| self.before(lb_ip, wanted, (preference, my_rank))),
            orphaned: self.orphans.get(&lb_ip).copied().flatten().unwrap_or(now),
            step_in,
        });
        let asking = match verdict {
            Verdict::Claim(_) if first => self.strangers.wait(now, lb_ip),
            Verdict::Claim(_) | Verdict::Wait(_) | Verdict::Keep { .. } => None,
            Verdict::Leave | Verdict::Withdraw(_) => {
                self.estranged |= self.strangers.stop(lb_ip);
                None
            }
        };
        if let Some(until) = asking {
            // It stays an orphan, so that it is still our turn then; and as one that has a turn it is left alone until then.
            let since = self.orphans.get(&lb_ip).copied().flatten().unwrap_or(now);
            self.orphans.insert(lb_ip, Some(since));
            self.turns.insert((until, lb_ip));
            return false;
        }
        if !matches!(verdict, Verdict::Wait(_)) {
            self.orphans.remove(&lb_ip);
        }
        let contested = matches!(verdict, Verdict::Keep { contested: true, .. });
        let settled = if contested { !self.contested.insert(lb_ip) } else { !self.contested.remove(&lb_ip) };
        if let (Verdict::Keep { cede, again, .. }, Some(claim)) = (verdict, mine) {
            match ceding {
                Some(ceding) => self.ceding.insert(lb_ip, ceding),
                None => self.ceding.remove(&lb_ip),
            };
            self.turns.extend(again.map(|again| (again, lb_ip)));
            if claim.kept == cede {
                self.own.insert(lb_ip, Claim { kept: !cede, ..claim });
                self.greeting.changed(lb_ip);
                self.greeting.hasten();
            }
        }
        match verdict {
            Verdict::Leave => false,
            Verdict::Wait(turn) => {
                let since = turn.map(|_| self.orphans.get(&lb_ip).copied().flatten().unwrap_or(now));
                self.orphans.insert(lb_ip, since);
                self.turns.extend(turn.map(|turn| (turn, lb_ip)));
                false
            }
            Verdict::Keep { .. } if settled => false,
            Verdict::Keep { .. } => {
                // Somebody else has just begun or stopped to claim it. It may have announced it up to now, whatever we
                // knew: the last one to announce must be the owner. And it should hear of us soon.
                self.schedule.start(lb_ip, now);
                self.insisted.insert(lb_ip, now + INSIST);
                self.greeting.hasten();
                false
            }
            Verdict::Claim(claim) => {
                self.claim(context, lb_ip, claim, others);
                // Somebody may be there, or come, who should rather have it.
                let most = wanted.map(|wanted| wanted.candidates.most_preferred());
                self.dirty.extend((preference < most).then_some(lb_ip));
                true
            }
            Verdict::Withdraw(reason) => {
                self.withdraw(context, lb_ip, reason);
                // Whoever outbids us may cede it to us.
                self.dirty.extend((is_free && !rivals.is_empty()).then_some(lb_ip));
                true
            }
        }
    }

    fn claim(&mut self, context: &mut Context<'_>, lb_ip: IpAddr, claim: Claim, others: &[(&str, Claim)]) {
        self.greeting.changed(lb_ip);
        let link = self.link.name.clone();
        let renewed = self.mine(lb_ip).is_some();
        self.lost.remove(&lb_ip);
        self.own.insert(lb_ip, claim);
        if renewed {
            context.events.push(Event::Renewed { lb_ip, link, epoch: claim.epoch });
            return;
        }
        self.schedule.start(lb_ip, context.now);
        context.counters.announced += 1;
        let before = others.iter().max_by_key(|(_, claim)| *claim);
        if let Some((from, claim, peer)) = before.and_then(|(node, claim)| Some((node, claim, self.peers.get(*node)?)))
        {
            let (cause, heard) = (Cause::of(peer, *claim), peer.liveness.last());
            context.counters.takeovers.observe(cause, peer.liveness.age(context.now));
            self.moves.insert(lb_ip, Move::begin(context.now, from, cause, heard));
        }
        let from = before.map(|(node, _)| (*node).to_owned());
        let Claim { epoch, backed, .. } = claim;
        context.events.push(Event::Announced { lb_ip, link, epoch, backed, from });
    }

    /// Gives up `lb_ip`.
    pub(super) fn withdraw(&mut self, context: &mut Context<'_>, lb_ip: IpAddr, reason: Reason) {
        self.schedule.stop(lb_ip);
        self.moves.remove(&lb_ip);
        self.contested.remove(&lb_ip);
        self.ceding.remove(&lb_ip);
        self.insisted.remove(&lb_ip);
        self.conflicts.remove(&lb_ip);
        self.greeting.changed(lb_ip);
        let Some(claim) = self.mine(lb_ip) else { return };
        let cut_off = self.company == Hears::Few && !self.peers.is_empty();
        if matches!(reason, Reason::Outbid | Reason::Ceded | Reason::Unheard) || cut_off {
            // Somebody else owns it, or will, who may not hear us now.
            self.own.insert(lb_ip, Claim { held: false, ..claim });
            self.lost.insert(lb_ip, context.now + context.config.regret(self.pace()));
        } else {
            self.own.remove(lb_ip);
        }
        context.counters.withdrawn += 1;
        let (link, epoch) = (self.link.name.clone(), claim.epoch);
        context.events.push(Event::Withdrawn { lb_ip, link, epoch, reason });
    }

    /// Whether we may announce `lb_ip` here.
    pub(super) fn may(
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

    fn company(
        &self,
        context: &Context<'_>,
        lb_ip: IpAddr,
        wanted: Option<&AnnouncementPolicy>,
        others: &[(&str, Claim)],
    ) -> Company {
        let now = context.now;
        let unread = || self.peers.values().any(|peer| peer.may_claim(lb_ip, now));
        let listening = !context.keys.can_speak() || self.is_listening(now, context.config);
        if context.leaving || listening || (unread() && !self.is_bequeathed(now, lb_ip, others)) {
            return Company::Listening;
        }
        let fresh = self.peers.values().filter(|peer| peer.standing == Standing::Alive && peer.liveness.is_fresh(now));
        let most = || liveness::in_company(fresh.count(), self.peers.len());
        if self.company == Hears::Most && !most() && !self.is_alone(context, wanted) {
            // Who is cut off loses the others one after the other, in the order in which their last Hellos came. When the
            // first one is missed, the rest isn't company: they haven't been heard since either.
            return Company::Listening;
        }
        if self.is_backed(context, wanted) { Company::Backed } else { Company::Lonely }
    }

    /// Whether the owner of `lb_ip` has died just now and meant to keep it up to then. Somebody whose claims aren't read yet can
    /// have taken it only as we would, because the owner is dead: two who do that at a time go by their ranks as soon as they
    /// hear of each other. So nobody waits for what that one has to say of other addresses.
    fn is_bequeathed(&self, now: Duration, lb_ip: IpAddr, others: &[(&str, Claim)]) -> bool {
        let Some((owner, claim)) = others.iter().max_by_key(|(_, claim)| *claim) else { return false };
        claim.held && claim.kept && self.peers.get(*owner).is_some_and(|peer| peer.has_just_died(lb_ip, now))
    }

    /// Whether enough others are heard to announce an address unasked.
    pub(super) fn is_backed(&self, context: &Context<'_>, wanted: Option<&AnnouncementPolicy>) -> bool {
        self.company != Hears::Few || self.is_alone(context, wanted)
    }

    /// Whether nobody else may have an address, so that there is no one to miss.
    fn is_alone(&self, context: &Context<'_>, wanted: Option<&AnnouncementPolicy>) -> bool {
        wanted.is_some_and(|wanted| wanted.candidates.iter().all(|(node, _)| *node == context.config.node))
    }

    /// How many of those who would take `lb_ip` are more preferred than us or, if they are preferred alike, rank before us.
    fn before(&self, lb_ip: IpAddr, wanted: &AnnouncementPolicy, mine: (Option<u32>, u64)) -> usize {
        let takers = self.peers.iter().filter(|(_, peer)| peer.takes()).filter_map(|(node, peer)| {
            let preference = self.preference(wanted, node, peer)?;
            Some((Some(preference), rules::rank(node, lb_ip)))
        });
        takers.filter(|taker| *taker > mine).count()
    }

    /// How much a peer is preferred here, if it is a candidate on the link by which we hear it.
    fn preference(&self, wanted: &AnnouncementPolicy, node: &str, peer: &Peer) -> Option<u32> {
        wanted.candidates.preference(node, &peer.link)
    }

    /// Why others should rather have an address of ours, if they should: we may not announce it, or are not the most
    /// preferred of all candidates, alive or not.
    fn ceding(
        &self,
        context: &Context<'_>,
        lb_ip: IpAddr,
        wanted: &AnnouncementPolicy,
        mine: Option<u32>,
    ) -> Option<Ceding> {
        match (mine, self.ceding.get(&lb_ip)) {
            (None, Some(Ceding::Since(since))) => Some(Ceding::Since(*since)),
            (None, _) => Some(Ceding::Since(context.now)),
            (Some(mine), _) => (mine < wanted.candidates.most_preferred()).then_some(Ceding::Preferred),
        }
    }

    /// Since when a candidate has been alive that is more preferred than us.
    fn heir(&self, wanted: &AnnouncementPolicy, mine: Option<u32>) -> Option<Duration> {
        let takers = self.peers.iter().filter(|(_, peer)| peer.takes());
        let heirs = takers.filter(|(node, peer)| self.preference(wanted, node, peer) > mine);
        heirs.map(|(_, peer)| peer.since).min()
    }
}
