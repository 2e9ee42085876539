//! Clients on the LAN: many that ask once, many that connect once, and many that stay.
//!
//! Each crowd is a thread in the network namespace of a host, with a runtime of its own. Whoever is done resets its
//! connection: what lingers would use up the ports.

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

/// A connection or an answer that takes longer is none: after three repetitions of a packet.
const PATIENCE: Duration = Duration::from_secs(4);

/// A connect that takes longer has lost a packet.
const SLOW: Duration = Duration::from_millis(200);

/// Those who ask once at a time.
const ASKERS: usize = 64;

/// Those who connect at a time, and how long each of them rests in between. It leaves the cluster time to do its work.
const CONNECTORS: usize = 16;
const REST: Duration = Duration::from_millis(4);

/// Between two questions of one that stays.
const BETWEEN: Duration = Duration::from_millis(500);

/// A line of whoami: which pod answers, and whom it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The pod.
    pub pod: String,
    /// The client, as the pod sees it.
    pub client: SocketAddr,
}

/// Asks over so many new connections, one question each.
///
/// # Errors
/// If one of them is not answered.
pub fn ask(host: &Host, target: SocketAddr, count: usize) -> Result<Vec<Line>> {
    crowd(host, async move {
        let answers = stream::iter(0..count).map(|_| async move {
            let mut stream = open(target).await?;
            let line = question(&mut stream).await?;
            stream.get_ref().set_zero_linger()?;
            anyhow::Ok(line)
        });
        answers.buffer_unordered(ASKERS).try_collect().await
    })
}

/// What became of connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub made: usize,
    /// Those that nobody took.
    pub failed: usize,
    /// Those that were taken, but not at once.
    pub slow: usize,
}

/// Connects so many times, on a thread of its own. `done` counts.
pub fn connect(host: &Host, target: SocketAddr, count: usize, done: &Arc<AtomicUsize>) -> JoinHandle<Result<Tally>> {
    let (host, done) = (host.clone(), Arc::clone(done));
    thread::spawn(move || {
        crowd(&host, async move {
            let begun = AtomicUsize::new(0);
            let tallies = stream::iter(0..CONNECTORS).map(|_| {
                let (begun, done) = (&begun, &done);
                async move {
                    let mut tally = Tally::default();
                    while begun.fetch_add(1, Ordering::Relaxed) < count {
                        let since = Instant::now();
                        let stream = timeout(PATIENCE, TcpStream::connect(target)).await;
                        tally.made += 1;
                        match stream {
                            Ok(Ok(stream)) => {
                                tally.slow += usize::from(since.elapsed() > SLOW);
                                stream.set_zero_linger()?;
                            }
                            _ => tally.failed += 1,
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                        sleep(REST).await;
                    }
                    anyhow::Ok(tally)
                }
            });
            let all: Vec<Tally> = tallies.buffer_unordered(CONNECTORS).try_collect().await?;
            let sum = |of: fn(&Tally) -> usize| all.iter().map(of).sum();
            Ok(Tally { made: sum(|t| t.made), failed: sum(|t| t.failed), slow: sum(|t| t.slow) })
        })
    })
}

/// What became of a connection that was to stay.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who answered it first.
    pub pod: String,
    /// Why it ended, if it did.
    pub broken: Option<String>,
}

/// Connections that stay open and ask now and then.
pub struct Flows {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Flow>>>,
}

impl Flows {
    /// Opens so many, and waits until each of them was answered.
    ///
    /// # Errors
    /// If one is not.
    pub fn open(host: &Host, target: SocketAddr, count: usize) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (ready, waiting) = mpsc::channel();
        let thread = {
            let (host, over) = (host.clone(), Arc::clone(&over));
            thread::spawn(move || {
                crowd(&host, async move {
                    let opened = stream::iter(0..count).map(|_| async move {
                        let mut stream = open(target).await?;
                        let line = question(&mut stream).await?;
                        anyhow::Ok((stream, line.pod))
                    });
                    let opened: Vec<_> = opened.buffer_unordered(ASKERS).try_collect().await?;
                    // Whoever waits may have gone.
                    let _ = ready.send(());
                    let stay = opened.into_iter().enumerate().map(|(n, (stream, pod))| {
                        // Not all at the same moment.
                        let first = BETWEEN.mul_f64(n as f64 / count as f64);
                        stay(stream, pod, first, &over)
                    });
                    Ok(futures::future::join_all(stay).await)
                })
            })
        };
        if waiting.recv().is_err() {
            let ended = thread.join().map_err(|_| anyhow!("the clients panicked"))?;
            ended.context("open connections")?;
            bail!("connections ended before they were open");
        }
        Ok(Self { over, thread })
    }

    /// Lets each of them ask once more, and returns what became of it.
    ///
    /// # Errors
    /// If the host is off.
    pub fn end(self) -> Result<Vec<Flow>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the clients panicked"))?
    }
}

/// Asks now and then until it is over, and once more then.
async fn stay(mut stream: BufStream<TcpStream>, pod: String, first: Duration, over: &AtomicBool) -> Flow {
    sleep(first).await;
    loop {
        let last = over.load(Ordering::Relaxed);
        let broken = match question(&mut stream).await {
            Ok(line) if line.pod == pod => None,
            Ok(line) => Some(format!("{} answers for {pod}", line.pod)),
            Err(error) => Some(format!("{error:#}")),
        };
        if last || broken.is_some() {
            let _ = stream.get_ref().set_zero_linger();
            return Flow { pod, broken };
        }
        sleep(BETWEEN).await;
    }
}

async fn open(target: SocketAddr) -> Result<BufStream<TcpStream>> {
    let stream = timeout(PATIENCE, TcpStream::connect(target)).await.context("nobody answers")?.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(BufStream::with_capacity(256, 64, stream))
}

async fn question(stream: &mut BufStream<TcpStream>) -> Result<Line> {
    let asked = async {
        stream.write_all(b"?\n").await?;
        stream.flush().await?;
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "it was closed");
        let (pod, client) = line.trim().split_once(' ').with_context(|| format!("{line:?} is no answer"))?;
        Ok(Line { pod: pod.to_owned(), client: client.parse().context("a client's address")? })
    };
    timeout(PATIENCE, asked).await.context("no answer")?
}

/// Runs this in the network namespace of a host.
fn crowd<T: Send>(host: &Host, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(work)
    })?
}
