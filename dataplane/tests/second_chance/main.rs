//! Segments that arrive at a node that does not track their connection: another node gets them.
//!
//! Nodes and client as in `spread.rs`. The announcer remembers no connection in these tests: it is another node than
//! before, or the connections were idle while the share table changed.

#[path = "../cluster/mod.rs"]
mod cluster;
#[path = "../sample/mod.rs"]
mod sample;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use cluster::Cluster;
use sample::snapshot;
use world::{Answer, Connection, Net, PATIENCE, Pod, connect, wait_for};

/// The least time after which Linux retransmits a segment (TCP_RTO_MIN).
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// Opens connections, and sends one request over each. Returns them with their answers.
fn open(cluster: &Cluster, net: Net, count: usize) -> (Vec<Connection>, Vec<Answer>) {
    let open = || connect(&cluster.client, &net.port(80), PATIENCE).expect("a connection");
    let mut connections: Vec<Connection> = (0..count).map(|_| open()).collect();
    let answers = ask_all(&mut connections);
    (connections, answers)
}

fn ask_all(connections: &mut [Connection]) -> Vec<Answer> {
    connections.iter_mut().map(|connection| connection.ask().expect("an answer")).collect()
}

/// Two pods on each of three nodes.
fn six_pods(cluster: &Cluster) -> [Pod; 6] {
    [(1, 5), (2, 5), (3, 5), (1, 6), (2, 6), (3, 6)].map(|(node, number)| cluster.pod(node, number))
}

#[test]
fn idle_connections_survive_every_scaling_of_their_service() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[..1])]));
        let (mut on_one_node, first) = open(&cluster, net, 20);
        cluster.apply(&snapshot([cluster.web(net, &pods[..2])]));
        let (mut on_two_nodes, second) = open(&cluster, net, 20);
        for count in [3, 6, 3, 2, 5, 2] {
            cluster.apply(&snapshot([cluster.web(net, &pods[..count])]));
        }
        cluster.apply(&snapshot([cluster.web(net, &pods[..3])]));
        cluster.forget_connections();
        // Each connection is asked twice: a second request must not lose the way that the first one found.
        for _ in 0..2 {
            assert_eq!(ask_all(&mut on_one_node), first, "that began on the announcer");
            assert_eq!(ask_all(&mut on_two_nodes), second, "that began on two nodes");
        }
    });
}

#[test]
fn connections_survive_a_takeover_after_their_table_changed() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[1..3])]));
        let (mut connections, first) = open(&cluster, net, 20);
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        for announcer in [3, 2, 1] {
            cluster.announced_by(announcer);
            assert_eq!(ask_all(&mut connections), first, "announced by n{announcer}");
        }
    });
}

#[test]
fn a_connection_that_no_node_tracks_is_reset_at_once() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[..3])]));
        let (mut connections, _) = open(&cluster, net, 12);
        // All nodes forget the connections, and the pods are replaced.
        cluster.forget_tracked_connections();
        cluster.apply(&snapshot([cluster.web(net, &pods[3..])]));
        for connection in &mut connections {
            let start = Instant::now();
            let error = connection.ask().expect_err("its pod is gone");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(start.elapsed() < RETRANSMISSION, "after {:?}", start.elapsed());
        }
    });
}

#[test]
fn a_connection_that_no_node_tracks_stays_with_the_only_endpoint_of_its_node() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[..3])]));
        let (mut connections, first) = open(&cluster, net, 12);
        cluster.forget_tracked_connections();
        assert_eq!(ask_all(&mut connections), first);
    });
}

#[test]
fn the_end_of_a_moved_connection_reaches_its_endpoint() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[..1])]));
        let (connections, _) = open(&cluster, net, 20);
        cluster.apply(&snapshot([cluster.web(net, &pods[..3])]));
        let all_ended = || {
            let output = pods[0].namespace.command("ss").args(["-Htn", "state", "established"]).output();
            output.expect("run ss").stdout.is_empty()
        };
        assert!(!all_ended(), "no connection is open");
        drop(connections);
        wait_for("the end of all connections", all_ended);
    });
}

#[test]
fn segments_of_unknown_connections_do_not_circulate() {
    Net::each(|net| {
        let cluster = Cluster::new();
        let pods = six_pods(&cluster);
        cluster.apply(&snapshot([cluster.web(net, &pods[..3])]));
        let (mut connections, first) = open(&cluster, net, 1);
        let moved: BTreeSet<u8> = first.iter().map(|answer| answer.pod.0).collect();
        cluster.forget_tracked_connections();
        let copies = cluster.count_segments(net);
        assert_eq!(ask_all(&mut connections), first, "on {moved:?}");
        // The request goes from the client to the announcer, from there to its node, to both other nodes and back. The
        // acknowledgement of its answer goes to the announcer, which may have to look for the node again.
        let count = copies();
        assert!((4..=8).contains(&count), "{count} segments");
    });
}
