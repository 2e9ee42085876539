//! A light node: a Node object and a network namespace, for tests that need many nodes and run no pods.
//!
//! Touches Node objects. The namespace is like any other host's ([`network`](crate::machine::network));
//! [`Host::spawn`](crate::Host::spawn) starts an agent in it. Instead of a kubelet, `heartbeat` on the control plane
//! renews the leases of all light nodes that answer on the LAN. So a light node that is cut or powered off becomes
//! NotReady like a real one. A taint keeps pods away, because none would start.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::topology::{HostKind, HostSpec};

/// The label of light nodes, always with the value `true`, and the key of their taint.
pub const LABEL: &str = "lab.landfall.dev/light";

/// Applies the Node objects of these hosts. For a node with a kubelet it sets only the pod CIDRs, which the kubelet
/// does not set.
pub async fn apply_nodes(client: &kube::Client, specs: &[HostSpec]) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let applications = specs.iter().filter_map(node_object).map(|(name, object, status)| {
        let nodes = nodes.clone();
        async move {
            let context = || format!("apply the Node object of {name}");
            let apply = PatchParams::apply("lab").force();
            nodes.patch(&name, &apply, &Patch::Apply(&object)).await.with_context(context)?;
            if let Some(status) = status {
                // A merge patch, because a server-side apply would treat a second address of one type as a duplicate.
                let status = Patch::Merge(json!({"status": status}));
                nodes.patch_status(&name, &PatchParams::default(), &status).await.with_context(context)?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(applications).await?;
    Ok(())
}

/// The Node object of a host, as the lab sets it: (name, object, status of a light node).
fn node_object(spec: &HostSpec) -> Option<(String, Value, Option<Value>)> {
    let pods = spec.pods()?;
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": spec.name, "labels": {"kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": pods.v4(), "podCIDRs": [pods.v4(), pods.v6()]},
    });
    let status = (spec.kind == HostKind::LightNode).then(|| {
        object["metadata"]["labels"][LABEL] = json!("true");
        object["spec"]["taints"] = json!([{"key": LABEL, "effect": "NoSchedule"}]);
        json!({
            "addresses": [
                {"type": "InternalIP", "address": spec.v4()},
                {"type": "InternalIP", "address": spec.v6()},
                {"type": "Hostname", "address": spec.name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "LightNode", "message": "answers on the LAN"}],
            "nodeInfo": node_info(),
        })
    });
    Some((spec.name.clone(), object, status))
}

/// Required fields, which a kubelet would set.
fn node_info() -> Value {
    let mut info = json!({"architecture": "amd64", "operatingSystem": "linux", "osImage": "lab"});
    for key in [
        "bootID",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "kubeletVersion",
        "machineID",
        "systemUUID",
    ] {
        info[key] = json!("light");
    }
    info
}
