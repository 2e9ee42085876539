//! A host of the lab as a handle: who it is, and how to run something in it.
//!
//! Reads the host's control group and network namespace; what it starts joins both.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use netns::Namespace;

use crate::cgroup::{Group, Hierarchies};
use crate::network::{SWITCH, namespace_name};
use crate::state::Place;
use crate::topology::{Kind, PodCidrs, Seat};

/// A handle on a host. It stays valid over a power-off and a power-on.
#[derive(Clone, Debug)]
pub struct Host {
    place: Place,
    /// None for the switch, which has no seat at itself.
    seat: Option<Seat>,
    group: Group,
}

impl Host {
    /// The handle on the host of this seat; the switch without one.
    pub(crate) fn new(place: &Place, seat: Option<Seat>) -> Result<Self> {
        let name = seat.as_ref().map_or(SWITCH, |seat| &seat.name);
        let group = Hierarchies::find()?.cluster(&place.name).child(name);
        Ok(Self { place: place.clone(), seat, group })
    }

    /// `n1`, `l1`, `c1`, `cp` or `switch`.
    pub fn name(&self) -> &str {
        self.seat.as_ref().map_or(SWITCH, |seat| &seat.name)
    }

    /// Its IPv4 address on the LAN. The switch has none.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.seat.as_ref().map_or(Ipv4Addr::UNSPECIFIED, Seat::v4)
    }

    /// Its IPv6 address on the LAN. The switch has none.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.seat.as_ref().map_or(Ipv6Addr::UNSPECIFIED, Seat::v6)
    }

    /// Its MAC address, `02:00:00:00:00:11`. The switch has none.
    pub fn mac(&self) -> Option<String> {
        self.seat.as_ref().map(Seat::mac)
    }

    /// The addresses of its pods, if it is a node.
    pub fn pods(&self) -> Option<PodCidrs> {
        self.seat.as_ref().and_then(Seat::pods)
    }

    /// Where its files are: logs in `log/`; a node's is its /var.
    pub fn dir(&self) -> PathBuf {
        self.place.host(self.name())
    }

    /// Where its daemons' logs are.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("log")
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    pub(crate) fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// Its network namespace. There is none while it is powered off.
    pub fn netns(&self) -> Result<Namespace> {
        let name = namespace_name(&self.place.name, self.name());
        Namespace::open(&name).with_context(|| {
            format!("{} of cluster {:?} is powered off (no network namespace {name})", self.name(), self.place.name)
        })
    }

    /// The network namespace of a pod on it whose `POD_NAME` is `pod`.
    pub fn netns_of_pod(&self, pod: &str) -> Result<Namespace> {
        let variable = format!("POD_NAME={pod}");
        let is_its = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
        };
        let pid = self.group.pids().into_iter().find(is_its);
        let pid = pid.with_context(|| format!("no process on {} says that it is pod {pod}", self.name()))?;
        Namespace::of_process(pid).with_context(|| format!("enter the network namespace of pod {pod}"))
    }

    /// Runs `work` in its network namespace, on a thread of its own. Sockets opened there stay usable outside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.netns()?.run(work))
    }

    /// Process 1 of a booted node: the one that is first in a pid namespace directly below ours.
    pub(crate) fn init(&self) -> Option<i32> {
        let level = |pid: i32| -> Option<Vec<i32>> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            Some(ids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
        };
        let own = level(std::process::id() as i32)?.len();
        self.group
            .pids()
            .into_iter()
            .find(|pid| level(*pid).is_some_and(|ids| ids.len() == own + 1 && ids.last() == Some(&1)))
    }

    /// Whether its operating system runs: for a node with a kubelet, its process 1; for the others, their namespace.
    pub fn is_up(&self) -> bool {
        match self.seat.as_ref().map(|seat| seat.kind) {
            Some(Kind::Node) => self.init().is_some(),
            _ => self.netns().is_ok(),
        }
    }

    /// A command that will run on this host: in its namespaces (a node has its own mounts and processes, the others only
    /// a network) and in its control group, so that what happens to the host happens to the command.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.command_in(&self.group, program)
    }

    #[allow(unsafe_code)]
    pub(crate) fn command_in(&self, group: &Group, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = match self.seat.as_ref().map(|seat| seat.kind) {
            Some(Kind::Node) => {
                let init = self.init().with_context(|| {
                    format!(
                        "{} is powered off: `lab power-on {} {}`, or see {}/boot.log",
                        self.name(),
                        self.place.name,
                        self.name(),
                        self.logs().display()
                    )
                })?;
                let mut command = Command::new("nsenter");
                command.args(["--target", &init.to_string()]);
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"]).arg(program);
                command
            }
            _ => self.netns()?.command(program),
        };
        group.make()?;
        let door = group.door()?;
        // SAFETY: between fork and exec only write(2) on an open descriptor is called; nothing is allocated.
        unsafe {
            command.pre_exec(move || nix::unistd::write(&door, b"0").map(drop).map_err(io::Error::from));
        }
        Ok(command)
    }

    /// Runs a command line to its end and returns what it printed. The error has what it said.
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
