//! The policies of deploy/landfall.yaml hold in any namespace: only their bindings name it.

use rules::read;

const MANIFEST: &str = "deploy/landfall.yaml";
const NAMESPACE: &str = "landfall-system";

/// The objects of this kind.
fn objects<'a>(manifest: &'a str, kind: &str) -> Vec<&'a str> {
    let kind = format!("kind: {kind}");
    manifest.split("\n---\n").filter(|object| object.lines().any(|line| line == kind)).collect()
}

/// The value of the first line with this key, at any depth.
fn value<'a>(object: &'a str, key: &str) -> &'a str {
    let found = object.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("no {key} in:\n{object}"))
}

#[test]
fn each_policy_is_bound_to_an_account_of_the_installation() {
    let manifest = read(MANIFEST);
    let (policies, bindings) =
        (objects(&manifest, "ValidatingAdmissionPolicy"), objects(&manifest, "ValidatingAdmissionPolicyBinding"));
    let accounts: Vec<_> = objects(&manifest, "ServiceAccount").into_iter().map(|it| value(it, "name")).collect();
    assert_eq!((policies.len(), accounts.len()), (5, 2), "{MANIFEST}");
    for policy in policies {
        let name = value(policy, "name");
        assert_eq!(value(policy, "failurePolicy"), "Fail", "{name}");
        assert_eq!(value(policy, "paramKind"), "{apiVersion: v1, kind: ServiceAccount}", "{name}");
        assert!(!policy.contains(NAMESPACE), "{name} names the namespace");
        // `landfall uninstall` deletes the binding with the name of the policy.
        let binding = bindings.iter().find(|binding| value(binding, "name") == name);
        let binding = binding.unwrap_or_else(|| panic!("{name} has no binding of its name"));
        assert_eq!((value(binding, "policyName"), value(binding, "validationActions")), (name, "[Deny]"));
        let parameter = value(binding, "paramRef");
        let is_account = |account: &&str| parameter.contains(&format!("{{name: {account}, namespace: {NAMESPACE}, "));
        assert!(accounts.iter().any(is_account), "{name}: {parameter}");
    }
}
