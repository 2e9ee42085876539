//! Answers health checks at the `healthCheckNodePort` of Services, unless another proxy on this node answers them.
//!
//! A load balancer in front of the cluster checks whether each node has endpoints of a Service with
//! `externalTrafficPolicy: Local`. kube-proxy, if it runs, answers in the same format, except for the Services that it
//! ignores. Without another proxy, only this agent answers.
//!
//! Every [`CHECK_PERIOD`] one task decides at which ports to answer. Each of these ports has a task of its own. The
//! agent detects kube-proxy by the listener on kube-proxy's health port, without a request. It detects any other proxy
//! because that proxy has taken the port of the Service. So the agent opens a port only if the port is still free at
//! the second check. Dropping the future closes all ports.

mod kube_proxy;
mod listener;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use dataplane::rules::{HealthCheck, health_checks};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval};

use listener::LimitedListener;

/// The time between two checks of which ports are needed, and of whether kube-proxy runs.
const CHECK_PERIOD: Duration = Duration::from_secs(2);

/// The shortest time between two updates of the answers. The cluster may cause thousands of updates per second.
const UPDATE_PERIOD: Duration = Duration::from_millis(250);

/// The number of the check at which the agent opens a needed port, if no other proxy has taken the port by then.
const OPENING_CHECK: u8 = 2;

/// The header with the number of local endpoints, as kube-proxy sends it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The answers by port.
type Answers = Arc<BTreeMap<u16, HealthCheck>>;

/// Answers from the latest snapshot, until the composer ends.
pub(crate) async fn serve(mut snapshot_rx: watch::Receiver<Option<Arc<dataplane::Snapshot>>>) -> Result<Infallible> {
    let (answers_tx, answers_rx) = watch::channel(Arc::default());
    let mut ports = Ports::new(answers_rx);
    let [mut checks, mut updates] = [CHECK_PERIOD, UPDATE_PERIOD].map(interval);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    updates.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kube_proxy_runs = false;
    loop {
        tokio::select! {
            // The answers follow a new snapshot within UPDATE_PERIOD. The set of open ports follows at the next check.
            answers = next_answers(&mut snapshot_rx, &mut updates) => drop(answers_tx.send_replace(answers?)),
            _ = checks.tick() => {
                // If no port is needed, it does not matter whether kube-proxy runs.
                kube_proxy_runs = !answers_tx.borrow().is_empty() && kube_proxy::is_running(kube_proxy_runs);
                ports.check(kube_proxy_runs).await;
            }
        }
    }
}

/// Returns the answers for the next snapshot, but not before the next tick of `updates`. Cancel safe.
async fn next_answers(
    snapshot_rx: &mut watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    updates: &mut Interval,
) -> Result<Answers> {
    updates.tick().await;
    let Ok(()) = snapshot_rx.changed().await else { bail!("the composer has ended") };
    Ok(Arc::new(snapshot_rx.borrow_and_update().as_deref().map(health_checks).unwrap_or_default()))
}

/// The ports at which this agent answers.
struct Ports {
    answers_rx: watch::Receiver<Answers>,
    open: BTreeMap<u16, AbortHandle>,
    /// For each needed port, the number of checks at which it was needed without interruption.
    checks: BTreeMap<u16, u8>,
    tasks: JoinSet<()>,
}

impl Ports {
    fn new(answers_rx: watch::Receiver<Answers>) -> Self {
        Self { answers_rx, open: BTreeMap::new(), checks: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Opens the ports that are needed, and closes the others.
    async fn check(&mut self, kube_proxy_runs: bool) {
        let answers = self.answers_rx.borrow().clone();
        // kube-proxy does not answer for a Service that it ignores.
        let is_needed = |port: &u16| answers.get(port).is_some_and(|health| !kube_proxy_runs || health.ours_alone);
        self.open.retain(|port, task| {
            let stays = is_needed(port) && !task.is_finished();
            if !stays {
                task.abort();
                tracing::info!(port, "stopped answering health checks at this port");
            }
            stays
        });
        while self.tasks.try_join_next().is_some() {}
        self.checks.retain(|port, _| is_needed(port));
        for (&port, health) in answers.iter().filter(|(port, _)| is_needed(port)) {
            let checks = self.checks.entry(port).or_default();
            *checks = checks.saturating_add(1);
            if self.open.contains_key(&port) || *checks < OPENING_CHECK {
                continue;
            }
            match LimitedListener::bind(port).await {
                Ok(listener) => {
                    tracing::info!(port, service = %health.service, "answering health checks at this port");
                    let router = router(port, self.answers_rx.clone());
                    let task = async move { drop(axum::serve(listener, router).await) };
                    self.open.insert(port, self.tasks.spawn(task));
                }
                // Another proxy answers here.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) if *checks == OPENING_CHECK => {
                    let service = &health.service;
                    tracing::warn!(port, %service, %error, "cannot answer health checks; trying again");
                }
                Err(_) => {}
            }
        }
    }
}

/// Answers every request at `port`.
fn router(port: u16, answers_rx: watch::Receiver<Answers>) -> Router {
    Router::new().fallback(async move || response(answers_rx.borrow().get(&port)))
}

/// The answer that kube-proxy would send. The connection closes after it.
fn response(health: Option<&HealthCheck>) -> impl IntoResponse + use<> {
    let local_endpoints = health.map_or(0, |health| health.local_endpoints);
    let body = json!({
        "service": health.map(|health| json!({"namespace": health.service.namespace, "name": health.service.name})),
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let status = if local_endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONNECTION, HeaderValue::from_static("close")),
        (WEIGHT, local_endpoints.into()),
    ];
    (status, headers, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Key;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Sends one request, and returns the answer up to the end of the connection.
    async fn request(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// A port that was free at the time of this call.
    fn free_port() -> u16 {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        taken.local_addr().expect("an address").port()
    }

    #[tokio::test]
    async fn a_port_is_closed_while_kube_proxy_answers_there() {
        let port = free_port();
        let health = |count| {
            let health = HealthCheck { service: Key::new("default", "web"), local_endpoints: count, ours_alone: false };
            Arc::new(BTreeMap::from([(port, health)]))
        };
        let (answers_tx, answers_rx) = watch::channel(health(2));
        let mut ports = Ports::new(answers_rx);
        ports.check(false).await;
        assert!(ports.open.is_empty(), "other proxies get time to take the port");
        ports.check(false).await;
        let answer = request(port).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"), "{head}");
        let expected = json!({
            "service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON"), expected);
        answers_tx.send_replace(health(0));
        assert!(request(port).await.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));

        // kube-proxy starts and stops.
        ports.check(true).await;
        let closed = ports.tasks.join_next().await.expect("a task");
        assert!(closed.is_err_and(|error| error.is_cancelled()) && ports.open.is_empty());
        ports.check(false).await;
        ports.check(false).await;
        assert!(request(port).await.starts_with("HTTP/1.1 503 "));
        answers_tx.send_replace(Arc::default());
        ports.check(false).await;
        assert!(ports.open.is_empty());

        // kube-proxy does not answer for a Service that it ignores.
        assert!(ports.tasks.join_next().await.is_some(), "the port is closed");
        let alone = HealthCheck { service: Key::new("default", "web"), local_endpoints: 1, ours_alone: true };
        answers_tx.send_replace(Arc::new(BTreeMap::from([(port, alone)])));
        ports.check(true).await;
        ports.check(true).await;
        assert!(request(port).await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_port_taken_by_another_proxy_stays_closed() {
        let other = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("listen");
        let port = other.local_addr().expect("an address").port();
        let health = HealthCheck { service: Key::new("default", "web"), local_endpoints: 2, ours_alone: false };
        let (_answers_tx, answers_rx) = watch::channel(Arc::new(BTreeMap::from([(port, health)])));
        let mut ports = Ports::new(answers_rx);
        for _ in 0..3 {
            ports.check(false).await;
            assert!(ports.open.is_empty());
        }
        drop(other);
        ports.check(false).await;
        assert!(request(port).await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
}
