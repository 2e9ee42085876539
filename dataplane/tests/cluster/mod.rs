//! Three programmed nodes, and a client that sends to the node that announces the lb_ip.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use crds::MacAddr;
use crds::Protocol::{Tcp, Udp};
use dataplane::Snapshot;
use dataplane::nft::Engine;
use dataplane::rules::Ruleset;
use dataplane::rules::plan_ruleset;
use dataplane::snapshot::{Link, LinkName};
use netns::{Namespace, veth};

use crate::sample::{self, Described, ready, service};
use crate::world::{Net, Pod, V4, V6, host, nft, raw_icmp, wait_for, wait_for_addresses};

/// The number of nodes.
const NODES: u8 = 3;

/// The kind of the link eth0 of each node and of the client.
#[derive(Clone, Copy)]
pub enum LinkKind {
    Cable,
    /// Tagged frames on a cable.
    Vlan,
    /// A bond of one cable.
    Bond,
}

/// The nodes, the client and the switch.
pub struct Cluster {
    /// The switch.
    pub lan: Namespace,
    /// A host that is no node.
    pub client: Namespace,
    /// The nodes `n1`, `n2` and `n3`.
    pub nodes: Vec<Namespace>,
    engines: Vec<Mutex<Engine>>,
    /// The nodes that are on the link.
    on_link: Mutex<Vec<u8>>,
}

fn name(node: u8) -> String {
    format!("n{node}")
}

impl Cluster {
    /// Nodes without any pod, connected by cables.
    pub fn new() -> Self {
        Self::linked_by(LinkKind::Cable)
    }

    /// Nodes without any pod, with this kind of link.
    pub fn linked_by(kind: LinkKind) -> Self {
        let namespace = || host().expect("a namespace (these tests need root)");
        let (lan, client) = (namespace(), namespace());
        let nodes: Vec<Namespace> = (0..NODES).map(|_| namespace()).collect();
        lan.ip(["link add br0 type bridge", "link set br0 up"]).expect("a bridge");
        let hosts = (1..).zip(&nodes).map(|(number, node)| (node, name(number), number));
        for (host, name, number) in hosts.chain([(&client, "client".to_owned(), 100)]) {
            connect(&lan, host, &name, number, kind);
        }
        for (own, node) in (1..).zip(&nodes) {
            node.sysctl("ipv4.ip_forward", "1").expect("forwarding");
            node.sysctl("ipv6.conf.all.forwarding", "1").expect("forwarding");
            node.ip([
                "link add cni0 type bridge".to_owned(),
                format!("addr add 10.244.{own}.1/24 dev cni0"),
                format!("addr add 2001:db8:244:{own}::1/64 dev cni0 nodad"),
                "link set cni0 up".into(),
            ])
            .expect("a node");
            add_routes(node, own);
        }
        nodes.iter().chain([&client]).for_each(wait_for_addresses);
        let engines =
            nodes.iter().map(|node| node.run(|| Engine::open().expect("an engine"))).map(Mutex::new).collect();
        let cluster = Self { lan, client, nodes, engines, on_link: Mutex::new((1..=NODES).collect()) };
        cluster.announced_by(1);
        cluster
    }

    /// From now on this node announces the lb_ips: the client's packets for them go to it.
    pub fn announced_by(&self, node: u8) {
        let routes = [
            format!("route replace 198.51.100.0/24 via 192.0.2.{node}"),
            format!("route replace 2001:db8:99::/64 via 2001:db8:1::{node}"),
        ];
        self.client.ip(routes).expect("routes to the lb_ips");
    }

    /// A pod on a node, which answers on port 8080 of TCP and UDP.
    pub fn pod(&self, node: u8, number: u8) -> Pod {
        Pod::start(&self.nodes[usize::from(node) - 1], node, number)
    }

    /// A Service at port 80 of the lb_ip, TCP and UDP, with these pods.
    pub fn web<'a>(&self, net: Net, pods: impl IntoIterator<Item = &'a Pod>) -> Described {
        let ports = [("tcp", Tcp, 8080), ("udp", Udp, 8080)];
        let endpoints = pods.into_iter().map(|pod| ready(&net.pod_ip(pod), &name(pod.node)));
        service("web").holds(net.lb_ip).port("tcp", Tcp, 80).port("udp", Udp, 80).slice(&ports, endpoints)
    }

    /// Programs all nodes.
    pub fn apply(&self, snapshot: &Snapshot) {
        (1..=NODES).for_each(|node| self.apply_on(node, snapshot));
    }

    /// The ruleset of this snapshot on a node.
    pub fn plan(&self, node: u8, snapshot: &Snapshot) -> Arc<Ruleset> {
        let on_link = self.on_link.lock().expect("no panic");
        let others = on_link.iter().filter(|other| **other != node);
        let peers = others.clone().map(|other| (name(*other), mac(*other))).collect();
        let addresses = others.map(|other| (name(*other), [V4, V6].map(|net| sample::ip(&net.node(*other))).to_vec()));
        let link = Link { mac: mac(node), peers, addresses: addresses.collect() };
        let links = [(LinkName::new("eth0").expect("a name"), link)].into();
        Arc::new(plan_ruleset(&Snapshot { node: name(node), links, ..snapshot.clone() }))
    }

    /// Programs one node.
    pub fn apply_on(&self, node: u8, snapshot: &Snapshot) {
        let mut engine = self.engines[usize::from(node) - 1].lock().expect("no panic");
        engine.apply(&self.plan(node, snapshot)).expect("apply");
    }

    /// Programs one node, which has no link with peers.
    pub fn apply_unlinked(&self, node: u8, snapshot: &Snapshot) {
        let mut engine = self.engines[usize::from(node) - 1].lock().expect("no panic");
        let name = name(node);
        engine.apply(&Arc::new(plan_ruleset(&Snapshot { node: name, ..snapshot.clone() }))).expect("apply");
    }

    /// Removes the link of a node, and makes another one of the same name.
    pub fn replace_link(&self, node: u8) {
        let host = &self.nodes[usize::from(node) - 1];
        host.ip(["link del eth0"]).expect("no link");
        connect(&self.lan, host, &name(node), node, LinkKind::Cable);
        add_routes(host, node);
        wait_for_addresses(host);
    }

    /// Disconnects this node: it no longer sends or receives frames.
    pub fn cut_off(&self, node: u8) {
        self.lan.ip([format!("link set {} down", name(node))]).expect("a port");
    }

    /// Removes this node from the links of the others.
    pub fn without(&self, node: u8) {
        self.on_link.lock().expect("no panic").retain(|other| *other != node);
    }

    /// The announcers forget where connections are.
    pub fn forget_connections(&self) {
        for node in &self.nodes {
            for map in ["connections4", "connections6"] {
                let flush = node.command("nft").args(["flush", "map", "netdev", "landfall", map]).status();
                assert!(flush.expect("run nft").success(), "{map}");
            }
        }
    }

    /// The time for which the first node remembers the connection from this port of the client, as `nft` prints it.
    pub fn memory_of(&self, net: Net, port: u16) -> Option<String> {
        let map = if net == V4 { "connections4" } else { "connections6" };
        let output = self.nodes[0].command("nft").args(["list", "map", "netdev", "landfall", map]).output();
        let text = String::from_utf8(output.expect("run nft").stdout).expect("text");
        let (_, entry) = text.split_once(&format!("{} . {port} . ", net.client))?;
        let (_, rest) = entry.split_once(" expires ")?;
        rest.split_whitespace().next().map(str::to_owned)
    }

    /// The nodes no longer track any connection.
    pub fn forget_tracked_connections(&self) {
        for node in &self.nodes {
            let flush = node.command("conntrack").arg("-F").output().expect("run conntrack");
            assert!(flush.status.success(), "{flush:?}");
        }
    }

    /// From now on counts the TCP segments to the lb_ip on the LAN. The result returns their number.
    pub fn count_segments(&self, net: Net) -> impl Fn() -> usize {
        let (kind, address) = if net == V4 { ("ip", V4.lb_ip) } else { ("ip6", V6.lb_ip) };
        let rule = format!("{kind} daddr {address} tcp dport 80 counter");
        let chain = format!("chain forward {{ type filter hook forward priority 0;\n{rule}\n}}\n");
        nft(&self.lan, &format!("table bridge segments {{\n{chain}}}\n"));
        let lan = self.lan.clone();
        move || {
            let output = lan.command("nft").args(["list", "table", "bridge", "segments"]).output().expect("run nft");
            let text = String::from_utf8(output.stdout).expect("text");
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
            words.next().expect("a count").parse().expect("a number")
        }
    }

    /// The client's address on the LAN.
    pub fn mac_of_client(&self) -> MacAddr {
        mac(100)
    }

    /// Sends an ICMP error from the client about a packet of this connection, from port 80 of the lb_ip. It reports
    /// that the packet was too big for a link on the path.
    pub fn report_packet_too_big(&self, net: Net, connection: SocketAddr) {
        let (lb_ip, client) = (sample::ip(net.lb_ip), connection.ip());
        let ports = [80u16.to_be_bytes(), connection.port().to_be_bytes(), [0; 2], [0; 2]].concat();
        let mut message = match (lb_ip, client) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = [0x45, 0, 5, 220, 0, 0, 0x40, 0, 63, 6, 0, 0];
                [&[3, 4, 0, 0, 0, 0, 5, 120][..], &header, &from.octets(), &to.octets(), &ports].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = [0x60, 0, 0, 0, 5, 180, 6, 63];
                [&[2, 0, 0, 0, 0, 0, 5, 120][..], &header, &from.octets(), &to.octets(), &ports].concat()
            }
            _ => panic!("of two families"),
        };
        if lb_ip.is_ipv4() {
            let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits");
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        let any = if lb_ip.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = raw_icmp(&self.client, sample::ip(any)).expect("a socket");
        socket.send_to(&message, &SocketAddr::new(lb_ip, 0).into()).expect("sent");
    }

    /// From now on counts the datagrams that each node gets. The result waits for this number of them, and returns the
    /// fraction that each node has kept.
    pub fn count_datagrams(&self, net: Net) -> impl Fn(usize) -> [f64; 3] {
        let (kind, address) = if net == V4 { ("ip", V4.lb_ip) } else { ("ip6", V6.lb_ip) };
        let each = |node: u8| {
            let name = name(node);
            (
                format!("counter {name} {{\n}}\n"),
                format!("oifname {name} {kind} daddr {address} udp dport 80 counter name {name}\n"),
            )
        };
        let (counters, rules): (String, String) = (1..=NODES).map(each).unzip();
        let chain = format!("chain forward {{ type filter hook forward priority 0;\n{rules}}}\n");
        nft(&self.lan, &format!("table bridge count {{\n{counters}{chain}}}\n"));
        let lan = self.lan.clone();
        move |all| {
            let read = || {
                let output = lan.command("nft").args(["list", "counters"]).output().expect("run nft");
                let text = String::from_utf8(output.stdout).expect("text");
                let words: Vec<&str> = text.split_whitespace().collect();
                let counts = words.windows(2).filter(|pair| pair[0] == "packets");
                let counts: Vec<usize> = counts.map(|pair| pair[1].parse().expect("a number")).collect();
                <[usize; 3]>::try_from(counts).expect("three counters")
            };
            wait_for("all of them", || read()[0] == all);
            let [_, second, third] = read();
            [all - second - third, second, third].map(|count| count as f64 / all as f64)
        }
    }
}

/// Connects a host to the switch by its link eth0.
fn connect(lan: &Namespace, host: &Namespace, port: &str, number: u8, kind: LinkKind) {
    let cable = if matches!(kind, LinkKind::Cable) { "eth0" } else { "cable" };
    veth((host, cable), (lan, port)).expect("a cable");
    lan.ip([format!("link set {port} master br0 up")]).expect("a port");
    match kind {
        LinkKind::Cable => {}
        LinkKind::Vlan => host
            .ip(["link set cable up", "link add link cable name eth0 type vlan id 5"])
            .expect("a VLAN (this needs the module 8021q)"),
        LinkKind::Bond => host
            .ip(["link add eth0 type bond mode active-backup miimon 100", "link set cable master eth0"])
            .expect("a bond (this needs the module bonding)"),
    }
    host.ip([
        format!("link set eth0 address {}", mac(number)),
        format!("addr add 192.0.2.{number}/24 dev eth0"),
        format!("addr add 2001:db8:1::{number}/64 dev eth0 nodad"),
        "link set eth0 up".into(),
    ])
    .expect("eth0");
}

/// Adds the routes of a node by its link.
fn add_routes(node: &Namespace, own: u8) {
    let mut lines =
        vec!["route add default via 192.0.2.100".to_owned(), "route add default via 2001:db8:1::100".to_owned()];
    for other in (1..=NODES).filter(|other| *other != own) {
        lines.push(format!("route add 10.244.{other}.0/24 via 192.0.2.{other}"));
        lines.push(format!("route add 2001:db8:244:{other}::/64 via 2001:db8:1::{other}"));
    }
    node.ip(lines).expect("routes");
}

fn mac(number: u8) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, number)
}
