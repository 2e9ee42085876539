//! Logs, restarts and resources of Landfall's processes on the nodes.
//!
//! Reads the directories of logs and `/proc`. A kubelet numbers the logs of a container:
//! `landfall-system_POD_UID/node/2.log` is the log after the second restart. The kubelet deletes logs soon after their
//! pod, so the observer reads them while they grow.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::Host;

use crate::breach::Component;
use crate::checks::Fact;
use crate::checks::processes::{ContainerLog, ProcessUsage};
use crate::gather::Shared;

/// Interval between two looks at the logs.
const INTERVAL: Duration = Duration::from_millis(500);

/// Of this many looks at the logs, one also reads resources.
const USAGE_PERIOD: usize = 10;

/// Prefix of the directories of logs of Landfall's pods.
const LOGS: &str = "landfall-system_";

/// Follows the logs on all nodes.
pub struct LogFollower {
    nodes: Vec<Host>,
    logs: Mutex<BTreeMap<PathBuf, FollowedLog>>,
}

struct FollowedLog {
    container: ContainerLog,
    reader: BufReader<File>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl LogFollower {
    pub fn new(nodes: Vec<Host>) -> Self {
        Self { nodes, logs: Mutex::default() }
    }

    /// Adds all new logs and new lines.
    pub fn follow(&self, shared: &Shared) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        for node in &self.nodes {
            for (path, container) in container_logs(node) {
                if logs.contains_key(&path) {
                    continue;
                }
                // The kubelet may have deleted the log since it was listed.
                let Ok(file) = File::open(&path) else { continue };
                shared.add(Fact::Container(container.clone()));
                logs.insert(path, FollowedLog { container, reader: BufReader::new(file), partial: Vec::new() });
            }
        }
        logs.retain(|path, log| {
            // The check precedes the last read: if the file no longer exists, no line is added after that read.
            let exists = path.exists();
            log.read_lines(shared);
            exists
        });
    }

    /// Adds the resources of all processes of Landfall.
    pub fn read_usage(&self, shared: &Shared) {
        for node in &self.nodes {
            for (pid, line) in node.processes("landfall ") {
                let component = match line.split(' ').nth(1) {
                    Some("node") => Component::Agent,
                    Some("controller") => Component::Controller,
                    _ => continue,
                };
                // The process may have ended since it was listed.
                if let Some((resident_kib, threads, open_files)) = read_process(pid) {
                    let node = node.name().to_owned();
                    shared.add(Fact::Usage(ProcessUsage { node, component, resident_kib, threads, open_files }));
                }
            }
        }
    }
}

impl FollowedLog {
    fn read_lines(&mut self, shared: &Shared) {
        while self.reader.read_until(b'\n', &mut self.partial).is_ok_and(|length| length > 0) {
            if self.partial.last() != Some(&b'\n') {
                return;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).trim_end().to_owned();
            let ContainerLog { node, component, .. } = &self.container;
            shared.add(Fact::LogLine { node: node.clone(), component: *component, line });
        }
    }
}

/// Starts a thread that follows logs and resources, and compares all facts regularly. It ends when `shared` is stopped.
pub fn start(shared: Arc<Shared>, follower: Arc<LogFollower>) -> Result<JoinHandle<()>> {
    let run = move || {
        for look in 0.. {
            if shared.is_stopped() {
                return;
            }
            follower.follow(&shared);
            if look % USAGE_PERIOD == 0 {
                follower.read_usage(&shared);
            }
            let now = shared.now();
            shared.checks().compare(now);
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("observer-nodes".to_owned()).spawn(run).context("start a thread")
}

/// The logs of Landfall's containers on a node, also while the node is powered off.
fn container_logs(node: &Host) -> Vec<(PathBuf, ContainerLog)> {
    let mut found = Vec::new();
    let pods = entries(&node.logs().join("pods")).into_iter().filter(|(name, _)| name.starts_with(LOGS));
    for (pod, folder) in pods {
        for (container, folder) in entries(&folder) {
            let Some(component) = Component::from_container(&container) else { continue };
            for (file, path) in entries(&folder) {
                let Some(restarts) = file.strip_suffix(".log").and_then(|number| number.parse().ok()) else { continue };
                let (node, pod) = (node.name().to_owned(), pod.clone());
                found.push((path, ContainerLog { node, component, pod, restarts }));
            }
        }
    }
    found
}

/// Names and paths in a folder, sorted; none if it does not exist.
fn entries(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}

/// KiB of resident memory, threads and open files of a process.
fn read_process(pid: i32) -> Option<(u64, u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches(" kB").trim().parse().ok()
    };
    let open_files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some((field("VmRSS:")?, field("Threads:")?, open_files as u64))
}
