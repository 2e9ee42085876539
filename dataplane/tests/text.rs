//! The text of a ruleset that is not in the kernel.

mod sample;

use dataplane::nft::print_ruleset;
use dataplane::rules::plan_ruleset;
use sample::{everything, snapshot};

/// The output of `nft` for the programmed tables, as committed by a test against the kernel.
const PRINTED: [&str; 3] =
    [include_str!("golden/table.nft"), include_str!("golden/table6.nft"), include_str!("golden/frames.nft")];

/// The lines, with the elements of each set in order, one on a line: the kernel lists them in an order of its own.
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
fn the_text_equals_the_output_of_nft() {
    let shown = print_ruleset(&plan_ruleset(&everything()));
    let (shown, printed) = (in_order(&shown), PRINTED.into_iter().flat_map(in_order).collect::<Vec<_>>());
    // Line by line, or a difference would be hard to find.
    for (shown, printed) in shown.iter().zip(&printed) {
        assert_eq!(shown, printed);
    }
    assert_eq!(shown.len(), printed.len());
}

#[test]
fn a_table_without_work_is_not_printed() {
    assert_eq!(print_ruleset(&plan_ruleset(&snapshot([]))), "");
}
