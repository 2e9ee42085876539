//! Packet sockets for ARP, for NDP, and for Hellos over IPv4 and IPv6.
//!
//! Hellos are ordinary UDP datagrams on the wire, but they bypass the kernel's UDP: like ARP, they are sent and
//! received by a packet socket, outside netfilter and routing. So Hellos take the same path as ARP answers, and no host
//! firewall can block only one of them: a node whose Hellos are not heard cannot answer ARP either. A packet socket
//! needs only `CAP_NET_RAW`.
//!
//! A kernel filter ([`crate::os::filter`]) passes only frames of interest, on the links to listen on, so other traffic
//! does not wake the process. The socket is created without a protocol, gets its filter, and is bound last, so no other
//! frame gets in. It is bound to no link, so that links can come and go.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::os::filter::filter;
use crate::os::poll;
use crate::wire::datagram::GROUP_MAC;
use crate::wire::frame::{Channel, Frame, FrameClass};

/// The maximum length of a frame: an MTU of 1500, the Ethernet header, and some reserve. A longer frame is truncated,
/// and therefore malformed.
const MAX_FRAME: usize = 2048;

/// The number of frames per system call. When thousands of addresses move, thousands of frames are sent and received at
/// once.
pub const BATCH: usize = 32;

/// The buffer size of a socket, by the kernel's accounting of about 800 bytes for a small frame. A node that takes over
/// thousands of addresses sends all its gratuitous ARP frames at once.
const BUFFER: libc::c_int = 8 << 20;

/// A packet socket.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    pub(crate) channel: Channel,
    class: FrameClass,
    links: BTreeSet<u32>,
}

impl PacketSocket {
    /// Opens a socket for one class of frames of a channel, in the network namespace of this thread. It listens on no
    /// link yet.
    ///
    /// # Errors
    /// If the kernel refuses the socket: it needs `CAP_NET_RAW`.
    pub fn open(channel: Channel, class: FrameClass) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        socket.attach_filter(&filter(channel, class, &BTreeSet::new()))?;
        if class == FrameClass::Routine {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1)?;
        }
        for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            // This needs CAP_NET_ADMIN. Without it more frames are lost or delayed when thousands of addresses move.
            let _ = set_option(&socket, libc::SOL_SOCKET, option, &BUFFER);
        }
        socket.bind(&link_address(channel, 0))?;
        Ok(Self { socket, channel, class, links: BTreeSet::new() })
    }

    /// Whether the socket receives only routine Hellos.
    pub(crate) fn is_routine(&self) -> bool {
        self.class == FrameClass::Routine
    }

    /// Listens on exactly these links, by index.
    ///
    /// # Errors
    /// If the kernel refuses the filter; then nothing has changed. A link that is already gone is not an error.
    pub fn listen_on(&mut self, links: BTreeSet<u32>) -> io::Result<()> {
        if links == self.links {
            return Ok(());
        }
        self.socket.attach_filter(&filter(self.channel, self.class, &links))?;
        if self.channel == Channel::Hello && self.class != FrameClass::Routine {
            // A network card may drop frames of a group that no socket has joined.
            for gone in self.links.difference(&links) {
                let _ = self.change_membership(libc::PACKET_DROP_MEMBERSHIP, *gone);
            }
            for new in links.difference(&self.links) {
                if let Err(error) = self.change_membership(libc::PACKET_ADD_MEMBERSHIP, *new) {
                    tracing::warn!(link = new, %error, "cannot join the multicast group of Hellos");
                }
            }
        }
        self.links = links;
        Ok(())
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits until a frame can be received, for at most `timeout`. Returns whether there is one.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait_readable(&self, timeout: Duration) -> io::Result<bool> {
        Ok(poll::wait([PollFd::new(self.as_fd(), PollFlags::POLLIN)], Some(timeout))?[0])
    }

    /// Receives at most [`BATCH`] frames and passes each to `take`, with the index of its link and its age. Returns
    /// whether more frames may wait.
    ///
    /// The age is known for [`FrameClass::Routine`], and zero for others. It is wrong if the clock was set in the
    /// meantime.
    ///
    /// # Errors
    /// Any error of the socket. The next call may succeed.
    pub fn receive(&self, buffer: &mut ReceiveBuffer, mut take: impl FnMut(u32, Duration, &[u8])) -> io::Result<bool> {
        let has_age = self.is_routine();
        let mut times = [[0u64; TIME_SPACE / 8]; BATCH];
        let mut from = [const { MaybeUninit::<libc::sockaddr_ll>::zeroed() }; BATCH];
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: MAX_FRAME }; BATCH];
        // SAFETY: zeros are a valid value of this plain data: no addresses, no buffers, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (at, header) in headers.iter_mut().enumerate() {
            parts[at].iov_base = buffer.0[at].as_mut_ptr().cast();
            header.msg_hdr.msg_name = from[at].as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut parts[at];
            header.msg_hdr.msg_iovlen = 1;
            if has_age {
                header.msg_hdr.msg_control = times[at].as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = TIME_SPACE as _;
            }
        }
        let (fd, limit, flags) = (self.socket.as_raw_fd(), BATCH as libc::c_uint, libc::MSG_DONTWAIT);
        // SAFETY: each header points to an address, an `iovec`, and space for control data or none. Each `iovec` points
        // to a buffer of its length. All of them outlive the call.
        let received = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), limit, flags as _, std::ptr::null_mut()) };
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
            // SAFETY: the kernel has written this number of bytes.
            let frame = unsafe { std::slice::from_raw_parts(buffer.0[at].as_ptr().cast::<u8>(), length) };
            let time = if has_age { receive_time(&header.msg_hdr) } else { None };
            let age = time.map_or(Duration::ZERO, |time| now.saturating_sub(time));
            take(from.sll_ifindex.cast_unsigned(), age, frame);
        }
        Ok(received == BATCH)
    }

    /// Sends at most [`BATCH`] frames in order, each on the link with its index. Returns the number of frames sent.
    ///
    /// # Errors
    /// If the first frame was not sent. `WouldBlock`: the kernel has no room now, and the frame can be sent later. Any
    /// other error: the frame cannot be sent.
    pub fn send<'a>(&self, frames: impl IntoIterator<Item = (u32, &'a [u8])>) -> io::Result<usize> {
        let mut to = [const { None::<SockAddr> }; BATCH];
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: zeros are a valid value of this plain data: no addresses, no buffers, no control data.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut count = 0;
        for (at, (link, frame)) in frames.into_iter().take(BATCH).enumerate() {
            let to = to[at].insert(link_address(self.channel, link));
            parts[at] = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            let header = &mut headers[at].msg_hdr;
            (header.msg_name, header.msg_namelen) = (to.as_ptr().cast_mut().cast(), to.len());
            (header.msg_iov, header.msg_iovlen) = (&raw mut parts[at], 1);
            count = at + 1;
        }
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        // The `sendmmsg` of musl makes a system call for each frame, so call the kernel directly.
        // SAFETY: each of the first `count` headers points to an address and an `iovec`, and each `iovec` to a frame.
        // All of them outlive the call. The kernel only reads them, except for the lengths in the headers.
        let sent = unsafe { libc::syscall(libc::SYS_sendmmsg, fd, headers.as_mut_ptr(), count as libc::c_uint, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn change_membership(&self, option: libc::c_int, link: u32) -> io::Result<()> {
        let mut group = [0; 8];
        group[..6].copy_from_slice(&GROUP_MAC.octets());
        let request = libc::packet_mreq {
            mr_ifindex: link.cast_signed(),
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: group,
        };
        set_option(&self.socket, libc::SOL_PACKET, option, &request)
    }
}

/// One socket for each of [`Sockets::CLASSES`].
pub(crate) struct Sockets(Vec<PacketSocket>);

impl Sockets {
    /// The frames that each socket receives. The sockets are read in this order. Hellos come first, so that a flood of
    /// other frames makes no peer look dead.
    const CLASSES: [(Channel, FrameClass); 6] = [
        (Channel::Hello, FrameClass::Routine),
        (Channel::HelloV6, FrameClass::Routine),
        (Channel::Hello, FrameClass::Prompt),
        (Channel::HelloV6, FrameClass::Prompt),
        (Channel::Arp, FrameClass::All),
        (Channel::Ndp, FrameClass::All),
    ];

    pub const COUNT: usize = Self::CLASSES.len();

    pub fn open() -> io::Result<Self> {
        let sockets = Self::CLASSES.into_iter().map(|(channel, class)| PacketSocket::open(channel, class));
        sockets.collect::<io::Result<_>>().map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PacketSocket> {
        self.0.iter()
    }

    /// Listens on exactly these links, by index.
    pub fn listen_on(&mut self, links: &BTreeSet<u32>) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|socket| socket.listen_on(links.clone()))
    }

    /// Sends frames of one channel, as many as one system call takes. Returns the number of frames sent.
    pub fn send<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<usize> {
        let mut frames = frames.peekable();
        let Some(channel) = frames.peek().map(|frame| frame.channel) else { return Ok(0) };
        let socket = self.0.iter().find(|socket| socket.channel == channel && !socket.is_routine());
        let socket = socket.expect("invariant: each channel has such a socket");
        socket.send(frames.map(|frame| (frame.link, frame.bytes.as_slice())))
    }
}

/// The size of the control data of a frame, with room for the time of arrival, in bytes.
const TIME_SPACE: usize = 64;

/// The time of arrival of a frame, since 1970.
fn receive_time(header: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel has filled in the header. Its control data has the stated length, and the first message in it
    // is complete, if there is one. The data of `SCM_TIMESTAMPNS` is a `timespec`, which may be unaligned.
    let time = unsafe {
        let message = libc::CMSG_FIRSTHDR(header).as_ref()?;
        if (message.cmsg_level, message.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            return None;
        }
        libc::CMSG_DATA(message).cast::<libc::timespec>().read_unaligned()
    };
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

/// Sets an option that socket2 lacks. `T` must be the type that the kernel expects for it.
fn set_option<T: Copy>(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
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

/// The buffer for received frames.
#[derive(Debug)]
pub struct ReceiveBuffer(Box<[[MaybeUninit<u8>; MAX_FRAME]]>);

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self(vec![[MaybeUninit::uninit(); MAX_FRAME]; BATCH].into())
    }
}

/// The address of a link, or of all links (0), for a channel.
fn link_address(channel: Channel, link: u32) -> SockAddr {
    let protocol = match channel {
        Channel::Hello => libc::ETH_P_IP,
        Channel::Arp => libc::ETH_P_ARP,
        Channel::HelloV6 | Channel::Ndp => libc::ETH_P_IPV6,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all bytes of the storage are initialised, it is large enough and aligned for any address, and a
    // sockaddr_ll is plain data.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = link.cast_signed();
    // SAFETY: the storage holds a sockaddr_ll of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
