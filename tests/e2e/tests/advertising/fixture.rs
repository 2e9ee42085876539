//! Objects for the scenes: Services with an address of each family, advertisements, node labels.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use crds::{L2Advertisement, LoadBalancerIP};
use e2e::World;
use e2e::scene::Scene;
use e2e::world::{SOON, ingress};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use lab::wait_until;
use serde_json::{Value, json};

use super::wire::answering_nodes;

/// The label that excludes a node from load balancing.
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A label by which advertisements select nodes here.
pub const ROLE: &str = "role";

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Creates and reads a scene's objects.
pub struct AdvertisingFixture<'a> {
    pub world: &'a World,
}

impl<'a> AdvertisingFixture<'a> {
    /// Removes advertisements and labels of earlier scenes, and creates a pool with the addresses of these last
    /// numbers, of both families.
    pub async fn prepare(scene: &Scene<'a>, first: u8, last: u8) -> Result<Self> {
        let fixture = Self { world: scene.world };
        fixture.withdraw_all().await?;
        for node in NODES {
            fixture.label(node, json!({EXCLUDE: null, ROLE: null})).await?;
        }
        // An IPv6 address has the digits of the IPv4 address.
        let ranges = [format!("192.0.2.{first}-192.0.2.{last}"), format!("2001:db8::{first}-2001:db8::{last}")];
        scene.create_pool("lan", json!({"addresses": ranges})).await?;
        Ok(fixture)
    }

    /// Creates a Service for the pods of this name, and returns its two addresses.
    pub async fn create_service(&self, name: &str, pods: &str, more: Value) -> Result<Vec<IpAddr>> {
        let labels = more["labels"].clone();
        let mut spec = json!({"selector": {"app": pods}, "ipFamilyPolicy": "RequireDualStack"});
        for (key, value) in more.as_object().into_iter().flatten().filter(|(key, _)| *key != "labels") {
            spec[key] = value.clone();
        }
        self.world.create_service(name, spec).await?;
        if !labels.is_null() {
            self.world.patch_service(name, json!({"metadata": {"labels": labels}})).await?;
        }
        self.wait_for_both_addresses(name).await
    }

    /// Waits until a Service has both its addresses.
    pub async fn wait_for_both_addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        wait_until(SOON, &format!("both addresses of {name}"), async || {
            let shown = ingress(&self.world.get_service(name).await?);
            ensure!(shown.len() == 2, "{shown:?}");
            Ok(shown)
        })
        .await
    }

    /// Waits until exactly these nodes answer for each of the addresses, on both LANs, and report it.
    pub async fn expect_answering(&self, addresses: &[IpAddr], expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let seen = self.wait_for_answering(addresses, |seen| *seen == expected).await;
        seen.map(drop).with_context(|| format!("expected {expected:?} to answer"))
    }

    /// Waits until one node answers for each of the addresses, on the first LAN. Returns the nodes in the same order.
    pub async fn wait_for_owners(&self, addresses: &[IpAddr]) -> Result<Vec<String>> {
        let is_one = |seen: &BTreeSet<String>| seen.len() == 1 && !seen.iter().any(|name| name.contains('/'));
        Ok(self.wait_for_answering(addresses, is_one).await?.into_iter().flatten().collect())
    }

    /// Waits until the nodes that answer for each of the addresses meet a condition, and its record names the same
    /// nodes. Returns them in the same order.
    pub async fn wait_for_answering(
        &self,
        addresses: &[IpAddr],
        is_expected: impl Fn(&BTreeSet<String>) -> bool,
    ) -> Result<Vec<BTreeSet<String>>> {
        wait_until(SOON, &format!("the right nodes to answer for {addresses:?}"), async || {
            let mut reported = Vec::new();
            for address in addresses {
                let announcers = self.reported_announcers(*address).await?;
                ensure!(is_expected(&announcers), "the record of {address} names {announcers:?}");
                reported.push(announcers);
            }
            let answering = answering_nodes(self.world, addresses)?;
            for (address, reported) in addresses.iter().zip(&reported) {
                let answering = &answering[address];
                ensure!(answering == reported, "{answering:?} answer for {address}, and its record names {reported:?}");
            }
            Ok(reported)
        })
        .await
    }

    /// The announcers in the record of an address, in the format of [`answering_nodes`].
    async fn reported_announcers(&self, address: IpAddr) -> Result<BTreeSet<String>> {
        let records: Api<LoadBalancerIP> = Api::all(self.world.client.clone());
        let status = records.get(&crds::address::object_name(address)).await?.status.unwrap_or_default();
        let name = |link: &str, node: &str| if link == "eth0" { node.to_owned() } else { format!("{node}/{link}") };
        Ok(status.announcers.iter().map(|announcer| name(&announcer.link, &announcer.node)).collect())
    }

    /// Creates or replaces an advertisement.
    pub async fn advertise(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let mut object: L2Advertisement = serde_json::from_value(object)?;
        let all = self.advertisements();
        match all.get_opt(name).await? {
            None => drop(all.create(&PostParams::default(), &object).await.context("create an advertisement")?),
            Some(old) => {
                object.metadata = old.metadata;
                all.replace(name, &PostParams::default(), &object).await.context("replace an advertisement")?;
            }
        }
        Ok(())
    }

    /// Deletes all advertisements.
    pub async fn withdraw_all(&self) -> Result<()> {
        let everything = (DeleteParams::default(), ListParams::default());
        self.advertisements().delete_collection(&everything.0, &everything.1).await.context("delete advertisements")?;
        Ok(())
    }

    /// Sets labels of a node; null removes a label.
    pub async fn label(&self, node: &str, labels: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let nodes: Api<Node> = Api::all(self.world.client.clone());
        nodes.patch(node, &PatchParams::default(), &patch).await.with_context(|| format!("label {node}"))?;
        Ok(())
    }

    /// Sets the condition NetworkUnavailable of a node.
    pub async fn set_network_unavailable(&self, node: &str, unavailable: bool) -> Result<()> {
        let condition = json!({
            "type": "NetworkUnavailable", "status": if unavailable { "True" } else { "False" },
            "reason": "Test", "message": "set by a test",
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let nodes: Api<Node> = Api::all(self.world.client.clone());
        nodes
            .patch_status(node, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("condition of {node}"))?;
        Ok(())
    }

    fn advertisements(&self) -> Api<L2Advertisement> {
        Api::all(self.world.client.clone())
    }
}

/// A selector of the nodes of these names.
pub fn nodes_named(nodes: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]})
}

/// A preference for the node of this name.
pub fn prefer(node: &str, weight: u8) -> Value {
    json!({"weight": weight, "preference": nodes_named(&[node])})
}

/// The two other nodes.
pub fn other_nodes(node: &str) -> [&'static str; 2] {
    let mut others = NODES.into_iter().filter(|other| *other != node);
    [others.next().unwrap_or_default(), others.next().unwrap_or_default()]
}
