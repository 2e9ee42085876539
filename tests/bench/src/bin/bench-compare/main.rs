//! Measured figures beside the accepted ones.
//!
//! `make bench-all` runs the quick variants of all benchmarks, and then this program. It reads `target/bench/*.json`
//! and `tests/bench/accepted.json`, prints a table, and fails if a figure is worse than its tolerance permits. Each
//! part is a module: [`accepted`] has the file, [`comparison`] the outcome of each figure, [`table`] the output.

mod accepted;
mod comparison;
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bench::progress::print;
use bench::{figures, root};
use clap::Parser;

use crate::comparison::compare;

/// The benchmarks. Each writes `target/bench/NAME.json`.
const BENCHMARKS: [&str; 4] = ["first-light", "controller", "failover", "dataplane"];

/// The accepted figures.
const ACCEPTED: &str = "tests/bench/accepted.json";

/// Compare the figures of benchmarks with the accepted ones.
///
/// A benchmark writes its figures to target/bench/NAME.json. This program compares them with the last accepted ones in
/// tests/bench/accepted.json, and fails if a figure is worse than its tolerance permits, or is missing.
///
///   make bench-all                        run all benchmarks quickly, and compare
///   make bench-compare                    compare the figures that the last runs have left
///   make bench-compare ACCEPT=1           accept them: then review and commit tests/bench/accepted.json
///
/// The table has a line for each figure:
///
///   accepted, now    the median, and the range of at least five samples
///   change           now divided by accepted
///   limit            the change that the tolerance permits
///
///   ok, better       within the tolerance; better by more than it: accept the new value
///   WORSE            worse by more than the tolerance, or no value now
///   MISSING          accepted, and not measured
///   OTHER MEANING    another unit or direction than accepted
///   INCOMPLETE       accepted without a tolerance: a person adds `tolerance` and `reason`
///   new              measured, and not accepted yet
///   not compared     accepted without a tolerance on purpose, such as a figure of a rival
///
///   censored         the measurement ended before the awaited event: the figure has no value
///   single           one sample: its spread is unknown
///
/// Accept figures only from an idle machine: the accepted values are for two processors.
#[derive(Debug, Parser)]
#[command(max_term_width = 120, verbatim_doc_comment)]
struct CompareOptions {
    /// Only these benchmarks: first-light, controller, failover, dataplane.
    #[arg(value_name = "BENCHMARK")]
    benchmarks: Vec<String>,

    /// Replace the accepted values by the measured ones. Tolerances and reasons stay. A new figure gets an entry
    /// without a tolerance, which fails until a person adds one.
    #[arg(long)]
    accept: bool,
}

fn main() -> Result<()> {
    let options = CompareOptions::parse();
    for benchmark in &options.benchmarks {
        ensure!(BENCHMARKS.contains(&benchmark.as_str()), "there is no benchmark {benchmark:?}");
    }
    let is_wanted = |name: &str| options.benchmarks.is_empty() || options.benchmarks.iter().any(|one| one == name);
    let path = root().join(ACCEPTED);
    let mut all = accepted::parse(&read(&path)?).with_context(|| path.display().to_string())?;
    let (mut output, mut advice, mut failing) = (String::new(), String::new(), 0);
    for benchmark in BENCHMARKS.into_iter().filter(|name| is_wanted(name)) {
        let measured_path = root().join(format!("target/bench/{benchmark}.json"));
        let measured = if measured_path.exists() { figures::read(&read(&measured_path)?) } else { BTreeMap::new() };
        if measured.is_empty() {
            advice += &format!("{benchmark} has no figures: {} is missing\n", measured_path.display());
            failing += 1;
        }
        let accepted = all.entry(benchmark.to_owned()).or_default();
        if options.accept {
            accepted::accept(accepted, &measured);
        }
        let rows = compare(accepted, &measured);
        output += &format!("{}\n", table::table(benchmark, &rows));
        advice += &table::advice(benchmark, &rows);
        failing += rows.iter().filter(|row| row.outcome.fails()).count();
    }
    if options.accept {
        std::fs::write(&path, accepted::render(&all)).with_context(|| format!("write {}", path.display()))?;
        output += &format!("wrote {ACCEPTED}: review it with `git diff`\n\n");
    }
    print(&(output + &advice))?;
    ensure!(failing == 0, "{failing} figures fail the comparison (`bench-compare --help` explains the table)");
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
