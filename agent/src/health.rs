//! Answers at the `healthCheckNodePort` of Services, where no other proxy on this node does.
//!
//! A load balancer in front of the cluster asks each node whether it has endpoints of a Service with the policy Local
//! (`externalTrafficPolicy` in the API). kube-proxy answers that for every Service, in the same words as here; a cluster
//! without it has nobody else.
//!
//! One task looks every [`LOOK`] which ports are to be answered at, and one more answers at each. kube-proxy is known by
//! the port of its own health check, which is looked for and not asked; other proxies, by having taken the port. All of
//! them get the time of two looks to do so first. Dropping the future closes all ports.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use dataplane::rules::health_check::{Health, health};
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// How often to look which ports are wanted, and who else is there.
const LOOK: Duration = Duration::from_secs(2);

/// What is answered follows the cluster after this at the latest: a thousand changes a second are one here.
const REST: Duration = Duration::from_millis(250);

/// Where kube-proxy answers about itself (`--healthz-port`'s default). While somebody listens there, it is its business.
const KUBE_PROXY: u16 = 10256;

/// So many may ask at one port at a time; who comes later waits for the kernel's patience. Load balancers ask once every few
/// seconds, each.
const AT_A_TIME: usize = 64;

/// For how long one may take to ask and to take in the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The header that tells how many endpoints there are, as kube-proxy has it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

type Told = watch::Receiver<Arc<BTreeMap<u16, Health>>>;

/// Serves what `snapshots` say until it is dropped, or nobody sends them any more.
pub(super) async fn serve(mut snapshots: watch::Receiver<Option<Arc<dataplane::Snapshot>>>) -> Result<Infallible> {
    let (tell, told) = watch::channel(Arc::default());
    let mut ports = Ports { told, open: BTreeMap::new(), seen: BTreeMap::new(), tasks: JoinSet::new() };
    let [mut look, mut rest] = [LOOK, REST].map(interval);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut others = false;
    loop {
        tokio::select! {
            // What is answered changes soon; at which ports, with the next look.
            new = next(&mut snapshots, &mut rest) => drop(tell.send_replace(new?)),
            _ = look.tick() => {
                // Without a port to answer at it doesn't matter who else could.
                others = !ports.told.borrow().is_empty() && are_others_here(others);
                ports.look(others).await;
            }
        }
    }
}

/// What is to be told when it next may have changed, but not before `rest` has passed. Cancel safe.
async fn next(
    snapshots: &mut watch::Receiver<Option<Arc<dataplane::Snapshot>>>,
    rest: &mut Interval,
) -> Result<Arc<BTreeMap<u16, Health>>> {
    rest.tick().await;
    let Ok(()) = snapshots.changed().await else { bail!("the composer is gone") };
    Ok(Arc::new(snapshots.borrow_and_update().as_deref().map(health).unwrap_or_default()))
}

/// Whether kube-proxy runs on this node, and whether it did at the last look. The table of sockets tells who has the port,
/// and takes milliseconds to read; so it is read only when somebody has it who had not before.
fn are_others_here(before: bool) -> bool {
    is_taken(KUBE_PROXY)
        && (before
            || ["/proc/net/tcp", "/proc/net/tcp6"]
                .iter()
                .any(|path| File::open(path).is_ok_and(|table| is_listened_at(BufReader::new(table), KUBE_PROXY))))
}

/// Whether somebody has `port` on an address of this node: listens at it, or has a connection that began there.
fn is_taken(port: u16) -> bool {
    let bind = |socket: io::Result<TcpSocket>, address: IpAddr| {
        let socket = socket?;
        // Connections that were accepted there, and have outlived who listened, don't count.
        socket.set_reuseaddr(true)?;
        socket.bind((address, port).into())
    };
    let taken = |bound: io::Result<()>| bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    taken(bind(TcpSocket::new_v6(), Ipv6Addr::UNSPECIFIED.into()))
        || taken(bind(TcpSocket::new_v4(), Ipv4Addr::UNSPECIFIED.into()))
}

/// Whether one of the sockets in this table listens at `port`: `/proc/net/tcp`, which has those that listen before all others
/// (Documentation/networking/proc_net_tcp.rst), of which there may be a hundred thousand.
fn is_listened_at(table: impl BufRead, port: u16) -> bool {
    /// The state of a socket that listens.
    const LISTENS: &str = "0A";
    let sockets = table.lines().skip(1).map_while(Result::ok);
    let mut listening = sockets.map_while(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        (state == LISTENS).then(|| local.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok()))
    });
    listening.any(|number| number == Some(port))
}

/// The ports that are answered at.
struct Ports {
    told: Told,
    open: BTreeMap<u16, AbortHandle>,
    /// For how many looks each port has been wanted and left to others.
    seen: BTreeMap<u16, u8>,
    tasks: JoinSet<()>,
}

impl Ports {
    /// Opens what is to be answered at, and closes the rest.
    async fn look(&mut self, others: bool) {
        let wanted = self.told.borrow().clone();
        let is_wanted = |port: &u16| wanted.get(port).is_some_and(|health| !others || health.alone);
        self.open.retain(|port, task| {
            let stays = is_wanted(port) && !task.is_finished();
            if !stays {
                task.abort();
                tracing::info!(port, "no health check is answered here any more");
            }
            stays
        });
        while self.tasks.try_join_next().is_some() {}
        self.seen.retain(|port, _| is_wanted(port));
        for (&port, health) in wanted.iter().filter(|(port, _)| is_wanted(port)) {
            let looks = self.seen.entry(port).or_default();
            *looks = looks.saturating_add(1);
            if self.open.contains_key(&port) || *looks < 2 {
                continue;
            }
            match listen(port).await {
                Ok(listener) => {
                    tracing::info!(port, service = %health.service, "health checks are answered here");
                    self.open.insert(port, self.tasks.spawn(answer_all(listener, port, self.told.clone())));
                }
                // Another proxy's business, and not wrong. What is wrong otherwise is said once.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) if *looks == 2 => {
                    tracing::warn!(port, service = %health.service, %error, "cannot answer health checks; trying again");
                }
                Err(_) => {}
            }
        }
    }
}

/// Listens at `port` on all addresses of the node; on one without IPv6, those there are.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}

/// Answers everybody who asks at `port`, until it is dropped.
async fn answer_all(listener: TcpListener, port: u16, told: Told) {
    let seats = Arc::new(Semaphore::new(AT_A_TIME));
    // They go with this task.
    let mut asking = JoinSet::new();
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let told = told.clone();
                asking.spawn(async move {
                    let _ = timeout(PATIENCE, answer(stream, port, told)).await;
                    drop(seat);
                });
            }
            // No descriptors left, as a rule: others may give some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        while asking.try_join_next().is_some() {}
    }
}

async fn answer(stream: TcpStream, port: u16, told: Told) -> Result<(), hyper::Error> {
    let service = service_fn(|_: Request<Incoming>| {
        let told = told.borrow().get(&port).cloned();
        async move { Ok::<_, Infallible>(response(told.as_ref())) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// What kube-proxy would answer.
fn response(told: Option<&Health>) -> Response<Full<Bytes>> {
    let local_endpoints = told.map_or(0, |health| health.local_endpoints);
    let body = json!({
        "service": told.map(|health| json!({"namespace": health.service.namespace, "name": health.service.name})),
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = if local_endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, local_endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Key;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_port_is_listened_at_if_a_socket_in_the_table_is_in_that_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
                     0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
                     1: 0100007F:1F90 0100007F:2711 01 00000000:00000000 00:00000000 00000000     0\n";
        let table6 = "  sl  local_address                         remote_address                        st\n   \
                      0: 00000000000000000000000000000000:2810 00000000000000000000000000000000:0000 0A 0:0\n";
        for (table, port, expected) in [
            (table, 10256, true),
            (table, 8080, false),
            (table, 0x2711, false),
            (table6, 10256, true),
            ("", 10256, false),
        ] {
            assert_eq!(is_listened_at(table.as_bytes(), port), expected, "{port}");
        }
    }

    #[tokio::test]
    async fn a_port_is_taken_while_somebody_listens_at_it_on_any_address() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let listener = TcpListener::bind((address, 0)).await.expect("bind");
            let port = listener.local_addr().expect("an address").port();
            assert!(is_taken(port), "{address}");
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connect");
            let (accepted, _) = listener.accept().await.expect("a connection");
            drop(listener);
            assert!(!is_taken(port), "{address}: a connection alone");
            drop((client, accepted));
        }
    }

    async fn asked(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// One port that is free as this returns.
    fn free_port() -> u16 {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        taken.local_addr().expect("an address").port()
    }

    #[tokio::test]
    async fn a_node_is_asked_for_local_endpoints_until_another_proxy_is_there_or_the_service_gone() {
        let port = free_port();
        let health = |count| {
            let told = Health { service: Key::new("default", "web"), local_endpoints: count, alone: false };
            Arc::new(BTreeMap::from([(port, told)]))
        };
        let (tell, told) = watch::channel(health(2));
        let mut ports = Ports { told, open: BTreeMap::new(), seen: BTreeMap::new(), tasks: JoinSet::new() };
        ports.look(false).await;
        assert!(ports.open.is_empty(), "others had no time to take the port first");
        ports.look(false).await;
        let answer = asked(port).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"), "{head}");
        let said = json!({
            "service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON"), said);
        tell.send_replace(health(0));
        assert!(asked(port).await.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));

        // kube-proxy comes and goes again.
        ports.look(true).await;
        let closed = ports.tasks.join_next().await.expect("a task");
        assert!(closed.is_err_and(|error| error.is_cancelled()) && ports.open.is_empty());
        ports.look(false).await;
        ports.look(false).await;
        assert!(asked(port).await.starts_with("HTTP/1.1 503 "));
        tell.send_replace(Arc::default());
        ports.look(false).await;
        assert!(ports.open.is_empty());

        // For a Service that kube-proxy leaves alone nobody else answers.
        assert!(ports.tasks.join_next().await.is_some(), "the port is closed");
        let alone = Health { service: Key::new("default", "web"), local_endpoints: 1, alone: true };
        tell.send_replace(Arc::new(BTreeMap::from([(port, alone)])));
        ports.look(true).await;
        ports.look(true).await;
        assert!(asked(port).await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_port_that_another_proxy_has_is_left_to_it() {
        let other = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("listen");
        let port = other.local_addr().expect("an address").port();
        let told = Health { service: Key::new("default", "web"), local_endpoints: 2, alone: false };
        let (_tell, told) = watch::channel(Arc::new(BTreeMap::from([(port, told)])));
        let mut ports = Ports { told, open: BTreeMap::new(), seen: BTreeMap::new(), tasks: JoinSet::new() };
        for _ in 0..3 {
            ports.look(false).await;
            assert!(ports.open.is_empty());
        }
        drop(other);
        ports.look(false).await;
        assert!(asked(port).await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
}
