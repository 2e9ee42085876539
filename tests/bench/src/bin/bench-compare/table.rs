//! The table of a comparison, and the advice below it. Pure.

use bench::figures::{Better, Figure, Mark};

use crate::comparison::{Outcome, Row};

/// The lines of one benchmark: a head, and a line for each figure.
pub fn table(benchmark: &str, rows: &[Row<'_>]) -> String {
    let head = format!("{benchmark:44} {:>24} {:>24} {:>7} {:>8}\n", "accepted", "now", "change", "limit");
    head + &rows.iter().map(line).collect::<String>()
}

fn line(row: &Row<'_>) -> String {
    let unit = row.measured.or(row.accepted.map(|entry| &entry.figure)).map_or("", |figure| &figure.unit);
    let label = format!("{} ({unit})", row.name);
    let accepted = figure_text(row.accepted.map(|entry| &entry.figure));
    let (now, change) =
        (figure_text(row.measured), row.change.map(|change| format!("{change:.2}")).unwrap_or_default());
    let marks: String = row.measured.into_iter().flat_map(|figure| &figure.marks).map(mark_text).collect();
    let text =
        format!("  {label:42} {accepted:>24} {now:>24} {change:>7} {:>8}  {}{marks}", limit(row), word(row.outcome));
    format!("{}\n", text.trim_end())
}

/// The change that a figure may have: `≤ 1.25`.
fn limit(row: &Row<'_>) -> String {
    let Some(entry) = row.accepted else { return String::new() };
    match (entry.tolerance, entry.figure.better) {
        (Some(tolerance), Better::Lower) => format!("≤ {tolerance:.2}"),
        (Some(tolerance), Better::Higher) => format!("≥ {:.2}", 1.0 / tolerance),
        (None, _) => String::new(),
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Same => "ok",
        Outcome::Better => "better",
        Outcome::Worse => "WORSE",
        Outcome::Missing => "MISSING",
        Outcome::OtherMeaning => "OTHER MEANING",
        Outcome::Incomplete => "INCOMPLETE",
        Outcome::New => "new",
        Outcome::NotCompared => "not compared",
    }
}

fn mark_text(mark: &Mark) -> &'static str {
    match mark {
        Mark::Censored => ", censored",
        Mark::Single => ", single",
    }
}

/// The value and its spread.
fn figure_text(figure: Option<&Figure>) -> String {
    let Some(figure) = figure else { return "-".to_owned() };
    let Some(value) = figure.value else {
        return if figure.marks.contains(&Mark::Censored) { "censored".to_owned() } else { "-".to_owned() };
    };
    let spread = figure.spread.map(|[min, max]| format!(" ({} to {})", number(min), number(max)));
    number(value) + &spread.unwrap_or_default()
}

/// The value with three significant digits.
fn number(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    let digits = if magnitude.is_finite() { (2.0 - magnitude).clamp(0.0, 6.0) as usize } else { 0 };
    format!("{value:.digits$}")
}

/// The failing figures of a benchmark, each with its reason and a next step.
pub fn advice(benchmark: &str, rows: &[Row<'_>]) -> String {
    let failing = rows.iter().filter(|row| row.outcome.fails());
    failing.map(|row| format!("{benchmark} {}: {}\n", row.name, advice_on(row))).collect()
}

fn advice_on(row: &Row<'_>) -> String {
    let reason = row.accepted.map_or("", |entry| &entry.reason);
    match row.outcome {
        Outcome::Worse => {
            let change =
                row.change.map_or("has no value now".to_owned(), |change| format!("changed to {change:.2} times"));
            format!(
                "{change}, permitted {} ({reason}). Run this benchmark again on an idle machine. If the change is \
                 intended, accept it, and give the reason in the commit",
                limit(row)
            )
        }
        Outcome::Missing => "was accepted, and not measured. If its benchmark failed, run it again. If the figure no \
            longer exists, remove its entry"
            .to_owned(),
        Outcome::OtherMeaning => {
            "has another unit or direction than the accepted figure. Give the new figure another name".to_owned()
        }
        Outcome::Incomplete => "has no tolerance. Add `tolerance` and `reason` to its entry".to_owned(),
        Outcome::Same | Outcome::Better | Outcome::New | Outcome::NotCompared => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accepted::AcceptedFigure;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (0.00123, "0.00123"),
            (0.9876, "0.988"),
            (1.0, "1.00"),
            (-12.34, "-12.3"),
            (134.4, "134"),
            (5432.1, "5432"),
        ] {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn a_table_shows_spread_limit_outcome_and_marks() {
        let before = Figure::from_samples("bulk", "ratio", Better::Higher, &[0.9, 1.0, 1.1, 1.0, 1.0]);
        let now = Figure::from_samples("bulk", "ratio", Better::Higher, &[0.5]);
        let accepted = AcceptedFigure { figure: before, tolerance: Some(1.25), reason: "pairs differ".to_owned() };
        let worse = Row {
            name: "bulk",
            accepted: Some(&accepted),
            measured: Some(&now),
            change: Some(0.5),
            outcome: Outcome::Worse,
        };
        let censored = now.clone().without_value();
        let new = Row { name: "peer", accepted: None, measured: Some(&censored), change: None, outcome: Outcome::New };
        let missing = Row { measured: None, change: None, outcome: Outcome::Missing, ..worse.clone() };
        let rows = [worse, new, missing];
        let columns = |name, accepted, now, change, limit, rest| {
            format!("  {name:42} {accepted:>24} {now:>24} {change:>7} {limit:>8}  {rest}\n")
        };
        let expected = [
            format!("{:44} {:>24} {:>24} {:>7} {:>8}\n", "controller", "accepted", "now", "change", "limit"),
            columns("bulk (ratio)", "1.00 (0.900 to 1.10)", "0.500", "0.50", "≥ 0.80", "WORSE, single"),
            columns("peer (ratio)", "-", "censored", "", "", "new, censored, single"),
            columns("bulk (ratio)", "1.00 (0.900 to 1.10)", "-", "", "≥ 0.80", "MISSING"),
        ];
        assert_eq!(table("controller", &rows), expected.concat());
        let advice = advice("controller", &rows);
        let lines: Vec<_> = advice.lines().collect();
        assert!(
            lines[0].starts_with("controller bulk: changed to 0.50 times, permitted ≥ 0.80 (pairs differ)."),
            "{advice}"
        );
        assert!(lines[1].starts_with("controller bulk: was accepted, and not measured."), "{advice}");
        assert_eq!(lines.len(), 2, "a new figure needs no advice: {advice}");
    }
}
