//! Watches all Services and records during the whole test, and collects violations.
//!
//! A record may be deleted only if its holder is deleted too, or may change its address. The two watches are not
//! synchronous, so the watch of Services has [`LAG`] to report the change of the holder. A deleted record is a
//! violation only after that time.

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

/// Timeout of a watch, in seconds: longer than the test.
const WATCH_SECONDS: u32 = 290;

/// Maximum lag of one watch behind the other.
const LAG: Duration = Duration::from_secs(2);

/// Watches all Services and records. The watches end when it is dropped.
pub struct Witness {
    observations: Arc<Mutex<Observations>>,
    tasks: JoinSet<Result<()>>,
}

/// Current objects, and violations so far. Pure.
struct Observations {
    /// The Services that may change their address.
    movers: &'static [&'static str],
    /// The address that several Services may have.
    shared: IpAddr,
    /// Name and addresses by UID. A Service that is being deleted has no addresses here.
    services: BTreeMap<String, (String, Vec<IpAddr>)>,
    /// Deleted records that may be violations, and the UIDs of their holders.
    deleted_records: Vec<(String, Vec<String>)>,
    violations: Vec<String>,
}

impl Witness {
    /// Starts the watches. Services in `movers` may change their address; several Services may have `shared`.
    pub async fn start(client: &Client, movers: &'static [&'static str], shared: IpAddr) -> Result<Self> {
        let (services, deleted_records, violations) = Default::default();
        let observations = Observations { movers, shared, services, deleted_records, violations };
        let observations = Arc::new(Mutex::new(observations));
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(Api::all(client.clone()), observations.clone(), Observations::add_service).await?);
        tasks.spawn(watch(Api::all(client.clone()), observations.clone(), Observations::add_record).await?);
        Ok(Self { observations, tasks })
    }

    /// Fails if there was a violation.
    pub async fn check(&mut self) -> Result<()> {
        if let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        wait_until(LAG, "no violation", async || {
            let mut observations = self.observations.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(observations.violations.is_empty(), "{}", observations.violations.join("; "));
            observations.forget_allowed_deletions();
            let deleted = &observations.deleted_records;
            ensure!(deleted.is_empty(), "records were deleted before their Services: {deleted:?}");
            Ok(())
        })
        .await
    }
}

/// Starts a watch. Returns a future that calls `add` for each event, with the object and whether it was deleted.
async fn watch<K>(
    api: Api<K>,
    observations: Arc<Mutex<Observations>>,
    add: fn(&mut Observations, &K, bool),
) -> Result<impl Future<Output = Result<()>> + Send + 'static>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let list = api.list(&ListParams::default()).await?;
    let version = list.metadata.resource_version.context("a list without a version")?;
    Ok(async move {
        let events = api.watch(&WatchParams::default().timeout(WATCH_SECONDS), &version).await?;
        let mut events = pin!(events);
        while let Some(event) = events.try_next().await? {
            let (object, is_deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => anyhow::bail!("the witness's watch failed: {status:?}"),
            };
            add(&mut observations.lock().unwrap_or_else(PoisonError::into_inner), &object, is_deleted);
        }
        anyhow::bail!("the witness's watch has ended")
    })
}

impl Observations {
    fn add_service(&mut self, service: &Service, is_deleted: bool) {
        let (uid, name, addresses) = (service.uid().unwrap_or_default(), service.name_any(), ingress(service));
        if is_deleted {
            self.services.remove(&uid);
            return;
        }
        let before = self.services.get(&uid).map(|(_, before)| before.clone()).unwrap_or_default();
        let is_ending = service.metadata.deletion_timestamp.is_some();
        if !before.is_empty() && before != addresses && !is_ending && !self.movers.contains(&name.as_str()) {
            self.violations.push(format!("{name} had {before:?} and then {addresses:?}"));
        }
        // The controller first deletes the record of an ending Service, which frees the address, and then removes the
        // finalizer of the Service. In between, the status of the Service is stale.
        let addresses = if is_ending { Vec::new() } else { addresses };
        for (other_uid, (other, others)) in &self.services {
            if *other_uid != uid
                && let Some(both) =
                    addresses.iter().find(|address| others.contains(address) && **address != self.shared)
            {
                self.violations.push(format!("{name} and {other} both had {both}"));
            }
        }
        self.services.insert(uid, (name, addresses));
    }

    fn add_record(&mut self, record: &LoadBalancerIP, is_deleted: bool) {
        if is_deleted {
            let holders = record.spec.services.iter().map(|holder| holder.uid.to_string()).collect();
            self.deleted_records.push((record.name_any(), holders));
        }
    }

    /// Forgets deleted records whose holders are being deleted, have no address, or may change it.
    fn forget_allowed_deletions(&mut self) {
        let (services, movers) = (&self.services, self.movers);
        let holds = |uid: &String| {
            let service = services.get(uid);
            service.is_some_and(|(name, addresses)| !addresses.is_empty() && !movers.contains(&name.as_str()))
        };
        self.deleted_records.retain(|(_, holders)| holders.iter().any(holds));
    }
}
