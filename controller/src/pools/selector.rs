//! Which Services may have addresses of a pool: its parsed `serviceAllocation`.
//!
//! `serviceAllocation` → [`PoolSelector`]; namespace and labels of a Service → whether the pool admits it. The meaning
//! is MetalLB's. The namespace must be listed in `namespaces` or selected by `namespaceSelectors`; if both are empty,
//! any namespace is admitted. The Service must be selected by `serviceSelectors`; if that is empty, any Service is
//! admitted. An unreadable selector selects nothing, and its list does not count as empty.

use crds::ip_address_pool::ServiceAllocation;
use crds::{Labels, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Expression;

/// A parsed `serviceAllocation`.
#[derive(Debug)]
pub(crate) struct PoolSelector {
    /// Pools with a lower priority are tried first.
    pub(crate) priority: i32,
    /// Sorted.
    namespaces: Vec<String>,
    /// `None`: not specified.
    namespace_selectors: Option<Selectors>,
    service_selectors: Option<Selectors>,
}

/// Each selector is a list of expressions, all of which must match.
type Selectors = Vec<Vec<Expression>>;

impl PoolSelector {
    /// Returns the selector, and a sentence for each unreadable part.
    pub(crate) fn new(spec: &ServiceAllocation) -> (Self, Vec<String>) {
        let mut invalid = Vec::new();
        let namespace_selectors = parse_selectors(&spec.namespace_selectors, "namespaceSelectors", &mut invalid);
        let service_selectors = parse_selectors(&spec.service_selectors, "serviceSelectors", &mut invalid);
        let mut namespaces = spec.namespaces.clone();
        namespaces.sort();
        // Priority 0, the default, comes after all others.
        let priority = if spec.priority == 0 { i32::MAX } else { spec.priority };
        (Self { priority, namespaces, namespace_selectors, service_selectors }, invalid)
    }

    /// Whether the pool admits a Service with these labels in this namespace. A namespace with unknown labels (`None`)
    /// is selected only by name.
    pub(crate) fn admits(&self, namespace: &str, namespace_labels: Option<&Labels>, service_labels: &Labels) -> bool {
        let is_named = || self.names(namespace);
        let admits_namespace = match &self.namespace_selectors {
            None if self.namespaces.is_empty() => true,
            None => is_named(),
            Some(selectors) => is_named() || namespace_labels.is_some_and(|labels| match_any(selectors, labels)),
        };
        admits_namespace && self.admits_labels(service_labels)
    }

    /// Whether the labels of this namespace decide if the pool admits a Service with these labels.
    pub(crate) fn needs_namespace_labels(&self, namespace: &str, service_labels: &Labels) -> bool {
        self.namespace_selectors.is_some() && !self.names(namespace) && self.admits_labels(service_labels)
    }

    fn names(&self, namespace: &str) -> bool {
        self.namespaces.binary_search_by(|name| name.as_str().cmp(namespace)).is_ok()
    }

    fn admits_labels(&self, service_labels: &Labels) -> bool {
        self.service_selectors.as_ref().is_none_or(|selectors| match_any(selectors, service_labels))
    }
}

/// The readable selectors of a field; `None` if the field is empty. Adds a sentence to `invalid` for each of the
/// others.
fn parse_selectors(selectors: &[LabelSelector], field: &str, invalid: &mut Vec<String>) -> Option<Selectors> {
    if selectors.is_empty() {
        return None;
    }
    let mut parsed = Vec::new();
    for (index, selector) in selectors.iter().enumerate() {
        match parse_selector(selector) {
            Ok(expressions) => parsed.push(expressions),
            Err(problem) => invalid.push(format!("serviceAllocation.{field}[{index}] selects nothing: {problem}")),
        }
    }
    Some(parsed)
}

/// The expressions of a selector, or why it is unreadable. Kubernetes has no `In` or `NotIn` without values, and the
/// API server does not check that in our objects.
fn parse_selector(selector: &LabelSelector) -> Result<Vec<Expression>, String> {
    let expressions: Vec<_> = labels::parse_selector(selector).map_err(|error| error.0)?.into_iter().collect();
    if expressions.iter().any(has_no_values) { Err("In and NotIn need values".to_owned()) } else { Ok(expressions) }
}

fn has_no_values(expression: &Expression) -> bool {
    matches!(expression, Expression::In(_, values) | Expression::NotIn(_, values) if values.is_empty())
}

fn match_any(selectors: &Selectors, labels: &Labels) -> bool {
    selectors.iter().any(|expressions| expressions.iter().all(|expression| matches_labels(expression, labels)))
}

/// Whether labels match an expression. `kube` has a function for this, but it takes a map, which would have to be built
/// for each Service and pool.
fn matches_labels(expression: &Expression, labels: &Labels) -> bool {
    let get = |name: &str| labels.iter().find(|label| label.0 == name).map(|(_, value)| value);
    match expression {
        Expression::In(name, values) => get(name).is_some_and(|value| values.contains(value)),
        Expression::NotIn(name, values) => get(name).is_none_or(|value| !values.contains(value)),
        Expression::Equal(name, value) => get(name) == Some(value),
        Expression::NotEqual(name, value) => get(name) != Some(value),
        Expression::Exists(name) => get(name).is_some(),
        Expression::DoesNotExist(name) => get(name).is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::{Selector, SelectorExt};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn selector(spec: Value) -> (PoolSelector, Vec<String>) {
        PoolSelector::new(&serde_json::from_value(spec).expect("a serviceAllocation"))
    }

    #[test]
    fn namespaces_are_named_or_selected_and_services_selected() {
        let team = json!([{"matchLabels": {"team": "a"}}]);
        let web = json!([{"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "api"}}]);
        let bad = json!([{"matchExpressions": [{"key": "team", "operator": "Like", "values": ["a"]}]}]);
        // Each row lists the admitted Services of four namespaces: `web` (app=web) and `any` (no labels).
        // The namespace n1 is named, n2 has the label team=a, n3 has no label, and the labels of n4 are unknown.
        for (spec, admitted) in [
            (json!({}), ["web any", "web any", "web any", "web any"]),
            (json!({"priority": 7}), ["web any", "web any", "web any", "web any"]),
            (json!({"namespaces": ["n9", "n1"]}), ["web any", "", "", ""]),
            (json!({"namespaceSelectors": team}), ["", "web any", "", ""]),
            (json!({"namespaces": ["n1"], "namespaceSelectors": team}), ["web any", "web any", "", ""]),
            (json!({"serviceSelectors": web}), ["web", "web", "web", "web"]),
            (json!({"namespaces": ["n1"], "serviceSelectors": web}), ["web", "", "", ""]),
            (json!({"namespaceSelectors": [{}]}), ["web any", "web any", "web any", ""]),
            (json!({"namespaceSelectors": bad}), ["", "", "", ""]),
            (json!({"namespaces": ["n1"], "namespaceSelectors": bad}), ["web any", "", "", ""]),
            (json!({"serviceSelectors": bad}), ["", "", "", ""]),
        ] {
            let (selector, _) = selector(spec.clone());
            let none = Labels::default();
            let labels = Labels::from([("team", "a")]);
            let found = [("n1", Some(&none)), ("n2", Some(&labels)), ("n3", Some(&none)), ("n4", None)].map(
                |(namespace, namespace_labels)| {
                    let services = [("web", Labels::from([("app", "web")])), ("any", Labels::default())];
                    let names = services.iter().filter(|(_, own)| selector.admits(namespace, namespace_labels, own));
                    names.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
                },
            );
            assert_eq!(found, admitted, "{spec}");
        }
    }

    #[test]
    fn unreadable_selector_is_reported_with_its_field() {
        let (_, invalid) = selector(json!({
            "namespaceSelectors": [{}, {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["a"]}]}],
            "serviceSelectors": [{"matchExpressions": [{"key": "app", "operator": "NotIn", "values": []}]}],
        }));
        assert_eq!(
            invalid,
            [
                "serviceAllocation.namespaceSelectors[1] selects nothing: Invalid expression operator",
                "serviceAllocation.serviceSelectors[0] selects nothing: In and NotIn need values",
            ]
        );
    }

    proptest! {
        #[test]
        fn expressions_match_the_labels_that_kube_matches(
            operator in proptest::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
            key in "[ab]",
            values in proptest::collection::vec("[xy]", 1..3),
            labels in proptest::collection::btree_map("[ab]", "[xyz]", 0..3),
        ) {
            let is_set = operator.ends_with("In");
            let written = json!({"matchExpressions": [
                {"key": key, "operator": operator, "values": if is_set { json!(values) } else { json!(null) }},
            ], "matchLabels": if values.len() > 1 { json!({"a": "x"}) } else { json!({}) }});
            let written: LabelSelector = serde_json::from_value(written).expect("a selector");
            let selector: Selector = written.clone().try_into().expect("a selector");
            let expressions = parse_selector(&written).expect("a selector");
            let ours = match_any(&vec![expressions], &Labels::from(Some(&labels)));
            prop_assert_eq!(ours, selector.matches(&labels));
        }
    }
}
