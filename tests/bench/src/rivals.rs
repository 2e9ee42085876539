//! Rivals that do only the necessary work. Each is a process with one thread, like Landfall's controller.
//!
//! - [`bare`]: a list of Services, and the writes that allocate an address to each, as many at a time as Landfall.
//! - [`echo`]: a watch, and the writes for each new Service as soon as its event arrives.
//! - [`list`]: the lists that a controller must receive before its first decision.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use crds::{IPAddressPool, LoadBalancerIP, NodeNetwork};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;

use crate::writes::{COPY, ECHO_CLASS, LANDFALL, Writer, ingress};

/// Services written at a time: as many as Landfall's controller has series.
const CONCURRENCY: usize = 64;

/// How long a watch lasts before the next begins, in seconds.
const WATCH: u32 = 290;

/// Assigns an address to every Service without one, and returns.
///
/// # Errors
/// If a write fails. No other process writes, so no write should fail.
pub async fn bare(client: Client) -> Result<()> {
    let services: Api<Service> = Api::all(client.clone());
    let services = services.list(&ListParams::default()).await.context("list Services")?;
    let is_pending = |service: &Service| {
        let spec = service.spec.as_ref();
        spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer") && ingress(service).is_none()
    };
    let mut pending = services.items.into_iter().filter(is_pending).zip(1..);
    let writer = Writer::new(client, LANDFALL);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < CONCURRENCY
            && let Some((service, n)) = pending.next()
        {
            let writer = writer.clone();
            tasks.spawn(async move { writer.give(&service, Writer::address(n)).await });
        }
        match tasks.join_next().await {
            Some(result) => result??,
            None => return Ok(()),
        }
    }
}

/// Assigns an address to each new Service of [`ECHO_CLASS`], and releases the address of each deleted one, until the
/// future is dropped.
///
/// # Errors
/// If a write fails, or the API server ends a watch with an error.
pub async fn echo(client: Client) -> Result<()> {
    let services: Api<Service> = Api::all(client.clone());
    let listed = services.list(&ListParams::default()).await.context("list Services")?;
    let mut version = listed.metadata.resource_version.unwrap_or_default();
    drop(listed.items);
    let writer = Writer::new(client, COPY);
    let mut given: BTreeMap<String, IpAddr> = BTreeMap::new();
    let (mut tasks, mut next) = (JoinSet::new(), 0);
    loop {
        let events =
            services.watch(&WatchParams::default().timeout(WATCH), &version).await.context("watch Services")?;
        let mut events = pin!(events.fuse());
        loop {
            let event = tokio::select! {
                event = events.try_next() => event?,
                Some(ended) = tasks.join_next() => {
                    let ended: Result<()> = ended?;
                    ended?;
                    continue;
                }
            };
            let service = match event {
                None => break,
                Some(WatchEvent::Added(service) | WatchEvent::Modified(service)) => service,
                Some(WatchEvent::Error(status)) => anyhow::bail!("the watch failed: {status:?}"),
                Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_)) => continue,
            };
            version = service.resource_version().unwrap_or_default();
            let spec = service.spec.as_ref();
            if spec.and_then(|spec| spec.load_balancer_class.as_deref()) != Some(ECHO_CLASS) {
                continue;
            }
            let (uid, writer) = (service.uid().unwrap_or_default(), writer.clone());
            if service.metadata.deletion_timestamp.is_some() {
                if let Some(lb_ip) = given.remove(&uid) {
                    tasks.spawn(async move { writer.take_back(&service, lb_ip).await });
                }
            } else if let std::collections::btree_map::Entry::Vacant(entry) = given.entry(uid) {
                let lb_ip = *entry.insert(Writer::address(next));
                next = next.wrapping_add(1);
                tasks.spawn(async move { writer.give(&service, lb_ip).await });
            }
        }
    }
}

/// Lists and decodes the kinds that a controller lists. Returns the time of completion in nanoseconds since 1970.
///
/// # Errors
/// If a list fails.
pub async fn list(client: Client) -> Result<u128> {
    async fn all<K>(client: &Client) -> Result<usize>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::all(client.clone());
        Ok(api.list(&ListParams::default()).await.with_context(|| format!("list {}", K::plural(&())))?.items.len())
    }
    let _counts = tokio::try_join!(
        all::<Service>(&client),
        all::<LoadBalancerIP>(&client),
        all::<IPAddressPool>(&client),
        all::<Node>(&client),
        all::<NodeNetwork>(&client),
        all::<Namespace>(&client),
    )?;
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}
