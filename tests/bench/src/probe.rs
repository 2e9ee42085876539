//! Asking an address all the time, from a host on the LAN: a datagram every millisecond, a connect every ten.
//!
//! Three threads in the host's network namespace: one sends datagrams, one takes answers, one connects. All of them go by
//! the same clock, which never steps (`CLOCK_MONOTONIC`); each send has its place on a fixed grid, so that a late one does
//! not delay the next. Nobody spins: who waits sleeps, for the machine has few processors and the contenders need them.
//! What the probe is late by itself is told with every outage ([`crate::gaps::Outage::late`]).
//!
//! Any answer counts, whatever is in it. A probe that is dropped goes on until its longest time is over.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::Host;

use crate::connector::{after, connect};
use crate::gaps::{Attempt, Datagrams};

/// A datagram is sent so often.
pub const DATAGRAMS: Duration = Duration::from_millis(1);

/// A connect is begun so often.
pub const CONNECTS: Duration = Duration::from_millis(10);

/// No probe goes on for longer.
const LONGEST: Duration = Duration::from_secs(60);

/// What a probe saw.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// By datagrams.
    pub datagrams: Datagrams,
    /// By connects.
    pub attempts: Vec<Attempt>,
}

/// A probe that runs.
pub struct Probe {
    begun: Instant,
    over: Arc<AtomicBool>,
    /// When the last answer came, in nanoseconds since the probe began; 0 is never.
    last: Arc<AtomicU64>,
    sender: JoinHandle<Vec<Duration>>,
    receiver: JoinHandle<Vec<Duration>>,
    connector: JoinHandle<Result<Vec<Attempt>>>,
}

impl Probe {
    /// Begins to ask, from new ports.
    ///
    /// # Errors
    /// If the host is off, or there is no socket.
    pub fn begin(host: &Host, address: IpAddr, port: u16) -> Result<Self> {
        let target = SocketAddr::new(address, port);
        let socket = host.run(|| -> io::Result<UdpSocket> {
            let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            socket.set_nonblocking(false)?;
            Ok(socket)
        })?;
        let socket = Arc::new(socket.with_context(|| format!("a socket to {target}"))?);
        let (begun, over, last) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let is_over = move |over: &AtomicBool| over.load(Ordering::Relaxed) || begun.elapsed() > LONGEST;
        let sender = {
            let (socket, over) = (Arc::clone(&socket), Arc::clone(&over));
            thread::spawn(move || {
                let (mut sent, mut next) = (Vec::new(), begun);
                while !is_over(&over) {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    // What is refused was asked all the same: while nobody has the address, the kernel says so here.
                    sent.push(begun.elapsed());
                    let _ = socket.send(b"who\n");
                    next = after(begun, DATAGRAMS);
                }
                sent
            })
        };
        let receiver = {
            let (over, last) = (Arc::clone(&over), Arc::clone(&last));
            thread::spawn(move || {
                let (mut answered, mut buffer) = (Vec::new(), [0; 512]);
                while !is_over(&over) {
                    // Errors are of earlier datagrams, or of nobody's answering for a while.
                    if socket.recv(&mut buffer).is_ok() {
                        let at = begun.elapsed();
                        answered.push(at);
                        last.store(at.as_nanos() as u64, Ordering::Relaxed);
                    }
                }
                answered
            })
        };
        let connector = {
            let (host, over) = (host.clone(), Arc::clone(&over));
            thread::spawn(move || host.run(|| connect(target, begun, CONNECTS, || is_over(&over)))?)
        };
        Ok(Self { begun, over, last, sender, receiver, connector })
    }

    /// How long ago it began: the clock of its log.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// When the last answer to a datagram came; zero if none has.
    pub fn last_answer(&self) -> Duration {
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }

    /// Ends it, and returns what it saw. Connects that nobody has answered yet are left out.
    ///
    /// # Errors
    /// If a part of it failed.
    pub fn end(self) -> Result<Log> {
        self.over.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread of the probe panicked");
        let sent = self.sender.join().map_err(panicked)?;
        let answered = self.receiver.join().map_err(panicked)?;
        let attempts = self.connector.join().map_err(panicked)??;
        Ok(Log { datagrams: Datagrams { sent, answered }, attempts })
    }
}
