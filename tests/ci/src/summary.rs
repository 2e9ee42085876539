//! The last lines of a run. Pure.

use std::time::Duration;

use crate::verdict::Counts;

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageResult {
    Passed,
    /// Tests failed, and all of them passed alone.
    Flaky,
    Failed,
    /// A stage that this stage needs has failed.
    NotRun,
}

/// One line of the summary.
#[derive(Clone, Debug)]
pub struct StageSummary {
    pub title: &'static str,
    pub result: StageResult,
    pub took: Duration,
    pub counts: Counts,
}

/// Whether a stage passes.
pub fn has_passed(result: StageResult) -> bool {
    matches!(result, StageResult::Passed | StageResult::Flaky)
}

/// Whether the whole run passes.
pub fn passes(stages: &[StageSummary]) -> bool {
    stages.iter().all(|stage| has_passed(stage.result))
}

/// The summary: each stage, the wall time, the evidence, and last the line `N passed, N failed, N skipped`.
pub fn render(stages: &[StageSummary], wall_time: Duration, evidence: &str) -> String {
    let mut counts = Counts::default();
    let mut text = "\n=== summary\n".to_owned();
    for stage in stages {
        counts += stage.counts;
        let result = match stage.result {
            StageResult::Passed => "passed",
            StageResult::Flaky => "FLAKY",
            StageResult::Failed => "FAILED",
            StageResult::NotRun => "not run",
        };
        text += &format!("{result:8} {:6} s  {}\n", stage.took.as_secs(), stage.title);
    }
    text += &format!("evidence: {evidence}\n");
    text += &format!("wall time: {} s\n", wall_time.as_secs());
    text += &format!("{} passed, {} failed, {} skipped\n", counts.passed, counts.failed, counts.skipped);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_passes_unless_a_stage_failed_or_did_not_run() {
        use StageResult::{Failed, Flaky, NotRun, Passed};
        for (results, expected) in [
            ([Passed, Passed], true),
            ([Passed, Flaky], true),
            ([Failed, Passed], false),
            ([Passed, Failed], false),
            ([Passed, NotRun], false),
        ] {
            let stage = |result| StageSummary { title: "", result, took: Duration::ZERO, counts: Counts::default() };
            assert_eq!(passes(&results.map(stage)), expected, "{results:?}");
        }
    }

    #[test]
    fn the_counts_of_all_stages_stand_in_the_last_line() {
        let stage = |title, result, seconds, [passed, failed, skipped]: [usize; 3]| StageSummary {
            title,
            result,
            took: Duration::from_secs(seconds),
            counts: Counts { passed, failed, skipped },
        };
        let stages = [
            stage("lints", StageResult::Failed, 61, [0; 3]),
            stage("unit tests", StageResult::Passed, 300, [700, 0, 1]),
            stage("end-to-end tests", StageResult::Flaky, 1_000, [40, 0, 0]),
        ];
        let expected = "\n=== summary\n\
            FAILED       61 s  lints\n\
            passed      300 s  unit tests\n\
            FLAKY      1000 s  end-to-end tests\n\
            evidence: target/evidence/run-7\n\
            wall time: 1362 s\n\
            740 passed, 0 failed, 1 skipped\n";
        assert_eq!(render(&stages, Duration::from_secs(1_362), "target/evidence/run-7"), expected);
    }
}
