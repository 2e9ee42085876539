//! The IPv6 groups that the kernel tells others we listen to.
//!
//! A packet socket sees what comes in, but a switch that snoops MLD passes on what goes to a group only to those who have
//! reported that they listen (RFC 4541 §3), and a network card may drop it too. So the groups are joined as by any
//! application: the kernel reports it, answers queries, and tells the card. Nothing is received here.
//!
//! Dropping it leaves all groups.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use socket2::{Domain, Socket, Type};

/// So many groups are joined with one socket: the kernel bounds the memory of each (`net.core.optmem_max`, 20 KiB on old
/// kernels, at about 50 bytes a group).
const PER_SOCKET: usize = 200;

/// The groups that are joined.
#[derive(Debug, Default)]
pub struct Groups {
    /// With the number of groups that each has joined.
    sockets: Vec<(Socket, usize)>,
    /// By which socket each one was joined; `None`: the kernel refused it.
    joined: BTreeMap<(u32, Ipv6Addr), Option<usize>>,
}

impl Groups {
    /// Joins these groups, each on the link with that index, and leaves all others. What can't be joined is said once, and
    /// tried again when it was left.
    pub fn listen_to(&mut self, wanted: &BTreeSet<(u32, Ipv6Addr)>) {
        let over: Vec<_> = self.joined.keys().filter(|known| !wanted.contains(known)).copied().collect();
        for (link, group) in over {
            if let Some(Some(at)) = self.joined.remove(&(link, group)) {
                let (socket, count) = &mut self.sockets[at];
                // The link may be gone, and the membership with it.
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
                tracing::warn!(link, %group, %error, "cannot join a group: a switch may not let those through who ask for an address");
            }
            self.joined.insert((*link, *group), socket.ok());
        }
    }

    /// Joins a group by a socket that has room. Returns which one.
    fn join(&mut self, link: u32, group: Ipv6Addr) -> io::Result<usize> {
        let free = self.sockets.iter().position(|(_, count)| *count < PER_SOCKET);
        let at = match free {
            Some(at) => at,
            None => {
                self.sockets.push((Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), None)?, 0));
                self.sockets.len() - 1
            }
        };
        let (socket, count) = &mut self.sockets[at];
        socket.join_multicast_v6(&group, link)?;
        *count += 1;
        Ok(at)
    }
}
