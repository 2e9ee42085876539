//! The functions and types of a source file. Tokens → items, each with its lines, and whether it is test code.
//!
//! Braces are matched, types are not resolved. That is enough for files that compile.

use crate::rust::{Kind, Token, tokens};

/// A function with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub name: &'a str,
    pub line: usize,
    /// Lines from the `fn` to the closing brace, without those inside of tables: bracketed lists, JSON and strings.
    pub lines: usize,
    /// The trait of the enclosing `impl Trait for Type`.
    pub of_trait: Option<&'a str>,
    pub is_test: bool,
}

/// A struct, enum, union, trait or type alias. Associated types are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type<'a> {
    pub name: &'a str,
    pub line: usize,
    pub is_trait: bool,
    pub is_test: bool,
}

/// A `mod name;` without a body in the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    pub name: &'a str,
    pub is_test: bool,
}

/// A path that begins with `crate`, `super` or `self`, or the path of a `use`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    pub segments: Vec<&'a str>,
    /// Whether it is the path of a `use`.
    pub is_use: bool,
    /// Number of enclosing inline modules.
    pub depth: usize,
}

/// All items of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items<'a> {
    pub functions: Vec<Function<'a>>,
    pub types: Vec<Type<'a>>,
    pub modules: Vec<Module<'a>>,
    /// Paths outside of test code, without those of `pub use`.
    pub paths: Vec<Path<'a>>,
    /// The first and last lines of the blocks of test code.
    pub test_blocks: Vec<(usize, usize)>,
}

/// The items of a source file.
pub fn items(source: &str) -> Items<'_> {
    let all = tokens(source);
    let code: Vec<_> = all.into_iter().filter(|token| token.kind != Kind::Comment).collect();
    let mut scanner = Scanner { code: &code, at: 0, blocks: Vec::new(), is_test: false, items: Items::default() };
    while scanner.at < code.len() {
        scanner.step();
    }
    scanner.items
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind<'a> {
    Impl(Option<&'a str>),
    Trait,
    Module,
    Function,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Block<'a> {
    kind: BlockKind<'a>,
    line: usize,
    is_test: bool,
}

struct Scanner<'s, 'a> {
    code: &'s [Token<'a>],
    at: usize,
    blocks: Vec<Block<'a>>,
    /// Whether an attribute marks the next item as test code.
    is_test: bool,
    items: Items<'a>,
}

impl<'a> Scanner<'_, 'a> {
    fn step(&mut self) {
        let token = self.code[self.at];
        match token.text {
            "#" if token.is('#') && self.peek(1).is_some_and(|next| next.is('[')) => self.attribute(),
            "{" if token.is('{') => self.open(BlockKind::Other),
            "}" if token.is('}') => {
                if let Some(block) = self.blocks.pop().filter(|block| block.is_test) {
                    self.items.test_blocks.push((block.line, token.line));
                }
                self.at += 1;
            }
            ";" if token.is(';') => {
                self.is_test = false;
                self.at += 1;
            }
            "fn" if token.kind == Kind::Name && self.is_before_name() => self.function(),
            "struct" | "enum" | "union" | "trait" | "type" if token.kind == Kind::Name && self.is_before_name() => {
                self.type_()
            }
            "mod" if token.kind == Kind::Name && self.is_before_name() => self.module(),
            "impl" if token.kind == Kind::Name => self.implementation(),
            "use" if token.kind == Kind::Name => self.use_(),
            "crate" | "super" if token.kind == Kind::Name && self.starts_path() => self.path(),
            _ => self.at += 1,
        }
    }

    fn peek(&self, distance: usize) -> Option<Token<'a>> {
        self.code.get(self.at + distance).copied()
    }

    /// Whether a name follows.
    fn is_before_name(&self) -> bool {
        self.peek(1).is_some_and(|next| next.kind == Kind::Name)
    }

    fn starts_path(&self) -> bool {
        self.peek(1).is_some_and(|next| next.is(':')) && self.peek(2).is_some_and(|next| next.is(':'))
    }

    fn in_test(&self) -> bool {
        self.is_test || self.blocks.iter().any(|block| block.is_test)
    }

    fn open(&mut self, kind: BlockKind<'a>) {
        let line = self.code[self.at].line;
        self.blocks.push(Block { kind, line, is_test: self.is_test });
        self.is_test = false;
        self.at += 1;
    }

    /// The index of the delimiter that closes the one at `open`.
    fn closing(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (offset, token) in self.code[open..].iter().enumerate() {
            match token.text {
                "(" | "[" | "{" if token.kind == Kind::Punctuation => depth += 1,
                ")" | "]" | "}" if token.kind == Kind::Punctuation => {
                    depth -= 1;
                    if depth == 0 {
                        return open + offset;
                    }
                }
                _ => {}
            }
        }
        self.code.len() - 1
    }

    /// The index of the next `{` or `;` outside of parentheses and brackets.
    fn body(&self, from: usize) -> usize {
        let mut index = from;
        while index < self.code.len() {
            let token = &self.code[index];
            if token.is('{') || token.is(';') {
                return index;
            }
            index = if token.is('(') || token.is('[') { self.closing(index) + 1 } else { index + 1 };
        }
        self.code.len()
    }

    fn attribute(&mut self) {
        let end = self.closing(self.at + 1);
        let names: Vec<_> = self.code[self.at..end].iter().filter(|token| token.kind == Kind::Name).collect();
        let first = names.first().map(|token| token.text);
        let is_negated = names.iter().any(|token| token.text == "not");
        let has_test = names.iter().any(|token| token.text == "test");
        self.is_test |=
            has_test && !is_negated && (first == Some("cfg") || names.last().is_some_and(|t| t.text == "test"));
        self.at = end + 1;
    }

    fn function(&mut self) {
        let (name, line) = (self.code[self.at + 1].text, self.code[self.at].line);
        let body = self.body(self.at + 2);
        let is_test = self.in_test();
        let of_trait = match self.blocks.last() {
            Some(Block { kind: BlockKind::Impl(name), .. }) => *name,
            _ => None,
        };
        if self.code.get(body).is_some_and(|token| token.is('{')) {
            let lines = self.lines_outside_tables(self.at, self.closing(body));
            self.items.functions.push(Function { name, line, lines, of_trait, is_test });
            self.at = body;
            self.open(BlockKind::Function);
        } else {
            self.at = body;
        }
    }

    /// Counts the lines from one token to another without those that lie inside of tables.
    fn lines_outside_tables(&self, first: usize, last: usize) -> usize {
        let mut inside = 0;
        let mut index = first;
        while index < last {
            let token = &self.code[index];
            let is_json = index >= 2 && self.code[index - 1].is('!') && self.code[index - 2].is_name("json");
            let opens = |token: &Token<'_>| token.is('(') || token.is('[') || token.is('{');
            if token.is('[') || (is_json && opens(token)) {
                let end = self.closing(index);
                inside += self.code[end].line.saturating_sub(token.line + 1);
                index = end;
            } else if token.kind == Kind::Str {
                inside += token.text.matches('\n').count();
            }
            index += 1;
        }
        self.code[last].line - self.code[first].line + 1 - inside
    }

    fn type_(&mut self) {
        let (keyword, name) = (self.code[self.at].text, self.code[self.at + 1]);
        let is_associated =
            matches!(self.blocks.last(), Some(Block { kind: BlockKind::Impl(_) | BlockKind::Trait, .. }));
        let is_test = self.in_test();
        let is_trait = keyword == "trait";
        if keyword != "type" || !is_associated {
            self.items.types.push(Type { name: name.text, line: name.line, is_trait, is_test });
        }
        self.at = self.body(self.at + 2);
        if self.code.get(self.at).is_some_and(|token| token.is('{')) {
            self.open(if is_trait { BlockKind::Trait } else { BlockKind::Other });
        }
    }

    fn module(&mut self) {
        let name = self.code[self.at + 1].text;
        let is_test = self.in_test();
        self.at += 2;
        if self.peek(0).is_some_and(|token| token.is('{')) {
            self.open(BlockKind::Module);
        } else {
            self.items.modules.push(Module { name, is_test });
        }
    }

    fn implementation(&mut self) {
        let body = self.body(self.at);
        // `impl Trait` as a type has no body of its own. In a signature, `function` has skipped it. Elsewhere, `body`
        // finds the next `;` or the body of the next item.
        let mut angles = 0i32;
        let mut last = None;
        let mut of_trait = None;
        for index in self.at + 1..body {
            let token = &self.code[index];
            let is_arrow = token.is('>') && (self.code[index - 1].is('-') || self.code[index - 1].is('='));
            match token.text {
                "<" => angles += 1,
                ">" if !is_arrow => angles -= 1,
                "for" if angles == 0 => of_trait = last,
                _ if angles == 0 && token.kind == Kind::Name && of_trait.is_none() => last = Some(token.text),
                _ => {}
            }
        }
        self.at = body;
        if self.code.get(body).is_some_and(|token| token.is('{')) {
            self.open(BlockKind::Impl(of_trait));
        }
    }

    fn use_(&mut self) {
        let is_public = self.at.checked_sub(1).is_some_and(|before| {
            let before = &self.code[before];
            before.is_name("pub") || before.is(')')
        });
        let end = self.body_of_use();
        if !is_public && !self.in_test() {
            let depth = self.depth();
            let mut paths = Vec::new();
            use_tree(&self.code[self.at + 1..end], &[], &mut paths);
            self.items.paths.extend(paths.into_iter().map(|segments| Path { segments, is_use: true, depth }));
        }
        self.is_test = false;
        self.at = end + 1;
    }

    fn body_of_use(&self) -> usize {
        self.code[self.at..]
            .iter()
            .position(|token| token.is(';'))
            .map_or(self.code.len() - 1, |length| self.at + length)
    }

    fn path(&mut self) {
        let mut segments = vec![self.code[self.at].text];
        let mut index = self.at + 1;
        while let Some([colon, other, name]) = self.code.get(index..index + 3)
            && colon.is(':')
            && other.is(':')
            && name.kind == Kind::Name
        {
            segments.push(name.text);
            index += 3;
        }
        // `pub(crate)` and `pub(in crate::a)` import nothing.
        let is_visibility = self.at.checked_sub(1).is_some_and(|before| self.code[before].is_name("in"));
        if !is_visibility && !self.in_test() {
            let depth = self.depth();
            self.items.paths.push(Path { segments, is_use: false, depth });
        }
        self.at = index;
    }

    fn depth(&self) -> usize {
        self.blocks.iter().filter(|block| block.kind == BlockKind::Module).count()
    }
}

/// Adds all paths of a `use` tree: `a::{b, c::d}` → `a::b`, `a::c::d`.
fn use_tree<'a>(tree: &[Token<'a>], prefix: &[&'a str], paths: &mut Vec<Vec<&'a str>>) {
    let mut path = prefix.to_vec();
    let mut index = 0;
    while let Some(token) = tree.get(index) {
        if token.is('{') {
            let mut depth = 0;
            let mut start = index + 1;
            for (offset, token) in tree.iter().enumerate().skip(index) {
                match token.text {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ => {}
                }
                if (depth == 1 && token.is(',')) || depth == 0 {
                    if start < offset {
                        use_tree(&tree[start..offset], &path, paths);
                    }
                    start = offset + 1;
                }
                if depth == 0 {
                    break;
                }
            }
            return;
        }
        if token.is_name("as") {
            break;
        }
        if token.kind == Kind::Name && (path.is_empty() || !token.is_name("self")) {
            path.push(token.text);
        }
        index += 1;
    }
    paths.push(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_trait_and_are_marked_as_tests() {
        let source = "fn a() {}\nimpl<T: Fn() -> u8> From<T> for B { fn from(x: T) -> B { fn inner() {} } }\n\
                      impl B { fn c(&self) {} }\ntrait D { fn e(); fn f() {} }\n\
                      #[cfg(test)]\nmod tests { fn g() {} }\n#[tokio::test]\nasync fn h() {}\n\
                      #[cfg(not(test))] fn i() {}\nlet p: fn(u8) = x;";
        let found: Vec<_> = items(source).functions.into_iter().map(|f| (f.name, f.of_trait, f.is_test)).collect();
        assert_eq!(
            found,
            [
                ("a", None, false),
                ("from", Some("From"), false),
                ("inner", None, false),
                ("c", None, false),
                ("f", None, false),
                ("g", None, true),
                ("h", None, true),
                ("i", None, false),
            ]
        );
    }

    #[test]
    fn lines_of_tables_are_not_counted() {
        for (source, lines) in [
            ("fn a() {}", 1),
            ("fn a(\n x: u8,\n) {\n x\n}", 5),
            ("fn a() {\n for x in [\n  1,\n  2,\n ] {\n }\n}", 5),
            ("fn a() {\n vec![\n  f(|| {\n   1\n  }),\n ]\n}", 4),
            ("fn a() {\n \"one\n two\n three\"\n}", 3),
            ("fn a() {\n json!({\n  \"a\": 1,\n })\n}", 4),
        ] {
            assert_eq!(items(source).functions[0].lines, lines, "{source}");
        }
    }

    #[test]
    fn types_are_found_without_associated_ones() {
        let source = "struct A;\npub enum B { C }\ntrait D { type E; }\nimpl D for A { type E = u8; }\ntype F = u8;\n\
                      fn f() { struct G {} }\n#[cfg(test)]\nmod tests { struct H; }\nunion I { a: u8 }\n";
        let found: Vec<_> = items(source).types.into_iter().map(|it| (it.name, it.line, it.is_test)).collect();
        let expected = [("A", 1), ("B", 2), ("D", 3), ("F", 5), ("G", 6), ("H", 8), ("I", 9)]
            .map(|(name, line)| (name, line, name == "H"));
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_are_those_of_imports_and_of_code() {
        let source = "use crate::a::{self, b::C, d as e};\npub use crate::x::Y;\npub(crate) use z::Y;\n\
                      fn f() { crate::g::h(); }\nmod tests;\n#[cfg(test)]\nmod unit { use super::*; }\n\
                      mod inner { use super::i; }\npub(in crate::j) fn k() {}\n";
        let found = items(source);
        let paths: Vec<_> =
            found.paths.iter().map(|path| (path.segments.join("::"), path.is_use, path.depth)).collect();
        let expected = [
            ("crate::a", true, 0),
            ("crate::a::b::C", true, 0),
            ("crate::a::d", true, 0),
            ("crate::g::h", false, 0),
            ("super::i", true, 1),
        ];
        assert_eq!(paths, expected.map(|(path, is_use, depth)| (path.to_owned(), is_use, depth)));
        assert_eq!(found.modules, [Module { name: "tests", is_test: false }]);
        assert_eq!(found.test_blocks, [(7, 7)]);
    }
}
