//! What finding and taking the next address of a pool takes: the library's own benchmark, which needs no cluster.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bench::report::Report;
use bench::root;
use serde_json::Value;

use crate::Bench;

/// Runs it (building it, if need be), and takes over what it found.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.progress("allocation without a cluster")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--quiet", "--locked", "--package", "controller", "--bench", "allocate"]);
    let output = cargo.args(["--", "--json"]).current_dir(root()).output().context("run cargo bench")?;
    ensure!(output.status.success(), "cargo bench: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{')).with_context(|| format!("no JSON in {text:?}"))?;
    let figures: Value = serde_json::from_str(line).context("read what cargo bench says")?;
    let figure = |key: &str| figures[key].as_f64().with_context(|| format!("no {key} in {line}"));
    let of = |name: &str| Ok::<_, anyhow::Error>(format!("{:8.0} ns", figure(name)?));
    report.part("Find and take an address (median)");
    report.row("of a /16 of which none is used", &of("alloc_ns_at_0")?);
    report.row("of a /16 of which 65,000 are used", &format!("{}  goal 1000 or less", of("alloc_ns_at_65k")?));
    report.figure("alloc_ns_at_65k", figure("alloc_ns_at_65k")?);
    Ok(())
}
