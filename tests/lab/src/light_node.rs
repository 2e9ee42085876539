//! A light node: a Node object and a network namespace, for tests that need many nodes and run no pods.
//!
//! Touches Node objects. The namespace is made as any other host's ([`network`](crate::network)); an agent is started in
//! it with [`Host::spawn`](crate::Host::spawn). There is no kubelet: `heartbeat` on the control plane renews the leases of
//! all light nodes that answer on the LAN, so a light node that is cut or powered off turns NotReady as a real one does.
//! A taint keeps the scheduler away, as no pod would ever start.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::topology::{Kind, Seat};

/// The label of light nodes; its value is always `true`. The same key taints them.
pub const LABEL: &str = "lab.landfall.dev/light";

/// Makes the Node objects of these seats, or brings them up to date. For a node with a kubelet only what the kubelet
/// does not set: the addresses of its pods.
pub async fn make(client: &kube::Client, seats: &[Seat]) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let made = seats.iter().filter_map(object).map(|(name, object, status)| {
        let nodes = nodes.clone();
        async move {
            let failed = || format!("make the Node object of {name}");
            let apply = PatchParams::apply("lab").force();
            nodes.patch(&name, &apply, &Patch::Apply(&object)).await.with_context(failed)?;
            if let Some(status) = status {
                // Not applied: the API server takes a second address of one type for a duplicate there.
                let status = Patch::Merge(json!({"status": status}));
                nodes.patch_status(&name, &PatchParams::default(), &status).await.with_context(failed)?;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(made).await?;
    Ok(())
}

/// The Node object of a seat, as the lab sets it: (name, object, the status of a light one).
fn object(seat: &Seat) -> Option<(String, Value, Option<Value>)> {
    let pods = seat.pods()?;
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": seat.name, "labels": {"kubernetes.io/hostname": seat.name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": pods.v4(), "podCIDRs": [pods.v4(), pods.v6()]},
    });
    let status = (seat.kind == Kind::LightNode).then(|| {
        object["metadata"]["labels"][LABEL] = json!("true");
        object["spec"]["taints"] = json!([{"key": LABEL, "effect": "NoSchedule"}]);
        json!({
            "addresses": [
                {"type": "InternalIP", "address": seat.v4()},
                {"type": "InternalIP", "address": seat.v6()},
                {"type": "Hostname", "address": seat.name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "LightNode", "message": "answers on the LAN"}],
            "nodeInfo": node_info(),
        })
    });
    Some((seat.name.clone(), object, status))
}

/// What a kubelet would say about itself; the fields are required.
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
