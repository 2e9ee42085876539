//! Faults of running processes and of disks: too little CPU time, memory, descriptors or space.
//!
//! Touches files of the control groups that runc created for containers, limits of processes, and the sizes of the
//! nodes' disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use crate::machine::cgroup::CgroupHierarchies;
use crate::machine::host::Host;

/// The period of a CPU quota, in microseconds: the default of the kernel and of Kubernetes.
const CPU_PERIOD: u32 = 100_000;

/// A container whose memory is used up first gets a limit of its usage plus this number of bytes.
const SPARE_MEMORY: u64 = 4 << 20;

/// The longest wait until the kernel has killed a process for lack of memory. The kernel needs milliseconds.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Joins the group of the first argument, and uses memory until it is killed.
const USE_MEMORY: &str = r#"echo 0 > "$0/cgroup.procs" && exec dd if=/dev/zero of=/dev/null bs=256M"#;

/// A CPU quota of a control group, and its former value.
#[derive(Debug)]
pub struct CpuLimit {
    file: PathBuf,
    former: String,
}

impl CpuLimit {
    /// Restores the former limit. Succeeds if the container has ended.
    pub fn lift(&self) -> Result<()> {
        if !self.file.exists() {
            return Ok(());
        }
        fs::write(&self.file, &self.former).with_context(|| format!("write {}", self.file.display()))
    }

    /// The number of quota periods in which the container had to wait.
    pub fn throttled_periods(&self) -> Result<u64> {
        let text = fs::read_to_string(self.file.with_file_name("cpu.stat"))?;
        let value = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("no nr_throttled in {text:?}"))
    }
}

/// A limit of open files, and its former value.
#[derive(Debug)]
pub struct FileLimit {
    pid: i32,
    former: String,
}

impl FileLimit {
    /// Restores the former limit. Succeeds if the process has ended.
    pub fn lift(&self) -> Result<()> {
        if !Path::new(&format!("/proc/{}", self.pid)).exists() {
            return Ok(());
        }
        set_file_limit(self.pid, &self.former)
    }
}

/// A full disk, and its former size in bytes.
#[derive(Debug)]
pub struct FullDisk {
    disk: PathBuf,
    former: u64,
}

impl FullDisk {
    /// Gives the disk its former size.
    pub fn enlarge(&self) -> Result<()> {
        resize(&self.disk, self.former)
    }
}

impl Host {
    /// Limits the container of a process to this percentage of one processor.
    pub fn limit_cpu(&self, pattern: &str, percent: u32) -> Result<CpuLimit> {
        let group = controller_group(self.only_process(pattern)?, "cpu")?;
        let quota = CPU_PERIOD / 100 * percent;
        let (file, value) = match group.join("cpu.max") {
            file if file.exists() => (file, format!("{quota} {CPU_PERIOD}")),
            _ => (group.join("cpu.cfs_quota_us"), quota.to_string()),
        };
        let former = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
        Ok(CpuLimit { file, former })
    }

    /// Uses up the memory of the container of a process, until the kernel's OOM killer kills this process.
    pub fn exhaust_memory(&self, pattern: &str) -> Result<()> {
        let pid = self.only_process(pattern)?;
        let group = controller_group(pid, "memory")?;
        let [usage, limit] = match group.join("memory.max").exists() {
            true => ["memory.current", "memory.max"],
            false => ["memory.usage_in_bytes", "memory.limit_in_bytes"],
        };
        let used: u64 = fs::read_to_string(group.join(usage))?.trim().parse()?;
        fs::write(group.join(limit), (used + SPARE_MEMORY).to_string()).context("limit the memory")?;
        // The kernel kills the process with the highest score first.
        fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").context("select the process to kill")?;
        let mut user = Command::new("/bin/sh")
            .args(["-c", USE_MEMORY])
            .arg(&group)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a process that uses memory")?;
        let start = Instant::now();
        while is_alive(pid) && start.elapsed() < KILL_TIMEOUT {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = user.kill();
        user.wait()?;
        ensure!(!is_alive(pid), "the kernel has not killed {pattern} on {} for lack of memory", self.name());
        Ok(())
    }

    /// Limits the open files of a process to those that it has: it cannot open another one.
    pub fn limit_open_files(&self, pattern: &str) -> Result<FileLimit> {
        let pid = self.only_process(pattern)?;
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), "--nofile", "--output", "SOFT,HARD", "--noheadings", "--raw"]);
        let output = prlimit.output().context("run prlimit")?;
        let former = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(":");
        // A descriptor gets the lowest free number, which must be below the limit.
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        let open: Vec<u32> = open.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
        let lowest_free = (0..).find(|number| !open.contains(number)).unwrap_or_default();
        let hard = former.split(':').nth(1).with_context(|| format!("prlimit printed {former:?}"))?;
        set_file_limit(pid, &format!("{lowest_free}:{hard}"))?;
        Ok(FileLimit { pid, former })
    }

    /// Reduces the disk of a node to the space in use: nothing more can be written to it.
    pub fn fill_disk(&self) -> Result<FullDisk> {
        let disk = self.dir();
        let former = statvfs(&disk)?.blocks() * statvfs(&disk)?.fragment_size();
        let start = Instant::now();
        loop {
            let state = statvfs(&disk)?;
            let used = (state.blocks() - state.blocks_free()) * state.fragment_size();
            match resize(&disk, used) {
                Ok(()) => return Ok(FullDisk { disk, former }),
                // A process has written since the disk was measured.
                Err(_) if start.elapsed() < KILL_TIMEOUT => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The process whose command line contains `pattern`. Fails unless there is exactly one.
    fn only_process(&self, pattern: &str) -> Result<i32> {
        match &self.processes(pattern)[..] {
            [(pid, _)] => Ok(*pid),
            found => {
                bail!("expected one process on {} with {pattern:?} in its command line, found {found:?}", self.name())
            }
        }
    }
}

fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"))
}

fn set_file_limit(pid: i32, soft_and_hard: &str) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={soft_and_hard}")]);
    let output = prlimit.output().context("run prlimit")?;
    ensure!(output.status.success(), "{prlimit:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn resize(disk: &Path, bytes: u64) -> Result<()> {
    let size = format!("size={bytes}");
    mount(None::<&str>, disk, None::<&str>, MsFlags::MS_REMOUNT, Some(size.as_str()))
        .with_context(|| format!("give {} a size of {bytes}", disk.display()))
}

/// The directory of a process's control group that has this controller.
fn controller_group(pid: i32, controller: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let hierarchies = CgroupHierarchies::find()?;
    let mount =
        hierarchies.mount_of(controller).with_context(|| format!("no limits of {controller} on this machine"))?;
    let path = group_path(&text, controller).with_context(|| format!("no group of the lab in {text:?}"))?;
    Ok(mount.join(path))
}

/// The group of a process in the hierarchy of a controller, below the mount: from the text of `/proc/PID/cgroup`. A
/// controller that no version 1 hierarchy has is in the cgroup2 hierarchy.
fn group_path<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    // Number, controllers, path.
    let fields = |line: &'a str| -> Option<(&'a str, &'a str)> { line.split_once(':')?.1.split_once(':') };
    let path_of = |is_wanted: &dyn Fn(&str) -> bool| {
        text.lines().filter_map(fields).find(|(controllers, _)| is_wanted(controllers)).map(|(_, path)| path)
    };
    let path = path_of(&|controllers| controllers.split(',').any(|one| one == controller));
    let path = path.or_else(|| path_of(&str::is_empty))?;
    // In a container, the mount may begin below the root of the hierarchy.
    path.find("landfall-lab/").map(|start| &path[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_in_its_own_hierarchy_or_in_cgroup2() {
        const HYBRID: &str = "4:memory:/landfall-lab/a/n1/pod1/c1\n3:cpu,cpuacct:/landfall-lab/a/n1/pod1/c2\n\
                              1:name=systemd:/x\n0::/landfall-lab/a/n1/daemons\n";
        const UNIFIED: &str = "0::/docker/landfall-lab/a/n1/pod1/c1\n";
        for (text, controller, expected) in [
            (HYBRID, "memory", Some("landfall-lab/a/n1/pod1/c1")),
            (HYBRID, "cpu", Some("landfall-lab/a/n1/pod1/c2")),
            (HYBRID, "pids", Some("landfall-lab/a/n1/daemons")),
            (UNIFIED, "cpu", Some("landfall-lab/a/n1/pod1/c1")),
            ("0::/user.slice\n", "cpu", None),
            ("", "cpu", None),
        ] {
            assert_eq!(group_path(text, controller), expected, "{controller} in {text:?}");
        }
    }
}
