//! Kills a controller at one of its writes.
//!
//! Counts writes of allocations. At the write of a [`Trap`], it kills the controller before the request is forwarded,
//! or after the answer has arrived. From then until [`accept`], no request of this controller is forwarded, not even
//! one that has already arrived.

use anyhow::{Context, Result, bail};
use e2e::api_proxy::{ApiProxy, Fate, Script, StoredRequest};
use kube::Client;
use lab::{Process, Signal};

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

/// The script of the proxy between the controller and the API server.
#[derive(Default)]
pub struct ControllerTrap {
    trap: Option<Trap>,
    /// Writes since the trap was set.
    writes: usize,
    /// The write at which the controller was killed, for messages.
    killed_at: Option<String>,
    is_dead: bool,
    controller: Option<Process>,
    late: Option<StoredRequest>,
}

/// Accepts requests of this controller, and no longer of earlier ones.
pub fn accept(proxy: &ApiProxy<ControllerTrap>, controller: Process) {
    proxy.close_all();
    let mut state = proxy.script();
    (state.is_dead, state.controller) = (false, Some(controller));
}

/// Sends the late write, and returns the status of the API server's answer.
pub async fn deliver_late_write(proxy: &ApiProxy<ControllerTrap>, client: &Client) -> Result<u16> {
    let Some(write) = proxy.script().late.take() else { bail!("no write is late") };
    Ok(client.send(write.to_request()).await?.status().as_u16())
}

impl ControllerTrap {
    /// Sets a trap, and starts to count writes.
    pub fn set(&mut self, trap: Trap) {
        (self.trap, self.writes, self.killed_at, self.late) = (Some(trap), 0, None, None);
    }

    /// Removes the trap.
    pub fn clear(&mut self) {
        self.trap = None;
    }

    /// The write at which the trap killed the controller, if it has.
    pub fn killed_at(&self) -> Option<String> {
        self.killed_at.clone()
    }

    /// Counts a write. Returns its fate if it is the write of the trap.
    fn count_write(&mut self, write: &StoredRequest) -> Option<WriteFate> {
        self.writes += 1;
        let trap = self.trap.take_if(|trap| trap.write == self.writes)?;
        // Drops other open requests as well, whose number is random.
        self.is_dead = true;
        self.killed_at = Some(format!("write {} ({} {}), {:?}", trap.write, write.method, write.uri.path(), trap.fate));
        Some(trap.fate)
    }

    fn kill_controller(&mut self, write: &StoredRequest) {
        let controller = self.controller.take().with_context(|| format!("{} without a controller", write.uri));
        // The test fails later, because the controller does not end.
        if let Err(error) = controller.and_then(|controller| controller.signal(Signal::SIGKILL)) {
            eprintln!("kill the controller: {error:#}");
        }
    }
}

impl Script for ControllerTrap {
    fn fate(&mut self, request: &StoredRequest) -> Fate {
        if self.is_dead {
            return Fate::LoseRequest;
        }
        let fate = if is_allocation_write(request) { self.count_write(request) } else { None };
        match fate {
            None => Fate::Pass,
            Some(WriteFate::Done) => Fate::LoseAnswer,
            Some(fate @ (WriteFate::Lost | WriteFate::Late)) => {
                self.kill_controller(request);
                self.late = (fate == WriteFate::Late).then(|| request.clone());
                Fate::LoseRequest
            }
        }
    }

    fn lost_answer(&mut self, request: &StoredRequest) {
        self.kill_controller(request);
    }
}

/// Whether it writes an allocation. Events and the Lease do not count.
fn is_allocation_write(request: &StoredRequest) -> bool {
    let path = request.uri.path();
    let is_allocation = ["/services/", "/loadbalancerips", "/ipaddresspools"].iter().any(|kind| path.contains(kind));
    is_allocation && request.is_write()
}
