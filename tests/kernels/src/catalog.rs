//! The lists: kernels, modules, tests, and known failures.

use std::time::Duration;

/// The series that are always tested: the oldest that Landfall supports, those of Debian 12 and 13, and the newest of
/// their backports with long-term support. The series of this machine's own kernel comes last.
pub const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "6.18"];

/// The suites of Debian with these kernels.
pub const SUITES: [&str; 5] = ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"];

/// Modules that a guest loads at its start, with those that they depend on. The first ones mount the file system of the
/// machine. The others would be loaded on demand, but each demand starts a program, and emulation is slow.
pub const MODULES: [&str; 40] = [
    // libcrc32c requests this module by name, and depmod does not record such a dependency.
    "crc32c_generic",
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "8021q",
    "bonding",
    "bridge",
    "dummy",
    "tun",
    "veth",
    "nf_conntrack_netlink",
    "nf_tables",
    "nf_dup_netdev",
    "nf_reject_ipv4",
    "nf_reject_ipv6",
    "nft_chain_nat",
    "nft_compat",
    "nft_counter",
    "nft_ct",
    "nft_dup_netdev",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fwd_netdev",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_meta_bridge",
    "nft_nat",
    "nft_numgen",
    "nft_quota",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject_netdev",
];

/// Modules that only some series have.
pub const MAY_BE_ABSENT: [&str; 3] = ["crc32c_generic", "nft_counter", "nft_reject_netdev"];

/// Tests that run on each kernel: a target, and arguments of libtest.
pub struct Selection {
    pub package: &'static str,
    pub target: &'static str,
    /// Parts of the names of the tests, or tests to skip. Empty: all tests of the target.
    pub arguments: &'static [&'static str],
    /// Why the other tests of the target are left out. Empty if all run.
    reason: &'static str,
}

const fn select(package: &'static str, target: &'static str) -> Selection {
    Selection { package, target, arguments: &[], reason: "" }
}

impl Selection {
    const fn select_tests(self, arguments: &'static [&'static str], reason: &'static str) -> Self {
        Self { arguments, reason, ..self }
    }

    /// `dataplane::spread`.
    pub fn name(&self) -> String {
        format!("{}::{}", self.package, self.target)
    }

    /// `dataplane::spread: left out: all but as_traced, icmp_error: they ...`; `None` if all tests run.
    pub fn describe_left_out(&self) -> Option<String> {
        let parts: Vec<&str> = self.arguments.iter().copied().filter(|argument| *argument != "--skip").collect();
        let all_but = if self.arguments.contains(&"--skip") { "" } else { "all but " };
        let text = format!("{}: left out: {all_but}{}: {}", self.name(), parts.join(", "), self.reason);
        (!parts.is_empty()).then_some(text)
    }
}

const LOAD: &str = "they measure load, which emulation slows down tenfold";
const SAME: &str = "they use the same features of the kernel";
const BOUNDS: &str = "they have bounds below a second, and would measure the emulation";

/// The tests that run on each kernel. Tests of the tables and messages that the kernel accepts and prints are all
/// selected. Only a few tests of its handling of packets are selected, because emulation takes ten times as long.
pub const SELECTIONS: [Selection; 10] = [
    select("dataplane", "kernel").select_tests(&["--skip", "twenty_thousand", "--skip", "ten_thousand"], LOAD),
    select("dataplane", "links"),
    select("dataplane", "packets")
        .select_tests(&["both_families", "refused_at_once", "is_answered", "answers_a_ping", "replacement"], SAME),
    select("dataplane", "spread").select_tests(&["endpoints_on_all_nodes", "as_traced", "icmp_error"], SAME),
    select("dataplane", "affinity").select_tests(&["switched_at_runtime"], SAME),
    select("dataplane", "agent").select_tests(&["refused_marks", "without_spreading"], SAME),
    select("dataplane", "reply_path"),
    select("dataplane", "traffic"),
    select("netlink", "links"),
    select("speaker", "wire")
        .select_tests(&["one_node_answers", "new_link_or_mac", "without_ipv4", "duplicate_address_detection"], BOUNDS),
];

/// Packages that are compiled with optimizations, beside the usual artefacts. Their tests spend most of the time in the
/// code of these packages, and emulation makes each instruction slow.
pub const OPTIMIZED: [&str; 2] = ["dataplane", "netlink"];

/// The name of the step that checks whether a kernel can run the lab.
pub const DOCTOR: &str = "doctor";

/// Checks of the doctor that do not concern the kernel: a guest is small, and nothing is built there.
pub const NOT_ABOUT_THE_KERNEL: [&str; 5] = ["memory", "disk", "inotify instances", "cargo", "go"];

/// The time after which a step is ended.
pub const STEP_SECONDS: u32 = 600;

/// The time after which a guest is ended.
pub const GUEST_LIMIT: Duration = Duration::from_secs(2400);

/// A failure that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFailure {
    /// The series on which it fails.
    pub series: &'static [&'static str],
    /// `dataplane::spread::NAME`, `doctor::SUBJECT`, or the beginning of such names with `*` at its end.
    pub test: &'static str,
    /// Why it fails, in one sentence.
    pub reason: &'static str,
}

const NFT: &str = "Linux 6.12.115 and later refuse a byteorder expression that nft writes when it loads the text; \
                   Landfall does not write it";

/// The known failures. If one of these tests passes, the run fails, so that its entry is removed.
pub const KNOWN: [KnownFailure; 3] = [
    KnownFailure {
        series: &["5.10"],
        test: "doctor::kernel",
        reason: "the lab needs Linux 5.14 for cgroup.kill; Landfall itself does not",
    },
    KnownFailure { series: &["6.12"], test: "dataplane::kernel::nft_loads_the_golden_tables", reason: NFT },
    KnownFailure {
        series: &["6.12"],
        test: "dataplane::kernel::tables_with_other_comments_on_sets_are_adopted",
        reason: NFT,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_are_left_out_have_a_reason() {
        let load = select("p", "a").select_tests(&["--skip", "x", "--skip", "y"], LOAD);
        assert_eq!(load.describe_left_out(), Some(format!("p::a: left out: x, y: {LOAD}")));
        let same = select("p", "a").select_tests(&["x", "y"], SAME);
        assert_eq!(same.describe_left_out(), Some(format!("p::a: left out: all but x, y: {SAME}")));
        assert_eq!(select("p", "a").describe_left_out(), None);
    }
}
