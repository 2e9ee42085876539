//! Programs that the lab and its set-up run, and the Debian packages that have them.

use std::path::{Path, PathBuf};

use crate::check::{Check, Outcome};

/// A program and its source.
struct Tool {
    /// A command, or a path.
    program: &'static str,
    needed: &'static str,
    source: Source,
}

/// The source of a program.
#[derive(Clone, Copy)]
enum Source {
    /// A Debian package, which tests/setup.sh installs.
    Package(&'static str),
    /// Another installer, which the user runs.
    User(&'static str),
}

use Source::{Package, User};

/// Programs without which `make demo` fails.
const TOOLS: [Tool; 13] = [
    Tool {
        program: "cargo",
        needed: "to build",
        source: User("install Rust with rustup (https://rustup.rs), in PATH"),
    },
    Tool {
        program: "go",
        needed: "to build Kubernetes",
        source: User("install Go 1.26 or later (https://go.dev/dl), in PATH"),
    },
    Tool { program: "cc", needed: "to build", source: Package("build-essential") },
    Tool { program: "musl-gcc", needed: "to build static programs", source: Package("musl-tools") },
    Tool { program: "awk", needed: "to boot nodes", source: Package("mawk") },
    Tool { program: "etcd", needed: "the control plane", source: Package("etcd-server") },
    Tool { program: "containerd", needed: "pods", source: Package("containerd") },
    Tool { program: "runc", needed: "pods", source: Package("runc") },
    Tool { program: "/usr/lib/cni/ptp", needed: "networks of pods", source: Package("containernetworking-plugins") },
    Tool { program: "nft", needed: "the switch, kube-proxy", source: Package("nftables") },
    Tool { program: "tcpdump", needed: "captures", source: Package("tcpdump") },
    Tool { program: "ip", needed: "cables and routes", source: Package("iproute2") },
    Tool { program: "nsenter", needed: "commands on nodes", source: Package("util-linux") },
];

/// Programs that only some tests need.
const OPTIONAL_TOOLS: [Tool; 6] = [
    Tool { program: "iptables", needed: "kube-proxy in iptables mode", source: Package("iptables") },
    Tool { program: "conntrack", needed: "tests, evidence of failed tests", source: Package("conntrack") },
    Tool { program: "ss", needed: "evidence of failed tests", source: Package("iproute2") },
    Tool { program: "arping", needed: "tests", source: Package("iputils-arping") },
    Tool { program: "ping", needed: "tests", source: Package("iputils-ping") },
    Tool { program: "curl", needed: "tests", source: Package("curl") },
];

/// Folders of programs that PATH of a root shell may lack.
const MORE_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The path of a program.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    // An absolute path replaces the folder.
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Whether a program is installed.
pub(crate) fn is_installed(program: &str) -> bool {
    find(program).is_some()
}

/// The Debian packages of missing programs, each once.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let missing = TOOLS.iter().chain(&OPTIONAL_TOOLS).filter(|tool| !is_installed(tool.program));
    let mut packages: Vec<_> = missing
        .filter_map(|tool| match tool.source {
            Package(package) => Some(package),
            User(_) => None,
        })
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The installation of Debian packages on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apt {
    /// tests/setup.sh runs next, and installs missing packages.
    SetupInstalls,
    /// The user can install packages.
    UserInstalls,
    /// There is no apt-get.
    Absent,
}

/// Checks all programs. Before the set-up, a program that it can install is not missing.
pub(crate) fn checks(before_setup: bool) -> Vec<Check> {
    let apt = match is_installed("apt-get") {
        true if before_setup => Apt::SetupInstalls,
        true => Apt::UserInstalls,
        false => Apt::Absent,
    };
    let check = |tool: &Tool| describe(tool, find(tool.program).as_deref(), apt);
    TOOLS.iter().map(check).chain(OPTIONAL_TOOLS.iter().map(|tool| check(tool).optional())).collect()
}

fn describe(tool: &Tool, path: Option<&Path>, apt: Apt) -> Check {
    let subject = tool.program.rsplit('/').next().unwrap_or(tool.program);
    let new = |outcome, found: String| Check::new(subject, tool.needed, outcome, found);
    match (path, tool.source) {
        (Some(path), _) => new(Outcome::Ok, path.display().to_string()),
        (None, Package(_)) if apt == Apt::SetupInstalls => {
            new(Outcome::Ok, "not found; the set-up installs it".to_owned())
        }
        (None, Package(package)) => {
            let is_path = tool.program.starts_with('/');
            let advice = match apt {
                Apt::Absent if is_path => format!("install it as {} (Debian's package: {package})", tool.program),
                Apt::Absent => format!("install it (Debian's package: {package})"),
                Apt::SetupInstalls | Apt::UserInstalls => format!("apt-get install {package}"),
            };
            new(Outcome::Missing, "not found".to_owned()).with_advice(advice)
        }
        (None, User(advice)) => new(Outcome::Missing, "not found".to_owned()).with_advice(advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_set_up_installs_is_not_missing() {
        let nft = Tool { program: "nft", needed: "the switch", source: Package("nftables") };
        let go = Tool { program: "go", needed: "Kubernetes", source: User("install Go") };
        let path = Some(Path::new("/usr/sbin/nft"));
        let ptp = Tool { program: "/usr/lib/cni/ptp", needed: "networks", source: Package("plugins") };
        for (tool, path, apt, outcome, advice) in [
            (&nft, path, Apt::UserInstalls, Outcome::Ok, ""),
            (&nft, None, Apt::SetupInstalls, Outcome::Ok, ""),
            (&nft, None, Apt::UserInstalls, Outcome::Missing, "apt-get install nftables"),
            (&nft, None, Apt::Absent, Outcome::Missing, "install it (Debian's package: nftables)"),
            (&ptp, None, Apt::Absent, Outcome::Missing, "install it as /usr/lib/cni/ptp (Debian's package: plugins)"),
            (&go, path, Apt::Absent, Outcome::Ok, ""),
            (&go, None, Apt::SetupInstalls, Outcome::Missing, "install Go"),
        ] {
            let check = describe(tool, path, apt);
            assert_eq!((check.outcome, &*check.advice), (outcome, advice), "{}", check.line());
        }
    }

    #[test]
    fn a_program_is_found_by_name_or_path() {
        assert_eq!(find("/bin/sh"), Some("/bin/sh".into()));
        assert!(is_installed("sh") && !is_installed("no-such-program") && !is_installed("/bin/no-such-program"));
    }
}
