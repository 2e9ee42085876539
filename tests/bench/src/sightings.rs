//! A watch of Services with the time when each got its address, as any client would see it.
//!
//! One task, which ends when the handle is dropped. It decodes only the fields it needs; contender and rival carry the
//! same cost.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

/// Duration of one watch in seconds. Most measurements take less.
const WATCH: u32 = 290;

/// The fields of a Service that are read.
#[derive(Clone, Debug, Deserialize)]
struct Service {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    resource_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct List {
    metadata: kube::core::ListMeta,
}

/// A change of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was created or changed, and has no address.
    Pending,
    /// It has an address.
    Served,
    /// It was deleted.
    Gone,
}

/// A Service, its change, and when the watch reported it.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Its name.
    pub name: String,
    /// The change.
    pub change: Change,
    /// When the watch reported it.
    pub at: Instant,
}

/// A watch from now on. Dropping it ends it.
pub struct Sightings {
    incoming: mpsc::UnboundedReceiver<Sighting>,
    task: JoinHandle<Result<()>>,
}

/// The state of the task.
struct Watch {
    client: Client,
    path: String,
    /// The version up to which all events were received.
    version: String,
    outgoing: mpsc::UnboundedSender<Sighting>,
}

impl Watch {
    /// Sends sightings until the receiver is dropped. The API server ends a watch that falls behind, as happens when
    /// both cores are busy; the next watch continues from there.
    async fn follow(mut self) -> Result<()> {
        loop {
            let request = Request::new(&self.path).watch(&WatchParams::default().timeout(WATCH), &self.version)?;
            let events = self.client.request_events::<Service>(request).await.context("watch Services")?;
            let mut events = pin!(events);
            while let Some(event) = events.try_next().await.context("watch Services")? {
                let at = Instant::now();
                let (service, gone) = match event {
                    WatchEvent::Added(service) | WatchEvent::Modified(service) => (service, false),
                    WatchEvent::Deleted(service) => (service, true),
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(status) => bail!("the watch failed: {status:?}"),
                };
                let change = match service.status.load_balancer.ingress.is_empty() {
                    _ if gone => Change::Gone,
                    true => Change::Pending,
                    false => Change::Served,
                };
                self.version = service.metadata.resource_version;
                if self.outgoing.send(Sighting { name: service.metadata.name, change, at }).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

impl Drop for Sightings {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sightings {
    /// Watches all Services of the namespace.
    ///
    /// # Errors
    /// If the API server returns no version to start from.
    pub async fn begin(client: &Client, namespace: &str) -> Result<Self> {
        let path = format!("/api/v1/namespaces/{namespace}/services");
        let request = Request::new(&path).list(&ListParams::default().limit(1))?;
        let list: List = client.request(request).await.context("list Services")?;
        let version = list.metadata.resource_version.context("a list without a version")?;
        let (outgoing, incoming) = mpsc::unbounded_channel();
        let watch = Watch { client: client.clone(), path, version, outgoing };
        // The watch starts at the version of the list, so it misses no event.
        let task = tokio::spawn(watch.follow());
        Ok(Self { incoming, task })
    }

    /// The next one.
    ///
    /// # Errors
    /// If no sighting comes before the deadline, or the watch fails.
    pub async fn next(&mut self, deadline: Instant) -> Result<Sighting> {
        match timeout_at(deadline.into(), self.incoming.recv()).await {
            Ok(Some(sighting)) => Ok(sighting),
            Ok(None) => match (&mut self.task).await? {
                Ok(()) => bail!("the watch of Services has ended"),
                Err(error) => Err(error),
            },
            Err(_) => bail!("nothing was seen in time"),
        }
    }

    /// The time of this change of the Service with this name.
    ///
    /// # Errors
    /// If the change does not come within that time, or the watch fails.
    pub async fn until(&mut self, name: &str, change: Change, within: Duration) -> Result<Instant> {
        let deadline = Instant::now() + within;
        loop {
            let sighting = self.next(deadline).await.with_context(|| format!("wait for {name} to be {change:?}"))?;
            if sighting.name == name && sighting.change == change {
                return Ok(sighting.at);
            }
        }
    }
}
