//! The path of packets on a programmed node: a real kernel, real connections.

mod harness;
mod sample;
mod world;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crds::Protocol::Tcp;
use dataplane::Snapshot;
use harness::{all, apply, endpoint_of, engine, web};
use sample::{ip, service, snapshot, terminating};
use world::{Answer, CLIENT, Net, PATIENCE, SILENCE, V4, V6, World, ask_tcp, ask_udp, connect, icmp, nft, ping, udp};

#[test]
fn local_endpoints_see_the_address_of_the_client() {
    Net::each(|net| {
        let world = World::new();
        let (near, far) = (world.pod(1, 5), world.pod(2, 5));
        apply(&mut engine(&world), &snapshot([web(net, [endpoint_of(net, &near), endpoint_of(net, &far)])]));
        let expected = BTreeSet::from([Answer::new(&near, net.client), Answer::new(&far, net.n1)]);
        let web = net.port(80);
        assert_eq!(all(|| ask_tcp(&world.client, &web)), expected);
        assert_eq!(all(|| ask_udp(&udp(&world.client, &web)).expect("an answer")), expected);
    });
}

#[test]
fn both_families_of_a_service_are_served_at_once() {
    let world = World::new();
    let pod = world.pod(1, 5);
    let both = web(V4, [endpoint_of(V4, &pod), endpoint_of(V6, &pod)]).holds(V6.lb_ip);
    let mut engine = engine(&world);
    apply(&mut engine, &snapshot([both]));
    Net::each(|net| assert_eq!(ask_tcp(&world.client, &net.port(80)), Answer::new(&pod, net.client)));
    // One family stays when the other goes.
    apply(&mut engine, &snapshot([web(V6, [endpoint_of(V6, &pod)])]));
    assert_eq!(ask_tcp(&world.client, &V6.port(80)), Answer::new(&pod, V6.client));
    assert_eq!(ping(&world.client, V6.lb_ip).map_err(|error| error.kind()), Ok(()));
}

#[test]
fn an_lb_ip_that_the_node_has_itself_keeps_its_other_ports() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let own = SocketAddr::new(ip(net.n1), 22);
        let _ssh = world.n1.run(|| TcpListener::bind(own)).expect("a port of the node");
        let other = service("other").holds(net.n1).port("tcp", Tcp, 80);
        let other = other.slice(&[("tcp", Tcp, 8080)], [endpoint_of(net, &pod)]);
        let snapshot = snapshot([web(net, [endpoint_of(net, &pod)]), other]);
        let own_addresses = BTreeSet::from([own.ip()]);
        apply(&mut engine(&world), &Snapshot { own_addresses, ..snapshot });
        connect(&world.client, &own.to_string(), PATIENCE).expect("the node answers itself");
        assert_eq!(ask_tcp(&world.client, &net.port(80)), Answer::new(&pod, net.client), "the other lb_ip");
    });
}

#[test]
fn policy_local_limits_only_clients_from_outside() {
    Net::each(|net| {
        let world = World::new();
        let (near, far, pod) = (world.pod(1, 5), world.pod(2, 5), world.pod(1, 6));
        apply(&mut engine(&world), &snapshot([web(net, [endpoint_of(net, &near), endpoint_of(net, &far)]).local()]));
        let web = net.port(80);
        assert_eq!(all(|| ask_tcp(&world.client, &web)), BTreeSet::from([Answer::new(&near, net.client)]));
        let own = net.pod_ip(&pod);
        let pods = BTreeSet::from([Answer::new(&near, &own), Answer::new(&far, &own)]);
        assert_eq!(all(|| ask_tcp(&pod.namespace, &web)), pods, "a pod keeps its address");
        let node = BTreeSet::from([Answer::new(&near, net.gateway), Answer::new(&far, net.n1)]);
        assert_eq!(all(|| ask_tcp(&world.n1, &web)), node, "the node has the address of the link it uses");
    });
}

#[test]
fn policy_local_drops_clients_without_local_endpoints() {
    Net::each(|net| {
        let world = World::new();
        let far = world.pod(2, 5);
        apply(&mut engine(&world), &snapshot([web(net, [endpoint_of(net, &far)]).local()]));
        let error = connect(&world.client, &net.port(80), SILENCE).err().expect("no connection");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_pod_that_reaches_itself_is_answered() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        apply(&mut engine(&world), &snapshot([web(net, [endpoint_of(net, &pod)])]));
        let (web, expected) = (net.port(80), Answer::new(&pod, net.gateway));
        assert_eq!(ask_tcp(&pod.namespace, &web), expected);
        assert_eq!(ask_udp(&udp(&pod.namespace, &web)).expect("an answer"), expected);
    });
}

#[test]
fn without_endpoints_a_client_is_refused_at_once() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 6);
        apply(&mut engine(&world), &snapshot([web(net, [])]));
        let web = net.port(80);
        for from in [&world.client, &pod.namespace, &world.n1] {
            // A client sends an unanswered packet again after a second. On a busy machine an answer may take as long,
            // but not each time.
            let mut times = (0..5).map(|_| {
                let start = Instant::now();
                let error = connect(from, &web, PATIENCE).err().expect("no connection");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                start.elapsed()
            });
            assert!(times.any(|time| time < Duration::from_millis(900)), "no first packet was answered");
        }
        for (from, refusal) in [
            (&world.client, ErrorKind::ConnectionRefused),
            (&pod.namespace, ErrorKind::ConnectionRefused),
            // A local process gets the error at once, with another errno.
            (&world.n1, ErrorKind::PermissionDenied),
        ] {
            assert_eq!(ask_udp(&udp(from, &web)).expect_err("no answer").kind(), refusal);
        }
    });
}

#[test]
fn packets_to_an_unknown_port_are_dropped() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        apply(&mut engine(&world), &snapshot([web(net, [endpoint_of(net, &pod)])]));
        let error = connect(&world.client, &net.port(81), SILENCE).err().expect("no connection");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn an_lb_ip_answers_a_ping() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        apply(&mut engine(&world), &snapshot([web(net, [])]));
        for from in [&world.client, &pod.namespace, &world.n1] {
            ping(from, net.lb_ip).expect("an echo reply");
        }
    });
}

#[test]
fn neighbour_solicitations_for_an_lb_ip_are_answered() {
    let world = World::new();
    let lb_ip = "2001:db8:1::10";
    // The lb_ip is also an address of the node, as with kube-proxy in IPVS mode.
    world.n1.ip([format!("addr add {lb_ip}/128 dev eth0 nodad")]).expect("the address");
    apply(&mut engine(&world), &snapshot([service("web").holds(lb_ip).port("", Tcp, 80)]));
    let to: Ipv6Addr = lb_ip.parse().expect("an address");
    let socket = icmp(&world.client, to.into()).expect("a socket");
    // RFC 4861 §7.1.1: a solicitation that may have been forwarded is ignored.
    socket.set_unicast_hops_v6(255).expect("hops");
    // Type 135 (neighbour solicitation), code 0, checksum by the kernel, reserved, target. It is sent to the target
    // itself, as in neighbour unreachability detection (§7.3.3).
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0], &to.octets()[..]].concat();
    (&socket).write_all(&solicitation).expect("send");
    let mut buffer = [0; 128];
    let length = (&socket).read(&mut buffer).expect("an advertisement");
    assert_eq!((buffer[0], &buffer[8..24]), (136, &to.octets()[..]), "of {length} bytes");
}

#[test]
fn open_connections_survive_a_change_of_endpoints() {
    Net::each(|net| {
        let world = World::new();
        let (old, new) = (world.pod(1, 5), world.pod(1, 6));
        let mut engine = engine(&world);
        let at = net.port(80);
        apply(&mut engine, &snapshot([web(net, [endpoint_of(net, &old)])]));
        let mut open = connect(&world.client, &at, PATIENCE).expect("a connection");
        let (from_old, from_new) = (Answer::new(&old, net.client), Answer::new(&new, net.client));
        assert_eq!(open.ask().expect("an answer"), from_old);
        apply(&mut engine, &snapshot([web(net, [terminating(endpoint_of(net, &old)), endpoint_of(net, &new)])]));
        assert_eq!(all(|| ask_tcp(&world.client, &at)), BTreeSet::from([from_new]));
        assert_eq!(open.ask().expect("an answer"), from_old);
        // The connection outlives the Service and a restart of the agent.
        apply(&mut engine, &snapshot([service("other").holds(net.other)]));
        assert_eq!(open.ask().expect("an answer"), from_old);
        apply(&mut harness::engine(&world), &snapshot([web(net, [endpoint_of(net, &new)])]));
        assert_eq!(open.ask().expect("an answer"), from_old);
    });
}

#[test]
fn connections_survive_the_replacement_of_a_table() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let mut engine = engine(&world);
        let (at, expected) = (net.port(80), Answer::new(&pod, net.client));
        apply(&mut engine, &snapshot([web(net, [endpoint_of(net, &pod)])]));
        let mut open = connect(&world.client, &at, PATIENCE).expect("a connection");
        assert_eq!(open.ask().expect("an answer"), expected);
        let family = if net.family == V4.family { "ip" } else { "ip6" };
        nft(&world.n1, &format!("add rule {family} landfall unserved accept"));
        apply(&mut harness::engine(&world), &snapshot([web(net, [endpoint_of(net, &pod)])]));
        assert_eq!(open.ask().expect("an answer"), expected);
        assert_eq!(ask_tcp(&world.client, &at), expected);
    });
}

#[test]
fn landfall_decides_before_kube_proxy_with_nftables() {
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
    let snapshot = snapshot([web(V4, [endpoint_of(V4, &ours)])]);
    // The tables are created in both orders.
    for round in 0..2 {
        if round == 0 {
            apply(&mut engine, &snapshot);
        }
        nft(&world.n1, rules);
        if round == 1 {
            apply(&mut engine, &snapshot);
        }
        assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&ours, CLIENT));
        assert_eq!(ask_tcp(&world.n1, &V4.port(80)), Answer::new(&ours, "10.244.1.1"));
        // A control: without our table, that of kube-proxy translates.
        apply(&mut engine, &sample::nothing());
        assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&theirs, CLIENT));
        nft(&world.n1, "delete table ip kube-proxy");
    }
}

#[test]
fn landfall_decides_before_kube_proxy_with_iptables() {
    let world = World::new();
    let (ours, theirs) = (world.pod(1, 5), world.pod(1, 6));
    let rule = ["-t", "nat", "-d", "198.51.100.10", "-p", "tcp", "-j", "DNAT", "--to", "10.244.1.6:8080"];
    for chain in ["PREROUTING", "OUTPUT"] {
        let iptables = world.n1.command("iptables").args(["-A", chain]).args(rule).output().expect("run iptables");
        assert!(iptables.status.success(), "{}", String::from_utf8_lossy(&iptables.stderr));
    }
    let mut engine = engine(&world);
    apply(&mut engine, &snapshot([web(V4, [endpoint_of(V4, &ours)])]));
    assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&ours, CLIENT));
    assert_eq!(ask_tcp(&world.n1, &V4.port(80)), Answer::new(&ours, "10.244.1.1"));
    apply(&mut engine, &sample::nothing());
    assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&theirs, CLIENT));
}
