//! All checks over all facts, and the faults that are declared. Facts and times → breaches. Pure.
//!
//! | file | invariants |
//! |---|---|
//! | [`objects`] | I1, I2, I5, I13: Services and LoadBalancerIPs |
//! | [`wire`] | I5, I6, I8, I16: answers and unsolicited announcements on the LAN |
//! | [`kernel`] | I13: leftovers in the kernel of a node |
//! | [`idle`] | I14: writes to the API server |
//! | [`processes`] | I14, I15: resources, restarts, logs |
//! | [`lasting`] | states that are a breach only if they last |

pub mod idle;
pub mod kernel;
pub mod lasting;
pub mod objects;
pub mod processes;
pub mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crds::{MacAddr, Record};

use crate::breach::{Breach, Component, Invariant, Subject};
use crate::checks::lasting::Finding;
use crate::checks::objects::{Objects, ServiceFacts};
use crate::checks::processes::{ContainerLog, ProcessUsage, Restarts, find_problem};
use crate::checks::wire::{Lan, RecordView, Wire};
use crate::fault::{DeclaredFaults, Fault};
use crate::frame::Statement;

/// A disagreement between sources is a breach if it lasts for this time. A deleted Service must be gone after 5 s, and
/// a status follows the wire much sooner.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Requests for an address continue for this long after the deletion of its record.
const AFTERMATH: Duration = Duration::from_secs(15);

/// One observed fact.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A host states on the LAN that it has an address.
    Statement(Statement),
    /// The observer was late by this time.
    Delay(Duration),
    /// The log of a container exists.
    Container(ContainerLog),
    /// A line of the log of a container.
    LogLine {
        node: String,
        component: Component,
        line: String,
    },
    /// Resources of a process.
    Usage(ProcessUsage),
    Service(ServiceFacts),
    ServiceDeleted(String),
    /// All Services.
    Services(Vec<ServiceFacts>),
    Record(Box<Record>),
    RecordDeleted(IpAddr),
    /// All records.
    Records(Vec<Record>),
}

/// The state of all checks.
#[derive(Debug, Default)]
pub struct Checks {
    objects: Objects,
    wire: Wire,
    restarts: Restarts,
    /// Bounds that a process has exceeded already.
    exceeded: BTreeSet<(Subject, String)>,
    faults: DeclaredFaults,
    breaches: Vec<Breach>,
}

impl Checks {
    pub fn new(lan: Lan) -> Self {
        Self { wire: Wire::new(lan), ..Self::default() }
    }

    /// Permits the breaches of a fault from now on.
    pub fn declare(&mut self, now: Duration, fault: Fault) {
        self.faults.declare(now, fault);
    }

    /// Forgets declared faults and reported pairs, at the end of a scene. The next scene may use the same addresses.
    pub fn end_faults(&mut self) {
        self.faults.clear();
        self.wire.forget_reported_pairs();
    }

    /// Adds the MAC address of a node's new network card.
    pub fn add_mac(&mut self, node: &str, mac: MacAddr) {
        self.wire.add_mac(node, mac);
    }

    /// Adds a fact.
    pub fn add(&mut self, now: Duration, fact: Fact) {
        let found: Vec<Finding> = match fact {
            Fact::Statement(statement) => self.wire.add_statement(now, statement).into_iter().collect(),
            Fact::Delay(delay) => {
                self.wire.add_delay(now, delay);
                Vec::new()
            }
            Fact::Container(log) => {
                let finding =
                    (Invariant::I15, Subject::Process(log.component, log.node.clone()), "restarted".to_owned());
                vec![finding; self.restarts.add(&log) as usize]
            }
            Fact::LogLine { node, component, line } => {
                let problem = find_problem(&line);
                problem
                    .into_iter()
                    .map(|text| (Invariant::I15, Subject::Process(component, node.clone()), text))
                    .collect()
            }
            Fact::Usage(usage) => {
                let bounds = usage.exceeded_bounds().into_iter().map(|text| (usage.subject(), text));
                let new = bounds.filter(|bound| self.exceeded.insert(bound.clone()));
                new.map(|(subject, text)| (Invariant::I14, subject, text)).collect()
            }
            Fact::Service(service) => self.objects.add_service(service),
            Fact::ServiceDeleted(uid) => {
                self.objects.delete_service(&uid);
                Vec::new()
            }
            Fact::Services(list) => self.objects.add_services(list),
            Fact::Record(record) => self.objects.add_record(*record),
            Fact::RecordDeleted(address) => {
                self.objects.delete_record(now, address);
                Vec::new()
            }
            Fact::Records(list) => self.objects.add_records(now, list),
        };
        self.report(now, found);
    }

    /// Compares facts of different sources with each other. Returns whether each present disagreement has been
    /// reported. If so, none of them can become a breach later.
    pub fn compare(&mut self, now: Duration) -> bool {
        let mut found = self.objects.compare(now, SETTLE_LIMIT);
        let records = RecordView { current: self.objects.records(), deleted: self.objects.deleted_records() };
        found.extend(self.wire.compare(now, SETTLE_LIMIT, &records));
        self.report(now, found);
        self.objects.mismatches.is_settled() && self.wire.mismatches.is_settled()
    }

    /// Adds breaches that need no further comparison, unless a fault permits them.
    pub fn report(&mut self, now: Duration, found: Vec<Finding>) {
        for (invariant, subject, text) in found {
            let breach = Breach { at: now, invariant, subject, text };
            if !self.faults.permit(&breach) {
                self.breaches.push(breach);
            }
        }
    }

    /// Returns the breaches since the last call.
    pub fn take_breaches(&mut self) -> Vec<Breach> {
        std::mem::take(&mut self.breaches)
    }

    /// The addresses to request on the LAN: those with a record, those whose record was deleted a moment ago, and those
    /// that a Service shows.
    pub fn addresses_to_request(&self, now: Duration) -> BTreeSet<IpAddr> {
        let deleted = self.objects.deleted_records().iter();
        let recent = deleted.filter(|(_, at)| now.saturating_sub(**at) < AFTERMATH).map(|(address, _)| *address);
        self.objects.records().keys().copied().chain(recent).chain(self.objects.shown_addresses()).collect()
    }

    /// Two sets: the addresses that no longer have a record, and the addresses in use, which have a record or belong to
    /// a host.
    pub fn gone_and_used_addresses(&self) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let gone = self.objects.deleted_records().keys().copied().collect();
        (gone, self.objects.records().keys().chain(self.wire.own_addresses()).copied().collect())
    }

    /// Numbers of answers and of unsolicited announcements so far. They show that the observer receives frames.
    pub fn frame_counts(&self) -> [u64; 2] {
        self.wire.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breach::render;

    #[test]
    fn breaches_of_all_sources_are_reported_unless_declared() {
        let agent = |restarts| {
            let (node, pod) = ("n2".to_owned(), "a".to_owned());
            Fact::Container(ContainerLog { node, component: Component::Agent, pod, restarts })
        };
        let line = |text: &str| {
            let (node, line) = ("n2".to_owned(), format!("TIME stderr F {text}"));
            Fact::LogLine { node, component: Component::Controller, line }
        };
        let usage = |threads| {
            let (node, component) = ("n1".to_owned(), Component::Agent);
            Fact::Usage(ProcessUsage { node, component, resident_kib: 1, threads, open_files: 1 })
        };
        let crash_loop = "I15: agent on n2 restarted 3 times (undeclared), first at 0.0 s";
        let panic = "I15: controller on n2 panicked: panicked at x (undeclared), first at 0.0 s";
        let once = || Some(Fault::restarts(Component::Agent, "n2", 1));
        for (case, fault, facts, expected) in [
            ("a start", None, vec![agent(0)], ""),
            ("a crash loop", None, vec![agent(0), agent(1), agent(3)], crash_loop),
            ("a declared restart", once(), vec![agent(0), agent(1)], ""),
            ("one restart too many", once(), vec![agent(2)], "I15: agent on n2 restarted (undeclared), first at 0.0 s"),
            ("a panic", None, vec![line("thread 'x' panicked at x")], panic),
            ("a warning", None, vec![line("2026 WARN x: y")], ""),
            (
                "threads",
                None,
                vec![usage(99), usage(98)],
                "I14: agent on n1 has more than 16 threads (undeclared), first at 0.0 s",
            ),
        ] {
            let mut checks = Checks::default();
            if let Some(fault) = fault {
                checks.declare(Duration::ZERO, fault);
            }
            for fact in facts {
                checks.add(Duration::ZERO, fact);
            }
            assert_eq!(render(&checks.take_breaches()), expected, "{case}");
            assert_eq!(checks.take_breaches(), [], "{case}: once");
        }
    }
}
