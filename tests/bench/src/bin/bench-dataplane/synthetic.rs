//! Clusters of many Services that exist only as snapshots: numbers in, snapshots out. Pure.
//!
//! Every Service has an lb_ip, one TCP and one UDP port, and endpoints on three nodes in turn. The last one is the *canary*:
//! what is asked is asked of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use crds::{Endpoint, EndpointSlice, Holder, Key, MacAddr, Port, Protocol, Service};
use dataplane::Snapshot;
use dataplane::snapshot::{self, Link, LinkName, Terms};
use k8s_openapi::api::core::v1 as core;

/// The node that everything is seen from.
pub const NODE: &str = "n1";

/// Its MAC address on the LAN.
pub const MAC: &str = "02:00:00:00:00:01";

/// The port of every Service.
pub const PORT: u16 = 80;

/// The nodes of a cluster.
const NODES: u32 = 3;

/// What RFC 2544 sets aside for benchmarks: lb_ips.
const LB_IPS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// Endpoints that nobody asks.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// How many Services there are, how many endpoints each has, and whether frames are spread on the link `eth0`.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
    /// Whether there is a link on which frames are spread.
    pub spread: bool,
}

/// The lb_ip of the n-th Service.
pub fn lb_ip(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(LB_IPS.to_bits() + n).into()
}

/// The key of the n-th Service.
pub fn key(n: u32) -> Key {
    Key::new("bench", format!("s-{n:05}"))
}

/// A cluster of this size. All endpoints are of nobody, unless the canary is given one of its own.
///
/// # Errors
/// Never, as long as an empty Service can be read.
pub fn snapshot(size: Size, canary: Option<SocketAddr>) -> Result<Snapshot> {
    let nothing = Service::try_from(&core::Service::default()).context("an empty Service")?;
    let terms = Arc::<Terms>::default();
    let mut snapshot = Snapshot { node: NODE.into(), ..Snapshot::default() };
    for n in 0..size.services {
        let key = key(n);
        let service = Service {
            key: key.clone(),
            uid: format!("uid-{n}").into(),
            is_load_balancer: true,
            ports: vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)],
            ..nothing.clone()
        };
        let holder =
            Holder { namespace: key.namespace.clone(), name: key.name.clone(), uid: service.uid.clone(), terms: None };
        snapshot.addresses.insert(lb_ip(n), [holder].into());
        let slice = match canary.filter(|_| n + 1 == size.services) {
            Some(at) => slice(n, at.port(), [endpoint(at.ip(), NODE)]),
            None => slice(n, 8080, (0..size.endpoints).map(|e| nobody(n * size.endpoints + e))),
        };
        snapshot.slices.insert(key.clone(), [slice].into());
        snapshot.services.insert(key, snapshot::Service { object: Arc::new(service), terms: Arc::clone(&terms) });
    }
    if size.spread {
        let peers = (2..=NODES).map(|n| (format!("n{n}"), mac(n as u8))).collect();
        let eth0 = LinkName::new("eth0").context("invariant: a name")?;
        snapshot.links.insert(eth0, Link { mac: mac(1), peers });
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

/// The n-th endpoint that nobody asks; they are on all nodes in turn.
pub fn nobody(n: u32) -> Endpoint {
    endpoint(Ipv4Addr::from_bits(PODS.to_bits() + n).into(), &format!("n{}", n % NODES + 1))
}

/// One that is ready.
pub fn endpoint(address: IpAddr, node: &str) -> Endpoint {
    Endpoint { address, node: Some(node.into()), ready: true, serving: true, terminating: false }
}

fn port(name: &str, protocol: Protocol) -> Port {
    Port { name: name.into(), protocol, number: PORT, node_port: None }
}

fn mac(last: u8) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, last)
}
