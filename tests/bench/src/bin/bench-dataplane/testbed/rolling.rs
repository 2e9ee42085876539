//! Lost requests during rolling updates of a backend: five times, node by node, under both traffic policies at the same
//! time.
//!
//! The result is the worst round of each policy over TCP, because a share over all rounds would hide a bad one. A
//! request without an answer after four seconds is lost. Refused and broken ones are lost at once. Answers after a
//! retransmission are counted as late. The same is measured over UDP, where no datagram is repeated.

use std::collections::BTreeMap;

use anyhow::Result;
use bench::report::Report;
use e2e::Transport;
use e2e::rolling::{POLICIES, RollingUpdates};
use e2e::traffic::NOTHING_LOST;

use crate::Bench;
use crate::testbed::ForwardingTestbed;

/// The number of updates.
const ROUNDS: usize = 5;

pub async fn measure(bench: &Bench, report: &mut Report, testbed: &ForwardingTestbed) -> Result<()> {
    let rolling = RollingUpdates::start(&testbed.world, 1).await?;
    let mut rounds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let (mut requests, mut slow): (BTreeMap<_, usize>, BTreeMap<_, usize>) = Default::default();
    for round in 1..=ROUNDS {
        let mut losses = String::new();
        for (target, record) in rolling.update().await?.records {
            let (policy, over) = (target.name.clone(), target.transport);
            let (lost, all) = (record.unanswered_count(), record.tries.len());
            let percent = 100.0 * (1.0 - lost as f64 / all.max(1) as f64);
            rounds.entry((policy.clone(), over)).or_default().push(percent);
            *requests.entry((policy.clone(), over)).or_default() += all;
            *slow.entry((policy, over)).or_default() += record.slow(NOTHING_LOST.slow_after).count();
            losses += &format!("; {}: {lost} of {all} lost", target.label());
        }
        bench.progress(&format!("update {round}{losses}"))?;
    }
    report.part(&format!("{ROUNDS} rolling updates of a backend, new connections all the time"));
    for (policy, _) in POLICIES {
        for (over, suffix) in [(Transport::Tcp, ""), (Transport::Udp, "_udp")] {
            let which = (policy.to_owned(), over);
            let worst = rounds[&which].iter().copied().fold(100.0, f64::min);
            report.row(
                &format!("{policy}, {over:?}: answered in the worst round"),
                &format!("{worst:8.2} %  goal 99.5 % or more; of {} in all, {} late", requests[&which], slow[&which]),
            );
            report.figure(&format!("rolling_worst_percent_{}{suffix}", policy.to_lowercase()), worst);
        }
    }
    rolling.end().await
}
