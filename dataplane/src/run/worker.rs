//! One step of the loop: [`Worker::step`]. Touches the kernel through the engine, and through connection tracking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crds::service::Family;
use tokio::sync::watch;

use super::forwarding::Forwarding;
use super::refused::Refused;
use crate::error_chain::error_chain;
use crate::flows::affinity::retired_clients;
use crate::flows::conntrack::forget_flows;
use crate::flows::stale::stale_flows;
use crate::link_name::LinkName;
use crate::metrics::Counters;
use crate::nft::layout::Table;
use crate::nft::{Engine, EngineError, TableOutcome, TableOutcomes, is_needed, removed_ports};
use crate::reply_path::ReplyPath;
use crate::rules::{Frontend, Planner, Ruleset, changed_lb_ips};
use crate::snapshot::{Link, Snapshot};
use netlink::socket::{NetlinkError, Socket};

/// A finished sweep: the deletion of stale flows.
pub(super) struct Sweep {
    conntrack: Socket,
    /// The ruleset for which stale flows were deleted.
    ruleset: Arc<Ruleset>,
    /// The number of deleted flows.
    flows: Result<usize, NetlinkError>,
}

/// The state between steps.
pub(super) struct Worker {
    engine: Engine,
    forwarding: watch::Sender<Forwarding>,
    /// The ruleset in `forwarding`.
    published: Arc<Ruleset>,
    planner: Planner,
    /// The ruleset in the kernel; `None` after a failure.
    programmed: Option<Arc<Ruleset>>,
    /// The ruleset for which retired clients were last forgotten.
    clients_forgotten: Option<Arc<Ruleset>>,
    /// Connection tracking; `None` during a sweep.
    conntrack: Option<Socket>,
    /// The ruleset for which stale flows were last deleted.
    flows_forgotten: Option<Arc<Ruleset>>,
    /// The ports that were removed or changed in the kernel's tables before the first sweep.
    removed_ports: BTreeSet<Frontend>,
    /// The ruleset whose sweep failed. It is tried again at the next check.
    failed_sweep: Option<Arc<Ruleset>>,
    /// The links on which the kernel refused to spread frames.
    refused_links: Refused<BTreeMap<LinkName, Link>>,
    /// The links to whose peers the kernel refused to hand segments on.
    refused_second_chance: Refused<BTreeMap<LinkName, Link>>,
    /// The links whose connections the kernel refused to mark.
    refused_reply_paths: Refused<Arc<BTreeSet<ReplyPath>>>,
    /// The tables for whose family the forwarding sysctl was checked.
    checked_sysctls: BTreeSet<Table>,
    counters: Counters,
}

impl Worker {
    pub(super) fn open(forwarding: watch::Sender<Forwarding>) -> Result<Self, EngineError> {
        let (engine, conntrack) = (Engine::open()?, Socket::open()?);
        Ok(Self {
            engine,
            forwarding,
            published: Arc::default(),
            planner: Planner::default(),
            programmed: None,
            clients_forgotten: None,
            conntrack: Some(conntrack),
            flows_forgotten: None,
            removed_ports: BTreeSet::new(),
            failed_sweep: None,
            refused_links: Refused::default(),
            refused_second_chance: Refused::default(),
            refused_reply_paths: Refused::default(),
            checked_sysctls: BTreeSet::new(),
            counters: Counters::default(),
        })
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Programs the kernel for `snapshot`. With `check`, first checks whether it still has the applied tables.
    ///
    /// Three functions are optional: spreading frames, a second chance for segments, and marking connections. The
    /// kernel may refuse one, because it does not support it, or because a link has vanished. Then all packets are
    /// forwarded without it.
    pub(super) fn step(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), EngineError> {
        let result = self.forward_with_fallbacks(snapshot, check);
        let marks_refused = self.refused_reply_paths.is_some();
        self.forwarding.send_if_modified(|forwarding| {
            std::mem::replace(&mut forwarding.marks_refused, marks_refused) != marks_refused
        });
        self.counters.successful_steps += u64::from(result.is_ok());
        self.counters.failed_steps += u64::from(result.is_err());
        result
    }

    fn forward_with_fallbacks(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), EngineError> {
        let mut tried = Arc::clone(snapshot);
        if self.refused_links.blocks(&snapshot.links, check) {
            tried = without_spreading(&tried);
        }
        if self.refused_second_chance.blocks(&snapshot.links, check) {
            tried = without_second_chance(&tried);
        }
        if self.refused_reply_paths.blocks(&snapshot.reply_paths, check) {
            tried = without_marks(&tried);
        }
        let error = match self.forward_or_without_second_chance(&tried, check) {
            Err(error) if !tried.links.is_empty() && error.is_about_frames() => {
                let cause = error_chain(&error);
                tracing::warn!(
                    %error,
                    cause,
                    "the kernel refuses to spread frames: each node translates the packets it gets"
                );
                self.refused_links = Refused::new(&snapshot.links);
                return self.forward(&without_spreading(&tried), false);
            }
            Err(error) if !tried.reply_paths.is_empty() && error.is_about_packets() => error,
            result => return result,
        };
        // If forwarding succeeds without marks, the marks were the cause of the error.
        self.forward(&without_marks(&tried), false)?;
        let cause = error_chain(&error);
        tracing::warn!(
            %error,
            cause,
            "the kernel refuses to mark connections: replies take the node's own routes, by any link"
        );
        self.refused_reply_paths = Refused::new(&snapshot.reply_paths);
        Ok(())
    }

    /// Forwards. If the kernel refuses the table that translates packets, tries it without a second chance for segments
    /// of unknown connections: a kernel may lack `dup`.
    fn forward_or_without_second_chance(&mut self, tried: &Arc<Snapshot>, check: bool) -> Result<(), EngineError> {
        let result = self.forward(tried, check);
        let has_second_chance = tried.links.values().any(|link| !link.addresses.is_empty());
        let Err(error) = result else { return Ok(()) };
        let is_possible = has_second_chance && error.is_about_packets() && !error.is_about_frames();
        if !is_possible || self.forward(&without_second_chance(tried), false).is_err() {
            return Err(error);
        }
        let cause = error_chain(&error);
        tracing::warn!(
            %error,
            cause,
            "the kernel refuses to hand segments on (nft_dup): connections older than a change of endpoints can break"
        );
        self.refused_second_chance = Refused::new(&tried.links);
        Ok(())
    }

    fn forward(&mut self, snapshot: &Arc<Snapshot>, check: bool) -> Result<(), EngineError> {
        let start = Instant::now();
        let difference = if check { self.check() } else { None };
        let desired = self.planner.plan(snapshot);
        if check {
            self.failed_sweep = None;
        }
        if difference.is_none() && is_same(&self.programmed, &desired) {
            self.forget_clients();
            return Ok(());
        }
        // If this step fails, the next one must apply the ruleset again, even if it is the same.
        self.programmed = None;
        self.withdraw(&desired);
        let outcomes = match self.engine.apply(&desired) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // A failed change leaves the kernel as it was, so the published state stays valid. But a damaged table
                // that was not repaired may forward nothing. Then no lb_ip is published as forwarded.
                if difference.is_some() {
                    self.publish(Arc::default());
                }
                return Err(error);
            }
        };
        log_outcomes(&outcomes, &desired);
        if !outcomes.is_empty() {
            self.counters.durations.observe(start.elapsed());
            self.counters.changed_elements += outcomes.values().map(TableOutcome::size).sum::<u64>();
        }
        self.warn_if_not_forwarding(&desired);
        self.publish(Arc::clone(&desired));
        self.programmed = Some(desired);
        if self.flows_forgotten.is_none() {
            self.removed_ports.extend(removed_ports(outcomes));
        }
        self.forget_clients();
        Ok(())
    }

    /// Checks whether the kernel still has the applied tables. Returns a description of the first difference.
    ///
    /// A failed check does not delay a change: the applied state is known without it.
    fn check(&mut self) -> Option<String> {
        match self.engine.check() {
            Ok(difference) => {
                if let Some(difference) = &difference {
                    tracing::warn!(difference, "another program changed a table of Landfall, repairing it");
                    self.counters.repairs += 1;
                }
                difference
            }
            Err(error) => {
                tracing::warn!(%error, "checking the kernel's tables failed, checking again later");
                None
            }
        }
    }

    /// Forgets the clients that may no longer use their endpoint. After a failure, the next step tries again.
    fn forget_clients(&mut self) {
        let Some(ruleset) = &self.programmed else { return };
        if is_same(&self.clients_forgotten, ruleset) {
            return;
        }
        match self.engine.forget_clients(&retired_clients(self.clients_forgotten.as_deref(), ruleset)) {
            Ok(clients) => {
                self.clients_forgotten = Some(Arc::clone(ruleset));
                if clients > 0 {
                    tracing::debug!(clients, "forgot clients that may no longer use their endpoint");
                }
            }
            Err(error) => {
                let cause = error_chain(&error);
                tracing::warn!(%error, cause, "clients with session affinity may be sent to endpoints that are gone");
            }
        }
    }

    /// The work that deletes stale flows, if there can be any. It owns the socket to connection tracking until
    /// [`finish_sweep`](Self::finish_sweep).
    pub(super) fn start_sweep(&mut self) -> Option<impl FnOnce() -> Sweep + use<>> {
        let ruleset = self.programmed.as_ref()?;
        // Retired clients must be forgotten first. Otherwise the next packet of a deleted flow would go to the same
        // endpoint again.
        let is_ready = is_same(&self.clients_forgotten, ruleset);
        if !is_ready || is_same(&self.flows_forgotten, ruleset) || is_same(&self.failed_sweep, ruleset) {
            return None;
        }
        let mut conntrack = self.conntrack.take()?;
        let (before, ruleset, removed) =
            (self.flows_forgotten.clone(), Arc::clone(ruleset), self.removed_ports.clone());
        Some(move || {
            let flows = forget_flows(&mut conntrack, &stale_flows(before.as_deref(), &ruleset, &removed));
            Sweep { conntrack, ruleset, flows }
        })
    }

    pub(super) fn finish_sweep(&mut self, sweep: Sweep) {
        self.conntrack = Some(sweep.conntrack);
        match sweep.flows {
            Ok(flows) => {
                self.flows_forgotten = Some(sweep.ruleset);
                self.removed_ports = BTreeSet::new();
                if flows > 0 {
                    tracing::debug!(flows, "deleted UDP flows without an endpoint or an allowed client");
                }
            }
            Err(error) => {
                let cause = error_chain(&error);
                tracing::warn!(%error, cause, "UDP clients may wait for endpoints that are gone");
                self.failed_sweep = Some(sweep.ruleset);
            }
        }
    }

    /// Withdraws the lb_ips that the next change removes, before that change: an lb_ip that is not forwarded must not
    /// be announced.
    fn withdraw(&mut self, desired: &Ruleset) {
        let changed = changed_lb_ips(&self.published, desired);
        let removed = changed.filter(|(_, before, after)| before.is_some() && after.is_none());
        let removed: Vec<IpAddr> = removed.map(|(address, ..)| address).collect();
        if removed.is_empty() {
            return;
        }
        let published = Arc::make_mut(&mut self.published);
        self.forwarding.send_modify(|forwarding| {
            for address in removed {
                published.set(address, None);
                forwarding.set(address, None);
            }
        });
    }

    /// Publishes the state of the kernel. Skips lb_ips that have not changed.
    fn publish(&mut self, ruleset: Arc<Ruleset>) {
        self.forwarding.send_if_modified(|forwarding| {
            let mut is_changed = false;
            for (address, _, after) in changed_lb_ips(&self.published, &ruleset) {
                is_changed |= forwarding.set(address, after.map(|lb_ip| &**lb_ip));
            }
            is_changed
        });
        self.published = ruleset;
    }

    /// Warns if the node does not forward packets at all. The operator of the cluster network decides that, so Landfall
    /// does not change the sysctl.
    fn warn_if_not_forwarding(&mut self, desired: &Ruleset) {
        for table in Table::ALL {
            let Some(family) = table.family().filter(|_| is_needed(desired, table)) else { continue };
            if !self.checked_sysctls.insert(table) {
                continue;
            }
            let sysctl = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            match std::fs::read_to_string(format!("/proc/sys/{sysctl}")) {
                Ok(value) if value.trim() == "0" => tracing::warn!(
                    %family,
                    sysctl,
                    "this node does not forward packets, so they do not reach endpoints: set this sysctl to 1 \
                     (kube-proxy or the network plugin usually does)"
                ),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, sysctl, "cannot read whether this node forwards packets"),
            }
        }
    }
}

fn is_same(known: &Option<Arc<Ruleset>>, ruleset: &Arc<Ruleset>) -> bool {
    known.as_ref().is_some_and(|known| Arc::ptr_eq(known, ruleset))
}

/// The snapshot without connections to mark.
fn without_marks(snapshot: &Snapshot) -> Arc<Snapshot> {
    Arc::new(Snapshot { reply_paths: Arc::default(), ..snapshot.clone() })
}

/// The snapshot without addresses to hand segments on to.
fn without_second_chance(snapshot: &Snapshot) -> Arc<Snapshot> {
    let mut links = snapshot.links.clone();
    links.values_mut().for_each(|link| link.addresses.clear());
    Arc::new(Snapshot { links, ..snapshot.clone() })
}

/// The snapshot without links to spread frames on.
fn without_spreading(snapshot: &Snapshot) -> Arc<Snapshot> {
    Arc::new(Snapshot { links: BTreeMap::new(), ..snapshot.clone() })
}

fn log_outcomes(outcomes: &TableOutcomes, desired: &Ruleset) {
    let addresses = desired.addresses.len();
    for (table, outcome) in outcomes {
        match outcome {
            TableOutcome::Changed(changes) => {
                tracing::debug!(%table, addresses, changes = changes.len(), "changed the table");
            }
            TableOutcome::Created(elements) => tracing::info!(%table, addresses, elements, "created the table"),
            TableOutcome::Removed(_) => tracing::info!(%table, "removed the table: it has nothing to do"),
            TableOutcome::Replaced { because, elements } => {
                tracing::warn!(%table, addresses, elements, because, "replaced the table");
            }
        }
    }
}
