//! Parts of Markdown: prose, tables, links and anchors.

use std::collections::BTreeSet;

/// Removes code between backquotes and code in fences, and keeps the lines. A fence of `text`, or without a language,
/// is a diagram or output and stays. In other fences, comments stay.
pub fn prose(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut fence: Option<bool> = None;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if let Some(language) = trimmed.strip_prefix("```") {
            let is_text = matches!(language.trim(), "" | "text");
            fence = if fence.is_some() { None } else { Some(is_text) };
            prose.push('\n');
        } else if fence == Some(false) {
            prose.push_str(comment(trimmed).unwrap_or("\n"));
        } else {
            prose.push_str(line);
        }
    }
    without_code_spans(&prose)
}

/// The comment at the end of a line of code in any language.
fn comment(line: &str) -> Option<&str> {
    ["# ", "// "].into_iter().find_map(|marker| {
        let start = line.find(marker)?;
        (start == 0 || line[..start].ends_with(' ')).then(|| &line[start + marker.len()..])
    })
}

/// Replaces text between backquotes by a placeholder, and keeps the lines.
pub fn without_code_spans(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut parts = text.split('`');
    prose.push_str(parts.next().unwrap_or_default());
    while let Some(code) = parts.next() {
        let Some(rest) = parts.next() else {
            // A single backquote begins no code.
            prose.push_str(code);
            break;
        };
        prose.push(CODE);
        prose.extend(code.chars().filter(|c| *c == '\n'));
        prose.push_str(rest);
    }
    prose
}

/// Stands for code in prose.
pub const CODE: char = '\u{fffc}';

/// The rows of the table with this header row, as trimmed cells.
pub fn table<'a>(text: &'a str, header: &[&str]) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| -> Option<Vec<&'a str>> {
        let row = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        Some(row.split('|').map(str::trim).collect())
    };
    let lines = text.lines().skip_while(|line| cells(line).as_deref() != Some(header));
    lines.skip(2).map_while(cells).collect()
}

/// The texts between backquotes.
pub fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The targets of all links outside of code.
pub fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors of all headings: lower case, dashes for spaces, only letters, digits and dashes.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let dashed = heading.to_lowercase().replace(' ', "-");
        dashed.chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
    };
    headings.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_removed_from_prose() {
        for (text, expected) in [
            ("a `b` c\n", "a \u{fffc} c\n"),
            ("a `b\nc` d", "a \u{fffc}\n d"),
            ("a ` b", "a  b"),
            ("x\n```sh\nrun # note\n```\ny\n", "x\n\nnote\n\ny\n"),
            ("```text\nbox\n```\n", "\nbox\n\n"),
            ("```\nbox\n```\n", "\nbox\n\n"),
            ("```yaml\na: b\nc: #d\n```\n", "\n\n\n\n"),
        ] {
            assert_eq!(prose(text), expected, "{text:?}");
        }
    }

    #[test]
    fn rows_are_those_of_the_table_with_the_header() {
        let text = "| x |\n|---|\n| 0 |\n\n| a | b |\n|---|---|\n| `c` | d, e |\n| f | |\ntext\n| g | h |\n";
        assert_eq!(table(text, &["a", "b"]), [["`c`", "d, e"], ["f", ""]]);
    }

    #[test]
    fn links_and_anchors_are_found_outside_of_code() {
        let text = "# One & Two\n[a](b.md#c) and [d](e)\n```\n# no [x](y)\n```\n## What a pool's for\n";
        assert_eq!(links(text), ["b.md#c", "e"]);
        assert_eq!(anchors(text), ["one--two", "what-a-pools-for"].map(ToOwned::to_owned).into());
    }
}
