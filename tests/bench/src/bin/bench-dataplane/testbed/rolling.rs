//! What clients notice while a backend is updated: five times, node by node, under both traffic policies at the same time.
//!
//! What is told is the worst round of each policy, over TCP: a share over all rounds would hide a bad one. A question that is
//! not answered within four seconds is lost, refused or broken ones are lost at once; that some were answered only when a packet
//! was sent again is told too. Beside it, the same over UDP, from clients that ask again after a second as resolvers do.

use std::collections::BTreeMap;

use anyhow::Result;
use bench::report::Report;
use e2e::Transport;
use e2e::rolling::{POLICIES, RollingUpdates};

use crate::Bench;
use crate::testbed::Stand;

/// How often it is updated.
const ROUNDS: usize = 5;

/// The backend is updated again and again.
pub async fn measure(bench: &Bench, report: &mut Report, stand: &Stand) -> Result<()> {
    let rolling = RollingUpdates::start(&stand.world, 1).await?;
    let mut rounds: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let (mut asked, mut slow): (BTreeMap<_, usize>, BTreeMap<_, usize>) = Default::default();
    for round in 1..=ROUNDS {
        let mut told = String::new();
        for (policy, over, tally) in rolling.update().await? {
            rounds.entry((policy, over)).or_default().push(tally.percent());
            *asked.entry((policy, over)).or_default() += tally.requests;
            *slow.entry((policy, over)).or_default() += tally.slow;
            told += &format!("; {policy}, {over:?}: {} of {} lost", tally.lost, tally.requests);
        }
        bench.progress(&format!("update {round}{told}"))?;
    }
    report.part(&format!("{ROUNDS} rolling updates of a backend, new connections all the time"));
    for (policy, _) in POLICIES {
        for (over, suffix) in [(Transport::Tcp, ""), (Transport::Udp, "_udp")] {
            let which = (policy, over);
            let worst = rounds[&which].iter().copied().fold(100.0, f64::min);
            report.row(
                &format!("{policy}, {over:?}: answered in the worst round"),
                &format!("{worst:8.2} %  goal 99.5 % or more; of {} in all, {} late", asked[&which], slow[&which]),
            );
            report.figure(&format!("rolling_worst_percent_{}{suffix}", policy.to_lowercase()), worst);
        }
    }
    rolling.end().await
}
