//! The durations of tests: as JSON for comparisons between runs, and the slowest ones for people. Pure.

use std::fmt::Write;
use std::time::Duration;

/// How many of the slowest tests the summary names.
const SLOWEST: usize = 10;

/// How long one test took: a test executable without clusters, an end-to-end test, or a scene of one.
#[derive(Clone, Debug, PartialEq)]
pub struct TestDuration {
    /// `dataplane/kernel`, `e2e::forwarding::a_test` or `e2e::forwarding::a_test/a_scene`.
    pub name: String,
    pub seconds: f64,
    /// Whether its scenes have durations of their own.
    pub has_scenes: bool,
}

impl TestDuration {
    pub fn new(name: String, took: Duration) -> Self {
        Self { name, seconds: took.as_secs_f64(), has_scenes: false }
    }
}

/// The duration of an end-to-end test, and those of the scenes in its output.
pub fn with_scenes(name: &str, took: Duration, output: &str) -> Vec<TestDuration> {
    let mut all = vec![TestDuration::new(name.to_owned(), took)];
    for (scene, seconds) in output.lines().filter_map(scene_line) {
        all.push(TestDuration { name: format!("{name}/{scene}"), seconds, has_scenes: false });
    }
    all[0].has_scenes = all.len() > 1;
    all
}

/// Reads a line of `e2e::scenes`: `scene NAME ... ok (1.2 s)`, or `scene NAME ... FAILED (1.2 s): MESSAGE`.
fn scene_line(line: &str) -> Option<(&str, f64)> {
    let (name, rest) = line.strip_prefix("scene ")?.split_once(" ... ")?;
    let rest = rest.strip_prefix("ok (").or_else(|| rest.strip_prefix("FAILED ("))?;
    let (seconds, _) = rest.split_once(" s)")?;
    Some((name, seconds.parse().ok()?))
}

/// All durations as JSON, one per line. Names have no characters that JSON escapes.
pub fn json(durations: &[TestDuration]) -> String {
    let line = |it: &TestDuration| format!("  {{\"name\": \"{}\", \"seconds\": {:.1}}}", it.name, it.seconds);
    format!("[\n{}\n]\n", durations.iter().map(line).collect::<Vec<_>>().join(",\n"))
}

/// The slowest tests, one per line. A test with scenes is represented by its scenes.
pub fn slowest(durations: &[TestDuration]) -> String {
    let mut parts: Vec<_> = durations.iter().filter(|it| !it.has_scenes).collect();
    parts.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    parts.iter().take(SLOWEST).fold(String::new(), |mut text, it| {
        let _ = writeln!(text, "{:15.1} s  {}", it.seconds, it.name);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_have_durations_of_their_own() {
        let output = "scene first ... ok (1.5 s)\n\
            scene second ... FAILED (30.0 s): waited 30 s for a reply ... ok (1 s)\n\
            scene third: logs and objects are in /x\n";
        let scenes = with_scenes("e2e::keys::f", Duration::from_millis(32_000), output);
        let duration = |name: &str, seconds, has_scenes| TestDuration { name: name.to_owned(), seconds, has_scenes };
        let expected = [
            duration("e2e::keys::f", 32.0, true),
            duration("e2e::keys::f/first", 1.5, false),
            duration("e2e::keys::f/second", 30.0, false),
        ];
        assert_eq!(scenes, expected);
        assert_eq!(slowest(&scenes), "           30.0 s  e2e::keys::f/second\n            1.5 s  e2e::keys::f/first\n");
        let json = json(&scenes[1..]);
        assert_eq!(
            json,
            "[\n  {\"name\": \"e2e::keys::f/first\", \"seconds\": 1.5},\n  \
             {\"name\": \"e2e::keys::f/second\", \"seconds\": 30.0}\n]\n"
        );
    }

    #[test]
    fn only_the_slowest_ten_are_listed() {
        let durations: Vec<_> =
            (0..30).map(|number| TestDuration::new(format!("t{number}"), Duration::from_secs(number))).collect();
        let lines = slowest(&durations);
        assert_eq!((lines.lines().count(), lines.lines().last()), (10, Some("           20.0 s  t20")));
    }
}
