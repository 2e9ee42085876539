//! Circles of imports between the files of a crate. Paths in the files → graph → circles.
//!
//! A re-export (`pub use`) is not an import: the root file of a folder exposes the items of the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::items::{self, items};

/// The module of a file below `src`: `a/b.rs` → `["a", "b"]`. `None` for a binary in `bin`, which is a crate of its
/// own.
fn module(file: &Path) -> Option<Vec<String>> {
    let mut segments: Vec<_> = file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if segments.first().is_some_and(|first| first == "bin") {
        return None;
    }
    if segments.last().is_some_and(|last| ["lib", "main", "mod"].contains(&&**last)) {
        segments.pop();
    }
    Some(segments)
}

/// For each file below `src` the files that it imports. Test modules are left out.
pub fn graph(files: &[(PathBuf, String)]) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let parsed: Vec<_> = files.iter().filter_map(|(file, source)| Some((module(file)?, file, items(source)))).collect();
    let tests: BTreeSet<Vec<String>> = parsed
        .iter()
        .flat_map(|(module, _, items)| {
            items.modules.iter().filter(|it| it.is_test).map(|it| [module.clone(), vec![it.name.to_owned()]].concat())
        })
        .collect();
    let is_test = |module: &[String]| (0..=module.len()).any(|length| tests.contains(&module[..length]));
    let modules: BTreeMap<&[String], &Path> =
        parsed.iter().map(|(module, file, _)| (module.as_slice(), file.as_path())).collect();
    let mut graph = BTreeMap::new();
    for (module, file, items) in parsed.iter().filter(|(module, ..)| !is_test(module)) {
        let targets = items.paths.iter().filter_map(|path| target(path, module, &modules));
        let targets = targets.filter(|target| target != file).map(Path::to_owned);
        graph.insert((*file).clone(), targets.collect());
    }
    graph
}

/// The file whose module is the longest beginning of a path.
fn target<'a>(path: &items::Path<'_>, module: &[String], modules: &BTreeMap<&[String], &'a Path>) -> Option<&'a Path> {
    let mut base = module.to_vec();
    let mut depth = path.depth;
    let mut segments = path.segments.iter().peekable();
    let mut is_relative = true;
    while let Some(first) = segments.peek() {
        match **first {
            "crate" => base.clear(),
            "super" if depth > 0 => depth -= 1,
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        is_relative = false;
        segments.next();
    }
    let full: Vec<String> = base.iter().cloned().chain(segments.map(|name| (*name).to_owned())).collect();
    // A path that begins with none of these words belongs to a child module or to another crate.
    let least = if is_relative { base.len() + 1 } else { 0 };
    (least..=full.len()).rev().find_map(|length| modules.get(&full[..length]).copied())
}

/// The groups of files that import each other in a circle, each sorted.
pub fn circles(graph: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Vec<Vec<PathBuf>> {
    let reachable: BTreeMap<_, _> = graph.keys().map(|file| (file, reach(graph, file))).collect();
    let is_mutual = |a: &PathBuf, b: &PathBuf| reachable[a].contains(b) && reachable[b].contains(a);
    let mut circles: BTreeSet<Vec<PathBuf>> = BTreeSet::new();
    for file in graph.keys() {
        let circle: Vec<_> = graph.keys().filter(|other| is_mutual(file, other)).cloned().collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reach<'a>(graph: &'a BTreeMap<PathBuf, BTreeSet<PathBuf>>, from: &PathBuf) -> BTreeSet<&'a PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for target in graph.get(file).into_iter().flatten() {
            if found.insert(target) {
                open.push(target);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_between_files_and_not_through_tests_or_re_exports() {
        for (files, expected) in [
            (vec![("a.rs", "use crate::b::B;"), ("b.rs", "use super::a::A;")], vec![vec!["a.rs", "b.rs"]]),
            (vec![("a.rs", "use crate::b::B;"), ("b.rs", "")], vec![]),
            (vec![("lib.rs", "pub use a::A; mod a;"), ("a.rs", "use crate::A;")], vec![]),
            (vec![("a.rs", "use b::B; mod b;"), ("a/b.rs", "use super::A;")], vec![vec!["a/b.rs", "a.rs"]]),
            (vec![("a.rs", "#[cfg(test)] mod tests;"), ("a/tests.rs", "use super::*;")], vec![]),
            (
                vec![("a.rs", "fn f() { crate::b::g() }"), ("b.rs", "fn g() { crate::a::f() }")],
                vec![vec!["a.rs", "b.rs"]],
            ),
            (
                vec![
                    ("a.rs", "use crate::b;"),
                    ("b.rs", "use crate::c;"),
                    ("c.rs", "use crate::{a, d};"),
                    ("d.rs", ""),
                ],
                vec![vec!["a.rs", "b.rs", "c.rs"]],
            ),
            (vec![("a.rs", "use serde::b;"), ("b.rs", "use crate::a;")], vec![]),
        ] {
            let named: Vec<_> = files.iter().map(|(file, text)| (PathBuf::from(file), (*text).to_owned())).collect();
            let expected: Vec<Vec<_>> =
                expected.into_iter().map(|circle| circle.into_iter().map(PathBuf::from).collect()).collect();
            assert_eq!(circles(&graph(&named)), expected, "{files:?}");
        }
    }
}
