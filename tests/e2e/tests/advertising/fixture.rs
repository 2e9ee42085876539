//! The objects that the scenes need: Services with an address of either family, advertisements, labels of nodes.

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

use crate::wire::answering;

/// The label that excludes a node.
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The label by which advertisements select nodes here.
pub const ROLE: &str = "role";

/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A clean stage for a scene.
pub struct Stage<'a> {
    /// Its world.
    pub world: &'a World,
}

impl<'a> Stage<'a> {
    /// Clears what a scene before may have left, and makes a pool with the addresses of these last numbers, of both families.
    pub async fn set(scene: &Scene<'a>, first: u8, last: u8) -> Result<Self> {
        let stage = Self { world: scene.world };
        stage.withdraw_all().await?;
        for node in NODES {
            stage.label(node, json!({EXCLUDE: null, ROLE: null})).await?;
        }
        // The digits of an IPv6 address are those of the IPv4 one.
        let ranges = [format!("192.0.2.{first}-192.0.2.{last}"), format!("2001:db8::{first}-2001:db8::{last}")];
        scene.pool("lan", json!({"addresses": ranges})).await?;
        Ok(stage)
    }

    /// Creates a Service for the pods of this name, and returns its two addresses.
    pub async fn service(&self, name: &str, pods: &str, more: Value) -> Result<Vec<IpAddr>> {
        let labels = more["labels"].clone();
        let mut spec = json!({"selector": {"app": pods}, "ipFamilyPolicy": "RequireDualStack"});
        for (key, value) in more.as_object().into_iter().flatten().filter(|(key, _)| *key != "labels") {
            spec[key] = value.clone();
        }
        self.world.service(name, spec).await?;
        if !labels.is_null() {
            self.world.patch_service(name, json!({"metadata": {"labels": labels}})).await?;
        }
        self.addresses(name).await
    }

    /// Waits until a Service has both its addresses.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        wait_until(SOON, &format!("both addresses of {name}"), async || {
            let shown = ingress(&self.world.get_service(name).await?);
            ensure!(shown.len() == 2, "{shown:?}");
            Ok(shown)
        })
        .await
    }

    /// Waits until exactly these answer for each of the addresses, on both LANs, and say so.
    pub async fn answered_by(&self, addresses: &[IpAddr], expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let seen = self.answered(addresses, |seen| *seen == expected).await;
        seen.map(drop).with_context(|| format!("{expected:?} were to answer"))
    }

    /// Waits until one node answers for each of the addresses, on the first LAN, and returns them in the same order.
    pub async fn owners(&self, addresses: &[IpAddr]) -> Result<Vec<String>> {
        let is_one = |seen: &BTreeSet<String>| seen.len() == 1 && !seen.iter().any(|name| name.contains('/'));
        Ok(self.answered(addresses, is_one).await?.into_iter().flatten().collect())
    }

    /// Waits until those who answer for each of the addresses are as they should be and its record says the same; returns
    /// them in the same order.
    pub async fn answered(
        &self,
        addresses: &[IpAddr],
        are_right: impl Fn(&BTreeSet<String>) -> bool,
    ) -> Result<Vec<BTreeSet<String>>> {
        wait_until(SOON, &format!("the right ones to answer for {addresses:?}"), async || {
            let mut said = Vec::new();
            for address in addresses {
                let who = self.said(*address).await?;
                ensure!(are_right(&who), "{who:?} say that they announce {address}");
                said.push(who);
            }
            let seen = answering(self.world, addresses)?;
            for (address, said) in addresses.iter().zip(&said) {
                let seen = &seen[address];
                ensure!(seen == said, "{seen:?} answer for {address}, and {said:?} say that they announce it");
            }
            Ok(said)
        })
        .await
    }

    /// Who says that they announce an address, and where, in the words of [`answering`].
    async fn said(&self, address: IpAddr) -> Result<BTreeSet<String>> {
        let records: Api<LoadBalancerIP> = Api::all(self.world.client.clone());
        let status = records.get(&crds::address::object_name(address)).await?.status.unwrap_or_default();
        let place = |link: &str, node: &str| if link == "eth0" { node.to_owned() } else { format!("{node}/{link}") };
        Ok(status.announcers.iter().map(|one| place(&one.link, &one.node)).collect())
    }

    /// Makes an advertisement, or replaces it.
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

    /// Sets labels of a node; null takes one away.
    pub async fn label(&self, node: &str, labels: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let nodes: Api<Node> = Api::all(self.world.client.clone());
        nodes.patch(node, &PatchParams::default(), &patch).await.with_context(|| format!("label {node}"))?;
        Ok(())
    }

    /// Sets whether a node says that its network is unavailable.
    pub async fn network_unavailable(&self, node: &str, unavailable: bool) -> Result<()> {
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
pub fn named(nodes: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]})
}

/// A preference for the node of this name.
pub fn prefer(node: &str, weight: u8) -> Value {
    json!({"weight": weight, "preference": named(&[node])})
}

/// The two nodes beside this one.
pub fn others(node: &str) -> [&'static str; 2] {
    let mut others = NODES.into_iter().filter(|other| *other != node);
    [others.next().unwrap_or_default(), others.next().unwrap_or_default()]
}
