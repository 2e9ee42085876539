//! The results of a benchmark: a table for people, and a file of figures for programs ([`figures`]). Pure.
//!
//! A figure is one sample (marked `single`), the median of several, or the median and the range of at least five. A
//! quantile is reported only if at least one sample is expected beyond it. A measurement that ended before the awaited
//! event is marked `censored`, and has no value.

pub mod distribution;
pub mod figures;
pub mod progress;

use std::collections::BTreeMap;

use crate::distribution::{Distribution, percentile, supports};
use figures::{Better, Figure, SPREAD_SAMPLES};

/// The description of a figure.
#[derive(Clone, Copy, Debug)]
pub struct FigureSpec<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The label of its row in the table.
    pub label: &'a str,
    pub unit: &'static str,
    pub better: Better,
    /// Empty without a goal.
    pub goal: &'a str,
}

impl<'a> FigureSpec<'a> {
    /// A figure whose lower value is better.
    pub const fn lower(name: &'a str, label: &'a str, unit: &'static str) -> Self {
        Self { name, label, unit, better: Better::Lower, goal: "" }
    }

    /// A figure whose higher value is better.
    pub const fn higher(name: &'a str, label: &'a str, unit: &'static str) -> Self {
        Self { name, label, unit, better: Better::Higher, goal: "" }
    }

    /// Sets the goal, as the table shows it.
    #[must_use]
    pub const fn goal(self, goal: &'a str) -> Self {
        Self { goal, ..self }
    }

    fn goal_text(&self) -> String {
        if self.goal.is_empty() { String::new() } else { format!("  goal {}", self.goal) }
    }

    fn with_suffix(&self, suffix: &str, samples: &[f64]) -> Figure {
        Figure::from_samples(&format!("{}_{suffix}", self.name), self.unit, self.better, samples)
    }
}

/// A measurement of the time until an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// The event came after this time.
    Measured(f64),
    /// The event had not come when the measurement ended, after this time.
    Censored(f64),
}

/// The results so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    figures: BTreeMap<String, Figure>,
}

impl Report {
    /// Starts a part of the table.
    pub fn part(&mut self, title: &str) {
        if !self.lines.is_empty() {
            self.lines.push(String::new());
        }
        self.lines.push(title.to_owned());
    }

    /// A line of the table: a label and a result.
    pub fn row(&mut self, what: &str, found: &str) {
        self.lines.push(format!("  {what:58} {found}"));
    }

    /// A line with the median of some values and their range, without a figure.
    pub fn distribution(&mut self, what: &str, values: &[f64], unit: &str) {
        self.row(what, &format!("{} {unit}", median_text(values)));
    }

    /// The median of samples: a line of the table, and a figure.
    pub fn measure(&mut self, spec: FigureSpec<'_>, samples: &[f64]) {
        self.row(spec.label, &format!("{} {}{}", median_text(samples), spec.unit, spec.goal_text()));
        self.insert(Figure::from_samples(spec.name, spec.unit, spec.better, samples));
    }

    /// Like [`Report::measure`], for times that may be censored. One censored sample leaves no value.
    pub fn measure_until(&mut self, spec: FigureSpec<'_>, samples: &[Sample]) {
        let values: Vec<f64> =
            samples.iter().map(|(Sample::Measured(value) | Sample::Censored(value))| *value).collect();
        let ends = samples.iter().filter_map(|sample| match sample {
            Sample::Censored(end) => Some(*end),
            Sample::Measured(_) => None,
        });
        match ends.reduce(f64::min) {
            None => self.measure(spec, &values),
            Some(end) => {
                let text = format!("censored: not over after {end:.0} {}{}", spec.unit, spec.goal_text());
                self.row(spec.label, &text);
                self.insert(Figure::from_samples(spec.name, spec.unit, spec.better, &values).without_value());
            }
        }
    }

    /// A count over a number of `events`: a line of the table, and a figure.
    pub fn count(&mut self, spec: FigureSpec<'_>, count: usize, events: usize) {
        self.row(spec.label, &format!("{count:8} {}{}", spec.unit, spec.goal_text()));
        self.insert_value(spec, count as f64, events);
    }

    /// The worst of a number of samples: a line of the table, and a figure.
    pub fn worst(&mut self, spec: FigureSpec<'_>, worst: f64, samples: usize) {
        self.row(spec.label, &format!("{worst:8.2} {}{}", spec.unit, spec.goal_text()));
        self.insert_value(spec, worst, samples);
    }

    fn insert_value(&mut self, spec: FigureSpec<'_>, value: f64, samples: usize) {
        let figure = Figure::from_samples(spec.name, spec.unit, spec.better, &vec![0.0; samples]);
        self.insert(figure.with_value(value));
    }

    /// The quantiles of samples, as far as their number permits: one line, and the figures `NAME_p50`, `NAME_p90`,
    /// `NAME_p99` and `NAME_max`.
    pub fn quantiles(&mut self, spec: FigureSpec<'_>, samples: &[f64]) {
        self.row(spec.label, &format!("{} {}{}", quantiles_text(samples), spec.unit, spec.goal_text()));
        self.insert(spec.with_suffix("p50", samples));
        for (suffix, share) in QUANTILES {
            if supports(share, samples.len()) {
                let value = percentile(samples, share).unwrap_or_default();
                self.insert(spec.with_suffix(suffix, samples).with_value(value));
            }
        }
        let max = samples.iter().copied().reduce(f64::max);
        self.figures.extend(max.map(|max| spec.with_suffix("max", samples).with_value(max)).map(by_name));
    }

    /// The value of a figure, if it has one.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.value
    }

    fn insert(&mut self, figure: Figure) {
        self.figures.extend([by_name(figure)]);
    }

    /// The table.
    pub fn table(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The file of figures, with those of an `earlier` file that this report does not have.
    pub fn json_over(&self, earlier: &str) -> String {
        let mut figures = figures::read(earlier);
        figures.extend(self.figures.clone());
        figures::write(&figures)
    }
}

/// The reported quantiles above the median.
const QUANTILES: [(&str, f64); 2] = [("p90", 0.9), ("p99", 0.99)];

fn by_name(figure: Figure) -> (String, Figure) {
    (figure.name.clone(), figure)
}

/// The quantiles of samples as a row shows them, as far as their number permits.
pub fn quantiles_text(samples: &[f64]) -> String {
    let Some(Distribution { median, max, .. }) = Distribution::from_values(samples) else {
        return "       - (no samples)".to_owned();
    };
    let mut text = format!("p50 {median:7.1}");
    for (name, share) in QUANTILES.into_iter().filter(|(_, share)| supports(*share, samples.len())) {
        text += &format!("  {name} {:7.1}", percentile(samples, share).unwrap_or_default());
    }
    text + &format!("  max {max:7.1}{}", remark(samples.len()))
}

/// The median of samples as a row shows it, with the range of at least [`SPREAD_SAMPLES`].
pub fn median_text(samples: &[f64]) -> String {
    let Some(Distribution { median, min, max }) = Distribution::from_values(samples) else {
        return "       - (no samples)".to_owned();
    };
    // Only digits that can be compared.
    let digits = if max < 10.0 { 2 } else { usize::from(max < 1000.0) };
    match samples.len() {
        SPREAD_SAMPLES.. => format!("{median:8.digits$}  ({min:.digits$} to {max:.digits$})"),
        few => format!("{median:8.digits$} {}", remark(few)),
    }
}

/// A remark on a small number of samples.
fn remark(samples: usize) -> String {
    match samples {
        1 => " (single)".to_owned(),
        SPREAD_SAMPLES.. => String::new(),
        few => format!(" ({few} samples)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_and_a_file_of_figures() {
        let mut report = Report::default();
        report.part("Bulk");
        report.distribution("rate", &[1234.5, 1000.0, 2000.0, 1234.5, 1234.5], "1/s");
        report.part("Ratio");
        let spec = FigureSpec::higher("bulk_ratio_1k", "ours to theirs", "ratio").goal("0.80 or more");
        report.measure(spec, &[0.91236, 0.8, 1.0, 0.9, 0.95]);
        report.measure(FigureSpec::lower("memory_mib", "memory", "MiB"), &[12.25]);
        report.count(FigureSpec::lower("restart_writes", "writes", "writes").goal("0"), 3, 2);
        let until = FigureSpec::lower("outage_ms", "outage", "ms");
        report.measure_until(until, &[Sample::Measured(1.0), Sample::Censored(180_000.0)]);
        let table = [
            "Bulk",
            "  rate                                                           1234  (1000 to 2000) 1/s",
            "",
            "Ratio",
            "  ours to theirs                                                 0.91  (0.80 to 1.00) ratio  goal 0.80 or more",
            "  memory                                                         12.2  (single) MiB",
            "  writes                                                            3 writes  goal 0",
            "  outage                                                     censored: not over after 180000 ms",
            "",
        ];
        assert_eq!(report.table(), table.join("\n"));
        let figures = figures::read(&report.json_over(""));
        let of = |name: &str| figures.get(name).map(|figure| (figure.value, figure.samples, figure.spread));
        assert_eq!(of("bulk_ratio_1k"), Some((Some(0.9124), 5, Some([0.8, 1.0]))));
        assert_eq!(of("memory_mib"), Some((Some(12.25), 1, None)));
        assert_eq!(of("restart_writes"), Some((Some(3.0), 2, None)));
        assert_eq!(of("outage_ms"), Some((None, 2, None)));
        assert_eq!(report.value("memory_mib"), Some(12.25));
    }

    #[test]
    fn quantiles_are_reported_as_far_as_samples_permit() {
        for (samples, text, names) in [
            (1, "p50     1.0  max     1.0 (single)", &["x_max", "x_p50"][..]),
            (8, "p50     4.5  max     8.0", &["x_max", "x_p50"]),
            (10, "p50     5.5  p90     9.0  max    10.0", &["x_max", "x_p50", "x_p90"]),
            (99, "p50    50.0  p90    90.0  max    99.0", &["x_max", "x_p50", "x_p90"]),
            (100, "p50    50.5  p90    90.0  p99    99.0  max   100.0", &["x_max", "x_p50", "x_p90", "x_p99"]),
        ] {
            let values: Vec<f64> = (1..=samples).map(f64::from).collect();
            assert_eq!(quantiles_text(&values), text);
            let mut report = Report::default();
            report.quantiles(FigureSpec::lower("x", "x", "ms"), &values);
            let figures = figures::read(&report.json_over(""));
            assert_eq!(figures.keys().collect::<Vec<_>>(), names, "{samples}");
        }
    }

    #[test]
    fn earlier_figures_stay_unless_replaced() {
        let report = |name: &str, value: f64| {
            let mut report = Report::default();
            report.measure(FigureSpec::lower(name, "", "ms"), &[value]);
            report
        };
        let earlier = report("other", 1.0).json_over(&report("runs", 100.0).json_over(""));
        let values = |text: &str| -> Vec<_> {
            figures::read(text).into_values().map(|figure| (figure.name, figure.value)).collect()
        };
        for (earlier, expected) in [
            ("", &[("runs".to_owned(), Some(8.0))][..]),
            ("half of a f", &[("runs".to_owned(), Some(8.0))]),
            (&earlier, &[("other".to_owned(), Some(1.0)), ("runs".to_owned(), Some(8.0))]),
        ] {
            assert_eq!(values(&report("runs", 8.0).json_over(earlier)), expected, "{earlier:?}");
        }
    }
}
