//! Each injected fault has its documented effect, and no other.

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{CablePlan, Cluster, Direction, Host, KubeProxy, Signal, Topology, wait_until};
use support::{ANSWER, SILENCE, SOON, addresses, wait_for_ready_status, whoami};

#[tokio::test]
async fn faults_are_silent_complete_and_reversible() -> Result<()> {
    let topology = Topology {
        nodes: 2,
        light_nodes: 1,
        clients: 2,
        kube_proxy: KubeProxy::None,
        node_monitor_grace: Duration::from_secs(4),
        ..Topology::default()
    };
    let cluster = Cluster::start("lab-faults", &topology).await?;
    let (n1, n2, l1, c1) = (cluster.node("n1"), cluster.node("n2"), cluster.node("l1"), cluster.client_host("c1"));
    cluster.apply(&(whoami("host", "n1", ", hostNetwork: true") + &whoami("pod", "n1", "")))?;
    let host = addresses(&cluster, "host").await?;
    let pod = addresses(&cluster, "pod").await?;
    let answers = |server: SocketAddr| c1.query_tcp(server, ANSWER);
    let silent = |server: SocketAddr| ensure_silent(c1.query_tcp(server, SILENCE));
    answers(host[0])?;

    // A cut in either direction stops a connection; the carrier stays, and the other hosts are not affected.
    for direction in [Direction::In, Direction::Out, Direction::Both] {
        cluster.cut("n1", direction)?;
        silent(host[0])?;
        silent(host[1])?;
        assert!(n1.output(["cat", "/sys/class/net/eth0/carrier"])?.starts_with('1'), "{direction:?}");
        ensure_refused(c1.query_tcp((n2.ipv4(), 8080).into(), ANSWER))?;
        cluster.heal("n1")?;
        answers(host[0])?;
        answers(host[1])?;
    }

    // A cut of frames to n1 does not affect frames from n1.
    cluster.cut("n1", Direction::In)?;
    assert_eq!(send_datagram(&n1, &c1)?, "from 192.0.2.11");
    ensure_silent_udp(&c1, &n1)?;
    cluster.heal("n1")?;

    check_faults_of_the_switch(&cluster, host[0])?;

    // While the processes are frozen (all of the host, or those that match), the kernel accepts a connection, but no
    // process answers.
    cluster.freeze("n1")?;
    silent(host[0])?;
    cluster.thaw("n1")?;
    answers(host[0])?;
    n1.signal("/whoami", Signal::SIGSTOP)?;
    silent(host[0])?;
    n1.signal("/whoami", Signal::SIGCONT)?;
    answers(host[0])?;

    check_restart_of_api_server(&cluster, &c1, host[0]).await?;
    check_agent_of_light_node(&cluster, &l1, &c1).await?;

    // Power off: only the disk is left, and the cluster notices after its grace time.
    for name in ["n1", "l1"] {
        cluster.power_off(name)?;
        cluster.power_off(name)?;
    }
    assert!(n1.processes("").is_empty() && n1.netns().is_err() && !n1.is_up());
    let error = n1.output(["true"]).expect_err("n1 is off");
    assert!(error.to_string().contains("lab power-on lab-faults n1"), "{error}");
    silent(host[0])?;
    wait_for_ready_status(&cluster, "n1", "Unknown").await?;
    wait_for_ready_status(&cluster, "l1", "Unknown").await?;

    // Power on: the node is Ready and its pods answer again.
    for name in ["n1", "l1"] {
        cluster.power_on(name)?;
    }
    cluster.wait_ready(SOON).await?;
    wait_until(SOON, "the pod on the host network to be back", async || c1.query_tcp(host[0], ANSWER)).await?;
    wait_for_pod(&cluster, &n2, pod.len()).await?;
    cluster.remove()
}

/// Waits until the pod answers a node, and has an address of each of its families again.
async fn wait_for_pod(cluster: &Cluster, n2: &Host, families: usize) -> Result<()> {
    wait_until(SOON, "the pod to be back", async || {
        let servers = addresses(cluster, "pod").await?;
        let answer = n2.query_tcp(servers[0], ANSWER)?;
        ensure!(answer.pod == "pod" && servers.len() == families, "{answer:?}");
        Ok(())
    })
    .await
}

/// Checks losses, cut pairs, blocked groups and ports without a carrier. `server` is on n1.
fn check_faults_of_the_switch(cluster: &Cluster, server: SocketAddr) -> Result<()> {
    let (n1, n2, c1) = (cluster.node("n1"), cluster.node("n2"), cluster.client_host("c1"));
    let answers = |host: &Host| host.query_tcp(server, ANSWER);
    let silent = |host: &Host| ensure_silent(host.query_tcp(server, SILENCE));

    // A loss of all frames, in one direction and in both.
    cluster.lose("n1", Direction::In, 100.0)?;
    assert_eq!(send_datagram(&n1, &c1)?, "from 192.0.2.11");
    silent(&c1)?;
    cluster.lose("n1", Direction::Both, 100.0)?;
    silent(&c1)?;
    cluster.lose("n1", Direction::Both, 0.0)?;
    answers(&c1)?;

    // A pair: a third host reaches both.
    cluster.cut_pair("n2", "n1")?;
    cluster.cut_pair("n1", "n2")?;
    silent(&n2)?;
    answers(&c1)?;
    ensure_refused(c1.query_tcp((n2.ipv4(), 8080).into(), ANSWER))?;
    cluster.heal_pair("n1", "n2")?;
    cluster.heal_pair("n1", "n2")?;
    answers(&n2)?;

    // One group: other groups and unicast pass.
    let groups = [Ipv4Addr::new(239, 1, 2, 3), Ipv4Addr::new(239, 1, 2, 4)];
    let receive = || groups.map(|group| send_to_group(&n1, &n2, group).is_ok());
    assert_eq!(receive(), [true, true]);
    cluster.block_group("01:00:5e:01:02:03")?;
    assert_eq!(receive(), [false, true]);
    answers(&c1)?;
    cluster.unblock_group("01:00:5e:01:02:03")?;
    assert_eq!(receive(), [true, true]);

    // Ports without a carrier, and a switch that has forgotten all addresses.
    let carriers = || [&n1, &n2].map(|host| host.output(["cat", "/sys/class/net/eth0/carrier"]).unwrap_or_default());
    cluster.set_carrier(["n1", "c1"], false)?;
    assert_eq!(carriers(), ["0\n", "1\n"]);
    silent(&n2)?;
    cluster.flush_fdb()?;
    cluster.set_carrier(["n1", "c1"], true)?;
    assert_eq!(carriers(), ["1\n", "1\n"]);
    answers(&c1)?;
    answers(&n2)?;

    // A cable with a delay, in both directions.
    let delay = Duration::from_millis(100);
    let cable = cluster.insert_cable("n1", CablePlan { delay, ..CablePlan::default() })?;
    let start = Instant::now();
    answers(&c1)?;
    assert!(start.elapsed() > 4 * delay, "two round trips took {:?}", start.elapsed());
    cable.remove()?;
    answers(&c1)?;
    Ok(())
}

/// Sends a datagram from one host to a group that another has joined, and fails if it does not arrive.
fn send_to_group(from: &Host, to: &Host, group: Ipv4Addr) -> Result<()> {
    let receiver = to.run(|| UdpSocket::bind((group, 9)))??;
    receiver.join_multicast_v4(&group, &to.ipv4())?;
    receiver.set_read_timeout(Some(SILENCE))?;
    let sender = from.run(|| UdpSocket::bind((from.ipv4(), 0)))??;
    sender.send_to(b"?", (group, 9))?;
    receiver.recv(&mut [0; 16])?;
    Ok(())
}

/// Checks that the API server can end and start again without an effect on pods.
async fn check_restart_of_api_server(cluster: &Cluster, c1: &Host, server: SocketAddr) -> Result<()> {
    let api = cluster.control_plane().process("kube-apiserver");
    api.kill()?;
    cluster.kubectl(["get", "--raw", "/readyz", "--request-timeout", "1s"]).expect_err("the API server is dead");
    c1.query_tcp(server, ANSWER)?;
    api.start()?;
    cluster.wait_for_api(SOON).await
}

/// Checks that a light node is Ready, and runs an agent as a plain process.
async fn check_agent_of_light_node(cluster: &Cluster, l1: &Host, c1: &Host) -> Result<()> {
    wait_for_ready_status(cluster, "l1", "True").await?;
    let agent = l1.spawn("agent", Command::new("target/lab/bin/whoami").current_dir("/"));
    assert!(agent.is_err(), "a daemon can't have a relative path");
    let binary = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/bin/whoami");
    let agent = l1.spawn("agent", Command::new(binary).arg("7000").env("POD_NAME", "agent"))?;
    let server = (l1.ipv4(), 7000).into();
    wait_until(SOON, "the agent to answer", async || c1.query_tcp(server, ANSWER)).await?;
    agent.freeze()?;
    ensure_silent(c1.query_tcp(server, SILENCE))?;
    agent.thaw()?;
    assert_eq!(c1.query_tcp(server, ANSWER)?.pod, "agent");
    agent.kill()?;
    assert!(!agent.is_running());
    ensure_refused(c1.query_tcp(server, ANSWER))?;
    agent.start()?;
    wait_until(SOON, "the agent to answer as before", async || {
        ensure!(c1.query_tcp(server, ANSWER)?.pod == "agent");
        Ok(())
    })
    .await
}

/// Succeeds if there was no answer within the time, and no refusal.
fn ensure_silent<T: std::fmt::Debug>(answer: Result<T>) -> Result<()> {
    let Err(error) = answer else { anyhow::bail!("there was an answer: {answer:?}") };
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(matches!(kind, Some(std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)), "{error:#}");
    Ok(())
}

/// Succeeds if the server's kernel refused.
fn ensure_refused<T: std::fmt::Debug>(answer: Result<T>) -> Result<()> {
    let Err(error) = answer else { anyhow::bail!("there was an answer: {answer:?}") };
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}

/// Sends a datagram from one host to another, and returns its source as the receiver sees it.
fn send_datagram(from: &lab::Host, to: &lab::Host) -> Result<String> {
    let receiver = to.run(|| UdpSocket::bind((to.ipv4(), 9)))??;
    receiver.set_read_timeout(Some(ANSWER))?;
    // The sender may be unable to receive an ARP reply, so this sets its neighbour entry.
    let mac = to.mac().expect("a client has a MAC address");
    from.output(["ip", "neigh", "replace", &to.ipv4().to_string(), "lladdr", &mac, "dev", "eth0", "nud", "permanent"])?;
    from.output(["bash", "-c", &format!("echo > /dev/udp/{}/9", to.ipv4())])?;
    let (_, source) = receiver.recv_from(&mut [0; 16])?;
    from.output(["ip", "neigh", "del", &to.ipv4().to_string(), "dev", "eth0"])?;
    Ok(format!("from {}", source.ip()))
}

fn ensure_silent_udp(from: &lab::Host, to: &lab::Host) -> Result<()> {
    ensure_silent(from.query_udp((to.ipv4(), 8080).into(), SILENCE))
}
