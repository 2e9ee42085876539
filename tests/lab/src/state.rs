//! What is known about a cluster outside of any process: where its files are, who holds it, and how all of it goes away.
//!
//! Touches `/run/landfall-lab/CLUSTER`, a tmpfs per cluster: etcd and containerd sync to it without a disk, and removing
//! it is one unmount. A cluster is held by an abstract socket, which the kernel frees when the holder ends, however it
//! ends; so whatever nobody holds can be swept, and nothing has to be trusted that a killed process wrote.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchies;
use crate::network;
use crate::topology::{Topology, check_name};

/// Where clusters have their files.
const STATE: &str = "/run/landfall-lab";
/// The file in a cluster's directory that says what the cluster is. It is written last: a directory without is one
/// whose making was cut short.
const RECORD: &str = "cluster.json";
/// The file there that has the number of the process that makes the cluster.
const MAKER: &str = "maker";
/// How long to wait for a cluster that another process is making or removing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long children of a process that has ended may hold what it held: until they have become another program, which takes
/// milliseconds.
const ORPHANED: Duration = Duration::from_secs(5);

/// What a cluster is, as left for later processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its shape.
    pub topology: Topology,
    /// The port on 127.0.0.1 of the root namespace that leads to the API server.
    pub api_port: u16,
    /// The process whose end is the end of the cluster, if it is bound to one.
    pub owner: Option<u32>,
}

/// A cluster's name and files.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster's name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// Makes a directory in one that all clusters share. A cluster that goes at this moment takes the empty parent along: then
/// it is made once more.
pub(crate) fn make_shared(path: &Path) -> std::io::Result<()> {
    let gone = |made: &std::io::Result<()>| made.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    (0..100).map(|_| fs::create_dir_all(path)).find(|made| !gone(made)).unwrap_or_else(|| fs::create_dir_all(path))
}

impl Place {
    /// The place for a cluster of this name, made or not.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        ensure!(nix::unistd::geteuid().is_root(), "the lab needs root: it makes namespaces, mounts and control groups");
        Ok(Self { name: name.to_owned(), dir: Path::new(STATE).join(name) })
    }

    /// The directory of a host in it.
    pub fn host(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    /// Makes the directory, empty, on a tmpfs.
    pub fn make(&self) -> Result<()> {
        make_shared(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        mount(Some("landfall-lab"), &self.dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mount a tmpfs on {}", self.dir.display()))?;
        fs::write(self.dir.join(MAKER), std::process::id().to_string()).context("write who makes the cluster")
    }

    /// Whether the process that it is bound to, or that was making it, has ended.
    fn is_orphaned(&self) -> bool {
        let maker = || fs::read_to_string(self.dir.join(MAKER)).ok()?.parse().ok();
        let owner = self.read().map_or_else(|_| maker(), |record| record.owner);
        owner.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
    }

    /// Writes the record: from here on the cluster exists.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_string_pretty(record)?;
        fs::write(self.dir.join(RECORD), text).with_context(|| format!("write {}", self.dir.join(RECORD).display()))
    }

    /// Reads the record. The error says which clusters there are.
    pub fn read(&self) -> Result<Record> {
        match fs::read(self.dir.join(RECORD)) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{}/{RECORD} is of another version of the lab: `lab down {}`", self.dir.display(), self.name)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let others: Vec<_> = names().into_iter().filter(|name| *name != self.name).collect();
                let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
                bail!("there is no cluster {:?} (there are: {others}): make one with `lab up {}`", self.name, self.name)
            }
            Err(error) => Err(error).context(format!("read {}/{RECORD}", self.dir.display())),
        }
    }

    /// Removes every trace of the cluster: processes, namespaces, mounts, files, control groups. Nothing there is fine.
    pub fn remove(&self) -> Result<()> {
        let hierarchies = Hierarchies::find()?;
        hierarchies.cluster(&self.name).kill()?;
        network::remove(&self.name)?;
        // More than one if a making was cut short and made again.
        while is_mounted(&self.dir)? {
            umount2(&self.dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", self.dir.display()))?;
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(format!("remove {}", self.dir.display()));
            }
            _ => {}
        }
        // Fails as long as other clusters have theirs in it.
        let _ = fs::remove_dir(STATE);
        hierarchies.remove(&self.name)
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path)))
}

/// Every cluster there is any trace of, sorted.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(STATE).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.extend(network::clusters());
    names.extend(Hierarchies::find().map(|hierarchies| hierarchies.clusters()).unwrap_or_default());
    names.sort();
    names.dedup();
    names
}

/// Removes every cluster that was bound to a process that has ended, and every one whose making was cut short.
pub fn sweep() -> Result<()> {
    for name in names() {
        let place = Place::new(&name)?;
        let Some(_held) = Lock::take_from_the_dead(&place)? else { continue };
        if !place.read().is_ok_and(|record| record.owner.is_none()) {
            place.remove().with_context(|| format!("remove what is left of cluster {name}"))?;
        }
    }
    Ok(())
}

/// The right to make, keep or remove a cluster. It ends with the value or the process.
#[derive(Debug)]
pub struct Lock {
    _held: UnixListener,
}

impl Lock {
    /// Takes it if nobody has it.
    fn try_take(cluster: &str) -> Result<Option<Self>> {
        let address = SocketAddr::from_abstract_name(format!("landfall-lab/{cluster}"))?;
        match UnixListener::bind_addr(&address) {
            Ok(held) => Ok(Some(Self { _held: held })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("take the lock of the cluster"),
        }
    }

    /// Takes it if nobody has it that lives: children that a process was just making when it was killed have it for a moment
    /// longer.
    fn take_from_the_dead(place: &Place) -> Result<Option<Self>> {
        let start = Instant::now();
        loop {
            let lock = Self::try_take(&place.name)?;
            if lock.is_some() || !place.is_orphaned() || start.elapsed() > ORPHANED {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes it, waiting for a process that is about to let go of it. The error names a process that is not.
    pub fn take(place: &Place) -> Result<Self> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(&place.name)? {
                return Ok(lock);
            }
            let owner = place.read().ok().and_then(|record| record.owner);
            if let Some(owner) = owner.filter(|owner| Path::new(&format!("/proc/{owner}")).exists()) {
                bail!(
                    "cluster {:?} belongs to the running process {owner} ({}): end that first, or use another name",
                    place.name,
                    fs::read_to_string(format!("/proc/{owner}/comm")).unwrap_or_default().trim()
                );
            }
            ensure!(start.elapsed() < PATIENCE, "cluster {:?} is being made or removed by another process", place.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_children_of_a_maker_that_was_killed_are_waited_for_and_a_maker_that_lives_is_not() -> Result<()> {
        let name = format!("unit-{}", std::process::id());
        let place = Place { dir: std::env::temp_dir().join(&name), name };
        fs::create_dir(&place.dir)?;
        let mut dead = Command::new("true").spawn()?;
        let makers = [(std::process::id(), false), (dead.id(), true)];
        dead.wait()?;
        for (maker, is_waited_for) in makers {
            fs::write(place.dir.join(MAKER), maker.to_string())?;
            let held = Lock::try_take(&place.name)?.context("nobody has it")?;
            let child = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(held);
            });
            assert_eq!(Lock::take_from_the_dead(&place)?.is_some(), is_waited_for, "{maker}");
            child.join().expect("it only sleeps");
        }
        Ok(fs::remove_dir_all(&place.dir)?)
    }
}
