//! Kernel features apart from nf_tables: namespaces, cables, bridge, overlayfs, IPv6.
//!
//! Tries each feature in namespaces that end with the thread, or with the last handle.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::Path;

use netns::Namespace;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::check::{Check, Outcome};
use crate::resources::is_root;
use crate::tools::is_installed;

/// The namespaces of a node.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// Advice for a feature that the kernel refuses.
pub(crate) fn kernel_advice(option: &str) -> String {
    let ubuntu = "on Ubuntu: apt-get install linux-modules-extra-$(uname -r)";
    format!("a kernel with {option} ({ubuntu}); a container needs --privileged")
}

/// Checks all features.
pub(crate) fn checks() -> Vec<Check> {
    // If IPv6 is a module, the kernel loads it for the first socket.
    let _ = UdpSocket::bind("[::1]:0");
    let mut checks = vec![
        namespaces(),
        existing(
            "IPv6",
            "addresses of both families",
            "/proc/net/if_inet6",
            "CONFIG_IPV6, booted without ipv6.disable=1",
        ),
        // If packet sockets are a module, the kernel loads it later, for the first socket.
        existing("packet sockets", "ARP and captures", "/proc/net/packet", "CONFIG_PACKET").optional(),
        describe_trial(
            "overlayfs",
            "root file systems of containers",
            "CONFIG_OVERLAY_FS",
            is_root().then(try_overlayfs),
        ),
    ];
    let may_link = is_root() && is_installed("ip");
    for (subject, needed, option, try_it) in [
        ("veth", "cables", "CONFIG_VETH", try_veth as fn() -> io::Result<()>),
        ("bridge", "the switch", "CONFIG_BRIDGE", try_bridge),
    ] {
        checks.push(describe_trial(subject, needed, option, may_link.then(try_it)));
    }
    checks
}

fn namespaces() -> Check {
    let absent: Vec<_> =
        NAMESPACES.into_iter().filter(|name| !Path::new("/proc/self/ns").join(name).exists()).collect();
    let found = if absent.is_empty() { NAMESPACES.join(", ") } else { format!("no {}", absent.join(", ")) };
    let outcome = if absent.is_empty() { Outcome::Ok } else { Outcome::Missing };
    Check::new("namespaces", "hosts and nodes", outcome, found)
        .with_advice(kernel_advice("CONFIG_NAMESPACES, CONFIG_NET_NS, CONFIG_PID_NS, CONFIG_UTS_NS, CONFIG_IPC_NS"))
}

fn existing(subject: &str, needed: &str, file: &str, option: &str) -> Check {
    let exists = Path::new(file).exists();
    let (outcome, found) =
        if exists { (Outcome::Ok, "works") } else { (Outcome::Missing, "not in this kernel, or not loaded") };
    Check::new(subject, needed, outcome, found).with_advice(kernel_advice(option))
}

/// The check of a feature. `result` is the result of the trial; `None` if the feature can't be tried now.
pub(crate) fn describe_trial(subject: &str, needed: &str, option: &str, result: Option<io::Result<()>>) -> Check {
    match result {
        Some(Ok(())) => Check::new(subject, needed, Outcome::Ok, "works"),
        Some(Err(error)) => {
            Check::new(subject, needed, Outcome::Missing, error.to_string()).with_advice(kernel_advice(option))
        }
        None => Check::new(subject, needed, Outcome::Untried, "not tried")
            .with_advice("run this as root, after tests/setup.sh"),
    }
}

fn try_veth() -> io::Result<()> {
    let (a, b) = (Namespace::new()?, Namespace::new()?);
    netns::veth((&a, "eth0"), (&b, "eth0"))
}

fn try_bridge() -> io::Result<()> {
    Namespace::new()?.ip(["link add br0 type bridge"])
}

/// Mounts an overlay in a mount namespace of a thread. The namespace ends with the thread, and its mounts with it.
fn try_overlayfs() -> io::Result<()> {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        // A node's /var is a tmpfs, so this one is, too.
        let base = Path::new("/run");
        mount(Some("doctor"), base, Some("tmpfs"), MsFlags::empty(), none)?;
        for folder in ["lower", "upper", "work", "merged"] {
            fs::create_dir(base.join(folder))?;
        }
        let options = "lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work";
        mount(Some("overlay"), &base.join("merged"), Some("overlay"), MsFlags::empty(), Some(options))?;
        Ok(())
    });
    tried.join().unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_missing_only_if_the_kernel_refuses() {
        for (result, outcome) in [
            (Some(Ok(())), Outcome::Ok),
            (None, Outcome::Untried),
            (Some(Err(io::Error::other("refused"))), Outcome::Missing),
        ] {
            assert_eq!(describe_trial("veth", "cables", "CONFIG_VETH", result).outcome, outcome);
        }
    }

    #[test]
    fn this_kernel_has_all_features_and_keeps_no_mount() {
        for check in checks() {
            assert_eq!(check.outcome, Outcome::Ok, "{}", check.line());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let kept: Vec<_> =
            mounts.lines().filter(|line| line.starts_with("doctor ") || line.contains("/run/merged")).collect();
        assert!(kept.is_empty(), "{kept:?}");
    }
}
