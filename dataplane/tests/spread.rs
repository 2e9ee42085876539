//! Frames spread over three nodes by the kernel: the pods that get them, and the client that pods see. Also the path of
//! frames when nodes come and go.
//!
//! ```text
//!   client 192.0.2.100 ──┐
//!   node n1 192.0.2.1 ───┤        n1 announces the lb_ips: the client's packets come here
//!   node n2 192.0.2.2 ───┤ LAN
//!   node n3 192.0.2.3 ───┘        behind each node: pods 10.244.N.0/24
//! ```

mod cluster;
mod frame_bytes;
mod sample;
mod tracer;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use cluster::Cluster;
use crds::Endpoint;
use crds::Protocol::Tcp;
use frame_bytes::Kind;
use sample::{ready, service, snapshot, terminating, unready};
use tracer::Machine;
use tracer::frame::FrameFate;
use world::{Answer, Net, PATIENCE, SILENCE, V4, ask_tcp, connect, udp, wait_for};

/// Sends a request over each of `connections` connections, and counts the answers of each pod. Checks that each pod
/// sees the client's own address.
fn count_answers(cluster: &Cluster, net: Net, connections: usize) -> BTreeMap<(u8, u8), usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..connections {
        let answer = ask_tcp(&cluster.client, &net.port(80));
        assert_eq!(answer.client, net.client.parse::<IpAddr>().expect("an address"), "{:?}", answer.pod);
        *answers.entry(answer.pod).or_default() += 1;
    }
    answers
}

/// The answers to UDP datagrams, each of which is sent from a new port.
fn udp_answers(cluster: &Cluster, net: Net, datagrams: usize) -> BTreeSet<Answer> {
    (0..datagrams).map(|_| world::ask_udp(&udp(&cluster.client, &net.port(80))).expect("an answer")).collect()
}

#[test]
fn endpoints_on_all_nodes_see_the_client() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5), cluster.pod(3, 6)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let answers = count_answers(&cluster, net, 200);
        let all_pods: BTreeSet<_> = pods.iter().map(|pod| (pod.node, pod.number)).collect();
        assert_eq!(answers.keys().copied().collect::<BTreeSet<_>>(), all_pods);
        let seen = |pod| Answer::new(pod, net.client);
        assert_eq!(udp_answers(&cluster, net, 80), pods.iter().map(seen).collect());
    });
}

#[test]
fn the_kernel_resends_frames_as_traced() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5), cluster.pod(3, 6)];
        let snapshot = snapshot([cluster.web(net, &pods)]);
        cluster.apply(&snapshot);
        let machine = Machine::new(&cluster.plan(1, &snapshot), &[net.n1]);
        let traced = |protocol: u8, port: u16, kind: Kind| match machine
            .verdict(&frame_bytes::frame(net, protocol, port, kind))
        {
            FrameFate::Kept => 1,
            FrameFate::Resent { to, from } => {
                assert_eq!(from, sample::mac("n1"));
                to.octets()[5]
            }
        };
        for _ in 0..24 {
            let mut connection = connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
            let node = connection.ask().expect("an answer").pod.0;
            assert_eq!(node, traced(6, connection.local().port(), Kind::Whole), "TCP");
            let socket = udp(&cluster.client, &net.port(80));
            let port = socket.local_addr().expect("an address").port();
            let node = world::ask_udp(&socket).expect("an answer").pod.0;
            assert_eq!(node, traced(17, port, Kind::Whole), "UDP");
            // A new socket: a late reply to the datagram above would be taken for the reply to this one.
            let socket = udp(&cluster.client, &net.port(80));
            let node = ask_in_fragments(&socket).pod.0;
            assert_eq!([node; 2], [Kind::First, Kind::Later].map(|kind| traced(17, port, kind)), "in fragments");
        }
    });
}

#[test]
fn the_switch_keeps_the_port_of_the_client() {
    let cluster = Cluster::new();
    let pods = [cluster.pod(2, 5)];
    cluster.apply(&snapshot([cluster.web(V4, &pods)]));
    count_answers(&cluster, V4, 5);
    let table = cluster.lan.command("bridge").args(["fdb", "show", "br", "br0"]).output().expect("run bridge");
    let table = String::from_utf8(table.stdout).expect("text");
    let of_client = cluster.mac_of_client().to_string();
    let ports: Vec<&str> = table.lines().filter(|line| line.starts_with(&of_client)).collect();
    assert!(!ports.is_empty() && ports.iter().all(|line| line.contains("dev client ")), "{table}");
}

#[test]
fn frames_of_a_node_are_not_resent() {
    let cluster = Cluster::new();
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    cluster.apply(&snapshot([cluster.web(V4, &pods)]));
    // The third node has no rules for the address, and sends through the first node.
    cluster.nodes[2].command("nft").args(["flush", "ruleset"]).status().expect("run nft");
    cluster.nodes[2].ip(["route add 198.51.100.0/24 via 192.0.2.1"]).expect("a route");
    for _ in 0..20 {
        let answer = ask_tcp(&cluster.nodes[2], &V4.port(80));
        assert_eq!(answer.pod, (1, 5), "the node that it reached serves it");
    }
}

#[test]
fn a_node_without_endpoints_forwards_resent_frames() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(2, 5), cluster.pod(3, 5)];
        let both = snapshot([cluster.web(net, &pods)]);
        cluster.apply(&both);
        assert_eq!(count_answers(&cluster, net, 40).len(), 2);
        // The second node knows already that its endpoint is gone, the first does not yet.
        cluster.apply_on(2, &snapshot([cluster.web(net, &pods[1..])]));
        let answers: BTreeSet<Answer> = (0..40).map(|_| ask_tcp(&cluster.client, &net.port(80))).collect();
        let by_way_of_the_second = net.node(2);
        let expected = [Answer::new(&pods[1], net.client), Answer::new(&pods[1], &by_way_of_the_second)];
        assert_eq!(answers, expected.into());
    });
}

#[test]
fn connections_stay_while_endpoints_change_elsewhere() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5), cluster.pod(2, 6), cluster.pod(3, 6)];
        cluster.apply(&snapshot([cluster.web(net, &pods[..2])]));
        let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let mut connections: Vec<_> = (0..30).map(|_| open()).collect();
        let first: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        assert_eq!(first.iter().map(|answer| answer.pod).collect::<BTreeSet<_>>().len(), 2);
        for endpoints in [&pods[..3], &pods[..], &pods[..2], &pods[1..3], &pods[2..]] {
            cluster.apply(&snapshot([cluster.web(net, endpoints)]));
            let now: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
            assert_eq!(now, first, "with {} endpoints", endpoints.len());
        }
    });
}

#[test]
fn connections_to_unready_endpoints_stay_there() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let mut connections: Vec<_> = (0..30).map(|_| open()).collect();
        let first: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        assert_eq!(first.iter().map(|answer| answer.pod).collect::<BTreeSet<_>>().len(), 3);
        let states: [fn(Endpoint) -> Endpoint; 3] = [|as_it_was| as_it_was, terminating, unready];
        for [own, second, third] in [[0, 1, 1], [0, 2, 1], [0, 2, 2], [2, 2, 2]] {
            let endpoints = pods
                .iter()
                .zip([own, second, third])
                .map(|(pod, state)| states[state](ready(&net.pod_ip(pod), &format!("n{}", pod.node))));
            let web = service("web").holds(net.lb_ip).port("tcp", Tcp, 80).slice(&[("tcp", Tcp, 8080)], endpoints);
            cluster.apply(&snapshot([web]));
            let now: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
            assert_eq!(now, first, "{own}, {second}, {third}");
            if own == 0 {
                assert_eq!(count_answers(&cluster, net, 10).keys().copied().collect::<Vec<_>>(), [(1, 5)]);
            }
        }
    });
}

#[test]
fn connections_survive_a_takeover_of_the_address() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let mut connections: Vec<_> = (0..20).map(|_| open()).collect();
        let first: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        cluster.announced_by(3);
        let now: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        assert_eq!(now, first);
    });
}

#[test]
fn one_change_redistributes_only_a_dead_nodes_share() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        let all = snapshot([cluster.web(net, &pods)]);
        cluster.apply(&all);
        let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let mut connections: Vec<_> = (0..30).map(|_| open()).collect();
        let first: Vec<Answer> = connections.iter_mut().map(|one| one.ask().expect("an answer")).collect();
        cluster.cut_off(2);
        cluster.apply(&dataplane::Snapshot { dead: ["n2".to_owned()].into(), ..all.clone() });
        let answers = count_answers(&cluster, net, 60);
        assert_eq!(answers.keys().copied().collect::<Vec<_>>(), [(1, 5), (3, 5)]);
        for (connection, first) in connections.iter_mut().zip(&first).filter(|(_, first)| first.pod.0 != 2) {
            assert_eq!(connection.ask().expect("an answer"), *first);
        }
    });
}

#[test]
fn a_datagram_in_fragments_arrives_whole() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let mut nodes = BTreeSet::new();
        for _ in 0..20 {
            let answer = ask_in_fragments(&udp(&cluster.client, &net.port(80)));
            assert_eq!(answer.client, net.client.parse::<IpAddr>().expect("an address"));
            nodes.insert(answer.pod.0);
        }
        assert_eq!(nodes.len(), 1, "a client's fragments all go to one node");
    });
}

/// Sends a request in a datagram that is too big for one frame, and returns the answer.
fn ask_in_fragments(socket: &UdpSocket) -> Answer {
    let mut buffer = [0; 64];
    let deadline = Instant::now() + PATIENCE;
    let length = loop {
        match socket.send(&[b'?'; 5_000]).and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => break length,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    };
    Answer::read(std::str::from_utf8(&buffer[..length]).expect("text"))
}

#[test]
fn an_icmp_error_reaches_the_node_of_its_connection() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let mut reached = BTreeSet::new();
        for _ in 0..12 {
            let mut connection = connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
            let answer = connection.ask().expect("an answer");
            let pod = pods.iter().find(|pod| (pod.node, pod.number) == answer.pod).expect("a pod");
            // The node translates the error and the packet that it quotes, so the pod gets it at its own address.
            let heard = icmp_errors_of(pod, net);
            cluster.report_packet_too_big(net, connection.local());
            wait_for("the error", || heard(connection.local().port()));
            reached.insert(answer.pod);
        }
        assert!(reached.len() > 1, "{reached:?}");
    });
}

#[test]
fn an_icmp_error_reaches_the_node_of_a_moved_connection() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods[1..2])]));
        let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let mut connections: Vec<_> = (0..12).map(|_| open()).collect();
        let ask = |connection: &mut world::Connection| assert_eq!(connection.ask().expect("an answer").pod, (2, 5));
        connections.iter_mut().for_each(ask);
        // Two of three slots move.
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let heard = icmp_errors_of(&pods[1], net);
        for connection in &connections {
            cluster.report_packet_too_big(net, connection.local());
            wait_for("the error", || heard(connection.local().port()));
        }
    });
}

#[test]
fn a_connection_is_remembered_from_its_first_data_to_its_end() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(2, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let mut connection = connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
        let port = connection.local().port();
        wait_for("the acknowledgement of the client", || cluster.memory_of(net, port).is_some());
        let is_remembered_for_hours = || cluster.memory_of(net, port).expect("remembered").contains('h');
        assert!(!is_remembered_for_hours(), "without data");
        connection.ask().expect("an answer");
        wait_for("the memory of the data", is_remembered_for_hours);
        drop(connection);
        wait_for("the end", || !is_remembered_for_hours());
        // The last acknowledgement of the client does not prolong it.
        std::thread::sleep(SILENCE);
        assert!(!is_remembered_for_hours(), "after the end");
    });
}

/// Opens an ICMP socket in this pod. The result waits for a message, and returns whether it reports that a packet from
/// the pod to this port was too big.
fn icmp_errors_of(pod: &world::Pod, net: Net) -> impl Fn(u16) -> bool {
    let any: IpAddr = if net == V4 { "0.0.0.0" } else { "::" }.parse().expect("an address");
    let socket = world::raw_icmp(&pod.namespace, any).expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let (header, kind, ports) = if net == V4 { (20, 3, 8 + 20) } else { (0, 2, 8 + 40) };
    move |port| {
        let mut buffer = [0; 256];
        let Ok(length) = (&socket).read(&mut buffer) else { return false };
        let icmp = &buffer[header..length];
        let to = icmp.get(ports + 2..ports + 4).map(|to| u16::from_be_bytes([to[0], to[1]]));
        icmp.first() == Some(&kind) && to == Some(port)
    }
}

#[test]
fn a_client_stays_with_its_node_under_session_affinity() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods).sticky(600)]));
        assert_eq!(count_answers(&cluster, net, 30).len(), 1);
        cluster.announced_by(2);
        let before = count_answers(&cluster, net, 1);
        cluster.announced_by(3);
        assert_eq!(count_answers(&cluster, net, 1).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    });
}

#[test]
fn policy_local_spreads_over_nodes_with_endpoints() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods).local()]));
        assert_eq!(count_answers(&cluster, net, 40).len(), 2);
        cluster.announced_by(3);
        let error = connect(&cluster.client, &net.port(80), SILENCE).err().expect("no connection");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "a node without one serves no client");
    });
}

#[test]
fn the_announcer_translates_a_service_without_spreading() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5)];
        cluster.apply(&snapshot([cluster.web(net, &pods).without_spreading()]));
        let answers: BTreeSet<Answer> = (0..40).map(|_| ask_tcp(&cluster.client, &net.port(80))).collect();
        assert_eq!(answers, [Answer::new(&pods[0], net.client), Answer::new(&pods[1], net.n1)].into());
    });
}

#[test]
fn endpoints_on_unlinked_nodes_are_reached_through_others() {
    let cluster = Cluster::new();
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    cluster.without(3);
    cluster.apply(&snapshot([cluster.web(V4, &pods)]));
    let answers: BTreeSet<Answer> = (0..60).map(|_| ask_tcp(&cluster.client, &V4.port(80))).collect();
    let direct = [&pods[0], &pods[1]].map(|pod| Answer::new(pod, V4.client));
    assert!(direct.iter().all(|answer| answers.contains(answer)), "{answers:?}");
    let others: Vec<_> = answers.iter().filter(|answer| !direct.contains(answer)).collect();
    assert!(matches!(others[..], [one] if one.pod == (3, 5) && one.client.to_string() != V4.client), "{answers:?}");
}

#[test]
fn shares_match_the_numbers_of_endpoints() {
    // One datagram of each of many flows. The answers do not matter.
    const FLOWS: usize = 10_000;
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5), cluster.pod(3, 6)];
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        let count = cluster.count_datagrams(net);
        let to: SocketAddr = net.port(80).parse().expect("an address and a port");
        let any: IpAddr = if net == V4 { "0.0.0.0" } else { "::" }.parse().expect("an address");
        // The same ports in each run, so that the result is the same.
        cluster.client.run(|| {
            for port in (20_000..).take(FLOWS) {
                let socket = std::net::UdpSocket::bind((any, port)).expect("a socket");
                socket.send_to(b"?", to).expect("sent");
            }
        });
        let shares = count(FLOWS);
        for (share, should) in shares.iter().zip([0.25, 0.25, 0.5]) {
            assert!((share / should - 1.0).abs() <= 0.05, "{shares:?}");
        }
    });
}
