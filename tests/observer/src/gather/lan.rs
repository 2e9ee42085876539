//! A host on the LAN that sends requests for all load-balancer addresses all the time. It receives the answers, and all
//! unsolicited announcements: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! The host is a network namespace with a cable to the cluster's switch. Both end with the thread. The kernel of the
//! host has no address: one packet socket sends and receives.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crds::MacAddr;
use netns::{Namespace, veth};
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use crate::checks::Fact;
use crate::frame::{FILTER, Requester, parse};
use crate::gather::Shared;

/// The port of the switch.
const PORT: &str = "observer";

/// The bridge of the LAN.
const BRIDGE: &str = "br0";

/// The host's own addresses, which no host of the lab has.
const REQUESTER: Requester = Requester {
    mac: MacAddr(2, 0, 0, 0, 2, 0x54),
    ipv4: Ipv4Addr::new(192, 0, 2, 254),
    ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x254),
};

/// Interval between two requests for one address.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most addresses to request in one interval.
const MAX_ADDRESSES: usize = 64;

/// The socket's buffer, for bursts of unsolicited announcements.
const BACKLOG: usize = 1 << 20;

/// Starts the host. The thread ends when `shared` is stopped.
pub fn start(shared: Arc<Shared>, switch: &Namespace) -> Result<JoinHandle<()>> {
    let host = Namespace::new().context("make a network namespace")?;
    // IPv6 is disabled, because the kernel would send frames of its own.
    host.sysctl("ipv6.conf.default.disable_ipv6", "1")?;
    veth((&host, "eth0"), (switch, PORT)).context("plug the observer in")?;
    switch.ip([format!("link set {PORT} master {BRIDGE} up")])?;
    host.ip([format!("link set eth0 address {} up", REQUESTER.mac)])?;
    let socket = host.run(open_socket).context("open a packet socket")?;
    let run = move || {
        // The namespace lasts as long as the thread.
        let _host = host;
        run(&shared, socket);
    };
    std::thread::Builder::new().name("observer-lan".to_owned()).spawn(run).context("start a thread")
}

fn run(shared: &Shared, mut socket: Socket) {
    let (mut next, mut frame) = (Instant::now(), [0; 128]);
    while !shared.is_stopped() {
        let late = next.elapsed();
        if Instant::now() >= next {
            send_requests(shared, &socket);
            shared.add(Fact::Delay(late));
            next = Instant::now() + INTERVAL;
        }
        let left = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if socket.set_read_timeout(Some(left)).is_err() {
            continue;
        }
        let Ok(length) = socket.read(&mut frame) else { continue };
        if let Some(statement) = parse(&frame[..length]) {
            shared.add(Fact::Statement(statement));
        }
    }
}

fn send_requests(shared: &Shared, socket: &Socket) {
    let addresses = shared.checks().addresses_to_request(shared.now());
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        // If the queue is full, the next request follows soon.
        let _ = socket.send(&REQUESTER.request(address));
    }
}

/// A socket for all frames of `eth0` in the network namespace of this thread.
fn open_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), None)?;
    let filter = FILTER.map(|(code, if_true, if_false, operand)| SockFilter::new(code, if_true, if_false, operand));
    socket.attach_filter(&filter)?;
    // The kernel may reduce the size.
    socket.set_recv_buffer_size(BACKLOG)?;
    // SAFETY: the name ends with a zero byte, and the kernel only reads it.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&link_address(index))?;
    Ok(socket)
}

/// The address of all protocols on a link.
fn link_address(link: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all bytes of the storage are initialised, it is large enough and aligned for any address, and a
    // sockaddr_ll is plain data.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Checks;
    use crate::checks::objects::ServiceFacts;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A Service that shows this address, so that the observer requests it.
    fn service(address: &str) -> ServiceFacts {
        ServiceFacts {
            uid: "u".to_owned(),
            key: "default/web".to_owned(),
            is_ending: false,
            is_ours: true,
            is_shared: false,
            addresses: [address.parse().expect("an address")].into(),
            request: String::new(),
        }
    }

    #[test]
    fn a_real_host_answers_the_requests() -> Result<()> {
        for (address, network) in [("192.0.2.200", "192.0.2.200/24"), ("2001:db8::200", "2001:db8::200/64")] {
            let (switch, host) = (Namespace::new()?, Namespace::new()?);
            switch.ip([format!("link add {BRIDGE} type bridge forward_delay 0"), format!("link set {BRIDGE} up")])?;
            veth((&host, "eth0"), (&switch, "host"))?;
            switch.ip([format!("link set host master {BRIDGE} up")])?;
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.ip(["link set eth0 up".to_owned(), format!("addr add {network} dev eth0 {nodad}")])?;
            let shared = Arc::new(Shared::new(Checks::default()));
            shared.add(Fact::Service(service(address)));
            let thread = start(Arc::clone(&shared), &switch)?;
            let begun = Instant::now();
            while shared.checks().frame_counts()[0] < 3 {
                anyhow::ensure!(begun.elapsed() < LIMIT, "{address}: {:?}", shared.checks().frame_counts());
                std::thread::sleep(Duration::from_millis(10));
            }
            shared.stop();
            thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        }
        Ok(())
    }
}
