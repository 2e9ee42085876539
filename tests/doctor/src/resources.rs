//! Root, kernel version, memory, disk and inotify instances.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::check::{Check, Outcome};

/// The first kernel with `cgroup.kill`, with which the lab ends all processes of a host at once.
const KERNEL: (u32, u32) = (5, 14);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Memory of one cluster of three nodes with Landfall, about 1.5 GiB, and of the largest build step.
const MEMORY_OF_ONE_CLUSTER: u64 = 2 * GIB;
/// Less than this is too little, also with swap.
const LEAST_MEMORY: u64 = GIB;
/// Memory of the two clusters that `make test` runs at once.
const MEMORY_OF_TWO_CLUSTERS: u64 = 4 * GIB;

/// Disk space of a first build: `target` with its debug and release builds, Go's cache, and Kubernetes.
const DISK_OF_FIRST_BUILD: u64 = 12 * GIB;
/// Disk space for later builds and the evidence of runs.
const DISK_OF_LATER_BUILDS: u64 = 2 * GIB;

/// inotify instances of one cluster of three nodes: 27 of kubelets, containerds and the control plane.
const LEAST_INOTIFY: u64 = 27;
/// The same on cgroup2, where each container has one more.
const INOTIFY_OF_ONE_CLUSTER: u64 = 50;
/// inotify instances of the two clusters that `make test` runs at once.
const INOTIFY_OF_TWO_CLUSTERS: u64 = 100;

/// Checks root, the kernel's version, memory, disk and inotify instances.
pub(crate) fn checks() -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        root(is_root()),
        kernel_version(read("/proc/sys/kernel/osrelease").trim()),
        memory(available_memory(&read("/proc/meminfo"))),
        disk(),
        inotify(read("/proc/sys/fs/inotify/max_user_instances").trim().parse().ok(), used_inotify_instances()),
    ]
}

/// Whether this process may create namespaces and mounts.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn root(is_root: bool) -> Check {
    let (outcome, found) = if is_root { (Outcome::Ok, "root") } else { (Outcome::Missing, "an ordinary user") };
    Check::new("user", "root, to create namespaces and mounts", outcome, found)
        .with_advice("a root shell, or sudo -E env PATH=\"$PATH\" COMMAND")
}

fn kernel_version(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let outcome = if version >= KERNEL { Outcome::Ok } else { Outcome::Missing };
    let needed = format!("Linux {}.{} or later, for cgroup.kill", KERNEL.0, KERNEL.1);
    Check::new("kernel", &needed, outcome, format!("Linux {release}")).with_advice("boot a newer kernel")
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn memory(available: Option<u64>) -> Check {
    let needed = "2 GiB available for make demo, 4 GiB for make test";
    let Some(available) = available else { return Check::new("memory", needed, Outcome::Note, "not known") };
    let (outcome, advice) = match available {
        MEMORY_OF_TWO_CLUSTERS.. => (Outcome::Ok, ""),
        MEMORY_OF_ONE_CLUSTER.. => (Outcome::Note, "LANDFALL_TEST_CLUSTERS=1 make test (one cluster at a time)"),
        LEAST_MEMORY.. => (Outcome::Note, "end other programs, or add swap"),
        _ => (Outcome::Missing, "end other programs, or use a larger machine"),
    };
    Check::new("memory", needed, outcome, format!("{} MiB available", available / MIB)).with_advice(advice)
}

/// The folder of build output: `target` of the workspace, or of cargo.
fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn disk() -> Check {
    let target = target();
    // The folder does not exist before the first build.
    let existing = target.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free = statvfs(existing).map(|disk| disk.blocks_available() * disk.fragment_size());
    let lab = std::env::var_os("LANDFALL_LAB").map_or_else(|| target.join("lab"), PathBuf::from);
    disk_space(free.ok(), lab.join("bin/kubernetes").exists(), existing)
}

fn disk_space(free: Option<u64>, is_built: bool, folder: &Path) -> Check {
    let bytes = if is_built { DISK_OF_LATER_BUILDS } else { DISK_OF_FIRST_BUILD };
    let purpose = if is_built { "later builds" } else { "the first build" };
    let needed = format!("{} GiB for {purpose}", bytes / GIB);
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let Some(free) = free else { return Check::new("disk", &needed, Outcome::Note, "not known") };
    // The sizes are estimates: some build output is elsewhere, and parts may be built already.
    let outcome = match free {
        free if free >= bytes => Outcome::Ok,
        free if free >= bytes / 4 => Outcome::Note,
        _ => Outcome::Missing,
    };
    let found = format!("{} MiB free at {}", free / MIB, folder.display());
    Check::new("disk", &needed, outcome, found).with_advice("free space, or set CARGO_TARGET_DIR to another disk")
}

/// The inotify instances of root's processes, as far as this process can see them.
fn used_inotify_instances() -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| entry.metadata().is_ok_and(|owned| owned.uid() == 0));
    let descriptors =
        processes.flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten());
    let is_inotify = |target: PathBuf| target.as_os_str() == "anon_inode:inotify";
    descriptors.filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(is_inotify)).count() as u64
}

/// The kernel counts the instances of each user. All instances of the lab belong to root.
fn inotify(limit: Option<u64>, used: u64) -> Check {
    let needed = format!("{INOTIFY_OF_ONE_CLUSTER} free for make demo, {INOTIFY_OF_TWO_CLUSTERS} for make test");
    let Some(limit) = limit else { return Check::new("inotify instances", &needed, Outcome::Note, "not known") };
    let outcome = match limit.saturating_sub(used) {
        INOTIFY_OF_TWO_CLUSTERS.. => Outcome::Ok,
        LEAST_INOTIFY.. => Outcome::Note,
        _ => Outcome::Missing,
    };
    Check::new("inotify instances", &needed, outcome, format!("{limit} allowed, {used} in use"))
        .with_advice("sysctl -w fs.inotify.max_user_instances=1024")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::{Missing, Note, Ok};

    #[test]
    fn a_kernel_is_compared_by_its_first_two_numbers() {
        for (release, outcome) in [
            ("6.18.44-fc", Ok),
            ("5.14.0-427.el9.x86_64", Ok),
            ("6.1.0-28-amd64", Ok),
            ("5.10.0-30-amd64", Missing),
            ("5.9", Missing),
            ("4.19.0", Missing),
            ("", Missing),
        ] {
            assert_eq!(kernel_version(release).outcome, outcome, "{release}");
        }
    }

    #[test]
    fn memory_for_one_cluster_is_a_note() {
        for (kilobytes, outcome) in
            [(8_388_608, Ok), (4_194_304, Ok), (4_194_303, Note), (1_048_576, Note), (1_048_575, Missing)]
        {
            let meminfo = format!("MemTotal:       24683656 kB\nMemAvailable:   {kilobytes} kB\nBuffers: 1 kB\n");
            assert_eq!(memory(available_memory(&meminfo)).outcome, outcome, "{kilobytes}");
        }
        assert_eq!(memory(available_memory("")).outcome, Note);
    }

    #[test]
    fn a_first_build_needs_more_disk_space() {
        for (gibibytes, is_built, outcome) in [
            (12, false, Ok),
            (11, false, Note),
            (3, false, Note),
            (2, false, Missing),
            (2, true, Ok),
            (1, true, Note),
            (0, true, Missing),
        ] {
            let check = disk_space(Some(gibibytes * GIB), is_built, Path::new("/"));
            assert_eq!(check.outcome, outcome, "{gibibytes} {is_built}");
        }
    }

    #[test]
    fn inotify_instances_in_use_are_subtracted() {
        for (limit, used, outcome) in [
            (Some(128), 0, Ok),
            (Some(128), 28, Ok),
            (Some(128), 29, Note),
            (Some(128), 101, Note),
            (Some(128), 102, Missing),
            (Some(10), 20, Missing),
            (None, 0, Note),
        ] {
            assert_eq!(inotify(limit, used).outcome, outcome, "{limit:?} {used}");
        }
    }

    #[test]
    fn only_root_is_suitable() {
        assert_eq!((root(true).outcome, root(false).outcome), (Ok, Missing));
    }
}
