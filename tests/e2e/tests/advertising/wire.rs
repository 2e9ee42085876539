//! Who answers on the wire: asked from the client, over ARP and by neighbour solicitations, on one of two LANs.
//!
//! The lab has one LAN. [`second_lan`] makes another one beside it, of a bridge in the switch and a cable from every node
//! and the client: `eth1`, with addresses of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use lab::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// The links that are asked on.
pub const LINKS: [&str; 2] = ["eth0", "eth1"];

/// How long to wait for answers to neighbour solicitations, of which three are sent meanwhile.
const LISTEN: Duration = Duration::from_millis(600);

/// Gives every node and the client a second interface, on a LAN of its own.
pub fn second_lan(world: &World) -> Result<()> {
    let switch = world.cluster.switch().netns()?;
    switch.ip(["link add br1 type bridge forward_delay 0 stp_state 0 mcast_snooping 0", "link set br1 up"])?;
    for host in hosts(world) {
        let (own, port) = (host.netns()?, format!("{}-1", host.name()));
        netns::veth((&own, "eth1"), (&switch, &port))?;
        switch.ip([format!("link set {port} master br1 up")])?;
        let last = host.ipv4().octets()[3];
        own.ip([
            format!("link set eth1 address {} up", mac(&host, "eth1")?),
            format!("addr add 198.51.100.{last}/24 dev eth1"),
            format!("addr add 2001:db8:1::{last}/64 dev eth1 nodad"),
        ])?;
    }
    Ok(())
}

/// The nodes, and the client.
fn hosts(world: &World) -> Vec<Host> {
    let node = |n| world.cluster.node(&format!("n{n}"));
    let nodes = (1..=world.cluster.topology().nodes).map(node);
    nodes.chain([world.cluster.client_host("c1")]).collect()
}

/// The MAC address of a host on one of its links.
fn mac(host: &Host, link: &str) -> Result<String> {
    let mac = host.mac().context("the switch has no MAC address")?.to_lowercase();
    Ok(if link == "eth1" { mac.replacen("02:00:00:00", "02:00:00:01", 1) } else { mac })
}

/// Who answers for each of the addresses, on both LANs: `n1` on the first, `n1/eth1` on the second. A MAC address that
/// nobody has is given as it is. All are asked at the same time.
pub fn answering(world: &World, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, BTreeSet<String>>> {
    let client = world.cluster.client_host("c1");
    let questions: Vec<_> = addresses.iter().flat_map(|address| LINKS.map(|link| (*address, link))).collect();
    let answers: Vec<Result<BTreeSet<String>>> = std::thread::scope(|scope| {
        let ask = |(address, link)| match address {
            IpAddr::V4(address) => ask_arp(&client, link, address),
            IpAddr::V6(address) => ask_ndp(&client, link, address),
        };
        let asked: Vec<_> = questions.iter().map(|question| scope.spawn(move || ask(*question))).collect();
        asked.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut found: BTreeMap<IpAddr, BTreeSet<String>> = addresses.iter().map(|one| (*one, BTreeSet::new())).collect();
    for ((address, link), answers) in questions.into_iter().zip(answers) {
        for answer in answers.with_context(|| format!("ask for {address} on {link}"))? {
            let host = hosts(world).into_iter().find(|host| mac(host, link).is_ok_and(|mac| mac == answer));
            let name = host.map_or_else(|| answer.clone(), |host| host.name().to_owned());
            let name = if link == "eth0" { name } else { format!("{name}/{link}") };
            found.entry(address).or_default().insert(name);
        }
    }
    Ok(found)
}

/// The MACs that answer two broadcast questions within a second.
fn ask_arp(client: &Host, link: &str, address: Ipv4Addr) -> Result<BTreeSet<String>> {
    let mut arping = client.command("arping")?;
    arping.args(["-b", "-c", "2", "-w", "1", "-I", link, &address.to_string()]);
    let output = arping.output().context("run arping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("ARPING"), "arping: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text.split('[').skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_lowercase).collect())
}

/// The MACs in advertisements that answer three multicast solicitations (RFC 4861 §4.3, §4.4).
fn ask_ndp(client: &Host, link: &str, address: Ipv6Addr) -> Result<BTreeSet<String>> {
    let target = address.octets();
    let own: Vec<u8> = mac(client, link)?.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    // Neighbour solicitation; the kernel fills in the checksum. Then the option with the source's link-layer address.
    let mut question = vec![135, 0, 0, 0, 0, 0, 0, 0];
    question.extend(target);
    question.extend([1, 1]);
    question.extend(own);
    // The solicited-node group (RFC 4291 §2.7.1).
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(target[13]),
        u16::from_be_bytes([target[14], target[15]]),
    );
    client.run(|| -> Result<BTreeSet<String>> {
        let mut socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.bind_device(Some(link.as_bytes()))?;
        socket.set_multicast_hops_v6(255)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (begun, mut sent, mut macs, mut buffer) = (Instant::now(), 0, BTreeSet::new(), [0; 256]);
        while begun.elapsed() < LISTEN {
            if begun.elapsed() >= LISTEN / 3 * sent {
                socket.send_to(&question, &SocketAddrV6::new(group, 0, 0, 0).into())?;
                sent += 1;
            }
            let Ok(length) = socket.read(&mut buffer) else { continue };
            // Neighbour advertisement for the target, with the option of the target's link-layer address.
            if let [136, 0, _, _, _, _, _, _, rest @ ..] = &buffer[..length]
                && rest.starts_with(&target)
                && let [2, 1, mac @ ..] = &rest[16..]
                && let Some(mac) = mac.get(..6)
            {
                let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                macs.insert(parts.join(":"));
            }
        }
        Ok(macs)
    })?
}
