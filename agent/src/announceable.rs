//! Which addresses the speaker may announce: those that are forwarded on this node.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::watch;

use crate::channels::send_if_new;

/// Sends the speaker each new set of addresses that the kernel forwards.
pub(crate) async fn publish_forwarded(
    mut forwarding_rx: watch::Receiver<dataplane::Forwarding>,
    announceable_tx: watch::Sender<Arc<BTreeSet<IpAddr>>>,
) -> Result<Infallible> {
    loop {
        let addresses = forwarding_rx.borrow_and_update().addresses.clone();
        send_if_new(&announceable_tx, Arc::new(addresses));
        forwarding_rx.changed().await.context("the dataplane has ended")?;
    }
}

/// Takes the place of our own dataplane: assumes that another proxy forwards every address.
pub(crate) async fn assume_forwarded(
    mut snapshot_rx: watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    forwarding_tx: watch::Sender<dataplane::Forwarding>,
) -> Result<Infallible> {
    loop {
        let snapshot = snapshot_rx.borrow_and_update().clone();
        let addresses: BTreeSet<_> = snapshot.iter().flat_map(|known| known.addresses.keys().copied()).collect();
        let serving = addresses.clone();
        forwarding_tx.send_replace(dataplane::Forwarding { addresses, serving, ..Default::default() });
        snapshot_rx.changed().await.context("the composer has ended")?;
    }
}
