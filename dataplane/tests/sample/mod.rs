//! Short builders of snapshots for tests.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crds::MacAddr;
use crds::{Backend, Endpoint, EndpointSlice, Holder, Key, Port, Protocol, Service, TrafficPolicy};
use dataplane::Snapshot;
use dataplane::rules::Sources;
use dataplane::snapshot::{Link, LinkName, ServiceOptions};
use k8s_openapi::api::core::v1 as core;

/// The node of the snapshots.
pub const NODE: &str = "n1";

/// The ClusterIPs of a Service that needs some.
pub const CLUSTER_IPS: [&str; 2] = ["10.96.0.7", "2001:db8:96::7"];

/// An address, or a panic.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address and a port, or a panic.
pub fn socket_addr(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// The MAC address of a node: of `n2` it ends with 2.
pub fn mac(node: &str) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, node.trim_start_matches('n').parse().expect("a number"))
}

/// The link `eth0` of this node, with these nodes as peers on it.
pub fn on_eth0(others: &[&str]) -> BTreeMap<LinkName, Link> {
    let peers = others.iter().map(|node| ((*node).to_owned(), mac(node))).collect();
    let number = |node: &str| node.trim_start_matches('n').to_owned();
    let addresses_of =
        |node: &str| vec![ip(&format!("192.0.2.{}", number(node))), ip(&format!("2001:db8:1::{}", number(node)))];
    let addresses = others.iter().map(|node| ((*node).to_owned(), addresses_of(node))).collect();
    [(LinkName::new("eth0").expect("a name"), Link { mac: mac(NODE), peers, addresses })].into()
}

/// An empty snapshot of [`NODE`].
pub fn nothing() -> Snapshot {
    Snapshot { node: NODE.into(), ..Snapshot::default() }
}

/// An endpoint that is ready on a node.
pub fn ready(address: &str, node: &str) -> Endpoint {
    Endpoint { address: ip(address), node: Some(node.into()), ready: true, serving: true, terminating: false }
}

/// The same endpoint, terminating and still serving.
pub fn terminating(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, serving: true, terminating: true, ..endpoint }
}

/// The same endpoint, neither ready nor serving.
pub fn unready(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, serving: false, ..endpoint }
}

/// A Service being described.
#[derive(Debug)]
pub struct Described {
    service: Service,
    options: ServiceOptions,
    slices: Vec<EndpointSlice>,
    holds: Vec<IpAddr>,
}

/// A Service `default/NAME` with the traffic policy Cluster, no port and no endpoint.
pub fn service(name: &str) -> Described {
    let nothing = Service::try_from(&core::Service::default()).expect("a Service");
    let (key, uid) = (Key::new("default", name), format!("uid-of-{name}").into());
    let service = Service { key, uid, is_load_balancer: true, ..nothing };
    Described { service, options: ServiceOptions::default(), slices: vec![], holds: vec![] }
}

impl Described {
    /// It holds this lb_ip.
    pub fn holds(mut self, address: &str) -> Self {
        self.holds.push(ip(address));
        self
    }

    /// It has this port.
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16) -> Self {
        self.service.ports.push(Port { name: name.into(), protocol, number, node_port: None });
        self
    }

    /// It has the traffic policy Local.
    pub fn local(mut self) -> Self {
        self.service.traffic_policy = TrafficPolicy::Local;
        self
    }

    /// Only clients from these ranges may use it.
    pub fn only_from(mut self, ranges: &[&str]) -> Self {
        self.options.sources = Sources::parse(ranges.iter().copied(), None);
        self
    }

    /// A client stays with its endpoint for this number of seconds.
    pub fn sticky(mut self, seconds: u32) -> Self {
        self.options.affinity = Some(seconds);
        self
    }

    /// Its packets go to this backend. It has a ClusterIP of each family, and each node port is 30000 more than its
    /// port.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.service.backend = Some(Ok(backend));
        self.service.cluster_ips = CLUSTER_IPS.map(ip).into();
        self.service.ports.iter_mut().for_each(|port| port.node_port = Some(30_000 + port.number));
        self
    }

    /// It has these labels.
    pub fn labels<const N: usize>(mut self, labels: [(&str, &str); N]) -> Self {
        self.service.labels = labels.into();
        self
    }

    /// The announcer forwards its packets: they are not spread.
    pub fn without_spreading(mut self) -> Self {
        self.options.no_spreading = true;
        self
    }

    /// It has one more slice: name, protocol and target of each port, and the endpoints.
    pub fn slice(mut self, ports: &[(&str, Protocol, u16)], endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let key = &self.service.key;
        self.slices.push(EndpointSlice {
            key: Key::new(key.namespace.clone(), format!("{}-{}", key.name, self.slices.len())),
            service: key.clone(),
            ports: ports.iter().map(|(name, protocol, number)| (((*name).into(), *protocol), *number)).collect(),
            endpoints: endpoints.into_iter().collect(),
            refused: None,
        });
        self
    }
}

/// A snapshot of these Services.
pub fn snapshot(services: impl IntoIterator<Item = Described>) -> Snapshot {
    let mut snapshot = nothing();
    let mut holders: BTreeMap<IpAddr, Vec<Holder>> = BTreeMap::new();
    for Described { service, options, slices, holds } in services {
        for address in holds {
            let (namespace, name) = (service.key.namespace.clone(), service.key.name.clone());
            holders.entry(address).or_default().push(Holder { namespace, name, uid: service.uid.clone(), terms: None });
        }
        snapshot.slices.insert(service.key.clone(), slices.into_iter().map(Arc::new).collect());
        let key = service.key.clone();
        let service = dataplane::snapshot::Service { object: Arc::new(service), options: Arc::new(options) };
        snapshot.services.insert(key, service);
    }
    snapshot.addresses = holders.into_iter().map(|(address, holders)| (address, holders.into())).collect();
    snapshot
}

/// A snapshot with each feature, in both families.
pub fn everything() -> Snapshot {
    let web = service("web")
        .sticky(10_800)
        .holds("192.0.2.10")
        .port("http", Protocol::Tcp, 80)
        .port("dns", Protocol::Udp, 53)
        .slice(
            &[("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353)],
            [ready("10.244.1.5", NODE), ready("10.244.2.5", "n2"), ready("10.244.2.6", "n2")],
        );
    let local = service("local")
        .holds("192.0.2.11")
        .port("", Protocol::Tcp, 443)
        .port("media", Protocol::Sctp, 9)
        .local()
        .only_from(&["10.0.0.0/8", "198.51.100.7/32", "2001:db8::/32"])
        .slice(&[("", Protocol::Tcp, 8443)], [ready("10.244.1.6", NODE), ready("10.244.2.7", "n2")])
        .slice(&[("media", Protocol::Sctp, 9999)], [terminating(ready("10.244.1.6", NODE)), ready("10.244.2.7", "n2")]);
    let empty = service("empty").holds("192.0.2.12").port("", Protocol::Tcp, 80);
    let six = service("six")
        .holds("2001:db8::10")
        .port("http", Protocol::Tcp, 80)
        .port("dns", Protocol::Udp, 53)
        .local()
        .only_from(&["fd00::/8"])
        .sticky(60)
        .slice(&[("http", Protocol::Tcp, 8080)], [ready("2001:db8:244:1::5", NODE), ready("2001:db8:244:2::5", "n2")]);
    let proxied = service("proxied")
        .holds("192.0.2.13")
        .port("http", Protocol::Tcp, 80)
        .port("media", Protocol::Sctp, 9)
        .backend(Backend::NodePort)
        .only_from(&["10.0.0.0/8"])
        .slice(&[("http", Protocol::Tcp, 8080), ("media", Protocol::Sctp, 9999)], [ready("10.244.1.7", NODE)]);
    let inner = service("inner")
        .holds("2001:db8::11")
        .holds("192.0.2.14")
        .port("", Protocol::Udp, 53)
        .backend(Backend::ClusterIp)
        .slice(&[("", Protocol::Udp, 5353)], [ready("10.244.1.8", NODE)])
        .slice(&[("", Protocol::Udp, 5353)], [ready("2001:db8:244:1::8", NODE)]);
    let theirs = service("theirs")
        .holds("192.0.2.13")
        .port("", Protocol::Tcp, 81)
        .labels([("service.kubernetes.io/service-proxy-name", "example.com")]);
    let lan_links = Arc::new(["bond0.7", "eth0"].map(|name| LinkName::new(name).expect("a name")).into());
    let (node_ips, links) = (vec![ip("192.0.2.1"), ip("2001:db8::1")], on_eth0(&["n2"]));
    let services = [web, local, empty, six, proxied, inner, theirs];
    Snapshot { lan_links, node_ips, links, count_traffic: true, ..snapshot(services) }
}
