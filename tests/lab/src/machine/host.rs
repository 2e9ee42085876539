//! Handle on a host of the lab: its addresses, and commands in it.
//!
//! Reads the host's control group and network namespace. A process that it starts joins the namespace and a child of
//! the group. The group itself has no processes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use netns::Namespace;

use crate::machine::cgroup::{Cgroup, CgroupHierarchies};
use crate::machine::network::{SWITCH, namespace_name};
use crate::state::ClusterDir;
use crate::topology::{HostKind, HostSpec, PodCidrs};

/// The child of a host's group for processes that are not daemons.
const COMMANDS: &str = "commands";

/// A handle on a host, valid also after a power-off and a power-on.
#[derive(Clone, Debug)]
pub struct Host {
    cluster_dir: ClusterDir,
    /// `None` for the switch.
    spec: Option<HostSpec>,
    group: Cgroup,
}

impl Host {
    /// The handle on the host of this spec. `None` stands for the switch.
    pub(crate) fn new(cluster_dir: &ClusterDir, spec: Option<HostSpec>) -> Result<Self> {
        let name = spec.as_ref().map_or(SWITCH, |spec| &spec.name);
        let group = CgroupHierarchies::find()?.cluster(&cluster_dir.name).child(name);
        Ok(Self { cluster_dir: cluster_dir.clone(), spec, group })
    }

    /// `n1`, `l1`, `c1`, `cp` or `switch`.
    pub fn name(&self) -> &str {
        self.spec.as_ref().map_or(SWITCH, |spec| &spec.name)
    }

    /// Its IPv4 address on the LAN; the switch has no address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.spec.as_ref().map_or(Ipv4Addr::UNSPECIFIED, HostSpec::v4)
    }

    /// Its IPv6 address on the LAN; the switch has no address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.spec.as_ref().map_or(Ipv6Addr::UNSPECIFIED, HostSpec::v6)
    }

    /// Its MAC address, such as `02:00:00:00:00:11`; the switch has no address.
    pub fn mac(&self) -> Option<String> {
        self.spec.as_ref().map(HostSpec::mac)
    }

    /// Its pod CIDRs, if it is a node.
    pub fn pods(&self) -> Option<PodCidrs> {
        self.spec.as_ref().and_then(HostSpec::pods)
    }

    /// Its directory, with logs in `log/`. It is a node's /var.
    pub fn dir(&self) -> PathBuf {
        self.cluster_dir.host(self.name())
    }

    /// The directory of its daemons' logs.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("log")
    }

    pub(crate) fn cluster_dir(&self) -> &ClusterDir {
        &self.cluster_dir
    }

    pub(crate) fn group(&self) -> &Cgroup {
        &self.group
    }

    pub(crate) fn spec(&self) -> Option<&HostSpec> {
        self.spec.as_ref()
    }

    /// Its network namespace, which exists while it is powered on.
    pub fn netns(&self) -> Result<Namespace> {
        let name = namespace_name(&self.cluster_dir.name, self.name());
        Namespace::open(&name).with_context(|| {
            format!(
                "{} of cluster {:?} is powered off (no network namespace {name})",
                self.name(),
                self.cluster_dir.name
            )
        })
    }

    /// The network namespace of the pod on this host whose processes have `POD_NAME={pod}` in their environment.
    pub fn netns_of_pod(&self, pod: &str) -> Result<Namespace> {
        let variable = format!("POD_NAME={pod}");
        let has_variable = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
        };
        let pid = self.group.pids().into_iter().find(has_variable);
        let pid = pid.with_context(|| format!("no process on {} has {variable} in its environment", self.name()))?;
        Namespace::of_process(pid).with_context(|| format!("enter the network namespace of pod {pod}"))
    }

    /// Runs `work` in its network namespace, on a new thread. Sockets opened there stay usable outside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.netns()?.run(work))
    }

    /// Process 1 of a booted node: the first process in a pid namespace directly below ours.
    pub(crate) fn init(&self) -> Option<i32> {
        let own_levels = namespace_pids(std::process::id() as i32)?.len();
        let is_init = |pids: Vec<i32>| pids.len() == own_levels + 1 && pids.last() == Some(&1);
        self.group.pids().into_iter().find(|pid| namespace_pids(*pid).is_some_and(is_init))
    }

    /// Whether it is powered on: a node with a kubelet has a process 1, any other host a network namespace.
    pub fn is_up(&self) -> bool {
        match self.spec.as_ref().map(|spec| spec.kind) {
            Some(HostKind::Node) => self.init().is_some(),
            _ => self.netns().is_ok(),
        }
    }

    /// A command that runs on this host. It runs in the namespaces of the host: a node has its own mounts and
    /// processes, other hosts only a network. It also runs in the control group of the host, so that faults of the host
    /// affect it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.command_in(&self.group.child(COMMANDS), program)
    }

    #[allow(unsafe_code)]
    pub(crate) fn command_in(&self, group: &Cgroup, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = match self.spec.as_ref().map(|spec| spec.kind) {
            Some(HostKind::Node) => {
                let init = self.init().with_context(|| {
                    format!(
                        "{} is powered off: `lab power-on {} {}`, or see {}/boot.log",
                        self.name(),
                        self.cluster_dir.name,
                        self.name(),
                        self.logs().display()
                    )
                })?;
                let mut command = Command::new("nsenter");
                command.args(["--target", &init.to_string()]);
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]).arg(program);
                command
            }
            _ => self.netns()?.command(program),
        };
        group.create()?;
        let procs = group.open_procs()?;
        // SAFETY: between fork and exec only write(2) on an open descriptor is called; nothing is allocated.
        unsafe {
            command.pre_exec(move || nix::unistd::write(&procs, b"0").map(drop).map_err(io::Error::from));
        }
        Ok(command)
    }

    /// Runs a command line to its end and returns its standard output. The error contains all output.
    pub fn output<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Result<String> {
        let mut words = words.into_iter();
        let program = words.next().context("no command given")?;
        let mut command = self.command(&program)?;
        command.args(words).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("run {command:?} on {}", self.name()))?;
        ensure!(
            output.status.success(),
            "{command:?} on {}: {}\n{}{}",
            self.name(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The pids of a process in all its pid namespaces, the outermost first.
fn namespace_pids(pid: i32) -> Option<Vec<i32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(pids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
}
