//! Makes the kernel forget flows that go nowhere any more. Touches connection tracking through a netlink [`Socket`];
//! what is stale is decided in [`crate::flows::stale`].

use crate::flows::stale::Stale;
use crate::netlink::flow::{self, Tracked};
use crate::netlink::socket::{self, Socket};

/// Forgets the stale flows of UDP and returns how many there were. Costs nothing if there is nothing to look at;
/// otherwise the kernel lists its flows of UDP.
///
/// # Errors
/// If the kernel does not list or forget them; those before are forgotten.
pub fn forget(socket: &mut Socket, stale: &Stale) -> Result<usize, socket::Error> {
    if stale.is_empty() {
        return Ok(0);
    }
    let mut forgotten = 0;
    for family in stale.families() {
        let tracked = socket.dump(flow::get(family, stale.only_address()), flow::read)?;
        for tracked in tracked.into_iter().flatten().filter(|tracked: &Tracked| stale.is(&tracked.flow)) {
            match socket.command(flow::delete(&tracked)) {
                Ok(()) => forgotten += 1,
                // It ended by itself meanwhile.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(forgotten)
}
