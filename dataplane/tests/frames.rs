//! The node to which the rules re-send a frame, traced without a kernel.

mod frame_bytes;
mod sample;
mod tracer;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use crds::Endpoint;
use crds::MacAddr;
use crds::Protocol::{Sctp, Tcp, Udp};
use crds::Reach;
use dataplane::Snapshot;
use dataplane::rules::plan_ruleset;
use frame_bytes::{Kind, error, frame, packet};
use proptest::prelude::*;
use sample::{Described, ip, mac, on_eth0, ready, service, snapshot};
use tracer::Machine;
use tracer::frame::FrameFate;
use world::{Net, V4, V6};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// An endpoint on each of these nodes, by number.
fn endpoints(net: Net, nodes: &[u8]) -> Vec<Endpoint> {
    (1..).zip(nodes).map(|(number, node)| ready(&net.pod(*node, number), &format!("n{node}"))).collect()
}

/// A Service at port 80 with an endpoint on each of these nodes.
fn web(net: Net, nodes: &[u8]) -> Described {
    let ports = [("tcp", Tcp, 8080), ("udp", Udp, 8080), ("sctp", Sctp, 8080)];
    let web = service("web").holds(net.lb_ip).port("tcp", Tcp, 80).port("udp", Udp, 80).port("sctp", Sctp, 80);
    web.slice(&ports, endpoints(net, nodes))
}

/// A snapshot of this Service, with `n2` and `n3` on the link of this node.
fn on_link(described: Described) -> Snapshot {
    Snapshot { links: on_eth0(&["n2", "n3"]), ..snapshot([described]) }
}

fn machine(net: Net, snapshot: &Snapshot) -> Machine {
    Machine::new(&plan_ruleset(snapshot), &[net.n1])
}

/// The number of the node that gets the frame.
fn node(fate: FrameFate) -> u8 {
    match fate {
        FrameFate::Kept => 1,
        FrameFate::Resent { to, from } => {
            assert_eq!(from, mac("n1"), "the source is this node's MAC address");
            to.octets()[5]
        }
    }
}

#[test]
fn every_node_gets_its_share_of_each_protocol() {
    Net::each(|net| {
        let machine = machine(net, &on_link(web(net, &[1, 2, 2, 3])));
        for protocol in [TCP, UDP, SCTP] {
            let mut counts = BTreeMap::<u8, f64>::new();
            for port in 10_000..20_000 {
                *counts.entry(node(machine.verdict(&frame(net, protocol, port, Kind::Whole)))).or_default() += 1e-4;
            }
            for (node, should) in [(1, 0.25), (2, 0.5), (3, 0.25)] {
                assert!((counts[&node] / should - 1.0).abs() <= 0.05, "{counts:?}");
            }
        }
    });
}

#[test]
fn all_nodes_agree_on_the_node_of_a_flow() {
    Net::each(|net| {
        let views = ["n1", "n2", "n3"].map(|node| {
            let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|other| *other != node).collect();
            let mut links = on_eth0(&others);
            links.values_mut().for_each(|link| link.mac = mac(node));
            let view = Snapshot { node: node.into(), links, ..snapshot([web(net, &[1, 2, 3])]) };
            (mac(node), machine(net, &view))
        });
        for port in 10_000..10_200 {
            let targets: BTreeSet<MacAddr> = views
                .iter()
                .map(|(own, machine)| {
                    let mut frame = frame(net, TCP, port, Kind::Whole);
                    frame.bytes[..6].copy_from_slice(&own.octets());
                    match machine.verdict(&frame) {
                        FrameFate::Kept => *own,
                        FrameFate::Resent { to, .. } => to,
                    }
                })
                .collect();
            assert_eq!(targets.len(), 1, "port {port}");
        }
    });
}

#[test]
fn only_client_frames_to_this_node_are_resent() {
    Net::each(|net| {
        let machine = machine(net, &on_link(web(net, &[2])));
        let good = frame(net, TCP, 40_000, Kind::Whole);
        assert_eq!(node(machine.verdict(&good)), 2);
        let changed = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            machine.verdict(&frame)
        };
        assert_eq!(changed(6, &mac("n2").octets()), FrameFate::Kept, "a peer's");
        assert_eq!(changed(6, &mac("n3").octets()), FrameFate::Kept, "another peer's");
        assert_eq!(changed(0, &[0xff; 6]), FrameFate::Kept, "for all hosts");
        assert_eq!(changed(0, &mac("n2").octets()), FrameFate::Kept, "for another host");
        assert_eq!(changed(12, &[0x08, 0x06]), FrameFate::Kept, "ARP");
        let last = if net == V4 { 33 } else { 53 };
        assert_eq!(changed(last, &[11]), FrameFate::Kept, "for another address");
        assert_eq!(changed(last + 3, &[0, 81]), FrameFate::Kept, "for another port");
    });
}

#[test]
fn pings_and_neighbour_discovery_stay_here() {
    Net::each(|net| {
        let machine = machine(net, &on_link(web(net, &[2])));
        let (protocol, errors): (u8, &[u8]) = if net == V4 { (1, &[3, 11, 12]) } else { (58, &[0, 1, 2, 3, 4]) };
        for kind in (0..=255u8).filter(|kind| !errors.contains(kind)) {
            let bytes = [&[kind][..], &[0; 63]].concat();
            assert_eq!(machine.verdict(&packet(net, protocol, Kind::Whole, &bytes)), FrameFate::Kept, "type {kind}");
        }
    });
}

#[test]
fn an_icmp_error_follows_the_flow_it_quotes() {
    Net::each(|net| {
        let errors: &[u8] = if net == V4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
        for described in [web(net, &[1, 2, 3]), web(net, &[1, 2, 3]).sticky(60)] {
            let machine = machine(net, &on_link(described));
            for (port, protocol) in (10_000..10_100).flat_map(|port| [TCP, UDP, SCTP].map(|protocol| (port, protocol)))
            {
                let flow = machine.verdict(&frame(net, protocol, port, Kind::Whole));
                for kind in errors {
                    assert_eq!(machine.verdict(&error(net, protocol, port, *kind)), flow, "port {port}, type {kind}");
                }
            }
        }
    });
}

#[test]
fn fragments_and_sticky_frames_of_a_client_stay_together() {
    Net::each(|net| {
        let fates = |described: Described, kinds: &[Kind]| -> BTreeSet<FrameFate> {
            let machine = machine(net, &on_link(described));
            let all = (10_000..10_100).flat_map(|port| kinds.iter().map(move |kind| (port, *kind)));
            all.map(|(port, kind)| machine.verdict(&frame(net, UDP, port, kind))).collect()
        };
        let parts = [Kind::First, Kind::Later];
        assert_eq!(fates(web(net, &[1, 2, 3]), &parts).len(), 1);
        assert_eq!(fates(web(net, &[1, 2, 3]), &[Kind::Whole]).len(), 3);
        let all = [Kind::Whole, Kind::First, Kind::Later];
        assert_eq!(fates(web(net, &[1, 2, 3]).sticky(60), &all).len(), 1);
    });
}

#[test]
fn only_flows_of_a_dead_node_move() {
    Net::each(|net| {
        let all = on_link(web(net, &[1, 2, 3]));
        let dead = Snapshot { dead: ["n2".to_owned()].into(), ..all.clone() };
        let (before, after) = (machine(net, &all), machine(net, &dead));
        let mut moved = BTreeSet::new();
        for port in 10_000..11_000 {
            let frame = frame(net, TCP, port, Kind::Whole);
            match (node(before.verdict(&frame)), node(after.verdict(&frame))) {
                (2, then) => drop(moved.insert(then)),
                (was, then) => assert_eq!(was, then),
            }
        }
        assert_eq!(moved, [1, 3].into());
    });
}

#[test]
fn unspreadable_services_are_forwarded_without_share_tables() {
    let reach = |snapshot: &Snapshot| plan_ruleset(snapshot).addresses[&ip(V4.lb_ip)].reach();
    let alone = snapshot([web(V4, &[1, 2])]);
    assert_eq!(reach(&alone), Reach::Translated, "no links");
    assert_eq!(reach(&on_link(web(V4, &[1, 2]).without_spreading())), Reach::Translated, "spreading is disabled");
    assert_eq!(reach(&on_link(web(V4, &[1, 2]))), Reach::Spread);
    assert_eq!(reach(&on_link(web(V4, &[1, 4]))), Reach::Mixed, "n4 is not on the link");
    assert_eq!(reach(&on_link(web(V4, &[4]))), Reach::Translated, "no pod can get frames");
    // If no frames are spread, there are no share tables.
    for nothing in [&alone, &on_link(web(V4, &[1, 2]).without_spreading()), &on_link(web(V4, &[1]))] {
        let planned = plan_ruleset(nothing);
        assert_eq!(planned.tables().count(), 0);
        let fate = Machine::new(&planned, &[V4.n1]).verdict(&frame(V4, TCP, 40_000, Kind::Whole));
        assert_eq!(fate, FrameFate::Kept);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_frame_stays_or_goes_to_a_living_node(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        protocol: u8,
        six: bool,
        dead in proptest::collection::btree_set(prop_oneof![Just("n2".to_owned()), Just("n3".to_owned())], 0..3),
    ) {
        let net = if six { V6 } else { V4 };
        let snapshot = Snapshot { dead: dead.clone(), ..on_link(web(net, &[1, 2, 3])) };
        let packet = packet(net, protocol, Kind::Whole, &bytes);
        if let FrameFate::Resent { to, from } = machine(net, &snapshot).verdict(&packet) {
            let living = ["n2", "n3"].into_iter().filter(|node| !dead.contains(*node)).map(mac);
            prop_assert!(living.collect::<Vec<_>>().contains(&to));
            prop_assert_eq!(from, mac("n1"));
        }
    }
}
