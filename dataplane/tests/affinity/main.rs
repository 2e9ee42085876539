//! Clients that stay with their endpoint: a real kernel, real connections.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../sample/mod.rs"]
mod sample;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::UdpSocket;

use crds::Endpoint;
use harness::{Agent, all, endpoint_of, web, with_lan};
use netns::Namespace;
use sample::{Described, NODE, ip, ready, service, snapshot, terminating};
use world::{Answer, Net, Pod, V4, World, ask_tcp, ask_udp, udp, wait_for};

/// A timeout in seconds that is longer than any test.
const LONG: u32 = 10_800;

fn start(world: &World) -> Agent {
    Agent::start(&world.n1)
}

/// Sends a snapshot with `web`, and with a Service at the other lb_ip that has an endpoint in even rounds. Waits until
/// this is published.
fn send_and_wait(agent: &Agent, net: Net, web: Described, round: u16) {
    let marker = service("marker").holds(net.other).port("", crds::Protocol::Tcp, round).local();
    let marker = marker.slice(&[("", crds::Protocol::Tcp, 1)], [ready(&net.pod(1, 99), NODE)]);
    let serving = if round.is_multiple_of(2) { marker } else { service("marker").holds(net.other) };
    agent.send(with_lan(snapshot([web, serving])));
    wait_for("the change", || agent.forwarding().serving.contains(&ip(net.other)) == round.is_multiple_of(2));
}

/// The pods that answer a client.
fn pods(from: &Namespace, net: Net) -> BTreeSet<(u8, u8)> {
    all(|| ask_tcp(from, &net.port(80))).into_iter().map(|answer: Answer| answer.pod).collect()
}

fn only(pods: &BTreeSet<(u8, u8)>) -> (u8, u8) {
    assert_eq!(pods.len(), 1, "{pods:?}");
    *pods.first().expect("one")
}

fn endpoints(net: Net, pods: &[&Pod]) -> Vec<Endpoint> {
    pods.iter().map(|pod| endpoint_of(net, pod)).collect()
}

#[test]
fn every_client_keeps_one_endpoint_per_protocol() {
    Net::each(|net| {
        let world = World::new();
        let (near, far, client) = (world.pod(1, 5), world.pod(2, 5), world.pod(1, 6));
        let agent = start(&world);
        send_and_wait(&agent, net, web(net, endpoints(net, &[&near, &far])).sticky(LONG), 2);
        // The node is a client as well. A random choice would stay with one endpoint once in 2^39 runs.
        for from in [&world.client, &client.namespace, &world.n1] {
            only(&pods(from, net));
            let ask = || ask_udp(&udp(from, &net.port(80))).expect("an answer");
            only(&all(ask).into_iter().map(|answer| answer.pod).collect());
        }
        agent.end();
    });
}

#[test]
fn a_client_keeps_its_endpoint_while_others_change() {
    Net::each(|net| {
        let world = World::new();
        let (a, b, c) = (world.pod(1, 5), world.pod(1, 6), world.pod(2, 7));
        let agent = start(&world);
        send_and_wait(&agent, net, web(net, endpoints(net, &[&a])).sticky(LONG), 2);
        assert_eq!(only(&pods(&world.client, net)), (1, 5));
        // With three endpoints, a random choice would stay with the first one once in 3^40 runs.
        send_and_wait(&agent, net, web(net, endpoints(net, &[&a, &b, &c])).sticky(LONG), 3);
        assert_eq!(only(&pods(&world.client, net)), (1, 5));
        // A new agent replaces the first one.
        agent.end();
        let agent = start(&world);
        send_and_wait(&agent, net, web(net, endpoints(net, &[&c, &a])).sticky(LONG), 4);
        assert_eq!(only(&pods(&world.client, net)), (1, 5));
        // The endpoint terminates, so the client gets another one. It stays there when the first comes back.
        let stops = [terminating(endpoint_of(net, &a)), endpoint_of(net, &b), endpoint_of(net, &c)];
        send_and_wait(&agent, net, web(net, stops).sticky(LONG), 5);
        wait_for("another endpoint", || ask_tcp(&world.client, &net.port(80)).pod != (1, 5));
        let next = only(&pods(&world.client, net));
        assert_ne!(next, (1, 5));
        send_and_wait(&agent, net, web(net, endpoints(net, &[&a, &b, &c])).sticky(LONG), 6);
        assert_eq!(only(&pods(&world.client, net)), next);
        agent.end();
    });
}

#[test]
fn session_affinity_can_be_switched_at_runtime() {
    Net::each(|net| {
        let world = World::new();
        let (a, b) = (world.pod(1, 5), world.pod(1, 6));
        let agent = start(&world);
        let both = BTreeSet::from([(1, 5), (1, 6)]);
        for round in 1..5u16 {
            let web = web(net, endpoints(net, &[&a, &b]));
            if round.is_multiple_of(2) {
                send_and_wait(&agent, net, web.sticky(LONG), round);
                only(&pods(&world.client, net));
            } else {
                send_and_wait(&agent, net, web, round);
                assert_eq!(pods(&world.client, net), both);
            }
        }
        agent.end();
    });
}

#[test]
fn policy_local_overrides_the_remembered_endpoint() {
    Net::each(|net| {
        let world = World::new();
        let (near, far) = (world.pod(1, 5), world.pod(2, 5));
        let agent = start(&world);
        send_and_wait(&agent, net, web(net, endpoints(net, &[&far])).sticky(LONG), 2);
        assert_eq!(only(&pods(&world.client, net)), (2, 5));
        send_and_wait(&agent, net, web(net, endpoints(net, &[&near, &far])).local().sticky(LONG), 3);
        wait_for("the endpoint here", || ask_tcp(&world.client, &net.port(80)).pod == (1, 5));
        assert_eq!(only(&pods(&world.client, net)), (1, 5));
        agent.end();
    });
}

#[test]
fn an_expired_client_may_get_any_endpoint() {
    let world = World::new();
    let (a, b) = (world.pod(1, 5), world.pod(1, 6));
    let agent = start(&world);
    send_and_wait(&agent, V4, web(V4, endpoints(V4, &[&a, &b])).sticky(1), 2);
    let first = ask_tcp(&world.client, &V4.port(80)).pod;
    // Each time the client is forgotten, it gets the other endpoint with a probability of one half.
    wait_for("another endpoint", || {
        wait_for("the client to be forgotten", || {
            let listed = world.n1.command("nft").args(["list", "map", "ip", "landfall", "affinity"]).output();
            !String::from_utf8_lossy(&listed.expect("run nft").stdout).contains(V4.client)
        });
        ask_tcp(&world.client, &V4.port(80)).pod != first
    });
    agent.end();
}

#[test]
fn a_client_keeps_an_endpoint_with_host_network() {
    Net::each(|net| {
        let world = World::new();
        let near = world.pod(1, 5);
        // A pod with hostNetwork: the packet ends on the node and leaves by no link.
        let at = format!("{}:8080", if net == V4 { net.n1.to_owned() } else { format!("[{}]", net.n1) });
        let own = world.n1.run(|| UdpSocket::bind(&at).expect("a socket"));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = own.recv_from(&mut buffer) {
                let _ = own.send_to(format!("0.0 {}\n", from.ip()).as_bytes(), from);
            }
        });
        let agent = start(&world);
        let ask = || ask_udp(&udp(&world.client, &net.port(80))).expect("an answer").pod;
        send_and_wait(&agent, net, web(net, [ready(net.n1, NODE)]).sticky(LONG), 2);
        assert_eq!(ask(), (0, 0));
        send_and_wait(&agent, net, web(net, [ready(net.n1, NODE), endpoint_of(net, &near)]).sticky(LONG), 3);
        assert_eq!((0..40).map(|_| ask()).collect::<BTreeSet<_>>(), BTreeSet::from([(0, 0)]));
        agent.end();
    });
}
