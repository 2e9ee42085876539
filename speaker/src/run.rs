//! Runs the [`Machine`](crate::machine::Machine) with real sockets, real links and real time.
//!
//! [`run`] starts one thread, the wire thread `landfall-wire`, for everything that must not wait: Hellos, ARP, NDP,
//! takeovers. It shares channels and a waker with the rest of the process. An input channel holds the latest value, and
//! the waker signals a change of it.
//!
//! ```text
//!   snapshot  --watch-->  |  thread `landfall-wire` |  --watch-->  announcements, conflicts
//!   forwarded --watch-->  |   Machine <-> sockets   |  --watch-->  dead, neighbours
//!   keys      --watch-->  |                         |  --watch-->  counters
//!   links     --watch-->  |                         |
//!                           ^          |
//!              run(): waker +          +-- events, bounded --> run(): the log
//! ```
//!
//! [`run`] itself writes the log, because a slow log would block the wire thread. If more than a hundred events are
//! queued, the log pauses for a second. If the queue is full, events are lost, and their number is logged.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use netlink::links::Links;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;

use crate::config::Config;
use crate::metrics::Counters;
use crate::os::log_throttle::LogThrottle;
use crate::os::poll::Waker;
use crate::os::scheduling;
use crate::peers::neighbours::Neighbours;
use crate::snapshot::Snapshot;
use crate::wire::seal::Keys;

mod publish;
mod wire_loop;

pub use publish::{Announcement, Announcements, Conflict, Conflicts};

/// The maximum number of queued events. All addresses of a large node may move at once.
const MAX_QUEUED_EVENTS: usize = 16_384;

/// The inputs of the speaker.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The snapshot of the cluster; `None` until it has arrived. Without it nothing is announced.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The addresses that the dataplane has programmed in the kernel. No other address is announced.
    pub forwarded: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// The links of this node; `None` until all are listed.
    pub links: watch::Receiver<Option<Links>>,
    /// The keys that seal packets. They may change at any time: see [`crate::wire::seal`]. Without keys, no packet is
    /// sent and no address is announced.
    pub keys: watch::Receiver<Arc<Keys>>,
}

/// The outputs of the speaker.
#[derive(Debug)]
pub struct Outputs {
    /// The announcements of this node. Empty when the speaker has stopped.
    pub announcements: watch::Sender<Announcements>,
    pub conflicts: watch::Sender<Conflicts>,
    /// The names of the dead nodes. They should get no new connections, even if the API server reports their endpoints
    /// as ready: see [`crate::peers::deaths`]. Sent at once. Empty when the speaker has stopped.
    pub dead: watch::Sender<BTreeSet<String>>,
    /// The nodes heard on each link since the start of the speaker.
    pub neighbours: watch::Sender<Neighbours>,
    /// Updated once per second.
    pub counters: watch::Sender<Counters>,
}

/// The speaker has failed. This node no longer announces any address, and peers take over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the wire thread")]
    Thread(#[source] io::Error),
    #[error("cannot open or use a packet socket (this needs CAP_NET_RAW)")]
    Socket(#[source] io::Error),
    #[error("the wire thread cannot wait for its sockets")]
    Sleep(#[source] io::Error),
    #[error("the wire thread panicked")]
    Panicked,
}

/// Announces addresses until `stop` completes. Then the Hellos request that peers take over, which takes milliseconds.
/// Returns when peers have taken over, or after a few intervals.
///
/// The speaker uses the network namespace of the thread that first polls this future.
///
/// Dropping the future stops the thread without a goodbye, like a crash. Peers detect that after a few intervals.
///
/// # Errors
/// If the speaker fails.
pub async fn run(
    config: Config,
    inputs: Inputs,
    outputs: Outputs,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let node = config.node.clone();
    let (log_tx, mut log_rx) = mpsc::channel(MAX_QUEUED_EVENTS);
    let (stop_tx, stop_rx) = oneshot::channel();
    let (end_tx, mut end_rx) = oneshot::channel();
    let waker = Waker::new().map_err(Error::Sleep)?;
    let Inputs { mut snapshot, mut forwarded, mut links, mut keys } = inputs.clone();
    let channels = wire_loop::Channels { log: log_tx, stop: stop_rx, waker: waker.clone() };
    let thread = move || {
        scheduling::request_short_slices();
        let _ = end_tx.send(wire_loop::WireLoop::run(config, inputs, outputs, channels));
    };
    std::thread::Builder::new().name("landfall-wire".into()).spawn(thread).map_err(Error::Thread)?;
    // When this function ends for any reason, the guard wakes the thread, and the thread stops.
    let mut thread = StopOnDrop { stop: Some(stop_tx), waker };
    let mut stop = std::pin::pin!(stop);
    let (begun, mut throttle) = (tokio::time::Instant::now(), LogThrottle::default());
    loop {
        tokio::select! {
            () = &mut stop, if thread.stop.is_some() => {
                let _ = thread.stop.take().map(|stop| stop.send(()));
                thread.waker.wake();
            }
            Some(event) = log_rx.recv(), if throttle.paused_until.is_none() => {
                event.log(&node);
                throttle.update(log_rx.len(), begun.elapsed());
            }
            () = sleep_until(begun + throttle.paused_until.unwrap_or_default()), if throttle.paused_until.is_some() => {
                throttle.paused_until = None;
            }
            result = &mut end_rx => {
                while let Ok(event) = log_rx.try_recv() {
                    event.log(&node);
                }
                return result.unwrap_or(Err(Error::Panicked));
            }
            Ok(()) = links.changed() => thread.waker.wake(),
            Ok(()) = snapshot.changed() => thread.waker.wake(),
            Ok(()) = forwarded.changed() => thread.waker.wake(),
            Ok(()) = keys.changed() => thread.waker.wake(),
        }
    }
}

/// Stops the wire thread at once when dropped. If the message `stop` was sent before, the thread still waits until
/// peers have taken over.
struct StopOnDrop {
    stop: Option<oneshot::Sender<()>>,
    waker: Waker,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.stop = None;
        self.waker.wake();
    }
}
