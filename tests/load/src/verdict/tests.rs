use super::*;
use crate::control::Wakeup;
use crate::record::Try;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const BOUNDS: Bounds = Bounds {
    loss: 0.001,
    gap: Duration::from_millis(50),
    slow_after: Duration::from_millis(20),
    slow: 0,
    tries: 1000,
    lateness: Duration::from_millis(30),
};

/// 1,000 tries in a second, each answered after 1 ms, changed by `change`.
fn record(change: impl Fn(&mut Try)) -> Record {
    let tries = (0..1000).map(|n| {
        let mut one = Try { started: ms(n), latency: ms(1), outcome: Outcome::Ok, server: Some("a".to_owned()) };
        change(&mut one);
        one
    });
    Record { from: ms(0), to: ms(1001), interval: ms(1), tries: tries.collect() }
}

/// A hole of `length` that begins at 100 ms.
fn hole(length: u64) -> Record {
    record(|one| {
        if one.started >= ms(100) && one.started < ms(100 + length) {
            one.outcome = Outcome::TimedOut;
        }
    })
}

fn late(at: u64, late: u64) -> Control {
    Control { wakeups: vec![Wakeup { at: ms(at), late: ms(late) }], tries: None }
}

/// A short form of a verdict, for tables.
fn short(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Passed => "passed".to_owned(),
        Verdict::MachineLate(_) => "late".to_owned(),
        Verdict::Failed(reasons) => {
            let kind = |reason: &String| {
                let kinds = [
                    ("lost at the first try", "loss"),
                    ("no answer", "gap"),
                    ("later than", "slow"),
                    ("of at least", "few"),
                    ("were not sent", "not sent"),
                    ("in all 3 runs", "always late"),
                ];
                kinds.iter().find(|(text, _)| reason.contains(text)).map_or("unknown", |(_, kind)| kind)
            };
            reasons.iter().map(kind).collect::<Vec<_>>().join(", ")
        }
    }
}

#[test]
fn a_bound_is_corrected_by_lateness_at_its_time() {
    let slow = |latency| {
        record(move |one| {
            if one.started == ms(500) {
                one.latency = ms(latency);
            }
        })
    };
    let lost = |count: u64, outcome| {
        record(move |one| {
            // Far from each other, so that no gap is long.
            if one.started < ms(100 * count) && one.started.as_millis() % 100 == 0 {
                one.outcome = outcome;
            }
        })
    };
    let calm = Control::default();
    let no_loss_bound = Bounds { loss: 1.0, ..BOUNDS };
    for (why, record, control, bounds, expected) in [
        ("no fault", record(|_| {}), calm.clone(), BOUNDS, "passed"),
        ("one of a thousand", lost(1, Outcome::TimedOut), calm.clone(), BOUNDS, "passed"),
        ("two of a thousand", lost(2, Outcome::TimedOut), calm.clone(), BOUNDS, "loss"),
        ("answered after a retransmission", lost(2, Outcome::Repeated), calm.clone(), BOUNDS, "loss"),
        ("the prober fails", lost(1, Outcome::NotSent), calm.clone(), BOUNDS, "not sent"),
        ("a short hole", hole(50), calm.clone(), no_loss_bound, "passed"),
        ("a long hole", hole(60), calm.clone(), no_loss_bound, "gap"),
        ("late at that time", hole(60), late(130, 15), no_loss_bound, "passed"),
        ("late at another time", hole(60), late(800, 15), no_loss_bound, "gap"),
        ("not late enough", hole(60), late(130, 5), no_loss_bound, "gap"),
        ("later than the limit", hole(60), late(130, 31), no_loss_bound, "late"),
        ("late without a fault", record(|_| {}), late(130, 31), BOUNDS, "late"),
        ("late with much loss", hole(900), late(130, 31), BOUNDS, "late"),
        ("a slow answer", slow(25), calm.clone(), BOUNDS, "slow"),
        ("slow while late", slow(25), late(510, 8), BOUNDS, "passed"),
        ("slow, late elsewhere", slow(25), late(300, 8), BOUNDS, "slow"),
        ("too few", Record::default(), calm.clone(), BOUNDS, "few, loss"),
    ] {
        let verdict = verdict(&record, &control, &bounds);
        assert_eq!(short(&verdict), expected, "{why}: {verdict:?}");
    }
}

#[test]
fn a_control_that_loses_tries_shows_nothing() {
    for (why, tries, expected) in [
        ("all answered", record(|_| {}), "passed"),
        ("a hole of its own", hole(10), "late"),
        ("no try", Record::default(), "late"),
    ] {
        let control = Control { wakeups: Vec::new(), tries: Some(tries) };
        assert_eq!(short(&verdict(&record(|_| {}), &control, &BOUNDS)), expected, "{why}");
    }
}

#[test]
fn a_late_machine_precedes_broken_bounds() {
    let failed = || Verdict::Failed(vec!["a".to_owned()]);
    let late = || Verdict::MachineLate("b".to_owned());
    for (left, right, expected) in [
        (Verdict::Passed, Verdict::Passed, Verdict::Passed),
        (Verdict::Passed, failed(), failed()),
        (failed(), Verdict::Passed, failed()),
        (failed(), failed(), Verdict::Failed(vec!["a".to_owned(), "a".to_owned()])),
        (failed(), late(), late()),
        (late(), Verdict::Passed, late()),
    ] {
        assert_eq!(left.clone().and(right.clone()), expected, "{left:?} and {right:?}");
    }
    assert_eq!(Verdict::Passed.add_reasons(vec!["a".to_owned()]), failed());
    assert_eq!(late().add_reasons(vec!["a".to_owned()]), late());
}

#[tokio::test]
async fn a_machine_that_is_always_late_never_passes() {
    let late = || Verdict::MachineLate("busy".to_owned());
    for (verdicts, expected, runs) in [
        (vec![Verdict::Passed], "passed", 1),
        (vec![late(), Verdict::Passed], "passed", 2),
        (vec![late(), Verdict::Failed(vec!["no answer".to_owned()]), Verdict::Passed], "gap", 2),
        (vec![late(), late(), late(), Verdict::Passed], "always late", 3),
    ] {
        let (mut left, mut done) = (verdicts.into_iter(), 0);
        let verdict = repeat_while_late(3, async || {
            done += 1;
            Ok(left.next().expect("a verdict"))
        })
        .await
        .expect("no run has an error");
        assert_eq!((short(&verdict).as_str(), done), (expected, runs));
        assert!(verdict.into_result().is_ok() == (expected == "passed"));
    }
}
