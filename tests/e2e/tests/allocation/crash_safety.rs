//! A controller is killed at each of its writes. Whether the write was lost, done or late, the next controller repairs
//! everything, and no address is ever allocated twice, changed or lost.
//!
//! There are more Services than addresses. Waiting Services have names that sort before the allocated ones, so a plan
//! that forgot the allocations would move addresses. Users change the Services while the controller works: one is
//! deleted, one requests another address, one becomes a ClusterIP, and one is created without a free address; of two
//! that share an address one is deleted, and a third joins; a reserved address moves from one Service to another. The
//! scenario repeats, with the trap one write later each time, until it ends without a crash. Then every controller is
//! killed after a few writes.
//!
//! The controller is the release binary, as a process on the control plane's host.

mod controller_trap;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::{IPAddressPool, LoadBalancerIP};
use e2e::api_proxy::ApiProxy;
use e2e::world::{allocated_condition, ingress, root};
use futures::future::try_join_all;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use lab::{Cluster, KubeProxy, Process, Topology, wait_until};
use serde_json::{Value, json};

use controller_trap::{ControllerTrap, Trap, WriteFate, accept, deliver_late_write};
use witness::Witness;

/// Limit of waiting for the final state, also after a crash.
const TIMEOUT: Duration = Duration::from_secs(10);

/// More writes than the scenario has.
const MAX_WRITES: usize = 60;

/// The Service that requests another address.
const MOVER: &str = "m-3";

/// The pools: name, addresses, and `autoAssign`.
const POOLS: [(&str, &str, bool); 4] = [
    ("lan", "192.0.2.200-192.0.2.202", true),
    ("side", "192.0.2.210/32", false),
    ("shared", SHARED, false),
    ("kept", "192.0.2.230/32", false),
];

/// The pool of the shared address.
const SHARED: &str = "192.0.2.220/32";

/// The reserved address.
const RESERVED: &str = "192.0.2.230";

/// The final address of each Service whose address is not random.
const FINAL_ADDRESSES: [(&str, &str); 4] =
    [(MOVER, "192.0.2.210"), ("r-2", RESERVED), ("s-2", "192.0.2.220"), ("s-3", "192.0.2.220")];

/// A cluster without nodes, a controller behind a proxy, and a witness.
struct CrashFixture {
    cluster: Cluster,
    client: Client,
    proxy: ApiProxy<ControllerTrap>,
    witness: Witness,
    controller: Process,
}

/// The address of each Service.
type AddressByService = BTreeMap<String, IpAddr>;

#[tokio::test(flavor = "multi_thread")]
async fn the_next_controller_repairs_a_crash_at_any_write() -> Result<()> {
    let mut fixture = CrashFixture::start().await?;
    let start = Instant::now();
    let mut late = BTreeMap::new();
    for fate in [WriteFate::Lost, WriteFate::Done, WriteFate::Late] {
        let mut write = 1;
        while fixture.play(Trap { write, fate }, &mut late).await.with_context(|| format!("{fate:?}, write {write}"))? {
            write += 1;
            ensure!(write < MAX_WRITES, "the scenario does not end");
        }
        eprintln!("{fate:?}: killed at each of {} writes ({:.1?})", write - 1, start.elapsed());
        // The scenario needs more than ten writes. With fewer, the proxy does not see all of them.
        ensure!(write > 10, "only {} writes", write - 1);
    }
    eprintln!("late writes, by status of the API server's answer: {late:?}");
    for writes in 1..=3 {
        let killed = fixture.kill_repeatedly(writes).await.with_context(|| format!("killed at write {writes}"))?;
        eprintln!("{killed} controllers in turn, each killed at write {writes} ({:.1?})", start.elapsed());
        ensure!(killed > 2, "only {killed} were killed");
    }
    fixture.cluster.remove()
}

impl CrashFixture {
    async fn start() -> Result<Self> {
        let (nodes, light_nodes, clients, kube_proxy) = (0, 0, 0, KubeProxy::None);
        let topology = Topology { nodes, light_nodes, clients, kube_proxy, capture: false, ..Topology::default() };
        let cluster = Cluster::start("e2e-crash", &topology).await?;
        let client = cluster.client();
        cluster.apply(&crds::manifest::yaml()?)?;
        cluster.kubectl(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
        cluster.kubectl(["create", "namespace", "landfall-system"])?;
        let pools: Api<IPAddressPool> = Api::all(client.clone());
        for (name, addresses, automatic) in POOLS {
            let pool = json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": name},
                "spec": {"addresses": [addresses], "autoAssign": automatic},
            });
            // An established definition may take a moment until the API server serves it.
            let create =
                async || Ok(pools.create(&PostParams::default(), &serde_json::from_value(pool.clone())?).await?);
            wait_until(TIMEOUT, "a pool to be created", create).await?;
        }
        let records: Api<LoadBalancerIP> = Api::all(client.clone());
        let reservation = json!({"metadata": {"name": RESERVED}, "spec": {"address": RESERVED, "reservation": {}}});
        records.create(&PostParams::default(), &serde_json::from_value(reservation)?).await?;
        let proxy = ApiProxy::start(
            cluster.control_plane(),
            Ipv4Addr::LOCALHOST.into(),
            None,
            client.clone(),
            ControllerTrap::default(),
        )?;
        let witness = Witness::start(&client, &[MOVER], "192.0.2.220".parse()?).await?;
        let controller = start_controller(&cluster, &proxy)?;
        Ok(Self { cluster, client, proxy, witness, controller })
    }

    /// Plays the scenario with this trap. Returns whether the trap killed the controller.
    async fn play(&mut self, trap: Trap, late: &mut BTreeMap<u16, usize>) -> Result<bool> {
        let before = self.create_services().await?;
        self.proxy.script().set(trap);
        self.change_services().await?;
        let killed_at = self.wait_for_crash_or_final_state(&before).await?;
        if let Some(killed_at) = &killed_at {
            self.restart_controller().await?;
            self.wait(killed_at, async || self.check_final_state(&before).await).await?;
            if trap.fate == WriteFate::Late {
                let addresses = self.addresses().await?;
                let status = deliver_late_write(&self.proxy, &self.client).await?;
                *late.entry(status).or_default() += 1;
                let what = format!("{killed_at}, answered with {status}");
                ensure!(status >= 400, "{what}, although the next controller has finished its work");
                self.wait(&what, async || self.check_final_state(&before).await).await?;
                let after = self.addresses().await?;
                ensure!(after == addresses, "{what}: {addresses:?}, then {after:?}");
            }
        }
        self.witness.check().await.with_context(|| format!("{killed_at:?}"))?;
        self.delete_services().await?;
        Ok(killed_at.is_some())
    }

    /// Plays the scenario with controllers that are all killed at this write. Returns the number of kills.
    async fn kill_repeatedly(&mut self, write: usize) -> Result<usize> {
        let before = self.create_services().await?;
        self.proxy.script().set(Trap { write, fate: WriteFate::Done });
        self.change_services().await?;
        let mut killed = 0;
        while self.wait_for_crash_or_final_state(&before).await?.is_some() {
            killed += 1;
            ensure!(killed < MAX_WRITES, "the final state is not reached");
            self.proxy.script().set(Trap { write, fate: WriteFate::Done });
            self.restart_controller().await?;
        }
        self.witness.check().await?;
        self.delete_services().await?;
        Ok(killed)
    }

    /// Creates the Services, and waits until the controller has processed them. Returns their addresses.
    async fn create_services(&self) -> Result<AddressByService> {
        // The Services that will be pending are created last, with names that sort first.
        for (names, have_addresses) in
            [(&["m-1", "m-2", "m-3", "s-1", "s-2", "r-1"][..], true), (&["a-1", "a-2", "a-3"], false)]
        {
            try_join_all(names.iter().map(|name| self.create_service(name))).await?;
            self.wait("the Services to be processed", async || {
                let services = self.services().await?;
                for service in services.iter().filter(|service| names.contains(&service.name_any().as_str())) {
                    let is_processed =
                        allocated_condition(service).is_some() && ingress(service).is_empty() != have_addresses;
                    ensure!(is_processed, "{}: {:?}", service.name_any(), allocated_condition(service));
                }
                Ok(())
            })
            .await?;
        }
        // A controller may write the status of a pool later, and the trap must not count that write: the final status
        // can be the same as before, so that the next controller does not write it.
        self.wait("the pools to count the addresses", async || self.check_pools(0).await).await?;
        self.addresses().await
    }

    /// Makes all changes of users at once.
    async fn change_services(&self) -> Result<()> {
        let (delete, patch) = (DeleteParams::default(), PatchParams::default());
        let other_address = Patch::Merge(json!({"spec": {"loadBalancerIP": "192.0.2.210"}}));
        let cluster_ip = Patch::Merge(json!({"spec": {"type": "ClusterIP"}}));
        tokio::try_join!(
            async { self.service_api().delete("m-2", &delete).await.map(drop) },
            async { self.service_api().delete("s-1", &delete).await.map(drop) },
            async { self.service_api().delete("r-1", &delete).await.map(drop) },
            async { self.service_api().patch(MOVER, &patch, &other_address).await.map(drop) },
            async { self.service_api().patch("a-3", &patch, &cluster_ip).await.map(drop) },
        )?;
        try_join_all(["s-3", "r-2", "z"].map(|name| self.create_service(name))).await?;
        Ok(())
    }

    /// Waits until the trap has killed the controller, and returns the write, or until the final state is reached.
    async fn wait_for_crash_or_final_state(&self, before: &AddressByService) -> Result<Option<String>> {
        self.wait("a crash or the final state", async || {
            let killed_at = self.proxy.script().killed_at();
            if killed_at.is_some() { Ok(()) } else { self.check_final_state(before).await }
        })
        .await?;
        self.proxy.script().clear();
        // A trap at one of the last writes may have killed the controller after the check.
        Ok(self.proxy.script().killed_at())
    }

    /// Checks that all objects have their final state.
    async fn check_final_state(&self, before: &AddressByService) -> Result<()> {
        let services = self.services().await?;
        let names: Vec<_> = services.iter().map(ResourceExt::name_any).collect();
        ensure!(names == ["a-1", "a-2", "a-3", "m-1", "m-3", "r-2", "s-2", "s-3", "z"], "{names:?}");
        for service in &services {
            let (name, addresses, condition) = (service.name_any(), ingress(service), allocated_condition(service));
            let state = condition.as_ref().map(|condition| (condition.status.as_str(), condition.reason.as_str()));
            let expected = match name.as_str() {
                "z" => Some(("False", "PoolsExhausted")),
                "a-3" => None,
                _ => Some(("True", "Allocated")),
            };
            ensure!(state == expected, "{name}: {condition:?}");
            ensure!(addresses.len() == usize::from(state == Some(("True", "Allocated"))), "{name}: {addresses:?}");
            let finalizers = service.finalizers();
            ensure!(!addresses.is_empty() || finalizers.is_empty(), "{name} has no address and keeps {finalizers:?}");
        }
        let now = address_by_service(&services);
        ensure!(now.get("m-1") == before.get("m-1"), "m-1 had {:?} and has {:?}", before.get("m-1"), now.get("m-1"));
        for (name, address) in FINAL_ADDRESSES {
            ensure!(now.get(name) == Some(&address.parse()?), "{name} has {:?}", now.get(name));
        }

        // The records agree with the status of the Services.
        let mut held = BTreeSet::new();
        for record in self.records().await? {
            ensure!(record.metadata.deletion_timestamp.is_none(), "{} is being deleted", record.name_any());
            let address = record.address()?;
            held.extend(record.spec.services.iter().map(|holder| (holder.uid.clone(), address)));
        }
        let shown_by =
            |service: &Service| (crds::InternedStr::from(service.uid().unwrap_or_default()), ingress(service));
        let shown: Vec<_> = services.iter().map(shown_by).collect();
        let shown: BTreeSet<_> =
            shown.into_iter().flat_map(|(uid, all)| all.into_iter().map(move |one| (uid.clone(), one))).collect();
        ensure!(held == shown, "records have {held:?}, Services {shown:?}");
        let records = self.records().await?.len();
        ensure!(records == 6, "{records} records");

        self.check_pools(1).await
    }

    /// Checks that the pools count the addresses, of which `side` are in the pool that only one Service requests.
    async fn check_pools(&self, side: i64) -> Result<()> {
        let pools: Api<IPAddressPool> = Api::all(self.client.clone());
        for pool in pools.list(&ListParams::default()).await?.items {
            let assigned = pool.status.as_ref().map(|status| status.assigned_ipv4);
            let expected = match pool.name_any().as_str() {
                "lan" => 3,
                "side" => side,
                _ => 1,
            };
            ensure!(assigned == Some(expected), "pool {} counts {assigned:?}", pool.name_any());
        }
        Ok(())
    }

    /// Starts the next controller. Deletes the Lease of its predecessor, which is surely dead: waiting for the end of
    /// sixty Leases would take too long.
    async fn restart_controller(&self) -> Result<()> {
        let controller = &self.controller;
        self.wait("the end of the killed controller", async || {
            ensure!(!controller.is_running(), "the controller still runs");
            Ok(())
        })
        .await?;
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "landfall-system");
        leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        controller.start()?;
        accept(&self.proxy, controller.clone());
        Ok(())
    }

    /// Deletes all Services, and waits until only the reservation is left.
    async fn delete_services(&self) -> Result<()> {
        let (api, params) = (self.service_api(), DeleteParams::default());
        let names = self.services().await?;
        try_join_all(names.iter().map(async |service| api.delete(&service.name_any(), &params).await)).await?;
        self.wait("all Services and records to be deleted", async || {
            let (services, records) = (self.services().await?, self.records().await?);
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

    async fn create_service(&self, name: &str) -> Result<()> {
        let annotations = match name.split_once('-') {
            Some(("s", _)) => json!({"landfall.dev/address-pool": "shared", "landfall.dev/allow-shared-ip": "key"}),
            Some(("r", _)) => json!({"landfall.dev/load-balancer-ips": RESERVED}),
            _ => json!({}),
        };
        // Services that share an address have different ports.
        let port = name.bytes().last().map_or(80, u16::from);
        let service = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": port}]},
        });
        self.service_api().create(&PostParams::default(), &serde_json::from_value::<Service>(service)?).await?;
        Ok(())
    }

    async fn addresses(&self) -> Result<AddressByService> {
        Ok(address_by_service(&self.services().await?))
    }

    /// All Services except the API server's, by name.
    async fn services(&self) -> Result<Vec<Service>> {
        let services = self.service_api().list(&ListParams::default()).await?.items;
        Ok(services.into_iter().filter(|service| service.name_any() != "kubernetes").collect())
    }

    async fn records(&self) -> Result<Vec<LoadBalancerIP>> {
        let records: Api<LoadBalancerIP> = Api::all(self.client.clone());
        Ok(records.list(&ListParams::default()).await?.items)
    }

    async fn wait<T>(&self, what: &str, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        wait_until(TIMEOUT, what, condition).await
    }

    fn service_api(&self) -> Api<Service> {
        Api::default_namespaced(self.client.clone())
    }
}

fn address_by_service(services: &[Service]) -> AddressByService {
    services.iter().filter_map(|service| Some((service.name_any(), *ingress(service).first()?))).collect()
}

/// Starts a controller that uses the proxy as its API server. It has no credentials: the proxy adds them.
fn start_controller(cluster: &Cluster, proxy: &ApiProxy<ControllerTrap>) -> Result<Process> {
    let host = cluster.control_plane();
    let kubeconfig: Value = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{}", proxy.address())}}],
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
    // The proxy must know the controller before its first request.
    accept(proxy, host.process("controller"));
    host.spawn("controller", &command)
}
