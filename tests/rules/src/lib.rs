//! The rules of this repository that a compiler does not check. Each rule is a test in `tests/`; the scanners that they
//! share are here.
//!
//! ```text
//! files --> rust (tokens) --> items (functions, types) --> imports (circles)
//!   |          |
//!   |          +--> prose (comments, strings, names) --> language (banned words) <-- glossary
//!   +--> markdown -^
//! ```

use std::path::{Path, PathBuf};

pub mod glossary;
pub mod imports;
pub mod items;
pub mod language;
pub mod markdown;
pub mod prose;
pub mod rust;

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Reads a file of the repository.
///
/// # Panics
/// If the file cannot be read.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the repository below `folder`, sorted, with their paths from the root. A file is listed as itself.
/// Skips `target` and hidden files.
pub fn files(folder: &str) -> Vec<PathBuf> {
    if root().join(folder).is_file() {
        return vec![PathBuf::from(folder)];
    }
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).expect("a folder of the repository") {
            let entry = entry.expect("an entry of a folder");
            let name = entry.file_name();
            if name == "target" || name.to_string_lossy().starts_with('.') {
                continue;
            }
            let path = if folder == Path::new("") { PathBuf::from(name) } else { folder.join(name) };
            if entry.file_type().expect("a type of file").is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The files below `folder` with this extension.
pub fn files_with_extension(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = files(folder);
    found.retain(|path| path.extension().is_some_and(|it| it == extension));
    found
}

/// The files below `folder` that contain Rust.
pub fn sources(folder: &str) -> Vec<PathBuf> {
    files_with_extension(folder, "rs")
}

/// The crates of the repository, as their folders.
pub fn crates() -> Vec<PathBuf> {
    let manifests = files("").into_iter().filter(|path| path.ends_with("Cargo.toml"));
    let folders = manifests.filter_map(|path| path.parent().map(Path::to_owned));
    folders.filter(|folder| root().join(folder).join("src").is_dir()).collect()
}
