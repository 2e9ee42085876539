//! Network: the switch, and the cable of each host.
//!
//! Touches network namespaces `lf-CLUSTER-HOST` in `/run/netns`, and nothing outside of them: the root namespace has no
//! interface in the lab.
//!
//! ```text
//!   lf-NAME-switch: br0 ── cp ─── eth0 lf-NAME-cp
//!                    ├──── n1 ─── eth0 lf-NAME-n1
//!                    └──── c1 ─── eth0 lf-NAME-c1
//! ```

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use netns::Namespace;

use crate::topology::{HostKind, HostSpec, POD_CIDRS};

/// The bridge in the switch.
pub const BRIDGE: &str = "br0";
/// The switch's name as a host.
pub const SWITCH: &str = "switch";

/// The name of a host's namespace.
pub fn namespace_name(cluster: &str, host: &str) -> String {
    format!("lf-{cluster}-{host}")
}

/// The cluster of a namespace. Host names contain no dash.
fn cluster_of(namespace: &str) -> Option<&str> {
    Some(namespace.strip_prefix("lf-")?.rsplit_once('-')?.0)
}

/// (cluster, namespace) of all namespaces of clusters.
fn namespaces() -> Vec<(String, String)> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some((cluster_of(&name)?.to_owned(), name))).collect()
}

/// Clusters that have a namespace.
pub fn clusters() -> Vec<String> {
    namespaces().into_iter().map(|(cluster, _)| cluster).collect()
}

/// Deletes every namespace of a cluster.
pub fn remove(cluster: &str) -> Result<()> {
    for (_, name) in namespaces().into_iter().filter(|(owner, _)| owner == cluster) {
        Namespace::delete(&name).with_context(|| format!("delete the network namespace {name}"))?;
    }
    Ok(())
}

/// Sets sysctls below `net`, if they exist, on one thread.
fn sysctls(namespace: &Namespace, settings: &[(&str, &str)]) -> Result<()> {
    namespace.run(|| {
        for (key, value) in settings {
            let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
            match fs::write(&path, value) {
                // A kernel without the feature (bridge-nf, IPv6) has no such sysctl.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("set {path} to {value}"));
                }
                _ => {}
            }
        }
        Ok(())
    })
}

/// Runs an nft script in a namespace.
pub fn nft(namespace: &Namespace, script: &str) -> Result<()> {
    use std::io::Write;
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start nft")?;
    child.stdin.take().expect("invariant: stdin is piped").write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\nin:\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The table of injected faults in the switch. It drops frames from a cut port before the switch learns from them, so
/// that the capture on the bridge does not show them either. It drops frames to a cut port in the last hook of the
/// bridge.
const FAULT_TABLE: &str = "table bridge lab {
    set cut_from { type ifname; }
    set cut_to { type ifname; }
    set cut_pairs { type ifname . ifname; }
    set blocked_groups { type ether_addr; }
    chain from { type filter hook prerouting priority -300; policy accept; iifname @cut_from drop; }
    chain between {
        type filter hook forward priority -300; policy accept;
        iifname . oifname @cut_pairs drop
        ether daddr @blocked_groups drop
    }
    chain to { type filter hook postrouting priority 300; policy accept; oifname @cut_to drop; }
}";

/// Creates the table of injected faults.
pub fn create_fault_table(switch: &Namespace) -> Result<()> {
    nft(switch, FAULT_TABLE)
}

/// Creates the switch: a learning bridge that floods multicast and has no address.
pub fn create_switch(cluster: &str) -> Result<Namespace> {
    let switch =
        Namespace::create_named(&namespace_name(cluster, SWITCH)).context("make the switch's network namespace")?;
    sysctls(
        &switch,
        &[
            ("bridge.bridge-nf-call-iptables", "0"),
            ("bridge.bridge-nf-call-ip6tables", "0"),
            ("bridge.bridge-nf-call-arptables", "0"),
            // The switch sends no packets of its own.
            ("ipv6.conf.all.disable_ipv6", "1"),
            ("ipv6.conf.default.disable_ipv6", "1"),
        ],
    )?;
    switch.ip([
        format!("link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
        format!("link set {BRIDGE} up"),
    ])?;
    Ok(switch)
}

/// Creates a host's namespace and its cable to the switch, and sets addresses, routes to the pods of all `specs`, and
/// forwarding.
pub fn plug(cluster: &str, switch: &Namespace, spec: &HostSpec, specs: &[HostSpec]) -> Result<Namespace> {
    let name = namespace_name(cluster, &spec.name);
    let host = Namespace::create_named(&name).with_context(|| format!("make the network namespace {name}"))?;
    let routes = spec.kind != HostKind::Client;
    let forwarding = if routes { "1" } else { "0" };
    sysctls(
        &host,
        &[
            // Set before the interface exists, which inherits them. Duplicate address detection is off: it takes a
            // second or two, and these addresses are unique.
            ("ipv6.conf.all.accept_dad", "0"),
            ("ipv6.conf.default.accept_dad", "0"),
            ("ipv6.conf.default.accept_ra", "0"),
            ("ipv4.conf.all.rp_filter", "0"),
            ("ipv4.conf.default.rp_filter", "0"),
            ("ipv4.ip_forward", forwarding),
            ("ipv6.conf.all.forwarding", forwarding),
        ],
    )?;
    netns::veth((&host, "eth0"), (switch, &spec.name)).with_context(|| format!("plug {} in", spec.name))?;
    switch.ip([format!("link set {} master {BRIDGE} up", spec.name)])?;
    host.ip(address_lines(spec, specs))?;
    if let Some(pods) = spec.pods() {
        // Packets of pods leave the cluster with the node's address, because the LAN has no routes to pods.
        let [all4, all6] = POD_CIDRS;
        nft(
            &host,
            &format!(
                "table inet lab {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat;\n\
                 oifname eth0 ip saddr {} ip daddr != {all4} masquerade\n\
                 oifname eth0 ip6 saddr {} ip6 daddr != {all6} masquerade\n}}\n}}",
                pods.v4(),
                pods.v6()
            ),
        )?;
    }
    Ok(host)
}

/// Removes a host's cable, then its namespace, which ends with the last process in it.
pub fn unplug(cluster: &str, switch: &Namespace, host: &str) -> Result<()> {
    switch.ip([format!("link del {host}")])?;
    let name = namespace_name(cluster, host);
    Namespace::delete(&name).with_context(|| format!("delete the network namespace {name}"))
}

/// Command lines of `ip` that set a host's addresses and routes.
fn address_lines(spec: &HostSpec, specs: &[HostSpec]) -> Vec<String> {
    let mut lines = vec![
        format!("link set eth0 address {} up", spec.mac()),
        format!("addr add {}/24 dev eth0", spec.v4()),
        format!("addr add {}/64 dev eth0 nodad", spec.v6()),
    ];
    if spec.kind == HostKind::Client {
        return lines;
    }
    for other in specs.iter().filter(|other| other.name != spec.name) {
        if let Some(pods) = other.pods() {
            lines.push(format!("route add {} via {}", pods.v4(), other.v4()));
            lines.push(format!("route add {} via {}", pods.v6(), other.v6()));
        }
        // Without a default route a connect to a ClusterIP fails before NAT sees it.
        if other.kind == HostKind::ControlPlane {
            lines.push(format!("route add default via {}", other.v4()));
            lines.push(format!("route add default via {}", other.v6()));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn only_nodes_have_routes_to_pods() {
        let specs = Topology { nodes: 2, ..Topology::default() }.hosts();
        let lines = |name: &str| {
            let spec = specs.iter().find(|spec| spec.name == name).expect("a host");
            address_lines(spec, &specs)
        };
        assert_eq!(
            lines("n1"),
            [
                "link set eth0 address 02:00:00:00:00:11 up",
                "addr add 192.0.2.11/24 dev eth0",
                "addr add 2001:db8::11/64 dev eth0 nodad",
                "route add default via 192.0.2.1",
                "route add default via 2001:db8::1",
                "route add 10.244.2.0/24 via 192.0.2.12",
                "route add fd00:10:244:2::/64 via 2001:db8::12",
            ]
        );
        assert_eq!(lines("c1").len(), 3);
        assert!(!lines("cp").iter().any(|line| line.contains("default")));
    }

    #[test]
    fn a_namespace_belongs_to_the_cluster_before_its_last_dash() {
        assert_eq!(cluster_of("lf-a-b-n1"), Some("a-b"));
        assert_eq!(cluster_of("lf-a-switch"), Some("a"));
        assert_eq!(cluster_of("other-a-n1"), None);
    }
}
