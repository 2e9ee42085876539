//! A proxy between a controller and its API server, which kills the controller at a write.
//!
//! It takes plain HTTP on 127.0.0.1 of the control plane's namespace and passes everything on to the API server over TLS.
//! Writes of what Landfall allocates are counted; at the one that a [`Trap`] is set for, the controller gets SIGKILL
//! before the request goes on, or after its answer came. From then on nothing of this controller goes on any more, also
//! what it had sent already, until [`Proxy::revive`].

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

/// What becomes of the write at which the controller dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never reaches the API server.
    Lost,
    /// It is done, and nobody hears of it.
    Done,
    /// It is on its way for long, and comes when another controller has done all it had to.
    Late,
}

/// At which write the controller dies, counted from one, and what becomes of that write.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// Which write.
    pub at: usize,
    /// What becomes of it.
    pub fate: Fate,
}

/// The proxy. Dropping it ends it.
pub struct Proxy {
    /// Where it listens: what the controller is to take for the API server.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    trap: Option<Trap>,
    /// Writes since the trap was set.
    writes: usize,
    /// The write at which it went off, for messages.
    sprung: Option<String>,
    /// Which controller this is; the connections of those before are dead.
    generation: usize,
    dead: bool,
    victim: Option<Process>,
    late: Option<Write>,
}

/// A request that can be sent at any time.
#[derive(Clone)]
struct Write {
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
    /// Starts one on the control plane's host.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let bind = || -> std::io::Result<_> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = TcpListener::from_std(cluster.control_plane().run(bind)?.context("listen for the controller")?)?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared { client: cluster.client(), state: Mutex::default() });
        let task = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self { url, shared, task })
    }

    /// From now on this is the controller. What was sent by others before goes nowhere.
    pub fn revive(&self, controller: Process) {
        let mut state = self.shared.state();
        state.generation += 1;
        (state.dead, state.victim) = (false, Some(controller));
    }

    /// Sets a trap. The count begins.
    pub fn set(&self, trap: Trap) {
        let mut state = self.shared.state();
        (state.trap, state.writes, state.sprung, state.late) = (Some(trap), 0, None, None);
    }

    /// Takes the trap away, if it has not gone off.
    pub fn clear(&self) {
        self.shared.state().trap = None;
    }

    /// The write at which the trap went off, if it has.
    pub fn sprung(&self) -> Option<String> {
        self.shared.state().sprung.clone()
    }

    /// Delivers the write that was on its way for so long, and returns the API server's answer to it.
    pub async fn deliver_late(&self) -> Result<u16> {
        let Some(write) = self.shared.state().late.take() else { bail!("no write is late") };
        Ok(self.shared.client.send(write.request()).await?.status().as_u16())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a request on, or not. An error ends the connection.
    async fn pass(&self, generation: usize, request: Request<Incoming>) -> Result<Response<Body>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let write = Write { method: head.method, uri: head.uri, headers: head.headers, body };
        let fate = {
            let mut state = self.state();
            if state.dead || generation != state.generation {
                bail!("this controller is dead");
            }
            let fate = if write.counts() { state.fate(&write) } else { None };
            if matches!(fate, Some(Fate::Lost | Fate::Late)) {
                state.kill(&write)?;
                state.late = (fate == Some(Fate::Late)).then(|| write.clone());
                bail!("not delivered");
            }
            fate
        };
        let answer = self.client.send(write.request()).await?;
        if fate.is_some() {
            self.state().kill(&write)?;
            bail!("the answer is lost");
        }
        Ok(answer)
    }
}

impl State {
    /// Counts a write; at the one that the trap is set for, what becomes of it.
    fn fate(&mut self, write: &Write) -> Option<Fate> {
        self.writes += 1;
        let trap = self.trap.take_if(|trap| trap.at == self.writes)?;
        // Others that are under way would be no less interesting, but which they are is chance.
        self.dead = true;
        self.sprung = Some(format!("write {} ({} {}), {:?}", trap.at, write.method, write.uri.path(), trap.fate));
        Some(trap.fate)
    }

    fn kill(&mut self, write: &Write) -> Result<()> {
        let victim = self.victim.take().with_context(|| format!("{} by nobody", write.uri))?;
        victim.signal(Signal::SIGKILL)
    }
}

impl Write {
    /// Whether it is a write of what Landfall allocates: events and the Lease are not.
    fn counts(&self) -> bool {
        let path = self.uri.path();
        let counted = ["/services/", "/loadbalancerips", "/ipaddresspools"].iter().any(|kind| path.contains(kind));
        counted && self.method != Method::GET
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.to_vec()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, shared.clone()))),
                Err(error) => return eprintln!("the proxy ends: {error}"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let generation = shared.state().generation;
    let pass = service_fn(move |request| {
        let shared = shared.clone();
        // A connection that ends without an answer is what a client sees of a crash on the way.
        async move { shared.pass(generation, request).await.map_err(std::io::Error::other) }
    });
    // Errors here are clients that go, and what is made to fail on purpose.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), pass).await;
}
