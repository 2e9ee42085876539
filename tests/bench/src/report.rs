//! The results of a benchmark: a table for people, and one flat JSON object of numbers for programs. Pure.

pub mod distribution;
pub mod progress;

use serde_json::{Map, Value, json};

use crate::distribution::Distribution;

/// The results so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    figures: Map<String, Value>,
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

    /// A line with a median and its range, in `unit`.
    pub fn distribution(&mut self, what: &str, values: Distribution, unit: &str) {
        self.row(what, &format!("{} {unit}", text(values)));
    }

    /// A ratio: a line of the table beside its bar, and three figures.
    pub fn ratio(&mut self, key: &str, what: &str, ratio: Distribution, bar: &str) {
        self.row(what, &format!("{}  goal {bar}", text(ratio)));
        self.figure(key, ratio.median);
        self.figure(&format!("{key}_min"), ratio.min);
        self.figure(&format!("{key}_max"), ratio.max);
    }

    /// Like [`Report::ratio`], with a unit and one figure: the median.
    pub fn measurement(&mut self, key: &str, what: &str, found: Distribution, unit_and_bar: (&str, &str)) {
        let (unit, bar) = unit_and_bar;
        self.row(what, &format!("{} {unit}  goal {bar}", text(found)));
        self.figure(key, found.median);
    }

    /// A number already in the JSON object.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.figures.get(key)?.as_f64()
    }

    /// Sets one number of the JSON object, rounded to four decimal places.
    pub fn figure(&mut self, key: &str, value: f64) {
        self.figures.insert(key.to_owned(), json!((value * 1e4).round() / 1e4));
    }

    /// The table.
    pub fn table(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The flat JSON object, with the figures of `earlier` that this report does not have. An unreadable `earlier` has none.
    pub fn json_over(&self, earlier: &str) -> String {
        let mut figures: Map<String, Value> = serde_json::from_str(earlier).unwrap_or_default();
        figures.extend(self.figures.clone());
        format!("{:#}\n", Value::Object(figures))
    }
}

fn text(spread: Distribution) -> String {
    let Distribution { median, min, max } = spread;
    // Only digits that can be compared.
    let digits = if max < 10.0 { 2 } else { usize::from(max < 1000.0) };
    format!("{median:8.digits$}  ({min:.digits$} to {max:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_and_a_flat_object() {
        let mut report = Report::default();
        report.part("Bulk");
        report.distribution("rate", Distribution { median: 1234.5, min: 1000.0, max: 2000.0 }, "1/s");
        report.part("Ratio");
        report.ratio(
            "bulk_ratio_1k",
            "ours to theirs",
            Distribution { median: 0.91236, min: 0.8, max: 1.0 },
            "0.80 or more",
        );
        report.figure("restart_writes", 0.0);
        let table = [
            "Bulk",
            "  rate                                                           1234  (1000 to 2000) 1/s",
            "",
            "Ratio",
            "  ours to theirs                                                 0.91  (0.80 to 1.00)  goal 0.80 or more",
            "",
        ];
        assert_eq!(report.table(), table.join("\n"));
        let json: Value = serde_json::from_str(&report.json_over("")).expect("JSON");
        let expected = json!({
            "bulk_ratio_1k": 0.9124, "bulk_ratio_1k_min": 0.8, "bulk_ratio_1k_max": 1.0, "restart_writes": 0.0,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn earlier_figures_stay_unless_replaced() {
        let mut report = Report::default();
        report.figure("runs", 8.0);
        for (earlier, expected) in [
            ("", json!({"runs": 8.0})),
            ("half of a f", json!({"runs": 8.0})),
            (r#"{"runs": 100, "idle_api_writes": 0}"#, json!({"runs": 8.0, "idle_api_writes": 0})),
        ] {
            let json: Value = serde_json::from_str(&report.json_over(earlier)).expect("JSON");
            assert_eq!(json, expected, "{earlier:?}");
        }
    }
}
