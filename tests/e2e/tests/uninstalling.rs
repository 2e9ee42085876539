//! Uninstalling Landfall leaves nothing behind.

mod by_habit;

use anyhow::{Result, ensure};
use e2e::World;
use e2e::world::{SOON, allocated_condition, ingress};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::ResourceExt;
use kube::api::ListParams;
use lab::{Topology, wait_until};
use observer::Fault;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_leaves_no_rules_addresses_or_finalizers() -> Result<()> {
    let world = World::with_landfall("e2e-uninstall", Topology { nodes: 2, ..Topology::default() }).await?;
    world.create_pool("lan", &["192.0.2.200-192.0.2.201"]).await?;
    world.create_whoami("web", 2).await?;
    world.create_service("web", json!({})).await?;
    let address = world.wait_for_address("web").await?;
    wait_until(SOON, "an answer", async || world.lan.query_tcp(address)).await?;
    for node in ["n1", "n2"] {
        ensure!(!world.landfall_tables(node)?.is_empty(), "nothing is programmed on {node}");
    }

    let preview = world.run_landfall(&["uninstall"])?;
    ensure!(preview.contains("default/web") && preview.contains("--yes"), "{preview}");
    ensure!(world.lan.query_tcp(address).is_ok(), "a preview must change nothing");

    world.declare(Fault::address_change("default/web"));
    world.run_landfall(&["uninstall", "--yes"])?;
    let service = world.get_service("web").await?;
    ensure!(service.metadata.finalizers.is_none(), "{:?}", service.metadata.finalizers);
    ensure!(ingress(&service).is_empty() && allocated_condition(&service).is_none(), "{:?}", service.status);
    for node in ["n1", "n2"] {
        ensure!(world.landfall_tables(node)?.is_empty(), "{node}: {}", world.landfall_tables(node)?);
        let host = world.cluster.node(node);
        ensure!(host.processes("landfall node").is_empty(), "an agent still runs on {node}");
        let addresses = host.output(["ip", "-4", "addr"])?;
        ensure!(!addresses.contains(&address.to_string()), "{addresses}");
    }
    ensure!(world.lan.arp_macs(address)?.is_empty(), "a host still answers ARP for {address}");
    let definitions: kube::Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = kube::Api::all(world.client.clone());
    wait_until(SOON, "the definitions to be deleted", async || {
        let left = definitions.list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    let policies: kube::Api<ValidatingAdmissionPolicy> = kube::Api::all(world.client.clone());
    let left: Vec<_> = policies.list(&ListParams::default()).await?.into_iter().map(|left| left.name_any()).collect();
    ensure!(left.is_empty(), "policies are left: {left:?}");
    world.delete_service("web").await?;
    world.end()
}
