//! A controller that is killed at any of its writes: whatever became of that write, the next controller brings everything
//! to where it belongs, and on the way no address is given twice, changed or lost.
//!
//! There are more Services than addresses, and those that wait have names that sort before those that have one: a plan
//! that starts anew from what it finds would give them the others' addresses. While the controller is at it, one Service
//! is deleted, one moves to another address, one asks for nothing any more, and one comes too late. The scenario is played
//! again and again, each time with the trap one write further on, until it comes to its end without. Then each controller
//! is killed after a few writes, and so is the next.
//!
//! The controller is the release binary, as a process on the control plane's host.

mod proxy;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::{IPAddressPool, LoadBalancerIP};
use e2e::world::{allocated, ingress, root};
use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use lab::{Cluster, KubeProxy, Process, Topology, wait_until};
use serde_json::{Value, json};

use proxy::{Fate, Proxy, Trap};
use witness::Witness;

/// How long anything may take until all is at rest, also with a controller that has to find out what its predecessor did.
const PATIENCE: Duration = Duration::from_secs(10);

/// More writes than the scenario has.
const ENOUGH: usize = 60;

/// Who may change its address: it asks for another one.
const MOVER: &str = "m-3";

/// A cluster without nodes, a controller behind a proxy, and a witness.
struct Stage {
    cluster: Cluster,
    client: Client,
    proxy: Proxy,
    witness: Witness,
    controller: Process,
}

/// Who has which address.
type Holdings = BTreeMap<String, IpAddr>;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_at_any_write_leaves_nothing_that_the_next_one_does_not_put_right() -> Result<()> {
    let mut stage = Stage::set().await?;
    let begun = Instant::now();
    let mut late = BTreeMap::new();
    for fate in [Fate::Lost, Fate::Done, Fate::Late] {
        let mut at = 1;
        while stage.play(Trap { at, fate }, &mut late).await.with_context(|| format!("{fate:?}, write {at}"))? {
            at += 1;
            ensure!(at < ENOUGH, "the scenario does not come to an end");
        }
        eprintln!("{fate:?}: killed at each of {} writes ({:.1?})", at - 1, begun.elapsed());
        // Fewer would say that the proxy sees nothing: a deletion, a move and two that get an address take as many.
        ensure!(at > 10, "only {} writes", at - 1);
    }
    eprintln!("writes that came late, by the API server's answer: {late:?}");
    for writes in 1..=3 {
        let died = stage.wear_out(writes).await.with_context(|| format!("each lives for {writes} writes"))?;
        eprintln!("{died} controllers in turn, each killed at write {writes} ({:.1?})", begun.elapsed());
        ensure!(died > 2, "only {died} died");
    }
    stage.cluster.down()
}

impl Stage {
    async fn set() -> Result<Self> {
        let (nodes, light_nodes, clients, kube_proxy) = (0, 0, 0, KubeProxy::None);
        let topology = Topology { nodes, light_nodes, clients, kube_proxy, capture: false, ..Topology::default() };
        let cluster = Cluster::up("e2e-crash", &topology).await?;
        let client = cluster.client();
        cluster.apply(&fs::read_to_string(root().join("deploy/crds.yaml"))?)?;
        cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        cluster.kubectl(["create", "namespace", "landfall-system"])?;
        let pools: Api<IPAddressPool> = Api::all(client.clone());
        for (name, addresses, automatic) in
            [("lan", "192.0.2.200-192.0.2.202", true), ("side", "192.0.2.210/32", false)]
        {
            let pool = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": name},
                "spec": {"addresses": [addresses], "autoAssign": automatic},
            });
            // An established definition may still take a moment to be served.
            let made =
                async || Ok(pools.create(&PostParams::default(), &serde_json::from_value(pool.clone())?).await?);
            wait_until(PATIENCE, "a pool to be made", made).await?;
        }
        let proxy = Proxy::start(&cluster)?;
        let witness = Witness::begin(&client, &[MOVER]).await?;
        let controller = start(&cluster, &proxy)?;
        Ok(Self { cluster, client, proxy, witness, controller })
    }

    /// Plays the scenario with this trap. Returns whether it went off.
    async fn play(&mut self, trap: Trap, late: &mut BTreeMap<u16, usize>) -> Result<bool> {
        let before = self.open().await?;
        self.proxy.set(trap);
        self.shake().await?;
        let sprung = self.dead_or_at_rest(&before).await?;
        if let Some(sprung) = &sprung {
            self.restart().await?;
            self.until(sprung, async || self.is_at_rest(&before).await).await?;
            if trap.fate == Fate::Late {
                let at_rest = self.holdings().await?;
                let answer = self.proxy.deliver_late().await?;
                *late.entry(answer).or_default() += 1;
                let what = format!("{sprung}, answered with {answer}");
                ensure!(answer >= 400, "{what}, although all that was to do has been done since");
                self.until(&what, async || self.is_at_rest(&before).await).await?;
                ensure!(self.holdings().await? == at_rest, "{what}: {at_rest:?}, then {:?}", self.holdings().await?);
            }
        }
        self.witness.ask().await.with_context(|| format!("{sprung:?}"))?;
        self.clean().await?;
        Ok(sprung.is_some())
    }

    /// Plays it with controllers of which each dies after as many writes. Returns how many died.
    async fn wear_out(&mut self, writes: usize) -> Result<usize> {
        let before = self.open().await?;
        self.proxy.set(Trap { at: writes, fate: Fate::Done });
        self.shake().await?;
        let mut died = 0;
        while self.dead_or_at_rest(&before).await?.is_some() {
            died += 1;
            ensure!(died < ENOUGH, "it does not come to rest");
            self.proxy.set(Trap { at: writes, fate: Fate::Done });
            self.restart().await?;
        }
        self.witness.ask().await?;
        self.clean().await?;
        Ok(died)
    }

    /// Makes the Services, and waits until the controller has looked at them. Returns who has what.
    async fn open(&self) -> Result<Holdings> {
        // Those that will be pending come last, with names that come first.
        for names in [["m-1", "m-2", "m-3"], ["a-1", "a-2", "a-3"]] {
            try_join_all(names.map(|name| self.create(name))).await?;
            let has_address = names[0] == "m-1";
            self.until("the Services to be looked at", async || {
                for name in names {
                    let service = self.services().get(name).await?;
                    ensure!(allocated(&service).is_some() && ingress(&service).is_empty() != has_address, "{name}");
                }
                Ok(())
            })
            .await?;
        }
        self.holdings().await
    }

    /// What users do, all at once.
    async fn shake(&self) -> Result<()> {
        let (delete, patch) = (DeleteParams::default(), PatchParams::default());
        let moves = Patch::Merge(json!({"spec": {"loadBalancerIP": "192.0.2.210"}}));
        let stays_inside = Patch::Merge(json!({"spec": {"type": "ClusterIP"}}));
        tokio::try_join!(
            async { self.services().delete("m-2", &delete).await.map(drop) },
            async { self.services().patch(MOVER, &patch, &moves).await.map(drop) },
            async { self.services().patch("a-3", &patch, &stays_inside).await.map(drop) },
        )?;
        self.create("z").await
    }

    /// Waits until the controller is dead, and says at which write, or all is at rest without.
    async fn dead_or_at_rest(&self, before: &Holdings) -> Result<Option<String>> {
        self.until("the trap to go off, or all to be at rest", async || match self.proxy.sprung() {
            Some(_) => Ok(()),
            None => self.is_at_rest(before).await,
        })
        .await?;
        self.proxy.clear();
        // With a trap near the end, both may come at once.
        Ok(self.proxy.sprung())
    }

    /// What must be in the end, as far as it does not depend on chance.
    async fn is_at_rest(&self, before: &Holdings) -> Result<()> {
        let services = self.services().list(&ListParams::default()).await?.items;
        let services: Vec<_> = services.into_iter().filter(|service| service.name_any() != "kubernetes").collect();
        let names: Vec<_> = services.iter().map(ResourceExt::name_any).collect();
        ensure!(names == ["a-1", "a-2", "a-3", "m-1", "m-3", "z"], "{names:?}");
        for service in &services {
            let (name, addresses, condition) = (service.name_any(), ingress(service), allocated(service));
            let said = condition.as_ref().map(|condition| (condition.status.as_str(), condition.reason.as_str()));
            let expected: &[&str] = match name.as_str() {
                // Has no address, and says why.
                "z" => &["False", "PoolsExhausted"],
                "a-3" => &[],
                _ => &["True", "Allocated"],
            };
            ensure!(said.map_or(vec![], |(status, reason)| vec![status, reason]) == expected, "{name}: {condition:?}");
            ensure!(addresses.len() == usize::from(expected.first() == Some(&"True")), "{name}: {addresses:?}");
            let finalizers = service.finalizers();
            ensure!(!addresses.is_empty() || finalizers.is_empty(), "{name} has none and keeps {finalizers:?}");
        }
        let now = self.holdings().await?;
        ensure!(now.get("m-1") == before.get("m-1"), "m-1 had {:?} and has {:?}", before.get("m-1"), now.get("m-1"));
        ensure!(now.get(MOVER) == Some(&"192.0.2.210".parse()?), "{MOVER} has {:?}", now.get(MOVER));

        // Each address is a record of one Service that is there, and no record is left over.
        let records: Api<LoadBalancerIP> = Api::all(self.client.clone());
        let mut held = BTreeSet::new();
        for record in records.list(&ListParams::default()).await?.items {
            let uids: Vec<_> = record.spec.services.iter().map(|holder| holder.uid.clone()).collect();
            ensure!(record.metadata.deletion_timestamp.is_none(), "{} is being deleted", record.name_any());
            ensure!(uids.len() == 1, "{} has {} holders", record.name_any(), uids.len());
            held.insert((uids[0].clone(), record.address()?));
        }
        let shown: BTreeSet<_> = services
            .iter()
            .flat_map(|service| {
                ingress(service).into_iter().map(|address| (service.uid().unwrap_or_default(), address))
            })
            .collect();
        ensure!(held == shown, "records say {held:?}, Services {shown:?}");
        Ok(())
    }

    /// Starts the next controller. Its predecessor is dead for certain, so its term need not be waited for: a test has
    /// hardly the time to do that sixty times.
    async fn restart(&self) -> Result<()> {
        let controller = &self.controller;
        self.until("the dead controller to be gone", async || {
            ensure!(!controller.is_running(), "it runs");
            Ok(())
        })
        .await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "landfall-system");
        leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        controller.start()?;
        self.proxy.revive(controller.clone());
        Ok(())
    }

    /// Deletes all Services, and waits until nothing of them is left.
    async fn clean(&self) -> Result<()> {
        let names: Vec<_> = self.services().list(&ListParams::default()).await?.items;
        let names = names.iter().map(ResourceExt::name_any).filter(|name| name != "kubernetes");
        let (services, params) = (self.services(), DeleteParams::default());
        try_join_all(names.map(async |name| services.delete(&name, &params).await)).await?;
        let records: Api<LoadBalancerIP> = Api::all(self.client.clone());
        self.until("all to be gone", async || {
            let services = self.services().list(&ListParams::default()).await?.items;
            let records = records.list(&ListParams::default()).await?.items;
            ensure!(
                services.len() == 1 && records.is_empty(),
                "{} Services, {} records",
                services.len(),
                records.len()
            );
            Ok(())
        })
        .await
    }

    async fn create(&self, name: &str) -> Result<()> {
        let service = json!({
            "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]},
        });
        self.services().create(&PostParams::default(), &serde_json::from_value::<Service>(service)?).await?;
        Ok(())
    }

    async fn holdings(&self) -> Result<Holdings> {
        let services = self.services().list(&ListParams::default()).await?.items;
        Ok(services.iter().filter_map(|service| Some((service.name_any(), *ingress(service).first()?))).collect())
    }

    async fn until<T>(&self, what: &str, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        wait_until(PATIENCE, what, condition).await
    }

    fn services(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }
}

/// Starts a controller that takes the proxy for its API server. It needs no credentials: the proxy has them.
fn start(cluster: &Cluster, proxy: &Proxy) -> Result<Process> {
    let host = cluster.control_plane();
    let kubeconfig: Value = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": proxy.url}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {
            "cluster": "proxy", "user": "proxy", "namespace": "landfall-system",
        }}],
    });
    let path = host.dir().join("kubeconfig.proxy");
    fs::write(&path, kubeconfig.to_string())?;
    let binary = root().join("target/x86_64-unknown-linux-musl/release/landfall");
    let mut command = Command::new(binary);
    command.arg("controller").env("KUBECONFIG", path);
    // It is known to the proxy before its first request.
    proxy.revive(host.process("controller"));
    host.spawn("controller", &command)
}
