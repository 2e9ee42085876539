//! Somebody on the LAN who asks an address all the time, each time over a new connection or from a new port, and what became
//! of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use lab::{Answer, Host};

/// How long an answer over TCP may take: the kernel sends a packet again after one second, and after three.
const PATIENCE: Duration = Duration::from_secs(4);

/// How often a datagram is sent, and how long each of them waits for its answer: as resolvers do.
const DATAGRAMS: usize = 4;
const PATIENCE_OF_EACH: Duration = Duration::from_secs(1);

/// What takes longer has lost a packet.
const SLOW: Duration = Duration::from_millis(700);

/// How long each of them rests in between. It leaves the cluster time to do its work, and ports time to be free again.
const REST: Duration = Duration::from_millis(20);

/// How many ask at a time: while one waits for an answer that does not come, the others find out whether it is down for all.
const ASKERS: usize = 4;

/// What questions are sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Over {
    /// A connection for each.
    Tcp,
    /// A datagram from a port of its own, and others from others if no answer comes.
    Udp,
}

/// What became of questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that were answered or given up.
    pub asked: usize,
    /// Those that were not answered.
    pub lost: usize,
    /// Those that were answered, but not at once.
    pub slow: usize,
    /// How the first of those that were not answered began, and why it ended.
    pub first_lost: Option<String>,
}

impl Tally {
    /// The share that was answered, in percent. Of none, all were.
    pub fn percent(&self) -> f64 {
        if self.asked == 0 { 100.0 } else { 100.0 * (1.0 - self.lost as f64 / self.asked as f64) }
    }
}

/// Those who ask, until they are told to end, or dropped.
pub struct Asking {
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    askers: Vec<JoinHandle<Result<()>>>,
}

impl Asking {
    /// Begins to ask a whoami at `target` from this host.
    pub fn begin(host: &Host, target: SocketAddr, over: Over) -> Self {
        let (is_over, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let begun = Instant::now();
        let asker = |_| {
            let (host, is_over, tally) = (host.clone(), Arc::clone(&is_over), Arc::clone(&tally));
            thread::spawn(move || {
                host.run(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        ask(target, over, begun, &tally);
                        thread::sleep(REST);
                    }
                })
            })
        };
        let askers = (0..ASKERS).map(asker).collect();
        Self { over: is_over, tally, askers }
    }

    /// What became of all that have ended since this was asked last.
    pub fn lap(&self) -> Tally {
        std::mem::take(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for those under way, and says what became of all since the last lap.
    ///
    /// # Errors
    /// If the host is off.
    pub fn end(mut self) -> Result<Tally> {
        self.over.store(true, Ordering::Relaxed);
        for asker in std::mem::take(&mut self.askers) {
            asker.join().map_err(|_| anyhow!("a thread that asks panicked"))??;
        }
        Ok(self.lap())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn ask(target: SocketAddr, over: Over, begun: Instant, tally: &Mutex<Tally>) {
    let since = begun.elapsed();
    let answer = match over {
        Over::Tcp => Answer::over_tcp(target, PATIENCE),
        Over::Udp => {
            let ask = || Answer::over_udp(target, PATIENCE_OF_EACH);
            (1..DATAGRAMS).fold(ask(), |answer, _| answer.or_else(|_| ask()))
        }
    };
    let took = begun.elapsed() - since;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.asked += 1;
    match answer {
        Ok(_) => tally.slow += usize::from(took > SLOW),
        Err(error) => {
            tally.lost += 1;
            tally.first_lost.get_or_insert_with(|| format!("{since:.3?} in, after {took:.3?}: {error}"));
        }
    }
}
