//! Tables of single decisions, and simulations of several candidates: different clocks, lost and late messages,
//! suspended processes.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn lease(version: u64, holder: &str) -> Lease {
    let holder = (!holder.is_empty()).then(|| holder.to_owned());
    Lease { version, holder, duration: DURATION, transitions: 3 }
}

fn entry(holder: Option<&str>, transitions: i32, is_new: bool) -> Entry {
    Entry { holder: holder.map(str::to_owned), transitions, is_new }
}

/// A candidate `me` that has read the Lease with this answer.
fn reader(answer: Answer, now: Instant) -> Candidate {
    let mut me = Candidate::new("me".into());
    assert_eq!(me.next(now), Next::Send(Request::Read));
    me.handle_answer(answer, now);
    me
}

/// A candidate that has taken version 8 of the Lease.
fn leader(now: Instant) -> Candidate {
    let mut me = reader(Answer::Lease(lease(7, "")), now);
    assert_eq!(me.next(now), Next::Send(Request::Replace(7, entry(Some("me"), 4, true))));
    me.handle_answer(Answer::Lease(lease(8, "me")), now);
    me
}

#[test]
fn free_lease_is_taken_at_once() {
    let now = Instant::now();
    for (answer, request) in [
        (Answer::Absent, Request::Create(entry(Some("me"), 0, true))),
        (Answer::Lease(lease(7, "")), Request::Replace(7, entry(Some("me"), 4, true))),
        (Answer::Lease(lease(7, "me")), Request::Replace(7, entry(Some("me"), 3, false))),
    ] {
        let mut me = reader(answer.clone(), now);
        assert_eq!((me.next(now), me.writable_until(now)), (Next::Send(request), None), "{answer:?}");
    }
}

#[test]
fn unchanged_lease_is_taken_after_its_duration() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    assert_eq!(me.next(now), Next::Wait(Some(now + 6 * SECOND)));
    me.handle_event(Some(lease(7, "other")), now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Wait(Some(now + 6 * SECOND)), "the same version is no change");
    me.handle_event(Some(lease(8, "other")), now + 2 * SECOND);
    assert_eq!(me.next(now + 7 * SECOND), Next::Wait(Some(now + 8 * SECOND)));
    let request = Request::Replace(8, entry(Some("me"), 4, true));
    assert_eq!(me.next(now + 8 * SECOND), Next::Send(request));
}

#[test]
fn duration_of_another_holder_counts() {
    let now = Instant::now();
    let long = Lease { duration: 40 * SECOND, ..lease(7, "other") };
    assert_eq!(reader(Answer::Lease(long), now).next(now), Next::Wait(Some(now + 40 * SECOND)));
}

#[test]
fn released_lease_is_taken_after_the_event() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    me.handle_event(Some(lease(8, "")), now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Send(Request::Replace(8, entry(Some("me"), 4, true))));
}

#[test]
fn deleted_lease_is_taken_after_its_duration() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    me.handle_event(None, now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Wait(Some(now + 7 * SECOND)));
    assert_eq!(me.next(now + 7 * SECOND), Next::Send(Request::Create(entry(Some("me"), 0, true))));
}

#[test]
fn right_to_write_counts_from_the_sent_request() {
    let now = Instant::now();
    let mut me = leader(now);
    assert_eq!(me.writable_until(now), Some(now + 5 * SECOND));
    assert_eq!(me.next(now), Next::Wait(Some(now + 2 * SECOND)));
    assert_eq!(me.next(now + 2 * SECOND), Next::Send(Request::Replace(8, entry(Some("me"), 3, false))));
    assert_eq!(me.next(now + 2 * SECOND), Next::Wait(Some(now + 5 * SECOND)), "one request at a time");
    me.handle_answer(Answer::Lease(lease(9, "me")), now + 4 * SECOND);
    assert_eq!(me.writable_until(now + 4 * SECOND), Some(now + 7 * SECOND));
    assert_eq!(me.next(now + 4 * SECOND), Next::Send(Request::Replace(9, entry(Some("me"), 3, false))));
}

#[test]
fn failed_renewal_is_retried_after_the_right_ends() {
    let now = Instant::now();
    let mut me = leader(now);
    let renewal = Next::Send(Request::Replace(8, entry(Some("me"), 3, false)));
    let half = SECOND / 2;
    for sent in [4, 6, 8].map(|halves| now + halves * half) {
        assert_eq!(me.next(sent), renewal);
        me.handle_answer(Answer::Failed, sent + half);
        assert_eq!(me.next(sent + half), Next::Wait(Some(sent + 2 * half)));
    }
    assert_eq!(me.writable_until(now + 5 * SECOND), None);
    assert_eq!(me.next(now + 5 * SECOND), renewal, "no other holder is known");
}

#[test]
fn late_answer_gives_no_right_to_write() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "")), now);
    me.next(now);
    me.handle_answer(Answer::Lease(lease(8, "me")), now + 5 * SECOND);
    assert_eq!(me.writable_until(now + 5 * SECOND), None);
}

#[test]
fn conflicting_lease_is_read_again() {
    let now = Instant::now();
    for answer in [Answer::Conflict, Answer::Absent] {
        let mut me = leader(now);
        me.next(now + 2 * SECOND);
        me.handle_answer(answer.clone(), now + 2 * SECOND);
        assert_eq!(me.next(now + 2 * SECOND), Next::Send(Request::Read), "{answer:?}");
        assert_eq!(me.writable_until(now + 2 * SECOND), Some(now + 5 * SECOND), "an answer may be lost");
        me.handle_answer(Answer::Lease(lease(9, "other")), now + 2 * SECOND);
        assert_eq!((me.writable_until(now + 2 * SECOND), me.leader()), (None, Some("other")));
        assert_eq!(me.next(now + 2 * SECOND), Next::Wait(Some(now + 8 * SECOND)));
    }
}

#[test]
fn event_older_than_the_own_write_is_ignored() {
    let now = Instant::now();
    let mut me = leader(now);
    me.handle_event(Some(lease(7, "")), now + SECOND);
    assert_eq!((me.writable_until(now + SECOND), me.leader()), (Some(now + 5 * SECOND), Some("me")));
    me.handle_event(Some(lease(9, "")), now + SECOND);
    assert_eq!(me.writable_until(now + SECOND), None, "the Lease was changed by hand");
}

#[test]
fn resigning_leader_stops_writing_and_releases_the_lease() {
    let now = Instant::now();
    let release = |version| Next::Send(Request::Replace(version, entry(None, 3, false)));
    let mut me = leader(now);
    me.resign();
    assert_eq!((me.writable_until(now), me.next(now)), (None, release(8)));
    me.handle_answer(Answer::Lease(lease(9, "")), now);
    assert_eq!((me.writable_until(now), me.next(now)), (None, Next::Done));

    let mut me = leader(now);
    me.next(now + 2 * SECOND);
    me.resign();
    me.handle_answer(Answer::Lease(lease(9, "me")), now + 2 * SECOND);
    assert_eq!(me.writable_until(now + 2 * SECOND), None, "the answer arrived after the resignation");
    assert_eq!(me.next(now + 2 * SECOND), release(9));

    let mut standby = reader(Answer::Lease(lease(7, "other")), now);
    standby.resign();
    assert_eq!(standby.next(now), Next::Done);
}

/// One step of the simulation, in ms.
const STEP: u64 = 25;

/// The latency of a message without faults, in ms.
const LATENCY: u64 = 10;

/// The timeout of a request, in ms, as in the election.
const ANSWER_TIMEOUT: u64 = 2_000;

/// The maximum time from the last fault until a candidate leads, in ms. It is the sum of
///
/// - the duration of a Lease that was renewed at the last moment, by the slowest clock
/// - the timeout of a request without an answer, by the slowest clock
/// - the delay after that request
/// - one request that reads the Lease, and one that writes it
const BOUND: u64 = 6_000 * 106 / 100 + ANSWER_TIMEOUT * 106 / 100 + 600 + 10 * STEP;

/// A fault of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Its process is suspended, and resumes.
    Freeze,
    /// It is killed, and another one replaces it.
    Crash,
    /// It stops cleanly, and another one replaces it.
    Stop,
    /// It neither sends nor receives.
    Cut,
    /// It receives nothing.
    Deaf,
    /// All messages take this many ms longer.
    Slow(u64),
    /// Answers take this many ms longer.
    Late(u64),
}

/// A fault with its candidate, start and length (ms).
type TimedFault = (usize, u64, u64, Fault);

/// A process that runs a candidate.
struct Process {
    candidate: Option<Candidate>,
    /// The time of its clock at 0, and the speed of the clock.
    clock: (Instant, f64),
    /// The number of the request in flight, and the time on the clock of the process when it was sent.
    request: Option<(u64, Instant)>,
    /// Messages with their times of arrival.
    inbox: Vec<(u64, Message)>,
    /// The last version sent by its watch.
    watched: Option<u64>,
    is_resigning: bool,
    /// The number of candidates that the process has run, one after the other.
    lives: u32,
}

#[derive(Clone, Debug)]
enum Message {
    Answer(u64, Answer),
    Event(Option<Lease>),
}

impl Process {
    fn clock(&self, now: u64) -> Instant {
        self.clock.0 + Duration::from_millis(now).mul_f64(self.clock.1)
    }
}

struct World {
    processes: Vec<Process>,
    faults: Vec<TimedFault>,
    lease: Option<Lease>,
    version: u64,
    /// Requests in flight: time of arrival, process, number, request.
    requests: Vec<(u64, usize, u64, Request)>,
    count: u64,
    now: u64,
}

impl World {
    fn new(clocks: &[(u64, f64)], faults: &[TimedFault]) -> Self {
        let start = Instant::now();
        let process = |(offset, rate): &(u64, f64)| Process {
            candidate: None,
            clock: (start + Duration::from_millis(*offset), *rate),
            request: None,
            inbox: vec![],
            watched: None,
            is_resigning: false,
            lives: 0,
        };
        let processes = clocks.iter().map(process).collect();
        Self { processes, faults: faults.to_vec(), lease: None, version: 0, requests: vec![], count: 0, now: 0 }
    }

    fn has(&self, process: usize, fault: impl Fn(Fault) -> bool) -> bool {
        let now = self.now;
        self.faults.iter().any(|(index, from, length, kind)| {
            *index == process && (*from..from + length).contains(&now) && fault(*kind)
        })
    }

    /// The latency of a message to or from a process.
    fn latency(&self, process: usize, is_answer: bool) -> u64 {
        let is_now = |fault: &&TimedFault| fault.0 == process && (fault.1..fault.1 + fault.2).contains(&self.now);
        let slow = self.faults.iter().filter(is_now).filter_map(|(.., fault)| match fault {
            Fault::Slow(more) => Some(*more),
            Fault::Late(more) if is_answer => Some(*more),
            _ => None,
        });
        LATENCY + slow.max().unwrap_or(0)
    }

    /// The processes that may write now.
    fn leaders(&self) -> Vec<usize> {
        let may_write = |process: &Process| {
            process.candidate.as_ref().is_some_and(|it| it.writable_until(process.clock(self.now)).is_some())
        };
        (0..self.processes.len()).filter(|index| may_write(&self.processes[*index])).collect()
    }

    fn step(&mut self) {
        self.now += STEP;
        self.serve();
        for index in 0..self.processes.len() {
            self.run(index);
        }
    }

    /// The API server answers the requests that have arrived.
    fn serve(&mut self) {
        let due: Vec<_> = self.requests.extract_if(.., |(at, ..)| *at <= self.now).collect();
        for (_, from, number, request) in due {
            let version = self.lease.as_ref().map(|lease| lease.version);
            let entry = match request {
                Request::Read => None,
                Request::Create(entry) if version.is_none() => Some(entry),
                Request::Replace(expected, entry) if version == Some(expected) => Some(entry),
                Request::Create(_) | Request::Replace(..) => {
                    self.answer(from, number, Answer::Conflict);
                    continue;
                }
            };
            if let Some(Entry { holder, transitions, .. }) = entry {
                self.version += 1;
                self.lease = Some(Lease { version: self.version, holder, duration: DURATION, transitions });
            }
            let answer = self.lease.clone().map_or(Answer::Absent, Answer::Lease);
            self.answer(from, number, answer);
        }
    }

    fn answer(&mut self, to: usize, number: u64, answer: Answer) {
        if !self.has(to, |fault| matches!(fault, Fault::Cut | Fault::Deaf)) {
            let at = self.now + self.latency(to, true);
            self.processes[to].inbox.push((at, Message::Answer(number, answer)));
        }
    }

    /// One step of a process.
    fn run(&mut self, index: usize) {
        let now = self.now;
        let is_reached = !self.has(index, |fault| matches!(fault, Fault::Cut | Fault::Deaf));
        if is_reached && self.processes[index].watched != Some(self.version) {
            let event = (now + self.latency(index, false), Message::Event(self.lease.clone()));
            self.processes[index].inbox.push(event);
            self.processes[index].watched = Some(self.version);
        }
        if self.has(index, |fault| fault == Fault::Freeze) {
            return;
        }
        let is_stopping = self.has(index, |fault| fault == Fault::Stop);
        let is_dead = self.has(index, |fault| fault == Fault::Crash);
        let process = &mut self.processes[index];
        if is_dead {
            (process.candidate, process.request) = (None, None);
            return;
        }
        if process.candidate.is_none() {
            if is_stopping {
                return;
            }
            process.lives += 1;
            (process.is_resigning, process.watched) = (false, None);
            process.inbox.clear();
            process.candidate = Some(Candidate::new(format!("{index}/{}", process.lives)));
        }
        let clock = process.clock(now);
        let candidate = process.candidate.as_mut().expect("just made");
        for (_, message) in process.inbox.extract_if(.., |(at, _)| *at <= now) {
            match message {
                Message::Event(lease) => candidate.handle_event(lease, clock),
                Message::Answer(number, answer) => {
                    if process.request.take_if(|(own, _)| *own == number).is_some() {
                        candidate.handle_answer(answer, clock);
                    }
                }
            }
        }
        if process.request.take_if(|(_, sent)| *sent + Duration::from_millis(ANSWER_TIMEOUT) <= clock).is_some() {
            candidate.handle_answer(Answer::Failed, clock);
        }
        if is_stopping && !process.is_resigning {
            process.is_resigning = true;
            candidate.resign();
        }
        match candidate.next(clock) {
            Next::Send(request) => {
                self.count += 1;
                process.request = Some((self.count, clock));
                if !self.has(index, |fault| fault == Fault::Cut) {
                    self.requests.push((now + self.latency(index, false), index, self.count, request));
                }
            }
            Next::Done => process.candidate = None,
            Next::Wait(_) => {}
        }
        // When the fault ends, the process has stopped.
        if !is_stopping && self.processes[index].is_resigning {
            self.processes[index].candidate = None;
        }
    }
}

/// Runs until [`BOUND`] after the last fault. Asserts that at most one candidate may write at any time.
fn settle(world: &mut World) -> Result<(), TestCaseError> {
    let faults_end = world.faults.iter().map(|(_, from, length, _)| from + length).max().unwrap_or(0);
    while world.now < faults_end + BOUND {
        world.step();
        let leaders = world.leaders();
        prop_assert!(leaders.len() <= 1, "{leaders:?} may write at {} ms", world.now);
    }
    Ok(())
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Freeze),
        Just(Fault::Crash),
        Just(Fault::Stop),
        Just(Fault::Cut),
        Just(Fault::Deaf),
        (0..4_000u64).prop_map(Fault::Slow),
        (0..4_000u64).prop_map(Fault::Late),
    ]
}

proptest! {
    #[test]
    fn at_most_one_candidate_writes_and_one_leads_after_faults(
        // Clocks differ by up to a day, and run up to 5 % faster or slower.
        clocks in proptest::collection::vec((0..86_400_000u64, 0.95..1.05f64), 2..4),
        faults in proptest::collection::vec((0..3usize, 0..40_000u64, 0..12_000u64, fault()), 0..16),
    ) {
        let mut world = World::new(&clocks, &faults);
        settle(&mut world)?;
        let leader = world.leaders();
        prop_assert_eq!(leader.len(), 1, "{} ms after the last fault", BOUND);
        for _ in 0..20_000 / STEP {
            world.step();
            prop_assert_eq!(world.leaders(), leader.clone(), "at {} ms", world.now);
        }
    }
}

/// The time from this fault of the leader until another candidate may write, in ms.
fn gap(fault: Fault) -> u64 {
    let mut world = World::new(&[(0, 1.0), (5_000, 1.0)], &[]);
    settle(&mut world).expect("one leader");
    let leader = world.leaders()[0];
    // The worst time is just after a renewal.
    let version = world.version;
    while world.version == version {
        world.step();
    }
    world.faults.push((leader, world.now, 60_000, fault));
    let start = world.now;
    while world.leaders().iter().all(|it| *it == leader) {
        world.step();
        assert!(world.now < start + BOUND, "no candidate takes over");
    }
    world.now - start
}

#[test]
fn takeover_is_immediate_after_a_clean_stop() {
    assert!(gap(Fault::Stop) <= 200, "{} ms", gap(Fault::Stop));
    for fault in [Fault::Crash, Fault::Freeze, Fault::Cut] {
        assert!((5_000..=6_300).contains(&gap(fault)), "{fault:?}: {} ms", gap(fault));
    }
}
