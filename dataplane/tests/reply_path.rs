//! The reply path on a node with two links, against a real kernel.
//!
//! ```text
//!   node n1 ── eth0 192.0.2.1 ──── LAN a ── router a .254, which the node's default route leads to: a dead end
//!      │└───── eth1 203.0.113.1 ── LAN b ── router b .254 ── client 198.18.0.9
//!      └ pods 10.244.1.0/24          └───── neighbour .100
//! ```

mod harness;
mod sample;
mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use crds::Protocol::{Tcp, Udp};
use crds::service::Family;
use dataplane::Snapshot;
use dataplane::reply_path::routing::{ReplyPathState, Routing};
use dataplane::reply_path::{self, Gap, Mask, ReplyPath, ReplyPathInput};
use dataplane::snapshot::LinkName;
use harness::{apply, engine_on, web};
use netns::{Namespace, veth};
use sample::{NODE, ip, ready, service, snapshot};
use tokio::sync::watch;
use world::{
    Answer, Net, Pod, SILENCE, V4, V6, ask_tcp, ask_udp, connect, host, nft, ping, udp, wait_for, wait_for_addresses,
};

/// The node and its neighbours.
struct World {
    node: Namespace,
    a: Namespace,
    b: Namespace,
    client: Namespace,
    neighbour: Namespace,
}

fn client(net: Net) -> &'static str {
    if net == V4 { "198.18.0.9" } else { "2001:db8:9::9" }
}

fn neighbour(net: Net) -> &'static str {
    if net == V4 { "203.0.113.100" } else { "2001:db8:2::100" }
}

/// These lines for IPv4, and the same for IPv6.
fn lines(lines: &[&str]) -> Vec<String> {
    let six = |line: &str| {
        let line = line.replace("192.0.2.", "2001:db8:1::").replace("203.0.113.", "2001:db8:2::");
        let line = line.replace("198.18.0.", "2001:db8:9::").replace("198.51.100.0/24", "2001:db8:99::/64");
        let line = line.replace("10.244.1.", "2001:db8:244:1::").replace("/24", "/64").replace("/32", "/128");
        if line.starts_with("addr") { format!("{line} nodad") } else { line.replace("default", "::/0") }
    };
    lines.iter().flat_map(|line| [(*line).to_owned(), six(line)]).collect()
}

impl World {
    fn new() -> Self {
        let namespace = || host().expect("a namespace (these tests need root)");
        let world =
            Self { node: namespace(), a: namespace(), b: namespace(), client: namespace(), neighbour: namespace() };
        veth((&world.node, "eth0"), (&world.a, "eth0")).expect("a cable");
        // Router b is the switch of its LAN as well.
        veth((&world.node, "eth1"), (&world.b, "node")).expect("a cable");
        veth((&world.neighbour, "eth0"), (&world.b, "neighbour")).expect("a cable");
        veth((&world.client, "eth0"), (&world.b, "client")).expect("a cable");
        let up = |host: &Namespace, link: &str| host.ip([format!("link set {link} up")]).expect("a link");
        world.b.ip(["link add lan type bridge", "link set lan up"]).expect("a bridge");
        for port in ["node", "neighbour"] {
            world.b.ip([format!("link set {port} master lan up")]).expect("a port");
        }
        world.node.ip(["link add cni0 type bridge", "link set cni0 up"]).expect("a bridge");
        let hosts: [(&Namespace, &[&str]); 5] = [
            (&world.node, &["eth0", "eth1"]),
            (&world.a, &["eth0"]),
            (&world.b, &["client"]),
            (&world.client, &["eth0"]),
            (&world.neighbour, &["eth0"]),
        ];
        for (host, links) in hosts {
            links.iter().for_each(|link| up(host, link));
        }
        for host in [&world.node, &world.b] {
            for (switch, value) in [("ipv4.ip_forward", "1"), ("ipv6.conf.all.forwarding", "1")] {
                host.sysctl(switch, value).expect("forwarding");
            }
        }
        for of in ["all", "eth0", "eth1"] {
            world.node.sysctl(&format!("ipv4.conf.{of}.rp_filter"), "0").expect("rp_filter");
        }
        world
            .node
            .ip(lines(&[
                "addr add 192.0.2.1/24 dev eth0",
                "addr add 203.0.113.1/24 dev eth1",
                "addr add 10.244.1.1/24 dev cni0",
                "route add default via 192.0.2.254 metric 100",
                "route add default via 203.0.113.254 metric 500",
            ]))
            .expect("the node");
        world.a.ip(lines(&["addr add 192.0.2.254/24 dev eth0"])).expect("a");
        world
            .b
            .ip(lines(&[
                "addr add 203.0.113.254/24 dev lan",
                "addr add 198.18.0.254/24 dev client",
                "route add 198.51.100.0/24 via 203.0.113.1",
            ]))
            .expect("b");
        world.client.ip(lines(&["addr add 198.18.0.9/24 dev eth0", "route add default via 198.18.0.254"])).expect("c");
        let neighbour = ["addr add 203.0.113.100/24 dev eth0", "route add 198.51.100.0/24 via 203.0.113.1"];
        world.neighbour.ip(lines(&neighbour)).expect("the neighbour");
        [&world.node, &world.a, &world.b, &world.client, &world.neighbour].into_iter().for_each(wait_for_addresses);
        world
    }

    /// Programs rules and routes, as an agent that has just started, and returns the result.
    fn settle(&self, wanted: &ReplyPathInput) -> ReplyPathState {
        self.node.run(|| Routing::open().expect("a kernel").apply(wanted, Mask::default()).expect("settled"))
    }

    /// All rules and routes of the node, and the sysctls that must not change.
    fn everything(&self) -> String {
        let run = |words: &[&str]| {
            let output = self.node.command(words[0]).args(&words[1..]).output().expect("run");
            String::from_utf8(output.stdout).expect("text")
        };
        let switches = ["net.ipv4.conf", "net.ipv6.conf", "net.ipv4.route", "net.ipv4.fwmark_reflect"];
        let mut all: String = ["-4", "-6"]
            .iter()
            .flat_map(|family| {
                [run(&["ip", family, "-d", "rule"]), run(&["ip", family, "-d", "route", "show", "table", "all"])]
            })
            .collect();
        for switch in switches {
            all += &run(&["sysctl", "-e", switch]);
        }
        all
    }
}

fn link(name: &str) -> LinkName {
    LinkName::new(name).expect("a name")
}

fn both() -> ReplyPathInput {
    ReplyPathInput { links: [link("eth0"), link("eth1")].into(), families: [Family::V4, Family::V6].into() }
}

/// The reply paths of these links in both families. The n-th link has the n-th mark.
fn reply_paths(links: &[&str]) -> BTreeSet<ReplyPath> {
    let each = (1..).zip(links).flat_map(|(slot, name)| {
        let mark = Mask::default().mark(slot);
        [Family::V4, Family::V6].map(|family| ReplyPath { family, link: link(name), mark })
    });
    each.collect()
}

/// The snapshot with these reply paths.
fn with_reply_paths(returns: &BTreeSet<ReplyPath>, snapshot: Snapshot) -> Snapshot {
    Snapshot { reply_paths: Arc::new(returns.clone()), ..snapshot }
}

#[test]
fn replies_leave_by_the_link_of_the_request() {
    Net::each(|net| {
        let world = World::new();
        let pod = Pod::start(&world.node, 1, 5);
        // An endpoint on the node itself, and a port without endpoints.
        let own = Pod { namespace: world.node.clone(), node: 1, number: 99 };
        own.serve(SocketAddr::new(ip(net.n1), 8080));
        let ports = [("tcp", Tcp, 8080), ("udp", Udp, 8080)];
        let of_node = service("node").holds(net.other).port("tcp", Tcp, 80).port("udp", Udp, 80);
        let of_node = of_node.slice(&ports, [ready(net.n1, NODE)]);
        let empty = service("empty").holds(net.lb_ip).port("", Tcp, 81);
        // An endpoint on another node: at router a.
        let elsewhere = Pod { namespace: world.a.clone(), node: 2, number: 7 };
        let other = format!("{}254", net.n1.strip_suffix('1').expect("the first"));
        elsewhere.serve(SocketAddr::new(ip(&other), 8080));
        let far = service("far").holds(net.lb_ip).port("tcp", Tcp, 82).slice(&ports[..1], [ready(&other, "n2")]);
        let all = snapshot([web(net, [harness::endpoint_of(net, &pod)]), of_node, empty, far]);
        let mut engine = engine_on(&world.node);
        apply(&mut engine, &all);
        let lost = connect(&world.client, &net.port(80), SILENCE).err().expect("no answer by eth0");
        assert_eq!(lost.kind(), ErrorKind::TimedOut);

        let applied = world.settle(&both());
        assert_eq!((applied.reply_paths.clone(), applied.gaps), (reply_paths(&["eth0", "eth1"]), BTreeSet::new()));
        apply(&mut engine, &with_reply_paths(&applied.reply_paths, all.clone()));
        let seen = Answer::new(&pod, client(net));
        assert_eq!(ask_tcp(&world.client, &net.port(80)), seen);
        assert_eq!(ask_udp(&udp(&world.client, &net.port(80))).expect("an answer over UDP"), seen);
        let to_node = SocketAddr::new(ip(net.other), 80).to_string();
        let seen = Answer::new(&own, client(net));
        assert_eq!(ask_tcp(&world.client, &to_node), seen, "by the node itself");
        assert_eq!(ask_udp(&udp(&world.client, &to_node)).expect("an answer over UDP"), seen);
        let seen = Answer::new(&elsewhere, net.n1);
        assert_eq!(ask_tcp(&world.client, &net.port(82)), seen, "through this node");
        let refused = connect(&world.client, &net.port(81), SILENCE).err().expect("no endpoint");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        ping(&world.client, net.lb_ip).expect("a reply");

        // The node's own routes lead to this neighbour by another link.
        let detour = format!("route add {} via {other}", neighbour(net));
        world.node.ip([detour]).expect("a route");
        assert_eq!(ask_tcp(&world.neighbour, &net.port(80)), Answer::new(&pod, neighbour(net)));

        apply(&mut engine, &all);
        let lost = connect(&world.client, &net.port(80), SILENCE).err().expect("no answer by eth0");
        assert_eq!(lost.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn mark_chains_are_printed_and_observed_unchanged() {
    let world = World::new();
    let eth1 = [ReplyPath { family: Family::V4, link: link("eth1"), mark: Mask::default().mark(2) }].into();
    apply(&mut engine_on(&world.node), &with_reply_paths(&eth1, snapshot([web(V4, [])])));
    let list = |chain: &str| {
        let words = ["list", "chain", "ip", "landfall", chain];
        let output = world.node.command("nft").args(words).output().expect("run nft");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().skip(2).take(2).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    // `nft` prints a mask that also contains the bits of the mark: 0xffffffaf for 0xffffff8f.
    assert_eq!(
        list("by-0x20-of-0x70-eth1"),
        [
            "type nat hook prerouting priority -120; policy accept;",
            "iifname \"eth1\" ip daddr @addresses ct mark set ct mark & 0xffffffaf | 0x00000020",
        ]
    );
    let answers = "ct direction reply ct mark & 0x00000070 == 0x00000020 \
                   meta mark set meta mark & 0xffffffaf | 0x00000020";
    assert_eq!(list("back-0x20-of-0x70"), ["type filter hook prerouting priority mangle; policy accept;", answers]);
    assert_eq!(
        list("back-from-here-0x20-of-0x70"),
        ["type route hook output priority mangle; policy accept;", answers]
    );
    // An agent that starts finds no difference.
    let nothing = engine_on(&world.node).apply(&Arc::new(dataplane::rules::plan_ruleset(&harness::with_lan(
        with_reply_paths(&eth1, snapshot([web(V4, [])])),
    ))));
    assert!(nothing.expect("apply").is_empty());
}

#[test]
fn links_keep_their_marks_across_restarts() {
    let world = World::new();
    let first = world.settle(&both());
    assert_eq!(first.reply_paths, reply_paths(&["eth0", "eth1"]));
    assert!(first.changes > 0);
    assert_eq!(world.settle(&both()), ReplyPathState { changes: 0, ..first.clone() });
    // A new link gets the next mark, even if it is first by name.
    world.node.ip(["link add ens0 type veth peer name ens1", "link set ens0 up", "link set ens1 up"]).expect("a link");
    world.node.ip(["addr add 10.9.0.1/24 dev ens0"]).expect("an address");
    let more = ReplyPathInput { links: [link("ens0"), link("eth0"), link("eth1")].into(), ..both() };
    let third = ReplyPath { family: Family::V4, link: link("ens0"), mark: Mask::default().mark(3) };
    let more = world.settle(&more);
    assert_eq!(more.reply_paths, first.reply_paths.iter().copied().chain([third]).collect());
    assert_eq!(more.gaps, [Gap::NoRouter(Family::V4, link("ens0"))].into());
    world.node.ip(["link del ens0"]).expect("no link");
    assert_eq!(world.settle(&both()).reply_paths, first.reply_paths);
    // The incomplete state of a killed agent is completed.
    world.node.ip(["rule del table 76001", "route flush table 76002"]).expect("half of it");
    assert_eq!(world.settle(&both()).reply_paths, first.reply_paths);
    assert_eq!(world.settle(&both()).changes, 0);
}

#[test]
fn an_uninstallation_restores_rules_and_routes() {
    let world = World::new();
    let mine = [
        "rule add fwmark 0x1/0xf lookup 100 priority 750",
        "rule add from 203.0.113.1 lookup 76100 priority 800",
        "route add 10.77.0.0/16 via 203.0.113.254 table 100",
        "route add 10.77.0.0/16 via 203.0.113.254 table 76100",
    ];
    world.node.ip(mine).expect("rules and routes of others");
    let before = world.everything();
    let applied = world.settle(&both());
    assert_ne!(world.everything(), before);
    apply(&mut engine_on(&world.node), &with_reply_paths(&applied.reply_paths, snapshot([web(V4, []), web(V6, [])])));
    world.node.run(|| {
        assert!(dataplane::remove().expect("removed"));
        assert!(reply_path::remove().expect("removed"));
        assert!(!reply_path::remove().expect("nothing left"));
    });
    assert_eq!(world.everything(), before);
}

#[test]
fn routing_tables_of_other_programs_are_not_used() {
    let world = World::new();
    world.node.ip(["route add 10.77.0.0/16 via 203.0.113.254 table 76001"]).expect("a route of others");
    let before = world.everything();
    let applied = world.settle(&both());
    assert_eq!(applied.gaps, [Gap::TakenTable(76_001)].into());
    let marks: BTreeSet<u32> = applied.reply_paths.iter().map(|one| one.mark.value).collect();
    assert_eq!(marks, [0x20, 0x30].into());
    world.node.run(|| reply_path::remove().expect("removed"));
    assert_eq!(world.everything(), before);
}

#[test]
fn a_single_reply_path_needs_no_rules() {
    let world = World::new();
    let before = world.everything();
    for wanted in [
        ReplyPathInput::default(),
        ReplyPathInput { links: [link("eth0")].into(), ..both() },
        ReplyPathInput { links: [link("eth0"), link("eth7")].into(), ..both() },
        ReplyPathInput { families: [].into(), ..both() },
    ] {
        assert_eq!(world.settle(&wanted), ReplyPathState::default(), "{wanted:?}");
    }
    assert_eq!(world.everything(), before);
}

#[test]
fn a_strict_reverse_path_filter_is_reported() {
    let world = World::new();
    for of in ["eth0", "eth1"] {
        world.node.sysctl(&format!("ipv4.conf.{of}.rp_filter"), "1").expect("rp_filter");
    }
    // The node's default route leaves by eth0, so the filter of eth0 drops no requests.
    assert_eq!(world.settle(&both()).gaps, [Gap::StrictFilter(link("eth1"))].into());
    world.node.sysctl("ipv4.conf.all.rp_filter", "2").expect("rp_filter");
    assert_eq!(world.settle(&both()).gaps, [].into());
}

#[test]
fn the_loop_follows_routes_and_cleans_up() {
    let world = World::new();
    let before = world.everything();
    let (input_tx, input_rx) = watch::channel(Some(both()));
    let (paths_tx, mut paths_rx) = watch::channel(Arc::default());
    let node = world.node.clone();
    let thread = std::thread::spawn(move || {
        node.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime
                .block_on(reply_path::run(input_rx, paths_tx, watch::channel(BTreeSet::new()).0, Some(Mask::default())))
                .expect("run");
        });
    });
    wait_for("marks", || **paths_rx.borrow_and_update() == reply_paths(&["eth0", "eth1"]));
    let default = |table: &str| {
        let output = world.node.command("ip").args(["route", "show", "default", "table", table]).output().expect("ip");
        String::from_utf8(output.stdout).expect("text")
    };
    wait_for("a default route", || default("76002").contains("via 203.0.113.254 dev eth1"));
    world.node.ip(["route replace default via 203.0.113.253 metric 500"]).expect("another router");
    wait_for("the other router", || default("76002").contains("via 203.0.113.253 dev eth1"));
    nft(&world.node, "table ip other { }");
    world.node.ip(["rule del table 76001"]).expect("by mistake");
    wait_for("the rule again", || world.everything().contains("lookup 76001"));
    world.node.ip(["route replace default via 203.0.113.254 metric 500"]).expect("the first router");
    input_tx.send_replace(Some(ReplyPathInput { families: BTreeSet::new(), ..both() }));
    wait_for("nothing", || paths_rx.borrow_and_update().is_empty() && world.everything() == before);
    drop(input_tx);
    thread.join().expect("no panic");
}
