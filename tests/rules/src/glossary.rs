//! Reads `docs/dev/glossary.md`: the words of this project, and the words that it does not use.

use crate::language::{Phrase, Rules};
use crate::markdown::{code_spans, table};

/// Where the glossary is.
pub const PATH: &str = "docs/dev/glossary.md";

/// The header of the tables of terms.
const TERMS: [&str; 3] = ["word", "meaning", "not"];

/// The header of the table of banned words.
const BANNED: [&str; 3] = ["not", "but", "allowed"];

/// The rules in the text of a glossary.
///
/// - A row of terms bans each word between backquotes in its last column; the better word is the term.
/// - A row of banned words bans all phrases of its first column; its last column lists phrases that stay allowed.
pub fn rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    let mut rest = text;
    while let Some(start) = rest.find("| word | meaning | not |") {
        rest = &rest[start..];
        for row in table(rest, &TERMS) {
            let [term, _, not] = row[..] else { panic!("a row has three cells: {row:?}") };
            let better = term.replace(['*', '`'], "");
            rules.banned.extend(code_spans(not).map(|word| Phrase::new(word, &better)));
        }
        rest = &rest[1..];
    }
    for row in table(text, &BANNED) {
        let [not, better, allowed] = row[..] else { panic!("a row has three cells: {row:?}") };
        rules.banned.extend(phrases(not).map(|phrase| Phrase::new(phrase, better)));
        rules.allowed.extend(phrases(allowed).map(|phrase| Phrase::new(phrase, "")));
    }
    rules
}

fn phrases(cell: &str) -> impl Iterator<Item = &str> {
    cell.split(',').map(str::trim).filter(|phrase| !phrase.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_from_both_kinds_of_tables() {
        let text = "| word | meaning | not |\n|---|---|---|\n| **apple** | a | `pear of it`, plum |\n\n\
                    ## More\n| word | meaning | not |\n|---|---|---|\n| fig | b | |\n| new fig | c | `date` |\n\n\
                    | not | but | allowed |\n|---|---|---|\n| so round, so blue | round | so round as |\n";
        let found = rules(text);
        let expected = [("pear of it", "apple"), ("date", "new fig"), ("so round", "round"), ("so blue", "round")];
        assert_eq!(found.banned, expected.map(|(phrase, better)| Phrase::new(phrase, better)));
        assert_eq!(found.allowed, [Phrase::new("so round as", "")]);
    }
}
