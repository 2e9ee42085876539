//! Functions that the lab's own tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use lab::{Cluster, extend_limit, wait_until};

/// Limit of waiting for a change that takes a second or two on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);
/// Limit of waiting for an answer over the network.
pub const ANSWER: Duration = Duration::from_secs(2);
/// If no answer arrives within this time, none will arrive: a packet takes microseconds in the lab.
pub const SILENCE: Duration = Duration::from_millis(300);

/// The manifest of a whoami pod on this node. `more` is appended to its spec, such as `, hostNetwork: true`.
pub fn whoami(name: &str, node: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: whoami, image: 'whoami:dev'}}]{more}}}\n\
         ---\n"
    )
}

/// Waits until a pod runs, and returns its addresses with whoami's port.
pub async fn addresses(cluster: &Cluster, pod: &str) -> Result<Vec<SocketAddr>> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    wait_until(extend_limit(SOON), &format!("pod {pod} to run"), async || {
        let status = pods.get(pod).await?.status.context("no status")?;
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        ensure!(ready, "{:?} {:?}", status.phase, status.container_statuses);
        let ips = status.pod_ips.unwrap_or_default();
        ips.iter().map(|ip| Ok(SocketAddr::new(ip.ip.parse::<IpAddr>()?, 8080))).collect()
    })
    .await
}

/// Waits until a Node's Ready condition has this status: "True", "False" or "Unknown".
pub async fn wait_for_ready_status(cluster: &Cluster, node: &str, wanted: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client());
    wait_until(SOON, &format!("node {node} to be Ready={wanted}"), async || {
        let conditions = nodes.get(node).await?.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no such condition")?;
        ensure!(ready.status == wanted, "{} ({:?})", ready.status, ready.message);
        Ok(())
    })
    .await
}

/// All Node objects, sorted by name.
pub async fn nodes(cluster: &Cluster) -> Result<Vec<Node>> {
    Ok(Api::<Node>::all(cluster.client()).list(&ListParams::default()).await?.items)
}

/// Everything on this machine that belongs to a cluster of this name.
pub fn traces(cluster: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("lf-{cluster}-")) {
            found.push(format!("namespace {name}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    found.extend(
        mounts.lines().filter(|line| line.contains(&format!("/{cluster} "))).map(|line| format!("mount {line}")),
    );
    if fs::exists(format!("/run/landfall-lab/{cluster}")).expect("look") {
        found.push("its directory".to_owned());
    }
    // One hierarchy is mounted there, or several are below.
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
        let group = hierarchy.join("landfall-lab").join(cluster);
        if group.exists() {
            found.push(format!("control group {}", group.display()));
        }
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        // A process that has ended does not count, even if its parent has not reaped it yet.
        if status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX")) {
            continue;
        }
        if groups.lines().any(|line| format!("{line}/").contains(&format!("/landfall-lab/{cluster}/"))) {
            found.push(format!("process {}", process.path().display()));
        }
    }
    found
}
