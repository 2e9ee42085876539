//! Reads the messages of `cargo test --no-run --message-format json`: the executables that it has built. Pure.
//!
//! `ci` starts these executables itself. So one command with one set of features builds all tests, and no dependency is
//! compiled twice.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::libtest::BinaryKind;

/// The beginning of each line in which cargo sends a message to programs. All other lines are for people.
pub const MESSAGE: &str = "{\"reason\":";

/// The folders of the packages whose integration tests start clusters.
const CLUSTER_PACKAGES: [&str; 2] = ["tests/lab", "tests/e2e"];

/// A compiled test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestExecutable {
    /// Name of the cargo target: `life`.
    pub target: String,
    pub kind: BinaryKind,
    pub path: PathBuf,
    /// The folder of its package, in which it runs.
    pub folder: PathBuf,
}

/// The test executables in the output of cargo, sorted by package and target.
pub fn executables(output: &str) -> Vec<TestExecutable> {
    let mut found: Vec<_> = output.lines().filter_map(executable).collect();
    // The order of messages is the order in which the compilers ended.
    found.sort_by(|a, b| (&a.folder, a.kind, &a.target).cmp(&(&b.folder, b.kind, &b.target)));
    found
}

fn executable(line: &str) -> Option<TestExecutable> {
    let line = line.strip_prefix(MESSAGE)?.strip_prefix("\"compiler-artifact\",")?;
    let (_, profile) = line.split_once("\"profile\":{")?;
    if !profile.split('}').next()?.contains("\"test\":true") {
        return None;
    }
    let (_, target) = line.split_once("\"target\":{")?;
    let kind = if target.starts_with("\"kind\":[\"test\"]") { BinaryKind::Integration } else { BinaryKind::Unit };
    let folder = Path::new(text_field(line, "manifest_path")?).parent()?.to_owned();
    let path = PathBuf::from(text_field(line, "executable")?);
    Some(TestExecutable { target: text_field(target, "name")?.to_owned(), kind, path, folder })
}

/// The value of the first field of this name. Paths and names here have no escaped characters.
fn text_field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\":\""))?;
    rest.split('"').next()
}

impl TestExecutable {
    /// Whether its tests start clusters.
    pub fn needs_clusters(&self) -> bool {
        self.kind == BinaryKind::Integration && CLUSTER_PACKAGES.iter().any(|folder| self.folder.ends_with(folder))
    }

    /// Its name in a list of all: the folder of its package, and its target.
    pub fn name(&self) -> String {
        let package = self.folder.file_name().unwrap_or_default().display().to_string();
        if self.kind == BinaryKind::Unit && package == self.target {
            package
        } else {
            format!("{package}/{}", self.target)
        }
    }

    /// The command that runs it, as cargo would.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }

    /// The line that cargo prints before the output of a test binary.
    pub fn header(&self) -> String {
        let source = if self.kind == BinaryKind::Unit { "unittests " } else { "" };
        format!("     Running {source}{} ({})\n", self.folder.join(&self.target).display(), self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of cargo about a target of `tests/e2e`, shortened.
    fn message(kind: &str, name: &str, is_test: bool, executable: &str) -> String {
        format!(
            "{{\"reason\":\"compiler-artifact\",\"package_id\":\"path+file:///r/tests/e2e#0.1.0\",\
             \"manifest_path\":\"/r/tests/e2e/Cargo.toml\",\"target\":{{\"kind\":[\"{kind}\"],\
             \"crate_types\":[\"bin\"],\"name\":\"{name}\",\"src_path\":\"/r/tests/e2e/x.rs\",\"doctest\":false,\"test\":true}},\
             \"profile\":{{\"opt_level\":\"0\",\"debuginfo\":1,\"test\":{is_test}}},\"features\":[],\
             \"filenames\":[\"/r/x\"],\"executable\":{executable},\"fresh\":true}}\n"
        )
    }

    #[test]
    fn only_test_executables_are_read_from_messages() {
        let output = [
            "   Compiling e2e v0.1.0\n",
            &message("test", "life", true, "\"/r/target/debug/deps/life-0f\""),
            &message("lib", "e2e", false, "null"),
            &message("bin", "first-light", false, "\"/r/target/debug/first-light\""),
            &message("lib", "e2e", true, "\"/r/target/debug/deps/e2e-0f\""),
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        ];
        let executable = |target: &str, kind, path: &str| TestExecutable {
            target: target.to_owned(),
            kind,
            path: PathBuf::from(path),
            folder: PathBuf::from("/r/tests/e2e"),
        };
        let expected = [
            executable("e2e", BinaryKind::Unit, "/r/target/debug/deps/e2e-0f"),
            executable("life", BinaryKind::Integration, "/r/target/debug/deps/life-0f"),
        ];
        let found = executables(&output.concat());
        assert_eq!(found, expected);
        assert_eq!([false, true], [found[0].needs_clusters(), found[1].needs_clusters()]);
    }

    #[test]
    fn the_parser_of_results_reads_the_header() {
        for (kind, target) in [(BinaryKind::Unit, "first-light"), (BinaryKind::Integration, "life")] {
            let path = PathBuf::from(format!("/r/target/debug/deps/{target}-0f"));
            let executable = TestExecutable { target: target.to_owned(), kind, path, folder: PathBuf::from("/r/e2e") };
            let parsed = crate::libtest::parse(&executable.header());
            assert_eq!((parsed[0].target.as_str(), parsed[0].kind), (target, kind));
        }
    }
}
