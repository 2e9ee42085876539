//! Clients on the LAN: many with one request, many with one connect, and many with long connections.
//!
//! Each group is a thread in the network namespace of a host, with its own runtime. Clients reset their connections at
//! the end, because lingering connections would use up the ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use lab::Host;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The longest time for a connect or an answer: a packet is sent again three times by then.
const PATIENCE: Duration = Duration::from_secs(4);

/// A slower connect has lost a packet.
const SLOW: Duration = Duration::from_millis(200);

/// Concurrent clients with one request.
const CONCURRENT_QUERIES: usize = 64;

/// Concurrent connecting clients, and the pause of each after a connect, which leaves CPU time to the cluster.
const CONNECTORS: usize = 16;
const PAUSE: Duration = Duration::from_millis(4);

/// The time between two requests on a long connection.
const QUERY_INTERVAL: Duration = Duration::from_millis(500);

/// An answer of whoami: the pod, and the address of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub pod: String,
    /// The client, as the pod sees it.
    pub client: SocketAddr,
}

/// Opens `count` connections with one request each. Fails if one of them has no answer.
pub fn query_all(host: &Host, target: SocketAddr, count: usize) -> Result<Vec<Answer>> {
    run_on(host, async move {
        let answers = stream::iter(0..count).map(|_| async move {
            let mut stream = open(target).await?;
            let answer = query(&mut stream).await?;
            stream.get_ref().set_zero_linger()?;
            anyhow::Ok(answer)
        });
        answers.buffer_unordered(CONCURRENT_QUERIES).try_collect().await
    })
}

/// The results of connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectTally {
    pub total: usize,
    /// Connects that were not accepted.
    pub failed: usize,
    /// Connects that were accepted late.
    pub slow: usize,
}

/// Makes `count` connects on a thread of its own. `done` is the number of finished ones.
pub fn connect(
    host: &Host,
    target: SocketAddr,
    count: usize,
    done: &Arc<AtomicUsize>,
) -> JoinHandle<Result<ConnectTally>> {
    let (host, done) = (host.clone(), Arc::clone(done));
    thread::spawn(move || {
        run_on(&host, async move {
            let begun = AtomicUsize::new(0);
            let tallies = stream::iter(0..CONNECTORS).map(|_| {
                let (begun, done) = (&begun, &done);
                async move {
                    let mut tally = ConnectTally::default();
                    while begun.fetch_add(1, Ordering::Relaxed) < count {
                        let since = Instant::now();
                        let stream = timeout(PATIENCE, TcpStream::connect(target)).await;
                        tally.total += 1;
                        match stream {
                            Ok(Ok(stream)) => {
                                tally.slow += usize::from(since.elapsed() > SLOW);
                                stream.set_zero_linger()?;
                            }
                            _ => tally.failed += 1,
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                        sleep(PAUSE).await;
                    }
                    anyhow::Ok(tally)
                }
            });
            let all: Vec<ConnectTally> = tallies.buffer_unordered(CONNECTORS).try_collect().await?;
            let sum = |field: fn(&ConnectTally) -> usize| all.iter().map(field).sum();
            Ok(ConnectTally { total: sum(|t| t.total), failed: sum(|t| t.failed), slow: sum(|t| t.slow) })
        })
    })
}

/// The result of a long connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The pod of the first answer.
    pub pod: String,
    /// Why it broke, if it did.
    pub broken: Option<String>,
}

/// Connections that stay open, with a request now and then.
pub struct Flows {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Flow>>>,
}

impl Flows {
    /// Opens `count` connections, and waits for an answer on each.
    pub fn open(host: &Host, target: SocketAddr, count: usize) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (ready_tx, ready_rx) = mpsc::channel();
        let thread = {
            let (host, over) = (host.clone(), Arc::clone(&over));
            thread::spawn(move || {
                run_on(&host, async move {
                    let opened = stream::iter(0..count).map(|_| async move {
                        let mut stream = open(target).await?;
                        let answer = query(&mut stream).await?;
                        anyhow::Ok((stream, answer.pod))
                    });
                    let opened: Vec<_> = opened.buffer_unordered(CONCURRENT_QUERIES).try_collect().await?;
                    // The receiver may be gone.
                    let _ = ready_tx.send(());
                    let flows = opened.into_iter().enumerate().map(|(n, (stream, pod))| {
                        // The requests are spread over the interval.
                        let first = QUERY_INTERVAL.mul_f64(n as f64 / count as f64);
                        keep_open(stream, pod, first, &over)
                    });
                    Ok(futures::future::join_all(flows).await)
                })
            })
        };
        if ready_rx.recv().is_err() {
            let ended = thread.join().map_err(|_| anyhow!("the clients panicked"))?;
            ended.context("open connections")?;
            bail!("connections ended before they were open");
        }
        Ok(Self { over, thread })
    }

    /// Sends a last request on each connection, and returns the results.
    pub fn end(self) -> Result<Vec<Flow>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the clients panicked"))?
    }
}

/// Sends a request now and then until `over`, and a last one then.
async fn keep_open(mut stream: BufStream<TcpStream>, pod: String, first: Duration, over: &AtomicBool) -> Flow {
    sleep(first).await;
    loop {
        let last = over.load(Ordering::Relaxed);
        let broken = match query(&mut stream).await {
            Ok(answer) if answer.pod == pod => None,
            Ok(answer) => Some(format!("{} answers for {pod}", answer.pod)),
            Err(error) => Some(format!("{error:#}")),
        };
        if last || broken.is_some() {
            let _ = stream.get_ref().set_zero_linger();
            return Flow { pod, broken };
        }
        sleep(QUERY_INTERVAL).await;
    }
}

async fn open(target: SocketAddr) -> Result<BufStream<TcpStream>> {
    let stream =
        timeout(PATIENCE, TcpStream::connect(target)).await.context("no answer to a connect")?.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(BufStream::with_capacity(256, 64, stream))
}

async fn query(stream: &mut BufStream<TcpStream>) -> Result<Answer> {
    let exchange = async {
        stream.write_all(b"?\n").await?;
        stream.flush().await?;
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "the pod closed the connection");
        let (pod, client) = line.trim().split_once(' ').with_context(|| format!("{line:?} is no answer"))?;
        Ok(Answer { pod: pod.to_owned(), client: client.parse().context("a client's address")? })
    };
    timeout(PATIENCE, exchange).await.context("no answer")?
}

/// Runs `work` in the network namespace of a host.
fn run_on<T: Send>(host: &Host, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(work)
    })?
}
