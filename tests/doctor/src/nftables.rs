//! The parts of nf_tables that Landfall's tables, kube-proxy and the lab's switch use, and those of iptables that
//! kube-proxy uses.
//!
//! Each is a script for `nft`, which a new network namespace accepts or refuses.

use std::io::{self, Write};
use std::process::Stdio;

use netns::Namespace;

use crate::check::Check;
use crate::kernel::describe_trial;
use crate::resources::is_root;
use crate::tools::is_installed;

/// A part of nf_tables.
struct Feature {
    subject: &'static str,
    needed: &'static str,
    /// Options of the kernel's configuration.
    option: &'static str,
    /// Tables that use it.
    script: &'static str,
}

/// Parts without which `make demo` fails.
const FEATURES: [Feature; 8] = [
    Feature {
        subject: "nf_tables",
        needed: "tables ip, ip6 and inet",
        option: "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET",
        script: "table ip t { chain c { type filter hook prerouting priority 0; }; }
                 table ip6 t { chain c { type filter hook prerouting priority 0; }; }
                 table inet t { chain c { type filter hook prerouting priority 0; }; }",
    },
    Feature {
        subject: "nft sets",
        needed: "Services, source ranges, affinity",
        option: "CONFIG_NF_TABLES (Linux 5.6 or later)",
        script: "table ip t {
                   set ranges { type ipv4_addr . inet_service . ipv4_addr; flags interval; }
                   set learned { type ipv4_addr . inet_service; size 100; flags dynamic,timeout; }
                   map ways { type mark : verdict; }
                   chain c {
                     type filter hook prerouting priority 0;
                     ip daddr . tcp dport . ip saddr @ranges accept
                     update @learned { ip daddr . tcp dport timeout 1d counter }
                     meta mark vmap @ways
                   }
                 }",
    },
    Feature {
        subject: "nft bridge",
        needed: "cuts and losses at the switch",
        option: "CONFIG_NF_TABLES_BRIDGE",
        script: "table bridge t {
                   set ports { type ifname; }
                   chain c { type filter hook prerouting priority -300; iifname @ports drop; }
                 }",
    },
    Feature {
        subject: "nft numgen",
        needed: "a random endpoint, and losses at the switch",
        option: "CONFIG_NFT_NUMGEN",
        script: "table ip t { chain c { type filter hook prerouting priority 0; meta mark set numgen random mod 2; }; }",
    },
    Feature {
        subject: "nft ct",
        needed: "connection tracking",
        option: "CONFIG_NF_CONNTRACK, CONFIG_NFT_CT",
        script: "table ip t {
                   chain c {
                     type filter hook prerouting priority 0;
                     ct state invalid drop
                     ct original ip daddr 192.0.2.1 accept
                   }
                 }",
    },
    Feature {
        subject: "nft nat",
        needed: "dnat, snat, masquerade, redirect",
        option: "CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_REDIR",
        script: "table ip t {
                   map endpoints { type inet_service : ipv4_addr . inet_service; }
                   chain before { type nat hook prerouting priority -110; dnat ip to tcp dport map @endpoints; }
                   chain output { type nat hook output priority -110; meta l4proto icmp redirect; }
                   chain input { type nat hook input priority 80; }
                   chain after {
                     type nat hook postrouting priority 90;
                     ip saddr 192.0.2.1 snat to 192.0.2.2
                     masquerade fully-random
                   }
                 }
                 table ip6 t { chain c { type nat hook postrouting priority 90; masquerade fully-random; }; }",
    },
    Feature {
        subject: "nft fib",
        needed: "packets of this node",
        option: "CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6, CONFIG_NFT_FIB_INET",
        script: "table ip t { chain c { type filter hook prerouting priority 0; fib saddr type local accept; }; }
                 table ip6 t { chain c { type filter hook prerouting priority 0; fib saddr type local accept; }; }
                 table inet t { chain c { type filter hook prerouting priority 0; fib daddr type local accept; }; }",
    },
    Feature {
        subject: "nft reject",
        needed: "refusal of ports without a Service",
        option: "CONFIG_NFT_REJECT_IPV4, CONFIG_NFT_REJECT_IPV6 (Linux 5.9 or later)",
        script: "table ip t {
                   chain c { type filter hook prerouting priority 0; meta l4proto tcp reject with tcp reset; reject; }
                 }
                 table ip6 t {
                   chain c { type filter hook prerouting priority 0; meta l4proto tcp reject with tcp reset; reject; }
                 }",
    },
];

/// Parts for which Landfall has a substitute, or that only some tests need.
const OPTIONAL_FEATURES: [Feature; 4] = [
    Feature {
        subject: "nft netdev, fwd",
        needed: "to spread frames; without it, Landfall translates",
        option: "CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_FWD_NETDEV",
        script: "table netdev t {
                   chain c {
                     type filter hook ingress device \"eth0\" priority 0;
                     ether daddr set 02:00:00:00:00:02 fwd to \"eth0\"
                   }
                 }",
    },
    Feature {
        subject: "nft jhash",
        needed: "to spread frames; without it, Landfall translates",
        option: "CONFIG_NFT_HASH",
        script: "table ip t {
                   chain c { type filter hook prerouting priority 0; meta mark set jhash ip saddr mod 64 seed 0x4c66; }
                 }",
    },
    Feature {
        subject: "nft dup",
        needed: "open connections of moved slots; without it, they can break",
        option: "CONFIG_NFT_DUP_IPV4, CONFIG_NFT_DUP_IPV6",
        script: "table ip t {
                   map next { type mark : ipv4_addr; }
                   chain c { type filter hook prerouting priority 0; dup to meta mark map @next; }
                 }
                 table ip6 t {
                   map next { type mark : ipv6_addr; }
                   chain c { type filter hook prerouting priority 0; dup to meta mark map @next; }
                 }",
    },
    Feature {
        subject: "nft ct mark",
        needed: "nodes with several links",
        option: "CONFIG_NF_CONNTRACK_MARK",
        script: "table ip t { chain c { type filter hook prerouting priority 0; ct mark set 1; }; }",
    },
];

/// Matches and targets of kube-proxy in iptables mode.
const IPTABLES: &str = "*nat
:A - [0:0]
:B - [0:0]
-A PREROUTING -m comment --comment x -m addrtype --dst-type LOCAL -j A
-A A -m statistic --mode random --probability 0.5 -j B
-A A -m recent --name x --rcheck --seconds 10 --reap -j B
-A B -j MARK --or-mark 0x4000
-A B -p tcp -m tcp -m recent --name x --set -j DNAT --to-destination 192.0.2.1:80
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -j REJECT
COMMIT
";

/// Checks all features.
pub(crate) fn checks() -> Vec<Check> {
    let may_try = is_root() && is_installed("ip");
    let nft = may_try && is_installed("nft");
    let check = |feature: &Feature| {
        let result = nft.then(|| load("nft", &["-f", "-"], feature.script));
        describe_trial(feature.subject, feature.needed, feature.option, result)
    };
    let mut checks: Vec<Check> = FEATURES.iter().map(check).collect();
    checks.extend(OPTIONAL_FEATURES.iter().map(|feature| check(feature).optional()));
    let restore = "iptables-restore";
    let result = (may_try && is_installed(restore)).then(|| load(restore, &[], IPTABLES));
    let option =
        "CONFIG_NFT_COMPAT, and the modules xt_addrtype, xt_comment, xt_conntrack, xt_mark, xt_recent, xt_statistic";
    checks.push(describe_trial("iptables rules", "kube-proxy in iptables mode", option, result).optional());
    checks
}

/// Passes a script to a program in a new network namespace with an interface eth0.
fn load(program: &str, arguments: &[&str], script: &str) -> io::Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip(["link add eth0 type veth peer name peer0"])?;
    let mut command = namespace.command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().expect("invariant: stdin is piped").write_all(format!("{script}\n").as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    // The first line has the reason, and the others the position in the script.
    let message = String::from_utf8_lossy(&output.stderr);
    let reason = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("refused");
    Err(io::Error::other(reason.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    const GOLDENS: [&str; 3] = [
        include_str!("../../../dataplane/tests/golden/table.nft"),
        include_str!("../../../dataplane/tests/golden/table6.nft"),
        include_str!("../../../dataplane/tests/golden/frames.nft"),
    ];

    /// Words of `nft` that need a module of the kernel.
    const WORDS: [&str; 16] = [
        "ct",
        "dnat",
        "dup",
        "fib",
        "fwd",
        "jhash",
        "limit",
        "log",
        "masquerade",
        "numgen",
        "queue",
        "quota",
        "redirect",
        "reject",
        "snat",
        "tproxy",
    ];

    fn has_word(text: &str, word: &str) -> bool {
        // Comments of tables are prose.
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("comment "));
        lines.flat_map(|line| line.split([' ', ';'])).any(|other| other.trim() == word)
    }

    #[test]
    fn each_module_of_the_golden_tables_is_tried() {
        let used = WORDS.into_iter().filter(|word| GOLDENS.iter().any(|golden| has_word(golden, word)));
        let used: Vec<_> = used.collect();
        assert!(used.len() > 6, "{used:?}");
        let tried =
            |word: &str| FEATURES.iter().chain(&OPTIONAL_FEATURES).any(|feature| has_word(feature.script, word));
        let untried: Vec<_> = used.into_iter().filter(|word| !tried(word)).collect();
        assert!(untried.is_empty(), "no feature has {untried:?}");
    }

    #[test]
    fn this_kernel_has_all_features() {
        for check in checks() {
            assert_eq!(check.outcome, Outcome::Ok, "{}", check.line());
        }
    }

    #[test]
    fn a_refused_script_is_reported_with_its_reason() {
        let error = load("nft", &["-f", "-"], "table ip t { chain c { type filter hook nowhere priority 0; } }");
        let error = error.expect_err("there is no such hook").to_string();
        assert!(error.contains("hook") && !error.contains('\n'), "{error}");
    }
}
