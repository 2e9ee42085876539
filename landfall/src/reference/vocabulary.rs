//! Annotations, labels, conditions, reasons and events, from the sources and their comments.

use std::path::Path;

use super::markdown::{code, table};
use super::root;

/// The sources with constants and enums of the API.
const SOURCES: [&str; 7] = [
    "crds/src/views/service.rs",
    "crds/src/views/request.rs",
    "crds/src/views/forwarding.rs",
    "crds/src/views/node.rs",
    "crds/src/objects/load_balancer_ip.rs",
    "agent/src/keys/secret.rs",
    "controller/src/status/reason.rs",
];

pub(super) fn section() -> String {
    let sources = SOURCES.map(|path| std::fs::read_to_string(root().join(path)).expect(path));
    let constants: Vec<_> = sources.iter().flat_map(|source| constants(source)).collect();
    let enums: Vec<_> = sources.iter().flat_map(|source| enums(source)).collect();
    let named = |kind: &str| {
        let rows = constants.iter().filter(|constant| constant.is_kind(kind));
        table(["name", "meaning"], rows.map(|constant| [constant.names(), constant.about.clone()]))
    };
    let words = |names: &[&str], title: &str| {
        let all = names.iter().flat_map(|name| &enums.iter().find(|words| words.name == *name).expect(name).variants);
        table([title, "meaning"], all.map(|(variant, about)| [code(variant), about.clone()]))
    };
    format!(
        "## Annotations\n\n{}\n## Labels\n\n{}\n## Conditions of a Service\n\n{}\n\
         ### Reasons of Allocated, false\n\nThe fixes are in [why-pending.md](../guide/why-pending.md).\n\n{}\n\
         ### Reasons of Allocated, true\n\n{}\n\
         ### Reasons of Announced\n\n\
         The fixes are in [announcing-reference.md](../guide/announcing-reference.md).\n\n{}\n\
         ### Reasons of Forwarding\n\nThe fixes are in [forwarding-reference.md](../guide/forwarding-reference.md).\n\n\
         {}\n## Conditions of an IPAddressPool\n\n{}\n### Reasons of the conditions of a pool\n\n{}\n\
         ## Events\n\nThe reason of an event. A reason of `Allocated`, true, is also the reason of a Warning about the \
         Service.\n\n{}",
        named("annotation"),
        named("label"),
        named("condition"),
        words(&["RefusalReason"], "reason"),
        words(&["AllocatedReason"], "reason"),
        words(&["AnnouncedReason"], "reason"),
        words(&["Reach", "ForwardingReason", "ProblemReason"], "reason"),
        words(&["PoolCondition"], "condition"),
        words(&["PoolReason"], "reason"),
        words(&["EventReason"], "reason"),
    )
}

/// A constant with names of the API, and its comment.
struct Constant {
    values: Vec<String>,
    about: String,
}

impl Constant {
    fn is_kind(&self, kind: &str) -> bool {
        let about = self.about.to_lowercase();
        let start = about.trim_start_matches("the ");
        start.starts_with(kind)
    }

    fn names(&self) -> String {
        self.values.iter().map(|value| code(value)).collect::<Vec<_>>().join(", ")
    }
}

/// An enum of [`crds::words!`] or `ForwardingReason`, with the comments of its variants that have no fields.
struct Words {
    name: String,
    variants: Vec<(String, String)>,
}

/// The constants whose values are names of the API: they contain a slash.
fn constants(source: &str) -> Vec<Constant> {
    let mut found = Vec::new();
    let mut comment = Vec::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
            continue;
        }
        let about = readable(&std::mem::take(&mut comment));
        if !line.contains("const ") || !line.contains("&str") {
            continue;
        }
        let mut text = line.to_owned();
        while !text.ends_with(';') {
            let Some(next) = lines.next() else { break };
            text += next;
        }
        let values = text.split('"').skip(1).step_by(2).filter(|value| value.contains('/')).map(str::to_owned);
        let values: Vec<_> = values.collect();
        if !values.is_empty() {
            found.push(Constant { values, about });
        }
    }
    found
}

fn enums(source: &str) -> Vec<Words> {
    let mut found = Vec::new();
    let plain = source.split_once("pub enum ForwardingReason").map(|(_, block)| format!("ForwardingReason{block}"));
    let blocks = source.split("words! {\n").skip(1).map(str::to_owned);
    for block in blocks.chain(plain) {
        let mut comment = Vec::new();
        let mut words = None::<Words>;
        for line in block.lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("///") {
                comment.push(text.trim());
            } else if let Some(name) = line.strip_suffix(" {") {
                comment.clear();
                words = Some(Words { name: name.to_owned(), variants: Vec::new() });
            } else if line == "}" {
                break;
            } else if let (Some(words), Some(variant)) = (&mut words, line.strip_suffix(',')) {
                let about = readable(&std::mem::take(&mut comment));
                words.variants.extend((!variant.contains('(')).then(|| (variant.to_owned(), about)));
            }
        }
        found.extend(words);
    }
    found
}

/// The lines of a comment as one text, without links of rustdoc.
fn readable(lines: &[&str]) -> String {
    lines.join(" ").replace("[`", "`").replace("`]", "`")
}

#[test]
fn constants_and_words_are_read_with_their_comments() {
    let source = "
        /// Label of [`X`]s,
        /// old.
        pub const A: [&str; 2] =
            [\"a.b/c\", \"d/e\"];
        /// Not a name.
        const B: &str = \"b\";
        words! {
            /// About.
            #[derive(Default)]
            Kind {
                /// First.
                One,
                Two,
            }
        }";
    let constants = constants(source);
    assert_eq!(constants.len(), 1);
    assert_eq!((constants[0].names().as_str(), constants[0].about.as_str()), ("`a.b/c`, `d/e`", "Label of `X`s, old."));
    assert!(constants[0].is_kind("label") && !constants[0].is_kind("annotation"));
    let enums = enums(source);
    assert_eq!(enums[0].name, "Kind");
    assert_eq!(enums[0].variants, [("One".into(), "First.".into()), ("Two".into(), String::new())]);
}

/// Each constant of the product with a name of Landfall's group is in one of the [`SOURCES`].
#[test]
fn all_names_of_the_api_are_in_the_reference() {
    let text = section();
    let mut missing = Vec::new();
    for folder in ["crds/src", "agent/src", "controller/src", "model/src", "dataplane/src", "speaker/src"] {
        visit(&root().join(folder), &mut |source| {
            for constant in constants(source) {
                let names = constant.values.iter().filter(|value| value.starts_with("landfall.dev/"));
                missing.extend(names.filter(|name| !text.contains(&code(name))).cloned());
            }
        });
    }
    // The class, and the name of the controller in events.
    missing.retain(|name| !["landfall.dev/landfall", "landfall.dev/controller"].contains(&name.as_str()));
    assert_eq!(missing, [""; 0]);
}

#[test]
fn all_reasons_are_in_the_reference() {
    let text = section();
    let all = |words: &[&'static str]| words.iter().all(|word| text.contains(&code(word)));
    assert!(controller::ForwardingReason::all().all(|reason| all(&[reason.as_str()])));
    for (name, words) in [
        ("RefusalReason", controller::RefusalReason::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>()),
        ("AllocatedReason", controller::AllocatedReason::ALL.iter().map(|word| word.as_str()).collect()),
        ("AnnouncedReason", controller::AnnouncedReason::ALL.iter().map(|word| word.as_str()).collect()),
        ("PoolCondition", controller::PoolCondition::ALL.iter().map(|word| word.as_str()).collect()),
        ("PoolReason", controller::PoolReason::ALL.iter().map(|word| word.as_str()).collect()),
        ("EventReason", controller::EventReason::ALL.iter().map(|word| word.as_str()).collect()),
    ] {
        assert!(all(&words), "{name}");
    }
    let without_meaning = text.lines().filter(|line| line.ends_with("` |  |")).collect::<Vec<_>>();
    assert_eq!(without_meaning, [""; 0], "a word without a comment");
}

fn visit(path: &Path, read: &mut impl FnMut(&str)) {
    for entry in std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            visit(&entry, read);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            read(&std::fs::read_to_string(entry).expect("a source"));
        }
    }
}
