//! `L2Advertisement`: which nodes announce the addresses of a pool, and on which links.

#![allow(clippy::duplicated_attributes, reason = "printer columns may share a type")]

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::labels::{self, Labels};

/// Maximum number of entries in each list. Bounds the cost of matching.
const MAX_ENTRIES: usize = 256;

/// Maximum length of the name of a network interface in Linux: `IFNAMSIZ` without the terminating zero.
const MAX_NAME: usize = 15;

/// Which nodes announce load-balancer addresses by ARP and NDP, on which network interfaces, and which nodes are
/// preferred.
///
/// L2Advertisements are optional: any node may announce the addresses of a pool that no L2Advertisement selects.
/// If some select the pool, only those apply. A node may announce an address if one of them selects the node and a
/// Service that holds the address.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "L2Advertisement",
    plural = "l2advertisements",
    shortname = "lbl2",
    category = "landfall",
    derive = "PartialEq",
    doc = "Which nodes announce load-balancer addresses by ARP and NDP, on which network interfaces, and which nodes \
           are preferred. L2Advertisements are optional: any node may announce the addresses of a pool that no \
           L2Advertisement selects. An L2Advertisement selects pools by name or by label; without either it selects \
           all. If some select the pool, only those apply. A node may announce an address if one of them selects the \
           node and a Service that holds the address. On each link one node announces the address, however many \
           L2Advertisements select it.",
    printcolumn(name = "Pools", type_ = "string", json_path = ".spec.ipAddressPools"),
    printcolumn(name = "Interfaces", type_ = "string", json_path = ".spec.interfaces"),
    printcolumn(
        name = "Weights",
        type_ = "string",
        json_path = ".spec.preferredNodeSelectors[*].weight",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// Names of the pools that this L2Advertisement selects. At most 256 entries. Default: none. If
    /// `ipAddressPoolSelectors` is empty too, all pools are selected. Names of missing pools are ignored. Example:
    /// `lan`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "pool_names")]
    pub ip_address_pools: Vec<String>,

    /// Label selectors for pools. A pool is selected if it matches at least one entry or is named in `ipAddressPools`.
    /// At most 256 entries. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,

    /// Label selectors for the nodes that may announce the addresses. A node must match at least one entry. At most 256
    /// entries. Default: all nodes. If no node matches, this L2Advertisement allows no announcement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub node_selectors: Vec<LabelSelector>,

    /// Names of the network interfaces to announce on. A node announces an address on each listed interface that is up
    /// and has an address of its family (IPv4 or IPv6). A node without such an interface does not announce; another
    /// node with one does. At most 256 entries, each of at most 15 characters. Default: the interface whose subnet
    /// contains the address. If there is none, the interface with the InternalIP of the node. Example: `eth0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "interfaces")]
    pub interfaces: Vec<String>,

    /// Label selectors for the Services that hold the addresses. A Service must match at least one entry. At most 256
    /// entries. Default: all Services. If Services share an address, count for each node the Services for which the
    /// node may announce the address. Only nodes with the greatest count may announce it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub service_selectors: Vec<LabelSelector>,

    /// Preferred nodes, each entry with a weight. The weights of a node are summed over all L2Advertisements that allow
    /// the node to announce the address. The node with the greatest sum announces. At most 256 entries. Default: no
    /// preference; addresses are distributed over the nodes.
    ///
    /// If a node returns with a greater sum than the announcing node, it takes the address back after some seconds,
    /// without interruption. Nodes with equal sums never take an address from each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ENTRIES))]
    pub preferred_node_selectors: Vec<PreferredNodes>,
}

/// Preferred nodes and their weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreferredNodes {
    /// Weight of these nodes, from 1 to 100. The greatest sum wins.
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,

    /// Label selector for these nodes. An empty selector matches all nodes.
    #[schemars(schema_with = "label_selector")]
    pub preference: LabelSelector,
}

/// Schema of a label selector that admits only known operators. Kubernetes checks operators only in its own kinds.
fn label_selector(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<LabelSelector>().to_value();
    let operator = schema.pointer_mut("/properties/matchExpressions/items/properties/operator");
    *operator.expect("invariant: a selector has expressions") = json!({
        "type": "string",
        "description": "`In`, `NotIn`, `Exists` or `DoesNotExist`.",
        "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
    });
    Schema::try_from(schema).expect("invariant: this is a schema")
}

fn selectors(generator: &mut SchemaGenerator) -> Schema {
    let item = label_selector(generator);
    json_schema!({"type": "array", "maxItems": MAX_ENTRIES, "items": item})
}

/// Schema of a list of distinct names.
fn names(item: Value) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_ENTRIES,
        "items": item,
        "x-kubernetes-list-type": "set",
    })
}

fn pool_names(_: &mut SchemaGenerator) -> Schema {
    names(json!({"type": "string", "minLength": 1, "maxLength": 253}))
}

fn interfaces(_: &mut SchemaGenerator) -> Schema {
    names(json!({
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_NAME,
        "x-kubernetes-validations": [{
            "rule": "!self.matches('[/\\\\s]')",
            "messageExpression": "\"'\" + self + \"' is not a valid name of a network interface\"",
        }],
    }))
}

/// Parsed form of an [`L2Advertisement`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// Names of selected pools.
    pub pools: BTreeSet<String>,
    /// Selectors of further pools.
    pub pool_selectors: Selectors,
    /// Selectors of the nodes that may announce.
    pub nodes: Selectors,
    /// Interfaces to announce on. Empty: the interface whose subnet contains the address or, if there is none, the
    /// interface with the InternalIP of the node.
    pub interfaces: BTreeSet<String>,
    /// Selectors of the Services.
    pub services: Selectors,
    /// Weights, each with the selector of its nodes.
    pub preferences: Vec<(u32, Selector)>,
}

/// A list of selectors; `None` if the list is empty. A selector with an unknown operator matches nothing. The API
/// server refuses such a selector, but the object can be older than this check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors(Option<Vec<Selector>>);

impl Selectors {
    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether one of the selectors matches these labels. An empty list admits all.
    pub fn admit(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_none_or(|selectors| labels.match_any(selectors))
    }
}

impl From<&Vec<LabelSelector>> for Selectors {
    fn from(written: &Vec<LabelSelector>) -> Self {
        let parsed = || written.iter().filter_map(|selector| labels::parse_selector(selector).ok()).collect();
        Self((!written.is_empty()).then(parsed))
    }
}

impl Advertisement {
    /// Whether the pool with this name and these labels is selected.
    pub fn selects_pool(&self, name: &str, labels: &Labels) -> bool {
        let by_label = || !self.pool_selectors.is_empty() && self.pool_selectors.admit(labels);
        let all = self.pools.is_empty() && self.pool_selectors.is_empty();
        all || self.pools.contains(name) || by_label()
    }

    /// Sum of the weights of a node with these labels. The caller checks that the node may announce.
    pub fn preference(&self, node: &Labels) -> u32 {
        let weights = self.preferences.iter().filter(|(_, selector)| node.match_any(std::slice::from_ref(selector)));
        weights.map(|(weight, _)| weight).fold(0, |sum, weight| sum.saturating_add(*weight))
    }
}

impl From<&L2Advertisement> for Advertisement {
    fn from(object: &L2Advertisement) -> Self {
        let spec = &object.spec;
        let preferences = spec.preferred_node_selectors.iter().filter_map(|preferred| {
            Some((u32::try_from(preferred.weight).ok()?, labels::parse_selector(&preferred.preference).ok()?))
        });
        Self {
            pools: spec.ip_address_pools.iter().cloned().collect(),
            pool_selectors: Selectors::from(&spec.ip_address_pool_selectors),
            nodes: Selectors::from(&spec.node_selectors),
            interfaces: spec.interfaces.iter().cloned().collect(),
            services: Selectors::from(&spec.service_selectors),
            preferences: preferences.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: Value) -> Advertisement {
        let spec: L2AdvertisementSpec = serde_json::from_value(spec).expect("a spec");
        Advertisement::from(&L2Advertisement::new("ad", spec))
    }

    #[test]
    fn pool_is_selected_by_name_label_or_default() {
        let gold = json!([{"matchLabels": {"tier": "gold"}}, {"matchLabels": {"tier": "platinum"}}]);
        for (spec, lan, gold_pool) in [
            (json!({}), true, true),
            (json!({"ipAddressPools": ["lan", "gone"]}), true, false),
            (json!({"ipAddressPools": ["gone"]}), false, false),
            (json!({"ipAddressPoolSelectors": gold}), false, true),
            (json!({"ipAddressPools": ["lan"], "ipAddressPoolSelectors": gold}), true, true),
            (json!({"ipAddressPoolSelectors": [{}]}), true, true),
        ] {
            let advertisement = read(spec.clone());
            let tier = Labels::from([("tier", "gold")]);
            let selected =
                (advertisement.selects_pool("lan", &Labels::default()), advertisement.selects_pool("g", &tier));
            assert_eq!(selected, (lan, gold_pool), "{spec}");
        }
    }

    #[test]
    fn empty_list_admits_all_and_unknown_operator_nothing() {
        let labels = Labels::from([("role", "edge")]);
        let unknown = json!({"matchExpressions": [{"key": "role", "operator": "Like", "values": ["e"]}]});
        for (selectors, admitted) in [
            (json!([]), true),
            (json!([{}]), true),
            (json!([{"matchLabels": {"role": "edge"}}]), true),
            (json!([{"matchLabels": {"role": "core"}}]), false),
            (json!([{"matchLabels": {"role": "core"}}, {"matchLabels": {"role": "edge"}}]), true),
            (json!([unknown]), false),
            (json!([unknown, {"matchLabels": {"role": "edge"}}]), true),
        ] {
            let advertisement = read(json!({"nodeSelectors": selectors, "serviceSelectors": selectors}));
            assert_eq!(advertisement.nodes.admit(&labels), admitted, "{selectors}");
            assert_eq!(advertisement.services, advertisement.nodes);
        }
    }

    #[test]
    fn weights_of_a_node_are_summed() {
        let advertisement = read(json!({"preferredNodeSelectors": [
            {"weight": 60, "preference": {"matchLabels": {"zone": "a"}}},
            {"weight": 50, "preference": {"matchLabels": {"gpu": "true"}}},
            {"weight": 9, "preference": {"matchExpressions": [{"key": "zone", "operator": "Like"}]}},
        ]}));
        for (labels, expected) in [
            (Labels::default(), 0),
            (Labels::from([("zone", "a")]), 60),
            (Labels::from([("zone", "a"), ("gpu", "true")]), 110),
        ] {
            assert_eq!(advertisement.preference(&labels), expected, "{labels:?}");
        }
    }
}
