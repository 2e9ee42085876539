//! kube-proxy, as the lab has it: a process in the namespace of a node without a kubelet, with the lab's API server.
//!
//! Its time is its own: the duration of its full sync, which it counts itself, once it has nothing left to sync. Starting,
//! listing and reading are not in it, nor is the pause that it makes between two syncs (`minSyncPeriod`).

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::root;
use bench::stage::{Actor, NAMESPACE, Stage, service};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::{Host, wait_until};
use serde_json::{Value, json};

use crate::Bench;
use crate::contenders::{PEER, PEER_WAY};
use crate::path;

/// Where it tells its numbers, in its own namespace.
const METRICS: &str = "127.0.0.1:10249";

/// kube-proxy on a node.
pub struct KubeProxy {
    host: Host,
    /// It.
    pub actor: Actor,
}

impl KubeProxy {
    /// Starts it in nftables mode.
    ///
    /// # Errors
    /// If it does not start.
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

    /// Waits until it has programmed all that it knows, and returns the seconds that its syncs took.
    ///
    /// # Errors
    /// If it takes longer.
    pub async fn synced(&self, within: Duration) -> Result<f64> {
        wait_until(within, "kube-proxy to have programmed everything", async || {
            self.actor.check()?;
            // Each look is answered by the process that is measured.
            tokio::time::sleep(Duration::from_millis(250)).await;
            let page = self.host.run(metrics)??;
            let of = |name: &str| told(&page, name).with_context(|| format!("it does not tell its {name}"));
            let (queued, done) = (of("last_queued_timestamp_seconds")?, of("last_timestamp_seconds")?);
            ensure!(of("duration_seconds_count")? >= 1.0 && done >= queued, "it has not");
            of("duration_seconds_sum")
        })
        .await
    }

    /// Its table.
    ///
    /// # Errors
    /// If there is none.
    pub fn table(&self) -> Result<String> {
        self.host.output(["nft", "--stateless", "list", "table", "ip", "kube-proxy"])
    }

    /// How many ports of Services it forwards.
    ///
    /// # Errors
    /// If it has no table.
    pub fn ports(&self) -> Result<usize> {
        let map = self.host.output(["nft", "list", "map", "ip", "kube-proxy", "service-ips"])?;
        Ok(map.matches("goto service-").count())
    }
}

/// A number of its syncs for IPv4.
fn told(page: &str, name: &str) -> Option<f64> {
    let beginning = format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&beginning))?.parse().ok()
}

/// What it tells about itself.
fn metrics() -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(METRICS).context("ask kube-proxy for its numbers")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// The rules that it writes for one Service, with an lb_ip and an endpoint as on the way that is kept for it.
///
/// # Errors
/// If the control plane does not come up, or kube-proxy does not program the Service.
pub async fn rules_for_one(bench: &Bench) -> Result<String> {
    let stage = Stage::with_nodes("bench-dataplane", 1).await?;
    stage.create(["one".to_owned()]).await?;
    let services: Api<Service> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": PEER.to_string(), "ipMode": "VIP"}]}}});
    services.patch_status("one", &PatchParams::default(), &Patch::Merge(ingress)).await?;
    let endpoint = Ipv4Addr::new(10, 2, PEER_WAY, 2);
    let slices: Api<EndpointSlice> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let slice = slice("one", path::PORT, &[(endpoint.into(), "l1")]);
    slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
    let proxy = KubeProxy::start(&stage, "l1")?;
    let within = Duration::from_secs(30);
    let table = wait_until(within, "kube-proxy's rules", async || {
        let table = proxy.table()?;
        ensure!(table.contains(&endpoint.to_string()) && table.contains(&PEER.to_string()), "not all is there");
        Ok(table)
    })
    .await?;
    drop(proxy);
    stage.strike()?;
    bench.progress("kube-proxy's rules for one Service are there")?;
    Ok(table)
}

/// A slice of a Service as [`service`] makes them, with endpoints on nodes.
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
    fn its_numbers_are_read_as_it_writes_them() {
        let page = [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv6\"} 0.239192619",
            "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 34.953217875",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.7952939692429028e+09",
        ];
        let of = |name| told(&page.join("\n"), name);
        assert_eq!(of("duration_seconds_sum"), Some(34.953217875));
        assert_eq!(of("last_timestamp_seconds"), Some(1_795_293_969.242_902_8));
        assert_eq!(of("duration_seconds_count"), None);
    }
}
