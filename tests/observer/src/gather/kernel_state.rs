//! Reads the state of a node's kernel. Changes nothing.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use lab::Host;

use crate::checks::kernel::KernelState;

/// Prints the state, one line for each table, rule, route, address, group and socket.
const STATE: &str = r#"
nft list tables
for family in -4 -6; do
  ip $family rule | sed "s/^/rule $family /"
  ip $family route show table all | sed "s/^/route $family /"
  ip $family -o address | sed 's/^[0-9]*: /address /; s/valid_lft.*//'
  ip $family -o maddress | sed 's/^[0-9]*: /group /'
done
ss -H -n -l -t -u -w -0 | awk '{ print "socket", $1, $5 }'
"#;

/// Prints all parts of the state in which a load-balancer address may occur.
const ADDRESSES: &str = r#"
for family in ip ip6 netdev; do nft list table $family landfall 2>/dev/null; done
ip -6 -o maddress show dev eth0
conntrack -L 2>/dev/null
conntrack -L -f ipv6 2>/dev/null
"#;

/// Folders of sysctls. Apart from [`VOLATILE`] ones, only a user or Landfall changes their values.
const SYSCTLS: [&str; 4] = ["net/core", "net/ipv4", "net/ipv6", "net/netfilter"];

/// Sysctls with one of these parts in their path change by themselves.
const VOLATILE: [&str; 5] = ["veth", "neigh/", "nf_conntrack_count", "fib_", "stable_secret"];

/// The state of a node's kernel.
pub fn read(node: &Host) -> Result<KernelState> {
    let mut state: KernelState = run_script(node, STATE)?.lines().map(|line| line.trim().to_owned()).collect();
    node.run(|| SYSCTLS.iter().for_each(|folder| read_sysctls(&Path::new("/proc/sys").join(folder), &mut state)))?;
    Ok(state)
}

/// All text in a node's kernel in which a load-balancer address may occur.
pub fn dump_addresses(node: &Host) -> Result<String> {
    run_script(node, ADDRESSES)
}

/// The elements of the sets `addresses`: all addresses that Landfall has programmed.
pub fn list_programmed(node: &Host) -> Result<std::collections::BTreeSet<IpAddr>> {
    let script = "for family in ip ip6; do nft list set $family landfall addresses 2>/dev/null; done; true";
    Ok(crate::checks::kernel::find_addresses(&run_script(node, script)?))
}

fn run_script(node: &Host, script: &str) -> Result<String> {
    let output = node.netns()?.command("sh").args(["-c", script]).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("read the kernel of {}", node.name()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read_sysctls(folder: &Path, state: &mut KernelState) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.path().to_string_lossy().into_owned());
        if VOLATILE.iter().any(|part| name.contains(part)) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            read_sysctls(&path, state);
        } else if let Ok(value) = fs::read_to_string(&path) {
            state.insert(format!("sysctl {} {}", name.trim_start_matches("/proc/sys/"), value.trim()));
        }
    }
}
