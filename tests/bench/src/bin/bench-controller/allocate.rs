//! The cost of finding and taking the next address of a pool. Runs the benchmark of the controller library, which needs
//! no cluster.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bench::report::{FigureSpec, Report};
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
    let rounds = |key: &str| -> Result<Vec<f64>> {
        let rounds = figures[key].as_array().with_context(|| format!("no {key} in {line}"))?;
        Ok(rounds.iter().filter_map(Value::as_f64).collect())
    };
    report.part("Find and take an address, rounds of 500");
    report.distribution("in an empty /16", &rounds("alloc_ns_at_0")?, "ns");
    let label = "in a /16 with 65,000 used addresses";
    report.measure(FigureSpec::lower("alloc_ns_at_65k", label, "ns").goal("1000 or less"), &rounds("alloc_ns_at_65k")?);
    Ok(())
}
