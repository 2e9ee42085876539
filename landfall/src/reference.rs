//! Generates the reference `docs/reference/api.md` from the code: definitions of objects, words of the API, metrics and
//! options. Only compiled for tests.
//!
//! | file | content |
//! |---|---|
//! | `objects` | the fields of each object, from its definition |
//! | `vocabulary` | annotations, labels, conditions, reasons and events, from the sources and their comments |
//! | `metrics` | the metrics, from what controller and agent export |
//! | `commands` | commands, options and variables, from the command line |
//! | `markdown` | tables |

mod commands;
mod markdown;
mod metrics;
mod objects;
mod vocabulary;

use std::path::Path;

const HEADER: &str = "\
<!-- Generated from the code: change it there, then run `make reference`. -->

# Reference

Every object, annotation, label, condition, reason, event, metric and option, as this version has them. The
[user guide](../guide/README.md) explains how to use them, and [versions.md](versions.md) which of them can change.
";

fn reference() -> String {
    [HEADER.to_owned(), objects::section(), vocabulary::section(), metrics::section(), commands::section()].join("\n")
}

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// `make reference` updates the file. Its diff is reviewed like code.
#[test]
fn committed_reference_matches_the_code() {
    let path = root().join("docs/reference/api.md");
    let generated = reference();
    if std::env::var_os("LANDFALL_WRITE_GOLDENS").is_some() {
        std::fs::write(&path, &generated).expect("write docs/reference/api.md");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let differing = generated.lines().zip(committed.lines()).find(|(new, old)| new != old);
    assert!(
        generated == committed,
        "docs/reference/api.md does not match the code: run `make reference`: {differing:?}"
    );
}
