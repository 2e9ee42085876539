//! A backend that is updated while others ask it all the time.
//!
//! It is a realistic one: a pod is used when a probe has found it ready, and one that is to end serves on for a moment, so that
//! everybody can hear of it (`preStop`), and ends at once then. A node's pod has ended before its next one begins.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::PostParams;
use lab::wait_until;
use serde_json::json;

use crate::prober::{Asking, Over, Tally};
use crate::world::{SOON, World};

/// The policies that it is asked under, and the Service of each.
pub const POLICIES: [(&str, &str); 2] = [("Cluster", "rolling-cluster"), ("Local", "rolling-local")];

/// What the pods are called.
const PODS: &str = "rolling";

/// For how many seconds a pod serves on that was told to end. Operators give it 5 to 15. What is in a slice is in all kernels
/// within milliseconds; but Kubernetes, which writes the slice, tries again only after one second, and then after two, when it
/// finds what it knows out of date.
const SERVES_ON: u32 = 4;

/// The backend, and those who ask it.
pub struct Rolling<'a> {
    world: &'a World,
    askers: Vec<(&'static str, Over, Asking)>,
}

/// What became of those who asked while it was updated once: the policy that they asked under, how, and how many.
pub type Round = Vec<(&'static str, Over, Tally)>;

impl<'a> Rolling<'a> {
    /// Makes a pod on each node and a Service for each policy, and begins to ask. There must be addresses for both. So many nodes
    /// are to be without a pod `at_once` in an update.
    ///
    /// # Errors
    /// If they are not there or don't answer in time.
    pub async fn begin(world: &'a World, at_once: u8) -> Result<Self> {
        let pod = json!({
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "whoami", "image": "whoami:dev",
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "lifecycle": {"preStop": {"sleep": {"seconds": SERVES_ON}}},
            }],
        });
        let daemons = json!({
            "metadata": {"name": PODS},
            "spec": {
                "selector": {"matchLabels": {"app": PODS}},
                "updateStrategy": {"rollingUpdate": {"maxUnavailable": at_once}},
                "template": {"metadata": {"labels": {"app": PODS}}, "spec": pod},
            },
        });
        let api: Api<DaemonSet> = Api::default_namespaced(world.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(daemons)?).await.context("create a DaemonSet")?;
        rolled_out(world)?;
        let mut askers = Vec::new();
        for (policy, name) in POLICIES {
            let selector = json!({"app": PODS});
            world.service(name, json!({"selector": selector, "externalTrafficPolicy": policy})).await?;
            let address = world.address(name).await?;
            let pods = usize::from(world.cluster.topology().nodes);
            wait_until(SOON, &format!("all {pods} pods to answer under {policy}"), async || {
                let seen = world.lan.pods(40, address)?;
                ensure!(seen.len() == pods, "{seen:?}");
                Ok(())
            })
            .await?;
            let (client, target) = (world.cluster.client_host("c1"), SocketAddr::new(address, 80));
            for over in [Over::Tcp, Over::Udp] {
                askers.push((policy, over, Asking::begin(&client, target, over)));
            }
        }
        Ok(Self { world, askers })
    }

    /// Replaces all pods.
    ///
    /// # Errors
    /// If one stays, or a new one does not become ready.
    pub async fn update(&self) -> Result<Round> {
        let before: BTreeSet<_> = self.world.pods(PODS).await?.into_iter().collect();
        for (.., asking) in &self.askers {
            asking.lap();
        }
        self.world.kubectl(&["rollout", "restart", &format!("daemonset/{PODS}")])?;
        rolled_out(self.world)?;
        // One that has ended is listed for a moment longer than it counts.
        wait_until(SOON, "each node to have one pod, and a new one", async || {
            let after = self.world.pods(PODS).await?;
            ensure!(after.len() == before.len() && !after.iter().any(|pod| before.contains(pod)), "{after:?}");
            Ok(())
        })
        .await?;
        Ok(self.askers.iter().map(|(policy, over, asking)| (*policy, *over, asking.lap())).collect())
    }

    /// Ends those who ask, and takes away what was made.
    ///
    /// # Errors
    /// If it can't be taken away.
    pub async fn end(self) -> Result<()> {
        for (.., asking) in self.askers {
            asking.end()?;
        }
        for (_, name) in POLICIES {
            self.world.delete_service(name).await?;
        }
        self.world.kubectl(&["delete", "daemonset", PODS, "--wait=false"]).map(drop)
    }
}

/// Waits until each node has a pod of the newest kind that is ready, and no other.
fn rolled_out(world: &World) -> Result<()> {
    world.kubectl(&["rollout", "status", &format!("daemonset/{PODS}"), "--timeout=120s"]).map(drop)
}
