//! Daemons on hosts, and processes in general: started under a name, found by a pattern, signalled, ended.
//!
//! Touches processes in the host's control group only: those the lab started there and their descendants. A daemon has a
//! group of its own, and how it was started is kept in `daemons/NAME.json` in the host's directory.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::host::Host;

/// What daemons get for an environment, besides what they are given: none of the caller's proxies and kubeconfigs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Host {
    /// Starts a daemon on this host under a name; it outlives the caller, and its output goes to `log/NAME.log`.
    /// Only the program, the arguments and the variables set in `what` count: it does not inherit the environment.
    pub fn spawn(&self, name: &str, what: &Command) -> Result<Process> {
        self.spawn_with(name, what, None)
    }

    /// As [`Host::spawn`], with something for standard input.
    pub(crate) fn spawn_with(&self, name: &str, what: &Command, stdin: Option<OwnedFd>) -> Result<Process> {
        let process = self.process(name);
        let launch = Launch::of(what, stdin.is_none());
        fs::create_dir_all(self.dir().join("daemons"))?;
        fs::write(process.launch_file(), serde_json::to_string_pretty(&launch)?)?;
        self.launch(name, &launch, stdin)
    }

    fn launch(&self, name: &str, launch: &Launch, stdin: Option<OwnedFd>) -> Result<Process> {
        let process = self.process(name);
        ensure!(!process.is_running(), "{name} already runs on {}", self.name());
        let program = launch.words.first().map_or("", String::as_str);
        ensure!(
            Path::new(program).is_absolute() || !program.contains('/'),
            "start {name} on {}: a daemon starts in /, so {program} must be absolute or found in {PATH}",
            self.name(),
        );
        fs::create_dir_all(self.logs())?;
        let log = fs::File::options().create(true).append(true).open(&process.log)?;
        let mut command = self.command_in(&process.group, "setsid")?;
        command.arg("--fork").args(&launch.words);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").envs(launch.variables.iter().cloned());
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

    /// The handle on a daemon that was started under this name, in whatever process.
    pub fn process(&self, name: &str) -> Process {
        Process {
            host: self.clone(),
            name: name.to_owned(),
            group: self.group().child(name),
            log: self.logs().join(format!("{name}.log")),
        }
    }

    /// The names of the daemons that run on it, sorted.
    pub fn daemons(&self) -> Vec<String> {
        let names = self.group().children().into_iter();
        names.filter(|name| self.group().child(name).is_populated()).collect()
    }

    /// Every process of the host whose command line has `pattern` in it, containers' included: (pid here, command line).
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
}

/// How a daemon is started.
#[derive(Serialize, Deserialize)]
struct Launch {
    /// The program and its arguments.
    words: Vec<String>,
    /// The environment it gets.
    variables: Vec<(String, String)>,
    /// Whether that is all it takes.
    repeatable: bool,
}

impl Launch {
    fn of(command: &Command, repeatable: bool) -> Self {
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

    fn launch_file(&self) -> PathBuf {
        self.host.dir().join("daemons").join(format!("{}.json", self.name))
    }

    /// Starts it again as it was started before, after it has ended.
    pub fn start(&self) -> Result<()> {
        let file = self.launch_file();
        let text = fs::read(&file).with_context(|| {
            format!("{} was never started on {} (no {})", self.name, self.host.name(), file.display())
        })?;
        let launch: Launch = serde_json::from_slice(&text)?;
        ensure!(
            launch.repeatable,
            "{} on {} can't be started again: what it was given is gone",
            self.name,
            self.host.name()
        );
        self.host.launch(&self.name, &launch, None).map(drop)
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
