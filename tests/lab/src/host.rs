//! A host of the lab as a handle: run something in it, ask what it is doing, signal its processes.
//!
//! Touches processes in the host's control group only: those the lab started there and their descendants.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{Group, Hierarchies};
use crate::network::{SWITCH, namespace_name};
use crate::state::Place;
use crate::topology::{Kind, PodCidrs, Seat};

/// What daemons get for an environment, besides what they are given: none of the caller's proxies and kubeconfigs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    fn command_in(&self, group: &Group, program: impl AsRef<OsStr>) -> Result<Command> {
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

    /// Starts a daemon on this host under a name; it outlives the caller, and its output goes to `log/NAME.log`.
    /// Only the program, the arguments and the variables set in `what` count: it does not inherit the environment.
    pub fn spawn(&self, name: &str, what: &Command) -> Result<Process> {
        self.spawn_with(name, what, None)
    }

    /// As [`Host::spawn`], with something for standard input.
    pub(crate) fn spawn_with(&self, name: &str, what: &Command, stdin: Option<OwnedFd>) -> Result<Process> {
        let group = self.group.child(name);
        ensure!(!group.is_populated(), "{name} already runs on {}", self.name());
        let program = Path::new(what.get_program());
        ensure!(
            program.is_absolute() || program.components().count() == 1,
            "start {name} on {}: a daemon starts in /, so {} must be absolute or found in {PATH}",
            self.name(),
            program.display()
        );
        fs::create_dir_all(self.logs())?;
        let path = self.logs().join(format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(&path)?;
        let mut command = self.command_in(&group, "setsid")?;
        command.arg("--fork").arg(what.get_program()).args(what.get_args());
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        for (key, value) in what.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.current_dir("/").stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(log.try_clone()?).stderr(log);
        let status = command.status().with_context(|| format!("start {name} on {}", self.name()))?;
        ensure!(status.success(), "starting {name} on {} failed ({status}): see {}", self.name(), path.display());
        Ok(Process { host: self.clone(), name: name.to_owned(), group, log: path })
    }

    /// The handle on a daemon that was started under this name, in whatever process.
    pub fn process(&self, name: &str) -> Process {
        Process {
            host: self.clone(),
            name: name.to_owned(),
            group: self.group.child(name),
            log: self.logs().join(format!("{name}.log")),
        }
    }

    /// The names of the daemons that run on it, sorted.
    pub fn daemons(&self) -> Vec<String> {
        let names = self.group.children().into_iter();
        names.filter(|name| self.group.child(name).is_populated()).collect()
    }

    /// Every process of the host whose command line has `pattern` in it, containers' included: (pid here, command line).
    pub fn processes(&self, pattern: &str) -> Vec<(i32, String)> {
        let mut found: Vec<(i32, String)> = Vec::new();
        for pid in self.group.pids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let line = words.join(" ").trim_end().to_owned();
            if !line.is_empty() && line.contains(pattern) {
                found.push((pid, line));
            }
        }
        found.sort();
        found
    }

    /// Sends a signal to every process of the host whose command line has `pattern` in it. Returns whom it reached; it
    /// is an error if there is none.
    pub fn signal(&self, pattern: &str, signal: Signal) -> Result<Vec<(i32, String)>> {
        let found = self.processes(pattern);
        if found.is_empty() {
            let all: Vec<String> = self.processes("").into_iter().map(|(_, line)| line).collect();
            bail!("no process on {} has {pattern:?} in its command line; there are:\n{}", self.name(), all.join("\n"));
        }
        for (pid, line) in &found {
            match kill(Pid::from_raw(*pid), signal) {
                // It ended by itself in between.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => bail!("{signal} to {pid} ({line}) on {}: {error}", self.name()),
            }
        }
        Ok(found)
    }

    /// Ends every process whose command line has `pattern` in it by SIGKILL.
    pub fn kill(&self, pattern: &str) -> Result<Vec<(i32, String)>> {
        self.signal(pattern, Signal::SIGKILL)
    }

    /// Asks a whoami over TCP, once, on a connection of its own.
    pub fn ask_tcp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let line = self.run(|| -> io::Result<String> {
            let start = Instant::now();
            let mut stream = TcpStream::connect_timeout(&server, within)?;
            let left = within.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            stream.write_all(b"who\n")?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        })?;
        Answer::parse(&line.with_context(|| format!("ask {server} over TCP from {}", self.name()))?)
    }

    /// Asks a whoami over UDP, once, from a socket of its own.
    pub fn ask_udp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let line = self.run(|| -> io::Result<String> {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(within))?;
            socket.send(b"who\n")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })?;
        Answer::parse(&line.with_context(|| format!("ask {server} over UDP from {}", self.name()))?)
    }
}

/// What a whoami said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// The client's address and port as the pod saw them.
    pub client: SocketAddr,
}

impl Answer {
    fn parse(line: &str) -> Result<Self> {
        let parsed = line
            .trim()
            .split_once(' ')
            .and_then(|(pod, client)| Some(Self { pod: pod.to_owned(), client: client.parse().ok()? }));
        parsed.with_context(|| format!("{line:?} is not what a whoami says"))
    }
}

/// A daemon on a host. Dropping the handle leaves it running.
#[derive(Clone, Debug)]
pub struct Process {
    host: Host,
    name: String,
    group: Group,
    log: PathBuf,
}

impl Process {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.group.is_populated()
    }

    /// Its processes, as numbered here.
    pub fn pids(&self) -> Vec<i32> {
        self.group.pids()
    }

    /// Ends it, and all it has started, by SIGKILL. Fine if it has ended.
    pub fn kill(&self) -> Result<()> {
        self.group.kill()
    }

    /// Sends it, and all it has started, a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for pid in self.pids() {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => bail!("{signal} to {} on {}: {error}", self.name, self.host.name()),
            }
        }
        Ok(())
    }

    /// Stops it, and all it has started, where they are.
    pub fn freeze(&self) -> Result<()> {
        self.group.freeze(true)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.group.freeze(false)
    }
}
