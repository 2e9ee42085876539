//! The detection limit: faults injected into a network of two namespaces are found, and a run without faults passes.
//!
//! Faults are nft rules in the server's namespace, for port 80. Port 81 has no faults: it is the control.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use load::datagrams::DatagramPlan;
use load::{
    Bounds, Clock, Control, DatagramSender, FlowBreak, FlowReport, OpenFlows, Outcome, Prober, Record, Server,
    Transport, TryPlan, Verdict, WakeupThread, repeat_while_late, verdict,
};
use netns::{Namespace, veth};

const SECOND: Duration = Duration::from_secs(1);

/// Greatest number of runs while the machine is late.
const RUNS: usize = 10;

/// One SYN, or one datagram, of 200 is dropped: 0.5 %.
const DROP_HALF_A_PERCENT: [&str; 2] =
    ["tcp dport 80 tcp flags syn numgen inc mod 200 == 0 drop", "udp dport 80 numgen inc mod 200 == 0 drop"];

/// A client, and a server with the ports 80 and 81.
struct Network {
    client: Namespace,
    host: Namespace,
    server: Server,
    _control: Server,
}

impl Network {
    fn new() -> Result<Self> {
        let (client, host) = (Namespace::new()?, Namespace::new()?);
        veth((&client, "eth0"), (&host, "eth0"))?;
        client.ip(["addr add 192.0.2.1/24 dev eth0", "link set eth0 up"])?;
        host.ip(["addr add 192.0.2.2/24 dev eth0", "link set eth0 up"])?;
        let server = Server::start(address(80), "a", Some(&host))?;
        let control = Server::start(address(81), "control", Some(&host))?;
        let network = Self { client, host, server, _control: control };
        network.nft("table ip fault { chain input { type filter hook input priority 0; }; }")?;
        Ok(network)
    }

    /// Adds rules for packets that arrive at the server.
    fn add_faults(&self, rules: &[&str]) -> Result<()> {
        let lines: Vec<String> = rules.iter().map(|rule| format!("add rule ip fault input {rule}")).collect();
        self.nft(&lines.join("\n"))
    }

    fn end_faults(&self) -> Result<()> {
        self.nft("flush chain ip fault input")
    }

    fn nft(&self, text: &str) -> Result<()> {
        let output = self.host.command("nft").arg(text).stdin(Stdio::null()).output().context("run nft")?;
        ensure!(output.status.success(), "nft {text}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn prober(&self, port: u16, transport: Transport, clock: Clock) -> Prober {
        let plan = TryPlan { interval: Duration::from_millis(1), ..TryPlan::new(address(port), transport) };
        Prober::start(TryPlan { timeout: 2 * SECOND, ..plan }, Some(&self.client), clock)
    }

    /// Sends requests to both ports while `work` runs, and returns record and control.
    fn observe(&self, transport: Transport, work: impl FnOnce() -> Result<()>) -> Result<(Record, Control)> {
        let clock = Clock::start();
        let wakeups = WakeupThread::start(clock);
        let (prober, control) = (self.prober(80, transport, clock), self.prober(81, transport, clock));
        work()?;
        let (record, tries) = (prober.stop()?, control.stop()?);
        Ok((record, Control { wakeups: wakeups.stop()?, tries: Some(tries) }))
    }

    /// Holds open connections while `work` runs.
    fn hold(&self, work: impl FnOnce() -> Result<()>) -> Result<FlowReport> {
        let plan = OpenFlows { interval: SECOND / 20, timeout: SECOND, ..OpenFlows::new(address(80), 20) };
        let flows = plan.open(Some(&self.client), Clock::start())?;
        ensure!(flows.servers().get("a") == Some(&20), "{:?}", flows.servers());
        work()?;
        flows.end()
    }
}

fn address(port: u16) -> SocketAddr {
    ([192, 0, 2, 2], port).into()
}

fn sleep(time: Duration) -> Result<()> {
    std::thread::sleep(time);
    Ok(())
}

/// Bounds for 1,000 tries per second on a network without delay. The prober itself may be scheduled late.
fn bounds() -> Bounds {
    Bounds { tries: 500, lateness: SECOND / 20, ..Bounds::for_planned_change(SECOND / 25) }
}

/// The reasons of a failed run, after repetitions while the machine was late.
async fn reasons(run: impl AsyncFnMut() -> Result<Verdict>) -> Result<Vec<String>> {
    match repeat_while_late(RUNS, run).await? {
        Verdict::Failed(reasons) => Ok(reasons),
        verdict => anyhow::bail!("the fault was not found: {verdict:?}"),
    }
}

#[tokio::test]
async fn a_run_without_faults_passes() -> Result<()> {
    let network = Network::new()?;
    for transport in [Transport::Tcp, Transport::Udp] {
        let verdict = repeat_while_late(RUNS, async || {
            let (record, control) = network.observe(transport, || sleep(2 * SECOND))?;
            ensure!(record.servers().into_iter().eq(["a"]), "{:?}", record.servers());
            Ok(verdict(&record, &control, &bounds()))
        });
        assert_eq!(verdict.await?, Verdict::Passed, "{transport:?}");
    }
    Ok(())
}

#[tokio::test]
async fn half_a_percent_of_loss_is_found() -> Result<()> {
    let network = Network::new()?;
    network.add_faults(&DROP_HALF_A_PERCENT)?;
    for (transport, outcome) in [(Transport::Tcp, Outcome::Repeated), (Transport::Udp, Outcome::TimedOut)] {
        let reasons = reasons(async || {
            let (record, control) = network.observe(transport, || sleep(2 * SECOND))?;
            let verdict = verdict(&record, &control, &bounds());
            if matches!(verdict, Verdict::Failed(_)) {
                // The kernel sends a lost SYN again, and the rule counts the second SYN as well. Every 200th packet is
                // lost, so the number of lost packets is rounded down or up.
                let (lost, packets) = (record.lost_at_first(), record.tries.len() + record.count(Outcome::Repeated));
                ensure!(lost.abs_diff(packets / 200) <= 1 && record.count(outcome) > 0, "{record}");
            }
            Ok(verdict)
        });
        let reasons = reasons.await?;
        assert!(reasons.iter().any(|reason| reason.contains("lost at the first try")), "{transport:?}: {reasons:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_hole_of_sixty_milliseconds_is_found() -> Result<()> {
    let network = Network::new()?;
    // Only the gap has a bound. Otherwise the loss would fail the run as well.
    let only_gap = Bounds { loss: 1.0, slow: usize::MAX, ..bounds() };
    for transport in [Transport::Tcp, Transport::Udp] {
        let reasons = reasons(async || {
            let (record, control) = network.observe(transport, || {
                sleep(SECOND)?;
                network.add_faults(&["tcp dport 80 drop", "udp dport 80 drop"])?;
                sleep(Duration::from_millis(60))?;
                network.end_faults()?;
                sleep(SECOND)
            })?;
            let verdict = verdict(&record, &control, &only_gap);
            let gap = record.longest_gap();
            // If the machine was late during the hole, the lateness may excuse it.
            if matches!(verdict, Verdict::MachineLate(_)) || control.lateness(gap) > Duration::from_millis(15) {
                return Ok(Verdict::MachineLate("late in the hole".to_owned()));
            }
            ensure!(gap.length() >= Duration::from_millis(60), "{record}");
            ensure!(gap.from >= SECOND / 2 && gap.to <= record.to - SECOND / 2, "{record}");
            Ok(verdict)
        });
        let reasons = reasons.await?;
        assert!(reasons.iter().any(|reason| reason.contains("no answer for")), "{transport:?}: {reasons:?}");
    }
    Ok(())
}

#[test]
fn broken_flows_are_found_with_time_and_kind() -> Result<()> {
    let network = Network::new()?;
    let settle = || sleep(SECOND / 4);
    let untouched = network.hold(|| sleep(SECOND))?;
    assert_eq!((untouched.flows, &untouched.broken, untouched.requests.lost_at_first()), (20, &Vec::new(), 0));
    assert!(untouched.requests.tries.len() >= 20 * 5, "{}", untouched.requests);

    let other = FlowBreak::OtherServer("b".to_owned());
    let faults: [(&str, FlowBreak); 3] = [
        ("tcp dport 80 reject with tcp reset", FlowBreak::Reset),
        ("tcp dport 80 drop", FlowBreak::Silent),
        ("", other),
    ];
    for (rule, why) in faults {
        let report = network.hold(|| {
            settle()?;
            match rule {
                "" => network.server.rename("b"),
                rule => network.add_faults(&[rule])?,
            }
            sleep(SECOND * 3 / 2)
        })?;
        network.end_faults()?;
        network.server.rename("a");
        assert!(report.broken.len() == 20 && report.broken.iter().all(|flow| flow.why == why), "{report:?}");
        assert!(report.broken.iter().all(|flow| flow.server == "a" && flow.at >= SECOND / 4), "{report:?}");
        assert!(report.reasons(|_| false)[0].contains("20 of 20"), "{:?}", report.reasons(|_| false));
        assert!(report.reasons(|server| server == "a").is_empty());
    }
    Ok(())
}

#[test]
fn an_idle_flow_is_checked_after_its_idle_time() -> Result<()> {
    let network = Network::new()?;
    let plan = OpenFlows { idle: Some(SECOND), timeout: SECOND, ..OpenFlows::new(address(80), 5) };
    let flows = plan.open(Some(&network.client), Clock::start())?;
    network.add_faults(&["tcp dport 80 reject with tcp reset"])?;
    sleep(2 * SECOND)?;
    let report = flows.end()?;
    assert!(report.broken.len() == 5 && report.broken.iter().all(|flow| flow.why == FlowBreak::Reset), "{report:?}");
    assert!(report.broken.iter().all(|flow| flow.at >= SECOND), "{report:?}");
    Ok(())
}

#[test]
fn lost_datagrams_and_another_server_are_found() -> Result<()> {
    let network = Network::new()?;
    let plan = DatagramPlan { target: address(80), interval: SECOND / 1000, timeout: SECOND / 2 };
    let send = |work: &dyn Fn() -> Result<()>| {
        let sender = DatagramSender::start(plan, Some(&network.client), Clock::start());
        work()?;
        sender.stop()
    };
    let untouched = send(&|| sleep(SECOND))?;
    assert!(untouched.record.lost_at_first() == 0 && untouched.reasons().is_empty(), "{untouched:?}");
    assert!(untouched.record.tries.len() > 200, "{}", untouched.record);

    network.add_faults(&DROP_HALF_A_PERCENT)?;
    let report = send(&|| sleep(SECOND))?;
    let expected = report.record.tries.len() / 200;
    assert!(report.record.lost_at_first().abs_diff(expected) <= 1 && expected > 0, "{}", report.record);
    network.end_faults()?;

    let report = send(&|| {
        sleep(SECOND / 4)?;
        network.server.rename("b");
        sleep(SECOND / 4)
    })?;
    assert!(report.moves.len() == 1 && report.moves[0].1 == "b", "{:?}", report.moves);
    assert!(report.reasons()[0].contains("b answers since"), "{:?}", report.reasons());
    Ok(())
}

#[test]
fn an_address_without_a_server_is_refused() -> Result<()> {
    let network = Network::new()?;
    for transport in [Transport::Tcp, Transport::Udp] {
        let prober = network.prober(82, transport, Clock::start());
        sleep(SECOND / 2)?;
        let record = prober.stop()?;
        let refused = record.count(Outcome::Refused);
        // The kernel limits the rate of ICMP errors: later datagrams are not refused.
        let expected = if transport == Transport::Tcp { record.tries.len() } else { 1 };
        assert!(refused >= expected && record.first_try_loss() == 1.0, "{record}");
    }
    Ok(())
}
