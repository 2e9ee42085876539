//! The kernel's packet counters. A new one needs a counting set in `layout/sets.rs`, a field of [`KernelCounters`], and
//! a line here. Touches nf_tables through a netlink [`Socket`].

use super::codec::dump;
use super::engine::{EngineError, none_if_missing};
use super::layout::{self, Set, SetId, Table};
use crate::metrics::{KernelCounters, PacketCount};
use crate::netlink::attribute::Attributes;
use crate::netlink::socket::Socket;

/// Reads all packet counters since the tables were created, in the network namespace of the calling thread. Costs one
/// dump of each counting set: some 10 ms for 10,000 Services.
///
/// # Errors
/// If the kernel cannot be read.
pub fn read_kernel_counters() -> Result<KernelCounters, EngineError> {
    let mut socket = Socket::open()?;
    let mut counters = KernelCounters::default();
    for table in [Table::V4, Table::V6] {
        for set in layout::sets(table) {
            let mut ports = || read_counts(&mut socket, table, &set, dump::decode_frontend_counts);
            match set.id {
                SetId::Traffic => counters.traffic.extend(ports()?),
                SetId::Begun => counters.connections.extend(ports()?),
                SetId::Denied => counters.denied.extend(ports()?),
                SetId::Refusals => counters.refused.extend(ports()?),
                SetId::Strays => {
                    let strays = read_counts(&mut socket, table, &set, dump::decode_address_counts)?;
                    counters.strays.extend(strays);
                }
                _ => {}
            }
        }
    }
    Ok(counters)
}

/// The counted keys of one set; none if the table does not exist.
fn read_counts<T>(
    socket: &mut Socket,
    table: Table,
    set: &Set,
    decode: impl Fn(&Set, Attributes<'_>) -> Vec<(T, PacketCount)>,
) -> Result<Vec<(T, PacketCount)>, EngineError> {
    let answers = socket.dump(dump::get_elements(table, set.id), |answer| decode(set, answer));
    let answers = none_if_missing(answers.map(Some)).map_err(EngineError::Read)?;
    Ok(answers.into_iter().flatten().flatten().collect())
}
