//! Tables of single decisions, and several candidates around one Lease: clocks that differ, lost and late messages,
//! frozen processes.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn lease(version: u64, holder: &str) -> Lease {
    let holder = (!holder.is_empty()).then(|| holder.to_owned());
    Lease { version, holder, duration: Timing::USUAL.duration, transitions: 3 }
}

fn entry(holder: Option<&str>, transitions: i32, is_new: bool) -> Entry {
    Entry { holder: holder.map(str::to_owned), duration: Timing::USUAL.duration, transitions, is_new }
}

/// A candidate `me` that has read this.
fn reader(answer: Answer, now: Instant) -> Candidate {
    let mut me = Candidate::new("me".into(), Timing::USUAL);
    assert_eq!(me.next(now), Next::Send(Request::Read));
    me.answered(answer, now);
    me
}

/// A candidate that has taken the Lease, version 8.
fn leader(now: Instant) -> Candidate {
    let mut me = reader(Answer::Lease(lease(7, "")), now);
    assert_eq!(me.next(now), Next::Send(Request::Replace(7, entry(Some("me"), 4, true))));
    me.answered(Answer::Lease(lease(8, "me")), now);
    me
}

#[test]
fn a_lease_that_nobody_holds_is_taken_at_once() {
    let now = Instant::now();
    for (there, request) in [
        (Answer::Absent, Request::Create(entry(Some("me"), 0, true))),
        (Answer::Lease(lease(7, "")), Request::Replace(7, entry(Some("me"), 4, true))),
        (Answer::Lease(lease(7, "me")), Request::Replace(7, entry(Some("me"), 3, false))),
    ] {
        let mut me = reader(there.clone(), now);
        assert_eq!((me.next(now), me.until(now)), (Next::Send(request), None), "{there:?}");
    }
}

#[test]
fn anothers_lease_is_taken_when_it_has_not_changed_for_its_duration() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    assert_eq!(me.next(now), Next::Wait(Some(now + 6 * SECOND)));
    me.watched(Some(lease(7, "other")), now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Wait(Some(now + 6 * SECOND)), "the same again is no change");
    me.watched(Some(lease(8, "other")), now + 2 * SECOND);
    assert_eq!(me.next(now + 7 * SECOND), Next::Wait(Some(now + 8 * SECOND)));
    let request = Request::Replace(8, entry(Some("me"), 4, true));
    assert_eq!(me.next(now + 8 * SECOND), Next::Send(request));
}

#[test]
fn how_long_anothers_lease_holds_is_the_others_word() {
    let now = Instant::now();
    let long = Lease { duration: 40 * SECOND, ..lease(7, "other") };
    assert_eq!(reader(Answer::Lease(long), now).next(now), Next::Wait(Some(now + 40 * SECOND)));
}

#[test]
fn a_released_lease_is_taken_when_the_watch_tells_so() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    me.watched(Some(lease(8, "")), now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Send(Request::Replace(8, entry(Some("me"), 4, true))));
}

#[test]
fn anothers_lease_that_is_deleted_is_waited_for_as_if_it_had_been_renewed() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "other")), now);
    me.watched(None, now + SECOND);
    assert_eq!(me.next(now + SECOND), Next::Wait(Some(now + 7 * SECOND)));
    assert_eq!(me.next(now + 7 * SECOND), Next::Send(Request::Create(entry(Some("me"), 0, true))));
}

#[test]
fn a_leader_may_write_from_before_its_request_was_sent_and_renews_in_time() {
    let now = Instant::now();
    let mut me = leader(now);
    assert_eq!(me.until(now), Some(now + 5 * SECOND));
    assert_eq!(me.next(now), Next::Wait(Some(now + 2 * SECOND)));
    assert_eq!(me.next(now + 2 * SECOND), Next::Send(Request::Replace(8, entry(Some("me"), 3, false))));
    assert_eq!(me.next(now + 2 * SECOND), Next::Wait(Some(now + 5 * SECOND)), "one request at a time");
    me.answered(Answer::Lease(lease(9, "me")), now + 4 * SECOND);
    assert_eq!(me.until(now + 4 * SECOND), Some(now + 7 * SECOND));
    assert_eq!(me.next(now + 4 * SECOND), Next::Send(Request::Replace(9, entry(Some("me"), 3, false))));
}

#[test]
fn a_leader_whose_renewal_fails_tries_again_until_its_time_is_over() {
    let now = Instant::now();
    let mut me = leader(now);
    let renewal = Next::Send(Request::Replace(8, entry(Some("me"), 3, false)));
    let half = SECOND / 2;
    for sent in [4, 6, 8].map(|halves| now + halves * half) {
        assert_eq!(me.next(sent), renewal);
        me.answered(Answer::Failed, sent + half);
        assert_eq!(me.next(sent + half), Next::Wait(Some(sent + 2 * half)));
    }
    assert_eq!(me.until(now + 5 * SECOND), None);
    assert_eq!(me.next(now + 5 * SECOND), renewal, "nobody else has taken it, as far as is known");
}

#[test]
fn an_answer_that_comes_too_late_makes_nobody_a_leader() {
    let now = Instant::now();
    let mut me = reader(Answer::Lease(lease(7, "")), now);
    me.next(now);
    me.answered(Answer::Lease(lease(8, "me")), now + 5 * SECOND);
    assert_eq!(me.until(now + 5 * SECOND), None);
}

#[test]
fn who_is_told_that_the_lease_changed_reads_it() {
    let now = Instant::now();
    for answer in [Answer::Conflict, Answer::Absent] {
        let mut me = leader(now);
        me.next(now + 2 * SECOND);
        me.answered(answer.clone(), now + 2 * SECOND);
        assert_eq!(me.next(now + 2 * SECOND), Next::Send(Request::Read), "{answer:?}");
        assert_eq!(me.until(now + 2 * SECOND), Some(now + 5 * SECOND), "an answer may have got lost");
        me.answered(Answer::Lease(lease(9, "other")), now + 2 * SECOND);
        assert_eq!((me.until(now + 2 * SECOND), me.leader()), (None, Some("other")));
        assert_eq!(me.next(now + 2 * SECOND), Next::Wait(Some(now + 8 * SECOND)));
    }
}

#[test]
fn an_event_that_is_older_than_the_own_write_says_nothing() {
    let now = Instant::now();
    let mut me = leader(now);
    me.watched(Some(lease(7, "")), now + SECOND);
    assert_eq!((me.until(now + SECOND), me.leader()), (Some(now + 5 * SECOND), Some("me")));
    me.watched(Some(lease(9, "")), now + SECOND);
    assert_eq!(me.until(now + SECOND), None, "somebody took it away by hand");
}

#[test]
fn who_resigns_stops_writing_at_once_and_releases_what_it_holds() {
    let now = Instant::now();
    let release = |version| Next::Send(Request::Replace(version, entry(None, 3, false)));
    let mut me = leader(now);
    me.resign();
    assert_eq!((me.until(now), me.next(now)), (None, release(8)));
    me.answered(Answer::Lease(lease(9, "")), now);
    assert_eq!((me.until(now), me.next(now)), (None, Next::Done));

    let mut me = leader(now);
    me.next(now + 2 * SECOND);
    me.resign();
    me.answered(Answer::Lease(lease(9, "me")), now + 2 * SECOND);
    assert_eq!(me.until(now + 2 * SECOND), None, "the answer to a renewal came when it had resigned");
    assert_eq!(me.next(now + 2 * SECOND), release(9));

    let mut standby = reader(Answer::Lease(lease(7, "other")), now);
    standby.resign();
    assert_eq!(standby.next(now), Next::Done);
}

/// How far time goes in one step of the simulation, in ms.
const STEP: u64 = 25;

/// How long a message takes, in ms, if nothing is wrong.
const LATENCY: u64 = 10;

/// How long a request may take (as the shell has it), in ms.
const ANSWER: u64 = 2_000;

/// How long after the last fault somebody must lead, in ms: a Lease that was renewed in the last moment, with the slowest
/// clock; a request that gets no answer, and the pause after it; one more to read, one to write.
const BOUND: u64 = 6_000 * 106 / 100 + ANSWER * 106 / 100 + 600 + 10 * STEP;

/// What goes wrong with a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Its process is stopped, and goes on.
    Freeze,
    /// It is killed, and another takes its place.
    Crash,
    /// It is told to stop, and another takes its place.
    Stop,
    /// It reaches nobody.
    Cut,
    /// It gets no answers and sees nothing.
    Deaf,
    /// Everything takes that many ms longer.
    Slow(u64),
    /// Answers take that many ms longer.
    Late(u64),
}

/// A fault: which candidate, from when, for how long (ms).
type Event = (usize, u64, u64, Fault);

/// A candidate and its place in the world.
struct Place {
    candidate: Option<Candidate>,
    /// What its clock shows at 0, and how fast it runs.
    clock: (Instant, f64),
    /// The number of the request under way, and when it was sent by its clock.
    asked: Option<(u64, Instant)>,
    /// When it is told what.
    inbox: Vec<(u64, Message)>,
    /// The version that its watch told last.
    told: Option<u64>,
    is_resigning: bool,
    lives: u32,
}

#[derive(Clone, Debug)]
enum Message {
    Answer(u64, Answer),
    Event(Option<Lease>),
}

impl Place {
    fn clock(&self, now: u64) -> Instant {
        self.clock.0 + Duration::from_millis(now).mul_f64(self.clock.1)
    }
}

struct World {
    places: Vec<Place>,
    faults: Vec<Event>,
    lease: Option<Lease>,
    version: u64,
    /// Requests on their way: when they arrive, from whom, which.
    requests: Vec<(u64, usize, u64, Request)>,
    count: u64,
    now: u64,
}

impl World {
    fn new(clocks: &[(u64, f64)], faults: &[Event]) -> Self {
        let start = Instant::now();
        let place = |(offset, rate): &(u64, f64)| Place {
            candidate: None,
            clock: (start + Duration::from_millis(*offset), *rate),
            asked: None,
            inbox: vec![],
            told: None,
            is_resigning: false,
            lives: 0,
        };
        let places = clocks.iter().map(place).collect();
        Self { places, faults: faults.to_vec(), lease: None, version: 0, requests: vec![], count: 0, now: 0 }
    }

    fn has(&self, place: usize, fault: impl Fn(Fault) -> bool) -> bool {
        let now = self.now;
        self.faults
            .iter()
            .any(|(who, from, length, kind)| *who == place && (*from..from + length).contains(&now) && fault(*kind))
    }

    /// How long a message to or from there takes.
    fn latency(&self, place: usize, is_answer: bool) -> u64 {
        let now = |event: &&Event| event.0 == place && (event.1..event.1 + event.2).contains(&self.now);
        let slow = self.faults.iter().filter(now).filter_map(|(.., fault)| match fault {
            Fault::Slow(more) => Some(*more),
            Fault::Late(more) if is_answer => Some(*more),
            _ => None,
        });
        LATENCY + slow.max().unwrap_or(0)
    }

    /// Those that may write now.
    fn leaders(&self) -> Vec<usize> {
        let may = |place: &Place| place.candidate.as_ref().is_some_and(|it| it.until(place.clock(self.now)).is_some());
        (0..self.places.len()).filter(|index| may(&self.places[*index])).collect()
    }

    fn step(&mut self) {
        self.now += STEP;
        self.serve();
        for index in 0..self.places.len() {
            self.live(index);
        }
    }

    /// The API server answers what arrives.
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
            if let Some(Entry { holder, duration, transitions, .. }) = entry {
                self.version += 1;
                self.lease = Some(Lease { version: self.version, holder, duration, transitions });
            }
            let answer = self.lease.clone().map_or(Answer::Absent, Answer::Lease);
            self.answer(from, number, answer);
        }
    }

    fn answer(&mut self, to: usize, number: u64, answer: Answer) {
        if !self.has(to, |fault| matches!(fault, Fault::Cut | Fault::Deaf)) {
            let at = self.now + self.latency(to, true);
            self.places[to].inbox.push((at, Message::Answer(number, answer)));
        }
    }

    /// One candidate's time.
    fn live(&mut self, index: usize) {
        let now = self.now;
        let is_reached = !self.has(index, |fault| matches!(fault, Fault::Cut | Fault::Deaf));
        if is_reached && self.places[index].told != Some(self.version) {
            let event = (now + self.latency(index, false), Message::Event(self.lease.clone()));
            self.places[index].inbox.push(event);
            self.places[index].told = Some(self.version);
        }
        if self.has(index, |fault| fault == Fault::Freeze) {
            return;
        }
        let is_stopping = self.has(index, |fault| fault == Fault::Stop);
        let is_dead = self.has(index, |fault| fault == Fault::Crash);
        let place = &mut self.places[index];
        if is_dead {
            (place.candidate, place.asked) = (None, None);
            return;
        }
        if place.candidate.is_none() {
            if is_stopping {
                return;
            }
            place.lives += 1;
            (place.is_resigning, place.told) = (false, None);
            place.inbox.clear();
            place.candidate = Some(Candidate::new(format!("{index}/{}", place.lives), Timing::USUAL));
        }
        let clock = place.clock(now);
        let candidate = place.candidate.as_mut().expect("just made");
        for (_, message) in place.inbox.extract_if(.., |(at, _)| *at <= now) {
            match message {
                Message::Event(lease) => candidate.watched(lease, clock),
                Message::Answer(number, answer) => {
                    if place.asked.take_if(|(asked, _)| *asked == number).is_some() {
                        candidate.answered(answer, clock);
                    }
                }
            }
        }
        if place.asked.take_if(|(_, sent)| *sent + Duration::from_millis(ANSWER) <= clock).is_some() {
            candidate.answered(Answer::Failed, clock);
        }
        if is_stopping && !place.is_resigning {
            place.is_resigning = true;
            candidate.resign();
        }
        match candidate.next(clock) {
            Next::Send(request) => {
                self.count += 1;
                place.asked = Some((self.count, clock));
                if !self.has(index, |fault| fault == Fault::Cut) {
                    self.requests.push((now + self.latency(index, false), index, self.count, request));
                }
            }
            Next::Done => place.candidate = None,
            Next::Wait(_) => {}
        }
        // It stops in any case when the fault is over.
        if !is_stopping && self.places[index].is_resigning {
            self.places[index].candidate = None;
        }
    }
}

/// Runs until everybody has had the time that it takes after the last fault. Never may two write meanwhile.
fn settle(world: &mut World) -> Result<(), TestCaseError> {
    let over = world.faults.iter().map(|(_, from, length, _)| from + length).max().unwrap_or(0);
    while world.now < over + BOUND {
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
    fn never_may_two_write_and_when_all_is_well_one_leads_and_stays(
        // Clocks that differ by a day, and run faster or slower by 5 %.
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

/// How long nobody may write after that happened to the leader, in ms.
fn gap(fault: Fault) -> u64 {
    let mut world = World::new(&[(0, 1.0), (5_000, 1.0)], &[]);
    settle(&mut world).expect("never two");
    let leader = world.leaders()[0];
    // Just after a renewal is the worst time.
    let version = world.version;
    while world.version == version {
        world.step();
    }
    world.faults.push((leader, world.now, 60_000, fault));
    let began = world.now;
    while world.leaders().iter().all(|it| *it == leader) {
        world.step();
        assert!(world.now < began + BOUND, "nobody takes over");
    }
    world.now - began
}

#[test]
fn a_clean_stop_is_followed_at_once_and_a_crash_after_the_duration() {
    assert!(gap(Fault::Stop) <= 200, "{} ms", gap(Fault::Stop));
    for fault in [Fault::Crash, Fault::Freeze, Fault::Cut] {
        assert!((5_000..=6_300).contains(&gap(fault)), "{fault:?}: {} ms", gap(fault));
    }
}
