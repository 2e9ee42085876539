//! The links of this node, read from netlink: one dump, then each change.
//!
//! The future owns the socket and closes it when dropped.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;

use crate::announce::placement::Link;
use crate::os::link_table::LinkTable;

/// The links are no longer known.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot list links and addresses")]
    List(#[source] rtnetlink::Error),
    #[error("the netlink socket was closed")]
    Closed,
}

/// Keeps `links` up to date.
///
/// # Errors
/// If the links can no longer be observed.
pub async fn watch(links: watch::Sender<BTreeMap<u32, Link>>) -> Result<Infallible, LinkError> {
    // Subscribe before the dump: a change during the dump is received as well, and applying it twice is harmless.
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) = new_multicast_connection(&groups).map_err(LinkError::Open)?;
    let follow = async {
        let mut table = list(&handle).await?;
        loop {
            links.send_if_modified(|known| {
                let now = table.links();
                let modified = *known != now;
                *known = now;
                modified
            });
            let (message, _) = messages.next().await.ok_or(LinkError::Closed)?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => table.apply(&message),
                // Changes were lost: dump again.
                NetlinkPayload::Overrun(_) => table = list(&handle).await?,
                _ => {}
            }
        }
    };
    tokio::select! {
        () = connection => Err(LinkError::Closed),
        end = follow => end,
    }
}

async fn list(handle: &Handle) -> Result<LinkTable, LinkError> {
    let mut table = LinkTable::default();
    let mut links = handle.link().get().execute().boxed();
    while let Some(link) = links.try_next().await.map_err(LinkError::List)? {
        table.apply(&RouteNetlinkMessage::NewLink(link));
    }
    let mut addresses = handle.address().get().execute().boxed();
    while let Some(address) = addresses.try_next().await.map_err(LinkError::List)? {
        table.apply(&RouteNetlinkMessage::NewAddress(address));
    }
    Ok(table)
}
