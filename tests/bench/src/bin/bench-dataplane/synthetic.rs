//! Snapshots of clusters with many Services, from numbers. Pure.
//!
//! Every Service has an address, one TCP and one UDP port, and endpoints on three nodes in turn. The last Service is
//! the *canary*: all requests go to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use crds::{Endpoint, EndpointSlice, Holder, Key, MacAddr, Port, Protocol, Service};
use dataplane::Snapshot;
use dataplane::snapshot::{self, Link, LinkName, ServiceOptions};
use k8s_openapi::api::core::v1 as core;

/// The node of the snapshot.
pub const NODE: &str = "n1";

/// Its MAC address on the LAN.
pub const MAC: &str = "02:00:00:00:00:01";

/// The port of every Service.
pub const PORT: u16 = 80;

/// The number of nodes.
const NODES: u32 = 3;

/// Load-balancer addresses, in the range of RFC 2544 for benchmarks.
const LB_IPS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// Endpoints without traffic.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// The size of a synthetic cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub services: u32,
    /// Endpoints of each Service.
    pub endpoints: u32,
    /// Whether frames are spread on the link `eth0`.
    pub spread: bool,
}

pub fn lb_ip(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(LB_IPS.to_bits() + n).into()
}

pub fn key(n: u32) -> Key {
    Key::new("bench", format!("s-{n:05}"))
}

/// A cluster of this size. `canary` is the only endpoint of the canary; `None` gives it idle ones like all others.
pub fn snapshot(size: Size, canary: Option<SocketAddr>) -> Result<Snapshot> {
    let empty = Service::try_from(&core::Service::default()).context("an empty Service")?;
    let options = Arc::<ServiceOptions>::default();
    let mut snapshot = Snapshot { node: NODE.into(), ..Snapshot::default() };
    for n in 0..size.services {
        let key = key(n);
        let service = Service {
            key: key.clone(),
            uid: format!("uid-{n}").into(),
            is_load_balancer: true,
            ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
            ..empty.clone()
        };
        let holder =
            Holder { namespace: key.namespace.clone(), name: key.name.clone(), uid: service.uid.clone(), terms: None };
        snapshot.addresses.insert(lb_ip(n), [holder].into());
        let slice = match canary.filter(|_| n + 1 == size.services) {
            Some(at) => slice(n, at.port(), [endpoint(at.ip(), NODE)]),
            None => slice(n, 8080, (0..size.endpoints).map(|e| idle_endpoint(n * size.endpoints + e))),
        };
        snapshot.slices.insert(key.clone(), [slice].into());
        snapshot.services.insert(key, snapshot::Service { object: Arc::new(service), options: Arc::clone(&options) });
    }
    if size.spread {
        let peers = (2..=NODES).map(|n| (format!("n{n}"), mac(n as u8))).collect();
        let eth0 = LinkName::new("eth0").context("invariant: a name")?;
        let addresses = (2..=NODES).map(|n| (format!("n{n}"), vec![IpAddr::from([192, 0, 2, n as u8])])).collect();
        snapshot.links.insert(eth0, Link { mac: mac(1), peers, addresses });
    }
    Ok(snapshot)
}

/// The slice of the n-th Service with these endpoints.
pub fn slice(n: u32, port: u16, endpoints: impl IntoIterator<Item = Endpoint>) -> Arc<EndpointSlice> {
    let key = key(n);
    let ports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    Arc::new(EndpointSlice {
        service: key.clone(),
        ports: ports.map(|(name, protocol)| ((name.into(), protocol), port)).into(),
        endpoints: endpoints.into_iter().collect(),
        refused: None,
        key,
    })
}

/// The n-th endpoint without traffic. They are on all nodes in turn.
pub fn idle_endpoint(n: u32) -> Endpoint {
    endpoint(Ipv4Addr::from_bits(PODS.to_bits() + n).into(), &format!("n{}", n % NODES + 1))
}

/// A ready endpoint.
pub fn endpoint(address: IpAddr, node: &str) -> Endpoint {
    Endpoint { address, node: Some(node.into()), ready: true, serving: true, terminating: false }
}

fn port(name: &str, protocol: Protocol) -> Port {
    Port { name: name.into(), protocol, number: PORT, node_port: None }
}

fn mac(last: u8) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, last)
}
