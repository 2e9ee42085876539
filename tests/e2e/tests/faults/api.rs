//! Faults of the Kubernetes API: the API server is down, hangs, refuses, is slow, or loses answers or tokens. The wire
//! and the kernels stay as they are (I10), and afterwards the status agrees with the wire (I16).
//!
//! One pod runs on each node, so that a scene chooses the node whose kernel forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use crds::{LoadBalancerIP, NodeNetwork};
use e2e::faults::api::{ApiClients, Loss, LostWrites};
use e2e::scenes::expect_known_defect;
use e2e::world::{AGENT_PROCESS, SOON};
use e2e::{Scene, Scenes, Target, Traffic, TrafficPlan, World};
use futures::future::try_join_all;
use kube::Api;
use lab::{Direction, Topology, wait_until};
use load::{Bounds, Transport, TryPlan};
use observer::{Component, Fault, Invariant, Subject};
use serde_json::json;
use tokio::time::sleep;

/// All nodes.
const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The pool of each scene.
const POOL: &str = "192.0.2.200-192.0.2.209";

/// The limit for a takeover. The lateness of the machine is added.
const TAKEOVER: Duration = Duration::from_millis(250);

/// A request without an answer for this long is lost.
const ANSWERED: Duration = Duration::from_secs(1);

/// A fault lasts for this long before a scene looks at its effect. The pauses of the agents' backoff then sum up to the
/// same time, so they recover within about twice this time.
const FAULT_TIME: Duration = Duration::from_secs(3);

/// Limit for the status of an address after a fault. A starting API server refuses everything for a while, and watches
/// are repeated after at most 30 s (`observe`).
const RECOVERY: Duration = Duration::from_secs(35);

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_api_change_nothing_on_the_wire() -> Result<()> {
    let world = World::with_api_proxy("e2e-api-faults", Topology::default()).await?;
    let create = async |node: &str| world.create_whoami_with(&pod_on(node), 1, json!({"nodeName": node})).await;
    try_join_all(NODES.map(create)).await?;
    let mut scenes = Scenes::new(&world);
    scenes.add(a_kernel_forwards_while_its_agent_restarts_without_an_api);
    scenes.add(an_agent_without_an_api_keeps_its_addresses);
    scenes.add(no_address_is_lost_if_all_agents_restart_without_an_api);
    scenes.add(agents_with_revoked_tokens_keep_their_addresses);
    scenes.add(agents_learn_of_a_service_after_silent_watches);
    scenes.add(agents_back_off_from_an_overloaded_api);
    scenes.add(status_agrees_with_the_wire_after_lost_writes);
    // Agents may be without watches for half a minute afterwards.
    scenes.add_last(an_address_moves_while_the_api_server_is_down);
    scenes.play().await?;
    world.end()
}

async fn an_address_moves_while_the_api_server_is_down(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let web = announce(world, "web", PodOn::OtherNode).await?;
    let others = announce_others(world, &["other-1", "other-2", "other-3"]).await?;
    let api_server = world.stop_api_server().await?;
    let traffic = start_traffic(world, web.address).await?;
    let cut = world.cut(&web.owner, Direction::Both)?;
    sleep(FAULT_TIME).await;
    check(traffic)?;
    let addresses: Vec<IpAddr> = others.keys().copied().chain([web.address]).collect();
    let answering = answering_nodes(world, &addresses)?;
    for (address, node) in &answering {
        let before = others.get(address).unwrap_or(&web.owner);
        let is_right = if *before == web.owner { *node != web.owner } else { node == before };
        ensure!(is_right, "{before} announced {address} before {} was cut off, and now {node}", web.owner);
    }
    cut.heal()?;
    sleep(Duration::from_secs(1)).await;
    let after = answering_nodes(world, &addresses)?;
    ensure!(after == answering, "{} was cut off: {answering:?}, and is back: {after:?}", web.owner);
    drop(api_server);
    expect_status(world, &after).await?;
    let defect = "after an outage of the API server, agents may repeat their watches late, and learn late of deletions";
    let subjects = NODES.map(|node| Subject::Node(node.to_owned())).into_iter();
    for subject in subjects.chain(after.into_keys().map(Subject::Address)) {
        world.declare(Fault::known_defect(Invariant::I13, subject, defect));
    }
    Ok(())
}

async fn a_kernel_forwards_while_its_agent_restarts_without_an_api(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    // The pod on the owner: after the takeover, its kernel still forwards to the pod.
    let web = announce(world, "web", PodOn::Owner).await?;
    let node = world.cluster.node(&web.owner);
    let is_programmed = || -> Result<bool> {
        let set = node.output(["nft", "list", "set", "ip", "landfall", "addresses"])?;
        Ok(set.contains(&web.address.to_string()))
    };
    ensure!(is_programmed()?, "{} does not forward {}", web.owner, web.address);
    let hang = world.hang_api(ApiClients::Agents).await?;
    let traffic = start_traffic(world, web.address).await?;
    let killed = node.processes(AGENT_PROCESS);
    world.kill(Component::Agent, &web.owner)?;
    wait_until(SOON, "the agent to restart", async || {
        let running = node.processes(AGENT_PROCESS);
        ensure!(running.iter().any(|process| !killed.contains(process)), "{running:?}");
        Ok(())
    })
    .await?;
    sleep(FAULT_TIME).await;
    ensure!(hang.count_affected() > 0, "the agent has sent no request");
    ensure!(is_programmed()?, "the agent has removed {} from the kernel of {}", web.address, web.owner);
    let answering = answering_nodes(world, &[web.address])?;
    ensure!(answering[&web.address] != web.owner, "{} answers without knowing the Service", web.owner);
    drop(hang);
    world.wait_until_installed().await?;
    expect_status(world, &answering).await?;
    check(traffic)
}

async fn no_address_is_lost_if_all_agents_restart_without_an_api(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let addresses: Vec<IpAddr> = announce_others(world, &["one", "two", "three"]).await?.into_keys().collect();
    let agents = || NODES.map(|node| world.cluster.node(node).processes(AGENT_PROCESS));
    let down = world.cut_api_off(ApiClients::Agents).await?;
    let before = agents();
    for node in NODES {
        world.kill(Component::Agent, node)?;
    }
    wait_until(SOON, "all agents to restart", async || {
        let now = agents();
        let is_new = |(now, before): (&Vec<_>, &Vec<_>)| now.iter().any(|process| !before.contains(process));
        ensure!(now.iter().zip(&before).all(is_new), "{now:?}");
        Ok(())
    })
    .await?;
    sleep(FAULT_TIME).await;
    ensure!(down.count_affected() > 0, "the agents have sent no request");
    for node in NODES {
        let set = world.cluster.node(node).output(["nft", "list", "set", "ip", "landfall", "addresses"])?;
        let missing = addresses.iter().find(|address| !set.contains(&address.to_string()));
        ensure!(missing.is_none(), "the agent has removed {missing:?} from the kernel of {node}");
    }
    let answering = answering_macs(world, &addresses)?;
    let silent: Vec<_> = answering.iter().filter(|(_, macs)| macs.is_empty()).map(|(address, _)| address).collect();
    let check = if silent.is_empty() { Ok(()) } else { Err(anyhow!("no node answers for {silent:?}")) };
    expect_known_defect(check, "an agent that starts without the API has forgotten its addresses (I10)")?;
    drop(down);
    world.wait_until_installed().await?;
    // Nothing that was announced is lost.
    let after =
        wait_until(RECOVERY, "one node to answer for each address", async || answering_nodes(world, &addresses));
    expect_status(world, &after.await?).await
}

async fn agents_with_revoked_tokens_keep_their_addresses(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let web = announce(world, "web", PodOn::OtherNode).await?;
    let mut announced = announce_others(world, &["one", "two"]).await?;
    announced.insert(web.address, web.owner.clone());
    let addresses: Vec<IpAddr> = announced.keys().copied().collect();
    world.revoke_agent_tokens().await?;
    // The API server remembers a valid token for ten seconds.
    wait_until(SOON, "the API server to refuse the tokens of the agents", async || {
        for node in NODES {
            ensure!(!world.is_agent_token_valid(node).await?, "that of {node} is valid");
        }
        Ok(())
    })
    .await?;
    let traffic = start_traffic(world, web.address).await?;
    // Open watches do not end with their token.
    drop(world.cut_api_off(ApiClients::Agents).await?);
    create_service(world, "late").await?;
    let late = world.wait_for_address("late").await?;
    sleep(FAULT_TIME).await;
    let seen = world.lan.arp_macs(late)?;
    ensure!(seen.is_empty(), "{seen:?} answer for {late}, although no agent has a valid token");
    let answering = answering_nodes(world, &addresses)?;
    ensure!(answering == announced, "{answering:?} answer, {announced:?} announced");
    check(traffic)?;
    world.replace_landfall().await?;
    world.wait_for_announcer(late).await?;
    let all: Vec<IpAddr> = addresses.into_iter().chain([late]).collect();
    let after = wait_until(RECOVERY, "one node to answer for each address", async || answering_nodes(world, &all));
    expect_status(world, &after.await?).await
}

async fn an_agent_without_an_api_keeps_its_addresses(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let web = announce(world, "web", PodOn::OtherNode).await?;
    let cut = world.cut_api_off(ApiClients::AgentOn(&web.owner)).await?;
    // Other nodes announce what the agent cannot know.
    let mut announced = announce_others(world, &["new-1", "new-2", "new-3"]).await?;
    ensure!(announced.values().all(|node| *node != web.owner), "{} is cut off: {announced:?}", web.owner);
    ensure!(cut.count_affected() > 0, "the agent on {} has sent no request", web.owner);
    announced.insert(web.address, web.owner.clone());
    let addresses: Vec<IpAddr> = announced.keys().copied().collect();
    let answering = answering_nodes(world, &addresses)?;
    ensure!(answering == announced, "{answering:?} answer, {announced:?} announced");
    drop(cut);
    expect_status(world, &answering).await
}

async fn agents_learn_of_a_service_after_silent_watches(scene: &Scene<'_>) -> Result<()> {
    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let web = announce(world, "web", PodOn::OtherNode).await?;
    let silence = world.silence_watches(ApiClients::Agents).await?;
    create_service(world, "late").await?;
    let late = world.wait_for_address("late").await?;
    sleep(FAULT_TIME).await;
    let seen = world.lan.arp_macs(late)?;
    ensure!(seen.is_empty(), "{seen:?} answer for {late}, although all watches are silent");
    let answering = answering_nodes(world, &[web.address])?;
    ensure!(answering[&web.address] == web.owner, "{answering:?} answer for {}", web.address);
    // A watch that stays silent ends after 65 s: see `silent_watch_is_repeated_from_its_last_event` in `observe`.
    drop(silence);
    world.wait_for_announcer(late).await?;
    expect_status(world, &answering_nodes(world, &[web.address, late])?).await
}

async fn agents_back_off_from_an_overloaded_api(scene: &Scene<'_>) -> Result<()> {
    /// An agent has eight watches. With pauses of at least 50, 100, 200, 400, 800 and 1600 ms, each watch sends at most
    /// seven requests within [`FAULT_TIME`]. A write of a status is repeated after a second.
    const MAX_REQUESTS: usize = 8 * 7 + 3;

    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let web = announce(world, "web", PodOn::OtherNode).await?;
    let count = || NODES.iter().map(|node| world.api_requests(node)).collect::<Result<Vec<_>>>();
    let before = count()?;
    let refused = world.refuse_api_requests(ApiClients::All, 429).await?;
    sleep(FAULT_TIME).await;
    let sent: Vec<usize> = count()?.iter().zip(&before).map(|(after, before)| after - before).collect();
    let is_bounded = sent.iter().all(|count| (1..=MAX_REQUESTS).contains(count));
    ensure!(is_bounded, "{sent:?} requests of the agents within {FAULT_TIME:?}, at most {MAX_REQUESTS} each");
    eprintln!("{sent:?} refused requests of the agents within {FAULT_TIME:?}");
    let answering = answering_nodes(world, &[web.address])?;
    ensure!(answering[&web.address] == web.owner, "{answering:?} answer for {}", web.address);
    drop(refused);
    let slow = world.delay_api_answers(ApiClients::All, Duration::from_millis(500))?;
    let mut announced = announce_others(world, &["slow-1", "slow-2", "slow-3"]).await?;
    ensure!(announced.len() == 3, "an address is assigned twice: {announced:?}");
    ensure!(slow.count_affected() > 0, "no answer was slow");
    announced.insert(web.address, web.owner);
    let addresses: Vec<IpAddr> = announced.keys().copied().collect();
    let answering = answering_nodes(world, &addresses)?;
    ensure!(answering == announced, "{answering:?} answer, {announced:?} announced");
    drop(slow);
    expect_status(world, &answering).await
}

async fn status_agrees_with_the_wire_after_lost_writes(scene: &Scene<'_>) -> Result<()> {
    /// Addresses that a node gets, and how the write of its NodeNetwork is lost. An agent repeats a write after 10 s.
    const CHANGES: [(&str, &str, Loss); 2] =
        [("n1", "198.51.100.71/32", Loss::Answer), ("n2", "198.51.100.72/32", Loss::Request)];
    const LATE: Duration = Duration::from_secs(2);

    let world = scene.world;
    world.create_pool("lan", &[POOL]).await?;
    let mut lost_networks = Vec::new();
    for (node, address, loss) in CHANGES {
        let writes = LostWrites { path: "/nodenetworks/", count: 1, loss };
        lost_networks.push(world.lose_api_writes(ApiClients::AgentOn(node), writes)?);
        world.cluster.node(node).output(["ip", "address", "add", address, "dev", "eth0"])?;
    }
    let mut announced = BTreeMap::new();
    for (name, loss) in [("answer", Loss::Answer), ("request", Loss::Request), ("late", Loss::Late(LATE))] {
        let writes = LostWrites { path: "/loadbalancerips/", count: 1, loss };
        let lost = world.lose_api_writes(ApiClients::Agents, writes)?;
        announced.extend(announce_others(world, &[name]).await?);
        ensure!(lost.count_affected() > 0, "{name}: no write was lost");
    }
    // The late write arrives, with an old version.
    sleep(LATE).await;
    let addresses: Vec<IpAddr> = announced.keys().copied().collect();
    expect_status(world, &answering_nodes(world, &addresses)?).await?;
    let networks: Api<NodeNetwork> = Api::all(world.client.clone());
    let expect_networks = async |are_present: bool| {
        wait_until(RECOVERY, "the NodeNetworks to show the addresses of the nodes", async || {
            for (node, address, _) in CHANGES {
                let network = networks.get(node).await?.spec;
                let is_present = network.links.iter().any(|link| link.addresses.iter().any(|it| it == address));
                ensure!(is_present == are_present, "{node} has {:?}", network.links);
            }
            Ok(())
        })
        .await
    };
    expect_networks(true).await?;
    ensure!(lost_networks.iter().all(|lost| lost.count_affected() == 1), "no write of a NodeNetwork was lost");
    for (node, address, _) in CHANGES {
        world.cluster.node(node).output(["ip", "address", "del", address, "dev", "eth0"])?;
    }
    expect_networks(false).await
}

/// The node with the only pod of a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PodOn {
    Owner,
    OtherNode,
}

/// A Service whose address answers.
struct Announced {
    address: IpAddr,
    owner: String,
}

/// The Deployment with one pod on this node.
fn pod_on(node: &str) -> String {
    format!("on-{node}")
}

async fn create_service(world: &World, name: &str) -> Result<()> {
    world.create_service(name, json!({"selector": {"app": pod_on(NODES[0])}})).await.map(drop)
}

/// Creates a Service with its pod on this node, and waits until the pod answers.
async fn announce(world: &World, name: &str, pod: PodOn) -> Result<Announced> {
    create_service(world, name).await?;
    let address = world.wait_for_address(name).await?;
    let owner = world.wait_for_announcer(address).await?;
    let node =
        NODES.into_iter().find(|node| (*node == owner) == (pod == PodOn::Owner)).context("a node for the pod")?;
    let app = pod_on(node);
    world.patch_service(name, json!({"spec": {"selector": {"app": app}}})).await?;
    wait_until(SOON, &format!("the pod on {node} to answer"), async || {
        let answer = world.lan.query_udp(address)?;
        ensure!(answer.pod.starts_with(&app), "{answer:?}");
        Ok(())
    })
    .await?;
    Ok(Announced { address, owner })
}

/// Creates Services, and returns the announcer of each address.
async fn announce_others(world: &World, names: &[&str]) -> Result<BTreeMap<IpAddr, String>> {
    try_join_all(names.iter().map(|name| create_service(world, name))).await?;
    let announcers = names.iter().map(async |name| {
        let address = world.wait_for_address(name).await?;
        anyhow::Ok((address, world.wait_for_announcer(address).await?))
    });
    Ok(try_join_all(announcers).await?.into_iter().collect())
}

/// The MAC addresses that answer for each address.
fn answering_macs(world: &World, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, BTreeSet<String>>> {
    let macs = |address: IpAddr| Ok((address, world.lan.arp_macs(address)?));
    thread::scope(|scope| {
        let threads: Vec<_> = addresses.iter().map(|address| scope.spawn(move || macs(*address))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("an ARP client panicked"))?).collect()
    })
}

/// The node that answers for each address. Fails if no node answers, or two.
fn answering_nodes(world: &World, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, String>> {
    let macs: BTreeMap<String, &str> =
        NODES.iter().filter_map(|node| Some((world.cluster.node(node).mac()?.to_lowercase(), *node))).collect();
    let answering = |(address, seen): (IpAddr, BTreeSet<String>)| {
        let nodes: BTreeSet<_> = seen.iter().map(|mac| macs.get(mac).copied().unwrap_or(mac)).collect();
        let [node] = Vec::from_iter(&nodes)[..] else { return Err(anyhow!("{nodes:?} answer for {address}")) };
        Ok((address, (*node).to_owned()))
    };
    answering_macs(world, addresses)?.into_iter().map(answering).collect()
}

/// Waits until the status of each address names the node that answers, and no other.
async fn expect_status(world: &World, answering: &BTreeMap<IpAddr, String>) -> Result<()> {
    let records: Api<LoadBalancerIP> = Api::all(world.client.clone());
    wait_until(RECOVERY, "the status to agree with the wire", async || {
        for (address, node) in answering {
            let record = records.get(&crds::address::object_name(*address)).await?;
            let announcers = record.status.unwrap_or_default().announcers;
            let named: Vec<String> = announcers.iter().map(|announcer| announcer.node.to_string()).collect();
            ensure!(named == [node.as_str()], "the status of {address} names {named:?}, and {node} answers");
        }
        Ok(())
    })
    .await
}

/// Starts to send requests to an address over UDP.
async fn start_traffic(world: &World, address: IpAddr) -> Result<Traffic> {
    let plan = TryPlan { timeout: ANSWERED, ..TryPlan::new(SocketAddr::new(address, 80), Transport::Udp) };
    TrafficPlan::new([Target { name: "web".to_owned(), plan }]).past_nodes().start(world).await
}

/// Fails if the address had no answer for longer than a takeover may take.
fn check(traffic: Traffic) -> Result<()> {
    let run = traffic.stop()?;
    run.print("fault of the API");
    let bounds = Bounds {
        loss: 1.0,
        slow: usize::MAX,
        tries: 100,
        lateness: Duration::from_secs(1),
        ..Bounds::for_planned_change(TAKEOVER)
    };
    run.verdict(&bounds, Vec::new()).into_result()
}
