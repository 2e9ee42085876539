//! A node that has pods, but not the address, loses its power: the time until all new connections succeed.
//!
//! Connects begin every 10 ms, to Landfall's address and to the node port of a third node, where kube-proxy serves the
//! same pods. A connect of more than 400 ms is lost, because its first packet was lost. The time starts before the
//! cable is cut, and ends after the last lost connect. Both products are watched until no connect was lost for
//! [`CALM`]. One that has not recovered after [`OBSERVATION`] is censored: its time is not known.
//!
//! A power-off is silent: the cable is cut first, so no carrier goes down, and no neighbour is notified.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::connector::{CONNECT_TIMEOUT, Connector};
use bench::gaps::Attempt;
use bench::probe::CONNECTS;
use bench::report::{FigureSpec, Report, Sample};
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::Bench;
use crate::testbed::ForwardingTestbed;

/// The time without a lost connect after which all connects succeed again. Until then two of five are lost.
const CALM: Duration = Duration::from_secs(5);

/// The longest observation. A silent node stays Ready for 50 s after its last heartbeat, and the controller checks that
/// every few seconds. Then its endpoints are removed.
const OBSERVATION: Duration = Duration::from_secs(180);

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let rounds = if bench.quick { 1 } else { 5 };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (our_loss, their_loss) = kill_node(bench, testbed).await?;
        ours.push(our_loss.sample);
        theirs.push(their_loss.sample);
    }
    report.part(&format!("A node with 2 of 5 pods loses its power, the address is on another, {rounds} times"));
    let label = "from the cut until all new connections succeed";
    report.measure_until(FigureSpec::lower("dead_node_ms", label, "ms").goal("200 or less"), &ours);
    let label = "kube-proxy nftables, node port of a third node";
    report.measure_until(FigureSpec::lower("kube_proxy_dead_node_ms", label, "ms"), &theirs);
    Ok(())
}

/// Powers off a node until both products have recovered, and restores it.
async fn kill_node(bench: &Bench, testbed: &ForwardingTestbed) -> Result<(Loss, Loss)> {
    let owner = testbed.owner().await?;
    let others = testbed.shares().into_iter().filter(|(node, _)| *node != owner);
    // The node with more pods dies. kube-proxy is measured at the owner, which stays alive.
    let (victim, _) = others.max_by(|(_, a), (_, b)| a.total_cmp(b)).context("no node is left")?;
    let begun = Instant::now();
    let ours = Connector::begin(&testbed.client, testbed.target, CONNECTS, begun);
    let theirs = Connector::begin(&testbed.client, testbed.node_port(&owner), CONNECTS, begun);
    sleep(Duration::from_secs(2)).await;
    let death = begun.elapsed();
    testbed.world.cluster.power_off(victim)?;
    while begun.elapsed() < death + OBSERVATION
        && begun.elapsed() < death.max(ours.last_lost()).max(theirs.last_lost()) + CONNECT_TIMEOUT + CALM
    {
        sleep(Duration::from_millis(100)).await;
    }
    let end = begun.elapsed();
    let (ours, theirs) = block_in_place(|| Ok::<_, anyhow::Error>((ours.end()?, theirs.end()?)))?;
    for (product, attempts) in [("Landfall", &ours), ("kube-proxy", &theirs)] {
        // Connects under way at the death belong to it. Earlier ones do not.
        let is_before = |attempt: &&Attempt| attempt.began + CONNECT_TIMEOUT < death && !attempt.accepted;
        let before = attempts.iter().filter(is_before).count();
        ensure!(before == 0, "{before} connects to {product} failed before the death");
    }
    let (ours, theirs) = (Loss::from_attempts(&ours, death, end), Loss::from_attempts(&theirs, death, end));
    bench.progress(&format!("without {victim}: {}; kube-proxy {}", ours.text(), theirs.text()))?;
    testbed.restore(victim).await?;
    Ok((ours, theirs))
}

/// The lost connects after a death.
struct Loss {
    /// The time from the death to the first connect after the last lost one, in milliseconds.
    sample: Sample,
    lost: usize,
    total: usize,
}

impl Loss {
    fn from_attempts(attempts: &[Attempt], death: Duration, end: Duration) -> Self {
        let after: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.began >= death).collect();
        let lost: Vec<Duration> =
            after.iter().filter(|attempt| !attempt.accepted).map(|attempt| attempt.began).collect();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let sample = match lost.last() {
            None => Sample::Measured(0.0),
            Some(last) if *last + CALM > end => Sample::Censored(ms(end - death)),
            // All connects from the one after the last lost one succeed.
            Some(last) => Sample::Measured(ms(*last + CONNECTS - death)),
        };
        Self { sample, lost: lost.len(), total: after.len() }
    }

    fn text(&self) -> String {
        let time = match self.sample {
            Sample::Measured(millis) => format!("{millis:.0} ms"),
            Sample::Censored(millis) => format!("not recovered after {millis:.0} ms"),
        };
        format!("{time}, {} of {} connects lost", self.lost, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_still_loses_connects_is_censored() {
        let seconds = Duration::from_secs;
        let attempts = |lost: std::ops::Range<u64>| -> Vec<Attempt> {
            (0..100).map(|n| Attempt { began: seconds(n), accepted: !lost.contains(&n) }).collect()
        };
        for (what, lost, expected) in [
            ("none", 0..0, Sample::Measured(0.0)),
            ("an early one", 2..4, Sample::Measured(0.0)),
            ("some", 12..15, Sample::Measured(4010.0)),
            ("until the end", 12..98, Sample::Censored(90_000.0)),
        ] {
            let loss = Loss::from_attempts(&attempts(lost), seconds(10), seconds(100));
            assert_eq!(loss.sample, expected, "{what}");
        }
    }
}
