//! The loop of the wire thread.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netlink::links::has_neighbours;
use nix::poll::{PollFd, PollFlags};
use tokio::sync::{mpsc, oneshot, watch};

use super::publish::{self, Announcements};
use super::{Error, Inputs, Outputs};
use crate::config::Config;
use crate::machine::{Machine, Output};
use crate::metrics::Event;
use crate::os::groups::Groups;
use crate::os::poll::{self, Waker};
use crate::os::socket::{BATCH, PacketSocket, ReceiveBuffer, Sockets};
use crate::wire::frame::{Channel, Frame};

/// The maximum number of addresses to announce per round. These are at most 512 frames, which take about a millisecond.
const ANNOUNCED_PER_ROUND: usize = 256;

/// The maximum number of batches to receive from a socket per round: 1,024 frames. Without a limit a flood could occupy
/// the loop.
const BATCHES_PER_ROUND: usize = 1024 / BATCH;

/// The minimum time between two publications of the announcements. The agent waits longer between its writes to the API
/// server, so a shorter time gains nothing.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two publications grows by [`PUBLISH_INTERVAL`] with each thousand announced addresses. A comparison
/// of thousands of announcements takes milliseconds. While addresses move, other work is more urgent.
const ANNOUNCEMENTS_PER_INTERVAL: u32 = 1000;

/// The time between two publications of the counters.
const COUNTERS_INTERVAL: Duration = Duration::from_secs(1);

/// The ends of channels that the wire thread needs in addition to [`Inputs`] and [`Outputs`].
pub(super) struct Channels {
    pub(super) log: mpsc::Sender<Event>,
    /// After a message, the thread stops as soon as peers have taken over, or a few intervals later. If the channel is
    /// closed without a message, the thread stops at once.
    pub(super) stop: oneshot::Receiver<()>,
    /// Wakes the thread after a change of any of its inputs.
    pub(super) waker: Waker,
}

/// The state of the wire thread.
pub(super) struct WireLoop {
    machine: Machine,
    begun: Instant,
    sockets: Sockets,
    groups: Groups,
    buffer: ReceiveBuffer,
    /// ARP and NDP frames that wait for room in the kernel.
    queue: VecDeque<Frame>,
    inputs: Inputs,
    outputs: Outputs,
    channels: Channels,
    stopping: bool,
    /// When announcements and conflicts were last published.
    published_at: Option<Instant>,
    /// Whether announcements or conflicts may have changed since then.
    is_unpublished: bool,
    /// When counters were last published.
    counted_at: Option<Instant>,
    /// When the sockets were last read.
    read_at: Duration,
    /// The number of events that were dropped because the log channel was full, and that no log line has reported yet.
    lost: u64,
}

/// The value, if it changed since the last call. A value sent just before the sender was dropped is returned once. (If
/// it were returned again, the loop would never sleep.)
fn take_changed<T: Clone>(receiver: &mut watch::Receiver<T>) -> Option<T> {
    let value = receiver.borrow_and_update();
    value.has_changed().then(|| value.clone())
}

/// Publishes `new`, if it differs from the published value.
fn replace_if_changed<T: PartialEq>(sender: &watch::Sender<T>, new: T) {
    sender.send_if_modified(|known| {
        let is_changed = *known != new;
        *known = new;
        is_changed
    });
}

impl WireLoop {
    /// Runs until the speaker has stopped or fails.
    pub(super) fn run(config: Config, inputs: Inputs, outputs: Outputs, channels: Channels) -> Result<(), Error> {
        let mut wire = Self {
            machine: Machine::new(config),
            begun: Instant::now(),
            sockets: Sockets::open().map_err(Error::Socket)?,
            groups: Groups::default(),
            buffer: ReceiveBuffer::default(),
            queue: VecDeque::new(),
            inputs,
            outputs,
            channels,
            stopping: false,
            published_at: None,
            is_unpublished: true,
            counted_at: None,
            read_at: Duration::ZERO,
            lost: 0,
        };
        // The first values of the inputs count as changes.
        wire.inputs.links.mark_changed();
        wire.inputs.snapshot.mark_changed();
        wire.inputs.forwarded.mark_changed();
        wire.inputs.keys.mark_changed();
        wire.read_inputs(Duration::ZERO)?;
        let result = wire.run_rounds();
        wire.outputs.counters.send_replace(wire.machine.counters());
        wire.outputs.announcements.send_replace(Announcements::new());
        wire.outputs.dead.send_replace(BTreeSet::new());
        result
    }

    fn run_rounds(&mut self) -> Result<(), Error> {
        // Frames may remain in the sockets after a round with many frames.
        let mut more = false;
        loop {
            let ready = self.sleep(more)?;
            let now = self.begun.elapsed();
            if self.machine.record_wake(now) {
                self.drop_backlog()?;
            } else {
                more = self.receive(now, &ready);
            }
            self.read_at = now;
            // The last descriptor is the waker.
            if ready[Sockets::COUNT] {
                self.channels.waker.clear();
                if self.must_stop_at_once(now) {
                    return Ok(());
                }
                self.read_inputs(now)?;
            }
            let room = if self.queue.is_empty() { ANNOUNCED_PER_ROUND } else { 0 };
            let output = self.machine.poll(now, room);
            self.process(output);
            if self.machine.is_done() {
                return Ok(());
            }
        }
    }

    /// Whether the thread must stop at once, because [`super::run`] has ended without a message. After the message
    /// `stop`, the machine begins to leave, and the thread does not stop at once.
    fn must_stop_at_once(&mut self, now: Duration) -> bool {
        if self.stopping {
            return false;
        }
        match self.channels.stop.try_recv() {
            Ok(()) => {
                self.stopping = true;
                self.machine.leave(now);
                false
            }
            Err(oneshot::error::TryRecvError::Closed) => true,
            Err(oneshot::error::TryRecvError::Empty) => false,
        }
    }

    /// Sleeps until there is work. Returns which descriptors are ready: the sockets, and after them the waker. Routine
    /// Hellos wake the thread only if the machine waits for one.
    fn sleep(&mut self, more: bool) -> Result<Vec<bool>, Error> {
        let now = self.begun.elapsed();
        let announcement = self.machine.announcement_due().filter(|_| self.queue.is_empty());
        let publication =
            self.published_at.filter(|_| self.is_unpublished).map(|at| at + self.publish_interval() - self.begun);
        let deadlines = [self.machine.next_deadline(now), announcement, publication, more.then_some(now)];
        let timeout = deadlines.into_iter().flatten().min().map(|until| until.saturating_sub(now));
        let routine = if self.machine.is_idle(now) { PollFlags::empty() } else { PollFlags::POLLIN };
        let blocked = self.queue.front().map(|frame| frame.channel);
        let events = |socket: &PacketSocket| match socket.channel {
            _ if socket.is_routine() => routine,
            channel if Some(channel) == blocked => PollFlags::POLLIN | PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        };
        let sockets = self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), events(socket)));
        let waker = PollFd::new(self.channels.waker.as_fd(), PollFlags::POLLIN);
        poll::wait(sockets.chain([waker]), timeout).map_err(Error::Sleep)
    }

    /// Receives the waiting frames. Routine Hellos are always read, even if they did not wake the thread: an unread
    /// Hello would make its sender look silent. Returns whether more frames wait.
    fn receive(&mut self, now: Duration, ready: &[bool]) -> bool {
        let mut more = false;
        // All waiting frames arrived after the last read. The system clock may have been set since, so their ages are
        // limited.
        let max_age = now.saturating_sub(self.read_at);
        let readable = |(socket, is_ready): &(&PacketSocket, &bool)| socket.is_routine() || **is_ready;
        for (socket, _) in self.sockets.iter().zip(ready).filter(readable) {
            let machine = &mut self.machine;
            let mut take = |link: u32, age: Duration, frame: &[u8]| {
                machine.receive(now - age.min(max_age), link, socket.channel, frame);
            };
            more |= (0..BATCHES_PER_ROUND).all(|_| {
                socket.receive(&mut self.buffer, &mut take).unwrap_or_else(|error| {
                    tracing::debug!(%error, channel = ?socket.channel, "a packet socket reports an error");
                    true
                })
            });
        }
        more
    }

    /// Drops all frames that wait in the sockets.
    fn drop_backlog(&mut self) -> Result<(), Error> {
        let mut dropped = 0;
        for socket in self.sockets.iter() {
            while socket.receive(&mut self.buffer, |_, _, _| dropped += 1).map_err(Error::Socket)? {}
        }
        self.machine.counters_mut().dropped.backlog += dropped;
        Ok(())
    }

    /// Passes changed inputs to the machine.
    fn read_inputs(&mut self, now: Duration) -> Result<(), Error> {
        let Inputs { snapshot, forwarded, links, keys } = &mut self.inputs;
        if let Some(keys) = take_changed(keys) {
            self.machine.set_keys(now, &keys);
        }
        if let Some(forwarded) = take_changed(forwarded) {
            self.machine.set_forwarded(forwarded);
        }
        let (links, snapshot) = (take_changed(links), take_changed(snapshot));
        let may_change_links = links.is_some() || snapshot.is_some();
        if let Some(links) = links {
            let mut links = links.unwrap_or_default();
            links.retain(|_, link| has_neighbours(&link.addresses));
            self.machine.set_links(now, links);
        }
        if let Some(snapshot) = snapshot {
            self.machine.set_snapshot(now, snapshot);
        }
        if may_change_links {
            let links: BTreeSet<u32> = self.machine.active_links().map(|link| link.index).collect();
            self.sockets.listen_on(&links).map_err(Error::Socket)?;
        }
        Ok(())
    }

    /// Does the work of a round.
    fn process(&mut self, output: Output) {
        let Output { groups, frames, events, dead, neighbours, reports_changed } = output;
        if let Some(groups) = groups {
            self.groups.join_exactly(&groups);
        }
        self.send(frames);
        self.log(events);
        if let Some(dead) = dead {
            self.outputs.dead.send_replace(dead);
        }
        if let Some(neighbours) = neighbours {
            self.outputs.neighbours.send_replace(neighbours);
        }
        self.is_unpublished |= reports_changed;
        self.publish();
    }

    /// Sends frames. ARP and NDP frames wait if the kernel has no room. A Hello that cannot be sent now is dropped,
    /// because the next one replaces it.
    fn send(&mut self, frames: Vec<Frame>) {
        let mut failed = 0;
        for frame in frames {
            match frame.channel {
                Channel::Hello | Channel::HelloV6 => {
                    failed += u64::from(self.sockets.send([&frame].into_iter()).is_err())
                }
                Channel::Arp | Channel::Ndp => self.queue.push_back(frame),
            }
        }
        while let Some(Frame { channel, .. }) = self.queue.front() {
            let same_channel = self.queue.iter().take_while(|frame| frame.channel == *channel);
            let done = match self.sockets.send(same_channel) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    failed += 1;
                    1
                }
                Ok(sent) => sent,
            };
            self.queue.drain(..done);
        }
        self.machine.counters_mut().send_failed += failed;
    }

    fn log(&mut self, events: Vec<Event>) {
        for event in events {
            self.lost += u64::from(self.channels.log.try_send(event).is_err());
        }
        if self.lost > 0 && self.channels.log.try_send(Event::Lost { count: self.lost }).is_ok() {
            self.lost = 0;
        }
    }

    /// The minimum time between two publications of the announcements.
    fn publish_interval(&self) -> Duration {
        let announced = u32::try_from(self.outputs.announcements.borrow().len()).unwrap_or(u32::MAX);
        PUBLISH_INTERVAL * (1 + announced / ANNOUNCEMENTS_PER_INTERVAL)
    }

    /// Publishes counters, announcements and conflicts, each at most once per its interval.
    fn publish(&mut self) {
        if self.counted_at.is_none_or(|at| at.elapsed() >= COUNTERS_INTERVAL) {
            self.counted_at = Some(Instant::now());
            self.outputs.counters.send_replace(self.machine.counters());
        }
        let is_early = |at: Instant| at.elapsed() < self.publish_interval();
        if !self.is_unpublished || self.published_at.is_some_and(is_early) {
            return;
        }
        (self.published_at, self.is_unpublished) = (Some(Instant::now()), false);
        let now = Timestamp::now();
        let announcements =
            publish::announcements(&self.machine, self.begun.elapsed(), &self.outputs.announcements.borrow(), now);
        replace_if_changed(&self.outputs.announcements, announcements);
        let conflicts = publish::conflicts(&self.machine, &self.outputs.conflicts.borrow(), now);
        replace_if_changed(&self.outputs.conflicts, conflicts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_value_of_a_dropped_sender_is_taken_once() {
        let (sender, mut receiver) = watch::channel("first");
        sender.send_replace("last");
        drop(sender);
        assert_eq!([take_changed(&mut receiver), take_changed(&mut receiver)], [Some("last"), None]);
    }
}
