//! Decisions are pure: they read no clock, no file and no socket, and use no client of the API server and no async
//! runtime.
//!
//! Two rules: the dependencies of each crate, and the words in files that decide. Files that act (shells) are
//! recognised by their names: see [`is_shell`].

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use rules::items::items;
use rules::{read, sources};

/// Libraries with files that decide.
const LIBRARIES: [&str; 7] =
    ["controller/src", "crds/src", "dataplane/src", "model/src", "netlink/src", "observe/src", "speaker/src"];

/// Folders of files that act: they write to the API server, or call the operating system.
const SHELL_FOLDERS: [&str; 2] = ["apply", "os"];

/// Files that act: loops, stores that tasks share, watches, and connections to the kernel.
const SHELL_FILES: [&str; 13] = [
    "conntrack.rs",
    "engine.rs",
    "notifications.rs",
    "observe.rs",
    "routing.rs",
    "run.rs",
    "socket.rs",
    "store.rs",
    "stores.rs",
    "watch.rs",
    "watch_one.rs",
    "wire_loop.rs",
    "worker.rs",
];

/// Whether a file acts. Every other file decides.
fn is_shell(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    SHELL_FOLDERS.contains(&&*folder) || SHELL_FILES.contains(&&*file)
}

/// Words that a file must not contain if it decides.
const IMPURE: [&str; 21] = [
    "kube::Client",
    "kube::{Api",
    "kube::{Client",
    "kube::Api",
    "kube::api",
    "kube::runtime",
    "nix::",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "UdpSocket",
    "TcpStream",
    "socket2",
    "libc::",
    "rand::",
];

#[test]
fn files_that_decide_touch_nothing() {
    let mut found = Vec::new();
    let mut shells = 0;
    for path in LIBRARIES.into_iter().flat_map(sources).filter(|path| !path.ends_with("tests.rs")) {
        if is_shell(&path) {
            shells += 1;
            continue;
        }
        let source = read(&path);
        found.extend(impurities(&source).into_iter().map(|(line, word)| format!("{}:{line}: {word}", path.display())));
    }
    assert!(shells > 0, "the names of files that act match no file");
    assert!(found.is_empty(), "files that decide, but touch something:\n{}", found.join("\n"));
}

/// The lines outside of comments and test code that contain an impure word.
fn impurities(source: &str) -> Vec<(usize, &'static str)> {
    let tests = items(source).test_blocks;
    let is_test = |line: usize| tests.iter().any(|(first, last)| (*first..=*last).contains(&line));
    let lines =
        source.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()));
    let lines = lines.filter(|(line, _)| !is_test(*line));
    lines.filter_map(|(line, code)| Some((line, *IMPURE.iter().find(|word| code.contains(**word))?))).collect()
}

#[test]
fn impure_words_are_found_outside_of_comments_and_tests() {
    let source = "use std::net::IpAddr;\n// Instant::now\n#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n\
                  use kube::{Api, Client};\n";
    assert_eq!(impurities(source), [(7, "kube::{Api")]);
}

/// A crate and all packages that it depends on, directly or indirectly.
fn dependencies(package: &str) -> BTreeSet<String> {
    let arguments =
        ["tree", "-p", package, "--edges", "normal", "--prefix", "none", "--format", "{p}", "--locked", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(rules::root()).output().expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn crates_depend_only_on_lower_ones() {
    const UPPER: [&str; 5] = ["agent", "controller", "dataplane", "landfall", "speaker"];
    for (package, foreign) in [
        ("crds", ["kube-client", "tokio", "model", "observe"].as_slice()),
        ("model", &["kube-client", "tokio", "observe"]),
        ("netlink", &["kube-client", "model", "observe"]),
        ("observe", &[]),
        ("controller", &[]),
        ("speaker", &["kube-client", "observe"]),
        ("dataplane", &["kube-client", "observe"]),
    ] {
        let linked = dependencies(package);
        assert!(linked.contains(package), "{package}: {linked:?}");
        let upper = UPPER.iter().filter(|other| **other != package);
        let found: Vec<_> = foreign.iter().chain(upper).filter(|other| linked.contains(**other)).collect();
        assert!(found.is_empty(), "{package} depends on {found:?}");
    }
    assert!(!dependencies("agent").contains("controller"), "the agent depends on the controller");
}

#[test]
fn no_file_has_a_vague_name() {
    let vague = ["utils.rs", "util.rs", "helpers.rs", "misc.rs", "common.rs"];
    let mut found = sources("");
    found.retain(|path| path.file_name().is_some_and(|name| vague.iter().any(|it| name == *it)));
    assert!(found.is_empty(), "the names do not describe the contents: {found:?}");
}
