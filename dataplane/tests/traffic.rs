//! The kernel's packet counters of Services, and the report made of them.

mod harness;
mod sample;
mod world;

use std::collections::BTreeMap;

use crds::Key;
use crds::Protocol::{Tcp, Udp};
use dataplane::Snapshot;
use dataplane::metrics::{KernelCounters, PacketCount, ServiceTraffic, TrafficReport, report_traffic};
use dataplane::nft::TableOutcomes;
use dataplane::read_kernel_counters;
use dataplane::rules::Frontend;
use dataplane::rules::plan_ruleset;
use harness::{apply, endpoint_of, engine, web, with_lan};
use netns::Namespace;
use sample::{ip, nothing, service, snapshot};
use std::sync::Arc;
use world::{Net, PATIENCE, SILENCE, World, ask_tcp, ask_udp, connect, udp, wait_for};

/// The counters of node `n1` for the Service `web` of this snapshot.
fn of_web(world: &World, snapshot: &Snapshot, net: Net) -> ServiceTraffic {
    let counted = world.n1.run(|| read_kernel_counters().expect("counters"));
    report_traffic(snapshot, &counted, 10).busiest[&(Key::new("default", "web"), ip(net.lb_ip))]
}

fn strays(host: &Namespace) -> u64 {
    report_traffic(&nothing(), &host.run(|| read_kernel_counters().expect("counters")), 10).strays
}

#[test]
fn traffic_counters_survive_changes_of_endpoints() {
    Net::each(|net| {
        let world = World::new();
        let (near, far) = (world.pod(1, 5), world.pod(2, 5));
        let mut engine = engine(&world);
        let counting = |endpoints: Vec<_>| Snapshot { count_traffic: true, ..snapshot([web(net, endpoints)]) };
        let one = counting(vec![endpoint_of(net, &near)]);
        apply(&mut engine, &one);
        assert_eq!(of_web(&world, &one, net), ServiceTraffic::default());
        for _ in 0..7 {
            ask_tcp(&world.client, &net.port(80));
        }
        let client = udp(&world.client, &net.port(80));
        for _ in 0..3 {
            ask_udp(&client).expect("an answer");
        }
        // Three datagrams, and at least three segments of each TCP connection: a SYN, an ACK, and an end.
        let first = of_web(&world, &one, net);
        assert_eq!(first.connections, 8);
        assert!((3 + 7 * 3..500).contains(&first.packets), "{first:?}");
        assert!(first.bytes > first.packets * 28, "{first:?}");
        assert_eq!((first.denied, first.refused, strays(&world.n1)), (0, 0, 0));

        let both = counting(vec![endpoint_of(net, &near), endpoint_of(net, &far)]);
        apply(&mut engine, &both);
        assert_eq!(of_web(&world, &both, net).connections, 8);
        ask_tcp(&world.client, &net.port(80));
        let none = counting(vec![]);
        apply(&mut engine, &none);
        assert!(connect(&world.client, &net.port(80), PATIENCE).is_err(), "refused");
        let second = of_web(&world, &none, net);
        assert_eq!((second.connections, second.denied), (9, 0));
        assert!(second.refused >= 1 && second.packets > first.packets && second.bytes > first.bytes, "{second:?}");
        apply(&mut engine, &both);
        let third = of_web(&world, &both, net);
        assert_eq!((third.connections, third.refused), (9, second.refused));

        // Changed counters are no damage. An engine that starts does not change elements because of them either.
        assert_eq!(engine.check().expect("check"), None);
        let again = Arc::new(plan_ruleset(&with_lan(both)));
        assert_eq!(harness::engine(&world).apply(&again).expect("apply"), TableOutcomes::new());
        apply(&mut engine, &nothing());
        assert_eq!(world.n1.run(|| read_kernel_counters().expect("counters")), KernelCounters::default());
    });
}

#[test]
fn drops_are_counted_by_their_reason() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let mut engine = engine(&world);
        let closed = snapshot([web(net, [endpoint_of(net, &pod)]).only_from(&[net.pods])]);
        apply(&mut engine, &closed);
        assert!(connect(&world.client, &net.port(80), SILENCE).is_err(), "dropped");
        udp(&world.client, &net.port(80)).send(b"?").expect("send");
        wait_for("both to be counted", || of_web(&world, &closed, net).denied >= 2);
        let counted = of_web(&world, &closed, net);
        assert_eq!((counted.connections, counted.packets, counted.refused, strays(&world.n1)), (0, 0, 0, 0));
        udp(&world.client, &net.port(81)).send(b"?").expect("send");
        wait_for("the packet to an unknown port to be counted", || strays(&world.n1) == 1);
        assert_eq!(of_web(&world, &closed, net), counted);
    });
}

#[test]
fn an_unanswered_older_connection_is_dropped() {
    Net::each(|net| {
        let world = World::new();
        let mut engine = engine(&world);
        let other = || service("other").holds(net.other).port("", Udp, 80);
        apply(&mut engine, &snapshot([other()]));
        // At first the node routes packets for the lb_ip like any others, so connection tracking has their flow.
        world.n1.ip([format!("route add {} via {}", net.lb_ip, net.client)]).expect("a route");
        let client = udp(&world.client, &net.port(81));
        client.send(b"?").expect("send");
        let known = || world.n1.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
        wait_for("it to be tracked", || known().expect("connections").contains("dport=81 [UNREPLIED]"));
        assert_eq!(strays(&world.n1), 0);
        apply(&mut engine, &snapshot([other(), web(net, [])]));
        client.send(b"?").expect("send");
        wait_for("it to be dropped", || strays(&world.n1) == 1);
    });
}

#[test]
fn the_busiest_services_are_listed_and_others_summed() {
    let described = |name: &str, address: &str, port| service(name).holds(address).port("", Tcp, port);
    let twice = described("twice", "192.0.2.10", 80).holds("192.0.2.11").port("dns", Udp, 53);
    // `late` claims a port that `early` has.
    let shared = ["early", "late"].map(|name| described(name, "192.0.2.12", 80));
    let [early, late] = shared;
    let snapshot = snapshot([twice, early, late, described("idle", "192.0.2.13", 80)]);
    let front = |address: &str, protocol, port| Frontend { address: ip(address), protocol, port };
    let count = |packets| PacketCount { packets, bytes: packets * 100 };
    let counted = KernelCounters {
        traffic: BTreeMap::from([
            (front("192.0.2.10", Tcp, 80), count(5)),
            (front("192.0.2.10", Udp, 53), count(2)),
            (front("192.0.2.11", Tcp, 80), count(1)),
            (front("192.0.2.12", Tcp, 80), count(3)),
            (front("192.0.2.99", Tcp, 80), count(100)),
        ]),
        connections: BTreeMap::from([(front("192.0.2.10", Tcp, 80), count(4))]),
        denied: BTreeMap::from([(front("192.0.2.12", Tcp, 80), count(9))]),
        refused: BTreeMap::from([(front("192.0.2.13", Tcp, 80), count(2))]),
        strays: BTreeMap::from([(ip("192.0.2.10"), count(1)), (ip("192.0.2.13"), count(1))]),
    };
    let key = |name: &str, address: &str| (Key::new("default", name), ip(address));
    let early = ServiceTraffic { packets: 3, bytes: 300, denied: 9, ..ServiceTraffic::default() };
    let ten = ServiceTraffic { packets: 7, bytes: 700, connections: 4, ..ServiceTraffic::default() };
    let eleven = ServiceTraffic { packets: 1, bytes: 100, ..ServiceTraffic::default() };
    let idle = ServiceTraffic { refused: 2, ..ServiceTraffic::default() };
    let two = BTreeMap::from([(key("early", "192.0.2.12"), early), (key("twice", "192.0.2.10"), ten)]);
    let others = Some(ServiceTraffic { packets: 1, bytes: 100, refused: 2, ..ServiceTraffic::default() });
    let packets_counted = true;
    let snapshot = Snapshot { count_traffic: packets_counted, ..snapshot };
    assert_eq!(
        report_traffic(&snapshot, &counted, 2),
        TrafficReport { busiest: two.clone(), others, strays: 2, packets_counted }
    );
    let rest = [
        (key("twice", "192.0.2.11"), eleven),
        (key("idle", "192.0.2.13"), idle),
        (key("late", "192.0.2.12"), ServiceTraffic::default()),
    ];
    let all = two.into_iter().chain(rest).collect();
    assert_eq!(
        report_traffic(&snapshot, &counted, 5),
        TrafficReport { busiest: all, others: None, strays: 2, packets_counted }
    );
    let others = Some([early, ten, eleven, idle].into_iter().sum());
    assert_eq!(
        report_traffic(&snapshot, &counted, 0),
        TrafficReport { busiest: BTreeMap::new(), others, strays: 2, packets_counted }
    );
}
