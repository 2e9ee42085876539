//! ARP requests and neighbour solicitations from the client, on two LANs.
//!
//! The lab has one LAN. [`add_second_lan`] creates a second one: a bridge in the switch, and a cable `eth1` to every
//! node and to the client, with addresses of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use lab::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// The client's link on each LAN.
pub const LINKS: [&str; 2] = ["eth0", "eth1"];

/// Duration of the wait for neighbour advertisements. Three solicitations are sent meanwhile.
const LISTEN: Duration = Duration::from_millis(600);

/// Adds a second interface, on a second LAN, to every node and the client.
pub fn add_second_lan(world: &World) -> Result<()> {
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

/// The nodes that answer for each of the addresses, on both LANs: `n1` on the first, `n1/eth1` on the second. An
/// unknown MAC address is returned as it is. Sends all requests in parallel.
pub fn answering_nodes(world: &World, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, BTreeSet<String>>> {
    let client = world.cluster.client_host("c1");
    let requests: Vec<_> = addresses.iter().flat_map(|address| LINKS.map(|link| (*address, link))).collect();
    let replies: Vec<Result<BTreeSet<String>>> = std::thread::scope(|scope| {
        let send = |(address, link)| match address {
            IpAddr::V4(address) => arp_replies(&client, link, address),
            IpAddr::V6(address) => ndp_replies(&client, link, address),
        };
        let threads: Vec<_> = requests.iter().map(|request| scope.spawn(move || send(*request))).collect();
        threads.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut found: BTreeMap<IpAddr, BTreeSet<String>> = addresses.iter().map(|one| (*one, BTreeSet::new())).collect();
    for ((address, link), replies) in requests.into_iter().zip(replies) {
        for reply in replies.with_context(|| format!("query {address} on {link}"))? {
            let host = hosts(world).into_iter().find(|host| mac(host, link).is_ok_and(|mac| mac == reply));
            let name = host.map_or_else(|| reply.clone(), |host| host.name().to_owned());
            let name = if link == "eth0" { name } else { format!("{name}/{link}") };
            found.entry(address).or_default().insert(name);
        }
    }
    Ok(found)
}

/// The MAC addresses that answer two broadcast requests within a second.
fn arp_replies(client: &Host, link: &str, address: Ipv4Addr) -> Result<BTreeSet<String>> {
    let mut arping = client.command("arping")?;
    arping.args(["-b", "-c", "2", "-w", "1", "-I", link, &address.to_string()]);
    let output = arping.output().context("run arping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("ARPING"), "arping: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text.split('[').skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_lowercase).collect())
}

/// The MAC addresses in advertisements that answer three multicast solicitations (RFC 4861 §4.3, §4.4).
fn ndp_replies(client: &Host, link: &str, address: Ipv6Addr) -> Result<BTreeSet<String>> {
    let target = address.octets();
    let own: Vec<u8> = mac(client, link)?.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    // Neighbour solicitation; the kernel fills in the checksum. Then the option with the source's link-layer address.
    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend(target);
    solicitation.extend([1, 1]);
    solicitation.extend(own);
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
        let (start, mut sent, mut macs, mut buffer) = (Instant::now(), 0, BTreeSet::new(), [0; 256]);
        while start.elapsed() < LISTEN {
            if start.elapsed() >= LISTEN / 3 * sent {
                socket.send_to(&solicitation, &SocketAddrV6::new(group, 0, 0, 0).into())?;
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
