//! Sends numbered datagrams of one flow at a fixed rate. Finds lost, duplicated and reordered datagrams, and answers of
//! another server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netns::Namespace;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::exchange::{parse_answer, request};
use crate::record::{Outcome, Record, Try};
use crate::worker::{Clock, Worker, wait_for_stop};

/// Datagrams to send.
#[derive(Clone, Copy, Debug)]
pub struct DatagramPlan {
    /// A server that answers like whoami.
    pub target: SocketAddr,
    /// Time between two datagrams, at least a millisecond.
    pub interval: Duration,
    /// A datagram without an answer for this long is lost.
    pub timeout: Duration,
}

/// Sends datagrams until it is stopped or dropped.
pub struct DatagramSender {
    plan: DatagramPlan,
    worker: Worker<SocketLog>,
}

/// Events of the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SocketLog {
    from: Duration,
    to: Duration,
    /// When each datagram was sent: the index is its number.
    sent: Vec<Duration>,
    answers: Vec<Arrival>,
    /// ICMP errors. The kernel does not report to which datagram they belong.
    errors: usize,
    wrong_answers: usize,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    at: Duration,
    number: u64,
    server: String,
}

/// Results of the datagrams of one flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramReport {
    /// Every datagram as a try.
    pub record: Record,
    /// Answers to a datagram that was answered before.
    pub duplicated: usize,
    /// Answers that came after the answer to a later datagram.
    pub reordered: usize,
    /// When an answer came from another server than the answer before, and the name of that server.
    pub moves: Vec<(Duration, String)>,
    /// ICMP errors.
    pub errors: usize,
    /// Answers of another protocol.
    pub wrong_answers: usize,
}

impl DatagramReport {
    /// Reasons of a failure, except loss and gaps, which are in the record. Empty if there are none.
    pub fn reasons(&self) -> Vec<String> {
        let counts = [
            (self.duplicated, "datagrams were answered twice"),
            (self.reordered, "answers arrived out of order"),
            (self.errors, "ICMP errors"),
            (self.wrong_answers, "wrong answers"),
        ];
        let mut reasons: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
        reasons.extend(self.moves.first().map(|(at, server)| format!("{server} answers since {at:.3?}")));
        reasons
    }
}

impl DatagramSender {
    /// Starts to send datagrams from a new port in a namespace, or in that of the caller.
    pub fn start(plan: DatagramPlan, namespace: Option<&Namespace>, clock: Clock) -> Self {
        let worker = Worker::start("load-datagrams", namespace, move |stop_rx| send_all(plan, clock, stop_rx));
        Self { plan, worker }
    }

    /// Stops, waits for answers until the timeout, and returns the results.
    ///
    /// # Errors
    /// If there is no socket, or the thread failed.
    pub fn stop(self) -> Result<DatagramReport> {
        Ok(evaluate(&self.worker.stop()?, self.plan))
    }
}

async fn send_all(plan: DatagramPlan, clock: Clock, mut stop_rx: watch::Receiver<bool>) -> Result<SocketLog> {
    let socket = netns::udp_flow(plan.target).with_context(|| format!("a socket to {}", plan.target))?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let mut log = SocketLog { from: clock.now(), ..SocketLog::default() };
    let mut ticks = interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut buffer = [0; 512];
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let number = log.sent.len() as u64;
                log.sent.push(clock.now());
                // Either the error belongs to an earlier datagram, or this datagram is lost. It is recorded as sent in
                // both cases.
                log.errors += usize::from(socket.send(request(number).as_bytes()).await.is_err());
            }
            received = socket.recv(&mut buffer) => log.add(received.ok().map(|length| &buffer[..length]), clock.now()),
            () = wait_for_stop(&mut stop_rx) => break,
        }
    }
    log.to = clock.now();
    let over = sleep(plan.timeout);
    tokio::pin!(over);
    loop {
        tokio::select! {
            received = socket.recv(&mut buffer) => log.add(received.ok().map(|length| &buffer[..length]), clock.now()),
            () = &mut over => return Ok(log),
        }
    }
}

impl SocketLog {
    /// Adds a received datagram, or an error.
    fn add(&mut self, received: Option<&[u8]>, at: Duration) {
        let Some(received) = received else {
            self.errors += 1;
            return;
        };
        match parse_answer(received) {
            Some((server, number)) if number < self.sent.len() as u64 => {
                self.answers.push(Arrival { at, number, server });
            }
            _ => self.wrong_answers += 1,
        }
    }
}

fn evaluate(log: &SocketLog, plan: DatagramPlan) -> DatagramReport {
    let (mut first_answers, mut latest, mut server) = (BTreeMap::new(), 0, None);
    let mut report =
        DatagramReport { errors: log.errors, wrong_answers: log.wrong_answers, ..DatagramReport::default() };
    for answer in &log.answers {
        if first_answers.contains_key(&answer.number) {
            report.duplicated += 1;
        } else {
            report.reordered += usize::from(answer.number < latest);
            latest = latest.max(answer.number);
        }
        first_answers.entry(answer.number).or_insert(answer);
        if server.is_some_and(|server| server != &answer.server) {
            report.moves.push((answer.at, answer.server.clone()));
        }
        server = Some(&answer.server);
    }
    let as_try = |(number, sent): (usize, &Duration)| {
        let answer = first_answers.get(&(number as u64)).filter(|answer| answer.at <= *sent + plan.timeout);
        let latency = answer.map_or(plan.timeout, |answer| answer.at.saturating_sub(*sent));
        let outcome = if answer.is_some() { Outcome::Ok } else { Outcome::TimedOut };
        Try { started: *sent, latency, outcome, server: answer.map(|answer| answer.server.clone()) }
    };
    let tries = log.sent.iter().enumerate().map(as_try).collect();
    report.record = Record { from: log.from, to: log.to, interval: plan.interval, tries };
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of three datagrams, sent at 0, 10 and 20 ms, with these answers: the numbers of lost, duplicated and
    /// reordered datagrams, and of moves.
    fn counts(answers: &[(u64, u64, &str)]) -> (usize, usize, usize, usize) {
        let ms = Duration::from_millis;
        let arrival = |(at, number, server): &(u64, u64, &str)| Arrival {
            at: ms(*at),
            number: *number,
            server: (*server).to_owned(),
        };
        let log = SocketLog {
            to: ms(30),
            sent: vec![ms(0), ms(10), ms(20)],
            answers: answers.iter().map(arrival).collect(),
            ..SocketLog::default()
        };
        let plan = DatagramPlan { target: ([127, 0, 0, 1], 1).into(), interval: ms(10), timeout: ms(50) };
        let report = evaluate(&log, plan);
        assert_eq!(report.record.tries.len(), 3);
        (report.record.lost_at_first(), report.duplicated, report.reordered, report.moves.len())
    }

    #[test]
    fn lost_duplicated_reordered_and_moved_datagrams_are_counted() {
        for (why, answers, expected) in [
            ("all in order", vec![(1, 0, "a"), (11, 1, "a"), (21, 2, "a")], (0, 0, 0, 0)),
            ("no answer", vec![], (3, 0, 0, 0)),
            ("one lost", vec![(1, 0, "a"), (21, 2, "a")], (1, 0, 0, 0)),
            ("one too late", vec![(51, 0, "a"), (52, 1, "a"), (53, 2, "a")], (1, 0, 0, 0)),
            ("one twice", vec![(1, 0, "a"), (2, 0, "a"), (11, 1, "a"), (21, 2, "a")], (0, 1, 0, 0)),
            ("out of order", vec![(1, 0, "a"), (21, 2, "a"), (22, 1, "a")], (0, 0, 1, 0)),
            ("twice and late", vec![(1, 0, "a"), (11, 1, "a"), (21, 2, "a"), (22, 1, "a")], (0, 1, 0, 0)),
            ("another server", vec![(1, 0, "a"), (11, 1, "b"), (21, 2, "b")], (0, 0, 0, 1)),
            ("there and back", vec![(1, 0, "a"), (11, 1, "b"), (21, 2, "a")], (0, 0, 0, 2)),
        ] {
            assert_eq!(counts(&answers), expected, "{why}");
        }
    }
}
