//! A segment of no tracked connection, or outside the window of its connection, is dropped without a reset. So it
//! breaks no connection.
//!
//! The kernel does not translate such a segment back. So its receiver would find no connection, and send a reset.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../sample/mod.rs"]
mod sample;
#[path = "../world/mod.rs"]
mod world;

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crds::service::Family;
use harness::{apply, endpoint_of, engine, web};
use netns::Namespace;
use sample::snapshot;
use socket2::{Domain, Protocol, Socket, Type};
use world::{Net, PATIENCE, Pod, SILENCE, World, connect, wait_for};

const ACK: u8 = 0x10;
const RESET: u8 = 0x04;

/// A raw socket for TCP of the family of this address. It receives all segments to its host.
fn raw_tcp(from: &Namespace, family: IpAddr) -> Socket {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    from.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).expect("a raw socket")
}

/// A segment without data (RFC 9293 §3.1), with its checksum.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(1u32.to_be_bytes());
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // The pseudo-headers of both families add up to the same: addresses, protocol, length.
    let pseudo = [octets(from.ip()), octets(to.ip()), vec![0, 6, 0, 20]].concat();
    let sum: u32 = pseudo
        .iter()
        .chain(&segment)
        .copied()
        .collect::<Vec<u8>>()
        .chunks(2)
        .fold(0, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits");
    segment[16..18].copy_from_slice(&folded.to_be_bytes());
    segment
}

/// The clients' ports of a pod's open connections, as the pod sees them.
fn ports_of_clients(pod: &Pod, net: Net) -> Vec<u16> {
    let file = if net.family == Family::V4 { "tcp" } else { "tcp6" };
    let table = pod.namespace.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    let table = table.expect("the table of connections");
    // Local address and port, remote address and port, state: 01 is an open connection.
    let ports = table.lines().skip(1).filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let port = |word: &str| u16::from_str_radix(word.rsplit(':').next()?, 16).ok();
        (words[3] == "01" && port(words[1]) == Some(8080)).then(|| port(words[2])).flatten()
    });
    ports.collect()
}

/// Whether this socket receives a reset within [`SILENCE`].
fn receives_reset(socket: &Socket, net: Net) -> bool {
    // IPv4 includes its header.
    let before = if net.family == Family::V4 { 20 } else { 0 };
    let end = Instant::now() + SILENCE;
    let mut heard = false;
    let mut buffer = [0; 128];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return heard;
        }
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a timeout");
        match (&*socket).read(&mut buffer) {
            Ok(length) => heard |= buffer[before..length].get(13).is_some_and(|flags| flags & RESET != 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sequence numbers so far from each other that some are outside of any window.
const SEQUENCES: [u32; 4] = [0, 1 << 30, 2 << 30, 3 << 30];

#[test]
fn a_reply_outside_its_window_causes_no_reset() {
    Net::each(|net| {
        let world = World::new();
        let (near, far, asks) = (world.pod(1, 5), world.pod(2, 5), world.pod(1, 6));
        // With this route, the client could answer a segment from any pod.
        world.client.ip([format!("route add default via {}", net.n1)]).expect("a route");
        for pod in [&near, &far] {
            let mut engine = engine(&world);
            apply(&mut engine, &snapshot([web(net, [endpoint_of(net, pod)])]));
            for from in [&world.client, &asks.namespace, &world.n1] {
                let mut open = connect(from, &net.port(80), PATIENCE).expect("a connection");
                let answer = open.ask().expect("an answer");
                let client = SocketAddr::new(answer.client, ports_of_clients(pod, net)[0]);
                let own = SocketAddr::new(net.pod_ip(pod).parse().expect("an address"), 8080);
                let socket = raw_tcp(&pod.namespace, client.ip());
                for sequence in SEQUENCES {
                    let segment = segment(own, client, sequence, ACK);
                    socket.send_to(&segment, &SocketAddr::new(client.ip(), 0).into()).expect("send");
                }
                assert!(!receives_reset(&socket, net), "pod on node {}, asked by {answer:?}", pod.node);
                assert_eq!(open.ask().expect("an answer"), answer);
                drop(open);
                wait_for("the connection to end", || ports_of_clients(pod, net).is_empty());
            }
        }
    });
}
