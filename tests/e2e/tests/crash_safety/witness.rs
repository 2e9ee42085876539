//! Who watches all Services and records from the beginning to the end, and remembers what must never happen.
//!
//! Two watches, which are not in step: that a record went while its Service held on to it is said when it is certain that
//! the Service had no part in that.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::LoadBalancerIP;
use e2e::world::ingress;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use lab::wait_until;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

/// A watch that lasts as long as the test, in seconds.
const WATCH: u32 = 290;

/// By how much one watch may be behind the other.
const LAG: Duration = Duration::from_secs(2);

/// A witness. Dropping it ends the watches.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<Result<()>>,
}

/// What there is, and what was wrong. Pure.
struct Seen {
    movers: &'static [&'static str],
    shared: IpAddr,
    /// By UID: the name, and the addresses, of which one that is being deleted has none any more.
    services: BTreeMap<String, (String, Vec<IpAddr>)>,
    /// Records that are gone, and the UIDs of their holders.
    gone: Vec<(String, Vec<String>)>,
    faults: Vec<String>,
}

impl Witness {
    /// Watches from now on. Services whose name is in `movers` may change their address; `shared` may several have.
    pub async fn begin(client: &Client, movers: &'static [&'static str], shared: IpAddr) -> Result<Self> {
        let (services, gone, faults) = Default::default();
        let seen = Arc::new(Mutex::new(Seen { movers, shared, services, gone, faults }));
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(Api::all(client.clone()), seen.clone(), Seen::service).await?);
        tasks.spawn(watch(Api::all(client.clone()), seen.clone(), Seen::record).await?);
        Ok(Self { seen, tasks })
    }

    /// Fails if something happened that must not.
    pub async fn ask(&mut self) -> Result<()> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        wait_until(LAG, "nothing to be wrong", async || {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(seen.faults.is_empty(), "{}", seen.faults.join("; "));
            seen.explain();
            ensure!(seen.gone.is_empty(), "records went whose Services are still there: {:?}", seen.gone);
            Ok(())
        })
        .await
    }
}

/// A watch from now on, as a future that tells `seen` what happens: the object, and whether it is gone.
async fn watch<K>(
    api: Api<K>,
    seen: Arc<Mutex<Seen>>,
    tell: fn(&mut Seen, &K, bool),
) -> Result<impl Future<Output = Result<()>> + Send + 'static>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let list = api.list(&ListParams::default()).await?;
    let version = list.metadata.resource_version.context("a list without a version")?;
    Ok(async move {
        let events = api.watch(&WatchParams::default().timeout(WATCH), &version).await?;
        let mut events = pin!(events);
        while let Some(event) = events.try_next().await? {
            let (object, gone) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => anyhow::bail!("the witness's watch failed: {status:?}"),
            };
            tell(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), &object, gone);
        }
        anyhow::bail!("the witness's watch has ended")
    })
}

impl Seen {
    fn service(&mut self, service: &Service, gone: bool) {
        let (uid, name, addresses) = (service.uid().unwrap_or_default(), service.name_any(), ingress(service));
        if gone {
            self.services.remove(&uid);
            return;
        }
        let before = self.services.get(&uid).map(|(_, before)| before.clone()).unwrap_or_default();
        let leaves = service.metadata.deletion_timestamp.is_some();
        if !before.is_empty() && before != addresses && !leaves && !self.movers.contains(&name.as_str()) {
            self.faults.push(format!("{name} had {before:?} and then {addresses:?}"));
        }
        // The record of one that is deleted goes first, and with it the address; its status goes with the finalizer.
        let addresses = if leaves { Vec::new() } else { addresses };
        for (other_uid, (other, others)) in &self.services {
            if *other_uid != uid
                && let Some(both) =
                    addresses.iter().find(|address| others.contains(address) && **address != self.shared)
            {
                self.faults.push(format!("{name} and {other} both had {both}"));
            }
        }
        self.services.insert(uid, (name, addresses));
    }

    fn record(&mut self, record: &LoadBalancerIP, gone: bool) {
        if gone {
            let holders = record.spec.services.iter().map(|holder| holder.uid.to_string()).collect();
            self.gone.push((record.name_any(), holders));
        }
    }

    /// Forgets the records whose Services had reason to give them up: they are deleted, or move.
    fn explain(&mut self) {
        let (services, movers) = (&self.services, self.movers);
        let holds = |uid: &String| {
            let service = services.get(uid);
            service.is_some_and(|(name, addresses)| !addresses.is_empty() && !movers.contains(&name.as_str()))
        };
        self.gone.retain(|(_, holders)| holders.iter().any(holds));
    }
}
