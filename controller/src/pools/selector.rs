//! Which Services may have addresses of a pool: its `serviceAllocation`, read once.
//!
//! `serviceAllocation` → [`Fence`]; a Service's namespace and labels → whether it is admitted. It has MetalLB's meaning:
//! the namespace must be named or selected (where neither is asked for, any will do), and the Service selected (where
//! that is not asked for, any will do). A selector that can't be read is asked for all the same, and selects nothing.

use crds::ip_address_pool::ServiceAllocation;
use crds::{Labels, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Expression;

/// A pool's `serviceAllocation`.
#[derive(Debug)]
pub(crate) struct Fence {
    /// The lower, the earlier the pool is tried.
    pub(crate) priority: i32,
    /// In order.
    namespaces: Vec<String>,
    /// `None`: not asked for.
    namespace_selectors: Option<Selectors>,
    service_selectors: Option<Selectors>,
}

/// Each a list of expressions, all of which must hold.
type Selectors = Vec<Vec<Expression>>;

impl Fence {
    /// What was written, and a sentence for each selector of it that can't be read.
    pub(crate) fn new(written: &ServiceAllocation) -> (Self, Vec<String>) {
        let mut invalid = Vec::new();
        let mut read = |selectors: &[LabelSelector], place: &str| {
            let selectors = (!selectors.is_empty()).then_some(selectors)?.iter().enumerate();
            Some(
                selectors
                    .filter_map(|(index, selector)| match expressions(selector) {
                        Ok(expressions) => Some(expressions),
                        Err(problem) => {
                            invalid.push(format!("serviceAllocation.{place}[{index}] selects nothing: {problem}"));
                            None
                        }
                    })
                    .collect(),
            )
        };
        let namespace_selectors = read(&written.namespace_selectors, "namespaceSelectors");
        let service_selectors = read(&written.service_selectors, "serviceSelectors");
        let mut namespaces = written.namespaces.clone();
        namespaces.sort();
        // Zero is what is there when nothing was written, and is tried after all others.
        let priority = if written.priority == 0 { i32::MAX } else { written.priority };
        (Self { priority, namespaces, namespace_selectors, service_selectors }, invalid)
    }

    /// Whether a Service of that namespace and with these labels is admitted. A namespace whose labels nobody knows is
    /// selected by no selector.
    pub(crate) fn admits(&self, namespace: &str, namespace_labels: Option<&Labels>, service_labels: &Labels) -> bool {
        let is_named = || self.namespaces.binary_search_by(|name| name.as_str().cmp(namespace)).is_ok();
        let of_namespace = match &self.namespace_selectors {
            None if self.namespaces.is_empty() => true,
            None => is_named(),
            Some(selectors) => is_named() || namespace_labels.is_some_and(|labels| match_any(selectors, labels)),
        };
        of_namespace && self.service_selectors.as_ref().is_none_or(|selectors| match_any(selectors, service_labels))
    }
}

/// What a selector asks for; or why it can't be read. Kubernetes has no `In` or `NotIn` without values, and the API
/// server doesn't check that in our objects.
fn expressions(written: &LabelSelector) -> Result<Vec<Expression>, String> {
    let expressions: Vec<_> = labels::parse_selector(written).map_err(|error| error.0)?.into_iter().collect();
    let is_empty = |expression: &&Expression| matches!(expression, Expression::In(_, values) | Expression::NotIn(_, values) if values.is_empty());
    match expressions.iter().find(is_empty) {
        Some(_) => Err("In and NotIn need values".to_owned()),
        None => Ok(expressions),
    }
}

fn match_any(selectors: &Selectors, labels: &Labels) -> bool {
    selectors.iter().any(|expressions| expressions.iter().all(|expression| holds(expression, labels)))
}

/// Whether these labels are as the expression has it. `kube` could tell as well, of labels as a map: one would have to be
/// made for each Service and pool.
fn holds(expression: &Expression, labels: &Labels) -> bool {
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

    fn fence(written: Value) -> (Fence, Vec<String>) {
        Fence::new(&serde_json::from_value(written).expect("a serviceAllocation"))
    }

    #[test]
    fn namespaces_are_named_or_selected_and_services_selected() {
        let team = json!([{"matchLabels": {"team": "a"}}]);
        let web = json!([{"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "api"}}]);
        let bad = json!([{"matchExpressions": [{"key": "team", "operator": "Like", "values": ["a"]}]}]);
        // Who is admitted of: namespace n1 named, n2 with team=a, n3 neither, n4 unknown; each with app=web and without.
        for (written, admitted) in [
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
            let (fence, _) = fence(written.clone());
            let none = Labels::default();
            let labels = Labels::from([("team", "a")]);
            let found = [("n1", Some(&none)), ("n2", Some(&labels)), ("n3", Some(&none)), ("n4", None)].map(
                |(namespace, namespace_labels)| {
                    let services = [("web", Labels::from([("app", "web")])), ("any", Labels::default())];
                    let names = services.iter().filter(|(_, own)| fence.admits(namespace, namespace_labels, own));
                    names.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
                },
            );
            assert_eq!(found, admitted, "{written}");
        }
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_said_with_its_place() {
        let (_, invalid) = fence(json!({
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
        fn an_expression_holds_when_kube_says_so(
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
            let expressions = expressions(&written).expect("a selector");
            let ours = match_any(&vec![expressions], &Labels::from(Some(&labels)));
            prop_assert_eq!(ours, selector.matches(&labels));
        }
    }
}
