//! A cable between a host and the switch that passes through this process, because not every kernel has netem.
//!
//! Touches interfaces in the switch's namespace. The host's interface stays as it is, with its carrier:
//!
//! ```text
//!   before:  eth0 === n1 (port of br0)
//!   with:    eth0 === n1 -- socket, queue, socket -- n1-cable === n1-port (port of br0)
//! ```
//!
//! The sockets keep the kernel's metadata about checksums and segmentation (`PACKET_VNET_HDR`), so TCP works with all
//! offloads. VLAN tags are lost.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::stable_hash::splitmix64;
use netns::Namespace;
use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

pub use crate::machine::frame_queue::CablePlan;
use crate::machine::frame_queue::FrameQueue;
use crate::machine::network::BRIDGE;

/// The size of the largest frame before segmentation.
const MAX_FRAME: usize = 1 << 17;

/// The buffer of each socket, for bursts.
const BUFFER: usize = 4 << 20;

/// A thread checks this often whether it must stop.
const STOP_CHECK: Duration = Duration::from_millis(20);

/// An inserted cable. It is removed when it is dropped.
#[must_use = "the cable is removed when it is dropped"]
pub struct Cable {
    switch: Namespace,
    port: String,
    /// Whether the cable is removed, or is about to be.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Cable {
    /// Puts the cable between the host of this port and the switch.
    pub(crate) fn insert(switch: &Namespace, port: &str, plan: CablePlan) -> Result<Self> {
        let [end, new_port] = interface_names(port);
        switch.ip([
            format!("link add {end} type veth peer name {new_port}"),
            format!("link set {end} up"),
            format!("link set {new_port} up"),
        ])?;
        // From here on, a failure removes the new interfaces.
        let mut cable =
            Self { switch: switch.clone(), port: port.to_owned(), stop: Arc::default(), threads: Vec::new() };
        switch.ip([format!("link set {port} nomaster"), format!("link set {new_port} master {BRIDGE}")])?;
        let open = || Ok::<_, io::Error>([open_socket(port)?, open_socket(&end)?]);
        let [host, far] = switch.run(open).context("open packet sockets")?;
        let back = CablePlan { seed: splitmix64(plan.seed), ..plan };
        let (host_out, far_out) = (host.try_clone()?, far.try_clone()?);
        for (plan, source, target) in [(plan, host, far_out), (back, far, host_out)] {
            let stop = Arc::clone(&cable.stop);
            let run = move || carry(&stop, source, &target, FrameQueue::new(plan));
            cable.threads.push(std::thread::Builder::new().name(format!("cable-{port}")).spawn(run)?);
        }
        Ok(cable)
    }

    /// Removes the cable. The frames in it are lost.
    pub fn remove(mut self) -> Result<()> {
        self.take_out()
    }

    fn take_out(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let ended = threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a cable panicked")));
        let [end, _] = interface_names(&self.port);
        self.switch.ip([format!("link del {end}"), format!("link set {} master {BRIDGE}", self.port)])?;
        ended
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let is_inserted = !self.stop.load(Ordering::Relaxed);
        if is_inserted && let Err(error) = self.take_out() {
            eprintln!("the cable of {} was not removed: {error:#}", self.port);
        }
    }
}

/// The interfaces of a cable: its end at the sockets, and the new port of the bridge.
fn interface_names(port: &str) -> [String; 2] {
    [format!("{port}-cable"), format!("{port}-port")]
}

/// Carries frames in one direction until the cable is removed.
fn carry(stop: &AtomicBool, mut source: Socket, target: &Socket, mut queue: FrameQueue) {
    let (start, mut frame) = (Instant::now(), vec![0; MAX_FRAME]);
    while !stop.load(Ordering::Relaxed) {
        let now = start.elapsed();
        while let Some(frame) = queue.pop_due(now) {
            // A full interface loses the frame.
            let _ = target.send(&frame);
        }
        let wait = queue.next_due().map_or(STOP_CHECK, |due| due.saturating_sub(now));
        if source.set_read_timeout(Some(wait.clamp(Duration::from_millis(1), STOP_CHECK))).is_err() {
            continue;
        }
        match source.read(&mut frame) {
            Ok(length) => queue.push(start.elapsed(), &frame[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The interface is down.
            Err(_) => std::thread::sleep(STOP_CHECK),
        }
    }
}

/// A socket for all frames that arrive at an interface in the network namespace of this thread.
fn open_socket(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), None)?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let on: libc::c_int = 1;
        let length = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the descriptor is open, and the kernel reads `length` bytes of `on`.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(&on).cast(), length)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // The kernel may reduce the size.
    socket.set_recv_buffer_size(BUFFER)?;
    let index = std::ffi::CString::new(interface).map(|name| {
        // SAFETY: the name ends with a zero byte, and the kernel only reads it.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    })?;
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&all_frames_of(index))?;
    Ok(socket)
}

/// The address of all protocols on an interface.
fn all_frames_of(index: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all bytes of the storage are initialised, it is large enough and aligned for any address, and a
    // sockaddr_ll is plain data.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use netns::veth;

    use super::*;

    const SERVER: &str = "192.0.2.2:7";

    /// If no answer arrives within this time, none will arrive.
    const SILENCE: Duration = Duration::from_millis(200);

    /// A switch with the hosts n1 (192.0.2.1) and n2 (192.0.2.2).
    fn network() -> Result<[Namespace; 3]> {
        let [switch, a, b] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
        switch.ip([format!("link add {BRIDGE} type bridge forward_delay 0"), format!("link set {BRIDGE} up")])?;
        for (host, port, address) in [(&a, "n1", "192.0.2.1"), (&b, "n2", "192.0.2.2")] {
            veth((host, "eth0"), (&switch, port))?;
            switch.ip([format!("link set {port} master {BRIDGE} up")])?;
            host.ip(["link set eth0 up".to_owned(), format!("addr add {address}/24 dev eth0")])?;
        }
        Ok([switch, a, b])
    }

    /// Sends numbers from `a` to `b`, and returns those that arrive.
    fn send_numbers(a: &Namespace, b: &Namespace, count: u8) -> Result<Vec<u8>> {
        let receiver = b.run(|| UdpSocket::bind(SERVER))?;
        let sender = a.run(|| UdpSocket::bind("192.0.2.1:0"))?;
        receiver.set_read_timeout(Some(SILENCE))?;
        for number in 0..count {
            sender.send_to(&[number], SERVER)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut received, mut buffer) = (Vec::new(), [0; 16]);
        while receiver.recv(&mut buffer).is_ok() {
            received.push(buffer[0]);
        }
        Ok(received)
    }

    #[test]
    fn a_cable_has_its_faults_until_it_is_removed() -> Result<()> {
        let [switch, a, b] = network()?;
        let count_interfaces =
            || b.run(|| std::fs::read_to_string("/proc/self/net/dev")).map(|text| text.lines().count());
        let interfaces = count_interfaces()?;
        assert_eq!(send_numbers(&a, &b, 3)?, [0, 1, 2], "before");

        let plan = CablePlan { delay: Duration::from_millis(30), duplicated: 100, ..CablePlan::default() };
        let cable = Cable::insert(&switch, "n2", plan)?;
        let start = Instant::now();
        assert_eq!(send_numbers(&a, &b, 2)?, [0, 0, 1, 1], "duplicated");
        assert!(start.elapsed() > plan.delay + SILENCE, "delayed: {:?}", start.elapsed());
        cable.remove()?;

        let plan =
            CablePlan { reordered: 30, reorder_delay: Duration::from_millis(20), seed: 5, ..CablePlan::default() };
        let cable = Cable::insert(&switch, "n2", plan)?;
        let mut numbers = send_numbers(&a, &b, 100)?;
        assert!(!numbers.is_sorted(), "reordered");
        numbers.sort_unstable();
        assert_eq!(numbers, Vec::from_iter(0..100), "complete");
        drop(cable);
        assert_eq!(send_numbers(&a, &b, 3)?, [0, 1, 2], "after");
        assert_eq!(count_interfaces()?, interfaces, "nothing is left");
        Ok(())
    }

    /// The frames of the stream are not segmented yet and lack their checksums, because the kernel would do both later.
    #[test]
    fn a_cable_carries_streams() -> Result<()> {
        let [switch, a, b] = network()?;
        let _cable = Cable::insert(&switch, "n1", CablePlan::default())?;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let listener = b.run(|| TcpListener::bind(SERVER))?;
        let received = std::thread::spawn(move || {
            let mut received = Vec::new();
            listener.accept()?.0.read_to_end(&mut received)?;
            Ok::<_, io::Error>(received)
        });
        a.run(|| TcpStream::connect(SERVER))?.write_all(&sent)?;
        let received = received.join().expect("the receiver does not panic")?;
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
        Ok(())
    }
}
