//! The anatomy of this repository: small files, small folders, short functions, and no circle of imports.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rules::imports::{circles, graph};
use rules::items::items;
use rules::{crates, read, sources};

const MAX_FILE_LINES: usize = 600;

/// Source files in one folder.
const MAX_FOLDER_FILES: usize = 12;

/// Lines of a function outside of tables.
const MAX_FUNCTION_LINES: usize = 80;

#[test]
fn files_are_short() {
    let lengths = sources("").into_iter().map(|path| (read(&path).lines().count(), path));
    let found: Vec<_> = lengths.filter(|(lines, _)| *lines > MAX_FILE_LINES).collect();
    assert!(found.is_empty(), "files of more than {MAX_FILE_LINES} lines: {found:?}");
}

#[test]
fn folders_have_few_files() {
    let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for path in sources("") {
        *folders.entry(path.parent().map(PathBuf::from).unwrap_or_default()).or_default() += 1;
    }
    folders.retain(|_, count| *count > MAX_FOLDER_FILES);
    assert!(folders.is_empty(), "folders of more than {MAX_FOLDER_FILES} source files: {folders:?}");
}

#[test]
fn functions_are_short() {
    let mut found = Vec::new();
    for path in sources("") {
        let source = read(&path);
        let long = items(&source).functions.into_iter().filter(|function| function.lines > MAX_FUNCTION_LINES);
        found.extend(long.map(|it| format!("{}:{}: {} has {} lines", path.display(), it.line, it.name, it.lines)));
    }
    assert!(found.is_empty(), "functions of more than {MAX_FUNCTION_LINES} lines:\n{}", found.join("\n"));
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    for root in crates().into_iter().map(|folder| folder.join("src")) {
        let files: Vec<_> = sources(&root.to_string_lossy())
            .into_iter()
            .map(|path| (path.strip_prefix(&root).expect("a file below src").to_owned(), read(&path)))
            .collect();
        found.extend(circles(&graph(&files)).into_iter().map(|circle| (root.clone(), circle)));
    }
    assert!(found.is_empty(), "circles of imports: {found:#?}");
}
