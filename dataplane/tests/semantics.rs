//! The endpoints of each kind of client: the truth table that every dataplane of lb_ips must follow.
//!
//! Traces of the rules, without a kernel, are compared with the table. The last test compares the kernel with the
//! traces.

mod harness;
mod sample;
mod tracer;
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use crds::Endpoint;
use dataplane::Snapshot;
use dataplane::rules::plan_ruleset;
use harness::{apply, engine, web, with_lan};
use netns::Namespace;
use sample::{Described, NODE, ip, ready, service, snapshot, terminating, unready};
use tracer::{Fate, From, Machine, Packet};
use world::{Net, SILENCE, V4, V6, World, ask_udp, connect, udp};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The place of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Outside,
    Pod,
    Node,
}

const ALL_CLIENTS: [Client; 3] = [Client::Outside, Client::Pod, Client::Node];

/// The number of the client pod, on the first node.
const ASKING: u8 = 5;

fn packet(net: Net, client: Client, protocol: u8, port: u16) -> Packet {
    let (from, source) = match client {
        Client::Outside => (From::Link, net.client.to_owned()),
        Client::Pod => (From::Pod, net.pod(1, ASKING)),
        Client::Node => (From::Here, net.n1.to_owned()),
    };
    Packet { from, source: ip(&source), destination: ip(net.lb_ip), protocol, port }
}

fn fates(net: Net, snapshot: &Snapshot, packet: Packet) -> BTreeSet<Fate> {
    let planned = plan_ruleset(&with_lan(snapshot.clone()));
    Machine::new(&planned, &[net.n1, net.gateway]).fates(packet)
}

/// Endpoints in short: `l5` is pod 5 on the first node, `r5` on the second. `l5t` terminates and serves, `l5x`
/// terminates and does not serve, `l5u` is not ready.
fn endpoints(net: Net, short: &str) -> Vec<Endpoint> {
    short
        .split_whitespace()
        .map(|word| {
            let (node, name) = if word.starts_with('l') { (1, NODE) } else { (2, "n2") };
            let number = word[1..2].parse().expect("a number");
            let endpoint = ready(&net.pod(node, number), name);
            match &word[2..] {
                "t" => terminating(endpoint),
                "x" => unready(terminating(endpoint)),
                "u" => unready(endpoint),
                _ => endpoint,
            }
        })
        .collect()
}

/// Fates in short: `drop`, `refuse`, or endpoints. `m` after an endpoint: the source is replaced.
fn parse_fates(net: Net, protocol: u8, short: &str) -> BTreeSet<Fate> {
    let refused = if protocol == TCP { Fate::Reset } else { Fate::Unreachable };
    let fate = |word: &str| match word {
        "drop" => Fate::Dropped,
        "refuse" => refused,
        _ => {
            let endpoint = &endpoints(net, &word[..2])[0];
            Fate::Sent { to: SocketAddr::new(endpoint.address, 8080), masqueraded: word.ends_with('m') }
        }
    };
    short.split_whitespace().map(fate).collect()
}

fn policy(described: Described, local: bool) -> Described {
    if local { described.local() } else { described }
}

/// The endpoints, and the fates for an outside client, a pod and the node: with the policy Cluster, then with Local.
type Row = (&'static str, [&'static str; 3], [&'static str; 3]);

/// A source is replaced only if the reply would not come back through this node otherwise. Packets to endpoints on this
/// node, and packets from its pods, keep their source. The node's own source may have no route back, so it is replaced;
/// so is the source of a pod that connects to itself.
const TABLE: [Row; 12] = [
    ("l6", ["l6", "l6", "l6m"], ["l6", "l6", "l6m"]),
    ("r6", ["r6m", "r6", "r6m"], ["drop", "r6", "r6m"]),
    ("l6 r6", ["l6 r6m", "l6 r6", "l6m r6m"], ["l6", "l6 r6", "l6m r6m"]),
    ("l5", ["l5", "l5m", "l5m"], ["l5", "l5m", "l5m"]),
    ("l5 l6", ["l5 l6", "l5m l6", "l5m l6m"], ["l5 l6", "l5m l6", "l5m l6m"]),
    ("", ["refuse"; 3], ["refuse"; 3]),
    ("l6u r6x", ["refuse"; 3], ["refuse"; 3]),
    ("l6t r6x", ["l6", "l6", "l6m"], ["l6", "l6", "l6m"]),
    ("l6t r6", ["r6m", "r6", "r6m"], ["l6", "r6", "r6m"]),
    ("r6t r7x", ["r6m", "r6", "r6m"], ["drop", "r6", "r6m"]),
    ("l6t r6t", ["l6 r6m", "l6 r6", "l6m r6m"], ["l6", "l6 r6", "l6m r6m"]),
    ("l6 l7u", ["l6", "l6", "l6m"], ["l6", "l6", "l6m"]),
];

#[test]
fn the_rules_follow_the_truth_table() {
    Net::each(|net| {
        for (given, cluster, local) in TABLE {
            for (is_local, row) in [(false, cluster), (true, local)] {
                let snapshot = snapshot([policy(web(net, endpoints(net, given)), is_local)]);
                for (client, short) in ALL_CLIENTS.into_iter().zip(row) {
                    for protocol in [TCP, UDP] {
                        assert_eq!(
                            fates(net, &snapshot, packet(net, client, protocol, 80)),
                            parse_fates(net, protocol, short),
                            "{given:?}, Local: {is_local}, {client:?}, protocol {protocol}, {:?}",
                            net.family
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn published_unready_endpoints_count_as_ready() {
    // The slices of such a Service list all endpoints as ready, terminating ones as well (EndpointConditions).
    let published = |short: &str| {
        let with_ready = |endpoint| Endpoint { ready: true, ..endpoint };
        endpoints(V4, short).into_iter().map(with_ready).collect::<Vec<_>>()
    };
    let snapshot = snapshot([web(V4, published("l6u l7x r6"))]);
    assert_eq!(fates(V4, &snapshot, packet(V4, Client::Outside, TCP, 80)), parse_fates(V4, TCP, "l6 l7 r6m"));
}

#[test]
fn packets_to_no_service_port_have_these_fates() {
    Net::each(|net| {
        let snapshot = snapshot([web(net, endpoints(net, "l6"))]);
        for client in ALL_CLIENTS {
            let ask = |packet| fates(net, &snapshot, packet);
            assert_eq!(ask(packet(net, client, TCP, 81)), BTreeSet::from([Fate::Dropped]));
            assert_eq!(ask(packet(net, client, 132, 80)), BTreeSet::from([Fate::Dropped]), "SCTP");
            let elsewhere = Packet { destination: ip(net.other), ..packet(net, client, TCP, 80) };
            assert_eq!(ask(elsewhere), BTreeSet::from([Fate::Passed]));
            let (icmp, echo) = if net == V4 { (1, 8) } else { (58, 128) };
            let ping = packet(net, client, icmp, u16::from_be_bytes([echo, 0]));
            assert_eq!(ask(ping), BTreeSet::from([Fate::Answered]));
        }
    });
}

#[test]
fn only_ping_and_neighbour_discovery_pass_to_lb_ips() {
    let snapshot = snapshot([web(V6, endpoints(V6, "l6"))]);
    for kind in 0..=255u8 {
        let fate = match kind {
            128 => Fate::Answered,
            133..=137 => Fate::Passed,
            _ => Fate::Dropped,
        };
        let packet = packet(V6, Client::Outside, 58, u16::from_be_bytes([kind, 0]));
        assert_eq!(fates(V6, &snapshot, packet), BTreeSet::from([fate]), "type {kind}");
    }
}

#[test]
fn clients_outside_the_ranges_are_always_dropped() {
    Net::each(|net| {
        for (given, _, _) in TABLE {
            for is_local in [false, true] {
                let closed = policy(web(net, endpoints(net, given)), is_local).only_from(&["203.0.113.0/24"]);
                let snapshot = snapshot([closed, service("other").holds(net.other)]);
                for client in ALL_CLIENTS {
                    let fates = fates(net, &snapshot, packet(net, client, UDP, 80));
                    assert_eq!(fates, BTreeSet::from([Fate::Dropped]), "{given:?}, Local: {is_local}, {client:?}");
                }
            }
        }
    });
}

/// The result of a connection attempt, as its client observes it. `itself`: the pod sees the client's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Answer { pod: (u8, u8), itself: bool },
    Refused,
    Nothing,
}

fn outcome(net: Net, fate: Fate) -> Outcome {
    match fate {
        Fate::Dropped => Outcome::Nothing,
        Fate::Reset | Fate::Unreachable => Outcome::Refused,
        Fate::Sent { to, masqueraded } => {
            let pods = (1..3).flat_map(|node| (0..10).map(move |number| (node, number)));
            let pod = pods.into_iter().find(|(node, number)| ip(&net.pod(*node, *number)) == to.ip()).expect("a pod");
            Outcome::Answer { pod, itself: !masqueraded }
        }
        Fate::Passed | Fate::Answered => panic!("no fate of a connection"),
    }
}

/// The outcomes of up to 24 attempts. Of two possible outcomes, either is missed once in 2^23 runs.
fn ask(from: &Namespace, net: Net, protocol: u8, own: &[IpAddr]) -> BTreeSet<Outcome> {
    const TRIES: usize = 24;
    let mut all = BTreeSet::new();
    for _ in 0..TRIES {
        let answer = if protocol == TCP {
            connect(from, &net.port(80), SILENCE).and_then(|mut connection| connection.ask())
        } else {
            let socket = udp(from, &net.port(80));
            // The kernel sends at least one ICMP error per second, so a refusal arrives within a few tries.
            let once = || socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64]));
            let silent = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
            let first = (0..7).map(|_| once()).find(|result| !result.as_ref().is_err_and(silent));
            first.unwrap_or(Err(ErrorKind::WouldBlock.into())).and_then(|_| ask_udp(&socket))
        };
        all.insert(match answer {
            Ok(answer) => Outcome::Answer { pod: answer.pod, itself: own.contains(&answer.client) },
            Err(error) => match error.kind() {
                // A local process gets the error at once, with another errno.
                ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => Outcome::Refused,
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Nothing,
                other => panic!("{other}"),
            },
        });
        // A refusal applies to all attempts, and the kernel limits its ICMP errors.
        if all.contains(&Outcome::Nothing) || all.contains(&Outcome::Refused) {
            break;
        }
    }
    all
}

#[test]
fn the_kernel_agrees_with_the_traced_fates() {
    Net::each(|net| {
        let world = World::new();
        let pods = [(1, 5), (1, 6), (2, 6)].map(|(node, number)| world.pod(node, number));
        let mut engine = engine(&world);
        // One row of each kind. The other rows differ in the plan, not in the path of packets.
        for (given, _, _) in [TABLE[2], TABLE[1], TABLE[4], TABLE[5], TABLE[8]] {
            for is_local in [false, true] {
                let snapshot = snapshot([policy(web(net, endpoints(net, given)), is_local)]);
                apply(&mut engine, &snapshot);
                // Otherwise a client with a reused port would match its old flow, since no agent deletes it here.
                let forgotten = world.n1.command("conntrack").arg("-F").output().expect("run conntrack");
                assert!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
                for client in ALL_CLIENTS {
                    let (from, own) = match client {
                        Client::Outside => (&world.client, vec![ip(net.client)]),
                        Client::Pod => (&pods[0].namespace, vec![ip(&net.pod_ip(&pods[0]))]),
                        // The node may use any of its addresses, so none of them counts as another source.
                        Client::Node => (&world.n1, vec![]),
                    };
                    for protocol in [TCP, UDP] {
                        let traced = fates(net, &snapshot, packet(net, client, protocol, 80));
                        let expected: BTreeSet<Outcome> = traced.into_iter().map(|fate| outcome(net, fate)).collect();
                        assert_eq!(
                            ask(from, net, protocol, &own),
                            expected,
                            "{given:?}, Local: {is_local}, {client:?}, protocol {protocol}, {:?}",
                            net.family
                        );
                    }
                }
            }
        }
    });
}
