//! Control groups: how the lab finds, freezes and ends every process of a host, containers included.
//!
//! Touches `/sys/fs/cgroup/**/landfall-lab/CLUSTER/HOST/PROCESS`. The cgroup2 hierarchy holds the processes: a child
//! is in its parent's group whatever it does, so `cgroup.kill` reaches all of a node at once. runc can't see that
//! hierarchy inside a node (see [`node`](crate::node)); what it does see are per-node subtrees of the version 1
//! controllers, so that everything it makes has a known parent and can be removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The directory in every hierarchy under which the lab keeps to itself.
const PARENT: &str = "landfall-lab";
/// SIGKILL of a few hundred processes takes milliseconds; a process in uninterruptible sleep would exceed this.
const DEATH: Duration = Duration::from_secs(10);

/// Mounted hierarchies of this machine.
pub struct Hierarchies {
    /// The cgroup2 mount.
    unified: PathBuf,
    /// The version 1 mounts, by the last part of their path (`cpu`, `memory`, ..).
    controllers: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads what is mounted. The error says what the lab needs.
    pub fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let of = |kind: &str| -> Vec<PathBuf> {
            let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            words.filter(|words| words.get(2) == Some(&kind)).map(|words| PathBuf::from(words[1])).collect()
        };
        let mut unified = of("cgroup2");
        let controllers = of("cgroup");
        ensure!(
            !unified.is_empty() && controllers.iter().any(|path| path.ends_with("memory")),
            "the lab needs a machine in hybrid mode: version 1 cgroup controllers for runc, and a cgroup2 mount; \
             this one has cgroup2 at {unified:?} and version 1 at {controllers:?}"
        );
        Ok(Self { unified: unified.swap_remove(0), controllers })
    }

    /// The group of a cluster; hosts' groups are in it.
    pub fn cluster(&self, cluster: &str) -> Group {
        Group { path: self.unified.join(PARENT).join(cluster) }
    }

    /// Makes the part of each version 1 hierarchy that a node will see as the whole. Returns (name, path) of each.
    pub fn make_subtrees(&self, cluster: &str, host: &str) -> Result<Vec<(String, PathBuf)>> {
        let mut made = Vec::new();
        for mount in &self.controllers {
            let mut path = mount.clone();
            for part in [PARENT, cluster, host] {
                let parent = path.clone();
                path.push(part);
                make(&path)?;
                // A new cpuset is empty, and nothing can run in an empty one.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if path.join(file).exists() {
                        fs::write(path.join(file), fs::read(parent.join(file))?)?;
                    }
                }
            }
            let name = mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
            made.push((name, path));
        }
        Ok(made)
    }

    /// Removes a node's part of each version 1 hierarchy. Its processes must have ended.
    pub fn remove_subtrees(&self, cluster: &str, host: &str) -> Result<()> {
        self.controllers.iter().try_for_each(|mount| remove_tree(&mount.join(PARENT).join(cluster).join(host)))
    }

    /// Removes every group of a cluster, in all hierarchies. Its processes must have ended.
    pub fn remove(&self, cluster: &str) -> Result<()> {
        for mount in self.controllers.iter().chain([&self.unified]) {
            remove_tree(&mount.join(PARENT).join(cluster))?;
            // Fails as long as other clusters have theirs in it.
            let _ = fs::remove_dir(mount.join(PARENT));
        }
        Ok(())
    }

    /// Clusters that have a group in any hierarchy.
    pub fn clusters(&self) -> Vec<String> {
        let mounts = self.controllers.iter().chain([&self.unified]);
        mounts.flat_map(|mount| children(&mount.join(PARENT))).filter_map(|path| file_name(&path)).collect()
    }
}

/// A group of processes in the cgroup2 hierarchy.
#[derive(Clone, Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// The group of this name inside this one.
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with its parents. No error if it is there.
    pub fn make(&self) -> Result<()> {
        make(&self.path)
    }

    /// The file to which a process writes `0` in order to join. It is open, so that joining takes no allocation.
    pub fn door(&self) -> Result<fs::File> {
        let path = self.path.join("cgroup.procs");
        fs::OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Every process in it and in the groups inside it, in no particular order. None if there is no such group.
    pub fn pids(&self) -> Vec<i32> {
        let own = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
        for child in children(&self.path) {
            pids.extend(Self { path: child }.pids());
        }
        pids
    }

    /// Whether any process is left in it.
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Ends every process in it by SIGKILL, at once, and waits until the last one is gone.
    pub fn kill(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        // A frozen process dies as well, but only thawing makes sure that it is seen to.
        self.freeze(false)?;
        fs::write(self.path.join("cgroup.kill"), "1").with_context(|| format!("kill {}", self.path.display()))?;
        let start = Instant::now();
        while self.is_populated() {
            ensure!(start.elapsed() < DEATH, "processes {:?} of {} do not die", self.pids(), self.path.display());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Stops every process in it where it is, or lets it go on. Waits until it is so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .with_context(|| format!("freeze {}", self.path.display()))?;
        let start = Instant::now();
        while !fs::read_to_string(self.path.join("cgroup.events"))?.lines().any(|line| line == wanted) {
            ensure!(start.elapsed() < DEATH, "{} does not become {wanted:?}", self.path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The names of the groups directly in it, sorted.
    pub fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = children(&self.path).iter().filter_map(|path| file_name(path)).collect();
        names.sort();
        names
    }
}

fn make(path: &Path) -> Result<()> {
    crate::state::make_shared(path).with_context(|| format!("make the control group {}", path.display()))
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes directories from the leaves up. A group whose last process has just died is busy for a moment.
fn remove_tree(path: &Path) -> Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    let start = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < DEATH => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the control group {}", path.display()));
            }
            _ => return Ok(()),
        }
    }
}
