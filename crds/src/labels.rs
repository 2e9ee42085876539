//! Labels and label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector, SelectorExt};

/// Labels of an object, sorted by key. A boxed slice takes less memory than a map, and tens of thousands of objects
/// with few labels each stay in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// Copies the labels into a map.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Key and value of each label, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the selectors matches. An empty list matches nothing.
    pub fn match_any(&self, selectors: &[Selector]) -> bool {
        !selectors.is_empty() && {
            let labels = self.to_map();
            selectors.iter().any(|selector| selector.matches(&labels))
        }
    }
}

impl From<Option<&BTreeMap<String, String>>> for Labels {
    fn from(labels: Option<&BTreeMap<String, String>>) -> Self {
        let pairs = labels.into_iter().flatten();
        Self(pairs.map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Labels {
    fn from(labels: [(&str, &str); N]) -> Self {
        let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self::from(Some(&labels))
    }
}

/// Parses a selector. An empty selector matches everything.
///
/// # Errors
/// If an operator is unknown. In objects of a CustomResourceDefinition, the API server checks operators only if the
/// schema lists them. The schema of L2Advertisements does, that of IPAddressPools does not.
pub fn parse_selector(selector: &LabelSelector) -> Result<Selector, ParseExpressionError> {
    selector.clone().try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn list_of_selectors_matches_if_one_matches() {
        let labels = Labels::from([("app", "web"), ("tier", "front")]);
        let selectors = |written: serde_json::Value| -> Vec<Selector> {
            let written: Vec<LabelSelector> = serde_json::from_value(written).expect("selectors");
            written.iter().map(|written| parse_selector(written).expect("a selector")).collect()
        };
        for (written, matches) in [
            (json!([]), false),
            (json!([{}]), true),
            (json!([{"matchLabels": {"app": "web"}}]), true),
            (json!([{"matchLabels": {"app": "web", "tier": "back"}}]), false),
            (
                json!([{"matchLabels": {"app": "db"}}, {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}]),
                true,
            ),
            (json!([{"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]}]), false),
        ] {
            assert_eq!(labels.match_any(&selectors(written.clone())), matches, "{written}");
        }
    }

    #[test]
    fn unknown_operator_is_refused() {
        let written = json!({"matchExpressions": [{"key": "tier", "operator": "Like", "values": ["f"]}]});
        let written: LabelSelector = serde_json::from_value(written).expect("a selector");
        assert!(parse_selector(&written).is_err());
    }
}
