//! What packets do on a node that the engine has programmed: a real kernel, real connections.

mod sample;
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::Endpoint;
use crds::Protocol::{Tcp, Udp};
use dataplane::Snapshot;
use dataplane::engine::Engine;
use dataplane::ruleset::ruleset;
use sample::{NODE, service, snapshot, terminating};
use world::{Answer, CLIENT, PATIENCE, Pod, SILENCE, World, ask_tcp, ask_udp, connect, nft, ping, udp};

const WEB: &str = "198.51.100.10:80";

/// A Service at [`WEB`], TCP and UDP, with these endpoints.
fn web(endpoints: impl IntoIterator<Item = Endpoint>) -> sample::Described {
    service("web")
        .holds("198.51.100.10")
        .port("tcp", Tcp, 80)
        .port("udp", Udp, 80)
        .slice(&[("tcp", Tcp, 8080), ("udp", Udp, 8080)], endpoints)
}

fn on(node: &str, pod: &Pod) -> Endpoint {
    sample::ready(&pod.address.to_string(), node)
}

fn engine(world: &World) -> Engine {
    world.n1.run(|| Engine::open().expect("an engine"))
}

fn apply(engine: &mut Engine, snapshot: &Snapshot) {
    let pod_ranges = vec!["10.244.1.0/24".parse().expect("a range")];
    engine.apply(&Arc::new(ruleset(&Snapshot { pod_ranges, ..snapshot.clone() }))).expect("apply");
}

/// Everything that answers, asked often enough that each of two is missed once in 2^39 times.
fn all(mut ask: impl FnMut() -> Answer) -> BTreeSet<Answer> {
    (0..40).map(|_| ask()).collect()
}

#[test]
fn a_client_reaches_all_endpoints_and_is_seen_by_those_on_this_node() {
    let world = World::new();
    let (near, far) = (world.pod(1, 5), world.pod(2, 5));
    apply(&mut engine(&world), &snapshot([web([on(NODE, &near), on("n2", &far)])]));
    let expected = BTreeSet::from([Answer::new(&near, CLIENT), Answer::new(&far, "192.0.2.1")]);
    assert_eq!(all(|| ask_tcp(&world.client, WEB)), expected);
    assert_eq!(all(|| ask_udp(&udp(&world.client, WEB)).expect("an answer")), expected);
}

#[test]
fn under_the_policy_local_only_local_endpoints_serve_the_client_but_all_serve_this_node_and_its_pods() {
    let world = World::new();
    let (near, far, pod) = (world.pod(1, 5), world.pod(2, 5), world.pod(1, 6));
    apply(&mut engine(&world), &snapshot([web([on(NODE, &near), on("n2", &far)]).local()]));
    assert_eq!(all(|| ask_tcp(&world.client, WEB)), BTreeSet::from([Answer::new(&near, CLIENT)]));
    let pods = BTreeSet::from([Answer::new(&near, "10.244.1.6"), Answer::new(&far, "10.244.1.6")]);
    assert_eq!(all(|| ask_tcp(&pod.namespace, WEB)), pods, "a pod keeps its address");
    let node = BTreeSet::from([Answer::new(&near, "10.244.1.1"), Answer::new(&far, "192.0.2.1")]);
    assert_eq!(all(|| ask_tcp(&world.n1, WEB)), node, "the node has the address of the link it uses");
}

#[test]
fn under_the_policy_local_a_client_is_not_answered_while_endpoints_live_elsewhere() {
    let world = World::new();
    let far = world.pod(2, 5);
    apply(&mut engine(&world), &snapshot([web([on("n2", &far)]).local()]));
    let error = connect(&world.client, WEB, SILENCE).err().expect("no connection");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_pod_that_reaches_itself_is_answered() {
    let world = World::new();
    let pod = world.pod(1, 5);
    apply(&mut engine(&world), &snapshot([web([on(NODE, &pod)])]));
    assert_eq!(ask_tcp(&pod.namespace, WEB), Answer::new(&pod, "10.244.1.1"));
    assert_eq!(ask_udp(&udp(&pod.namespace, WEB)).expect("an answer"), Answer::new(&pod, "10.244.1.1"));
}

#[test]
fn without_endpoints_a_client_is_refused_at_once() {
    let world = World::new();
    let pod = world.pod(1, 6);
    apply(&mut engine(&world), &snapshot([web([])]));
    for from in [&world.client, &pod.namespace, &world.n1] {
        let start = Instant::now();
        let error = connect(from, WEB, PATIENCE).err().expect("no connection");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(
            start.elapsed() < Duration::from_millis(900),
            "the first packet was not answered, but one after {:?}",
            start.elapsed()
        );
    }
    for (from, refusal) in [
        (&world.client, ErrorKind::ConnectionRefused),
        (&pod.namespace, ErrorKind::ConnectionRefused),
        // The kernel tells a local process at once, and in other words.
        (&world.n1, ErrorKind::PermissionDenied),
    ] {
        assert_eq!(ask_udp(&udp(from, WEB)).expect_err("no answer").kind(), refusal);
    }
}

#[test]
fn a_port_that_nobody_has_is_silent() {
    let world = World::new();
    let pod = world.pod(1, 5);
    apply(&mut engine(&world), &snapshot([web([on(NODE, &pod)])]));
    let error = connect(&world.client, "198.51.100.10:81", SILENCE).err().expect("no connection");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn an_lb_ip_answers_a_ping() {
    let world = World::new();
    let pod = world.pod(1, 5);
    apply(&mut engine(&world), &snapshot([web([])]));
    for from in [&world.client, &pod.namespace, &world.n1] {
        ping(from, "198.51.100.10").expect("an echo reply");
    }
}

#[test]
fn new_connections_follow_a_change_and_open_ones_live_on() {
    let world = World::new();
    let (old, new) = (world.pod(1, 5), world.pod(1, 6));
    let mut engine = engine(&world);
    apply(&mut engine, &snapshot([web([on(NODE, &old)])]));
    let mut open = connect(&world.client, WEB, PATIENCE).expect("a connection");
    assert_eq!(open.ask().expect("an answer"), Answer::new(&old, CLIENT));
    apply(&mut engine, &snapshot([web([terminating(on(NODE, &old)), on(NODE, &new)])]));
    assert_eq!(all(|| ask_tcp(&world.client, WEB)), BTreeSet::from([Answer::new(&new, CLIENT)]));
    assert_eq!(open.ask().expect("an answer"), Answer::new(&old, CLIENT));
    // Neither does it end with the Service, nor by another agent starting over.
    apply(&mut engine, &snapshot([service("other").holds("198.51.100.11")]));
    assert_eq!(open.ask().expect("an answer"), Answer::new(&old, CLIENT));
    apply(&mut self::engine(&world), &snapshot([web([on(NODE, &new)])]));
    assert_eq!(open.ask().expect("an answer"), Answer::new(&old, CLIENT));
}

#[test]
fn connections_open_and_new_survive_that_the_table_is_replaced() {
    let world = World::new();
    let pod = world.pod(1, 5);
    let mut engine = engine(&world);
    apply(&mut engine, &snapshot([web([on(NODE, &pod)])]));
    let mut open = connect(&world.client, WEB, PATIENCE).expect("a connection");
    assert_eq!(open.ask().expect("an answer"), Answer::new(&pod, CLIENT));
    nft(&world.n1, "add rule ip landfall unserved accept");
    apply(&mut self::engine(&world), &snapshot([web([on(NODE, &pod)])]));
    assert_eq!(open.ask().expect("an answer"), Answer::new(&pod, CLIENT));
    assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&pod, CLIENT));
}

#[test]
fn where_kube_proxy_knows_the_address_too_this_table_decides() {
    let world = World::new();
    let (ours, theirs) = (world.pod(1, 5), world.pod(1, 6));
    let rules = "table ip kube-proxy {
        chain prerouting {
            type nat hook prerouting priority -100
            ip daddr 198.51.100.10 tcp dport 80 dnat to 10.244.1.6:8080
        }
        chain output {
            type nat hook output priority -100
            ip daddr 198.51.100.10 tcp dport 80 dnat to 10.244.1.6:8080
        }
    }";
    let mut engine = engine(&world);
    let snapshot = snapshot([web([on(NODE, &ours)])]);
    // Whoever comes first.
    for round in 0..2 {
        if round == 0 {
            apply(&mut engine, &snapshot);
        }
        nft(&world.n1, rules);
        if round == 1 {
            apply(&mut engine, &snapshot);
        }
        assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&ours, CLIENT));
        assert_eq!(ask_tcp(&world.n1, WEB), Answer::new(&ours, "10.244.1.1"));
        // Without this table, the other one does.
        apply(&mut engine, &sample::nothing());
        assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&theirs, CLIENT));
        nft(&world.n1, "delete table ip kube-proxy");
    }
}

#[test]
fn iptables_rules_of_kube_proxy_come_second_too() {
    let world = World::new();
    let (ours, theirs) = (world.pod(1, 5), world.pod(1, 6));
    let rule = ["-t", "nat", "-d", "198.51.100.10", "-p", "tcp", "-j", "DNAT", "--to", "10.244.1.6:8080"];
    for chain in ["PREROUTING", "OUTPUT"] {
        let iptables = world.n1.command("iptables").args(["-A", chain]).args(rule).output().expect("run iptables");
        assert!(iptables.status.success(), "{}", String::from_utf8_lossy(&iptables.stderr));
    }
    let mut engine = engine(&world);
    apply(&mut engine, &snapshot([web([on(NODE, &ours)])]));
    assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&ours, CLIENT));
    assert_eq!(ask_tcp(&world.n1, WEB), Answer::new(&ours, "10.244.1.1"));
    apply(&mut engine, &sample::nothing());
    assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&theirs, CLIENT));
}
