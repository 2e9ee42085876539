//! Cables: the switch, and each host's place at it.
//!
//! Touches network namespaces `lf-CLUSTER-HOST` in `/run/netns`, and nothing outside of them: the root namespace gets
//! no interface.
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

use crate::topology::{Kind, POD_CIDRS, Seat};

/// The bridge in the switch.
pub const BRIDGE: &str = "br0";
/// The name of the host that is the switch.
pub const SWITCH: &str = "switch";

/// The name of a host's namespace.
pub fn namespace_name(cluster: &str, host: &str) -> String {
    format!("lf-{cluster}-{host}")
}

/// The cluster whose namespace this is. Hosts' names have no dash in them.
fn cluster_of(namespace: &str) -> Option<&str> {
    Some(namespace.strip_prefix("lf-")?.rsplit_once('-')?.0)
}

/// Names of all namespaces that belong to some cluster, with the name of the cluster.
fn namespaces() -> Vec<(String, String)> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some((cluster_of(&name)?.to_owned(), name))).collect()
}

/// Clusters that have a namespace.
pub fn clusters() -> Vec<String> {
    namespaces().into_iter().map(|(cluster, _)| cluster).collect()
}

/// Takes away every namespace of a cluster.
pub fn remove(cluster: &str) -> Result<()> {
    for (_, name) in namespaces().into_iter().filter(|(of, _)| of == cluster) {
        Namespace::delete(&name).with_context(|| format!("delete the network namespace {name}"))?;
    }
    Ok(())
}

/// Sets sysctls below `net`, where they exist, in one visit.
fn sysctls(namespace: &Namespace, settings: &[(&str, &str)]) -> Result<()> {
    namespace.run(|| {
        for (key, value) in settings {
            let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
            match fs::write(&path, value) {
                // A kernel without that feature (bridge-nf, IPv6) has nothing to switch off.
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

/// Makes the switch: a learning bridge that floods multicast and has no address itself.
pub fn make_switch(cluster: &str) -> Result<Namespace> {
    let switch = Namespace::named(&namespace_name(cluster, SWITCH)).context("make the switch's network namespace")?;
    sysctls(
        &switch,
        &[
            ("bridge.bridge-nf-call-iptables", "0"),
            ("bridge.bridge-nf-call-ip6tables", "0"),
            ("bridge.bridge-nf-call-arptables", "0"),
            // The switch says nothing of its own.
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

/// Makes a host's namespace and plugs it in: addresses, routes to the pods of all `seats`, forwarding if it routes.
pub fn plug(cluster: &str, switch: &Namespace, seat: &Seat, seats: &[Seat]) -> Result<Namespace> {
    let name = namespace_name(cluster, &seat.name);
    let host = Namespace::named(&name).with_context(|| format!("make the network namespace {name}"))?;
    let routes = seat.kind != Kind::Client;
    let forwarding = if routes { "1" } else { "0" };
    sysctls(
        &host,
        &[
            // Before the interface exists, as it inherits them. No duplicate address detection: it takes a second or
            // two, and these addresses are unique by construction.
            ("ipv6.conf.all.accept_dad", "0"),
            ("ipv6.conf.default.accept_dad", "0"),
            ("ipv6.conf.default.accept_ra", "0"),
            ("ipv4.conf.all.rp_filter", "0"),
            ("ipv4.conf.default.rp_filter", "0"),
            ("ipv4.ip_forward", forwarding),
            ("ipv6.conf.all.forwarding", forwarding),
        ],
    )?;
    netns::veth((&host, "eth0"), (switch, &seat.name)).with_context(|| format!("plug {} in", seat.name))?;
    switch.ip([format!("link set {} master {BRIDGE} up", seat.name)])?;
    host.ip(address_lines(seat, seats))?;
    if let Some(pods) = seat.pods() {
        // What leaves the cluster leaves with the node's address, as the LAN knows nothing of pods.
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

/// Unplugs a host: its cable, then its namespace, which goes with the last process in it.
pub fn unplug(cluster: &str, switch: &Namespace, host: &str) -> Result<()> {
    switch.ip([format!("link del {host}")])?;
    let name = namespace_name(cluster, host);
    Namespace::delete(&name).with_context(|| format!("delete the network namespace {name}"))
}

/// The lines for `ip` that give a host its addresses and routes.
fn address_lines(seat: &Seat, seats: &[Seat]) -> Vec<String> {
    let mut lines = vec![
        format!("link set eth0 address {} up", seat.mac()),
        format!("addr add {}/24 dev eth0", seat.v4()),
        format!("addr add {}/64 dev eth0 nodad", seat.v6()),
    ];
    if seat.kind == Kind::Client {
        return lines;
    }
    for other in seats.iter().filter(|other| other.name != seat.name) {
        if let Some(pods) = other.pods() {
            lines.push(format!("route add {} via {}", pods.v4(), other.v4()));
            lines.push(format!("route add {} via {}", pods.v6(), other.v6()));
        }
        // Without a default route a connect to a ClusterIP fails before NAT sees it.
        if other.kind == Kind::ControlPlane {
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
    fn a_node_routes_to_the_pods_of_the_others_and_a_client_to_none() {
        let seats = Topology { nodes: 2, ..Topology::default() }.seats();
        let lines = |name: &str| {
            let seat = seats.iter().find(|seat| seat.name == name).expect("a seat");
            address_lines(seat, &seats)
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
