//! The accepted figures, as `tests/bench/accepted.json` holds them: by benchmark and name, each with its tolerance.
//! Pure.
//!
//! ```json
//! {"controller": [
//!   {"name": "bulk_ratio_1k", "value": 1.02, "unit": "ratio", "samples": 5, "spread": [0.9, 1.1], "better": "higher",
//!    "marks": [], "tolerance": 1.25, "reason": "pairs differ by up to 20 % on two processors"}
//! ]}
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bench::figures::Figure;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// An accepted figure. People write its tolerance and reason; `--accept` writes the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptedFigure {
    /// Without a value and without a mark: the figure has not been accepted yet.
    #[serde(flatten)]
    pub figure: Figure,
    /// A figure is worse if it differs by more than this factor, at least 1. `None`: the figure is not compared, for
    /// example that of a rival.
    pub tolerance: Option<f64>,
    /// Why the tolerance is that large, or why the figure is not compared. Empty: a person has still to decide.
    pub reason: String,
}

/// Figures by name.
pub type Accepted = BTreeMap<String, AcceptedFigure>;

/// Reads the accepted figures of each benchmark.
pub fn parse(text: &str) -> Result<BTreeMap<String, Accepted>> {
    let benchmarks: BTreeMap<String, Vec<AcceptedFigure>> = serde_json::from_str(text).context("read the JSON")?;
    let by_name = |(benchmark, figures): (String, Vec<AcceptedFigure>)| {
        let mut accepted = Accepted::new();
        for entry in figures {
            let name = entry.figure.name.clone();
            let tolerance = entry.tolerance.unwrap_or(1.0);
            ensure!(tolerance >= 1.0, "{benchmark} {name}: a tolerance of {tolerance} is less than 1");
            ensure!(accepted.insert(name.clone(), entry).is_none(), "{benchmark} {name} has two entries");
        }
        Ok((benchmark, accepted))
    };
    benchmarks.into_iter().map(by_name).collect()
}

/// The text of the file.
pub fn render(benchmarks: &BTreeMap<String, Accepted>) -> String {
    let lists: BTreeMap<_, Vec<_>> =
        benchmarks.iter().map(|(name, figures)| (name, figures.values().collect())).collect();
    format!("{:#}\n", json!(lists))
}

/// Accepts measured figures. Tolerances and reasons stay; those of new figures are left to a person. Figures that were
/// not measured stay as well.
pub fn accept(accepted: &mut Accepted, measured: &BTreeMap<String, Figure>) {
    for (name, figure) in measured {
        let entry = accepted.entry(name.clone()).or_insert_with(|| AcceptedFigure {
            figure: figure.clone(),
            tolerance: None,
            reason: String::new(),
        });
        entry.figure = figure.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench::figures::Better;

    fn entry(name: &str, tolerance: Option<f64>, reason: &str) -> AcceptedFigure {
        let figure = Figure::from_samples(name, "ms", Better::Lower, &[1.0]);
        AcceptedFigure { figure, tolerance, reason: reason.to_owned() }
    }

    fn by_name(entries: &[AcceptedFigure]) -> Accepted {
        entries.iter().map(|entry| (entry.figure.name.clone(), entry.clone())).collect()
    }

    #[test]
    fn a_written_file_is_read_back() {
        let figures = by_name(&[entry("a", Some(1.5), "one sample"), entry("b", None, "a rival")]);
        let benchmarks = BTreeMap::from([("controller".to_owned(), figures)]);
        let text = render(&benchmarks);
        assert_eq!(parse(&text).expect("the file"), benchmarks);
        let one = text.replace("\"b\"", "\"a\"");
        let two = text.replace("1.5", "0.9");
        for (text, expected) in [
            ("{", "read the JSON"),
            (&one, "controller a has two entries"),
            (&two, "controller a: a tolerance of 0.9 is less than 1"),
        ] {
            assert_eq!(parse(text).expect_err("no file").to_string(), expected);
        }
    }

    #[test]
    fn the_committed_file_has_the_form_of_an_acceptance() {
        let text = include_str!("../../../accepted.json");
        let benchmarks = parse(text).expect("the committed file");
        assert_eq!(render(&benchmarks), text, "write it as `bench-compare --accept` does: sorted, two spaces");
        let figures = benchmarks.values().flat_map(Accepted::values);
        let without_reason: Vec<_> = figures.filter(|entry| entry.reason.is_empty()).collect();
        assert!(without_reason.is_empty(), "add tolerance and reason: {without_reason:?}");
    }

    #[test]
    fn acceptance_keeps_tolerances_and_asks_for_missing_ones() {
        let mut accepted = by_name(&[entry("a", Some(1.5), "one sample"), entry("gone", Some(2.0), "noise")]);
        let measured = |name: &str| Figure::from_samples(name, "ms", Better::Lower, &[3.0]);
        let figures = ["a", "b"].map(|name| (name.to_owned(), measured(name)));
        accept(&mut accepted, &BTreeMap::from(figures));
        let expected = by_name(&[
            AcceptedFigure { figure: measured("a"), ..entry("a", Some(1.5), "one sample") },
            AcceptedFigure { figure: measured("b"), ..entry("b", None, "") },
            entry("gone", Some(2.0), "noise"),
        ]);
        assert_eq!(accepted, expected);
    }
}
