//! A figure as programs read it, and the file with all figures of a benchmark. Pure.
//!
//! ```json
//! {"figures": [
//!   {"name": "cold_start_10k_s", "value": 0.9, "unit": "s", "samples": 5, "spread": [0.8, 1.1], "better": "lower",
//!    "marks": []},
//!   {"name": "kube_proxy_dead_node_ms", "value": null, "unit": "ms", "samples": 1, "spread": null, "better": "lower",
//!    "marks": ["censored", "single"]}
//! ]}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::distribution::Distribution;

/// The least number of samples whose range is reported.
pub const SPREAD_SAMPLES: usize = 5;

/// Which of two values of a figure is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
}

/// A reason to be careful with a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// A measurement ended before the awaited event. The figure has no value.
    Censored,
    /// The figure is one sample.
    Single,
}

/// A figure in the file of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    /// The median of the samples, or what the name states. `None` if a sample is censored.
    pub value: Option<f64>,
    pub unit: String,
    /// The number of measurements, or of the events that a count is about.
    pub samples: usize,
    /// The least and the greatest sample, of at least [`SPREAD_SAMPLES`].
    pub spread: Option<[f64; 2]>,
    pub better: Better,
    pub marks: Vec<Mark>,
}

impl Figure {
    /// The figure of these samples: their median and range, rounded to four decimal places.
    pub fn from_samples(name: &str, unit: &str, better: Better, samples: &[f64]) -> Self {
        let found = Distribution::from_values(samples);
        let spread = found.filter(|_| samples.len() >= SPREAD_SAMPLES);
        Self {
            name: name.to_owned(),
            value: found.map(|found| round(found.median)),
            unit: unit.to_owned(),
            samples: samples.len(),
            spread: spread.map(|found| [round(found.min), round(found.max)]),
            better,
            marks: if samples.len() == 1 { vec![Mark::Single] } else { Vec::new() },
        }
    }

    /// Removes value and range: one of the samples is censored.
    #[must_use]
    pub fn without_value(mut self) -> Self {
        self.marks.insert(0, Mark::Censored);
        Self { value: None, spread: None, ..self }
    }

    /// Replaces the value, for a figure that is not the median of its samples.
    #[must_use]
    pub fn with_value(self, value: f64) -> Self {
        Self { value: Some(round(value)), spread: None, ..self }
    }
}

/// The figures of a file by name. An unreadable file has none.
pub fn read(text: &str) -> BTreeMap<String, Figure> {
    #[derive(Deserialize)]
    struct File {
        figures: Vec<Figure>,
    }
    let figures = serde_json::from_str(text).map(|file: File| file.figures).unwrap_or_default();
    figures.into_iter().map(|figure| (figure.name.clone(), figure)).collect()
}

/// The file with these figures.
pub fn write(figures: &BTreeMap<String, Figure>) -> String {
    let figures: Vec<&Figure> = figures.values().collect();
    let file: Value = json!({"figures": figures});
    format!("{file:#}\n")
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_samples_have_no_spread_and_one_is_marked() {
        for (samples, value, spread, marks) in [
            (&[2.00004][..], Some(2.0), None, &[Mark::Single][..]),
            (&[1.0, 4.0, 2.0, 3.0], Some(2.5), None, &[]),
            (&[1.0, 5.0, 2.0, 3.0, 4.0], Some(3.0), Some([1.0, 5.0]), &[]),
            (&[], None, None, &[]),
        ] {
            let found = Figure::from_samples("x_ms", "ms", Better::Lower, samples);
            assert_eq!(found.samples, samples.len());
            assert_eq!((found.value, found.spread, &*found.marks), (value, spread, marks), "{samples:?}");
        }
    }

    #[test]
    fn a_censored_figure_has_no_value() {
        let found = Figure::from_samples("x_ms", "ms", Better::Lower, &[1.0]).without_value();
        assert_eq!((found.value, found.spread), (None, None));
        assert_eq!(found.marks, [Mark::Censored, Mark::Single]);
    }

    #[test]
    fn a_written_file_is_read_back() {
        let figure = Figure::from_samples("rate", "1/s", Better::Higher, &[3.0]);
        let figures = BTreeMap::from([("rate".to_owned(), figure)]);
        let text = write(&figures);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let expected = json!({"figures": [{
            "name": "rate", "value": 3.0, "unit": "1/s", "samples": 1, "spread": null, "better": "higher",
            "marks": ["single"],
        }]});
        assert_eq!(json, expected);
        assert_eq!(read(&text), figures);
        assert_eq!(read("half of a f"), BTreeMap::new());
    }
}
