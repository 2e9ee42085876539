//! The packet sockets through which frames come and go: for ARP, for IPv6 neighbour discovery, and for the packets of
//! speakers over IPv4 and IPv6.
//!
//! Packets of speakers are ordinary UDP datagrams on the wire, but they don't go through the kernel's UDP: like ARP, they
//! are sent and received by a packet socket, beside netfilter and routing. So no host firewall can separate the detector
//! from what it detects: a node whose Hellos are not heard is one whose ARP answers are not heard either. It takes
//! `CAP_NET_RAW` and nothing else.
//!
//! A filter in the kernel lets through only what is for us, on the links that are listened on: whatever traffic the node
//! has, this process sleeps. The socket is made without a protocol, gets its filter, and is bound then: nothing slips in
//! before. It is bound to no link, so that links may come and go.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use crate::os::poll::{self, For};
use crate::wire::datagram::{GROUP, GROUP_MAC, GROUP_V6, PORT, TTL};
use crate::wire::frame::Channel;
use crate::wire::hello::{FLAGS_AT, ROUTINE};
use crate::wire::ndp::{ADVERTISEMENT, HOP_LIMIT, ICMPV6, SOLICITATION};

/// No frame is longer: an MTU of 1500, the header, and room. What is longer is cut off, and malformed then.
const MAX_FRAME: usize = 2048;

/// So many frames are received, or sent, in one call to the kernel: when thousands of addresses change hands, thousands of
/// frames come and go in a moment.
pub const BATCH: usize = 32;

/// So many bytes may wait in a socket, in the kernel's count of about 800 for a small frame: the gratuitous ARP of a node
/// that takes over thousands of addresses come to all others at once.
const BUFFER: libc::c_int = 8 << 20;

/// A filter knows no more links than this: a jump in it leads over 255 steps at most.
const MAX_LINKS: usize = 200;

/// Which frames of a channel a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// All.
    All,
    /// Those that nobody needs to wake for: Hellos that say so ([`crate::wire::hello::is_routine`]). When they came is known.
    Routine,
    /// The others.
    Prompt,
}

/// A packet socket.
#[derive(Debug)]
pub struct Port {
    socket: Socket,
    channel: Channel,
    portion: Portion,
    links: BTreeSet<u32>,
}

impl Port {
    /// Opens the socket for a channel, in the network namespace of this thread. It listens on no link yet.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open(channel: Channel) -> io::Result<Self> {
        Self::open_for(channel, Portion::All)
    }

    /// Opens a socket for some of the frames of a channel.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open_for(channel: Channel, portion: Portion) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        socket.attach_filter(&filter(channel, portion, &BTreeSet::new()))?;
        if portion == Portion::Routine {
            set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1)?;
        }
        for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            // It needs CAP_NET_ADMIN. Without it more is lost, or waits, when thousands of addresses change hands.
            let _ = set(&socket, libc::SOL_SOCKET, option, &BUFFER);
        }
        socket.bind(&address(channel, 0))?;
        Ok(Self { socket, channel, portion, links: BTreeSet::new() })
    }

    /// What it is for.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Listens on these links, by index, and on no others.
    ///
    /// # Errors
    /// If the kernel refuses the filter; then nothing has changed. A link that has just gone is none.
    pub fn listen_on(&mut self, links: BTreeSet<u32>) -> io::Result<()> {
        if links == self.links {
            return Ok(());
        }
        self.socket.attach_filter(&filter(self.channel, self.portion, &links))?;
        if self.channel == Channel::Hello && self.portion != Portion::Routine {
            // A network card may drop frames to a group that nobody on the host has joined.
            for gone in self.links.difference(&links) {
                let _ = self.membership(libc::PACKET_DROP_MEMBERSHIP, *gone);
            }
            for new in links.difference(&self.links) {
                if let Err(error) = self.membership(libc::PACKET_ADD_MEMBERSHIP, *new) {
                    tracing::warn!(link = new, %error, "cannot join the group of the speakers");
                }
            }
        }
        self.links = links;
        Ok(())
    }

    /// What to wait for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits until there is something to receive, but no longer than `most`. Returns whether there is.
    ///
    /// # Errors
    /// If the kernel can't wait.
    pub fn readable(&self, most: Duration) -> io::Result<bool> {
        Ok(poll::sleep([(self.as_fd(), For::Reading)], Some(most))?.has(0))
    }

    /// Receives frames, at most [`BATCH`] of them, and hands each to `take` with the index of the link that it came in on.
    /// Returns whether more may wait.
    ///
    /// # Errors
    /// If the kernel reports any: it says nothing about what is received next.
    pub fn receive(&self, buffer: &mut Buffer, mut take: impl FnMut(u32, &[u8])) -> io::Result<bool> {
        self.receive_dated(buffer, |link, _, frame| take(link, frame))
    }

    /// The same, where it matters how long ago a frame came. That is told in [`Portion::Routine`], and wrong if the clock was
    /// set meanwhile.
    ///
    /// # Errors
    /// As above.
    pub fn receive_dated(&self, buffer: &mut Buffer, mut take: impl FnMut(u32, Duration, &[u8])) -> io::Result<bool> {
        let dated = self.portion == Portion::Routine;
        let mut dates = [[0u64; DATE / 8]; BATCH];
        let mut from = [const { MaybeUninit::<libc::sockaddr_ll>::zeroed() }; BATCH];
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: MAX_FRAME }; BATCH];
        // SAFETY: of this plain data zeros are a valid value: no addresses, no buffers, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (at, header) in headers.iter_mut().enumerate() {
            parts[at].iov_base = buffer.0[at].as_mut_ptr().cast();
            header.msg_hdr.msg_name = from[at].as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut parts[at];
            header.msg_hdr.msg_iovlen = 1;
            if dated {
                header.msg_hdr.msg_control = dates[at].as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = DATE as _;
            }
        }
        let (fd, most, flags) = (self.socket.as_raw_fd(), BATCH as libc::c_uint, libc::MSG_DONTWAIT);
        // SAFETY: each header points to an address, a part, and room for control data or none, and each part to a buffer of the length it says; all of them
        // outlive the call.
        let received = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), most, flags as _, std::ptr::null_mut()) };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(error),
            };
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for (at, header) in headers.iter().take(received).enumerate() {
            // SAFETY: it was zeroed, and for a socket of AF_PACKET the kernel has written a sockaddr_ll over it.
            let from = unsafe { from[at].assume_init_ref() };
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let length = (header.msg_len as usize).min(MAX_FRAME);
            // SAFETY: the kernel has written as many bytes.
            let frame = unsafe { std::slice::from_raw_parts(buffer.0[at].as_ptr().cast::<u8>(), length) };
            let age = if dated {
                date(&header.msg_hdr).map_or(Duration::ZERO, |date| now.saturating_sub(date))
            } else {
                Duration::ZERO
            };
            take(from.sll_ifindex.cast_unsigned(), age, frame);
        }
        Ok(received == BATCH)
    }

    /// Sends frames, each on the link with that index, in order, at most [`BATCH`] of them. Returns how many were sent.
    ///
    /// # Errors
    /// If the first one could not be sent: `WouldBlock` if there is no room, it may be sent later; anything else: it can't
    /// be sent.
    pub fn send<'a>(&self, frames: impl IntoIterator<Item = (u32, &'a [u8])>) -> io::Result<usize> {
        let mut to = [const { None::<SockAddr> }; BATCH];
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: of this plain data zeros are a valid value: no addresses, no buffers, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut count = 0;
        for (at, (link, frame)) in frames.into_iter().take(BATCH).enumerate() {
            let to = to[at].insert(address(self.channel, link));
            parts[at] = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            let header = &mut headers[at].msg_hdr;
            (header.msg_name, header.msg_namelen) = (to.as_ptr().cast_mut().cast(), to.len());
            (header.msg_iov, header.msg_iovlen) = (&raw mut parts[at], 1);
            count = at + 1;
        }
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        // Not by musl's `sendmmsg`, which calls the kernel for each frame.
        // SAFETY: each of the first `count` headers points to an address and a part, and each part to a frame; all of them
        // outlive the call, and the kernel only reads them, but for the lengths in the headers.
        let sent = unsafe { libc::syscall(libc::SYS_sendmmsg, fd, headers.as_mut_ptr(), count as libc::c_uint, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn membership(&self, option: libc::c_int, link: u32) -> io::Result<()> {
        let mut group = [0; 8];
        group[..6].copy_from_slice(&GROUP_MAC.octets());
        let request = libc::packet_mreq {
            mr_ifindex: link.cast_signed(),
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: group,
        };
        set(&self.socket, libc::SOL_PACKET, option, &request)
    }
}

/// Room for the time at which a frame came, as the kernel tells it beside the frame.
const DATE: usize = 64;

/// When a frame came, since 1970.
fn date(header: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel has filled in the header, whose control data is there and as long as it says: the first message in it is
    // whole, or there is none. Of `SCM_TIMESTAMPNS` the data is a `timespec`, which may stand anywhere.
    let date = unsafe {
        let message = libc::CMSG_FIRSTHDR(header).as_ref()?;
        if (message.cmsg_level, message.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            return None;
        }
        libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned()
    };
    Some(Duration::new(date.tv_sec.try_into().ok()?, date.tv_nsec.try_into().ok()?))
}

/// Sets an option that socket2 doesn't know. `T` must be what the kernel expects for it.
fn set<T: Copy>(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where frames are received.
#[derive(Debug)]
pub struct Buffer(Box<[[MaybeUninit<u8>; MAX_FRAME]]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![[MaybeUninit::uninit(); MAX_FRAME]; BATCH].into())
    }
}

/// The address of a link, or of all links (0), for a channel.
fn address(channel: Channel, link: u32) -> SockAddr {
    let protocol = match channel {
        Channel::Hello => libc::ETH_P_IP,
        Channel::Arp => libc::ETH_P_ARP,
        Channel::HelloV6 | Channel::Ndp => libc::ETH_P_IPV6,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all bytes of the storage are initialised, it is large enough and aligned for any address, and a sockaddr_ll
    // is plain data.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

// Classic BPF, as in linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_BYTE_AT_X: u16 = 0x50;
const LOAD_LENGTH: u16 = 0x80;
const LOAD_X_HEADER_LENGTH: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where the index of the link is read from (linux/filter.h).
const LINK_INDEX: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();

/// The end of the group's address.
const LAST_WORD_V6: u32 = GROUP_V6.to_bits() as u32;

/// A step of a filter.
#[derive(Clone, Copy)]
enum Step {
    /// Loads something.
    Load(u16, u32),
    /// Goes on if what was loaded is this.
    Equal(u32),
    /// Goes on if none of these bits is set in what was loaded.
    Clear(u32),
    /// Goes on if one of these bits is set in what was loaded.
    Set(u32),
    /// Leaves out the next step if what was loaded is this.
    Or(u32),
    /// Leaves out so many steps if what was loaded is less than this.
    Less(u32, u8),
}

/// The filter for a channel on these links. Of an IP packet that isn't ours, which is nearly every packet of a busy node,
/// it looks at one word.
fn filter(channel: Channel, portion: Portion, links: &BTreeSet<u32>) -> Vec<SockFilter> {
    use Step::{Clear, Equal, Less, Load, Or, Set};
    let of_channel: &[Step] = match channel {
        Channel::Hello => &[
            Load(LOAD_WORD, 14 + 16),
            Equal(GROUP.to_bits()),
            Load(LOAD_BYTE, 14 + 9),
            Equal(libc::IPPROTO_UDP as u32),
            Load(LOAD_HALF, 14 + 6),
            Clear(0x3fff), // more fragments, or an offset
            Load(LOAD_BYTE, 14 + 8),
            Equal(TTL as u32),
            Load(LOAD_X_HEADER_LENGTH, 14),
            Load(LOAD_HALF_AT_X, 14 + 2),
            Equal(PORT as u32),
        ],
        Channel::HelloV6 => &[
            Load(LOAD_WORD, 14 + 36),
            Equal(LAST_WORD_V6),
            Load(LOAD_BYTE, 14 + 6),
            Equal(libc::IPPROTO_UDP as u32),
            Load(LOAD_BYTE, 14 + 7),
            Equal(TTL as u32),
            Load(LOAD_HALF, 14 + 40 + 2),
            Equal(PORT as u32),
        ],
        Channel::Arp => &[],
        Channel::Ndp => &[
            Load(LOAD_BYTE, 14 + 6),
            Equal(ICMPV6 as u32),
            Load(LOAD_BYTE, 14 + 7),
            Equal(HOP_LIMIT as u32),
            Load(LOAD_BYTE, 14 + 40),
            Or(SOLICITATION as u32),
            Equal(ADVERTISEMENT as u32),
        ],
    };
    let flags = match channel {
        Channel::HelloV6 => Load(LOAD_BYTE, 14 + 40 + 8 + FLAGS_AT),
        _ => Load(LOAD_BYTE_AT_X, 14 + 8 + FLAGS_AT),
    };
    let of_portion: &[Step] = match portion {
        Portion::All => &[],
        Portion::Routine => &[flags, Set(ROUTINE as u32)],
        // What is too short to have flags is for us to count.
        Portion::Prompt => &[Load(LOAD_LENGTH, 0), Less(14 + 60 + 8 + FLAGS_AT + 1, 2), flags, Clear(ROUTINE as u32)],
    };
    let steps = [of_channel, of_portion].concat();
    let links: Vec<u32> = links.iter().copied().take(MAX_LINKS).collect();
    // steps, load of the index, a jump for each link, drop, accept
    let drop = steps.len() + 1 + links.len();
    let mut program = Vec::with_capacity(drop + 2);
    for (at, step) in steps.iter().enumerate() {
        let to_drop = u8::try_from(drop - at - 1).unwrap_or(u8::MAX);
        program.push(match *step {
            Load(code, from) => SockFilter::new(code, 0, 0, from),
            Equal(value) => SockFilter::new(JUMP_IF_EQUAL, 0, to_drop, value),
            Clear(bits) => SockFilter::new(JUMP_IF_SET, to_drop, 0, bits),
            Set(bits) => SockFilter::new(JUMP_IF_SET, 0, to_drop, bits),
            Or(value) => SockFilter::new(JUMP_IF_EQUAL, 1, 0, value),
            Less(value, steps) => SockFilter::new(JUMP_IF_AT_LEAST, 0, steps, value),
        });
    }
    program.push(SockFilter::new(LOAD_WORD, 0, 0, LINK_INDEX));
    for (at, link) in links.iter().enumerate() {
        let to_accept = u8::try_from(links.len() - at).unwrap_or(u8::MAX);
        program.push(SockFilter::new(JUMP_IF_EQUAL, to_accept, 0, *link));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}
