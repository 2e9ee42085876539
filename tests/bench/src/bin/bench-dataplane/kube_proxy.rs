//! kube-proxy as in the lab: a process in the network namespace of a node without a kubelet, with the lab's API server.
//!
//! The measured time is the duration of its full sync, according to its own metrics, once no sync is queued. It
//! excludes the start, listing and decoding, and the pause between two syncs (`minSyncPeriod`).

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::root;
use bench::stage::{Actor, NAMESPACE, Stage, service};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lab::{Host, wait_until};
use serde_json::{Value, json};

use crate::Bench;
use crate::contenders::{KUBE_PROXY_PATHS, kube_proxy_lb_ip};
use crate::path;

/// The address of its metrics, in its own network namespace.
const METRICS: &str = "127.0.0.1:10249";

/// kube-proxy on a node.
pub struct KubeProxy {
    host: Host,
    pub actor: Actor,
}

impl KubeProxy {
    /// Starts kube-proxy in nftables mode.
    pub fn start(stage: &Stage, node: &str) -> Result<Self> {
        let host = stage.node(node);
        let program: PathBuf = root().join("target/lab/bin/kubernetes");
        let kubeconfig = format!("--kubeconfig={}", stage.kubeconfig().display());
        let name = format!("--hostname-override={node}");
        let rest = ["--conntrack-max-per-core=0", "--cluster-cidr=10.244.0.0/16", "--proxy-mode=nftables"];
        let arguments = [&["kube-proxy", &kubeconfig, &name][..], &rest].concat();
        let actor = stage.enter_on(&host, "kube-proxy", &program, &arguments)?;
        Ok(Self { host, actor })
    }

    /// Waits until all known objects are programmed. Returns the total duration of its syncs in seconds.
    pub async fn wait_for_sync(&self, within: Duration) -> Result<f64> {
        wait_until(within, "kube-proxy to have programmed everything", async || {
            self.actor.check()?;
            // Each read of the metrics takes time of the measured process.
            tokio::time::sleep(Duration::from_millis(250)).await;
            let page = self.host.run(read_metrics)??;
            let value = |name: &str| sync_metric(&page, name).with_context(|| format!("there is no metric {name}"));
            let (queued, done) = (value("last_queued_timestamp_seconds")?, value("last_timestamp_seconds")?);
            ensure!(value("duration_seconds_count")? >= 1.0 && done >= queued, "a sync is queued");
            value("duration_seconds_sum")
        })
        .await
    }

    /// The rules of its table.
    pub fn table(&self) -> Result<String> {
        self.host.output(["nft", "--stateless", "list", "table", "ip", "kube-proxy"])
    }

    /// Ends it, and deletes its table.
    pub async fn remove(self) -> Result<()> {
        self.actor.end().await?;
        self.host.output(["nft", "delete", "table", "ip", "kube-proxy"]).map(drop)
    }

    /// The number of Service ports that it forwards.
    pub fn ports(&self) -> Result<usize> {
        let map = self.host.output(["nft", "list", "map", "ip", "kube-proxy", "service-ips"])?;
        Ok(map.matches("goto service-").count())
    }
}

/// A metric of its syncs for IPv4.
fn sync_metric(page: &str, name: &str) -> Option<f64> {
    let beginning = format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&beginning))?.parse().ok()
}

/// Its page of metrics.
fn read_metrics() -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(METRICS).context("connect to the metrics of kube-proxy")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// kube-proxy's rules for one Service under the policies Cluster and Local, for the paths [`KUBE_PROXY_PATHS`].
pub async fn rules_for_one(bench: &Bench) -> Result<[String; 2]> {
    let stage = Stage::with_nodes("bench-dataplane", 1).await?;
    let [cluster, local] = KUBE_PROXY_PATHS;
    let rules = [write_rules(&stage, "Cluster", cluster).await?, write_rules(&stage, "Local", local).await?];
    stage.strike()?;
    bench.progress("kube-proxy has written its rules for one Service under each policy")?;
    Ok(rules)
}

/// Runs kube-proxy for one Service with this policy, with the address and the endpoint of this path.
async fn write_rules(stage: &Stage, policy: &str, path: u8) -> Result<String> {
    let (name, params) = (policy.to_lowercase(), PostParams::default());
    let services: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let mut object = service(&name, None);
    object["spec"]["externalTrafficPolicy"] = json!(policy);
    services.create(&params, &serde_json::from_value(object)?).await.context("create a Service")?;
    let (address, endpoint) = (kube_proxy_lb_ip(path), Ipv4Addr::new(10, 2, path, 2));
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": address.to_string(), "ipMode": "VIP"}]}}});
    services.patch_status(&name, &PatchParams::default(), &Patch::Merge(ingress)).await?;
    let slice = slice(&name, path::PORT, &[(endpoint.into(), "l1")]);
    slices.create(&params, &serde_json::from_value(slice)?).await.context("create a slice")?;
    let proxy = KubeProxy::start(stage, "l1")?;
    let table = wait_until(Duration::from_secs(30), "kube-proxy's rules", async || {
        let table = proxy.table()?;
        let is_complete = table.contains(&endpoint.to_string()) && table.contains(&address.to_string());
        ensure!(is_complete, "the rules are incomplete");
        Ok(table)
    })
    .await?;
    proxy.remove().await?;
    services.delete(&name, &DeleteParams::default()).await?;
    slices.delete(&name, &DeleteParams::default()).await?;
    Ok(table)
}

/// A slice of a Service from [`service`], with endpoints on nodes.
pub fn slice(name: &str, port: u16, endpoints: &[(IpAddr, &str)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    debug_assert_eq!(service(name, None)["spec"]["ports"][0]["name"], Value::Null, "its port has no name");
    json!({
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "bench"},
        },
        "addressType": "IPv4", "ports": [{"name": "", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_metrics_of_ipv4_are_parsed() {
        let page = [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv6\"} 0.239192619",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 34.953217875",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.7952939692429028e+09",
        ];
        let value = |name| sync_metric(&page.join("\n"), name);
        assert_eq!(value("duration_seconds_sum"), Some(34.953217875));
        assert_eq!(value("last_timestamp_seconds"), Some(1_795_293_969.242_902_8));
        assert_eq!(value("duration_seconds_count"), None);
    }
}
