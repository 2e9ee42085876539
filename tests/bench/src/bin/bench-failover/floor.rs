//! The least possible cost on this LAN: threads that only send the frames of agents, through packet sockets in the same
//! network namespaces.
//!
//! - [`hello_cpu_percent`]: one thread sends the Hello of an agent as often as the agent does, and sleeps otherwise
//! - [`time_to_announce`]: one thread per node announces thousands of addresses at once, each in one frame
//!
//! The threads receive, decide and seal nothing. The remaining work is the kernel's: to wake the thread, and to carry
//! frames through the switch into the sockets of all hosts, which is charged to the sender on this LAN. Agents drop
//! these Hellos as repetitions. No host has the announced addresses.

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
use speaker::os::socket::PacketSocket;
use speaker::wire::arp::gratuitous_request;
use speaker::wire::frame::{Channel, FrameClass};

/// The EtherType of IPv4.
const IPV4: u16 = 0x0800;

/// The group of the speakers, as an Ethernet address (docs/guide/announcing-requirements.md).
const GROUP: MacAddr = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x8c];

/// The first announced address: in the range of RFC 2544 for benchmarks, outside of all pools.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// The longest time to wait for a Hello: many intervals.
const PATIENCE: Duration = Duration::from_secs(5);

/// The CPU time that only the Hellos of the agent with this MAC address take, in percent of a core. They are sent from
/// its node for `time`. `client` captures one of them first.
pub fn hello_cpu_percent(node: &Host, mac: MacAddr, client: &Host, time: Duration) -> Result<f64> {
    let hello = capture_hello(client, mac)?;
    let link = index_of_eth0(node)?;
    let port = node.run(|| PacketSocket::open(Channel::Hello, FrameClass::All))?.context("a packet socket")?;
    let sender = Sender { port, link, frames: vec![hello] };
    match thread::Builder::new().name("floor".into()).spawn(move || sender.send_hellos(time))?.join() {
        Ok(share) => share,
        Err(_) => bail!("the sender panicked"),
    }
}

/// Frames to send through a socket on a link.
struct Sender {
    port: PacketSocket,
    link: u32,
    frames: Vec<Vec<u8>>,
}

impl Sender {
    /// Sends the only frame once per Hello interval. Returns the CPU time of this thread in percent of a core.
    fn send_hellos(&self, time: Duration) -> Result<f64> {
        let (begun, before) = (Instant::now(), usage::of_this_thread()?);
        let mut due = begun;
        while begun.elapsed() < time {
            ensure!(self.send(&self.frames).context("send a Hello")? == 1, "there is no room for a Hello");
            due += Config::INTERVAL;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(usage::percent(usage::of_this_thread()?.saturating_sub(before), begun.elapsed()))
    }

    /// Sends all frames as fast as the socket takes them.
    fn send_all(&self) -> Result<()> {
        let mut left = self.frames.as_slice();
        while !left.is_empty() {
            match self.send(left) {
                Ok(sent) => left = &left[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error).context("announce addresses"),
            }
        }
        Ok(())
    }

    fn send(&self, frames: &[Vec<u8>]) -> std::io::Result<usize> {
        self.port.send(frames.iter().map(|frame| (self.link, frame.as_slice())))
    }
}

/// The time from the first to the last of `count` announcements at `client`. Each of these nodes announces an equal
/// part of the addresses.
pub fn time_to_announce(nodes: &[(Host, MacAddr)], count: u32, client: &Host) -> Result<Duration> {
    let each = count / nodes.len() as u32;
    let mut senders = Vec::new();
    for (at, (node, mac)) in (0..).zip(nodes) {
        let link = index_of_eth0(node)?;
        let port = node.run(|| PacketSocket::open(Channel::Arp, FrameClass::All))?.context("a packet socket")?;
        let addresses = (at * each..(at + 1) * each).map(|n| Ipv4Addr::from_bits(FIRST.to_bits() + n));
        let frames: Vec<Vec<u8>> =
            addresses.map(|address| gratuitous_request(crds::MacAddr::from(*mac), address)).collect();
        senders.push(Sender { port, link, frames });
    }
    let sniffer = Sniffer::begin(client)?;
    thread::scope(|scope| {
        let threads: Vec<_> = senders.iter().map(|sender| scope.spawn(move || sender.send_all())).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a sender panicked"))?)
    })?;
    // All frames are in the client's socket now. The sniffer still has to read them.
    thread::sleep(PATIENCE / 10);
    let announcements = sniffer.end()?;
    let ours =
        announcements.iter().filter(|one| one.address >= FIRST && one.address.octets()[..2] == FIRST.octets()[..2]);
    let times: BTreeMap<Ipv4Addr, Duration> = ours.map(|one| (one.address, one.at)).collect();
    ensure!(times.len() as u32 == each * nodes.len() as u32, "{} of {count} addresses were announced", times.len());
    let (first, last) = (times.values().min(), times.values().max());
    Ok(last.zip(first).map_or(Duration::ZERO, |(last, first)| *last - *first))
}

/// The index of the link `eth0` on a host.
fn index_of_eth0(host: &Host) -> Result<u32> {
    let shown = host.output(["ip", "-o", "link", "show", "eth0"])?;
    shown.split(':').next().and_then(|index| index.parse().ok()).context("the index of eth0")
}

/// Waits for a Hello from `mac` at `host`.
fn capture_hello(host: &Host, mac: MacAddr) -> Result<Vec<u8>> {
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
