//! The wire loop: the [`Machine`] with real sockets, real links and real time.
//!
//! [`run`] starts one thread, `landfall-wire`. There everything happens that must not wait: Hellos, ARP, NDP, takeovers. It
//! shares nothing with the rest of the process but channels that hold one latest value, and a bell that says that one of them
//! has changed:
//!
//! ```text
//!   snapshot  --watch-->  |  thread `landfall-wire` |  --watch-->  announcements
//!   forwarded --watch-->  |   Machine <-> sockets   |  --watch-->  counters
//!   keys      --watch-->  |                         |  --watch-->  dead
//!   links     --watch-->  |                         |
//!      ^                    ^          |
//!      +-- run(): netlink, -+ bell     +-- events, bounded --> run(): the log
//! ```
//!
//! The log is written where `run` is polled, because a log that can't be written fast enough would block the wire. When
//! hundreds of transitions come at once, it waits for a second. If it falls behind by thousands, transitions are lost and their
//! number is logged instead. The links are observed there too: what
//! they say is needed within a second, not within milliseconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;

use crate::announce::placement::Link;
use crate::config::Config;
use crate::machine::Machine;
use crate::metrics::events::{Counters, Event};
use crate::metrics::takeovers::Move;
use crate::os::groups::Groups;
use crate::os::links;
use crate::os::log_throttle::Patience;
use crate::os::poll::{self, Bell, Ear, For, Ready, bell};
use crate::os::scheduling;
use crate::os::socket::{BATCH, Buffer, Port, Portion};
use crate::ownership::claims::Claim;
use crate::peers::liveness::Standing;
use crate::peers::neighbours::Neighbours;
use crate::snapshot::Snapshot;
use crate::wire::frame::{Channel, Frame};
use crate::wire::seal::Keys;
use crds::MacAddr;

/// So many transitions may wait to be logged: all addresses of a large node change hands at once.
const EVENTS: usize = 16_384;

/// So many addresses are announced before the loop looks at what came in: 512 frames, about a millisecond.
const ANNOUNCEMENTS: usize = 256;

/// So many frames are taken in before the loop does anything else, so that a flood can't keep it from it.
const FRAMES: usize = 1024;

/// What is announced is published no more often than this: others write it to the API server, and don't need it sooner.
const PUBLISH: Duration = Duration::from_millis(50);

/// For each so many addresses that are announced it is published less often by as much: to compare thousands of them takes
/// milliseconds, and when they have just changed hands there is more urgent work.
const PUBLISHED: u32 = 1000;

/// What was counted is published so often: nobody looks at it more often than every few seconds.
const COUNT: Duration = Duration::from_secs(1);

/// What this node announces: for each lb_ip the links it is announced on. What is not in here is not announced.
pub type Announcements = BTreeMap<IpAddr, Vec<Announcement>>;

/// An lb_ip is announced on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The name of the link.
    pub link: String,
    /// The epoch of the claim.
    pub epoch: u64,
    /// When this node took it, with this epoch.
    pub since: Timestamp,
    /// How it came here, if another node had it before.
    pub moved: Option<Move>,
}

/// Addresses that somebody who is no peer uses. What is not in here is not known to be used by anybody else.
pub type Conflicts = BTreeMap<IpAddr, Conflict>;

/// Somebody who is no peer uses an lb_ip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// On which link.
    pub link: String,
    /// Where it is.
    pub mac: MacAddr,
    /// Whether the address isn't announced because of that. One that was announced before goes on being announced.
    pub held_back: bool,
    /// When this node noticed.
    pub since: Timestamp,
}

/// What the speaker has to be told.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What was observed of the cluster; `None` until it is known. Without it nothing is announced.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The addresses that the kernel forwards from here, as acknowledged by the dataplane. Nothing else is announced.
    pub forwarded: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    /// The keys with which packets are sealed, if [`Config::authentication`] asks for it. They may change at any time: see
    /// [`crate::wire::seal`]. While there are none, nothing is said or announced.
    pub keys: watch::Receiver<Arc<Keys>>,
}

/// What the speaker tells.
#[derive(Debug)]
pub struct Outputs {
    /// What is announced. Empty when the speaker has stopped.
    pub announcements: watch::Sender<Announcements>,
    /// Who else uses addresses.
    pub conflicts: watch::Sender<Conflicts>,
    /// The names of the nodes that are dead, which no connection should be sent to, whatever the API server says of them: see
    /// [`crate::peers::deaths`]. Told at once. Empty when the speaker has stopped: it knows nothing then.
    pub dead: watch::Sender<BTreeSet<String>>,
    /// Which nodes were met on which link since the speaker has started.
    pub neighbours: watch::Sender<Neighbours>,
    /// What was counted, renewed once a second.
    pub counters: watch::Sender<Counters>,
}

/// The speaker can't go on. Whatever was announced isn't any more; peers take over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread.
    #[error("cannot start the thread of the wire")]
    Thread(#[source] io::Error),
    /// No sockets: `CAP_NET_RAW` is missing, as a rule.
    #[error("cannot open a packet socket (this needs CAP_NET_RAW)")]
    Socket(#[source] io::Error),
    /// No way to wake the thread, or to let it sleep.
    #[error("the thread of the wire cannot sleep")]
    Sleep(#[source] io::Error),
    /// No links.
    #[error("cannot observe the links of this node")]
    Links(#[from] links::Error),
    /// The thread panicked.
    #[error("the thread of the wire is gone")]
    Panicked,
}

/// Announces what is wanted until `stop` completes: then others are asked to take over, which they do within
/// milliseconds, and this returns when they have, or after a few intervals.
///
/// The network namespace is that of the thread that polls this first.
///
/// Dropping the future stops the thread without a farewell, as a crash would: peers notice after a few intervals.
///
/// # Errors
/// If the speaker can't go on.
pub async fn run(
    config: Config,
    inputs: Inputs,
    outputs: Outputs,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let node = config.node.clone();
    let (events, mut told) = mpsc::channel(EVENTS);
    let (leave, left) = oneshot::channel();
    let (end, mut ended) = oneshot::channel();
    let (table, mut links) = watch::channel(BTreeMap::new());
    let (bell, ear) = bell().map_err(Error::Sleep)?;
    let Inputs { mut snapshot, mut forwarded, mut keys } = inputs.clone();
    let known = links.clone();
    let wire = move || {
        scheduling::ask();
        let _ = end.send(Wire::follow(config, (inputs, known, ear), outputs, events, left));
    };
    std::thread::Builder::new().name("landfall-wire".into()).spawn(wire).map_err(Error::Thread)?;
    // However this ends, the thread is woken after that and sees it.
    let mut rope = Rope { leave: Some(leave), bell };
    let mut stop = std::pin::pin!(stop);
    let mut watched = std::pin::pin!(links::watch(table));
    let (begun, mut patience) = (tokio::time::Instant::now(), Patience::default());
    loop {
        tokio::select! {
            () = &mut stop, if rope.leave.is_some() => {
                let _ = rope.leave.take().map(|leave| leave.send(()));
                rope.bell.ring();
            }
            Some(first) = told.recv(), if patience.until.is_none() => {
                log(&node, first);
                patience.waiting(told.len(), begun.elapsed());
            }
            () = sleep_until(begun + patience.until.unwrap_or_default()), if patience.until.is_some() => {
                patience.until = None;
            }
            result = &mut ended => {
                while let Ok(told) = told.try_recv() {
                    log(&node, told);
                }
                return result.unwrap_or(Err(Error::Panicked));
            }
            Err(error) = &mut watched => return Err(error.into()),
            Ok(()) = links.changed() => rope.bell.ring(),
            Ok(()) = snapshot.changed() => rope.bell.ring(),
            Ok(()) = forwarded.changed() => rope.bell.ring(),
            Ok(()) = keys.changed() => rope.bell.ring(),
        }
    }
}

/// By which the thread of the wire is told to leave, or that nobody waits for it any more.
struct Rope {
    leave: Option<oneshot::Sender<()>>,
    bell: Bell,
}

impl Drop for Rope {
    fn drop(&mut self) {
        self.leave = None;
        self.bell.ring();
    }
}

/// What the thread of the wire has.
struct Wire {
    machine: Machine,
    begun: Instant,
    ports: Ports,
    groups: Groups,
    buffer: Buffer,
    ear: Ear,
    /// Frames of ARP and NDP that the kernel had no room for.
    queue: VecDeque<Frame>,
    links: watch::Receiver<BTreeMap<u32, Link>>,
    inputs: Inputs,
    outputs: Outputs,
    published: Option<Instant>,
    unpublished: bool,
    counted: Option<Instant>,
    /// When the sockets were last read.
    read: Duration,
    events: mpsc::Sender<Told>,
    /// Transitions that were not logged.
    lost: u64,
}

enum Told {
    Event(Event),
    Lost(u64),
}

/// What was told since this was last asked: also the last word of somebody who is gone by now, and that only once. (If it stayed
/// news, the loop would never sleep, and nothing else on this thread would have its turn.)
fn news<T: Clone>(told: &mut watch::Receiver<T>) -> Option<T> {
    let told = told.borrow_and_update();
    told.has_changed().then(|| told.clone())
}

impl Wire {
    /// Goes on until the speaker has left, is dropped, or can't go on.
    fn follow(
        config: Config,
        (inputs, links, ear): (Inputs, watch::Receiver<BTreeMap<u32, Link>>, Ear),
        outputs: Outputs,
        events: mpsc::Sender<Told>,
        leave: oneshot::Receiver<()>,
    ) -> Result<(), Error> {
        let mut wire = Self {
            machine: Machine::new(config),
            begun: Instant::now(),
            ports: Ports::open().map_err(Error::Socket)?,
            groups: Groups::default(),
            buffer: Buffer::default(),
            ear,
            queue: VecDeque::new(),
            links,
            inputs,
            outputs,
            published: None,
            unpublished: true,
            counted: None,
            read: Duration::ZERO,
            events,
            lost: 0,
        };
        // What is known already counts as news.
        wire.links.mark_changed();
        wire.inputs.snapshot.mark_changed();
        wire.inputs.forwarded.mark_changed();
        wire.inputs.keys.mark_changed();
        wire.look(Duration::ZERO)?;
        let result = wire.turn(leave);
        wire.outputs.counters.send_replace(wire.machine.counters());
        wire.outputs.announcements.send_replace(Announcements::new());
        wire.outputs.dead.send_replace(BTreeSet::new());
        result
    }

    fn turn(&mut self, mut leave: oneshot::Receiver<()>) -> Result<(), Error> {
        let mut leaving = false;
        // Frames may be left in the sockets when a round has taken in enough.
        let mut more = false;
        loop {
            let ready = self.sleep(more)?;
            let now = self.begun.elapsed();
            if self.machine.woke(now) {
                self.drop_backlog()?;
            } else {
                more = self.receive(now, ready);
            }
            self.read = now;
            if ready.has(Ports::PROMPT) {
                self.ear.hear();
                match leave.try_recv() {
                    _ if leaving => {}
                    Ok(()) => {
                        leaving = true;
                        self.machine.leave(now);
                    }
                    Err(oneshot::error::TryRecvError::Closed) => return Ok(()),
                    Err(oneshot::error::TryRecvError::Empty) => {}
                }
                self.look(now)?;
            }
            let room = if self.queue.is_empty() { ANNOUNCEMENTS } else { 0 };
            self.machine.poll(now, room);
            if self.machine.take_regrouped() {
                // Before anything is announced: who hears of it may ask at once.
                self.groups.listen_to(&self.machine.groups());
            }
            self.send();
            self.tell();
            if self.machine.is_done() {
                return Ok(());
            }
        }
    }

    /// Sleeps until something is to be done. Returns which of the sockets of frames that don't wait, and after them the bell, have
    /// something for us. Frames that can wait wake nobody while all is calm.
    fn sleep(&mut self, more: bool) -> Result<Ready, Error> {
        let now = self.begun.elapsed();
        let announcement = self.machine.announcement_due().filter(|_| self.queue.is_empty());
        let publication = self.published.filter(|_| self.unpublished).map(|at| at + self.pause() - self.begun);
        let deadlines = [self.machine.next_deadline(now), announcement, publication, more.then_some(now)];
        let until = deadlines.into_iter().flatten().min();
        let wants_room = |port: &Port| self.queue.front().is_some_and(|frame| frame.channel == port.channel());
        let why = |port: &Port| if wants_room(port) { For::Both } else { For::Reading };
        let [hello, hello_v6, arp, ndp] = self.ports.prompt.each_ref().map(|port| (port.as_fd(), why(port)));
        let bell = (self.ear.as_fd(), For::Reading);
        let most = until.map(|until| until.saturating_sub(now));
        let woken = if self.machine.is_calm(now) {
            poll::sleep([hello, hello_v6, arp, ndp, bell], most)
        } else {
            let [routine, routine_v6] = self.ports.routine.each_ref().map(|port| (port.as_fd(), For::Reading));
            poll::sleep([hello, hello_v6, arp, ndp, bell, routine, routine_v6], most)
        };
        woken.map_err(Error::Sleep)
    }

    /// Takes in what has come. Hellos first: a flood of anything else must not make anybody look dead. Those that could wait are
    /// read whatever it was that woke us, because nobody is silent whose Hello wasn't read. Returns whether there is more.
    fn receive(&mut self, now: Duration, ready: Ready) -> bool {
        let mut more = false;
        let prompt = self.ports.prompt.iter().enumerate().filter(|(at, _)| ready.has(*at)).map(|(_, port)| port);
        for port in self.ports.routine.iter().chain(prompt) {
            let mut left = FRAMES / BATCH;
            let mut again = true;
            while again && left > 0 {
                let machine = &mut self.machine;
                // Whatever the clock says, it came after we last looked.
                let most = now.saturating_sub(self.read);
                let take = |link: u32, age: Duration, frame: &[u8]| {
                    machine.receive(now - age.min(most), link, port.channel(), frame);
                };
                again = port.receive_dated(&mut self.buffer, take).unwrap_or_else(|error| {
                    tracing::debug!(%error, channel = ?port.channel(), "a socket reports an error");
                    true
                });
                left -= 1;
            }
            more |= again;
        }
        more
    }

    fn drop_backlog(&mut self) -> Result<(), Error> {
        let mut dropped = 0;
        for port in self.ports.all() {
            while port.receive(&mut self.buffer, |_, _| dropped += 1).map_err(Error::Socket)? {}
        }
        self.machine.dropped_backlog(dropped);
        Ok(())
    }

    /// Looks at what has changed around us.
    fn look(&mut self, now: Duration) -> Result<(), Error> {
        let Inputs { snapshot, forwarded, keys } = &mut self.inputs;
        if let Some(keys) = news(keys) {
            self.machine.set_keys(now, &keys);
        }
        if let Some(forwarded) = news(forwarded) {
            self.machine.set_forwarded(forwarded);
        }
        let (links, snapshot) = (news(&mut self.links), news(snapshot));
        let may_move = links.is_some() || snapshot.is_some();
        if let Some(links) = links {
            self.machine.set_links(now, links);
        }
        if let Some(snapshot) = snapshot {
            self.machine.set_snapshot(now, snapshot);
        }
        if may_move {
            let speaking: BTreeSet<u32> = self.machine.speaking().map(|link| link.index).collect();
            self.ports.listen_on(&speaking).map_err(Error::Socket)?;
        }
        Ok(())
    }

    /// Sends what there is to send. ARP and NDP wait when there is no room; a Hello that can't be sent now is worth nothing later.
    fn send(&mut self) {
        let mut failed = 0;
        for frame in self.machine.take_frames() {
            match frame.channel {
                Channel::Hello | Channel::HelloV6 => {
                    failed += u64::from(self.ports.send([&frame].into_iter()).is_err())
                }
                Channel::Arp | Channel::Ndp => self.queue.push_back(frame),
            }
        }
        while let Some(Frame { channel, .. }) = self.queue.front() {
            let together = self.queue.iter().take_while(|frame| frame.channel == *channel);
            let done = match self.ports.send(together) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    failed += 1;
                    1
                }
                Ok(sent) => sent,
            };
            self.queue.drain(..done);
        }
        if failed > 0 {
            self.machine.send_failed(failed);
        }
    }

    /// How long to wait after what is announced was published.
    fn pause(&self) -> Duration {
        PUBLISH * (1 + u32::try_from(self.outputs.announcements.borrow().len()).unwrap_or(u32::MAX) / PUBLISHED)
    }

    /// Tells others what has changed.
    fn tell(&mut self) {
        for event in self.machine.take_events() {
            self.lost += u64::from(self.events.try_send(Told::Event(event)).is_err());
        }
        if self.lost > 0 && self.events.try_send(Told::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
        if self.machine.take_buried() {
            self.outputs.dead.send_replace(self.machine.dead());
        }
        if self.machine.take_met() {
            self.outputs.neighbours.send_replace(self.machine.neighbours().clone());
        }
        self.unpublished |= self.machine.take_changed();
        if self.counted.is_none_or(|counted| counted.elapsed() >= COUNT) {
            self.counted = Some(Instant::now());
            self.outputs.counters.send_replace(self.machine.counters());
        }
        if !self.unpublished || self.published.is_some_and(|published| published.elapsed() < self.pause()) {
            return;
        }
        (self.published, self.unpublished) = (Some(Instant::now()), false);
        let now = Timestamp::now();
        let told = self.machine.told(self.begun.elapsed());
        self.outputs.announcements.send_if_modified(|known| {
            let new = announcements(told, known, now);
            let is_news = new != *known;
            *known = new;
            is_news
        });
        self.outputs.conflicts.send_if_modified(|known| {
            let new = conflicts(&self.machine, known, now);
            let is_news = new != *known;
            *known = new;
            is_news
        });
    }
}

/// The sockets.
struct Ports {
    /// One for each channel, those first whose frames must not wait.
    prompt: [Port; Self::PROMPT],
    /// For Hellos that can wait.
    routine: [Port; 2],
}

impl Ports {
    const PROMPT: usize = Channel::ALL.len();

    fn open() -> io::Result<Self> {
        let [hello, hello_v6, arp, ndp] = Channel::ALL;
        let prompt = |channel| Port::open_for(channel, Portion::Prompt);
        let routine = |channel| Port::open_for(channel, Portion::Routine);
        Ok(Self {
            prompt: [prompt(hello)?, prompt(hello_v6)?, Port::open(arp)?, Port::open(ndp)?],
            routine: [routine(hello)?, routine(hello_v6)?],
        })
    }

    fn all(&self) -> impl Iterator<Item = &Port> {
        self.routine.iter().chain(&self.prompt)
    }

    fn listen_on(&mut self, links: &BTreeSet<u32>) -> io::Result<()> {
        self.prompt.iter_mut().chain(&mut self.routine).try_for_each(|port| port.listen_on(links.clone()))
    }

    /// Sends frames of one channel, as many as go at once. Returns how many.
    fn send<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<usize> {
        let mut frames = frames.peekable();
        let Some(channel) = frames.peek().map(|frame| frame.channel) else { return Ok(0) };
        let port = self.prompt.iter().find(|port| port.channel() == channel).expect("invariant: there is one for each");
        port.send(frames.map(|frame| (frame.link, frame.bytes.as_slice())))
    }
}

/// What is announced. What was announced `before` with the same epoch has been since then, and came here as was told then;
/// anything else since `now`.
fn announcements<'a>(
    told: impl Iterator<Item = (IpAddr, &'a str, Claim, Option<Move>)>,
    before: &Announcements,
    now: Timestamp,
) -> Announcements {
    let mut all = Announcements::new();
    for (lb_ip, link, claim, moved) in told {
        let mut known = before.get(&lb_ip).into_iter().flatten();
        let known = known.find(|known| known.link == link && known.epoch == claim.epoch);
        let new = || Announcement { link: link.into(), epoch: claim.epoch, since: now, moved };
        all.entry(lb_ip).or_default().push(known.cloned().unwrap_or_else(new));
    }
    all
}

/// The conflicts that `machine` sees. What was one `before` has been since then, anything else since `now`.
fn conflicts(machine: &Machine, before: &Conflicts, now: Timestamp) -> Conflicts {
    let conflicts = machine.strangers().map(|(lb_ip, link, who)| {
        let known = before.get(&lb_ip).filter(|known| known.link == link && known.mac == who.mac);
        let since = known.map_or(now, |known| known.since);
        (lb_ip, Conflict { link: link.into(), mac: who.mac, held_back: who.held_back, since })
    });
    conflicts.collect()
}

fn log(me: &str, told: Told) {
    let event = match told {
        Told::Event(event) => event,
        Told::Lost(count) => {
            tracing::warn!(node = me, count, "transitions were not logged: the log is too slow");
            return;
        }
    };
    match event {
        Event::Announced { lb_ip, link, epoch, backed, from } => {
            tracing::info!(%lb_ip, node = me, link, epoch, backed, from, "announced");
        }
        Event::Renewed { lb_ip, link, epoch } => tracing::info!(%lb_ip, node = me, link, epoch, "renewed"),
        Event::Withdrawn { lb_ip, link, epoch, reason } => {
            tracing::info!(%lb_ip, node = me, link, epoch, reason = reason.as_str(), "withdrawn");
        }
        Event::Peer { node, link, standing } => match standing {
            Standing::Alive => tracing::info!(node, link, "peer is alive"),
            Standing::Deaf => tracing::warn!(node, link, "peer says that it hears nobody: its claims are void"),
            Standing::Dead => tracing::warn!(node, link, "peer is silent: its addresses are taken over"),
        },
        Event::Node { node, dead: true } => tracing::warn!(node, "node is dead: it gets no new connections"),
        Event::Node { node, dead: false } => tracing::info!(node, "node is not dead any more"),
        Event::Company { link, backed: true, live, known } => {
            tracing::info!(link, live, known, "most peers are heard");
        }
        Event::Company { link, backed: false, live, known } => {
            tracing::warn!(link, live, known, "most peers are not heard: unasked announcements stop");
        }
        Event::Conflict { lb_ip, link, mac, held_back } => {
            tracing::warn!(%lb_ip, node = me, link, %mac, held_back, "somebody else uses this address");
        }
        Event::Twin { link, mac } => tracing::warn!(node = me, link, %mac, "another speaker has the name of this node"),
        Event::Slept { late } => tracing::warn!(node = me, ?late, "the loop slept: nobody's silence counts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_somebody_who_is_gone_is_news_just_once() {
        let (sender, mut told) = watch::channel("first");
        sender.send_replace("last");
        drop(sender);
        assert_eq!([news(&mut told), news(&mut told)], [Some("last"), None]);
    }
}
