//! Waits until a cluster is ready.
//!
//! Reads from the API server, and from kube-proxy on each node. Changes nothing.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node, ServiceAccount};
use kube::api::{Api, ListParams};

use crate::cluster::Cluster;
use crate::kubernetes::node;
use crate::machine::host::Host;
use crate::topology::{HostKind, KubeProxy};
use crate::wait::wait_until;

impl Cluster {
    /// Waits until the API server reports that it is ready.
    pub async fn wait_for_api(&self, within: Duration) -> Result<()> {
        let client = self.client();
        wait_until(within, "the API server to be ready", async || {
            let request = http_get("/readyz")?;
            client.request_text(request).await.map_err(|error| explain_error(error.into(), self.control_plane()))
        })
        .await
        .map(drop)
    }

    /// Waits until every node that is powered on is Ready, and the API server admits pods.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        let wanted: Vec<Host> =
            self.hosts()?.into_iter().filter(|host| host.pods().is_some() && host.netns().is_ok()).collect();
        let nodes: Api<Node> = Api::all(self.client());
        wait_until(within, &format!("{} nodes to be Ready", wanted.len()), async || {
            let list = nodes.list(&ListParams::default()).await?;
            let ready = |host: &Host| list.items.iter().any(|node| is_ready(node, host));
            let missing: Vec<_> = wanted.iter().filter(|host| !ready(host)).map(Host::name).collect();
            ensure!(missing.is_empty(), "{} not Ready", missing.join(", "));
            Ok(())
        })
        .await?;
        // Without this ServiceAccount and this ConfigMap, the API server admits no pod.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), "default");
        let roots: Api<ConfigMap> = Api::namespaced(self.client(), "default");
        wait_until(within, "the default ServiceAccount", async || {
            accounts.get("default").await?;
            roots.get("kube-root-ca.crt").await?;
            Ok(())
        })
        .await?;
        if self.topology().kube_proxy != KubeProxy::None {
            let proxied: Vec<&Host> =
                wanted.iter().filter(|host| host.spec().is_some_and(|spec| spec.kind == HostKind::Node)).collect();
            wait_until(within, "kube-proxy to have written its rules", async || {
                proxied.iter().try_for_each(|host| proxy_is_healthy(host))
            })
            .await?;
        }
        Ok(())
    }

    /// Queries `/readyz` once, and returns the time to its answer.
    pub async fn api_latency(&self) -> Result<Duration> {
        let start = Instant::now();
        self.client().request_text(http_get("/readyz")?).await?;
        Ok(start.elapsed())
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// Adds the name of a daemon that has ended, which explains a refused connection.
fn explain_error(error: anyhow::Error, cp: &Host) -> anyhow::Error {
    let ended = ["etcd", "kube-apiserver", "forward"].into_iter().find(|name| !cp.process(name).is_running());
    match ended {
        Some(name) => error.context(format!("{name} has ended, see {}", cp.process(name).log().display())),
        None => error,
    }
}

/// Whether this is the Node object of the host, and is Ready according to a heartbeat since the last boot.
fn is_ready(node: &Node, host: &Host) -> bool {
    let booted = node::boot_time(host).ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let booted = booted.map_or(0, |at| at.as_secs() as i64);
    node.metadata.name.as_deref() == Some(host.name())
        && node.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| {
            let heartbeat = condition.last_heartbeat_time.as_ref().map_or(0, |time| time.0.as_second());
            condition.type_ == "Ready" && condition.status == "True" && heartbeat >= booted
        })
}

/// Queries kube-proxy's health check, which succeeds when its rules are written.
fn proxy_is_healthy(host: &Host) -> Result<()> {
    use std::io::{Read, Write};
    let answer = host.run(|| -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", 10256))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let answer = answer.with_context(|| format!("query kube-proxy on {}", host.name()))?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "kube-proxy on {} answers {status:?}", host.name());
    Ok(())
}
