//! What decides something is pure: it reads no clock, no file and no socket, and knows no client and no runtime. Those
//! that act are few, and named here.

/// The libraries whose files are pure unless they stand in [`SHELLS`].
const LIBRARIES: [&str; 6] = ["controller/src", "crds/src", "dataplane/src", "model/src", "observe/src", "speaker/src"];

/// The files that act. What stands here touches something; everything else only decides.
const SHELLS: [&str; 21] = [
    "controller/src/apply/applier.rs",
    "controller/src/apply/election.rs",
    "controller/src/apply/events.rs",
    "controller/src/run.rs",
    "dataplane/src/flows/conntrack.rs",
    "dataplane/src/nft/engine.rs",
    "dataplane/src/netlink/notices.rs",
    "dataplane/src/netlink/socket.rs",
    "dataplane/src/reply_path/kernel.rs",
    "dataplane/src/reply_path/run.rs",
    "dataplane/src/run.rs",
    "observe/src/store.rs",
    "observe/src/watch.rs",
    "observe/src/watch_one.rs",
    "speaker/src/os/groups.rs",
    "speaker/src/os/links.rs",
    "speaker/src/run.rs",
    "speaker/src/os/socket.rs",
    "speaker/src/os/scheduling.rs",
    "speaker/src/os/poll.rs",
    "controller/src/state/stores.rs",
];

/// What a pure file does not say outside of its tests.
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
fn pure_files_touch_nothing() {
    let mut found = Vec::new();
    for path in LIBRARIES.into_iter().flat_map(rules::sources) {
        let name = path.to_string_lossy().into_owned();
        // A module of tests in a file of its own is as free as one at the end of a file.
        if SHELLS.contains(&name.as_str()) || name.ends_with("/tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(rules::root().join(&path)).expect("a source file");
        found.extend(impurities(&text).map(|(line, word)| format!("{name}:{line}: {word}")));
    }
    assert!(
        found.is_empty(),
        "pure files that touch something (or shells that tests/rules does not name):\n{}",
        found.join("\n")
    );
}

/// The lines of a file that touch something, with what they touch. What stands in a file's own tests may touch whatever
/// it tests with.
fn impurities(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().enumerate().filter_map(|(number, line)| {
        let line = line.split("//").next().unwrap_or_default();
        IMPURE.iter().find(|word| line.contains(**word)).map(|word| (number + 1, *word))
    })
}

#[test]
fn a_line_that_touches_something_is_found_and_a_comment_or_a_test_is_not() {
    let text = "use std::net::IpAddr;\n// Instant::now\nuse kube::{Api, Client};\n#[cfg(test)]\nuse std::fs;\n";
    assert_eq!(impurities(text).collect::<Vec<_>>(), [(3, "kube::{Api")]);
}

#[test]
fn every_shell_that_is_named_exists() {
    for shell in SHELLS {
        assert!(rules::root().join(shell).is_file(), "{shell} is named as a shell and isn't there");
    }
}

#[test]
fn libraries_do_not_know_each_other() {
    for (library, foreign) in [
        ("crds", ["controller", "speaker", "dataplane", "agent", "landfall", "model", "observe"].as_slice()),
        ("model", &["controller", "speaker", "dataplane", "agent", "landfall", "observe"]),
        ("observe", &["controller", "speaker", "dataplane", "agent", "landfall"]),
        ("controller", &["speaker", "dataplane", "agent", "landfall"]),
        ("speaker", &["controller", "dataplane", "agent", "landfall", "observe"]),
        ("dataplane", &["controller", "speaker", "agent", "landfall", "observe"]),
        ("agent", &["controller", "landfall"]),
    ] {
        let manifest = std::fs::read_to_string(rules::root().join(library).join("Cargo.toml")).expect("a manifest");
        for other in foreign {
            assert!(!manifest.contains(&format!("\n{other}.workspace")), "{library} depends on {other}");
        }
    }
}

#[test]
fn no_file_is_named_utils() {
    let vague = ["utils.rs", "util.rs", "helpers.rs", "misc.rs", "common.rs"];
    for path in LIBRARIES.into_iter().chain(["agent/src", "landfall/src", "tests"]).flat_map(rules::sources) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(!vague.contains(&name.as_str()), "{} says nothing about what is in it", path.display());
    }
}
