//! What is measured against what on a [`Way`]: floors, kube-proxy, and Landfall in several sizes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use dataplane::Snapshot;
use dataplane::nft::engine::Engine;
use dataplane::rules::plan::ruleset;

use crate::path::{Ends, Way};
use crate::synthetic::{self, Size};

/// Somebody who can be asked.
pub struct Contender {
    /// What the report calls it.
    pub name: &'static str,
    /// Where it is asked.
    pub target: SocketAddr,
    /// How it forwards; `None` for the direct cable.
    pub way: Option<Way>,
    /// Whether half of its flows are handed on to a node that isn't there.
    pub is_spread: bool,
}

/// The lb_ip of kube-proxy's only Service.
pub const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The lb_ip of the static rule.
const STATIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// The way that kube-proxy's rules lead on.
pub const PEER_WAY: u8 = 9;

/// Client and server alone.
pub fn direct(ends: &Ends) -> Contender {
    Contender { name: "client and server alone", target: ends.direct(), way: None, is_spread: false }
}

/// Routing, and connection tracking.
///
/// # Errors
/// If it can't be set up. The same holds for all of these.
pub fn routed(ends: &Ends) -> Result<Contender> {
    let way = ends.way(1)?;
    // A rule that asks for the state makes the kernel track.
    way.nft("table ip floor { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }")?;
    Ok(Contender { name: "routed + conntrack", target: way.server(), way: Some(way), is_spread: false })
}

/// One static rule.
pub fn dnat(ends: &Ends) -> Result<Contender> {
    let way = ends.way(2)?;
    let rule = format!("ip daddr {STATIC} tcp dport {} dnat to {}", synthetic::PORT, way.server());
    way.nft(&format!(
        "table ip floor {{ chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}; }}"
    ))?;
    ends.lead(STATIC.into(), &way)?;
    Ok(Contender {
        name: "one static DNAT rule",
        target: (STATIC, synthetic::PORT).into(),
        way: Some(way),
        is_spread: false,
    })
}

/// kube-proxy's rules for one Service, as it has written them elsewhere.
pub fn kube_proxy(ends: &Ends, rules: &str) -> Result<Contender> {
    let way = ends.way(PEER_WAY)?;
    way.nft(rules)?;
    ends.lead(PEER.into(), &way)?;
    Ok(Contender {
        name: "kube-proxy nftables, 1 Service",
        target: (PEER, synthetic::PORT).into(),
        way: Some(way),
        is_spread: false,
    })
}

/// Landfall with so many Services, of which the last is asked.
pub fn landfall(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let way = ends.way(number)?;
    let snapshot = synthetic::snapshot(size, Some(way.server()))?;
    programmed(ends, way, name, (size, &snapshot))
}

/// The same, where packets and bytes are counted too.
///
/// # Errors
/// See above.
pub fn counted(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let way = ends.way(number)?;
    let snapshot = Snapshot { counts: true, ..synthetic::snapshot(size, Some(way.server()))? };
    programmed(ends, way, name, (size, &snapshot))
}

/// The same, with a second endpoint on another node: the first looks at each frame before it keeps it.
pub fn spread(ends: &Ends, name: &'static str, number: u8, size: Size) -> Result<Contender> {
    let way = ends.way(number)?;
    let mut snapshot = synthetic::snapshot(size, None)?;
    let (last, server) = (size.services - 1, way.server());
    let endpoints = [
        synthetic::endpoint(server.ip(), synthetic::NODE),
        synthetic::endpoint(Ipv4Addr::new(10, 9, 9, 9).into(), "n2"),
    ];
    snapshot.slices.insert(synthetic::key(last), [synthetic::slice(last, server.port(), endpoints)].into());
    Ok(Contender { is_spread: true, ..programmed(ends, way, name, (size, &snapshot))? })
}

fn programmed(ends: &Ends, way: Way, name: &'static str, of: (Size, &Snapshot)) -> Result<Contender> {
    let (size, snapshot) = of;
    way.host.run(|| -> Result<()> {
        Engine::open()?.apply(&Arc::new(ruleset(snapshot))).context("program the kernel")?;
        Ok(())
    })?;
    // Sizes differ, so each contender has another one.
    let address: IpAddr = synthetic::lb_ip(size.services - 1);
    ends.lead(address, &way)?;
    Ok(Contender { name, target: (address, synthetic::PORT).into(), way: Some(way), is_spread: false })
}
