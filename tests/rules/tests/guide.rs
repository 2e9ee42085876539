//! The documents agree with the code: the user guide lists every reason, and every link has a target.

use std::collections::BTreeSet;
use std::path::Path;

use controller::{AllocatedReason, AnnouncedReason, ForwardingReason, RefusalReason};
use rules::markdown::{anchors, code_spans, links, table};
use rules::{files_with_extension, read};

/// Checks that the table with this header in a page lists exactly these reasons in its first column, each once.
#[track_caller]
fn check_reasons<'a>(page: &str, header: &[&str], reasons: impl IntoIterator<Item = &'a str>) {
    let text = read(page);
    let listed: Vec<_> = table(&text, header).into_iter().filter_map(|row| code_spans(row[0]).next()).collect();
    let distinct: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(distinct, reasons.into_iter().collect(), "left: {page}; right: the code");
    assert_eq!(distinct.len(), listed.len(), "{page} lists a reason twice: {listed:?}");
}

#[test]
fn guide_lists_every_refusal() {
    let reasons = RefusalReason::ALL.iter().map(|reason| reason.as_str());
    check_reasons("docs/guide/why-pending.md", &["reason", "meaning", "fix"], reasons);
}

#[test]
fn guide_lists_every_reason_of_announced() {
    let reasons = AnnouncedReason::ALL.iter().map(|reason| reason.as_str());
    check_reasons("docs/guide/announcing-reference.md", &["reason", "meaning", "fix"], reasons);
}

#[test]
fn guide_lists_every_reason_of_forwarding() {
    let reasons = ForwardingReason::all().map(ForwardingReason::as_str);
    check_reasons("docs/guide/forwarding-reference.md", &["reason", "meaning", "fix"], reasons);
}

#[test]
fn guide_lists_every_state_of_an_allocated_address() {
    let reasons = AllocatedReason::ALL.iter().map(|reason| reason.as_str());
    check_reasons("docs/guide/pools.md", &["reason", "state of the address"], reasons);
}

#[test]
fn every_link_between_documents_has_a_target() {
    let mut broken = Vec::new();
    let documents = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs"]
        .into_iter()
        .flat_map(|folder| files_with_extension(folder, "md"));
    for document in documents {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = document.parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            let exists = rules::root().join(&target).exists();
            if !exists || (!anchor.is_empty() && !anchors(&read(&target)).contains(anchor)) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links without a target:\n{}", broken.join("\n"));
}
