//! A client on the LAN that sends requests to an address all the time, each over a new connection or from a new port.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use lab::{Answer, Host};

/// Limit of waiting for an answer over TCP: the kernel retransmits after one second, and after three.
const TCP_TIMEOUT: Duration = Duration::from_secs(4);

/// A UDP request is sent at most this many times, like a resolver's.
const UDP_ATTEMPTS: usize = 4;

/// Limit of waiting for the answer to each attempt.
const UDP_TIMEOUT: Duration = Duration::from_secs(1);

/// An answer later than this has cost a lost packet.
const SLOW: Duration = Duration::from_millis(700);

/// Pause between two requests of a thread. It leaves the cluster time for its work, and lets ports become free again.
const PAUSE: Duration = Duration::from_millis(20);

/// Threads per prober: while one waits for a lost answer, the others show whether the address is down for all.
const THREADS: usize = 4;

/// The protocol of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// One connection per request.
    Tcp,
    /// One datagram per request, and others from other ports if there is no answer.
    Udp,
}

/// Results of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that have ended.
    pub requests: usize,
    /// Requests without an answer.
    pub lost: usize,
    /// Requests with a late answer.
    pub slow: usize,
    /// The start of the first lost request, and its error.
    pub first_lost: Option<String>,
}

impl Tally {
    /// Percentage of answered requests; 100 without requests.
    pub fn percent(&self) -> f64 {
        if self.requests == 0 { 100.0 } else { 100.0 * (1.0 - self.lost as f64 / self.requests as f64) }
    }
}

/// Sends requests until it is stopped or dropped.
pub struct Prober {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Prober {
    /// Starts to send requests to a whoami at `target` from this host.
    pub fn start(host: &Host, target: SocketAddr, transport: Transport) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let start = Instant::now();
        let spawn = |_| {
            let (host, stop, tally) = (host.clone(), Arc::clone(&stop), Arc::clone(&tally));
            thread::spawn(move || {
                host.run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        send_request(target, transport, start, &tally);
                        thread::sleep(PAUSE);
                    }
                })
            })
        };
        let threads = (0..THREADS).map(spawn).collect();
        Self { stop, tally, threads }
    }

    /// Returns the results since the last call.
    pub fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for open requests, and returns the results since the last call of [`Prober::take_tally`].
    ///
    /// # Errors
    /// If the host is off.
    pub fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow!("a thread of the prober panicked"))??;
        }
        Ok(self.take_tally())
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send_request(target: SocketAddr, transport: Transport, start: Instant, tally: &Mutex<Tally>) {
    let since = start.elapsed();
    let answer = match transport {
        Transport::Tcp => Answer::over_tcp(target, TCP_TIMEOUT),
        Transport::Udp => {
            let attempt = || Answer::over_udp(target, UDP_TIMEOUT);
            (1..UDP_ATTEMPTS).fold(attempt(), |answer, _| answer.or_else(|_| attempt()))
        }
    };
    let took = start.elapsed() - since;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.requests += 1;
    match answer {
        Ok(_) => tally.slow += usize::from(took > SLOW),
        Err(error) => {
            tally.lost += 1;
            tally.first_lost.get_or_insert_with(|| format!("{since:.3?} in, after {took:.3?}: {error}"));
        }
    }
}
