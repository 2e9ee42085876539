//! A proxy between clients of the API server and the server, which decides the fate of each request.
//!
//! ```text
//!   client --HTTP or TLS--> ApiProxy --request--> Script --fate--> API server
//! ```
//!
//! It listens in a network namespace of the lab and connects to the API server from the root namespace. With TLS it has
//! the certificate of the API server, so agents verify it as usual. It forwards the credentials of its clients. If the
//! client that the proxy itself uses has credentials, these take their place.
//!
//! | file | content |
//! |---|---|
//! | [`fate`] | requests, fates, and scripts that choose them |
//! | [`injected`] | the script of faults that a scene injects (pure) |

pub mod fate;
pub mod injected;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lab::{Cluster, Host};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use fate::{ApiClient, Fate, Script, StoredRequest};
pub use injected::{Clients, InjectedFault, InjectedFaults, Requests};

/// A request that is refused because of load may be sent again after this number of seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The proxy. Dropping it ends it.
pub struct ApiProxy<S> {
    address: SocketAddr,
    shared: Arc<SharedProxy<S>>,
    task: JoinHandle<()>,
}

struct SharedProxy<S> {
    client: Client,
    script: Mutex<S>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Requests that reach the API server later.
    late: Mutex<JoinSet<()>>,
}

/// A connection of a client.
struct Connection {
    address: IpAddr,
    /// The client, from its first request.
    client: OnceLock<ApiClient>,
    is_closed: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
}

impl<S> Drop for ApiProxy<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<S: Script> ApiProxy<S> {
    /// Starts a proxy on a host, at a free port of this address. `client` sends the requests to the API server. Without
    /// `tls` it accepts plain HTTP.
    pub fn start(host: &Host, address: IpAddr, tls: Option<TlsAcceptor>, client: Client, script: S) -> Result<Self> {
        let bind = || -> std::io::Result<_> {
            let listener = std::net::TcpListener::bind((address, 0))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = TcpListener::from_std(host.run(bind)?.context("listen for clients of the API server")?)?;
        let address = listener.local_addr()?;
        let (connections, late) = Default::default();
        let shared = Arc::new(SharedProxy { client, script: Mutex::new(script), connections, late });
        let task = tokio::spawn(serve(listener, tls, shared.clone()));
        Ok(Self { address, shared, task })
    }

    /// The address where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The script, to change it.
    pub fn script(&self) -> MutexGuard<'_, S> {
        self.shared.script()
    }

    /// Closes all connections. No request that has arrived on them is forwarded from now on.
    pub fn close_all(&self) {
        lock(&self.shared.connections).iter().for_each(|connection| connection.close());
    }

    /// The same for the connections of some clients. A connection has a client from its first request.
    pub fn close_connections(&self, is_closed: impl Fn(&ApiClient) -> bool) {
        let connections = lock(&self.shared.connections);
        connections.iter().filter(|it| it.client.get().is_some_and(&is_closed)).for_each(|it| it.close());
    }
}

impl ApiProxy<InjectedFaults> {
    /// Starts a proxy beside the API server, with its certificate, for clients on the LAN. It passes all requests.
    pub async fn start_beside_api_server(cluster: &Cluster) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // Its clients have their own credentials.
        config.auth_info = AuthInfo::default();
        (config.proxy_url, config.default_retry) = (None, false);
        let host = cluster.control_plane();
        let [certificate, key] = cluster.api_identity();
        let tls = tls_acceptor(&certificate, &key).context("read the certificate of the API server")?;
        Self::start(host, host.ipv4().into(), Some(tls), Client::try_from(config)?, InjectedFaults::default())
    }

    /// Its URL on the LAN.
    pub fn lan_url(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// Accepts TLS with this certificate and this key, both PEM files.
fn tls_acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Connection {
    fn new(address: IpAddr) -> Self {
        let (client, is_closed, task) = Default::default();
        Self { address, client, is_closed, task }
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl<S: Script> SharedProxy<S> {
    fn script(&self) -> MutexGuard<'_, S> {
        lock(&self.script)
    }

    /// Answers a request as the script decides. An error ends the connection without an answer.
    async fn answer(self: Arc<Self>, connection: &Connection, request: Request<Incoming>) -> Result<Answer> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let (address, account) = (connection.address, fate::service_account(&head.headers));
        let client = connection.client.get_or_init(|| ApiClient { address, account }).clone();
        let request = StoredRequest { client, method: head.method, uri: head.uri, headers: head.headers, body };
        let fate = {
            let mut script = self.script();
            if connection.is_closed.load(Ordering::Relaxed) {
                bail!("the connection is closed");
            }
            script.fate(&request)
        };
        match fate {
            Fate::LoseRequest => bail!("the request is lost"),
            Fate::Hang => std::future::pending().await,
            Fate::Refuse(status) => return refusal(status),
            Fate::Late(delay) => {
                self.deliver_late(request, delay);
                bail!("the request is late");
            }
            Fate::Pass | Fate::LoseAnswer | Fate::Delay(_) | Fate::Silence => {}
        }
        let answer = self.client.send(request.to_request()).await?;
        match fate {
            Fate::LoseAnswer => {
                self.script().lost_answer(&request);
                bail!("the answer is lost");
            }
            Fate::Delay(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        Ok(answer.map(|body| self.stream(request, body)))
    }

    /// The body of an answer. While the script withholds the events of a watch, neither further parts nor the end of
    /// its answer are sent.
    fn stream(self: Arc<Self>, request: StoredRequest, body: kube::client::Body) -> UnsyncBoxBody<Bytes, BoxError> {
        let frames = futures::stream::unfold((self, request, body), async |(shared, request, mut body)| {
            let frame: Option<Result<Frame<Bytes>, BoxError>> =
                body.frame().await.map(|frame| frame.map_err(Into::into));
            if request.is_watch() && shared.script().withholds_events(&request) {
                // Until the connection is closed.
                std::future::pending::<()>().await;
            }
            frame.map(|frame| (frame, (shared, request, body)))
        });
        StreamBody::new(frames.boxed()).boxed_unsync()
    }

    fn deliver_late(&self, request: StoredRequest, delay: Duration) {
        let client = self.client.clone();
        lock(&self.late).spawn(async move {
            tokio::time::sleep(delay).await;
            // The answer has no receiver.
            let _ = client.send(request.to_request()).await;
        });
    }
}

/// An answer of the API server with this status.
fn refusal(code: u16) -> Result<Answer> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": "InjectedFault", "message": "refused by a fault of this test",
    });
    let mut answer = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
    if code == 429 {
        answer = answer.header(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
    Ok(answer.body(body.boxed_unsync())?)
}

async fn serve<S: Script>(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<SharedProxy<S>>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    let connection = Arc::new(Connection::new(client.ip()));
                    let task = tasks.spawn(serve_client(stream, tls.clone(), connection.clone(), shared.clone()));
                    *lock(&connection.task) = Some(task);
                    let mut connections = lock(&shared.connections);
                    connections.retain(|open| lock(&open.task).as_ref().is_some_and(|task| !task.is_finished()));
                    connections.push(connection);
                }
                Err(error) => return eprintln!("the proxy of the API server ends: {error}"),
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Serves one connection. Ignores errors of clients that disconnect, and injected ones.
async fn serve_client<S: Script>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    connection: Arc<Connection>,
    shared: Arc<SharedProxy<S>>,
) {
    match tls {
        None => serve_http(stream, connection, shared).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve_http(stream, connection, shared).await;
            }
        }
    }
}

async fn serve_http<S: Script>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    connection: Arc<Connection>,
    shared: Arc<SharedProxy<S>>,
) {
    let answer = service_fn(move |request| {
        let (shared, connection) = (shared.clone(), connection.clone());
        // An error ends the connection without an answer, like a crash on the path.
        async move { shared.answer(&connection, request).await.map_err(std::io::Error::other) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
