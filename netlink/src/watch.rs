//! Reads links and gateways from the kernel by dumps. For links, it then also reads each change.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;

use crds::service::Family;
use netlink_packet_route::RouteNetlinkMessage::{GetAddress, GetLink};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use tokio::sync::watch;

use crate::links::{LinkTable, Links};
use crate::message::{Message, replies};
use crate::notifications::{LINKS, Notifications};
use crate::route;
use crate::socket::{NetlinkError, Socket};

/// Keeps `links` up to date, in the network namespace of the calling thread. The value is `None` until all links are
/// listed.
///
/// # Errors
/// If the links can no longer be observed.
pub async fn watch_links(links: watch::Sender<Option<Links>>) -> Result<Infallible, NetlinkError> {
    // The groups are joined before the dump, so that a change during the dump is also received.
    let notifications = Notifications::open(LINKS)?.into_async()?;
    let mut socket = Socket::open_routing()?;
    let (mut table, mut is_complete) = (LinkTable::default(), false);
    loop {
        if !is_complete {
            match list_links(&mut socket) {
                Ok(listed) => (table, is_complete) = (listed, true),
                // The links are listed again at once, because notifications of the changes already wait in the socket.
                Err(NetlinkError::KeepsChanging) => {}
                Err(error) => return Err(error),
            }
        }
        if is_complete {
            let now = Some(table.links());
            links.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        }
        notifications.readable().await.map_err(NetlinkError::Receive)?.clear_ready();
        is_complete &= follow_links(notifications.get_ref(), &mut table);
    }
}

/// Lists all links with their addresses.
///
/// # Errors
/// If the kernel refuses, if there is no answer, or if the links keep changing.
pub fn list_links(socket: &mut Socket) -> Result<LinkTable, NetlinkError> {
    let mut table = LinkTable::default();
    for request in [GetLink(LinkMessage::default()), GetAddress(AddressMessage::default())] {
        socket.dump(Message::routing(&request, 0), |body| body.routing().map(|message| table.apply(message)))?;
    }
    Ok(table)
}

/// Applies all waiting changes, without blocking. Returns whether they are complete: if some were lost, the links must
/// be listed again.
pub fn follow_links(notifications: &Notifications, table: &mut LinkTable) -> bool {
    notifications.read(|datagram| {
        let messages = replies(datagram).filter_map(|reply| reply.body.routing());
        messages.for_each(|message| table.apply(message));
    })
}

/// Lists the gateways of all unicast routes, in all routing tables.
///
/// # Errors
/// If the socket cannot be opened, the kernel refuses or does not answer, or the routes keep changing.
pub fn list_gateways() -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut socket = Socket::open_routing()?;
    let mut all = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let request = Message::routing(&route::get_routes(family, None, None), 0);
        all.extend(socket.dump(request, |body| body.routing().iter().flat_map(route::gateways).collect::<Vec<_>>())?);
    }
    Ok(all)
}
