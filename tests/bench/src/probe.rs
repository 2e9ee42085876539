//! Continuous requests to an address from a host on the LAN: a datagram every millisecond, a connect every ten.
//!
//! Three threads run in the host's network namespace: one sends datagrams, one receives answers, one connects. All use
//! the same clock, which never steps (`CLOCK_MONOTONIC`). Each send has its time on a fixed grid, so a late one does
//! not delay the next. Threads sleep instead of spinning: the machine has few processors and the contenders need them.
//! The probe's own delay is reported with every outage ([`crate::gaps::Outage::late`]).
//!
//! Any answer counts, whatever it contains. A dropped probe runs until its longest time is over.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::Host;

use crate::connector::{Grid, connect};
use crate::gaps::{Attempt, Datagrams};

/// Interval between datagrams.
pub const DATAGRAMS: Duration = Duration::from_millis(1);

/// Interval between connects.
pub const CONNECTS: Duration = Duration::from_millis(10);

/// No probe runs longer.
const LONGEST: Duration = Duration::from_secs(60);

/// The log of a probe.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Requests in datagrams, and their answers.
    pub datagrams: Datagrams,
    /// Attempts to connect.
    pub attempts: Vec<Attempt>,
}

/// A running probe.
pub struct Probe {
    begun: Instant,
    over: Arc<AtomicBool>,
    /// When the last answer came, in nanoseconds since the probe began; 0 before the first.
    last: Arc<AtomicU64>,
    sender: JoinHandle<Vec<Duration>>,
    receiver: JoinHandle<Vec<Duration>>,
    connector: JoinHandle<Result<Vec<Attempt>>>,
}

impl Probe {
    /// Starts the requests, from new ports.
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
                let grid = Grid { begun, every: DATAGRAMS };
                let (mut sent, mut next) = (Vec::new(), begun);
                while !is_over(&over) {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    // A refused send counts as well: while no host has the address, the kernel reports that here.
                    sent.push(begun.elapsed());
                    let _ = socket.send(b"?\n");
                    next = grid.next();
                }
                sent
            })
        };
        let receiver = {
            let (over, last) = (Arc::clone(&over), Arc::clone(&last));
            thread::spawn(move || {
                let (mut answered, mut buffer) = (Vec::new(), [0; 512]);
                while !is_over(&over) {
                    // Errors belong to earlier datagrams, or are timeouts.
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
            let grid = Grid { begun, every: CONNECTS };
            thread::spawn(move || host.run(|| connect(target, grid, &Arc::default(), || is_over(&over)))?)
        };
        Ok(Self { begun, over, last, sender, receiver, connector })
    }

    /// Time since the start: the clock of its log.
    pub fn elapsed_time(&self) -> Duration {
        self.begun.elapsed()
    }

    /// When the last answer to a datagram came; zero if none has.
    pub fn last_answer(&self) -> Duration {
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }

    /// Stops it, and returns its log. Connects without a result yet are left out.
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
