//! Breaches of invariants: which invariant, of which subject, and when. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// An invariant of Landfall that the observer checks. `docs/dev/testing.md` lists them with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// No address is held by two Services, unless they share it by rule.
    I1,
    /// An assigned address changes only if the user requests it.
    I2,
    /// Nothing is shown, announced or programmed without a LoadBalancerIP.
    I5,
    /// One MAC address answers for an address. During a move there are two for at most 250 ms.
    I6,
    /// The last unsolicited announcement on the LAN comes from the current announcer.
    I8,
    /// A deleted Service and a removed Landfall leave nothing behind.
    I13,
    /// An idle cluster has no API writes, and Landfall's processes stay small.
    I14,
    /// No panic, no error in the log, no restart.
    I15,
    /// The status names the node that answers.
    I16,
}

impl Invariant {
    pub const ALL: [Self; 9] =
        [Self::I1, Self::I2, Self::I5, Self::I6, Self::I8, Self::I13, Self::I14, Self::I15, Self::I16];
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A kind of process of Landfall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Agent,
    Controller,
}

impl Component {
    /// The component in a container of this name.
    pub fn from_container(name: &str) -> Option<Self> {
        match name {
            "node" => Some(Self::Agent),
            "controller" => Some(Self::Controller),
            _ => None,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
        })
    }
}

/// The subject of a breach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Address(IpAddr),
    /// `namespace/name`.
    Service(String),
    Process(Component, String),
    Node(String),
    Cluster,
}

impl Subject {
    /// The agent on a node.
    pub fn agent(node: &str) -> Self {
        Self::Process(Component::Agent, node.to_owned())
    }

    /// The controllers on a node.
    pub fn controller(node: &str) -> Self {
        Self::Process(Component::Controller, node.to_owned())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Process(component, node) => write!(f, "{component} on {node}"),
            Self::Node(node) => f.write_str(node),
            Self::Cluster => f.write_str("the cluster"),
        }
    }
}

/// One breach. `text` continues the sentence that begins with the subject: `restarted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    pub at: Duration,
    pub invariant: Invariant,
    pub subject: Subject,
    pub text: String,
}

/// All breaches since the last check, as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBreaches(pub Vec<Breach>);

impl fmt::Display for FoundBreaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the observer found breaches of invariants:\n{}", render(&self.0))
    }
}

impl std::error::Error for FoundBreaches {}

/// The lines of a report. Equal breaches share one: `I15: agent on n2 restarted 3 times (undeclared), first at 7.0 s`.
pub fn render(breaches: &[Breach]) -> String {
    let mut groups: BTreeMap<(Invariant, &Subject, &str), (usize, Duration)> = BTreeMap::new();
    for Breach { at, invariant, subject, text } in breaches {
        let (count, first) = groups.entry((*invariant, subject, text)).or_insert((0, *at));
        *count += 1;
        *first = (*first).min(*at);
    }
    let lines = groups.into_iter().map(|((invariant, subject, text), (count, first))| {
        let times = if count == 1 { String::new() } else { format!(" {count} times") };
        format!("{invariant}: {subject} {text}{times} (undeclared), first at {:.1} s", first.as_secs_f64())
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_equal_breaches() {
        let breach = |seconds, invariant, subject: &Subject, text: &str| Breach {
            at: Duration::from_secs(seconds),
            invariant,
            subject: subject.clone(),
            text: text.to_owned(),
        };
        let (agent, service) = (Subject::agent("n2"), Subject::Service("default/web".to_owned()));
        let breaches = [
            breach(7, Invariant::I15, &agent, "restarted"),
            breach(9, Invariant::I2, &service, "lost 192.0.2.200"),
            breach(8, Invariant::I15, &agent, "restarted"),
            breach(9, Invariant::I15, &agent, "restarted"),
        ];
        assert_eq!(
            render(&breaches),
            "I2: Service default/web lost 192.0.2.200 (undeclared), first at 9.0 s\n\
             I15: agent on n2 restarted 3 times (undeclared), first at 7.0 s"
        );
        assert_eq!(render(&[]), "");
    }
}
