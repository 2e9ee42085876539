//! Packets for the node's Service proxy: the rules, traced without a kernel, and a real kernel with another table in
//! place of the proxy.

mod harness;
mod sample;
mod tracer;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;

use crds::Backend::{self, ClusterIp, Endpoints, NodePort};
use crds::service::Family;
use crds::{ProblemReason, Reach};
use dataplane::Snapshot;
use dataplane::rules::Problem;
use dataplane::rules::plan_ruleset;
use dataplane::rules::{Fallback, FallbackReason};
use harness::{Agent, all, apply, endpoint_of, engine, web, with_lan};
use sample::{CLUSTER_IPS, Described, ip, on_eth0, service, snapshot, socket_addr};
use tracer::{Fate, From, Machine, Packet};
use world::{Answer, Net, PATIENCE, SILENCE, V4, V6, World, ask_tcp, ask_udp, connect, nft, ping, udp, wait_for};

const BOTH: [Backend; 2] = [NodePort, ClusterIp];

/// A snapshot of these, on a node that knows its own addresses.
fn on_node(services: impl IntoIterator<Item = Described>) -> Snapshot {
    Snapshot { node_ips: [V4, V6].map(|net| ip(net.n1)).into(), ..snapshot(services) }
}

fn cluster_ip(net: Net) -> &'static str {
    CLUSTER_IPS[if net.family == Family::V4 { 0 } else { 1 }]
}

/// Adds nat chains in place of kube-proxy. They send packets to the ClusterIP of [`web`] at port 80, and to node port
/// 30080, to these pods at port 8080. Packets to the node port are masqueraded.
fn add_kube_proxy(world: &World, net: Net, pods: &[&world::Pod]) {
    let (table, ip) = match net.family {
        Family::V4 => ("ip", "ip"),
        Family::V6 => ("ip6", "ip6"),
    };
    let targets: Vec<_> = pods.iter().enumerate().map(|(n, pod)| format!("{n} : {} . 8080", net.pod_ip(pod))).collect();
    let dnat = format!("dnat {ip} to numgen random mod {} map {{ {} }}", pods.len(), targets.join(", "));
    nft(
        &world.n1,
        &format!(
            "table {table} kube-proxy
            delete table {table} kube-proxy
            table {table} kube-proxy {{
                chain services {{
                    {ip} daddr {} meta l4proto {{ tcp, udp }} th dport 80 {dnat}
                    fib daddr type local meta l4proto {{ tcp, udp }} th dport 30080 \
                        meta mark set meta mark or 0x4000 {dnat}
                }}
                chain prerouting {{ type nat hook prerouting priority -100; jump services; }}
                chain output {{ type nat hook output priority -100; jump services; }}
                chain postrouting {{
                    type nat hook postrouting priority 100
                    meta mark and 0x4000 != 0 masquerade
                }}
            }}",
            cluster_ip(net),
        ),
    );
}

#[test]
fn readdressed_packets_are_proxied_or_dropped() {
    Net::each(|net| {
        for backend in BOTH {
            let pod = socket_addr(&SocketAddr::new(ip(&net.pod(2, 6)), 8080).to_string());
            let web = web(net, [sample::ready(&net.pod(2, 6), "n2")])
                .backend(backend)
                .only_from(&["0.0.0.0/0", "2001:db8:1::/64"]);
            let planned = plan_ruleset(&with_lan(on_node([web])));
            let (address, port) = if backend == NodePort { (net.n1, 30080) } else { (cluster_ip(net), 80) };
            let proxied = BTreeMap::from([(SocketAddr::new(ip(address), port), pod)]);
            for (from, source, masqueraded) in
                [(From::Link, net.client, true), (From::Pod, &*net.pod(1, 5), false), (From::Here, net.n1, true)]
            {
                let mut machine = Machine::new(&planned, &[net.n1, net.gateway]);
                let packet = Packet { from, source: ip(source), destination: ip(net.lb_ip), protocol: 17, port: 80 };
                let may = net.family == Family::V4 || source != net.pod(1, 5);
                assert_eq!(machine.fates(packet), BTreeSet::from([Fate::Dropped]), "{backend}, {source}: no proxy");
                machine.proxied.clone_from(&proxied);
                let sent = Fate::Sent { to: pod, masqueraded };
                let expected = if may { sent } else { Fate::Dropped };
                assert_eq!(machine.fates(packet), BTreeSet::from([expected]), "{backend}, {source}");
                let elsewhere = Packet { port, ..packet };
                let expected = if port == 80 { expected } else { Fate::Dropped };
                assert_eq!(machine.fates(elsewhere), BTreeSet::from([expected]), "the lb_ip has no node port");
            }
        }
    });
}

#[test]
fn the_service_proxy_serves_clients_pods_and_the_node() {
    Net::each(|net| {
        let world = World::new();
        let (near, far, asking) = (world.pod(1, 5), world.pod(2, 5), world.pod(1, 6));
        add_kube_proxy(&world, net, &[&near, &far]);
        let mut engine = engine(&world);
        let at = net.port(80);
        for backend in BOTH {
            apply(
                &mut engine,
                &on_node([web(net, [endpoint_of(net, &near), endpoint_of(net, &far)]).backend(backend)]),
            );
            // If the proxy masquerades, endpoints see the node.
            let masquerades = backend == NodePort;
            let seen = |client: &str, from_far: &str| {
                let near_sees = if masquerades { net.gateway } else { client };
                BTreeSet::from([Answer::new(&near, near_sees), Answer::new(&far, from_far)])
            };
            let own = net.pod_ip(&asking);
            for (from, expected) in [
                (&world.client, seen(net.client, net.n1)),
                (&asking.namespace, seen(&own, if masquerades { net.n1 } else { &own })),
                (&world.n1, seen(net.gateway, net.n1)),
            ] {
                assert_eq!(all(|| ask_tcp(from, &at)), expected, "{backend} over TCP");
                assert_eq!(all(|| ask_udp(&udp(from, &at)).expect("an answer")), expected, "{backend} over UDP");
            }
            let hairpin = ask_tcp(&near.namespace, &at);
            assert!([(1, 5), (2, 5)].contains(&hairpin.pod), "{hairpin:?}");
            ping(&world.client, net.lb_ip).expect("an echo reply");
        }
    });
}

#[test]
fn a_datagram_without_checksum_reaches_the_proxy() {
    use socket2::{Domain, Protocol, Socket, Type};
    let (net, world) = (V4, World::new());
    let pod = world.pod(1, 5);
    add_kube_proxy(&world, net, &[&pod]);
    let mut engine = engine(&world);
    for backend in BOTH {
        apply(&mut engine, &on_node([web(net, [endpoint_of(net, &pod)]).backend(backend)]));
        let socket = udp(&world.client, &net.port(80));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let raw = world.client.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))).expect("a raw socket");
        // Ports, length, and 0 for the checksum; and a byte (RFC 768).
        let from = socket.local_addr().expect("an address").port().to_be_bytes();
        let datagram = [&from[..], &80u16.to_be_bytes(), &9u16.to_be_bytes(), &[0, 0], b"?"].concat();
        raw.send_to(&datagram, &SocketAddr::new(ip(net.lb_ip), 0).into()).expect("send");
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("an answer to the first datagram");
        assert_eq!(Answer::read(std::str::from_utf8(&buffer[..length]).expect("text")).pod, (1, 5), "{backend}");
    }
}

#[test]
fn an_iptables_service_proxy_serves_as_well() {
    let world = World::new();
    let pod = world.pod(1, 5);
    for chain in ["PREROUTING", "OUTPUT"] {
        for matches in ["-d 10.96.0.7 -p tcp --dport 80", "-m addrtype --dst-type LOCAL -p tcp --dport 30080"] {
            let rule = format!("-t nat -A {chain} {matches} -j DNAT --to 10.244.1.5:8080");
            let iptables = world.n1.command("iptables").args(rule.split(' ')).output().expect("run iptables");
            assert!(iptables.status.success(), "{}", String::from_utf8_lossy(&iptables.stderr));
        }
    }
    let mut engine = engine(&world);
    for backend in BOTH {
        apply(&mut engine, &on_node([web(V4, [endpoint_of(V4, &pod)]).backend(backend)]));
        assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&pod, V4.client), "{backend}");
        assert_eq!(ask_tcp(&world.n1, &V4.port(80)), Answer::new(&pod, V4.gateway), "{backend}");
    }
}

#[test]
fn a_flow_waits_until_the_proxy_knows_the_service() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let mut engine = engine(&world);
        for backend in BOTH {
            apply(&mut engine, &on_node([web(net, [endpoint_of(net, &pod)]).backend(backend)]));
            let error = connect(&world.client, &net.port(80), SILENCE).err().expect("no connection");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{backend}");
            // The same flow is used again: its first packet left no entry in connection tracking.
            let socket = udp(&world.client, &net.port(80));
            socket.send(b"?").expect("send");
            let answer = socket.recv(&mut [0; 8]).expect_err("an answer");
            assert_eq!(answer.kind(), ErrorKind::WouldBlock, "{backend}");
            add_kube_proxy(&world, net, &[&pod]);
            assert_eq!(ask_udp(&socket).expect("an answer").pod, (1, 5), "{backend}");
            assert_eq!(ask_tcp(&world.client, &net.port(80)).pod, (1, 5), "{backend}");
            remove_kube_proxy(&world, net);
        }
    });
}

fn remove_kube_proxy(world: &World, net: Net) {
    nft(&world.n1, &format!("delete table {} kube-proxy", if net.family == Family::V4 { "ip" } else { "ip6" }));
}

#[test]
fn forbidden_clients_never_reach_the_service_proxy() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        add_kube_proxy(&world, net, &[&pod]);
        let mut engine = engine(&world);
        for backend in BOTH {
            let pods_only = web(net, [endpoint_of(net, &pod)]).backend(backend).only_from(&[net.pods]);
            apply(&mut engine, &on_node([pods_only]));
            let error = connect(&world.client, &net.port(80), SILENCE).err().expect("no connection");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{backend}");
            assert_eq!(ask_tcp(&pod.namespace, &net.port(80)).pod, (1, 5), "{backend}");
            apply(&mut engine, &on_node([web(net, []).backend(backend)]));
            let error = connect(&world.client, &net.port(80), world::PATIENCE).err().expect("no connection");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend}");
        }
    });
}

#[test]
fn open_connections_survive_a_change_of_the_backend() {
    let world = World::new();
    let pod = world.pod(1, 5);
    add_kube_proxy(&world, V4, &[&pod]);
    let mut engine = engine(&world);
    let mut open = Vec::new();
    for backend in [Endpoints, NodePort, ClusterIp, Endpoints] {
        apply(&mut engine, &on_node([web(V4, [endpoint_of(V4, &pod)]).backend(backend)]));
        open.push(connect(&world.client, &V4.port(80), world::PATIENCE).expect("a connection"));
        for connection in &mut open {
            assert_eq!(connection.ask().expect("an answer").pod, (1, 5), "{backend}");
        }
    }
}

#[test]
fn frames_for_the_proxy_stay_on_the_announcer() {
    let web =
        |backend| web(V4, [sample::ready("10.244.1.5", "n1"), sample::ready("10.244.2.5", "n2")]).backend(backend);
    let reach = |backend| {
        let planned = plan_ruleset(&Snapshot { links: on_eth0(&["n2"]), ..on_node([web(backend)]) });
        (planned.addresses[&ip(V4.lb_ip)].reach(), planned.tables().count())
    };
    assert_eq!(reach(Endpoints), (Reach::Spread, 2), "flows and fragments");
    assert_eq!(reach(NodePort), (Reach::Proxied, 0));
    assert_eq!(reach(ClusterIp), (Reach::Proxied, 0));
}

#[test]
fn an_unavailable_backend_falls_back_to_endpoints() {
    let web = |backend| web(V4, [sample::ready("10.244.1.5", "n1")]).backend(backend);
    let because = |described: Described, snapshot: fn([Described; 1]) -> Snapshot| {
        let planned = plan_ruleset(&snapshot([described]));
        let lb_ip = &planned.addresses[&ip(V4.lb_ip)];
        assert!(lb_ip.ports.values().all(|target| target.proxied.is_none()), "{lb_ip:?}");
        lb_ip.problems.iter().cloned().collect::<Vec<_>>()
    };
    let fallback = |selected, reason| {
        let (service, what) = (crds::Key::new("default", "web"), Fallback { selected, reason }.to_string());
        [Problem { service, reason: ProblemReason::BackendUnavailable, what }]
    };
    assert_eq!(because(web(NodePort), snapshot), fallback(NodePort, FallbackReason::NoNodeAddress(Family::V4)));
    let local = because(web(ClusterIp).local(), on_node);
    assert_eq!(local, fallback(ClusterIp, FallbackReason::LocalPolicy));
    let ours = web(ClusterIp).labels([("service.kubernetes.io/service-proxy-name", "landfall")]);
    assert_eq!(because(ours, on_node), fallback(ClusterIp, FallbackReason::ProxyNameLabel));
}

#[test]
fn a_service_of_another_proxy_is_left_alone() {
    let world = World::new();
    let (pod, theirs) = (world.pod(1, 5), world.pod(1, 6));
    let web = || web(V4, [endpoint_of(V4, &pod)]);
    let other = [("service.kubernetes.io/service-proxy-name", "example.com")];
    let agent = Agent::start(&world.n1);
    agent.send(with_lan(snapshot([web().labels(other)])));
    wait_for("the lb_ip to be known", || agent.forwarding().addresses.contains(&ip(V4.lb_ip)));
    let published = agent.forwarding();
    assert!(published.serving.contains(&ip(V4.lb_ip)), "it may be announced: {published:?}");
    let list = || world.n1.command("nft").args(["list", "tables"]).output().expect("run nft").stdout;
    assert_eq!(String::from_utf8_lossy(&list()), "", "no table of ours exists");

    // With one of our Services at the same lb_ip, only the port of the other Service is left alone. Packets to other
    // ports are dropped.
    let beside = service("beside").holds(V4.lb_ip).port("", crds::Protocol::Tcp, 81);
    let beside = beside.slice(&[("", crds::Protocol::Tcp, 8080)], [endpoint_of(V4, &pod)]);
    agent.send(with_lan(snapshot([web().labels(other), beside])));
    wait_for("our own port", || connect(&world.client, &V4.port(81), SILENCE).is_ok());
    nft(
        &world.n1,
        "table ip theirs { chain prerouting {
            type nat hook prerouting priority -100
            ip daddr 198.51.100.10 tcp dport 80 dnat to 10.244.1.6:8080
        }
        }",
    );
    assert_eq!(
        ask_tcp(&world.client, &V4.port(80)),
        Answer::new(&theirs, V4.gateway),
        "our table masquerades the packets of the other proxy"
    );
    assert_eq!(ask_tcp(&world.client, &V4.port(81)), Answer::new(&pod, V4.client));
    let error = connect(&world.client, &V4.port(82), SILENCE).err().expect("no connection");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    agent.end();
}
