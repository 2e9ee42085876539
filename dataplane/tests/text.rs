//! What a person is shown of a ruleset that nobody has programmed.

mod sample;

use dataplane::nft::text::text;
use dataplane::rules::plan::ruleset;
use sample::{everything, snapshot};

/// What `nft` prints of the tables when they are programmed, as a test against the kernel has seen it.
const PRINTED: [&str; 3] =
    [include_str!("golden/table.nft"), include_str!("golden/table6.nft"), include_str!("golden/frames.nft")];

/// The lines, with the elements of each set in order, one on a line: the kernel tells of them in an order of its own.
fn in_order(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut elements: Option<Vec<String>> = None;
    for line in text.lines() {
        let (inside, line) = match (&mut elements, line.trim().strip_prefix("elements = { ")) {
            (None, None) => {
                lines.push(line.to_owned());
                continue;
            }
            (_, Some(first)) => (elements.get_or_insert_default(), first),
            (Some(inside), None) => (inside, line.trim()),
        };
        let is_last = line.ends_with(" }");
        inside.extend(
            line.trim_end_matches(" }").split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()),
        );
        if is_last {
            inside.sort();
            lines.append(inside);
            elements = None;
        }
    }
    lines
}

#[test]
fn it_is_what_nft_prints_once_it_is_programmed() {
    let shown = text(&ruleset(&everything()));
    let (shown, printed) = (in_order(&shown), PRINTED.into_iter().flat_map(in_order).collect::<Vec<_>>());
    // Line by line, or a difference would be hard to find.
    for (shown, printed) in shown.iter().zip(&printed) {
        assert_eq!(shown, printed);
    }
    assert_eq!(shown.len(), printed.len());
}

#[test]
fn there_is_no_table_where_there_is_nothing_to_do() {
    assert_eq!(text(&ruleset(&snapshot([]))), "");
}
