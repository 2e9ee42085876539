//! Notifications of the kernel about links, routes and rules. Touches the kernel of the network namespace that it was
//! opened in.
//!
//! The content of a notification is ignored: everything is read again then.
#![allow(unsafe_code)]

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::io::unix::AsyncFd;

use super::socket::NetlinkError;

/// Links; routes and rules of IPv4; routes and rules of IPv6 (RTNLGRP_*).
const GROUPS: [u32; 5] = [1, 7, 8, 11, 19];

/// A socket that becomes readable when something changes.
#[derive(Debug)]
pub struct RouteNotifications(socket2::Socket);

impl RouteNotifications {
    /// Notifications for the network namespace of the calling thread.
    ///
    /// # Errors
    /// If there is no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let protocol = Some(Protocol::from(libc::NETLINK_ROUTE));
        let socket = socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol);
        let socket = socket.map_err(NetlinkError::Open)?;
        socket.set_nonblocking(true).map_err(NetlinkError::Open)?;
        let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
        let family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("invariant: a small number");
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).expect("invariant: twelve bytes");
        // SAFETY: the storage is all zeros and larger than a `sockaddr_nl`, for which every bit pattern is valid.
        let (_, address) = unsafe {
            SockAddr::try_init(|storage, size| {
                let address = storage.cast::<libc::sockaddr_nl>();
                (*address).nl_family = family;
                (*address).nl_groups = groups;
                *size = length;
                Ok(())
            })
        }
        .map_err(NetlinkError::Open)?;
        socket.bind(&address).map_err(NetlinkError::Open)?;
        Ok(Self(socket))
    }

    /// Registers it with the runtime of the calling task.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub fn into_async(self) -> Result<AsyncFd<Self>, NetlinkError> {
        // SAFETY: the descriptor is the socket's own: it never changes, and is open for as long as `self` lives.
        unsafe { AsyncFd::register(self) }.map_err(|error| NetlinkError::Open(error.into()))
    }

    /// Discards all notifications so far.
    pub fn drain(&self) {
        let mut buffer = [0; 4096];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(_) => {}
                // Some were lost, so there were many.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl AsRawFd for RouteNotifications {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
