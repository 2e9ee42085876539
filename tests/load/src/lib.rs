//! One prober for tests, benchmarks and the demo: continuous load on an address, with a record of every try.
//!
//! | file | content |
//! |---|---|
//! | [`record`] | a try, the record of all tries, and figures from it: loss, percentiles, longest gap, slow tries |
//! | [`verdict`] | record, control and bounds → passed, failed, or the machine was late |
//! | [`outage`] | the outages of a repeated fault, and their bounds |
//! | [`control`] | the control: tries that bypass the system under test, and late wake-ups of a thread |
//! | [`tries`] | sends one request per new connection, or per datagram from a new port, at a fixed rate |
//! | [`flows`] | holds connections open, and sends numbered requests on them |
//! | [`datagrams`] | sends numbered datagrams of one flow at a fixed rate |
//! | [`exchange`] | one request and its answer; the errors of sockets as outcomes |
//! | [`worker`] | the thread of a prober, in a network namespace |
//! | [`server`] | a small server with the protocol of whoami, for the control and for tests |
//!
//! A request is the line `#NUMBER`, and the answer is the line `SERVER CLIENT_ADDRESS:PORT NUMBER`. So every answer
//! shows its server (the pod), and which request it belongs to. `whoami` of `tests/guests` is such a server.
//!
//! Nothing is retried. The kernel retransmits over TCP, so each try also reads the number of retransmissions: a try
//! that needed one is [`Outcome::Repeated`], and counts as lost at the first try.
//!
//! Evaluation is pure. Only `worker`, `tries`, `flows`, `datagrams`, `exchange`, `server` and the thread in `control`
//! use sockets or clocks.

pub mod control;
pub mod datagrams;
pub mod exchange;
pub mod flows;
pub mod outage;
pub mod record;
pub mod server;
pub mod tries;
pub mod verdict;
pub mod worker;

pub use control::{Control, Wakeup, WakeupThread};
pub use datagrams::{DatagramPlan, DatagramReport, DatagramSender};
pub use exchange::Transport;
pub use flows::{BrokenFlow, FlowBreak, FlowReport, HeldFlows, OpenFlows};
pub use outage::{FaultResult, Outage, OutageBounds, Outages, fault_result};
pub use record::{Gap, Outcome, Record, Try};
pub use server::Server;
pub use tries::{Prober, TryPlan};
pub use verdict::{Bounds, Verdict, repeat_while_late, verdict};
pub use worker::Clock;
