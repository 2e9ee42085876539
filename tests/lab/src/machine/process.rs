//! Daemons on hosts, started under a name, and other processes, found by a pattern.
//!
//! Touches only processes in the host's control group: those the lab started there, and their descendants. A daemon has
//! a group of its own; `daemons/NAME.json` in the host's directory stores its command.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::machine::cgroup::Cgroup;
use crate::machine::host::Host;

/// PATH of daemons. Their environment contains PATH, HOME, GOGC and their own variables, but not the caller's proxies
/// and kubeconfigs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How far the heap of a Go program grows before garbage is collected, in per cent of the heap in use. With Go's
/// default, 100, garbage collection took a sixth of the CPU time of an API server after its start, and clusters of the
/// lab are short-lived.
const GOGC: &str = "400";

impl Host {
    /// Starts a daemon on this host under a name. It outlives the caller, and its output goes to `log/NAME.log`.
    /// Uses only the program, the arguments and the variables of `command`: a daemon does not inherit the environment.
    pub fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        self.spawn_with_stdin(name, command, None)
    }

    /// As [`Host::spawn`], with a file as standard input.
    pub(crate) fn spawn_with_stdin(&self, name: &str, command: &Command, stdin: Option<OwnedFd>) -> Result<Process> {
        let process = self.process(name);
        let spec = DaemonSpec::from_command(command, stdin.is_none());
        fs::create_dir_all(self.dir().join("daemons"))?;
        fs::write(process.spec_file(), serde_json::to_string_pretty(&spec)?)?;
        self.start_daemon(name, &spec, stdin)
    }

    fn start_daemon(&self, name: &str, spec: &DaemonSpec, stdin: Option<OwnedFd>) -> Result<Process> {
        let process = self.process(name);
        ensure!(!process.is_running(), "{name} already runs on {}", self.name());
        let program = spec.words.first().map_or("", String::as_str);
        ensure!(
            Path::new(program).is_absolute() || !program.contains('/'),
            "start {name} on {}: a daemon starts in /, so {program} must be absolute or found in {PATH}",
            self.name(),
        );
        fs::create_dir_all(self.logs())?;
        let log = fs::File::options().create(true).append(true).open(&process.log)?;
        let mut command = self.command_in(&process.group, "setsid")?;
        command.arg("--fork").args(&spec.words);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("GOGC", GOGC);
        command.envs(spec.variables.iter().cloned());
        command.current_dir("/").stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(log.try_clone()?).stderr(log);
        let status = command.status().with_context(|| format!("start {name} on {}", self.name()))?;
        ensure!(
            status.success(),
            "starting {name} on {} failed ({status}): see {}",
            self.name(),
            process.log.display()
        );
        Ok(process)
    }

    /// The handle on a daemon of this name, which any process may have started.
    pub fn process(&self, name: &str) -> Process {
        Process {
            host: self.clone(),
            name: name.to_owned(),
            group: self.group().child(name),
            log: self.logs().join(format!("{name}.log")),
        }
    }

    /// The names of the running daemons, sorted. Other groups of the host have process 1, commands and containers.
    pub fn daemons(&self) -> Vec<String> {
        let names = self.group().children().into_iter();
        names.filter(|name| self.process(name).spec_file().exists() && self.process(name).is_running()).collect()
    }

    /// (pid outside of the host, command line) of every process of the host, containers included, whose command line
    /// contains `pattern`.
    pub fn processes(&self, pattern: &str) -> Vec<(i32, String)> {
        let mut found: Vec<(i32, String)> = Vec::new();
        for pid in self.group().pids() {
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

    /// Sends a signal to every process of the host whose command line contains `pattern`. Returns these processes;
    /// fails without one.
    pub fn signal(&self, pattern: &str, signal: Signal) -> Result<Vec<(i32, String)>> {
        let found = self.processes(pattern);
        if found.is_empty() {
            let all: Vec<String> = self.processes("").into_iter().map(|(_, line)| line).collect();
            bail!("no process on {} has {pattern:?} in its command line; there are:\n{}", self.name(), all.join("\n"));
        }
        for (pid, line) in &found {
            match kill(Pid::from_raw(*pid), signal) {
                // ESRCH: it has ended by itself.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => bail!("{signal} to {pid} ({line}) on {}: {error}", self.name()),
            }
        }
        Ok(found)
    }

    /// Kills every process whose command line contains `pattern`.
    pub fn kill(&self, pattern: &str) -> Result<Vec<(i32, String)>> {
        self.signal(pattern, Signal::SIGKILL)
    }
}

/// The command of a daemon.
#[derive(Serialize, Deserialize)]
struct DaemonSpec {
    /// The program and its arguments.
    words: Vec<String>,
    /// Its environment variables.
    variables: Vec<(String, String)>,
    /// Whether it can start again: its standard input is no file of the caller.
    repeatable: bool,
}

impl DaemonSpec {
    fn from_command(command: &Command, repeatable: bool) -> Self {
        let text = |word: &OsStr| word.to_string_lossy().into_owned();
        let words = std::iter::once(command.get_program()).chain(command.get_args()).map(text).collect();
        let variables = command.get_envs().filter_map(|(key, value)| Some((text(key), text(value?)))).collect();
        Self { words, variables, repeatable }
    }
}

/// A daemon on a host. Dropping the handle leaves it running.
#[derive(Clone, Debug)]
pub struct Process {
    host: Host,
    name: String,
    group: Cgroup,
    log: PathBuf,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn is_running(&self) -> bool {
        self.group.is_populated()
    }

    /// The pids of its processes, as seen outside of the host.
    pub fn pids(&self) -> Vec<i32> {
        self.group.pids()
    }

    fn spec_file(&self) -> PathBuf {
        self.host.dir().join("daemons").join(format!("{}.json", self.name))
    }

    /// Starts it again with its former command, after it has ended.
    pub fn start(&self) -> Result<()> {
        let file = self.spec_file();
        let text = fs::read(&file).with_context(|| {
            format!("{} was never started on {} (no {})", self.name, self.host.name(), file.display())
        })?;
        let spec: DaemonSpec = serde_json::from_slice(&text)?;
        ensure!(
            spec.repeatable,
            "{} on {} can't start again: its standard input was a file of its first start",
            self.name,
            self.host.name()
        );
        self.host.start_daemon(&self.name, &spec, None).map(drop)
    }

    /// Kills it and its descendants. Succeeds if it has ended.
    pub fn kill(&self) -> Result<()> {
        self.group.kill()
    }

    /// Sends a signal to it and its descendants.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for pid in self.pids() {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => bail!("{signal} to {} on {}: {error}", self.name, self.host.name()),
            }
        }
        Ok(())
    }

    /// Freezes it and its descendants.
    pub fn freeze(&self) -> Result<()> {
        self.group.freeze(true)
    }

    /// Thaws it and its descendants.
    pub fn thaw(&self) -> Result<()> {
        self.group.freeze(false)
    }
}
