//! What the kernel tells unasked: that links, routes or rules have changed. Touches the kernel of the network namespace
//! it was opened in.
//!
//! What has changed is not looked at, only that something has: all is read anew then.
#![allow(unsafe_code)]

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::io::unix::AsyncFd;

use super::socket::Error;

/// Of links; routes and rules of IPv4; the same of IPv6 (RTNLGRP_*).
const GROUPS: [u32; 5] = [1, 7, 8, 11, 19];

/// A socket that becomes readable when something changes.
#[derive(Debug)]
pub struct Notices(socket2::Socket);

impl Notices {
    /// One for the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel has none for us.
    pub fn open() -> Result<Self, Error> {
        let protocol = Some(Protocol::from(libc::NETLINK_ROUTE));
        let socket = socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol).map_err(Error::Open)?;
        socket.set_nonblocking(true).map_err(Error::Open)?;
        let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
        let family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("invariant: a small number");
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).expect("invariant: twelve bytes");
        // SAFETY: the storage is all zeros and larger than a `sockaddr_nl`, which has no bits that mean nothing.
        let (_, address) = unsafe {
            SockAddr::try_init(|storage, size| {
                let address = storage.cast::<libc::sockaddr_nl>();
                (*address).nl_family = family;
                (*address).nl_groups = groups;
                *size = length;
                Ok(())
            })
        }
        .map_err(Error::Open)?;
        socket.bind(&address).map_err(Error::Open)?;
        Ok(Self(socket))
    }

    /// The same, to be waited for in the runtime of the calling task.
    ///
    /// # Errors
    /// If the runtime does not take it.
    pub fn watched(self) -> Result<AsyncFd<Self>, Error> {
        // SAFETY: the descriptor is the socket's own: always the same one, and open for as long as `self` lives.
        unsafe { AsyncFd::register(self) }.map_err(|error| Error::Open(error.into()))
    }

    /// Takes in all that has been told so far.
    pub fn drain(&self) {
        let mut buffer = [0; 4096];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(_) => {}
                // Some was lost, which says that there was much.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
