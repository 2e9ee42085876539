//! A small network for tests: a client and two nodes on a LAN, pods behind the nodes, all in network namespaces.
//!
//! ```text
//!   client 192.0.2.100 ──┐          ┌── pods 10.244.1.0/24
//!   node n1 192.0.2.1 ───┤ LAN ─ n1 ┘
//!   node n2 192.0.2.2 ───┘     └ n2 ─── pods 10.244.2.0/24
//! ```
//!
//! The client sends packets for 198.51.100.0/24, the range of the lb_ips, to n1. IPv6 has the same: [`Net`] holds the
//! addresses of one family.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crds::service::Family;
use netns::{Namespace, veth};

/// The limit for an expected event, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The wait for an event that must not happen.
pub const SILENCE: Duration = Duration::from_millis(300);

/// The client's address, in IPv4.
pub const CLIENT: &str = V4.client;

/// The addresses of the network in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// The family.
    pub family: Family,
    /// The client's address.
    pub client: &'static str,
    /// The address of the first node on the LAN.
    pub n1: &'static str,
    /// The address of the first node among its pods.
    pub gateway: &'static str,
    /// The range of the pods of the first node.
    pub pods: &'static str,
    /// An lb_ip.
    pub lb_ip: &'static str,
    /// Another lb_ip.
    pub other: &'static str,
    pod: &'static str,
}

/// IPv4.
pub const V4: Net = Net {
    family: Family::V4,
    client: "192.0.2.100",
    n1: "192.0.2.1",
    gateway: "10.244.1.1",
    pods: "10.244.1.0/24",
    lb_ip: "198.51.100.10",
    other: "198.51.100.11",
    pod: "10.244.",
};
/// IPv6.
pub const V6: Net = Net {
    family: Family::V6,
    client: "2001:db8:1::100",
    n1: "2001:db8:1::1",
    gateway: "2001:db8:244:1::1",
    pods: "2001:db8:244:1::/64",
    lb_ip: "2001:db8:99::10",
    other: "2001:db8:99::11",
    pod: "2001:db8:244:",
};

impl Net {
    /// Runs the test in each family.
    pub fn each(test: impl Fn(Net)) {
        [V4, V6].into_iter().for_each(test);
    }

    /// A port of the lb_ip.
    pub fn port(&self, port: u16) -> String {
        SocketAddr::new(self.lb_ip.parse().expect("an address"), port).to_string()
    }

    /// The address of a node on the LAN.
    pub fn node(&self, number: u8) -> String {
        self.n1.strip_suffix('1').map(|prefix| format!("{prefix}{number}")).expect("the first node")
    }

    /// The address of a pod.
    pub fn pod(&self, node: u8, number: u8) -> String {
        match self.family {
            Family::V4 => format!("{}{node}.{number}", self.pod),
            Family::V6 => format!("{}{node}::{number}", self.pod),
        }
    }

    /// The address of this pod.
    pub fn pod_ip(&self, pod: &Pod) -> String {
        self.pod(pod.node, pod.number)
    }
}

/// The network.
pub struct World {
    /// The switch.
    lan: Namespace,
    /// A host that is no node.
    pub client: Namespace,
    /// The first node: the one that the tests program.
    pub n1: Namespace,
    /// Another node.
    pub n2: Namespace,
}

impl World {
    /// A network without any pod.
    pub fn new() -> Self {
        let namespace = || host().expect("a namespace (these tests need root)");
        let world = Self { lan: namespace(), client: namespace(), n1: namespace(), n2: namespace() };
        world.lan.ip(["link add br0 type bridge", "link set br0 up"]).expect("a bridge");
        let hosts = [(&world.client, "client", 100), (&world.n1, "n1", 1), (&world.n2, "n2", 2)];
        for (host, name, number) in hosts {
            veth((host, "eth0"), (&world.lan, name)).expect("a cable");
            world.lan.ip([format!("link set {name} master br0 up")]).expect("a port");
            host.ip([
                format!("addr add 192.0.2.{number}/24 dev eth0"),
                format!("addr add 2001:db8:1::{number}/64 dev eth0 nodad"),
                "link set eth0 up".into(),
            ])
            .expect("eth0");
        }
        for (node, own, other) in [(&world.n1, 1, 2), (&world.n2, 2, 1)] {
            node.sysctl("ipv4.ip_forward", "1").expect("forwarding");
            node.sysctl("ipv6.conf.all.forwarding", "1").expect("forwarding");
            node.ip([
                "link add cni0 type bridge".to_owned(),
                format!("addr add 10.244.{own}.1/24 dev cni0"),
                format!("addr add 2001:db8:244:{own}::1/64 dev cni0 nodad"),
                "link set cni0 up".into(),
                format!("route add 10.244.{other}.0/24 via 192.0.2.{other}"),
                format!("route add 2001:db8:244:{other}::/64 via 2001:db8:1::{other}"),
                "route add default via 192.0.2.100".into(),
                "route add default via 2001:db8:1::100".into(),
            ])
            .expect("a node");
        }
        let routes = ["route add 198.51.100.0/24 via 192.0.2.1", "route add 2001:db8:99::/64 via 2001:db8:1::1"];
        world.client.ip(routes).expect("routes to the lb_ips");
        [&world.client, &world.n1, &world.n2].into_iter().for_each(wait_for_addresses);
        world
    }

    /// A pod on node 1 or 2, which answers on port 8080 of TCP and UDP.
    pub fn pod(&self, node: u8, number: u8) -> Pod {
        Pod::start(if node == 1 { &self.n1 } else { &self.n2 }, node, number)
    }
}

impl Pod {
    /// A pod on this host, which is the node of this number.
    pub fn start(host: &Namespace, node: u8, number: u8) -> Self {
        let namespace = self::host().expect("a namespace");
        let name = format!("pod{number}");
        veth((&namespace, "eth0"), (host, &name)).expect("a cable");
        // Without hairpin on a port, a bridge does not send a packet back by that port.
        host.ip([format!("link set {name} master cni0 up"), format!("link set {name} type bridge_slave hairpin on")])
            .expect("a port");
        namespace
            .ip([
                format!("addr add {}/24 dev eth0", V4.pod(node, number)),
                format!("addr add {}/64 dev eth0 nodad", V6.pod(node, number)),
                "link set eth0 up".into(),
                format!("route add default via 10.244.{node}.1"),
                format!("route add default via 2001:db8:244:{node}::1"),
            ])
            .expect("a pod");
        wait_for_addresses(&namespace);
        let pod = Self { namespace, node, number };
        for net in [V4, V6] {
            pod.serve(SocketAddr::new(net.pod_ip(&pod).parse().expect("an address"), 8080));
        }
        pod
    }
}

/// A host without duplicate address detection (RFC 4862 §5.4). Addresses that a test needs at once have `nodad`, too.
pub fn host() -> std::io::Result<Namespace> {
    let namespace = Namespace::new()?;
    for of in ["all", "default"] {
        namespace.sysctl(&format!("ipv6.conf.{of}.accept_dad"), "0")?;
    }
    Ok(namespace)
}

/// Waits until no address of a host is tentative. With tentative addresses only, a host sends no neighbour
/// solicitations.
pub fn wait_for_addresses(host: &Namespace) {
    // The fifth column of each address has its flags.
    const TENTATIVE: u32 = 0x40;
    let is_tentative = |line: &str| {
        let flags = line.split_whitespace().nth(4).map(|flags| u32::from_str_radix(flags, 16).expect("flags"));
        flags.is_some_and(|flags| flags & TENTATIVE != 0)
    };
    let read = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").expect("addresses");
    wait_for("addresses", || !host.run(read).lines().any(is_tentative));
}

/// A pod that answers with its own name and the client's address.
pub struct Pod {
    /// Its network namespace.
    pub namespace: Namespace,
    /// The number of its node.
    pub node: u8,
    /// Its number there.
    pub number: u8,
}

impl Pod {
    /// Answers requests to this address too, over TCP and UDP.
    pub fn serve(&self, at: SocketAddr) {
        let (tcp, udp) =
            self.namespace.run(|| (TcpListener::bind(at).expect("tcp"), UdpSocket::bind(at).expect("udp")));
        let own = format!("{}.{}", self.node, self.number);
        let name = own.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let own = own.clone();
                std::thread::spawn(move || answer(stream, &own));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name} {}\n", from.ip()).as_bytes(), from);
            }
        });
    }
}

/// Answers every line with the pod's name and the client's address.
fn answer(mut stream: TcpStream, own: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(lines) = stream.try_clone().map(BufReader::new) else { return };
    for _ in lines.lines().map_while(Result::ok) {
        if stream.write_all(format!("{own} {}\n", peer.ip()).as_bytes()).is_err() {
            return;
        }
    }
}

/// A server's answer: its name, and the client that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// The pod that answers: its node, and its number there.
    pub pod: (u8, u8),
    /// The client, as the pod sees it.
    pub client: IpAddr,
}

impl Answer {
    /// The answer of this pod to a client that it sees at this address.
    pub fn new(pod: &Pod, client: &str) -> Self {
        Self { pod: (pod.node, pod.number), client: client.parse().expect("an address") }
    }

    /// Reads a server's answer.
    pub fn read(line: &str) -> Self {
        let (pod, client) = line.trim().split_once(' ').expect("two words");
        let (node, number) = pod.split_once('.').expect("two numbers");
        let pod = (node.parse().expect("a number"), number.parse().expect("a number"));
        Self { pod, client: client.parse().expect("an address") }
    }
}

/// A connection that stays open.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Its local address and port.
    pub fn local(&self) -> SocketAddr {
        self.0.get_ref().local_addr().expect("an address")
    }

    /// Sends one more request, and returns the answer.
    pub fn ask(&mut self) -> std::io::Result<Answer> {
        self.0.get_mut().write_all(b"?\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if line.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(Answer::read(&line)) }
    }
}

/// Connects to an lb_ip from this host.
pub fn connect(from: &Namespace, to: &str, patience: Duration) -> std::io::Result<Connection> {
    let to = to.parse().expect("an address and a port");
    let stream = from.run(|| TcpStream::connect_timeout(&to, patience))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Connection(BufReader::new(stream)))
}

/// Sends a request over a new connection, and returns the answer.
pub fn ask_tcp(from: &Namespace, to: &str) -> Answer {
    connect(from, to, PATIENCE).and_then(|mut connection| connection.ask()).expect("an answer over TCP")
}

/// A UDP socket, whose flow is new to connection tracking.
pub fn udp(from: &Namespace, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().expect("an address and a port");
    let socket = from.run(|| netns::udp_flow(to).expect("a socket"));
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}

/// Sends requests over UDP until one is answered, since datagrams may be lost.
pub fn ask_udp(socket: &UdpSocket) -> std::io::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 64];
    loop {
        let done = socket.send(b"?").and_then(|_| socket.recv(&mut buffer));
        match done {
            Ok(length) => return Ok(Answer::read(std::str::from_utf8(&buffer[..length]).expect("text"))),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends one ping to an address, and waits for the reply.
pub fn ping(from: &Namespace, to: &str) -> std::io::Result<()> {
    let to: IpAddr = to.parse().expect("an address");
    // Code 0, checksum, identifier 0x4c66, sequence number 1; no payload. The kernel fills in the checksum of ICMPv6.
    let echo = |kind: u8, checksum: u16| {
        let [c0, c1] = checksum.to_be_bytes();
        [kind, 0, c0, c1, 0x4c, 0x66, 0, 1]
    };
    let (request, reply) = match to {
        IpAddr::V4(_) => (echo(8, !(0x0800u16 + 0x4c66 + 0x0001)), 0),
        IpAddr::V6(_) => (echo(128, 0), 129),
    };
    let socket = icmp(from, to)?;
    (&socket).write_all(&request)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 128];
    // A connected raw socket receives only from its peer. If the peer is this host, it also receives the request.
    while Instant::now() < deadline {
        let length = (&socket).read(&mut buffer)?;
        let icmp = &buffer[if to.is_ipv4() { 20 } else { 0 }..length];
        if icmp.first() == Some(&reply) {
            assert_eq!(&icmp[4..], &request[4..], "the reply to the request");
            return Ok(());
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// A raw socket for ICMP of the family of `to`, connected to it.
pub fn icmp(from: &Namespace, to: IpAddr) -> std::io::Result<socket2::Socket> {
    let socket = raw_icmp(from, to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    Ok(socket)
}

/// A raw socket for ICMP of the family of this address.
pub fn raw_icmp(from: &Namespace, family: IpAddr) -> std::io::Result<socket2::Socket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let (domain, protocol) = match family {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    from.run(|| Socket::new(domain, Type::RAW, Some(protocol)))
}

/// Runs these lines with `nft`.
pub fn nft(namespace: &Namespace, lines: &str) {
    let mut child = namespace.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("run nft");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("write");
    assert!(child.wait().expect("wait").success(), "nft refuses {lines}");
}

/// Waits until `condition` holds; panics with `what` if it does not.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}
