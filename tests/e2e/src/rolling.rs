//! Rolling updates of a backend, while clients send requests all the time.
//!
//! The backend is realistic: a readiness probe decides when a pod is used. A `preStop` hook lets an ending pod serve
//! until all parts of the cluster know of its end. On each node, the old pod ends before the new one starts.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::PostParams;
use lab::wait_until;
use serde_json::json;

use crate::traffic::{Target, Traffic, TrafficPlan, TrafficRun, control};
use crate::world::{SOON, World, requested_cpu};

/// The traffic policies, and the Service of each.
pub const POLICIES: [(&str, &str); 2] = [("Cluster", "rolling-cluster"), ("Local", "rolling-local")];

/// The name of the pods' DaemonSet.
const PODS: &str = "rolling";

/// Seconds for which an ending pod continues to serve; operators use 5 to 15. The kernel of each node has a changed
/// slice within milliseconds. But if the cache of Kubernetes' endpoint controller is out of date, the controller writes
/// the slice only in a later attempt. The next two attempts come after one second, and after two more.
const PRE_STOP_SECONDS: u32 = 4;

/// The backend, and its clients.
pub struct RollingUpdates<'a> {
    world: &'a World,
    traffic: Traffic,
}

impl<'a> RollingUpdates<'a> {
    /// Creates a pod on each node and a Service for each policy, and starts the clients. A pool must have two free
    /// addresses. An update stops the pods of `max_unavailable` nodes at the same time.
    ///
    /// # Errors
    /// If pods or Services do not answer in time.
    pub async fn start(world: &'a World, max_unavailable: u8) -> Result<Self> {
        control::create_pods(world).await?;
        let pod = json!({
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "whoami", "image": "whoami:dev", "resources": requested_cpu(),
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
            }],
        });
        let daemon_set = json!({
            "metadata": {"name": PODS},
            "spec": {
                "selector": {"matchLabels": {"app": PODS}},
                "updateStrategy": {"rollingUpdate": {"maxUnavailable": max_unavailable}},
                "template": {"metadata": {"labels": {"app": PODS}}, "spec": pod},
            },
        });
        let api: Api<DaemonSet> = Api::default_namespaced(world.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(daemon_set)?).await.context("create a DaemonSet")?;
        wait_for_rollout(world)?;
        let mut targets = Vec::new();
        for (policy, name) in POLICIES {
            let selector = json!({"app": PODS});
            world.create_service(name, json!({"selector": selector, "externalTrafficPolicy": policy})).await?;
            let address = world.wait_for_address(name).await?;
            let pods = usize::from(world.cluster.topology().nodes);
            wait_until(SOON, &format!("all {pods} pods to answer under {policy}"), async || {
                let seen = world.lan.answering_pods(40, address)?;
                ensure!(seen.len() == pods, "{seen:?}");
                Ok(())
            })
            .await?;
            targets.extend(Target::over_both(policy, address));
        }
        let traffic = TrafficPlan::new(targets).start(world).await?;
        Ok(Self { world, traffic })
    }

    /// Replaces all pods. Returns the records of this time: the name of a target is its policy.
    ///
    /// # Errors
    /// If an old pod stays, or a new pod does not become ready.
    pub async fn update(&self) -> Result<TrafficRun> {
        let before: BTreeSet<_> = self.world.pod_nodes(PODS).await?.into_iter().collect();
        self.traffic.take_run();
        self.world.kubectl(&["rollout", "restart", &format!("daemonset/{PODS}")])?;
        wait_for_rollout(self.world)?;
        // A rollout ends a moment before the last old pod is deleted.
        wait_until(SOON, "each node to have one pod, and a new one", async || {
            let after = self.world.pod_nodes(PODS).await?;
            ensure!(after.len() == before.len() && !after.iter().any(|pod| before.contains(pod)), "{after:?}");
            Ok(())
        })
        .await?;
        Ok(self.traffic.take_run())
    }

    /// Stops the clients and deletes the backend.
    ///
    /// # Errors
    /// If the host of a client is off, or a deletion fails.
    pub async fn end(self) -> Result<()> {
        self.traffic.stop()?;
        for (_, name) in POLICIES {
            self.world.delete_service(name).await?;
        }
        self.world.kubectl(&["delete", "daemonset", PODS, "--wait=false"]).map(drop)
    }
}

/// Waits until each node has a ready pod of the newest template.
fn wait_for_rollout(world: &World) -> Result<()> {
    world.kubectl(&["rollout", "status", &format!("daemonset/{PODS}"), "--timeout=120s"]).map(drop)
}
