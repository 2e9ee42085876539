//! The language of this repository: words of the field, one word per thing, and none of the glossary's banned words.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rules::items::items;
use rules::language::{Rules, is_no_function_name};
use rules::{crates, files, glossary, prose, read, sources};

fn rules_of_glossary() -> Rules {
    glossary::rules(&read(glossary::PATH))
}

#[test]
fn no_text_or_name_has_a_banned_word() {
    let rules = rules_of_glossary();
    assert!(rules.banned.len() > 40, "the glossary lists more words than {}", rules.banned.len());
    let mut found = Vec::new();
    for path in files("").into_iter().filter(|path| !path.ends_with(glossary::PATH)) {
        // A file that is not text has no prose.
        let Ok(source) = std::fs::read_to_string(rules::root().join(&path)) else { continue };
        for passage in prose::passages(&path, &source) {
            for finding in rules.find(&passage.text) {
                found.push((path.clone(), passage.line + finding.line, finding));
            }
        }
        if path.extension().is_some_and(|extension| extension == "rs") {
            for (line, name) in prose::names(&source) {
                found.extend(rules.find_in_name(name).into_iter().map(|finding| (path.clone(), line, finding)));
            }
        }
    }
    found.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
    let lines: Vec<_> = found
        .iter()
        .map(|(path, line, finding)| {
            format!("{}:{line}: {:?}; better: {}", path.display(), finding.words, finding.better)
        })
        .collect();
    assert!(lines.is_empty(), "{} banned words:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn no_function_is_named_by_a_bare_participle_or_preposition() {
    let mut found = Vec::new();
    let own_traits: Vec<String> = sources("")
        .iter()
        .flat_map(|path| {
            items(&read(path)).types.iter().filter(|it| it.is_trait).map(|it| it.name.to_owned()).collect::<Vec<_>>()
        })
        .collect();
    for path in sources("") {
        let source = read(&path);
        for function in items(&source).functions {
            // The functions of another crate's trait have that crate's names.
            let is_foreign = function.of_trait.is_some_and(|name| !own_traits.iter().any(|own| own == name));
            if !is_foreign && is_no_function_name(function.name) {
                found.push(format!("{}:{}: {}", path.display(), function.line, function.name));
            }
        }
    }
    assert!(found.is_empty(), "use a verb, or name the result:\n{}", found.join("\n"));
}

#[test]
fn each_type_name_is_defined_once_in_a_crate() {
    let mut found = Vec::new();
    for folder in crates() {
        let mut places: BTreeMap<(Option<PathBuf>, String), Vec<String>> = BTreeMap::new();
        let root = folder.join("src");
        for path in sources(&root.to_string_lossy()).into_iter().filter(|path| !path.ends_with("tests.rs")) {
            // Each binary is a crate of its own.
            let binary = path.strip_prefix(root.join("bin")).ok().map(|path| path.iter().take(1).collect());
            for it in items(&read(&path)).types.iter().filter(|it| !it.is_test) {
                let place = format!("{}:{}", path.display(), it.line);
                places.entry((binary.clone(), it.name.to_owned())).or_default().push(place);
            }
        }
        let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
        found.extend(twice.map(|((_, name), places)| format!("{name}: {}", places.join(", "))));
    }
    assert!(found.is_empty(), "types with one name:\n{}", found.join("\n"));
}
