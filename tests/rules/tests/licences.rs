//! All dependencies of the binary and of its tests have a licence that `deny.toml` allows.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn every_dependency_has_an_allowed_licence() {
    let rules = std::fs::read_to_string(rules::root().join("deny.toml")).expect("deny.toml");
    let list = rules.split("allow = [").nth(1).and_then(|rest| rest.split(']').next()).expect("a list of licences");
    let allowed: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-musl"])
        .current_dir(rules::root())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "more packages are expected than {}", packages.len());
    let refused: Vec<_> = packages
        .iter()
        .map(|package| (&package["name"], package["license"].as_str().unwrap_or("none")))
        .filter(|(_, licence)| !is_allowed(licence, &allowed))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml: {refused:?}");
}

/// Whether an SPDX expression can be satisfied with the allowed licences. `/` is an old notation for OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ");
    // AND binds tighter than OR. Parentheses enclose only alternatives.
    let all = |part: &str| part.split(" AND ").all(|name| allowed.contains(name.trim_matches(['(', ')', ' '])));
    if let Some((alternatives, rest)) = expression.strip_prefix('(').and_then(|text| text.split_once(") AND ")) {
        return alternatives.split(" OR ").any(all) && all(rest);
    }
    expression.split(" OR ").any(all)
}

#[test]
fn licence_expressions_follow_spdx() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Unicode-3.0"]);
    for (expression, expected) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0 OR LGPL-2.1", false),
        ("MIT AND GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND OpenSSL", false),
        ("none", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
