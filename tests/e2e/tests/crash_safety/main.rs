//! A controller that is killed at any of its writes: whatever became of that write, the next controller brings everything
//! to where it belongs, and on the way no address is given twice, changed or lost.
//!
//! There are more Services than addresses, and those that wait have names that sort before those that have one: a plan
//! that starts anew from what it finds would give them the others' addresses. While the controller is at it, one Service
//! is deleted, one moves to another address, one asks for nothing any more, and one comes too late; of two that share an
//! address one leaves, and a third one joins; a reserved address goes from one to the next. The scenario is played again
//! and again, each time with the trap one write further on, until it comes to its end without. Then each controller
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

/// The pools: name, addresses, and whether Services get them that name neither pool nor address.
const POOLS: [(&str, &str, bool); 4] = [
    ("lan", "192.0.2.200-192.0.2.202", true),
    ("side", "192.0.2.210/32", false),
    ("shared", SHARED, false),
    ("kept", "192.0.2.230/32", false),
];

/// The pool of one address that several share.
const SHARED: &str = "192.0.2.220/32";

/// The address that is reserved.
const RESERVED: &str = "192.0.2.230";

/// Who has which address in the end, as far as it does not depend on chance.
const IN_THE_END: [(&str, &str); 4] =
    [(MOVER, "192.0.2.210"), ("r-2", RESERVED), ("s-2", "192.0.2.220"), ("s-3", "192.0.2.220")];

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
    stage.cluster.remove()
}

impl Stage {
    async fn set() -> Result<Self> {
        let (nodes, light_nodes, clients, kube_proxy) = (0, 0, 0, KubeProxy::None);
        let topology = Topology { nodes, light_nodes, clients, kube_proxy, capture: false, ..Topology::default() };
        let cluster = Cluster::start("e2e-crash", &topology).await?;
        let client = cluster.client();
        cluster.apply(&fs::read_to_string(root().join("deploy/crds.yaml"))?)?;
        cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        cluster.kubectl(["create", "namespace", "landfall-system"])?;
        let pools: Api<IPAddressPool> = Api::all(client.clone());
        for (name, addresses, automatic) in POOLS {
            let pool = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": name},
                "spec": {"addresses": [addresses], "autoAssign": automatic},
            });
            // An established definition may still take a moment to be served.
            let made =
                async || Ok(pools.create(&PostParams::default(), &serde_json::from_value(pool.clone())?).await?);
            wait_until(PATIENCE, "a pool to be made", made).await?;
        }
        let records: Api<LoadBalancerIP> = Api::all(client.clone());
        let reservation = json!({"metadata": {"name": RESERVED}, "spec": {"address": RESERVED, "reservation": {}}});
        records.create(&PostParams::default(), &serde_json::from_value(reservation)?).await?;
        let proxy = Proxy::start(&cluster)?;
        let witness = Witness::begin(&client, &[MOVER], "192.0.2.220".parse()?).await?;
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
        for (names, served) in
            [(&["m-1", "m-2", "m-3", "s-1", "s-2", "r-1"][..], true), (&["a-1", "a-2", "a-3"], false)]
        {
            try_join_all(names.iter().map(|name| self.create(name))).await?;
            self.until("the Services to be looked at", async || {
                let services = self.all().await?;
                for service in services.iter().filter(|service| names.contains(&service.name_any().as_str())) {
                    let looked_at = allocated(service).is_some() && ingress(service).is_empty() != served;
                    ensure!(looked_at, "{}: {:?}", service.name_any(), allocated(service));
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
            async { self.services().delete("s-1", &delete).await.map(drop) },
            async { self.services().delete("r-1", &delete).await.map(drop) },
            async { self.services().patch(MOVER, &patch, &moves).await.map(drop) },
            async { self.services().patch("a-3", &patch, &stays_inside).await.map(drop) },
        )?;
        try_join_all(["s-3", "r-2", "z"].map(|name| self.create(name))).await?;
        Ok(())
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

    /// What must be in the end.
    async fn is_at_rest(&self, before: &Holdings) -> Result<()> {
        let services = self.all().await?;
        let names: Vec<_> = services.iter().map(ResourceExt::name_any).collect();
        ensure!(names == ["a-1", "a-2", "a-3", "m-1", "m-3", "r-2", "s-2", "s-3", "z"], "{names:?}");
        for service in &services {
            let (name, addresses, condition) = (service.name_any(), ingress(service), allocated(service));
            let said = condition.as_ref().map(|condition| (condition.status.as_str(), condition.reason.as_str()));
            let expected = match name.as_str() {
                // Has no address, and says why.
                "z" => Some(("False", "PoolsExhausted")),
                "a-3" => None,
                _ => Some(("True", "Allocated")),
            };
            ensure!(said == expected, "{name}: {condition:?}");
            ensure!(addresses.len() == usize::from(said == Some(("True", "Allocated"))), "{name}: {addresses:?}");
            let finalizers = service.finalizers();
            ensure!(!addresses.is_empty() || finalizers.is_empty(), "{name} has none and keeps {finalizers:?}");
        }
        let now = holdings(&services);
        ensure!(now.get("m-1") == before.get("m-1"), "m-1 had {:?} and has {:?}", before.get("m-1"), now.get("m-1"));
        for (name, address) in IN_THE_END {
            ensure!(now.get(name) == Some(&address.parse()?), "{name} has {:?}", now.get(name));
        }

        // The records say just what the Services show: none is left over, and none is missing.
        let mut held = BTreeSet::new();
        for record in self.records().await? {
            ensure!(record.metadata.deletion_timestamp.is_none(), "{} is being deleted", record.name_any());
            let address = record.address()?;
            held.extend(record.spec.services.iter().map(|holder| (holder.uid.clone(), address)));
        }
        let of = |service: &Service| (crds::InternedStr::from(service.uid().unwrap_or_default()), ingress(service));
        let shown: Vec<_> = services.iter().map(of).collect();
        let shown: BTreeSet<_> =
            shown.into_iter().flat_map(|(uid, all)| all.into_iter().map(move |one| (uid.clone(), one))).collect();
        ensure!(held == shown, "records say {held:?}, Services {shown:?}");
        let records = self.records().await?.len();
        ensure!(records == 6, "{records} records");

        // And the pools say how many that are.
        let pools: Api<IPAddressPool> = Api::all(self.client.clone());
        for pool in pools.list(&ListParams::default()).await?.items {
            let assigned = pool.status.as_ref().map(|status| status.assigned_ipv4);
            let expected = if pool.name_any() == "lan" { 3 } else { 1 };
            ensure!(assigned == Some(expected), "pool {} has given out {assigned:?}", pool.name_any());
        }
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
        let (services, params) = (self.services(), DeleteParams::default());
        let names = self.all().await?;
        try_join_all(names.iter().map(async |service| services.delete(&service.name_any(), &params).await)).await?;
        self.until("all to be gone", async || {
            let (services, records) = (self.all().await?, self.records().await?);
            let held: Vec<_> = records.iter().flat_map(|record| &record.spec.services).collect();
            ensure!(
                services.is_empty() && held.is_empty() && records.len() == 1,
                "{} Services, {held:?}",
                services.len()
            );
            Ok(())
        })
        .await
    }

    async fn create(&self, name: &str) -> Result<()> {
        let annotations = match name.split_once('-') {
            Some(("s", _)) => json!({"landfall.dev/address-pool": "shared", "landfall.dev/allow-shared-ip": "key"}),
            Some(("r", _)) => json!({"landfall.dev/load-balancer-ips": RESERVED}),
            _ => json!({}),
        };
        // Those that share have ports of their own.
        let port = name.bytes().last().map_or(80, u16::from);
        let service = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": port}]},
        });
        self.services().create(&PostParams::default(), &serde_json::from_value::<Service>(service)?).await?;
        Ok(())
    }

    async fn holdings(&self) -> Result<Holdings> {
        Ok(holdings(&self.all().await?))
    }

    /// All Services but that of the API server, by name.
    async fn all(&self) -> Result<Vec<Service>> {
        let services = self.services().list(&ListParams::default()).await?.items;
        Ok(services.into_iter().filter(|service| service.name_any() != "kubernetes").collect())
    }

    async fn records(&self) -> Result<Vec<LoadBalancerIP>> {
        let records: Api<LoadBalancerIP> = Api::all(self.client.clone());
        Ok(records.list(&ListParams::default()).await?.items)
    }

    async fn until<T>(&self, what: &str, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        wait_until(PATIENCE, what, condition).await
    }

    fn services(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }
}

fn holdings(services: &[Service]) -> Holdings {
    services.iter().filter_map(|service| Some((service.name_any(), *ingress(service).first()?))).collect()
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
    command.arg("controller").env("KUBECONFIG", path).env("LANDFALL_LEASE_NAMESPACE", "landfall-system");
    // It is known to the proxy before its first request.
    proxy.revive(host.process("controller"));
    host.spawn("controller", &command)
}
