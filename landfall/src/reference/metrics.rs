//! The metrics, from what controller and agent export.

use std::collections::BTreeMap;

use super::markdown::{code, table};

pub(super) fn section() -> String {
    let controller = controller::Metrics::empty_exposition().expect("text");
    let agent = agent::Metrics::empty_exposition().expect("text");
    format!(
        "## Metrics\n\n### Metrics of controllers\n\n{}\n### Metrics of agents\n\n{}",
        describe(&controller),
        describe(&agent)
    )
}

/// The metrics of a text in the OpenMetrics format.
fn describe(exposition: &str) -> String {
    let mut metrics = BTreeMap::<&str, (&str, &str)>::new();
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            metrics.entry(name).or_default().1 = help.trim_end_matches('.');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            metrics.entry(name).or_default().0 = kind;
        }
    }
    let suffix = |kind: &str| match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let rows = metrics
        .into_iter()
        .map(|(name, (kind, help))| [code(&format!("{name}{}", suffix(kind))), kind.to_owned(), help.to_owned()]);
    table(["metric", "type", "meaning"], rows)
}
