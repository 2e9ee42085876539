//! Makes the kernel forget stale flows. Touches connection tracking through a netlink [`Socket`];
//! [`crate::flows::stale`] decides which flows are stale.

use super::stale::StaleFlows;
use netlink::conntrack::{self, TrackedFlow};
use netlink::socket::{NetlinkError, Socket};

/// Forgets the stale UDP flows and returns their number. Reads the kernel's UDP flows only if a flow can be stale.
///
/// # Errors
/// If the kernel does not list or delete them. Flows that were deleted before the error stay deleted.
pub fn forget_flows(socket: &mut Socket, stale: &StaleFlows) -> Result<usize, NetlinkError> {
    if stale.is_empty() {
        return Ok(0);
    }
    let mut forgotten = 0;
    for family in stale.families() {
        let query = conntrack::get_udp_flows(family, stale.only_address());
        let tracked = socket.dump(query, |body| conntrack::decode_flow(body.attributes()))?;
        for tracked in tracked.into_iter().filter(|tracked: &TrackedFlow| stale.contains(&tracked.flow)) {
            match socket.command(conntrack::delete_flow(&tracked)) {
                Ok(()) => forgotten += 1,
                // The flow has ended meanwhile.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(forgotten)
}
