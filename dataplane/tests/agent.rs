//! The loop against a real kernel: its published state, and the path of packets when snapshots change.

mod harness;
mod sample;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::Protocol::{Tcp, Udp};
use crds::service::Family;
use crds::{Endpoint, Key, ProblemReason, Reach};
use dataplane::nft::layout::Table;
use dataplane::nft::{Engine, KernelTable, TableOutcomes};
use dataplane::reply_path::{Mask, ReplyPath};
use dataplane::rules::Problem;
use dataplane::rules::plan_ruleset;
use dataplane::snapshot::LinkName;
use dataplane::{Forwarding, Snapshot};
use harness::{Agent, endpoint_of, with_lan};
use netlink::message::{CREATE, Message, NFTABLES};
use netlink::socket::Socket;
use netns::Namespace;
use sample::{Described, NODE, ip, nothing, on_eth0, ready, service, snapshot, terminating};
use world::{Answer, CLIENT, Net, Pod, SILENCE, V4, World, ask_tcp, ask_udp, nft, udp, wait_for};

fn forwarding(addresses: &[&str], serving: &[&str]) -> Forwarding {
    let set = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect::<BTreeSet<_>>();
    let reach = addresses.iter().map(|text| (ip(text), Reach::Translated)).collect();
    Forwarding { addresses: set(addresses), serving: set(serving), reach, ..Forwarding::default() }
}

/// The published state without the problems of missing endpoints, which are about Services and not the kernel.
fn published_mistakes(agent: &Agent) -> Forwarding {
    let mut published = agent.forwarding();
    published.problems.values_mut().for_each(|problems| problems.retain(Problem::is_mistake));
    published.problems.retain(|_, problems| !problems.is_empty());
    published
}

fn web(address: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Described {
    service("web")
        .holds(address)
        .port("tcp", Tcp, 80)
        .port("udp", Udp, 80)
        .slice(&[("tcp", Tcp, 8080), ("udp", Udp, 8080)], endpoints)
}

/// All tables in the kernel.
fn observe(namespace: &Namespace) -> BTreeMap<Table, KernelTable> {
    namespace.run(|| Engine::open().expect("an engine").observe().expect("observe").0)
}

fn is_from(pod: &Pod, answer: std::io::Result<Answer>) -> bool {
    answer.is_ok_and(|answer| answer.pod == (pod.node, pod.number))
}

/// Whether this client gets no answer for a while.
fn is_silent(client: &UdpSocket) -> bool {
    let mut buffer = [0; 64];
    client.send(b"?").is_ok() && client.recv(&mut buffer).is_err()
}

const LB_IP: &str = "198.51.100.10";
const WEB: &str = "198.51.100.10:80";

#[test]
fn an_lb_ip_is_published_while_it_is_programmed() {
    let namespace = Namespace::new().expect("a namespace");
    let agent = Agent::start(&namespace);
    let held = |endpoints: &[Endpoint]| {
        let local = service("local").holds("198.51.100.11").port("", Tcp, 80).local();
        let local = local.slice(&[("", Tcp, 8080)], endpoints.to_vec());
        snapshot([web(LB_IP, []), local, service("six").holds("2001:db8::1").port("", Tcp, 80)])
    };
    agent.send(held(&[ready("10.244.2.5", "n2")]));
    let all = [LB_IP, "198.51.100.11", "2001:db8::1"];
    wait_for("addresses without endpoints here", || published_mistakes(&agent) == forwarding(&all, &[]));
    let there = |table: Table| matches!(observe(&namespace)[&table], KernelTable::Ours(_));
    assert_eq!(Table::ALL.map(there), [true, true, false], "frames are not spread");
    agent.send(held(&[ready("10.244.1.5", NODE)]));
    wait_for("an endpoint here", || published_mistakes(&agent) == forwarding(&all, &["198.51.100.11"]));
    agent.send(nothing());
    wait_for("nothing published", || published_mistakes(&agent) == Forwarding::default());
    wait_for("no tables", || observe(&namespace).values().all(|table| *table == KernelTable::Absent));
    agent.end();
}

#[test]
fn the_kernel_forwards_without_a_running_agent() {
    let world = World::new();
    let pod = world.pod(1, 5);
    let known = snapshot([web(LB_IP, [endpoint_of(V4, &pod)])]);
    let agent = Agent::start(&world.n1);
    agent.send(known.clone());
    wait_for("the address", || published_mistakes(&agent) == forwarding(&[LB_IP], &[LB_IP]));
    agent.end();
    let before = observe(&world.n1);
    assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&pod, CLIENT));

    let agent = Agent::start(&world.n1);
    assert_eq!(published_mistakes(&agent), Forwarding::default());
    assert_eq!(ask_tcp(&world.client, WEB), Answer::new(&pod, CLIENT));
    agent.send(known);
    wait_for("the address again", || published_mistakes(&agent) == forwarding(&[LB_IP], &[LB_IP]));
    assert_eq!(observe(&world.n1), before);
    agent.end();
}

#[test]
fn a_flushed_ruleset_is_repaired_and_counted() {
    let namespace = Namespace::new().expect("a namespace");
    let agent = Agent::start(&namespace);
    let known = snapshot([web(LB_IP, [ready("10.244.1.5", NODE)])]);
    agent.send(known.clone());
    wait_for("the address", || published_mistakes(&agent) == forwarding(&[LB_IP], &[LB_IP]));
    let before = observe(&namespace);
    nft(&namespace, "flush ruleset");
    // The agent checks every ten seconds.
    let deadline = Instant::now() + Duration::from_secs(20);
    while observe(&namespace) != before {
        assert!(Instant::now() < deadline, "not repaired");
        std::thread::yield_now();
    }
    assert_eq!(published_mistakes(&agent), forwarding(&[LB_IP], &[LB_IP]));
    wait_for("it to be counted", || agent.counters().repairs == 1);
    let counters = agent.counters();
    assert_eq!((counters.durations.counts.iter().sum::<u64>(), counters.failed_steps), (2, 0), "{counters:?}");
    assert!(counters.changed_elements >= 4 && counters.successful_steps >= 2, "{counters:?}");
    agent.end();
}

#[test]
fn a_refused_change_is_retried_and_not_published() {
    const NEWTABLE: u8 = 0;
    const OWNED: u32 = 2;
    let namespace = Namespace::new().expect("a namespace");
    // A table that belongs to another socket until that socket is closed (NFT_TABLE_F_OWNER).
    let mut other = namespace.run(|| Socket::open().expect("a socket"));
    let table = Message::new(NFTABLES, NEWTABLE, CREATE, 2, |w| {
        w.text(1, "landfall").u32(2, OWNED);
    });
    other.transact(&[table], None).expect("a table");
    let known = snapshot([web(LB_IP, [ready("10.244.1.5", NODE)])]);
    let mut engine = namespace.run(|| Engine::open().expect("an engine"));
    let error = engine.apply(&Arc::new(plan_ruleset(&known))).expect_err("refused");
    assert_eq!(error.to_string(), "the kernel refused to delete table ip landfall, nothing changed");

    let agent = Agent::start(&namespace);
    agent.send(known);
    let quiet = Instant::now() + SILENCE;
    while Instant::now() < quiet {
        assert_eq!(published_mistakes(&agent), Forwarding::default());
        std::thread::yield_now();
    }
    let counters = agent.counters();
    assert!(counters.failed_steps > 0 && counters.successful_steps == 0, "{counters:?}");
    drop(other);
    wait_for("the address", || published_mistakes(&agent) == forwarding(&[LB_IP], &[LB_IP]));
    agent.end();
}

#[test]
fn without_spreading_each_node_forwards_by_itself() {
    // As many chains as one link can have (MAX_HOOK_COUNT).
    const MOST: usize = 1024;
    let namespace = Namespace::new().expect("a namespace");
    namespace.ip(["link add eth0 type veth peer name eth1", "link set eth0 up"]).expect("a link");
    let chain = |n| format!("chain c{n} {{ type filter hook ingress device eth0 priority 0; }}\n");
    let chains: String = (0..MOST).map(chain).collect();
    nft(&namespace, &format!("table netdev other {{\n{chains}}}\n"));
    let agent = Agent::start(&namespace);
    let endpoints = || [ready("10.244.1.5", NODE), ready("10.244.2.5", "n2")];
    let spread = Snapshot { links: on_eth0(&["n2"]), ..snapshot([web(LB_IP, endpoints())]) };
    agent.send(spread.clone());
    wait_for("the address", || published_mistakes(&agent) == forwarding(&[LB_IP], &[LB_IP]));
    assert_eq!(observe(&namespace)[&Table::Link], KernelTable::Absent);
    // A new link is tried again.
    namespace.ip(["link set eth1 name eth2", "link set eth2 up"]).expect("a link");
    let eth2 = LinkName::new("eth2").expect("a name");
    let links = spread.links.values().map(|link| (eth2, link.clone())).collect();
    agent.send(Snapshot { links, ..spread });
    wait_for("frames spread", || agent.forwarding().reach[&ip(LB_IP)] == Reach::Spread);
    agent.end();
}

#[test]
fn refused_marks_are_published_and_traffic_continues() {
    // As many chains as one hook can have for translation (MAX_HOOK_COUNT), except for ours that always exist.
    const MOST: usize = 1024 - 2;
    let world = World::new();
    let pod = world.pod(1, 5);
    let chain = |n| format!("chain c{n} {{ type nat hook prerouting priority 0; }}\n");
    let chains: String = (0..MOST).map(chain).collect();
    nft(&world.n1, &format!("table ip other {{\n{chains}}}\n"));
    let agent = Agent::start(&world.n1);
    let mark = |link, slot| ReplyPath {
        family: Family::V4,
        link: LinkName::new(link).expect("a name"),
        mark: Mask::default().mark(slot),
    };
    let marking = |returns: Vec<ReplyPath>| Snapshot {
        reply_paths: Arc::new(returns.into_iter().collect()),
        ..snapshot([harness::web(V4, [endpoint_of(V4, &pod)])])
    };
    agent.send(marking(vec![mark("eth0", 1), mark("eth1", 2)]));
    wait_for("the address", || {
        agent.forwarding().addresses.contains(&ip(V4.lb_ip)) && agent.forwarding().marks_refused
    });
    assert_eq!(ask_tcp(&world.client, &V4.port(80)), Answer::new(&pod, CLIENT));
    // With a single link, no marks are needed.
    agent.send(marking(vec![]));
    wait_for("no refused marks", || !agent.forwarding().marks_refused);
    // With room again, new links are tried again.
    nft(&world.n1, "delete table ip other\n");
    agent.send(marking(vec![mark("eth0", 1), mark("eth2", 2)]));
    wait_for("the mark", || {
        let chains = world.n1.command("nft").args(["list", "table", "ip", "landfall"]).output().expect("run nft");
        String::from_utf8_lossy(&chains.stdout).contains("-eth2 {") && !agent.forwarding().marks_refused
    });
    agent.end();
}

#[test]
fn a_udp_flow_follows_its_endpoints_and_service() {
    Net::each(|net| {
        let world = World::new();
        let (first, second) = (world.pod(1, 5), world.pod(1, 6));
        let at = net.port(80);
        let (client, pod) = (udp(&world.client, &at), world.pod(1, 7));
        let inside = udp(&pod.namespace, &at);
        let agent = Agent::start(&world.n1);
        let send = |endpoints: Vec<Endpoint>| agent.send(snapshot([web(net.lb_ip, endpoints)]));
        send(vec![endpoint_of(net, &first)]);
        wait_for("the address", || published_mistakes(&agent) == forwarding(&[net.lb_ip], &[net.lb_ip]));
        assert!(is_from(&first, ask_udp(&client)));
        assert!(is_from(&first, ask_udp(&inside)));

        // While the endpoint still serves, its clients keep it.
        send(vec![terminating(endpoint_of(net, &first)), endpoint_of(net, &second)]);
        wait_for("new clients at the other", || is_from(&second, ask_udp(&udp(&world.client, &at))));
        assert!(is_from(&first, ask_udp(&client)));

        send(vec![endpoint_of(net, &second)]);
        wait_for("the client at the other", || is_from(&second, ask_udp(&client)));
        wait_for("the pod at the other", || is_from(&second, ask_udp(&inside)));

        agent.send(snapshot([service("other").holds(net.other)]));
        wait_for("silence", || is_silent(&client));
        agent.end();
    });
}

#[test]
fn a_forbidden_udp_client_gets_no_more_replies() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let client = udp(&world.client, &net.port(80));
        let agent = Agent::start(&world.n1);
        agent.send(snapshot([web(net.lb_ip, [endpoint_of(net, &pod)])]));
        wait_for("the address", || published_mistakes(&agent) == forwarding(&[net.lb_ip], &[net.lb_ip]));
        assert_eq!(ask_udp(&client).expect("an answer"), Answer::new(&pod, net.client));
        agent.send(snapshot([web(net.lb_ip, [endpoint_of(net, &pod)]).only_from(&[net.pods, "?"])]));
        wait_for("silence", || is_silent(&client));
        let problem = Problem {
            service: Key::new("default", "web"),
            reason: ProblemReason::InvalidSourceRange,
            what: "?".into(),
        };
        let problems = BTreeMap::from([(ip(net.lb_ip), BTreeSet::from([problem]))]);
        let expected = Forwarding { problems, ..forwarding(&[net.lb_ip], &[net.lb_ip]) };
        wait_for("the problem", || published_mistakes(&agent) == expected);
        agent.send(snapshot([web(net.lb_ip, [endpoint_of(net, &pod)])]));
        wait_for("an answer", || ask_udp(&client).is_ok());
        wait_for("no problem", || published_mistakes(&agent) == forwarding(&[net.lb_ip], &[net.lb_ip]));
        agent.end();
    });
}

#[test]
fn a_udp_flow_older_than_the_service_is_served() {
    Net::each(|net| {
        let world = World::new();
        let pod = world.pod(1, 5);
        let client = udp(&world.client, &net.port(80));
        let other = || service("other").holds(net.other);
        let agent = Agent::start(&world.n1);
        agent.send(snapshot([other()]));
        wait_for("the other address", || published_mistakes(&agent) == forwarding(&[net.other], &[]));
        // The node routes the datagram, so the flow is tracked without translation. It would stay so.
        client.send(b"?").expect("send");
        wait_for("a tracked flow", || {
            let family = if net.family == V4.family { "ipv4" } else { "ipv6" };
            let arguments = ["-L", "-f", family, "-p", "udp", "-d", net.lb_ip];
            !world.n1.command("conntrack").args(arguments).output().expect("conntrack").stdout.is_empty()
        });
        agent.send(snapshot([web(net.lb_ip, [endpoint_of(net, &pod)]), other()]));
        wait_for("the address", || agent.forwarding().serving.contains(&ip(net.lb_ip)));
        assert_eq!(ask_udp(&client).expect("an answer"), Answer::new(&pod, net.client));
        agent.end();
    });
}

#[test]
fn a_restarted_agent_forgets_flows_of_removed_services() {
    Net::each(|net| {
        for others in [vec![service("other").holds(net.other)], vec![]] {
            let world = World::new();
            let pod = world.pod(1, 5);
            let client = udp(&world.client, &net.port(80));
            let agent = Agent::start(&world.n1);
            agent.send(snapshot([web(net.lb_ip, [endpoint_of(net, &pod)])]));
            wait_for("the address", || agent.forwarding().serving.contains(&ip(net.lb_ip)));
            assert_eq!(ask_udp(&client).expect("an answer"), Answer::new(&pod, net.client));
            agent.end();
            let agent = Agent::start(&world.n1);
            agent.send(snapshot(others));
            wait_for("silence", || is_silent(&client));
            agent.end();
        }
    });
}

#[test]
fn endpoints_leave_and_return_with_their_node() {
    Net::each(|net| {
        let world = World::new();
        let (near, far) = (world.pod(1, 5), world.pod(2, 5));
        let agent = Agent::start(&world.n1);
        let alive = with_lan(snapshot([web(net.lb_ip, [endpoint_of(net, &near), endpoint_of(net, &far)])]));
        let dead = Snapshot { dead: BTreeSet::from(["n2".to_owned()]), ..alive.clone() };
        let answering = || {
            let answers = (0..40).map(|_| ask_tcp(&world.client, &net.port(80)).pod);
            answers.collect::<BTreeSet<_>>()
        };
        let (both, one) = (BTreeSet::from([(1, 5), (2, 5)]), BTreeSet::from([(1, 5)]));
        agent.send(alive.clone());
        wait_for("the address", || agent.forwarding().serving.contains(&ip(net.lb_ip)));
        assert_eq!(answering(), both);
        // UDP clients of the dead endpoint are moved as well.
        let clients: Vec<_> = (0..20).map(|_| udp(&world.client, &net.port(80))).collect();
        assert!(clients.iter().any(|client| is_from(&far, ask_udp(client))));
        agent.send(dead);
        wait_for("only the living", || answering() == one);
        wait_for("all clients at the living", || clients.iter().all(|client| is_from(&near, ask_udp(client))));
        agent.send(alive);
        wait_for("both again", || answering() == both);
        agent.end();
    });
}

#[test]
fn a_burst_of_snapshots_ends_with_the_last() {
    let namespace = Namespace::new().expect("a namespace");
    let agent = Agent::start(&namespace);
    for number in 1..=250 {
        agent.send(snapshot([web(&format!("198.51.100.{number}"), [])]));
    }
    wait_for("the last", || published_mistakes(&agent) == forwarding(&["198.51.100.250"], &[]));
    let mut engine = namespace.run(|| Engine::open().expect("an engine"));
    let last = Arc::new(plan_ruleset(&snapshot([web("198.51.100.250", [])])));
    assert_eq!(engine.apply(&last).expect("apply"), TableOutcomes::new());
    agent.end();
}
