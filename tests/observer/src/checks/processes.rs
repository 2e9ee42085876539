//! Containers, logs and resources of Landfall's processes: I15, and the second half of I14. Pure.

use std::collections::BTreeMap;

use crate::breach::{Component, Subject};

/// A container of a pod on a node. The kubelet names each of its log files after the number of restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLog {
    pub node: String,
    pub component: Component,
    /// The pod's namespace, name and UID.
    pub pod: String,
    pub restarts: u32,
}

/// The restarts of each container.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    containers: BTreeMap<(String, Component, String), u32>,
}

impl Restarts {
    /// Adds the log of a container. Returns the number of new restarts.
    pub fn add(&mut self, log: &ContainerLog) -> u32 {
        let key = (log.node.clone(), log.component, log.pod.clone());
        let before = self.containers.entry(key).or_insert(0);
        let new = log.restarts.saturating_sub(*before);
        *before += new;
        new
    }
}

/// The longest quotation of a log line, in characters.
const MAX_QUOTE: usize = 200;

/// The problem in a line of a container's log (CRI: time, stream, tag, text), if there is one: a panic, or the level
/// ERROR. The result lacks the time of the line, so that two lines with one problem give equal texts.
pub fn find_problem(line: &str) -> Option<String> {
    let text = line.splitn(4, ' ').nth(3).unwrap_or(line);
    if let Some(start) = text.find("panicked") {
        return Some(format!("panicked: {}", clamp(&text[start..])));
    }
    let mut words = text.split_whitespace().skip(1);
    (words.next() == Some("ERROR")).then(|| format!("logged an error: {}", clamp(&words.collect::<Vec<_>>().join(" "))))
}

fn clamp(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

/// The resources of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessUsage {
    pub node: String,
    pub component: Component,
    pub resident_kib: u64,
    pub threads: u64,
    pub open_files: u64,
}

/// The bounds of a process in a small cluster, about twice the greatest values of today's scenes.
const MAX_RESIDENT_KIB: u64 = 32 * 1024;
const MAX_THREADS: u64 = 16;
const MAX_OPEN_FILES: u64 = 64;

impl ProcessUsage {
    /// The exceeded bounds, without the exact value, so that a report has one line for each bound.
    pub fn exceeded_bounds(&self) -> Vec<String> {
        let bounds = [
            ("KiB of resident memory", self.resident_kib, MAX_RESIDENT_KIB),
            ("threads", self.threads, MAX_THREADS),
            ("open files", self.open_files, MAX_OPEN_FILES),
        ];
        let exceeded = bounds.into_iter().filter(|(_, value, bound)| value > bound);
        exceeded.map(|(what, _, bound)| format!("has more than {bound} {what}")).collect()
    }

    pub fn subject(&self) -> Subject {
        Subject::Process(self.component, self.node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_restart_of_a_container_counts_once() {
        let mut restarts = Restarts::default();
        let mut add = |pod: &str, number| {
            let (node, component, pod) = ("n1".to_owned(), Component::Agent, pod.to_owned());
            restarts.add(&ContainerLog { node, component, pod, restarts: number })
        };
        for (case, pod, number, expected) in [
            ("the first start", "a", 0, 0),
            ("a restart", "a", 1, 1),
            ("the same log again", "a", 1, 0),
            ("the former log", "a", 0, 0),
            ("two restarts at once", "a", 3, 2),
            ("a new pod", "b", 0, 0),
            ("a pod that restarted before it was observed", "c", 2, 2),
        ] {
            assert_eq!(add(pod, number), expected, "{case}");
        }
    }

    #[test]
    fn panics_and_errors_are_found_in_logs() {
        const TIME: &str = "2026-01-01T00:00:00.1Z stderr F";
        for (text, expected) in [
            ("2026-01-01T00:00:00Z  INFO agent::run: starting", None),
            ("2026-01-01T00:00:00Z  WARN agent::report: an ERROR in a message", None),
            (
                "2026-01-01T00:00:00Z ERROR dataplane::run: programming the kernel failed",
                Some("logged an error: dataplane::run: programming the kernel failed"),
            ),
            (
                "thread 'wire' panicked at speaker/src/machine.rs:7:5:",
                Some("panicked: panicked at speaker/src/machine.rs:7:5:"),
            ),
            ("Error: a task of the agent", None),
        ] {
            assert_eq!(find_problem(&format!("{TIME} {text}")).as_deref(), expected, "{text}");
        }
        assert_eq!(find_problem(""), None);
    }

    #[test]
    fn each_exceeded_bound_is_reported() {
        let usage = |resident_kib, threads, open_files| ProcessUsage {
            node: "n1".to_owned(),
            component: Component::Controller,
            resident_kib,
            threads,
            open_files,
        };
        for (usage, expected) in [
            (usage(MAX_RESIDENT_KIB, MAX_THREADS, MAX_OPEN_FILES), &[][..]),
            (usage(MAX_RESIDENT_KIB + 1, 1, 1), &["has more than 32768 KiB of resident memory"]),
            (
                usage(1, MAX_THREADS + 1, MAX_OPEN_FILES + 1),
                &["has more than 16 threads", "has more than 64 open files"],
            ),
        ] {
            assert_eq!(usage.exceeded_bounds(), expected, "{usage:?}");
        }
    }
}
