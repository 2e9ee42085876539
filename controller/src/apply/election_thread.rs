//! The thread of the election.
//!
//! A renewal of the Lease must never wait for other work. A leader that renews too late loses the Lease, and with it
//! all series in flight. So the election has a thread with a runtime and connections of its own. The main thread checks
//! the write fence at each write.
//!
//! If an [`ElectionThread`] is dropped, its thread ends soon, and the Lease expires.

use std::io;

use kube::Client;
use tokio::sync::{oneshot, watch};

use crate::apply::election::{WriteFence, run_election};

/// Why an election has ended.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    #[error("cannot start the thread of the election")]
    Thread(#[source] io::Error),
    #[error("cannot create the client of the election")]
    Client(#[source] kube::Error),
    /// A bug.
    #[error("the thread of the election panicked")]
    Panic,
}

/// The election on its own thread.
#[derive(Debug)]
pub(crate) struct ElectionThread {
    resign_tx: oneshot::Sender<()>,
    ended_rx: oneshot::Receiver<Result<(), ElectionError>>,
}

impl ElectionThread {
    /// Starts [`run_election`]. `connect` creates the client on the new thread, because the connections of a client
    /// belong to the runtime that creates it.
    pub(crate) fn start(
        connect: impl FnOnce() -> kube::Result<Client> + Send + 'static,
        namespace: String,
        instance: String,
        fence_tx: watch::Sender<Option<WriteFence>>,
    ) -> Result<Self, ElectionError> {
        let (resign_tx, resign_rx) = oneshot::channel();
        let (ended_tx, ended_rx) = oneshot::channel();
        let elect = async move {
            let client = connect().map_err(ElectionError::Client)?;
            run_election(client, namespace, instance, fence_tx, resign_rx).await;
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ElectionError::Thread)?;
        let run = move || drop(ended_tx.send(runtime.block_on(elect)));
        std::thread::Builder::new().name("election".into()).spawn(run).map_err(ElectionError::Thread)?;
        Ok(Self { resign_tx, ended_rx })
    }

    /// Waits until the election ends, which it does only after a failure. Cancel safe.
    pub(crate) async fn wait_for_end(&mut self) -> Result<(), ElectionError> {
        (&mut self.ended_rx).await.unwrap_or(Err(ElectionError::Panic))
    }

    /// Releases the Lease, and waits for the end of the election. If the election has ended, returns its error.
    pub(crate) async fn resign(self) -> Result<(), ElectionError> {
        let _ = self.resign_tx.send(());
        self.ended_rx.await.unwrap_or(Err(ElectionError::Panic))
    }
}
