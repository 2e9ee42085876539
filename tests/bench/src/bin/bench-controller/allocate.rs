//! The cost of finding and taking the next address of a pool. Runs the benchmark of the controller library, which needs
//! no cluster.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bench::report::Report;
use bench::root;
use serde_json::Value;

use crate::Runner;

/// Runs the benchmark, builds it if necessary, and copies its figures.
pub fn measure(runner: &Runner, report: &mut Report) -> Result<()> {
    runner.progress("allocation without a cluster")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--quiet", "--locked", "--package", "controller", "--bench", "allocate"]);
    let output = cargo.args(["--", "--json"]).current_dir(root()).output().context("run cargo bench")?;
    ensure!(output.status.success(), "cargo bench: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{')).with_context(|| format!("no JSON in {text:?}"))?;
    let figures: Value = serde_json::from_str(line).context("read the output of cargo bench")?;
    let figure = |key: &str| figures[key].as_f64().with_context(|| format!("no {key} in {line}"));
    report.part("Find and take an address (median)");
    let (empty, nearly_full) = (figure("alloc_ns_at_0")?, figure("alloc_ns_at_65k")?);
    report.row("in an empty /16", &format!("{empty:8.0} ns"));
    report.row("in a /16 with 65,000 used addresses", &format!("{nearly_full:8.0} ns  goal 1000 or less"));
    report.figure("alloc_ns_at_65k", nearly_full);
    Ok(())
}
