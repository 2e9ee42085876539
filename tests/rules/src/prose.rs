//! The text of a file that is for people: comments, strings, names and documents.

use std::collections::BTreeSet;
use std::path::Path;

use crate::markdown::{self, CODE, without_code_spans};
use crate::rust::{Kind, Token, tokens};

/// A text with the line that it begins on. Its lines are those of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    pub line: usize,
    pub text: String,
}

/// The passages of a file, by its name; none for files without prose.
pub fn passages(path: &Path, source: &str) -> Vec<Passage> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let whole = |text: String| vec![Passage { line: 1, text }];
    match (&*name, &*extension) {
        (_, "rs") => rust_passages(source),
        (_, "md") => whole(markdown::prose(source)),
        (_, "yaml" | "yml" | "toml" | "sh") | ("Makefile", _) => whole(comments(source, "#")),
        (_, "go") => whole(comments(source, "//")),
        _ => Vec::new(),
    }
}

/// Comments and strings of Rust source. Comments on consecutive lines are one passage.
fn rust_passages(source: &str) -> Vec<Passage> {
    let mut passages: Vec<Passage> = Vec::new();
    let mut before: Option<Token<'_>> = None;
    let mut comments: Vec<Passage> = Vec::new();
    for token in tokens(source) {
        match token.kind {
            Kind::Comment => {
                let continues = before.is_some_and(|it| it.kind == Kind::Comment && it.line + 1 == token.line);
                match comments.last_mut().filter(|_| continues) {
                    Some(comment) => {
                        comment.text.push('\n');
                        comment.text.push_str(token.text);
                    }
                    None => comments.push(Passage { line: token.line, text: token.text.to_owned() }),
                }
            }
            Kind::Str => passages.push(Passage { line: token.line, text: string_prose(token.text) }),
            _ => {}
        }
        before = Some(token);
    }
    passages.extend(comments.into_iter().map(|it| Passage { text: markdown::prose(&it.text), ..it }));
    passages.sort_by_key(|passage| passage.line);
    passages
}

/// A string without its escapes, placeholders (`{name}`) and code between backquotes.
fn string_prose(literal: &str) -> String {
    let mut prose = String::with_capacity(literal.len());
    let mut characters = literal.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('\n') => prose.push('\n'),
                Some('n') => prose.push_str(" ; "),
                _ => prose.push(' '),
            },
            '{' | '}' if characters.peek() == Some(&character) => drop(characters.next()),
            '{' if characters.peek().is_some_and(|next| next.is_alphanumeric() || "}:_".contains(*next)) => {
                while characters.next().is_some_and(|inside| inside != '}') {}
                prose.push(CODE);
            }
            _ => prose.push(character),
        }
    }
    without_code_spans(&prose)
}

/// The comments of a file, each from `marker` to the end of its line. A line without a comment becomes empty.
fn comments(source: &str, marker: &str) -> String {
    let comment = |line: &str| {
        let starts = line.match_indices(marker).map(|(start, _)| start);
        let start = starts.into_iter().find(|start| *start == 0 || line[..*start].ends_with([' ', '\t']));
        start.map(|start| line[start..].trim_start_matches(marker).to_owned()).unwrap_or_default()
    };
    without_code_spans(&source.lines().map(comment).collect::<Vec<_>>().join("\n"))
}

/// The names in Rust source with the line of their first use.
pub fn names(source: &str) -> Vec<(usize, &str)> {
    let mut seen = BTreeSet::new();
    let names = tokens(source).into_iter().filter(|token| token.kind == Kind::Name);
    names.filter(|token| seen.insert(token.text)).map(|token| (token.line, token.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_has_its_passages() {
        for (name, source, expected) in [
            ("a.rs", "/// One\n/// `two` three\nfn f() {} // four\n", vec![(1, " One\n \u{fffc} three"), (3, " four")]),
            ("a.rs", "f(\"a {b} \\\"c\\\" \\n d\", r\"e\\f\");", vec![(1, "a \u{fffc}  c   ;  d"), (1, "e ")]),
            ("a.rs", "\"a \\\n  b {{c}}\"", vec![(1, "a \n  b c")]),
            ("a.rs", "// ```\n// box\n// ```\n// ```sh\n// run\n// ```", vec![(1, "\n box\n\n\n\n\n")]),
            ("a.md", "`x` y\n", vec![(1, "\u{fffc} y\n")]),
            ("a.yaml", "# One\na: b # two\nc: d#e\n", vec![(1, " One\n two\n")]),
            ("a.sh", "echo \"$#\" # one\n", vec![(1, " one")]),
            ("Makefile", "run: ## Runs `x`\n", vec![(1, " Runs \u{fffc}")]),
            ("a.go", "x := 1 // one\n", vec![(1, " one")]),
            ("a.hex", "any", vec![]),
        ] {
            let found = passages(Path::new(name), source);
            let found: Vec<_> = found.iter().map(|passage| (passage.line, passage.text.as_str())).collect();
            assert_eq!(found, expected, "{source:?}");
        }
    }

    #[test]
    fn names_are_listed_once_without_comments_and_strings() {
        assert_eq!(names("fn f(a: A) {\n a; // b\n \"c\" d!() }"), [(1, "fn"), (1, "f"), (1, "a"), (1, "A"), (3, "d")]);
    }
}
