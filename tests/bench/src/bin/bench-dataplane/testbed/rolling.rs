//! Lost requests during rolling updates of a backend: five times, node by node, under both traffic policies at the same
//! time.
//!
//! The result is the worst round of each policy over TCP, because a share over all rounds would hide a bad one. A
//! request without an answer after four seconds is lost. Refused and broken ones are lost at once. Answers after a
//! retransmission are counted as late. The same is measured over UDP, where no datagram is sent again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use bench::report::{FigureSpec, Report};
use e2e::Transport;
use e2e::rolling::{POLICIES, RollingUpdates};

use crate::Bench;
use crate::testbed::ForwardingTestbed;

/// The number of updates.
const ROUNDS: usize = 5;

/// An answer later than this has cost a lost packet.
const LATE: Duration = Duration::from_millis(700);

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let rolling = RollingUpdates::start(&testbed.world, 1).await?;
    let mut rounds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let (mut requests, mut slow): (BTreeMap<_, usize>, BTreeMap<_, usize>) = Default::default();
    for round in 1..=ROUNDS {
        let mut losses = String::new();
        for (target, record) in rolling.update().await?.records {
            let (which, all) = ((target.name.clone(), target.plan.transport), record.tries.len());
            let lost = record.unanswered_count();
            rounds.entry(which.clone()).or_default().push(100.0 * (1.0 - lost as f64 / all.max(1) as f64));
            *requests.entry(which.clone()).or_default() += all;
            *slow.entry(which).or_default() += record.slow(LATE).count();
            losses += &format!("; {}: {lost} of {all} lost", target.label());
        }
        bench.progress(&format!("update {round}{losses}"))?;
    }
    report.part(&format!("{ROUNDS} rolling updates of a backend, new connections all the time"));
    for (policy, _) in POLICIES {
        for (over, suffix) in [(Transport::Tcp, ""), (Transport::Udp, "_udp")] {
            let which = (policy.to_owned(), over);
            let name = format!("rolling_worst_percent_{}{suffix}", policy.to_lowercase());
            let label = format!("{policy}, {over:?}: answered in the worst round");
            let worst = rounds[&which].iter().copied().fold(100.0, f64::min);
            report.worst(FigureSpec::higher(&name, &label, "%").goal("99.5 or more"), worst, rounds[&which].len());
            report.row("  requests in all rounds, late ones", &format!("{}, {}", requests[&which], slow[&which]));
        }
    }
    rolling.end().await
}
