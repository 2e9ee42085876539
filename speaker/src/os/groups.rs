//! The IPv6 multicast groups that this node joins.
//!
//! A packet socket receives the frames of a group that it has not joined. But a switch with MLD snooping forwards a
//! group only to hosts that have reported it (RFC 4541 §3). A network card may filter it, too. So this node joins the
//! groups as an application does: the kernel sends reports, answers queries, and configures the card. The sockets of
//! this file receive no data.
//!
//! When [`Groups`] is dropped, the kernel leaves all groups.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use socket2::{Domain, Socket, Type};

/// The maximum number of groups per socket. The kernel limits the memory of a socket (`net.core.optmem_max`, 20 KiB on
/// old kernels), and a group takes about 50 bytes.
const PER_SOCKET: usize = 200;

/// The joined groups.
#[derive(Debug, Default)]
pub struct Groups {
    /// The sockets, each with its number of groups.
    sockets: Vec<(Socket, usize)>,
    /// The index of the socket that joined each group on a link; `None` if the kernel refused.
    joined: BTreeMap<(u32, Ipv6Addr), Option<usize>>,
}

impl Groups {
    /// Joins exactly these groups, each on the link with that index, and leaves all others. A refusal is logged once. A
    /// refused group is tried again only after a call that did not include it.
    pub fn join_exactly(&mut self, wanted: &BTreeSet<(u32, Ipv6Addr)>) {
        let outdated: Vec<_> = self.joined.keys().filter(|known| !wanted.contains(known)).copied().collect();
        for (link, group) in outdated {
            if let Some(Some(at)) = self.joined.remove(&(link, group)) {
                let (socket, count) = &mut self.sockets[at];
                // This fails if the link is gone, and its memberships with it.
                let _ = socket.leave_multicast_v6(&group, link);
                *count -= 1;
            }
        }
        for (link, group) in wanted {
            if self.joined.contains_key(&(*link, *group)) {
                continue;
            }
            let socket = self.join(*link, *group);
            if let Err(error) = &socket {
                tracing::warn!(
                    link, %group, %error,
                    "cannot join an IPv6 multicast group: a switch with MLD snooping may drop its frames"
                );
            }
            self.joined.insert((*link, *group), socket.ok());
        }
    }

    /// Joins a group with a socket that has room. Returns the socket's index.
    fn join(&mut self, link: u32, group: Ipv6Addr) -> io::Result<usize> {
        let free = self.sockets.iter().position(|(_, count)| *count < PER_SOCKET);
        let at = free.unwrap_or(self.sockets.len());
        if free.is_none() {
            self.sockets.push((Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), None)?, 0));
        }
        let (socket, count) = &mut self.sockets[at];
        socket.join_multicast_v6(&group, link)?;
        *count += 1;
        Ok(at)
    }
}
