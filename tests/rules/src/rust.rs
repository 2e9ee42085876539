//! Splits Rust source into tokens. Text → tokens with their lines.
//!
//! It knows as much of the language as the rules need: comments, literals, names and punctuation. It accepts any text.

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The text of a comment without its markers.
    Comment,
    /// The contents of a string literal, with its escapes.
    Str,
    /// A name or a keyword.
    Name,
    /// A number, a character or a lifetime.
    Other,
    /// One character of punctuation.
    Punctuation,
}

/// A part of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Line of its first character, from 1.
    pub line: usize,
}

impl Token<'_> {
    /// Whether this is the name or keyword `name`.
    pub fn is_name(&self, name: &str) -> bool {
        self.kind == Kind::Name && self.text == name
    }

    /// Whether this is the punctuation `character`.
    pub fn is(&self, character: char) -> bool {
        self.kind == Kind::Punctuation && self.text.starts_with(character)
    }
}

/// The tokens of a source file.
pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, position: 0, line: 1, tokens: Vec::new() };
    while lexer.position < source.len() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    source: &'a str,
    position: usize,
    line: usize,
    tokens: Vec<Token<'a>>,
}

impl<'a> Lexer<'a> {
    fn step(&mut self) {
        let rest = &self.source[self.position..];
        let Some(first) = rest.chars().next() else { return };
        if first.is_whitespace() {
            self.advance(first.len_utf8());
        } else if rest.starts_with("//") {
            self.line_comment(rest);
        } else if rest.starts_with("/*") {
            self.block_comment(rest);
        } else if let Some(prefix) = string_prefix(rest) {
            self.string(rest, prefix);
        } else if first == '\'' {
            self.quote(rest);
        } else if first.is_alphabetic() || first == '_' {
            let rest = rest.strip_prefix("r#").unwrap_or(rest);
            self.position = self.source.len() - rest.len();
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.push(Kind::Name, &rest[..length], length);
        } else if first.is_ascii_digit() {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.push(Kind::Other, &rest[..length], length);
        } else {
            let length = first.len_utf8();
            self.push(Kind::Punctuation, &rest[..length], length);
        }
    }

    fn line_comment(&mut self, rest: &'a str) {
        let length = rest.find('\n').unwrap_or(rest.len());
        let text = rest[..length].trim_start_matches('/');
        self.push(Kind::Comment, text.strip_prefix('!').unwrap_or(text), length);
    }

    fn block_comment(&mut self, rest: &'a str) {
        let (mut depth, mut length) = (0, 0);
        while length < rest.len() {
            let here = &rest[length..];
            match here {
                _ if here.starts_with("/*") => (depth, length) = (depth + 1, length + 2),
                _ if here.starts_with("*/") => (depth, length) = (depth - 1, length + 2),
                _ => length += here.chars().next().map_or(1, char::len_utf8),
            }
            if depth == 0 {
                break;
            }
        }
        self.push(Kind::Comment, rest[..length].trim_matches(['/', '*', '!']), length);
    }

    /// A string that begins after `prefix` bytes: the letters, hashes and quote.
    fn string(&mut self, rest: &'a str, prefix: usize) {
        let head = &rest[..prefix];
        let body = &rest[prefix..];
        let length = if head.contains('r') {
            let end = format!("\"{}", "#".repeat(head.matches('#').count()));
            body.find(&end).map(|length| (length, length + end.len()))
        } else {
            let mut escaped = false;
            let end = body.char_indices().find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            end.map(|(length, _)| (length, length + 1))
        };
        let (length, total) = length.unwrap_or((body.len(), body.len()));
        self.push(Kind::Str, &body[..length], prefix + total);
    }

    /// A character (`'a'`, `'\n'`) or a lifetime (`'a`).
    fn quote(&mut self, rest: &'a str) {
        let mut characters = rest.char_indices().skip(1);
        let escaped = rest[1..].starts_with('\\');
        let end = if escaped {
            rest[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map(|(length, _)| length + 3)
        } else {
            characters.nth(1).filter(|(_, c)| *c == '\'').map(|(length, _)| length + 1)
        };
        let name =
            || rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |length| length + 1);
        let length = end.unwrap_or_else(name);
        self.push(Kind::Other, &rest[..length], length);
    }

    fn push(&mut self, kind: Kind, text: &'a str, length: usize) {
        self.tokens.push(Token { kind, text, line: self.line });
        self.advance(length);
    }

    fn advance(&mut self, length: usize) {
        self.line += self.source[self.position..self.position + length].matches('\n').count();
        self.position += length;
    }
}

/// The length of the characters that introduce a string literal: `"`, `r#"`, `b"`, `br"`, `c"`.
fn string_prefix(rest: &str) -> Option<usize> {
    let letters = rest.find(|c| !"brc".contains(c))?;
    let hashes = rest[letters..].find(|c| c != '#')?;
    let is_raw = rest[..letters].contains('r');
    let is_string = letters <= 2 && rest[letters + hashes..].starts_with('"') && (hashes == 0 || is_raw);
    is_string.then_some(letters + hashes + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_split_into_tokens() {
        use Kind::{Comment, Name, Other, Punctuation, Str};
        for (source, expected) in [
            ("fn f", vec![(Name, "fn"), (Name, "f")]),
            ("// one\n/// two\n//! three", vec![(Comment, " one"), (Comment, " two"), (Comment, " three")]),
            ("/* a /* b */ c */ x", vec![(Comment, " a /* b */ c "), (Name, "x")]),
            (r#""a \" // b" c"#, vec![(Str, r#"a \" // b"#), (Name, "c")]),
            (r##"r#"a " b"# c"##, vec![(Str, "a \" b"), (Name, "c")]),
            (r#"b"x" br"\" c"z""#, vec![(Str, "x"), (Str, "\\"), (Str, "z")]),
            ("'a' 'a x", vec![(Other, "'a'"), (Other, "'a"), (Name, "x")]),
            (r"'\'' '\u{1}' '\\'", vec![(Other, r"'\''"), (Other, r"'\u{1}'"), (Other, r"'\\'")]),
            ("0x1f_u8", vec![(Other, "0x1f_u8")]),
            ("r#type brc", vec![(Name, "type"), (Name, "brc")]),
            ("a.b", vec![(Name, "a"), (Punctuation, "."), (Name, "b")]),
            ("\"open", vec![(Str, "open")]),
        ] {
            let found: Vec<_> = tokens(source).into_iter().map(|token| (token.kind, token.text)).collect();
            assert_eq!(found, expected, "{source}");
        }
    }

    #[test]
    fn each_token_has_the_line_of_its_start() {
        let lines: Vec<_> = tokens("a\n\"b\nc\" d\n/*\n*/ e").into_iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5]);
    }
}
