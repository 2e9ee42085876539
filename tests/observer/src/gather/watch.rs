//! Watches of Services and LoadBalancerIPs.
//!
//! Each is a task that lists all objects, follows their changes, and begins again after any failure: the API server may
//! restart, and Landfall's definitions may not exist.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crds::{LoadBalancerIP, Record};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::checks::Fact;
use crate::checks::objects::ServiceFacts;
use crate::gather::Shared;

/// Duration of one watch in seconds. The next one continues from its end.
const WATCH_SECONDS: u32 = 290;

/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// A kind of object that is observed.
trait Observed: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    const NAME: &'static str;
    fn list_fact(objects: Vec<Self>) -> Fact;
    fn change_fact(&self) -> Option<Fact>;
    fn deletion_fact(&self) -> Option<Fact>;
}

impl Observed for Service {
    const NAME: &'static str = "Service";

    fn list_fact(objects: Vec<Self>) -> Fact {
        Fact::Services(objects.iter().map(ServiceFacts::from).collect())
    }

    fn change_fact(&self) -> Option<Fact> {
        Some(Fact::Service(ServiceFacts::from(self)))
    }

    fn deletion_fact(&self) -> Option<Fact> {
        Some(Fact::ServiceDeleted(self.uid()?))
    }
}

impl Observed for LoadBalancerIP {
    const NAME: &'static str = "LoadBalancerIP";

    fn list_fact(objects: Vec<Self>) -> Fact {
        Fact::Records(objects.iter().filter_map(|object| Record::try_from(object).ok()).collect())
    }

    fn change_fact(&self) -> Option<Fact> {
        Some(Fact::Record(Box::new(Record::try_from(self).ok()?)))
    }

    fn deletion_fact(&self) -> Option<Fact> {
        Some(Fact::RecordDeleted(self.address().ok()?))
    }
}

/// Starts both watches. They end with the set.
pub fn start(shared: &Arc<Shared>, client: &Client) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::<Service>(Arc::clone(shared), Api::all(client.clone())));
    tasks.spawn(follow::<LoadBalancerIP>(Arc::clone(shared), Api::all(client.clone())));
    tasks
}

async fn follow<K: Observed>(shared: Arc<Shared>, objects: Api<K>) {
    loop {
        // An error is ignored, because the next list contains all changes.
        let _ = follow_once(&shared, &objects).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once<K: Observed>(shared: &Shared, objects: &Api<K>) -> Result<()> {
    let mut version = list(shared, objects).await?;
    loop {
        let events = objects.watch(&WatchParams::default().timeout(WATCH_SECONDS), &version).await?;
        let mut events = pin!(events);
        while let Some(event) = events.try_next().await? {
            let (object, fact) = match &event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, object.change_fact()),
                WatchEvent::Deleted(object) => (object, object.deletion_fact()),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => bail!("the watch failed: {status:?}"),
            };
            version = object.resource_version().unwrap_or_default();
            let number = number(&version)?;
            fact.into_iter().for_each(|fact| _ = shared.add_in_order(K::NAME, number, fact));
        }
    }
}

/// Adds all objects, and returns the version of the list.
async fn list<K: Observed>(shared: &Shared, objects: &Api<K>) -> Result<String> {
    loop {
        let list = match objects.list(&ListParams::default()).await {
            // The kind does not exist, and so has no object.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                shared.add(K::list_fact(Vec::new()));
                bail!("the kind does not exist");
            }
            list => list.context("list objects")?,
        };
        let version = list.metadata.resource_version.context("a list without a version")?;
        if shared.add_in_order(K::NAME, number(&version)?, K::list_fact(list.items)) {
            return Ok(version);
        }
    }
}

/// A version as a number. Versions of one kind can be compared (KEP-5504).
fn number(version: &str) -> Result<u64> {
    version.parse().with_context(|| format!("version {version:?} is no number"))
}

/// Lists all Services and LoadBalancerIPs now.
pub async fn list_all(shared: &Shared, client: &Client) {
    // Errors are ignored: a kind may not exist, and an API server that does not answer fails other steps.
    let _ = list::<LoadBalancerIP>(shared, &Api::all(client.clone())).await;
    let _ = list::<Service>(shared, &Api::all(client.clone())).await;
}
