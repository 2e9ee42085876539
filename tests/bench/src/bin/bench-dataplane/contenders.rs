//! The contenders of the CPU measurement, each with a [`ForwardingPath`]: floors (the least possible work), kube-proxy,
//! and Landfall in several sizes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use dataplane::Snapshot;
use dataplane::nft::Engine;
use dataplane::rules::plan_ruleset;

use crate::path::{Ends, ForwardingPath};
use crate::synthetic::{self, Size};

/// An address at which the server answers, and the host that forwards to it.
pub struct Contender {
    /// The name in the report.
    pub name: &'static str,
    pub target: SocketAddr,
    /// The forwarding host; `None` for the direct cable.
    pub path: Option<ForwardingPath>,
    /// Whether half of its flows are re-sent to a node that does not exist.
    pub is_spread: bool,
}

/// The address of kube-proxy's only Service, on the path of this number.
pub fn kube_proxy_lb_ip(path: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, path)
}

/// The address of the static rule. The addresses of kube-proxy ([`kube_proxy_lb_ip`]) are in the same network.
const STATIC_LB_IP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// The numbers of the paths to which kube-proxy's rules forward, under the policies Cluster and Local.
pub const KUBE_PROXY_PATHS: [u8; 2] = [9, 10];

/// Client and server without a host in between.
pub fn direct(ends: &Ends) -> Contender {
    Contender { name: "client and server alone", target: ends.direct(), path: None, is_spread: false }
}

/// Routing and connection tracking, without translation.
pub fn plain_routing(ends: &Ends) -> Result<Contender> {
    let path = ends.add_path(1)?;
    // A rule with `ct state` enables connection tracking.
    path.nft("table ip floor { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }")?;
    Ok(Contender { name: "routed + conntrack", target: path.server(), path: Some(path), is_spread: false })
}

pub fn static_dnat(ends: &Ends) -> Result<Contender> {
    let path = ends.add_path(2)?;
    let rule = format!("ip daddr {STATIC_LB_IP} tcp dport {} dnat to {}", synthetic::PORT, path.server());
    path.nft(&format!(
        "table ip floor {{ chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}; }}"
    ))?;
    ends.route_via(STATIC_LB_IP.into(), &path)?;
    Ok(Contender {
        name: "one static DNAT rule",
        target: (STATIC_LB_IP, synthetic::PORT).into(),
        path: Some(path),
        is_spread: false,
    })
}

/// kube-proxy's rules for one Service, from the node on which it wrote them.
pub fn kube_proxy(ends: &Ends, name: &'static str, number: u8, rules: &str) -> Result<Contender> {
    let path = ends.add_path(number)?;
    path.nft(rules)?;
    let address = kube_proxy_lb_ip(number);
    ends.route_via(address.into(), &path)?;
    Ok(Contender { name, target: (address, synthetic::PORT).into(), path: Some(path), is_spread: false })
}

/// Landfall with synthetic Services. The last one is measured.
pub fn landfall(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let path = ends.add_path(number)?;
    let snapshot = synthetic::snapshot(size, Some(path.server()))?;
    program(ends, path, name, size, &snapshot)
}

/// Like [`landfall`], with counters of packets and bytes.
pub fn landfall_with_counters(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let path = ends.add_path(number)?;
    let snapshot = Snapshot { count_traffic: true, ..synthetic::snapshot(size, Some(path.server()))? };
    program(ends, path, name, size, &snapshot)
}

/// Like [`landfall`], with a second endpoint on another node: each frame is hashed before this node keeps it.
pub fn landfall_with_spreading(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let path = ends.add_path(number)?;
    let mut snapshot = synthetic::snapshot(size, None)?;
    let (last, server) = (size.services - 1, path.server());
    let endpoints = [
        synthetic::endpoint(server.ip(), synthetic::NODE),
        synthetic::endpoint(Ipv4Addr::new(10, 9, 9, 9).into(), "n2"),
    ];
    snapshot.slices.insert(synthetic::key(last), [synthetic::slice(last, server.port(), endpoints)].into());
    Ok(Contender { is_spread: true, ..program(ends, path, name, size, &snapshot)? })
}

fn program(
    ends: &Ends,
    path: ForwardingPath,
    name: &'static str,
    size: Size,
    snapshot: &Snapshot,
) -> Result<Contender> {
    path.host.run(|| -> Result<()> {
        Engine::open()?.apply(&Arc::new(plan_ruleset(snapshot))).context("program the kernel")?;
        Ok(())
    })?;
    // The sizes of the contenders differ, so each of them has its own address.
    let address: IpAddr = synthetic::lb_ip(size.services - 1);
    ends.route_via(address, &path)?;
    Ok(Contender { name, target: (address, synthetic::PORT).into(), path: Some(path), is_spread: false })
}
