//! The links of this node, from netlink: once in full, then each change as it happens.
//!
//! One future does it all; dropping it closes the socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;

use crate::announce::placement::Link;
use crate::os::link_table::Table;

/// The links are not known any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A question wasn't answered.
    #[error("cannot list links and addresses")]
    List(#[source] rtnetlink::Error),
    /// The socket was closed.
    #[error("netlink tells no more of links and addresses")]
    Closed,
}

/// Keeps `links` up to date for as long as it is polled.
///
/// # Errors
/// When the links can't be observed any more.
pub async fn watch(links: watch::Sender<BTreeMap<u32, Link>>) -> Result<Infallible, Error> {
    // Joined before anything is listed: what changes meanwhile is told, and applying it twice does no harm.
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) = new_multicast_connection(&groups).map_err(Error::Open)?;
    let follow = async {
        let mut table = list(&handle).await?;
        loop {
            links.send_if_modified(|known| {
                let now = table.links();
                let modified = *known != now;
                *known = now;
                modified
            });
            let (message, _) = messages.next().await.ok_or(Error::Closed)?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => table.apply(&message),
                // Changes were lost: begin anew.
                NetlinkPayload::Overrun(_) => table = list(&handle).await?,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = connection => Err(Error::Closed),
        end = follow => end,
    }
}

async fn list(handle: &Handle) -> Result<Table, Error> {
    let mut table = Table::default();
    let mut links = handle.link().get().execute().boxed();
    while let Some(link) = links.try_next().await.map_err(Error::List)? {
        table.apply(&RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = handle.address().get().execute().boxed();
    while let Some(address) = addresses.try_next().await.map_err(Error::List)? {
        table.apply(&RouteNetlinkMessage::NewAddress(address));
    }
    Ok(table)
}
