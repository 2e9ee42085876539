//! Removal of Landfall in the ways that users know from other programs: `kubectl delete` of the manifest or of the
//! definitions. All scenes share one cluster: each installs Landfall, and removes it completely.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::World;
use e2e::scenes::print_result;
use e2e::world::{SOON, SYSTEM, root};
use lab::{Topology, wait_until};
use observer::Fault;
use serde_json::json;

/// The limit for the removal of all tables, rules and routes from every node.
const CLEAN: Duration = Duration::from_secs(60);

const NODES: [&str; 2] = ["n1", "n2"];

#[tokio::test(flavor = "multi_thread")]
async fn removal_by_habit_leaves_clean_nodes() -> Result<()> {
    let world = World::without_landfall("e2e-install", Topology { nodes: 2, ..Topology::default() }).await?;
    world.create_whoami("web", 2).await?;
    let site = Site { kernels: kernels(&world)?, world };
    let selected = std::env::var("LANDFALL_SCENE").unwrap_or_default();
    let is_selected = |name: &str| selected.is_empty() || selected == name;
    if is_selected("the_manifest_is_deleted") {
        site.play("the_manifest_is_deleted", the_manifest_is_deleted(&site)).await?;
    }
    if is_selected("the_definitions_are_deleted") {
        site.play("the_definitions_are_deleted", the_definitions_are_deleted(&site)).await?;
    }
    site.world.end()
}

/// The cluster of all scenes.
struct Site {
    world: World,
    /// The state of the kernels before any installation.
    kernels: Vec<KernelState>,
}

/// Tables, rules and routes of a node. Routes of the usual tables change with the pods.
#[derive(Debug, PartialEq, Eq)]
struct KernelState {
    tables: String,
    rules: Vec<String>,
    routes: Vec<String>,
}

fn kernels(world: &World) -> Result<Vec<KernelState>> {
    let state = |name: &&str| {
        let node = world.cluster.node(name);
        let lines = |words: &[&str]| -> Result<Vec<String>> {
            Ok(node.output(words.iter().copied())?.lines().map(str::to_owned).collect())
        };
        let mut routes = lines(&["ip", "route", "show", "table", "all"])?;
        routes.extend(lines(&["ip", "-6", "route", "show", "table", "all"])?);
        routes.retain(|route| route.contains(" table ") && !route.contains(" table local"));
        let rules = [lines(&["ip", "rule"])?, lines(&["ip", "-6", "rule"])?].concat();
        Ok(KernelState { tables: world.landfall_tables(name)?, rules, routes })
    };
    NODES.iter().map(state).collect()
}

impl Site {
    /// Plays a scene, and prints its time.
    async fn play(&self, name: &str, scene: impl Future<Output = Result<()>>) -> Result<()> {
        let start = Instant::now();
        let result = self.world.add_breaches(scene.await).await;
        self.world.end_faults();
        print_result(name, start, &result);
        result
    }

    /// Installs Landfall, waits as the README does, gives the Service `web` an address, and waits for an answer from
    /// it.
    async fn install_and_serve(&self) -> Result<()> {
        let world = &self.world;
        world.kubectl(&["apply", "-f", &manifest()])?;
        world.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment,daemonset", "--timeout=60s"])?;
        world.create_pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
        world.create_service("web", json!({})).await?;
        world.kubectl(&["wait", "--for=condition=landfall.dev/Announced", "service/web", "--timeout=30s"])?;
        self.expect_answer().await
    }

    /// Waits for an answer from the address of the Service.
    async fn expect_answer(&self) -> Result<()> {
        let address = self.world.wait_for_address("web").await?;
        wait_until(SOON, "an answer", async || self.world.lan.query_tcp(address)).await.map(drop)
    }

    /// Declares that the Service loses its address without a request of its user.
    async fn declare_removal(&self) -> Result<()> {
        self.world.declare(Fault::late_status(self.world.wait_for_address("web").await?));
        self.world.declare(Fault::forged_status("default/web"));
        Ok(())
    }

    /// Waits until the kernels are as before any installation.
    async fn expect_clean_kernels(&self) -> Result<()> {
        let start = Instant::now();
        wait_until(CLEAN, "clean kernels", async || {
            let seen = kernels(&self.world)?;
            ensure!(seen == self.kernels, "{seen:#?} and not {:#?}", self.kernels);
            Ok(())
        })
        .await?;
        eprintln!("  kernels are clean after {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// The path of the manifest.
fn manifest() -> String {
    root().join("deploy/landfall.yaml").to_string_lossy().into_owned()
}

async fn the_manifest_is_deleted(site: &Site) -> Result<()> {
    site.install_and_serve().await?;
    site.declare_removal().await?;
    site.world.kubectl(&["delete", "-f", &manifest(), "--timeout=60s"])?;
    site.expect_clean_kernels().await?;
    release_left_service(site).await
}

async fn the_definitions_are_deleted(site: &Site) -> Result<()> {
    let world = &site.world;
    site.install_and_serve().await?;
    site.declare_removal().await?;
    world.kubectl(&["delete", "crd", "-l", "app.kubernetes.io/name=landfall", "--timeout=60s"])?;
    world.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"])?;
    site.expect_clean_kernels().await?;
    release_left_service(site).await
}

/// A deleted Service waits for its finalizer, unless the controller was faster than its own removal (ADR 28).
/// `landfall uninstall` releases it, whatever is left of Landfall.
async fn release_left_service(site: &Site) -> Result<()> {
    let world = &site.world;
    world.kubectl(&["delete", "service", "web", "--wait=false"])?;
    world.run_landfall(&["uninstall", "--yes", "--namespace", SYSTEM])?;
    world.kubectl(&["wait", "--for=delete", "service/web", "--timeout=10s"])?;
    let kinds = "crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding";
    wait_until(SOON, "all objects of Landfall to be deleted", async || {
        let left = world.kubectl(&["get", kinds, "-l", "app.kubernetes.io/name=landfall", "--output=name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}
