//! Finds banned words. Text + [`Rules`] → findings, each with its line, the words and the better ones.

use crate::markdown::CODE;

/// Words in a row. The last word may end in `*`, which stands for any ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    words: Vec<String>,
    pub better: String,
}

impl Phrase {
    pub fn new(phrase: &str, better: &str) -> Self {
        let words = phrase.split_whitespace().map(str::to_lowercase).collect();
        Self { words, better: better.to_owned() }
    }

    /// Whether the units begin with this phrase.
    fn starts(&self, units: &[Unit<'_>]) -> bool {
        self.words.len() <= units.len()
            && self.words.iter().zip(units).all(|(word, unit)| matches_word(word, unit.word()))
    }
}

/// The words that are banned, and the phrases that may contain them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub banned: Vec<Phrase>,
    pub allowed: Vec<Phrase>,
}

/// A banned word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line in the text, from 0.
    pub line: usize,
    pub words: String,
    pub better: String,
}

/// After these words, `what` begins a clause that hides a noun.
const AFTER_WHAT: [&str; 24] = [
    "is", "was", "are", "were", "has", "had", "it", "there", "they", "we", "comes", "came", "goes", "went", "stands",
    "stood", "belongs", "happens", "happened", "follows", "followed", "others", "remains", "stays",
];

/// Before these words, or at the beginning of a clause, `who` stands in place of a noun.
const BEFORE_WHO: [&str; 17] = [
    "to", "of", "from", "for", "by", "with", "and", "or", "than", "but", "only", "all", "those", "one", "not", "is",
    "as",
];

impl Rules {
    /// The banned words in a text of prose.
    pub fn find(&self, text: &str) -> Vec<Finding> {
        let units = units(text);
        let mut found = Vec::new();
        let mut index = 0;
        while index < units.len() {
            let rest = &units[index..];
            let allowed =
                self.allowed.iter().filter(|phrase| phrase.starts(rest)).map(|phrase| phrase.words.len()).max();
            if let Some(length) = allowed {
                index += length;
                continue;
            }
            let line = units[index].line;
            if let Some(phrase) = self.banned.iter().find(|phrase| phrase.starts(rest)) {
                let words: Vec<_> = rest[..phrase.words.len()].iter().map(Unit::word).collect();
                found.push(Finding { line, words: words.join(" "), better: phrase.better.clone() });
            } else if hides_noun(&units, index) {
                let words = rest.iter().take(2).map(Unit::word).collect::<Vec<_>>().join(" ");
                found.push(Finding { line, words, better: "the noun: host, peer, client, Service, value".to_owned() });
            }
            index += 1;
        }
        found
    }

    /// The banned words in a name: `is_blue`, `IsBlue`. Phrases of several words do not count: `is_none` is a name of
    /// the standard library.
    pub fn find_in_name(&self, name: &str) -> Vec<Finding> {
        let words = split_name(name).into_iter().map(str::to_lowercase);
        let phrase = |word: String| {
            self.banned.iter().find(|phrase| matches!(&phrase.words[..], [only] if matches_word(only, &word)))
        };
        let phrases = words.filter_map(phrase);
        phrases.map(|phrase| Finding { line: 0, words: name.to_owned(), better: phrase.better.clone() }).collect()
    }
}

/// Whether the word at `index` is a relative pronoun without a noun, outside of a question.
fn hides_noun(units: &[Unit<'_>], index: usize) -> bool {
    let before = index.checked_sub(1).map(|before| &units[before]);
    let hides = match units[index].word() {
        "what" => units.get(index + 1).is_some_and(|next| AFTER_WHAT.contains(&next.word())),
        "who" | "whom" if units.get(index + 1).is_some_and(|next| next.kind == UnitKind::Word) => {
            before.is_none_or(|before| before.is_stop() || BEFORE_WHO.contains(&before.word()))
        }
        _ => false,
    };
    hides && !is_question(&units[index..])
}

/// Whether the sentence ends with a question mark.
fn is_question(rest: &[Unit<'_>]) -> bool {
    let end = rest.iter().find(|unit| matches!(unit.kind, UnitKind::Break | UnitKind::Stop('.' | '?' | '!')));
    end.is_some_and(|unit| unit.kind == UnitKind::Stop('?'))
}

fn matches_word(pattern: &str, word: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => word.starts_with(start),
        None => pattern == word,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnitKind {
    Word,
    /// Punctuation that separates clauses.
    Stop(char),
    /// The end of a paragraph, list item or cell.
    Break,
    /// Code, or a character inside of a technical word.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Unit<'a> {
    kind: UnitKind,
    lower: std::borrow::Cow<'a, str>,
    line: usize,
}

impl Unit<'_> {
    fn word(&self) -> &str {
        &self.lower
    }

    fn is_stop(&self) -> bool {
        matches!(self.kind, UnitKind::Stop(_) | UnitKind::Break)
    }
}

fn units(text: &str) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    for (line, content) in text.split('\n').enumerate() {
        let add = |kind| Unit { kind, lower: "".into(), line };
        let trimmed = content.trim_start();
        let is_item = ["- ", "* ", "#", "|", ">"].iter().any(|marker| trimmed.starts_with(marker));
        if trimmed.is_empty() || is_item {
            units.push(add(UnitKind::Break));
        }
        let mut rest = content;
        while let Some(first) = rest.chars().next() {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’').unwrap_or(rest.len());
            if length > 0 {
                let lower = rest[..length].replace('’', "'").to_lowercase();
                units.push(Unit { kind: UnitKind::Word, lower: lower.into(), line });
                rest = &rest[length..];
                continue;
            }
            rest = &rest[first.len_utf8()..];
            let before_word = rest.starts_with(char::is_alphanumeric);
            match first {
                '.' | '?' | '!' | ':' | ';' | ',' if before_word => units.push(add(UnitKind::Other)),
                '.' | '?' | '!' | ':' | ';' | ',' | '(' | ')' | '—' | '–' => units.push(add(UnitKind::Stop(first))),
                '|' => units.push(add(UnitKind::Break)),
                '_' | '/' | '=' | '{' | '}' | '<' | '>' | CODE => units.push(add(UnitKind::Other)),
                _ => {}
            }
        }
    }
    units
}

/// The words of a name: `load_balancer`, `LoadBalancer`, `LBPool` → `load`, `balancer`; `LB`, `Pool`.
pub fn split_name(name: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for part in name.split('_') {
        let characters: Vec<(usize, char)> = part.char_indices().collect();
        let mut start = 0;
        for window in 1..characters.len() {
            let (position, this) = characters[window];
            let (_, before) = characters[window - 1];
            let next_is_lower = characters.get(window + 1).is_some_and(|(_, next)| next.is_lowercase());
            if this.is_uppercase() && (!before.is_uppercase() || next_is_lower) {
                words.push(&part[start..position]);
                start = position;
            }
        }
        words.push(&part[start..]);
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Irregular past participles that are not also the base form of a verb, one per line.
const PARTICIPLES: &str = include_str!("../words/participles.txt");

const PREPOSITIONS: &str = include_str!("../words/prepositions.txt");

/// Verbs and nouns that end like a participle.
const NO_PARTICIPLES: [&str; 12] =
    ["bed", "embed", "exceed", "feed", "need", "proceed", "red", "seed", "shed", "speed", "succeed", "embedded"];

/// Whether the name of a function is nothing but a participle or a preposition.
pub fn is_no_function_name(name: &str) -> bool {
    let is_regular = name.ends_with("ed") && !name.contains('_') && !NO_PARTICIPLES.contains(&name);
    is_regular || [PARTICIPLES, PREPOSITIONS].iter().any(|words| words.lines().any(|word| word == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invented words: this file is scanned as well.
    fn rules() -> Rules {
        Rules {
            banned: ["so blue", "so round", "is blank", "zork", "murk*"].map(|it| Phrase::new(it, "")).into(),
            allowed: ["so round as", "there is blank"].map(|it| Phrase::new(it, "")).into(),
        }
    }

    #[test]
    fn banned_phrases_are_found_across_lines_and_not_across_stops() {
        for (text, expected) in [
            ("So blue of them", vec![(0, "so blue")]),
            ("a and so\nblue more", vec![(0, "so blue")]),
            ("it is so. Blue comes", vec![]),
            ("so\n\nblue", vec![]),
            ("so\n- blue", vec![]),
            ("so round as it runs, and so round", vec![(0, "so round")]),
            ("there is blank, it is blank", vec![(0, "is blank")]),
            ("it murks\nwith zork", vec![(0, "murks"), (1, "zork")]),
            ("unzork, rezork, a_zork", vec![(0, "zork")]),
            ("so | blue", vec![]),
        ] {
            let found = rules().find(text);
            let found: Vec<_> = found.iter().map(|finding| (finding.line, finding.words.as_str())).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn pronouns_without_a_noun_are_found_outside_of_questions() {
        for (pronoun, text, expected) in [
            ("what", "~ is left", true),
            ("what", "~ is left?", false),
            ("what", "a test of ~ comes next", true),
            ("what", "decide ~ to do", false),
            ("who", "~ announces it", true),
            ("who", "~ announces it?", false),
            ("who", "the node, ~ announces", true),
            ("who", "those ~ announce", true),
            ("who", "a client ~ connects", false),
            ("whom", "to ~ it belongs", true),
            ("who", "Why? ~ knows", true),
            ("who", "~", false),
        ] {
            assert_eq!(!rules().find(&text.replace('~', pronoun)).is_empty(), expected, "{text:?}");
        }
    }

    #[test]
    fn banned_words_are_found_in_names() {
        for (name, expected) in [
            ("zork", true),
            ("is_zork", true),
            ("ZorkTwice", true),
            ("ALL_ZORK", true),
            ("is_blank", false),
            ("unzork", false),
            ("murky_node", true),
            ("zorkToo", true),
        ] {
            assert_eq!(!rules().find_in_name(name).is_empty(), expected, "{name}");
        }
    }

    #[test]
    fn names_are_split_into_words() {
        for (name, expected) in [
            ("load_balancer", vec!["load", "balancer"]),
            ("LoadBalancerIP", vec!["Load", "Balancer", "IP"]),
            ("IPAddressPool", vec!["IP", "Address", "Pool"]),
            ("ALL_V4", vec!["ALL", "V4"]),
            ("_x", vec!["x"]),
        ] {
            assert_eq!(split_name(name), expected, "{name}");
        }
    }

    #[test]
    fn function_names_are_neither_participles_nor_prepositions() {
        for (name, expected) in [
            ("held", true),
            ("noted", true),
            ("of", true),
            ("feed", false),
            ("read", false),
            ("put", false),
            ("is_kept", false),
            ("from", false),
            ("new", false),
        ] {
            assert_eq!(is_no_function_name(name), expected, "{name}");
        }
    }
}
