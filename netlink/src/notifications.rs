//! Notifications of the kernel about links, addresses, routes and rules. The socket belongs to the network namespace in
//! which it was opened.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::socket::NetlinkError;

/// Links, and addresses of IPv4 and IPv6 (RTNLGRP_* as bits).
pub const LINKS: u32 = 1 | 1 << 4 | 1 << 8;
/// Routes of IPv4 and IPv6.
pub const ROUTES: u32 = 1 << 6 | 1 << 10;
/// Links without addresses, and routes and rules of IPv4 and IPv6.
pub const ROUTING: u32 = 1 | ROUTES | 1 << 7 | 1 << 18;

/// The size of the buffer for one datagram. The kernel sends each change in a datagram of its own.
const DATAGRAM: usize = 1 << 15;

/// A socket that becomes readable when an object of its groups changes.
#[derive(Debug)]
pub struct Notifications(Socket);

impl Notifications {
    /// Notifications of these groups, for the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open(groups: u32) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, groups))?;
            io::Result::Ok(Self(socket))
        };
        open().map_err(NetlinkError::Open)
    }

    /// Registers the socket with the runtime of the calling task.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub fn into_async(self) -> Result<AsyncFd<Self>, NetlinkError> {
        // SAFETY: the descriptor is the socket's own: it never changes, and is open for as long as `self` lives.
        unsafe { AsyncFd::register(self) }.map_err(|error| NetlinkError::Open(error.into()))
    }

    /// Passes all waiting notifications to `each`, without blocking. Returns whether they are complete: if the buffer
    /// of the socket was full, some were lost.
    pub fn read(&self, mut each: impl FnMut(&[u8])) -> bool {
        let mut buffer = [0; DATAGRAM];
        let mut is_complete = true;
        loop {
            match self.0.recv(&mut &mut buffer[..], 0) {
                Ok(length) => each(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return is_complete,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => is_complete = false,
                Err(_) => return false,
            }
        }
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
