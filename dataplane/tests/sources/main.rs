//! Only clients in a source range of a Service reach it: a real kernel, real packets.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../sample/mod.rs"]
mod sample;
#[path = "../world/mod.rs"]
mod world;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};

use dataplane::nft::TableOutcome;
use dataplane::rules::plan_ruleset;
use harness::{apply, endpoint_of, engine, web, with_lan};
use netns::Namespace;
use sample::{nothing, snapshot};
use world::{Answer, Net, PATIENCE, SILENCE, V4, World, ask_tcp, ask_udp, connect, nft, udp};

/// The end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Served,
    Refused,
    /// No answer and no error.
    Silence,
}

/// Asserts the end of a connection attempt, and of a datagram.
fn assert_end(from: &Namespace, net: Net, expected: End) {
    let patience = if expected == End::Silence { SILENCE } else { PATIENCE };
    let found = match connect(from, &net.port(80), patience).map_err(|error| error.kind()) {
        Ok(_) => End::Served,
        Err(ErrorKind::ConnectionRefused) => End::Refused,
        Err(ErrorKind::TimedOut) => End::Silence,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(found, expected, "over TCP");
    let socket = udp(from, &net.port(80));
    let asked = match expected {
        End::Silence => socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64])).map(|_| ()),
        End::Served | End::Refused => ask_udp(&socket).map(|_| ()),
    };
    let found = match asked.map_err(|error| error.kind()) {
        Ok(()) => End::Served,
        Err(ErrorKind::ConnectionRefused) => End::Refused,
        // A local process gets an error at once for a dropped datagram.
        Err(ErrorKind::WouldBlock | ErrorKind::PermissionDenied) => End::Silence,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(found, expected, "over UDP");
}

#[test]
fn only_clients_within_the_ranges_are_served() {
    use End::{Served, Silence};
    Net::each(|net| {
        let world = World::new();
        let (pod, endpoint) = (world.pod(1, 6), world.pod(1, 5));
        let mut engine = engine(&world);
        let client = format!("{}/{}", net.client, if net == V4 { 32 } else { 128 });
        let cases: [(&[&str], [End; 3]); 5] = [
            (&[], [Served; 3]),
            (&[&client], [Served, Silence, Silence]),
            (&[net.pods], [Silence, Served, Silence]),
            (&["0.0.0.0/0", "::/0"], [Served; 3]),
            (&["none"], [Silence; 3]),
        ];
        for (ranges, expected) in cases {
            apply(&mut engine, &snapshot([web(net, [endpoint_of(net, &endpoint)]).only_from(ranges)]));
            for (from, expected) in [&world.client, &pod.namespace, &world.n1].into_iter().zip(expected) {
                assert_end(from, net, expected);
            }
        }
    });
}

#[test]
fn only_allowed_clients_are_refused_without_endpoints() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 6);
        apply(&mut engine(&world), &snapshot([web(net, []).only_from(&[net.pods])]));
        assert_end(&pod.namespace, net, End::Refused);
        assert_end(&world.client, net, End::Silence);
    });
}

#[test]
fn kube_proxy_does_not_open_what_is_closed_here() {
    let world = World::new();
    let (ours, theirs) = (world.pod(1, 5), world.pod(1, 6));
    let closed = snapshot([web(V4, [endpoint_of(V4, &ours)]).only_from(&["203.0.113.0/24"])]);
    // These rules translate all packets that reach them. kube-proxy checks sources later, when it forwards to pods.
    let rules = "table ip kube-proxy {
        chain prerouting {
            type nat hook prerouting priority -100
            ip daddr 198.51.100.10 tcp dport 80 dnat to 10.244.1.6:8080
        }
    }";
    let silence = Some(ErrorKind::TimedOut);
    let mut engine = engine(&world);
    apply(&mut engine, &closed);
    nft(&world.n1, rules);
    assert_eq!(connect(&world.client, &V4.port(80), SILENCE).err().map(|error| error.kind()), silence);
    nft(&world.n1, "delete table ip kube-proxy");
    let rule = ["-t", "nat", "-d", "198.51.100.10", "-p", "tcp", "-j", "DNAT", "--to", "10.244.1.6:8080"];
    let iptables = world.n1.command("iptables").args(["-I", "PREROUTING"]).args(rule).output().expect("run iptables");
    assert!(iptables.status.success(), "{}", String::from_utf8_lossy(&iptables.stderr));
    assert_eq!(connect(&world.client, &V4.port(80), SILENCE).err().map(|error| error.kind()), silence);
    // A control: without our table, these rules translate.
    apply(&mut engine, &nothing());
    assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&theirs, V4.client));
}

/// Sends datagrams to the Service from new ports of the client until `act` returns. Returns the sockets.
fn try_during(world: &World, net: Net, act: impl FnOnce()) -> Vec<UdpSocket> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            world.client.run(|| {
                let any = if net == V4 { "0.0.0.0:0" } else { "[::]:0" };
                let mut sockets = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    // A new port each time makes a new flow, which passes the rules.
                    let socket = UdpSocket::bind(any).expect("a socket");
                    let _ = socket.send_to(b"?", net.port(80));
                    socket.set_nonblocking(true).expect("nonblocking");
                    if sockets.len() < 4_000 {
                        sockets.push(socket);
                    }
                }
                sockets
            })
        });
        act();
        done.store(true, Ordering::Relaxed);
        client.join().expect("the client")
    })
}

#[test]
fn no_packet_slips_in_during_upgrades() {
    const UPGRADES: usize = 40;
    Net::each(|net| {
        let world = World::new();
        let (endpoint, friend) = (world.pod(1, 5), world.pod(1, 7));
        let closed = snapshot([web(net, [endpoint_of(net, &endpoint)]).only_from(&[net.pods])]);
        apply(&mut engine(&world), &closed);
        let mut connection = connect(&friend.namespace, &net.port(80), PATIENCE).expect("a connection");
        let family = if net == V4 { "ip" } else { "ip6" };
        let sockets = try_during(&world, net, || {
            for _ in 0..UPGRADES {
                // A chain that this version does not have stands for another version.
                nft(&world.n1, &format!("add chain {family} landfall other-version"));
                let desired = std::sync::Arc::new(plan_ruleset(&with_lan(closed.clone())));
                let done = engine(&world).apply(&desired).expect("apply");
                assert!(done.values().any(|done| matches!(done, TableOutcome::Replaced { .. })), "{done:?}");
                assert_eq!(connection.ask().expect("an answer"), Answer::new(&endpoint, &net.pod_ip(&friend)));
            }
        });
        assert!(sockets.len() > 100, "too few tries to mean anything: {}", sockets.len());
        let asked = ask_udp(&udp(&friend.namespace, &net.port(80))).expect("an answer");
        assert_eq!(asked, Answer::new(&endpoint, &net.pod_ip(&friend)));
        let heard = sockets.iter().filter(|socket| socket.recv(&mut [0; 64]).is_ok()).count();
        assert_eq!(heard, 0, "of {} tries", sockets.len());
    });
}

#[test]
fn no_packet_slips_in_during_changes() {
    const CHANGES: usize = 400;
    Net::each(|net| {
        let world = World::new();
        let (one, other, friend) = (world.pod(1, 5), world.pod(1, 6), world.pod(1, 7));
        let mut engine = engine(&world);
        // Each change keeps the client excluded: other source ranges, numbers of endpoints, another policy, and no
        // Service at all.
        let states = [
            snapshot([web(net, [endpoint_of(net, &one)]).only_from(&[net.pods])]),
            snapshot([
                web(net, [endpoint_of(net, &one), endpoint_of(net, &other)]).only_from(&[net.pods, "203.0.113.0/24"])
            ]),
            nothing(),
            snapshot([web(net, [endpoint_of(net, &other)]).local().only_from(&["?"])]),
            snapshot([web(net, []).only_from(&[net.pods])]),
            snapshot([web(net, [endpoint_of(net, &other)]).only_from(&["fd00::/8", "10.1.0.0/16"])]),
        ];
        let sockets = try_during(&world, net, || {
            for state in states.iter().cycle().take(CHANGES) {
                apply(&mut engine, state);
            }
        });
        assert!(sockets.len() > 100, "too few tries to mean anything: {}", sockets.len());
        // A control: an allowed client is served. After its answer, an answer to an earlier datagram would be here as
        // well.
        apply(&mut engine, &states[0]);
        let asked = ask_udp(&udp(&friend.namespace, &net.port(80))).expect("an answer");
        assert_eq!(asked, Answer::new(&one, &net.pod_ip(&friend)));
        let heard = sockets.iter().filter(|socket| socket.recv(&mut [0; 64]).is_ok()).count();
        assert_eq!(heard, 0, "of {} tries", sockets.len());
        connect(&friend.namespace, &net.port(80), PATIENCE).expect("a connection");
    });
}
