//! Control groups: how the lab finds, freezes and ends every process of a host, containers included.
//!
//! Touches `/sys/fs/cgroup/**/landfall-lab/CLUSTER/HOST/PROCESS`. The cgroup2 hierarchy holds the processes: a child
//! starts in its parent's group, and runc creates the groups of containers inside the host's, so `cgroup.kill` reaches
//! all processes of a node at once.
//!
//! A node sees only its own part of the control groups as `/sys/fs/cgroup` ([`NodeView`]). So all groups that runc
//! creates have a known parent and can be removed. On cgroup2 a group of a host has processes only in its children, as
//! the kernel demands of groups with controllers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use doctor::control_groups::CONTROLLERS;
use doctor::{ContainerGroups, ControlGroups};

/// The lab's directory in every hierarchy.
const PARENT: &str = "landfall-lab";
/// The longest wait until processes are killed or frozen. SIGKILL of a few hundred processes takes milliseconds; a
/// process in uninterruptible sleep would exceed this limit.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The cgroup hierarchies of this machine.
pub struct CgroupHierarchies {
    groups: ControlGroups,
}

/// The control groups that a node sees as `/sys/fs/cgroup`.
pub enum NodeView {
    /// A subtree of each version 1 hierarchy: (name, path). runc uses them, and cannot see the cgroup2 hierarchy.
    Version1(Vec<(String, PathBuf)>),
    /// Its group of the cgroup2 hierarchy, as the root of a cgroup namespace.
    Unified,
}

impl CgroupHierarchies {
    /// Reads the mounts. The error states the fix.
    pub fn find() -> Result<Self> {
        Ok(Self { groups: ControlGroups::find()? })
    }

    /// The group of a cluster, which contains the groups of its hosts.
    pub fn cluster(&self, cluster: &str) -> Cgroup {
        Cgroup { path: self.groups.unified.join(PARENT).join(cluster) }
    }

    /// Whether containers have limits.
    pub fn has_limits(&self) -> bool {
        self.groups.containers != ContainerGroups::UnifiedWithoutLimits
    }

    /// The mount of the hierarchy in which containers have limits of this controller, if they have limits.
    pub fn mount_of(&self, controller: &str) -> Option<&Path> {
        match &self.groups.containers {
            ContainerGroups::Version1(mounts) => {
                let has_controller = |mount: &&PathBuf| {
                    mount.file_name().is_some_and(|name| name.to_string_lossy().split(',').any(|one| one == controller))
                };
                mounts.iter().find(has_controller).map(PathBuf::as_path)
            }
            ContainerGroups::Unified => Some(&self.groups.unified),
            ContainerGroups::UnifiedWithoutLimits => None,
        }
    }

    /// The mounts of version 1 hierarchies in which containers have groups.
    fn version1(&self) -> &[PathBuf] {
        match &self.groups.containers {
            ContainerGroups::Version1(mounts) => mounts,
            ContainerGroups::Unified | ContainerGroups::UnifiedWithoutLimits => &[],
        }
    }

    /// Creates the groups that a node sees.
    pub fn create_view(&self, cluster: &str, host: &str) -> Result<NodeView> {
        self.cluster(cluster).child(host).create()?;
        match &self.groups.containers {
            ContainerGroups::Version1(mounts) => {
                let subtrees = mounts.iter().map(|mount| create_subtree(mount, cluster, host));
                subtrees.collect::<Result<_>>().map(NodeView::Version1)
            }
            ContainerGroups::Unified => {
                // From the root down: a group can have only controllers of its parent.
                let root = &self.groups.unified;
                for group in [root, &root.join(PARENT), &root.join(PARENT).join(cluster)] {
                    enable_controllers(group)?;
                }
                Ok(NodeView::Unified)
            }
            ContainerGroups::UnifiedWithoutLimits => Ok(NodeView::Unified),
        }
    }

    /// Enables the controllers of limits for the groups inside the group of a host, if containers have limits on
    /// cgroup2. The group of the host itself must have no process.
    pub fn enable_limits(&self, host: &Cgroup) -> Result<()> {
        match self.groups.containers {
            ContainerGroups::Unified => enable_controllers(&host.path),
            ContainerGroups::Version1(_) | ContainerGroups::UnifiedWithoutLimits => Ok(()),
        }
    }

    /// Removes the groups that a node sees, with those that runc created. The processes of the node must have ended.
    pub fn remove_view(&self, cluster: &str, host: &str) -> Result<()> {
        match &self.groups.containers {
            ContainerGroups::Version1(mounts) => {
                mounts.iter().try_for_each(|mount| remove_tree(&mount.join(PARENT).join(cluster).join(host)))
            }
            ContainerGroups::Unified | ContainerGroups::UnifiedWithoutLimits => {
                remove_tree(self.cluster(cluster).child(host).path())
            }
        }
    }

    /// Removes every group of a cluster, in all hierarchies. The processes of the cluster must have ended.
    pub fn remove(&self, cluster: &str) -> Result<()> {
        for mount in self.version1().iter().chain([&self.groups.unified]) {
            remove_tree(&mount.join(PARENT).join(cluster))?;
            // Fails while other clusters have groups in it.
            let _ = fs::remove_dir(mount.join(PARENT));
        }
        Ok(())
    }

    /// Clusters that have a group in any hierarchy.
    pub fn clusters(&self) -> Vec<String> {
        let mounts = self.version1().iter().chain([&self.groups.unified]);
        mounts.flat_map(|mount| children(&mount.join(PARENT))).filter_map(|path| file_name(&path)).collect()
    }
}

/// Creates a subtree for a node in a version 1 hierarchy. The node sees its subtree as the whole hierarchy. Returns the
/// name and path of the subtree.
fn create_subtree(mount: &Path, cluster: &str, host: &str) -> Result<(String, PathBuf)> {
    let mut path = mount.to_owned();
    for part in [PARENT, cluster, host] {
        let parent = path.clone();
        path.push(part);
        create(&path)?;
        // A new cpuset is empty, and no process can run in an empty one.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if path.join(file).exists() {
                fs::write(path.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    let name = mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, path))
}

/// Gives the children of a cgroup2 group the controllers that runc needs for limits.
fn enable_controllers(group: &Path) -> Result<()> {
    let wanted: Vec<String> = CONTROLLERS.iter().map(|controller| format!("+{controller}")).collect();
    fs::write(group.join("cgroup.subtree_control"), wanted.join(" "))
        .with_context(|| format!("enable the controllers {} in {}", CONTROLLERS.join(", "), group.display()))
}

/// A group of processes in the cgroup2 hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of this name inside this one.
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the group and its parents. Succeeds if it exists.
    pub fn create(&self) -> Result<()> {
        create(&self.path)
    }

    /// Opens `cgroup.procs`. A process joins the group when it writes `0` to this file. This needs no allocation, so it
    /// is safe between fork and exec.
    pub fn open_procs(&self) -> Result<fs::File> {
        let path = self.path.join("cgroup.procs");
        fs::OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// All processes in the group and in the groups inside it, unordered. Empty if the group does not exist.
    pub fn pids(&self) -> Vec<i32> {
        let own = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
        for child in children(&self.path) {
            pids.extend(Self { path: child }.pids());
        }
        pids
    }

    /// Whether the group has a process.
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Kills all processes in the group at once, and waits until the last one has ended.
    pub fn kill(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        // The kernel can kill frozen processes, too, but only thawed ones are sure to end.
        self.freeze(false)?;
        fs::write(self.path.join("cgroup.kill"), "1").with_context(|| format!("kill {}", self.path.display()))?;
        let start = Instant::now();
        while self.is_populated() {
            ensure!(
                start.elapsed() < KILL_TIMEOUT,
                "processes {:?} of {} do not end",
                self.pids(),
                self.path.display()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Freezes or thaws all processes in the group, and waits until all are frozen or thawed.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .with_context(|| format!("freeze {}", self.path.display()))?;
        let start = Instant::now();
        while !fs::read_to_string(self.path.join("cgroup.events"))?.lines().any(|line| line == wanted) {
            ensure!(start.elapsed() < KILL_TIMEOUT, "{} does not become {wanted:?}", self.path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The names of the groups directly inside, sorted.
    pub fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = children(&self.path).iter().filter_map(|path| file_name(path)).collect();
        names.sort();
        names
    }
}

fn create(path: &Path) -> Result<()> {
    create_shared_dir(path).with_context(|| format!("create the control group {}", path.display()))
}

/// Creates a directory inside one that all clusters share. The removal of another cluster may delete the empty parent
/// at this moment. Then this function tries again.
pub(crate) fn create_shared_dir(path: &Path) -> std::io::Result<()> {
    let parent_vanished =
        |result: &std::io::Result<()>| result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let mut attempts = (0..100).map(|_| fs::create_dir_all(path));
    attempts.find(|result| !parent_vanished(result)).unwrap_or_else(|| fs::create_dir_all(path))
}

fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes directories from the leaves up. A group is busy for a moment after its last process has ended.
fn remove_tree(path: &Path) -> Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    let start = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < KILL_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the control group {}", path.display()));
            }
            _ => return Ok(()),
        }
    }
}
