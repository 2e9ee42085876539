//! Gratuitous ARP as a host on the LAN receives it.
//!
//! A packet socket and a thread in the host's network namespace. A host uses the new owner from the time it receives
//! the frame: Linux and others replace their neighbour entry at once.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// The EtherType of ARP.
const ARP: u16 = 0x0806;

/// Ethernet, then ARP for IPv4 over Ethernet.
const LENGTH: usize = 14 + 28;

/// Size of the receive buffer in bytes, as far as the kernel allows: thousands of frames in a burst.
const BACKLOG: usize = 8 << 20;

/// A MAC address.
pub type MacAddr = [u8; 6];

/// A gratuitous ARP that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// When it was received, since the sniffer began.
    pub at: Duration,
    /// The address.
    pub address: Ipv4Addr,
    /// The MAC address that announces it.
    pub mac: MacAddr,
}

/// The address and the MAC of a gratuitous ARP; `None` if the frame is anything else (RFC 826; RFC 5944 §4.6: sender
/// and target address are the same).
pub fn gratuitous(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let arp = frame.get(14..LENGTH)?;
    // Ethernet, IPv4, and the lengths of their addresses.
    let is_arp = frame[12..14] == ARP.to_be_bytes() && arp[..6] == [0, 1, 8, 0, 6, 4];
    let (mac, sender, target) = (&arp[8..14], &arp[14..18], &arp[24..28]);
    let address = <[u8; 4]>::try_from(sender).ok()?;
    (is_arp && sender == target && address != [0; 4]).then_some((address.into(), mac.try_into().ok()?))
}

/// How often the MAC address of an announced address changed.
pub fn changes(announcements: &[Announcement]) -> usize {
    let mut last = BTreeMap::new();
    let changed = |one: &&Announcement| last.insert(one.address, one.mac).is_some_and(|before| before != one.mac);
    announcements.iter().filter(changed).count()
}

/// When each address was first announced by another MAC address than `before`, and by which.
pub fn first_by_others(announcements: &[Announcement], before: MacAddr) -> BTreeMap<Ipv4Addr, (Duration, MacAddr)> {
    let mut first = BTreeMap::new();
    for one in announcements.iter().filter(|one| one.mac != before) {
        first.entry(one.address).or_insert((one.at, one.mac));
    }
    first
}

/// A running sniffer.
pub struct Sniffer {
    begun: Instant,
    over: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<Announcement>>>,
}

impl Sniffer {
    /// Starts to listen on this host.
    ///
    /// # Errors
    /// If the socket cannot be opened: it needs root.
    pub fn begin(host: &Host) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ARP.to_be()));
        let socket = host.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))?.context("a packet socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).context("set a timeout")?;
        // The kernel may reduce the size.
        socket.set_recv_buffer_size(BACKLOG).context("set the size of the backlog")?;
        let (begun, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let reader = {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let (mut socket, mut frame, mut all) = (socket, [0; 128], Vec::new());
                while !over.load(Ordering::Relaxed) {
                    let Ok(length) = socket.read(&mut frame) else { continue };
                    let at = begun.elapsed();
                    let found = gratuitous(&frame[..length]);
                    all.extend(found.map(|(address, mac)| Announcement { at, address, mac }));
                }
                Ok(all)
            })
        };
        Ok(Self { begun, over, reader })
    }

    /// Time since the start: the clock of its announcements.
    pub fn elapsed_time(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Stops it, and returns the announcements, in order.
    ///
    /// # Errors
    /// If it failed.
    pub fn end(self) -> Result<Vec<Announcement>> {
        self.over.store(true, Ordering::Relaxed);
        self.reader.join().map_err(|_| anyhow!("the sniffer panicked"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = [2, 0, 0, 0, 0, 1];
    const B: MacAddr = [2, 0, 0, 0, 0, 2];

    fn frame(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(A);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(A);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    #[test]
    fn a_gratuitous_arp_is_one_whose_sender_is_its_target_in_either_form() {
        let (own, other) = ([192, 0, 2, 200], [192, 0, 2, 201]);
        for (what, bytes, expected) in [
            ("request", frame(1, own, own), true),
            ("reply", frame(2, own, own), true),
            ("with padding", [frame(1, own, own), vec![0; 18]].concat(), true),
            ("a question", frame(1, other, own), false),
            ("a probe", frame(1, [0; 4], own), false),
            ("no address", frame(1, [0; 4], [0; 4]), false),
            ("cut short", frame(1, own, own)[..41].to_vec(), false),
            ("IPv4", [&[0; 12], &[8, 0][..], &frame(1, own, own)[14..]].concat(), false),
        ] {
            assert_eq!(gratuitous(&bytes), expected.then_some((own.into(), A)), "{what}");
        }
    }

    #[test]
    fn another_mac_is_a_change_of_owner() {
        let announcements = |all: &[(u64, u8, MacAddr)]| -> Vec<Announcement> {
            let one = |(at, last, mac): &(u64, u8, MacAddr)| Announcement {
                at: Duration::from_millis(*at),
                address: Ipv4Addr::new(192, 0, 2, *last),
                mac: *mac,
            };
            all.iter().map(one).collect()
        };
        for (what, all, expected) in [
            ("no announcement", &[][..], 0),
            ("a refresh", &[(0, 1, A), (1, 1, A), (2, 2, B), (3, 2, B)], 0),
            ("there and back", &[(0, 1, A), (1, 1, B), (2, 1, A)], 2),
            ("two of them", &[(0, 1, A), (0, 2, A), (1, 1, B), (1, 2, B), (2, 2, B)], 2),
        ] {
            assert_eq!(changes(&announcements(all)), expected, "{what}");
        }
        let all = announcements(&[(0, 1, A), (5, 1, B), (6, 2, B), (7, 1, B), (8, 3, A)]);
        let (one, two) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let expected = [(one, (Duration::from_millis(5), B)), (two, (Duration::from_millis(6), B))].into();
        assert_eq!(first_by_others(&all, A), expected);
    }
}
