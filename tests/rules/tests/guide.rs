//! The user guide says what the code says: every reason for a refusal, and no link into nowhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use controller::{AllocatedReason, AnnouncedReason, ForwardingReason, RefusalReason};

fn read(path: impl AsRef<Path>) -> String {
    let path = rules::root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first column of the table below this heading: the words in backquotes.
fn table<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let section = text.split(heading).nth(1).expect("the heading").split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).collect()
}

#[test]
fn the_guide_lists_every_reason_for_a_refusal_once_and_no_other() {
    let guide = read("docs/guide/why-pending.md");
    let reasons: BTreeSet<_> = RefusalReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let listed = table(&guide, "## Reasons for a refusal");
    assert_eq!(reasons, listed.iter().copied().collect(), "in the code, and in docs/guide/why-pending.md");
    assert_eq!(reasons.len(), listed.len(), "one is listed twice: {listed:?}");
}

#[test]
fn the_guide_lists_every_reason_why_an_address_is_announced_or_not() {
    let guide = read("docs/guide/announcing.md");
    let reasons: BTreeSet<_> = AnnouncedReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let listed = table(&guide, "| reason | meaning | fix |");
    assert_eq!(reasons, listed.iter().copied().collect(), "in the code, and in docs/guide/announcing.md");
    assert_eq!(reasons.len(), listed.len(), "one is listed twice: {listed:?}");
}

#[test]
fn the_guide_lists_every_way_in_which_a_service_is_forwarded_or_not() {
    let guide = read("docs/guide/forwarding-reference.md");
    let reasons: BTreeSet<_> = ForwardingReason::all().map(ForwardingReason::as_str).collect();
    let listed = table(&guide, "| reason | meaning | fix |");
    assert_eq!(reasons, listed.iter().copied().collect(), "in the code, and in docs/guide/forwarding-reference.md");
    assert_eq!(reasons.len(), listed.len(), "one is listed twice: {listed:?}");
}

#[test]
fn the_guide_lists_all_that_can_be_odd_about_an_address() {
    let guide = read("docs/guide/pools.md");
    let reasons: BTreeSet<_> = AllocatedReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let listed = table(&guide, "## Editing and deleting pools");
    assert_eq!(reasons, listed.iter().copied().collect(), "in the code, and in docs/guide/pools.md");
}

#[test]
fn rows_are_read_from_the_table_below_the_heading() {
    let text = "| `X` | |\n## H\n\n| a | b |\n|---|---|\n| `B` | `E` |\n| `C` | |\n## I\n| `D` | |\n";
    assert_eq!(table(text, "## H"), ["B", "C"]);
}

/// Every file in Markdown that users and maintainers read.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(rules::root().join(&folder)).expect("a folder") {
            let path = folder.join(entry.expect("an entry").file_name());
            if rules::root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// Where the links of a text lead, outside of code.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors that headings have: lower case, dashes for spaces, nothing else but letters, digits and dashes.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_between_documents_leads_to_a_file_and_a_heading_that_exist() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let beside = document.parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() { document.clone() } else { beside.join(path) };
            let exists = rules::root().join(&target).exists();
            if !exists || (!anchor.is_empty() && !anchors(&read(&target)).contains(anchor)) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links into nowhere:\n{}", broken.join("\n"));
}

#[test]
fn links_and_anchors_are_found_in_prose_and_not_in_code() {
    let text = "# One & Two\n[a](b.md#c) and [d](e)\n```\n# no [x](y)\n```\n## What a pool's for\n";
    assert_eq!(links(text), ["b.md#c", "e"]);
    assert_eq!(anchors(text), ["one--two", "what-a-pools-for"].map(ToOwned::to_owned).into());
}
