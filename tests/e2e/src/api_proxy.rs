//! A proxy between a controller and its API server, which kills the controller at a write.
//!
//! It accepts plain HTTP on 127.0.0.1 of the control plane's namespace and forwards requests to the API server over TLS. It
//! counts writes of allocations. At the write of a [`Trap`], it kills the controller before it forwards the request, or after
//! it has the answer. From then on it forwards nothing of this controller, also no request that it has received already,
//! until [`Proxy::accept`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use lab::{Cluster, Process, Signal};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The fate of the write at which the controller dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFate {
    /// It never reaches the API server.
    Lost,
    /// The API server does it, and the controller does not receive the answer.
    Done,
    /// It reaches the API server after the next controller has finished its work.
    Late,
}

/// The write at which the controller dies, and the fate of that write.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// Number of the write, counted from one.
    pub write: usize,
    pub fate: WriteFate,
}

/// The proxy. Dropping it ends it.
pub struct Proxy {
    /// Its URL, which the controller uses as the API server's.
    pub url: String,
    shared: Arc<SharedProxy>,
    task: JoinHandle<()>,
}

struct SharedProxy {
    client: Client,
    state: Mutex<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    trap: Option<Trap>,
    /// Writes since the trap was set.
    writes: usize,
    /// The write at which the controller was killed, for messages.
    killed_at: Option<String>,
    /// Number of the current controller. Connections of earlier controllers are dead.
    generation: usize,
    is_dead: bool,
    controller: Option<Process>,
    late: Option<StoredRequest>,
}

/// A request that can be sent at any time.
#[derive(Clone)]
struct StoredRequest {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Starts a proxy on the control plane's host.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let bind = || -> std::io::Result<_> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = TcpListener::from_std(cluster.control_plane().run(bind)?.context("listen for the controller")?)?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(SharedProxy { client: cluster.client(), state: Mutex::default() });
        let task = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self { url, shared, task })
    }

    /// Accepts requests of this controller, and no longer of earlier ones.
    pub fn accept(&self, controller: Process) {
        let mut state = self.shared.state();
        state.generation += 1;
        (state.is_dead, state.controller) = (false, Some(controller));
    }

    /// Sets a trap, and starts to count writes.
    pub fn set_trap(&self, trap: Trap) {
        let mut state = self.shared.state();
        (state.trap, state.writes, state.killed_at, state.late) = (Some(trap), 0, None, None);
    }

    /// Removes the trap.
    pub fn clear_trap(&self) {
        self.shared.state().trap = None;
    }

    /// The write at which the trap killed the controller, if it has.
    pub fn killed_at(&self) -> Option<String> {
        self.shared.state().killed_at.clone()
    }

    /// Sends the late write, and returns the status of the API server's answer.
    pub async fn deliver_late_write(&self) -> Result<u16> {
        let Some(write) = self.shared.state().late.take() else { bail!("no write is late") };
        Ok(self.shared.client.send(write.to_request()).await?.status().as_u16())
    }
}

impl SharedProxy {
    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards a request, or kills the controller. An error ends the connection.
    async fn forward(&self, generation: usize, request: Request<Incoming>) -> Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = StoredRequest { method: head.method, uri: head.uri, headers: head.headers, body };
        let fate = {
            let mut state = self.state();
            if state.is_dead || generation != state.generation {
                bail!("this controller is dead");
            }
            let fate = if request.is_allocation_write() { state.count_write(&request) } else { None };
            if matches!(fate, Some(WriteFate::Lost | WriteFate::Late)) {
                state.kill_controller(&request)?;
                state.late = (fate == Some(WriteFate::Late)).then(|| request.clone());
                bail!("not delivered");
            }
            fate
        };
        let answer = self.client.send(request.to_request()).await?;
        if fate.is_some() {
            self.state().kill_controller(&request)?;
            bail!("the answer is lost");
        }
        Ok(answer)
    }
}

impl ProxyState {
    /// Counts a write. Returns its fate if it is the write of the trap.
    fn count_write(&mut self, write: &StoredRequest) -> Option<WriteFate> {
        self.writes += 1;
        let trap = self.trap.take_if(|trap| trap.write == self.writes)?;
        // Drops other open requests as well, whose number is random.
        self.is_dead = true;
        self.killed_at = Some(format!("write {} ({} {}), {:?}", trap.write, write.method, write.uri.path(), trap.fate));
        Some(trap.fate)
    }

    fn kill_controller(&mut self, write: &StoredRequest) -> Result<()> {
        let controller = self.controller.take().with_context(|| format!("{} without a controller", write.uri))?;
        controller.signal(Signal::SIGKILL)
    }
}

impl StoredRequest {
    /// Whether it writes an allocation. Events and the Lease do not count.
    fn is_allocation_write(&self) -> bool {
        let path = self.uri.path();
        let is_allocation =
            ["/services/", "/loadbalancerips", "/ipaddresspools"].iter().any(|kind| path.contains(kind));
        is_allocation && self.method != Method::GET
    }

    fn to_request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.to_vec()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

async fn serve(listener: TcpListener, shared: Arc<SharedProxy>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve_connection(stream, shared.clone()))),
                Err(error) => return eprintln!("the proxy ends: {error}"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<SharedProxy>) {
    let generation = shared.state().generation;
    let forward = service_fn(move |request| {
        let shared = shared.clone();
        // An error ends the connection without an answer, like a crash on the path.
        async move { shared.forward(generation, request).await.map_err(std::io::Error::other) }
    });
    // Ignores errors of clients that disconnect, and injected ones.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), forward).await;
}
