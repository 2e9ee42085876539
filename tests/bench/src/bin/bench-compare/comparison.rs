//! Measured figures beside accepted ones → the outcome of each. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bench::figures::{Better, Figure, Mark};

use crate::accepted::{Accepted, AcceptedFigure};

/// The outcome of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Within its tolerance.
    Same,
    /// Better by more than its tolerance.
    Better,
    /// Worse by more than its tolerance, or it has no value now.
    Worse,
    /// Accepted, and not measured.
    Missing,
    /// The name has another unit or direction than the accepted one.
    OtherMeaning,
    /// Accepted without a reason for its tolerance.
    Incomplete,
    /// Measured, and never accepted.
    New,
    /// Has no tolerance on purpose.
    NotCompared,
}

impl Outcome {
    /// Whether a figure with it fails the comparison.
    pub fn fails(self) -> bool {
        matches!(self, Self::Worse | Self::Missing | Self::OtherMeaning | Self::Incomplete)
    }
}

/// One row of a comparison: at least one of the two figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    pub name: &'a str,
    pub accepted: Option<&'a AcceptedFigure>,
    pub measured: Option<&'a Figure>,
    /// The measured value divided by the accepted one.
    pub change: Option<f64>,
    pub outcome: Outcome,
}

/// Compares the figures of one benchmark, by name.
pub fn compare<'a>(accepted: &'a Accepted, measured: &'a BTreeMap<String, Figure>) -> Vec<Row<'a>> {
    let names: BTreeSet<&String> = accepted.keys().chain(measured.keys()).collect();
    let rows = names.into_iter().map(|name| {
        let (accepted, measured) = (accepted.get(name), measured.get(name));
        let values = accepted.and_then(|entry| entry.figure.value).zip(measured.and_then(|figure| figure.value));
        let change = values.map(|(before, now)| ratio(before, now));
        Row { name, accepted, measured, change, outcome: outcome(accepted, measured) }
    });
    rows.collect()
}

fn outcome(accepted: Option<&AcceptedFigure>, measured: Option<&Figure>) -> Outcome {
    let (Some(accepted), Some(measured)) = (accepted, measured) else {
        return if accepted.is_some() { Outcome::Missing } else { Outcome::New };
    };
    let before = &accepted.figure;
    if (&before.unit, before.better) != (&measured.unit, measured.better) {
        return Outcome::OtherMeaning;
    }
    if accepted.reason.is_empty() {
        return Outcome::Incomplete;
    }
    let Some(tolerance) = accepted.tolerance else { return Outcome::NotCompared };
    match (before.value, measured.value) {
        (Some(before), Some(now)) => within(ratio(before, now), measured.better, tolerance),
        // The awaited event did not come at all.
        (Some(_), None) => Outcome::Worse,
        (None, Some(_)) if is_censored(before) => Outcome::Better,
        (None, None) if is_censored(before) => Outcome::Same,
        (None, _) => Outcome::New,
    }
}

/// Compares a change with the tolerance.
fn within(change: f64, better: Better, tolerance: f64) -> Outcome {
    let (most, least) = (tolerance, 1.0 / tolerance);
    match (better, change) {
        (Better::Lower, change) if change > most => Outcome::Worse,
        (Better::Lower, change) if change < least => Outcome::Better,
        (Better::Higher, change) if change < least => Outcome::Worse,
        (Better::Higher, change) if change > most => Outcome::Better,
        _ => Outcome::Same,
    }
}

/// Equal values have the ratio 1, also if they are 0.
fn ratio(before: f64, now: f64) -> f64 {
    if (now - before).abs() < f64::EPSILON { 1.0 } else { now / before }
}

fn is_censored(figure: &Figure) -> bool {
    figure.marks.contains(&Mark::Censored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench::figures::Figure;

    fn figure(unit: &str, better: Better, value: f64) -> Figure {
        Figure::from_samples("x", unit, better, &[value])
    }

    fn lower(value: f64) -> Figure {
        figure("ms", Better::Lower, value)
    }

    fn higher(value: f64) -> Figure {
        figure("ms", Better::Higher, value)
    }

    fn accept(figure: Figure, tolerance: Option<f64>) -> AcceptedFigure {
        AcceptedFigure { figure, tolerance, reason: "noise".to_owned() }
    }

    fn absent() -> AcceptedFigure {
        accept(Figure { value: None, ..lower(0.0) }, Some(1.5))
    }

    #[test]
    fn a_figure_is_worse_beyond_its_tolerance() {
        let accepted = |figure| Some(accept(figure, Some(1.25)));
        let incomplete = AcceptedFigure { reason: String::new(), ..accept(lower(1.0), None) };
        for (why, accepted, measured, expected) in [
            ("lower, equal", accepted(lower(100.0)), Some(lower(100.0)), Outcome::Same),
            ("lower, at the tolerance", accepted(lower(100.0)), Some(lower(125.0)), Outcome::Same),
            ("lower, above it", accepted(lower(100.0)), Some(lower(126.0)), Outcome::Worse),
            ("lower, a little better", accepted(lower(100.0)), Some(lower(81.0)), Outcome::Same),
            ("lower, much better", accepted(lower(100.0)), Some(lower(79.0)), Outcome::Better),
            ("higher, at the tolerance", accepted(higher(100.0)), Some(higher(80.0)), Outcome::Same),
            ("higher, below it", accepted(higher(100.0)), Some(higher(79.0)), Outcome::Worse),
            ("higher, much better", accepted(higher(100.0)), Some(higher(126.0)), Outcome::Better),
            ("nothing, and nothing again", accepted(lower(0.0)), Some(lower(0.0)), Outcome::Same),
            ("no longer nothing", accepted(lower(0.0)), Some(lower(1.0)), Outcome::Worse),
            ("nothing instead of all", accepted(higher(100.0)), Some(higher(0.0)), Outcome::Worse),
            ("censored now", accepted(lower(100.0)), Some(lower(1.0).without_value()), Outcome::Worse),
            ("censored before", accepted(lower(1.0).without_value()), Some(lower(100.0)), Outcome::Better),
            ("always censored", accepted(lower(1.0).without_value()), Some(lower(1.0).without_value()), Outcome::Same),
            ("not accepted yet", Some(absent()), Some(lower(1.0)), Outcome::New),
            ("never accepted", None, Some(lower(1.0)), Outcome::New),
            ("not measured", accepted(lower(1.0)), None, Outcome::Missing),
            ("of a rival", Some(accept(lower(1.0), None)), Some(lower(9.0)), Outcome::NotCompared),
            ("without a reason", Some(incomplete), Some(lower(1.0)), Outcome::Incomplete),
            ("another unit", accepted(lower(1.0)), Some(figure("s", Better::Lower, 1.0)), Outcome::OtherMeaning),
            ("another direction", accepted(lower(1.0)), Some(higher(1.0)), Outcome::OtherMeaning),
        ] {
            assert_eq!(outcome(accepted.as_ref(), measured.as_ref()), expected, "{why}");
            let fails = [Outcome::Worse, Outcome::Missing, Outcome::OtherMeaning, Outcome::Incomplete];
            assert_eq!(expected.fails(), fails.contains(&expected), "{why}");
        }
    }

    #[test]
    fn every_name_of_both_sides_has_a_row() {
        let named = |name: &str, value| (name.to_owned(), Figure { name: name.to_owned(), ..lower(value) });
        let entry = |(name, figure)| (name, accept(figure, Some(1.5)));
        let accepted = Accepted::from([entry(named("both", 2.0)), entry(named("gone", 1.0))]);
        let measured = BTreeMap::from([named("both", 3.0), named("new", 1.0)]);
        let rows = compare(&accepted, &measured);
        let seen: Vec<_> = rows.iter().map(|row| (row.name, row.change, row.outcome)).collect();
        let expected =
            [("both", Some(1.5), Outcome::Same), ("gone", None, Outcome::Missing), ("new", None, Outcome::New)];
        assert_eq!(seen, expected);
    }
}
