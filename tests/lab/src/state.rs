//! A cluster's state outside of any process: its directory, its lock, and its removal.
//!
//! Touches `/run/landfall-lab/CLUSTER`, a tmpfs per cluster with another one for each node. So etcd and containerd do
//! not wait for a disk, and one unmount removes all. The lock of a cluster is an abstract socket, which the kernel
//! frees when its process ends, however it ends. So [`sweep`] can remove every cluster without a lock, and trusts no
//! file of a killed process.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::machine::cgroup::{CgroupHierarchies, create_shared_dir};
use crate::machine::network;
use crate::topology::{Topology, check_name};

/// Parent of the directories of all clusters.
const STATE: &str = "/run/landfall-lab";
/// The file of a [`SavedCluster`]. It is written last, so a directory without it belongs to an unfinished cluster.
const SAVED: &str = "cluster.json";
/// The file with the pid of the process that creates the cluster.
const CREATOR: &str = "maker";
/// Limit of waiting for another process that creates or removes a cluster.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of waiting for the lock of a dead process. Its children inherit the lock until they execute another program,
/// which takes milliseconds.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Description of a cluster for later processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedCluster {
    pub topology: Topology,
    /// The port on 127.0.0.1 of the root namespace that is forwarded to the API server.
    pub api_port: u16,
    /// Pid of the process with which the cluster ends; `None` if the cluster outlives its creator.
    pub owner: Option<u32>,
}

/// A cluster's name and directory.
#[derive(Clone, Debug)]
pub struct ClusterDir {
    /// The cluster's name.
    pub name: String,
    pub path: PathBuf,
}

impl ClusterDir {
    /// The directory of the cluster of this name, which need not exist.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab needs root: it creates namespaces, mounts and control groups"
        );
        Ok(Self { name: name.to_owned(), path: Path::new(STATE).join(name) })
    }

    /// The directory of a host.
    pub fn host(&self, host: &str) -> PathBuf {
        self.path.join(host)
    }

    /// Creates the directory, empty, on a tmpfs.
    pub fn create(&self) -> Result<()> {
        create_shared_dir(&self.path).with_context(|| format!("create {}", self.path.display()))?;
        mount(Some("landfall-lab"), &self.path, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mount a tmpfs on {}", self.path.display()))?;
        fs::write(self.path.join(CREATOR), std::process::id().to_string()).context("write the pid of the creator")
    }

    /// Creates the directory of a node on a tmpfs of its own, so that the disk of one node can be full while the others
    /// are not.
    pub fn create_disk(&self, host: &str) -> Result<()> {
        let disk = self.host(host);
        fs::create_dir(&disk).with_context(|| format!("create {}", disk.display()))?;
        mount(Some("landfall-lab"), &disk, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mount a tmpfs on {}", disk.display()))
    }

    /// Whether the owner of the cluster has ended or, if the cluster is unfinished, its creator.
    fn is_orphaned(&self) -> bool {
        let creator = || fs::read_to_string(self.path.join(CREATOR)).ok()?.parse().ok();
        let owner = self.read().map_or_else(|_| creator(), |saved| saved.owner);
        owner.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
    }

    /// Writes the description. From then on the cluster is complete.
    pub fn write(&self, saved: &SavedCluster) -> Result<()> {
        let text = serde_json::to_string_pretty(saved)?;
        fs::write(self.path.join(SAVED), text).with_context(|| format!("write {}", self.path.join(SAVED).display()))
    }

    /// Reads the description. The error lists the existing clusters.
    pub fn read(&self) -> Result<SavedCluster> {
        match fs::read(self.path.join(SAVED)) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{}/{SAVED} is of another version of the lab: `lab down {}`", self.path.display(), self.name)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let others: Vec<_> = names().into_iter().filter(|name| *name != self.name).collect();
                let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
                bail!("there is no cluster {:?} (there are: {others}): make one with `lab up {}`", self.name, self.name)
            }
            Err(error) => Err(error).context(format!("read {}/{SAVED}", self.path.display())),
        }
    }

    /// Removes the cluster: processes, namespaces, mounts, files, control groups. Succeeds without one.
    pub fn remove(&self) -> Result<()> {
        let hierarchies = CgroupHierarchies::find()?;
        hierarchies.cluster(&self.name).kill()?;
        network::remove(&self.name)?;
        // After an interrupted creation, the directory may be mounted more than once.
        while is_mounted(&self.path)? {
            umount2(&self.path, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", self.path.display()))?;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format!("remove {}", self.path.display()));
            }
            _ => {}
        }
        // Fails while other clusters have directories in it.
        let _ = fs::remove_dir(STATE);
        hierarchies.remove(&self.name)
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path)))
}

/// Every cluster that has a directory, a namespace or a control group, sorted.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(STATE).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.extend(network::clusters());
    names.extend(CgroupHierarchies::find().map(|hierarchies| hierarchies.clusters()).unwrap_or_default());
    names.sort();
    names.dedup();
    names
}

/// Removes every cluster whose owner has ended, and every unfinished one.
pub fn sweep() -> Result<()> {
    for name in names() {
        let cluster_dir = ClusterDir::new(&name)?;
        let Some(_lock) = Lock::take_from_dead_process(&cluster_dir)? else { continue };
        if !cluster_dir.read().is_ok_and(|saved| saved.owner.is_none()) {
            cluster_dir.remove().with_context(|| format!("remove the rest of cluster {name}"))?;
        }
    }
    Ok(())
}

/// The right to create, keep or remove a cluster. It ends with the value or the process.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes the lock if it is free.
    fn try_take(cluster: &str) -> Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(format!("landfall-lab/{cluster}"))?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("take the lock of the cluster"),
        }
    }

    /// Takes the lock if it is free or its process is dead. The children of a killed process hold it for a moment
    /// longer: this function waits for them.
    fn take_from_dead_process(cluster_dir: &ClusterDir) -> Result<Option<Self>> {
        let start = Instant::now();
        loop {
            let lock = Self::try_take(&cluster_dir.name)?;
            if lock.is_some() || !cluster_dir.is_orphaned() || start.elapsed() > ORPHAN_TIMEOUT {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the lock, and waits for a process that creates or removes the cluster. The error names a process that
    /// keeps it.
    pub fn take(cluster_dir: &ClusterDir) -> Result<Self> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(&cluster_dir.name)? {
                return Ok(lock);
            }
            let owner = cluster_dir.read().ok().and_then(|saved| saved.owner);
            if let Some(owner) = owner.filter(|owner| Path::new(&format!("/proc/{owner}")).exists()) {
                bail!(
                    "cluster {:?} belongs to the running process {owner} ({}): end that first, or use another name",
                    cluster_dir.name,
                    fs::read_to_string(format!("/proc/{owner}/comm")).unwrap_or_default().trim()
                );
            }
            ensure!(
                start.elapsed() < LOCK_TIMEOUT,
                "another process is creating or removing cluster {:?}",
                cluster_dir.name
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_lock_is_taken_over_only_from_a_dead_creator() -> Result<()> {
        let name = format!("unit-{}", std::process::id());
        let cluster_dir = ClusterDir { path: std::env::temp_dir().join(&name), name };
        fs::create_dir(&cluster_dir.path)?;
        let mut dead = Command::new("true").spawn()?;
        let creators = [(std::process::id(), false), (dead.id(), true)];
        dead.wait()?;
        for (creator, is_taken_over) in creators {
            fs::write(cluster_dir.path.join(CREATOR), creator.to_string())?;
            let lock = Lock::try_take(&cluster_dir.name)?.context("the lock is not free")?;
            // Holds the lock for a moment, as the child of a creator would.
            let child = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(lock);
            });
            assert_eq!(Lock::take_from_dead_process(&cluster_dir)?.is_some(), is_taken_over, "{creator}");
            child.join().expect("it only sleeps");
        }
        Ok(fs::remove_dir_all(&cluster_dir.path)?)
    }
}
