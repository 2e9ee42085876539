//! Control groups: which hierarchies this machine has, and how the lab uses them.
//!
//! [`decide`] is pure: the mounts and the files of the cgroup2 mount → [`ControlGroups`]. [`ControlGroups::find`] reads
//! these files. The lab itself creates and removes the groups.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::check::{Check, Outcome};

/// The controllers that runc needs for the limits of a container.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The control groups of a machine that can run the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlGroups {
    /// The cgroup2 mount, which has a group for each process of the lab.
    pub unified: PathBuf,
    /// Where runc creates the groups of containers.
    pub containers: ContainerGroups,
}

/// Where runc creates the groups of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerGroups {
    /// In the version 1 hierarchies at these mounts.
    Version1(Vec<PathBuf>),
    /// In cgroup2, with limits of CPU time, memory and processes.
    Unified,
    /// In cgroup2, without limits, because the lab's groups cannot have the controllers. Either version 1 hierarchies
    /// that are not mounted here have the controllers, or this machine is a container with processes in its root group.
    UnifiedWithoutLimits,
}

/// The files of the group at the cgroup2 mount that decide which controllers its children can have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootGroup {
    /// `cgroup.controllers`: the controllers of this hierarchy.
    pub controllers: String,
    /// `cgroup.subtree_control`: the controllers of the children.
    pub subtree_control: String,
    /// Whether processes in the group prevent controllers of its children. Only the true root of the hierarchy may have
    /// both (cgroup-v2.rst, "No Internal Process Constraint"). In a container, the mount shows an ordinary group.
    pub is_occupied: bool,
}

/// The reason why the control groups are not suitable, as (state, fix).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsuitable {
    pub found: String,
    pub advice: String,
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; do: {}", self.found, self.advice)
    }
}

impl std::error::Error for Unsuitable {}

/// Decides from the text of `/proc/self/mounts`, and from the group at the cgroup2 mount, which `read_root` reads.
pub fn decide(mounts: &str, read_root: impl FnOnce(&Path) -> RootGroup) -> Result<ControlGroups, Unsuitable> {
    // Device, mount point, type, options.
    let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let lines: Vec<_> = lines.filter(|words| words.len() >= 4).collect();
    let is_writable = |words: &&Vec<&str>| words[3].split(',').all(|option| option != "ro");
    let version1 = lines.iter().filter(|words| words[2] == "cgroup" && is_writable(words));
    let version1: Vec<PathBuf> = version1.map(|words| words[1].into()).collect();
    let has_version1 = version1.iter().any(|path| path.ends_with("memory"));
    let unified: Vec<_> = lines.iter().filter(|words| words[2] == "cgroup2").collect();
    let Some(mount) = unified.iter().copied().find(is_writable).or(unified.first().copied()) else {
        let (found, advice) = if has_version1 {
            (
                "version 1 controllers, but no cgroup2 mount",
                "mkdir -p /run/cgroup2 && mount -t cgroup2 cgroup2 /run/cgroup2 (a container needs --privileged)",
            )
        } else {
            (
                "no control groups are mounted",
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup (a container needs --privileged)",
            )
        };
        return Err(Unsuitable { found: found.to_owned(), advice: advice.to_owned() });
    };
    let unified = PathBuf::from(mount[1]);
    if !is_writable(&mount) {
        return Err(Unsuitable {
            found: format!("cgroup2 at {} is read-only", unified.display()),
            advice: "in a container, run it with --privileged --cgroupns=private".to_owned(),
        });
    }
    let containers = if has_version1 {
        ContainerGroups::Version1(version1)
    } else if can_limit(&read_root(&unified)) {
        ContainerGroups::Unified
    } else {
        ContainerGroups::UnifiedWithoutLimits
    };
    Ok(ControlGroups { unified, containers })
}

/// Whether the children of the group have the controllers, or can get them.
fn can_limit(root: &RootGroup) -> bool {
    let source = if root.is_occupied { &root.subtree_control } else { &root.controllers };
    CONTROLLERS.iter().all(|wanted| source.split_whitespace().any(|controller| controller == *wanted))
}

impl ControlGroups {
    /// Reads this machine's control groups.
    ///
    /// # Errors
    /// If they are not suitable for the lab.
    pub fn find() -> Result<Self, Unsuitable> {
        decide(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), read_root)
    }
}

fn read_root(mount: &Path) -> RootGroup {
    let read = |file: &str| fs::read_to_string(mount.join(file)).unwrap_or_default();
    // The true root of the hierarchy has no file `cgroup.type`.
    let is_occupied = mount.join("cgroup.type").exists() && !read("cgroup.procs").is_empty();
    RootGroup { controllers: read("cgroup.controllers"), subtree_control: read("cgroup.subtree_control"), is_occupied }
}

/// Checks the control groups of this machine.
pub(crate) fn check() -> Check {
    describe(ControlGroups::find())
}

fn describe(groups: Result<ControlGroups, Unsuitable>) -> Check {
    let new =
        |outcome, found: String| Check::new("control groups", "cgroup2, alone or beside version 1", outcome, found);
    match groups {
        Err(unsuitable) => new(Outcome::Missing, unsuitable.found).with_advice(unsuitable.advice),
        Ok(ControlGroups { unified, containers }) => {
            let at = unified.display();
            match containers {
                ContainerGroups::Version1(mounts) => {
                    new(Outcome::Ok, format!("{} version 1 hierarchies, and cgroup2 at {at}", mounts.len()))
                }
                ContainerGroups::Unified => new(Outcome::Ok, format!("cgroup2 at {at}, with cpu, memory and pids")),
                ContainerGroups::UnifiedWithoutLimits => {
                    new(Outcome::Note, format!("cgroup2 at {at}, without the controllers cpu, memory or pids"))
                        .with_advice("nothing, or give it these controllers: without them, containers have no limits")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "sysfs /sys sysfs rw,nosuid 0 0\n\
                          cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n";
    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n\
                          cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                          cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
                          cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
    const ALL: &str = "cpuset cpu io memory hugetlb pids rdma misc\n";

    /// (controllers, controllers of the children, whether processes prevent a change).
    type Root = (&'static str, &'static str, bool);

    fn decide_with(
        mounts: &str,
        (controllers, subtree_control, is_occupied): Root,
    ) -> Result<ControlGroups, Unsuitable> {
        let (controllers, subtree_control) = (controllers.to_owned(), subtree_control.to_owned());
        decide(mounts, |_| RootGroup { controllers, subtree_control, is_occupied })
    }

    #[test]
    fn each_kind_of_machine_has_its_hierarchies() {
        use ContainerGroups::{Unified, UnifiedWithoutLimits, Version1};
        let with_net_cls = DEBIAN.to_owned() + "cgroup /run/vpn/net_cls cgroup rw,net_cls 0 0\n";
        let read_only_version1 = HYBRID.replace("cgroup rw", "cgroup ro");
        let read_only_first = DEBIAN.replace("cgroup2 rw", "cgroup2 ro") + "cgroup2 /run/cgroup2 cgroup2 rw 0 0\n";
        let second_mount = DEBIAN.to_owned() + "cgroup2 /run/cilium/cgroupv2 cgroup2 rw 0 0\n";
        let v1 = || Version1(vec!["/sys/fs/cgroup/memory".into(), "/sys/fs/cgroup/systemd".into()]);
        for (machine, mounts, root, unified, containers) in [
            ("Debian 12, booted", DEBIAN, (ALL, "memory pids\n", false), "/sys/fs/cgroup", Unified),
            ("without systemd", DEBIAN, (ALL, "", false), "/sys/fs/cgroup", Unified),
            ("a version 1 net_cls beside it", &with_net_cls, (ALL, "", false), "/sys/fs/cgroup", Unified),
            ("a second cgroup2 mount", &second_mount, (ALL, "", false), "/sys/fs/cgroup", Unified),
            ("container, processes in a leaf", DEBIAN, (ALL, "", false), "/sys/fs/cgroup", Unified),
            ("container, controllers enabled", DEBIAN, (ALL, ALL, true), "/sys/fs/cgroup", Unified),
            ("container, processes at its root", DEBIAN, (ALL, "", true), "/sys/fs/cgroup", UnifiedWithoutLimits),
            ("controllers in version 1", DEBIAN, ("hugetlb\n", "", false), "/sys/fs/cgroup", UnifiedWithoutLimits),
            (
                "one controller is absent",
                DEBIAN,
                ("cpuset cpu pids\n", "", false),
                "/sys/fs/cgroup",
                UnifiedWithoutLimits,
            ),
            ("a read-only mount first", &read_only_first, (ALL, "", false), "/run/cgroup2", Unified),
            (
                "container, read-only version 1",
                &read_only_version1,
                ("hugetlb\n", "", false),
                "/sys/fs/cgroup/unified",
                UnifiedWithoutLimits,
            ),
            ("hybrid", HYBRID, ("hugetlb\n", "", false), "/sys/fs/cgroup/unified", v1()),
        ] {
            let expected = ControlGroups { unified: unified.into(), containers };
            assert_eq!(decide_with(mounts, root), Ok(expected), "{machine}");
        }
    }

    #[test]
    fn an_unsuitable_machine_is_reported_with_a_fix() {
        let version1_only: String = HYBRID.lines().take(3).map(|line| format!("{line}\n")).collect();
        let read_only = DEBIAN.replace("cgroup2 rw", "cgroup2 ro");
        for (mounts, found, advice) in [
            ("", "no control groups are mounted", "mount -t cgroup2"),
            (&version1_only, "version 1 controllers, but no cgroup2 mount", "mount -t cgroup2"),
            (&read_only, "cgroup2 at /sys/fs/cgroup is read-only", "--privileged"),
        ] {
            let unsuitable = decide_with(mounts, ("", "", false)).expect_err(found);
            assert_eq!(unsuitable.found, found);
            assert!(unsuitable.advice.contains(advice), "{unsuitable}");
            assert_eq!(describe(Err(unsuitable)).outcome, Outcome::Missing);
        }
    }

    #[test]
    fn a_machine_without_limits_is_suitable() {
        for (root, outcome) in [((ALL, "", false), Outcome::Ok), ((ALL, "", true), Outcome::Note)] {
            assert_eq!(describe(decide_with(DEBIAN, root)).outcome, outcome, "{root:?}");
        }
    }
}
