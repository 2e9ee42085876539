//! The least that anything can cost on this LAN: threads that send the frames of agents by packet sockets in the same network
//! namespaces, and do nothing else.
//!
//! - [`hellos`]: one sends the Hello of an agent again and again, as often as the agent does, and otherwise sleeps
//! - [`announcements`]: one on each node announces thousands of addresses, each in one frame, all at once
//!
//! They hear nobody, decide nothing and seal nothing. What is left is the kernel's: to wake, and to carry frames through the
//! switch into the sockets of all hosts, which on this LAN the sender pays for. Whoever gets a Hello of theirs has had it
//! before, and drops it; the addresses are nobody's.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bench::sniffer::{MacAddr, Sniffer};
use bench::usage;
use lab::Host;
use socket2::{Domain, Protocol, Socket, Type};
use speaker::Config;
use speaker::os::socket::Port;
use speaker::wire::arp::gratuitous_request;
use speaker::wire::frame::Channel;

/// The EtherType of IPv4.
const IPV4: u16 = 0x0800;

/// The group of the speakers, as an Ethernet address (docs/guide/announcing.md).
const GROUP: MacAddr = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x8c];

/// The first of the addresses that are announced: of what RFC 2544 sets aside for benchmarks, and in no pool.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// How long to wait for a Hello: many intervals.
const PATIENCE: Duration = Duration::from_secs(5);

/// The share of a core, in percent, that the Hellos of the agent with this MAC cost by themselves, sent from its node for so long.
/// `client` is who overhears one of them first.
pub fn hellos(node: &Host, mac: MacAddr, client: &Host, time: Duration) -> Result<f64> {
    let hello = overheard(client, mac)?;
    let link = eth0(node)?;
    let port = node.run(|| Port::open(Channel::Hello))?.context("a packet socket")?;
    let sends = move || -> Result<f64> {
        let (begun, before) = (Instant::now(), usage::of_this_thread()?);
        let mut due = begun;
        while begun.elapsed() < time {
            ensure!(
                port.send([(link, hello.as_slice())]).context("send a Hello")? == 1,
                "there is no room for a Hello"
            );
            due += Config::INTERVAL;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(usage::percent(usage::of_this_thread()?.saturating_sub(before), begun.elapsed()))
    };
    match thread::Builder::new().name("floor".into()).spawn(sends)?.join() {
        Ok(share) => share,
        Err(_) => bail!("the sender panicked"),
    }
}

/// How long it takes until `client` has heard of `count` addresses from these nodes, who announce as many each, from the first to
/// the last.
pub fn announcements(nodes: &[(Host, MacAddr)], count: u32, client: &Host) -> Result<Duration> {
    let each = count / nodes.len() as u32;
    let mut senders = Vec::new();
    for (at, (node, mac)) in (0..).zip(nodes) {
        let (link, port) = (eth0(node)?, node.run(|| Port::open(Channel::Arp))?.context("a packet socket")?);
        let addresses = (at * each..(at + 1) * each).map(|n| Ipv4Addr::from_bits(FIRST.to_bits() + n));
        let frames: Vec<Vec<u8>> =
            addresses.map(|address| gratuitous_request(crds::MacAddr::from(*mac), address)).collect();
        senders.push((port, link, frames));
    }
    let sniffer = Sniffer::begin(client)?;
    thread::scope(|scope| {
        let send = |(port, link, frames): &(Port, u32, Vec<Vec<u8>>)| -> Result<()> {
            let mut left = frames.as_slice();
            while !left.is_empty() {
                match port.send(left.iter().map(|frame| (*link, frame.as_slice()))) {
                    Ok(sent) => left = &left[sent..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                    Err(error) => return Err(error).context("announce addresses"),
                }
            }
            Ok(())
        };
        let threads: Vec<_> = senders.iter().map(|sender| scope.spawn(move || send(sender))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a sender panicked"))?)
    })?;
    // The client has all that was sent in its socket by now, and reads it.
    thread::sleep(PATIENCE / 10);
    let heard = sniffer.end()?;
    let ours = heard.iter().filter(|one| one.address >= FIRST && one.address.octets()[..2] == FIRST.octets()[..2]);
    let at: BTreeMap<Ipv4Addr, Duration> = ours.map(|one| (one.address, one.at)).collect();
    ensure!(at.len() as u32 == each * nodes.len() as u32, "{} of {count} addresses were heard of", at.len());
    let (first, last) = (at.values().min(), at.values().max());
    Ok(last.zip(first).map_or(Duration::ZERO, |(last, first)| *last - *first))
}

/// The number of the link `eth0` on a host.
fn eth0(host: &Host) -> Result<u32> {
    let shown = host.output(["ip", "-o", "link", "show", "eth0"])?;
    shown.split(':').next().and_then(|index| index.parse().ok()).context("the index of eth0")
}

/// A Hello from `mac`, as `host` hears it.
fn overheard(host: &Host, mac: MacAddr) -> Result<Vec<u8>> {
    let protocol = Protocol::from(i32::from(IPV4.to_be()));
    let socket = host.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))?.context("a packet socket")?;
    socket.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
    let (begun, mut frame) = (Instant::now(), [0; 2048]);
    loop {
        ensure!(begun.elapsed() < PATIENCE, "no Hello from {mac:x?} within {PATIENCE:?}");
        let length = std::io::Read::read(&mut &socket, &mut frame).context("wait for a Hello")?;
        if length > 14 && frame[..6] == GROUP && frame[6..12] == mac {
            return Ok(frame[..length].to_vec());
        }
    }
}
