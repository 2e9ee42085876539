//! Faults that a scene declares, and the breaches that they permit. Pure.

use std::net::IpAddr;
use std::time::Duration;

use crate::breach::{Breach, Component, Invariant, Subject};

/// A fault that a scene causes on purpose, or a known defect of Landfall. It permits breaches of its own subjects, and
/// only after its declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    permits: Vec<Permit>,
}

/// Permits breaches of one invariant by one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Permit {
    invariant: Invariant,
    subject: Subject,
    /// The number of breaches that it still permits; `None` is any number.
    remaining: Option<u32>,
}

impl Fault {
    fn new(invariant: Invariant, subject: Subject, remaining: Option<u32>) -> Self {
        Self { permits: vec![Permit { invariant, subject, remaining }] }
    }

    /// The containers of a component on a node restart, together at most this many times.
    pub fn restarts(component: Component, node: &str, at_most: u32) -> Self {
        Self::new(Invariant::I15, Subject::Process(component, node.to_owned()), Some(at_most))
    }

    /// A node loses its power, and may start again. Its agent and both controllers can have run there.
    pub fn power_off(node: &str) -> Self {
        let restarts = [Self::restarts(Component::Agent, node, 1), Self::restarts(Component::Controller, node, 2)];
        Self { permits: restarts.into_iter().flat_map(|fault| fault.permits).collect() }
    }

    /// A host outside of the cluster uses a load-balancer address.
    pub fn conflict(address: IpAddr) -> Self {
        let subject = Subject::Address(address);
        let permit = |invariant| Permit { invariant, subject: subject.clone(), remaining: None };
        Self { permits: [Invariant::I6, Invariant::I8].map(permit).to_vec() }
    }

    /// The agents cannot write the status of an address in time, or the observer cannot read it.
    pub fn late_status(address: IpAddr) -> Self {
        let subject = Subject::Address(address);
        let permit = |invariant| Permit { invariant, subject: subject.clone(), remaining: None };
        Self { permits: [Invariant::I8, Invariant::I16].map(permit).to_vec() }
    }

    /// A Service (`namespace/name`) loses its address once, although its user does not request it.
    pub fn address_change(service: &str) -> Self {
        Self::new(Invariant::I2, Subject::Service(service.to_owned()), Some(1))
    }

    /// All records are deleted together with their definition. Until Landfall is installed again, a Service
    /// (`namespace/name`) shows an address without a record.
    pub fn lost_records(service: &str) -> Self {
        Self::new(Invariant::I5, Subject::Service(service.to_owned()), None)
    }

    /// Another writer changes the status of a Service (`namespace/name`).
    pub fn forged_status(service: &str) -> Self {
        let subject = Subject::Service(service.to_owned());
        let permit = |invariant| Permit { invariant, subject: subject.clone(), remaining: None };
        Self { permits: [Invariant::I1, Invariant::I2, Invariant::I5].map(permit).to_vec() }
    }

    /// A defect of Landfall that is not mended yet. The reason is for readers of the scene.
    pub fn known_defect(invariant: Invariant, subject: Subject, _reason: &'static str) -> Self {
        Self::new(invariant, subject, None)
    }
}

/// The declared faults, and when each was declared.
#[derive(Clone, Debug, Default)]
pub struct DeclaredFaults {
    permits: Vec<(Duration, Permit)>,
}

impl DeclaredFaults {
    pub fn declare(&mut self, at: Duration, fault: Fault) {
        self.permits.extend(fault.permits.into_iter().map(|permit| (at, permit)));
    }

    /// Forgets all faults, at the end of a scene.
    pub fn clear(&mut self) {
        self.permits.clear();
    }

    /// Whether a fault permits this breach. Each call uses up one permitted breach.
    pub fn permit(&mut self, breach: &Breach) -> bool {
        let permits = self.permits.iter_mut().filter(|(at, _)| *at <= breach.at).map(|(_, permit)| permit);
        let mut permits =
            permits.filter(|permit| (permit.invariant, &permit.subject) == (breach.invariant, &breach.subject));
        let Some(permit) = permits.find(|permit| permit.remaining != Some(0)) else { return false };
        permit.remaining = permit.remaining.map(|remaining| remaining - 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restart(node: &str, seconds: u64) -> Breach {
        let at = Duration::from_secs(seconds);
        Breach { at, invariant: Invariant::I15, subject: Subject::agent(node), text: "restarted".to_owned() }
    }

    #[test]
    fn a_fault_permits_only_its_own_breaches() {
        let once = || Fault::restarts(Component::Agent, "n1", 1);
        let defect = || Fault::known_defect(Invariant::I15, Subject::agent("n1"), "a row of this table");
        let other_invariant = || Fault::known_defect(Invariant::I14, Subject::agent("n1"), "a row of this table");
        let controller = || Fault::restarts(Component::Controller, "n1", 9);
        for (case, fault, breaches, expected) in [
            ("one restart", once(), vec![restart("n1", 7)], vec![true]),
            ("a second restart", once(), vec![restart("n1", 7), restart("n1", 8)], vec![true, false]),
            ("another node", once(), vec![restart("n2", 7)], vec![false]),
            ("before the declaration", once(), vec![restart("n1", 4)], vec![false]),
            ("another component", controller(), vec![restart("n1", 7)], vec![false]),
            ("a power-off", Fault::power_off("n1"), vec![restart("n1", 7), restart("n1", 8)], vec![true, false]),
            ("a defect", defect(), vec![restart("n1", 7), restart("n1", 8)], vec![true, true]),
            ("another invariant", other_invariant(), vec![restart("n1", 7)], vec![false]),
        ] {
            let mut faults = DeclaredFaults::default();
            faults.declare(Duration::from_secs(5), fault);
            let permitted: Vec<bool> = breaches.iter().map(|breach| faults.permit(breach)).collect();
            assert_eq!(permitted, expected, "{case}");
            faults.clear();
            assert!(!faults.permit(&restart("n1", 9)), "{case}: a fault ends with its scene");
        }
    }
}
