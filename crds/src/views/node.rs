//! The fields of a Node that Landfall uses.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::labels::Labels;

/// The label that excludes a node from load balancing, so that it announces no addresses.
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The label that moves announcements from a node to other nodes before maintenance:
///
/// - `landfall.dev/drain=cordoned`: while the node is cordoned, which is the first step of `kubectl drain`. This label
///   can stay on all nodes permanently.
/// - `landfall.dev/drain=` or `=true`: at once, while the label exists.
/// - `landfall.dev/drain=false`: no effect.
///
/// It is a label and no annotation, so that `kubectl get nodes -l landfall.dev/drain` lists the nodes. Without the
/// label, cordoning a node moves nothing, because nodes are also cordoned for other reasons.
pub const DRAIN: &str = "landfall.dev/drain";

/// The value of [`DRAIN`] that drains a node only while it is cordoned.
const WHEN_CORDONED: &str = "cordoned";

/// The taint that an administrator sets on a node that is down and will not recover (KEP-2268).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The taint that the cluster autoscaler sets on a node before it removes the node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The fields of a Node that Landfall uses.
///
/// The condition `Ready` is not used: a node that loses the API server becomes not ready, but still forwards. Speakers
/// detect failed nodes by missing Hellos.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Labels of the node.
    pub labels: Labels,
    /// Addresses of type InternalIP, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// Addresses of type ExternalIP, in the order of the object.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, not parsed.
    pub pod_cidrs: Vec<String>,
    /// Whether the label [`EXCLUDE`] exists and its value is not false. The service controller of Kubernetes parses it
    /// in the same way.
    pub excluded: bool,
    /// Why other nodes should announce addresses in place of this node.
    pub drain_reason: Option<DrainReason>,
}

/// Why a node should not announce an address that another node can announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainReason {
    /// The label [`DRAIN`] applies.
    Drained,
    /// The node is being deleted.
    Deleting,
    /// The taint `node.kubernetes.io/out-of-service` is set.
    OutOfService,
    /// The taint `ToBeDeletedByClusterAutoscaler` is set.
    ToBeDeleted,
    /// The condition `NetworkUnavailable` is true: the node cannot reach pods on other nodes.
    NetworkUnavailable,
}

impl From<&core::Node> for Node {
    fn from(object: &core::Node) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let addresses = |type_: &str| {
            let addresses = status.addresses.iter().flatten().filter(|address| address.type_ == type_);
            addresses.filter_map(|address| address.address.parse().ok()).collect()
        };
        let exclude = object.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDE));
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            labels: Labels::from(object.metadata.labels.as_ref()),
            addresses: addresses("InternalIP"),
            external_addresses: addresses("ExternalIP"),
            drain_reason: drain_reason(object, &spec, &status),
            excluded: exclude.is_some_and(|value| !is_false(value)),
            pod_cidrs: spec.pod_cidrs.unwrap_or_default(),
        }
    }
}

fn drain_reason(object: &core::Node, spec: &core::NodeSpec, status: &core::NodeStatus) -> Option<DrainReason> {
    let cordoned = spec.unschedulable == Some(true);
    let drained = object
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(DRAIN))
        .is_some_and(|value| if value == WHEN_CORDONED { cordoned } else { !is_false(value) });
    let tainted = |key: &str| spec.taints.iter().flatten().any(|taint| taint.key == key);
    let mut conditions = status.conditions.iter().flatten();
    let reasons = [
        (DrainReason::Drained, drained),
        (DrainReason::Deleting, object.metadata.deletion_timestamp.is_some()),
        (DrainReason::OutOfService, tainted(OUT_OF_SERVICE)),
        (DrainReason::ToBeDeleted, tainted(TO_BE_DELETED)),
        (DrainReason::NetworkUnavailable, conditions.any(|c| c.type_ == "NetworkUnavailable" && c.status == "True")),
    ];
    reasons.into_iter().find(|(_, applies)| *applies).map(|(reason, _)| reason)
}

/// Whether Go's `strconv.ParseBool` parses this value as false. Kubernetes parses such labels with that function.
fn is_false(value: &str) -> bool {
    ["0", "f", "F", "FALSE", "false", "False"].contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(object: Value) -> Node {
        Node::from(&serde_json::from_value::<core::Node>(object).expect("a Node"))
    }

    #[test]
    fn exclusion_label_applies_unless_it_is_false() {
        for (labels, excluded) in [
            (vec![], false),
            (vec![(EXCLUDE, "")], true),
            (vec![(EXCLUDE, "true")], true),
            (vec![(EXCLUDE, "maybe")], true),
            (vec![(EXCLUDE, "false")], false),
            (vec![(EXCLUDE, "0")], false),
        ] {
            let labels: std::collections::BTreeMap<String, String> =
                labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let node = read(json!({
                "metadata": {"name": "n1", "labels": labels},
                "spec": {"podCIDRs": ["10.244.1.0/24"]},
                "status": {"addresses": [
                    {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.11"},
                    {"type": "ExternalIP", "address": "198.51.100.11"},
                ]},
            }));
            let expected = Node {
                name: "n1".into(),
                labels: Labels::from(Some(&labels)),
                addresses: vec!["192.0.2.11".parse().expect("address")],
                external_addresses: vec!["198.51.100.11".parse().expect("address")],
                pod_cidrs: vec!["10.244.1.0/24".into()],
                excluded,
                drain_reason: None,
            };
            assert_eq!(node, expected, "{labels:?}");
        }
    }

    #[test]
    fn drained_and_departing_nodes_have_a_drain_reason() {
        let drain = |value: &str| json!({"labels": {DRAIN: value}});
        let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoSchedule"}]});
        let condition = |kind: &str, status: &str| {
            json!({"conditions": [
                {"type": kind, "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
            ]})
        };
        let (none, cordoned) = (json!({}), json!({"unschedulable": true}));
        for (case, metadata, spec, status, expected) in [
            ("healthy", &none, &none, &none, None),
            ("cordoned", &none, &cordoned, &none, None),
            ("label", &drain(""), &none, &none, Some(DrainReason::Drained)),
            ("label true", &drain("true"), &none, &none, Some(DrainReason::Drained)),
            ("label false", &drain("false"), &cordoned, &none, None),
            ("label cordoned, not cordoned", &drain("cordoned"), &none, &none, None),
            ("label cordoned, cordoned", &drain("cordoned"), &cordoned, &none, Some(DrainReason::Drained)),
            ("out of service", &none, &taint(OUT_OF_SERVICE), &none, Some(DrainReason::OutOfService)),
            ("autoscaler taint", &none, &taint(TO_BE_DELETED), &none, Some(DrainReason::ToBeDeleted)),
            ("another taint", &none, &taint("node.kubernetes.io/unreachable"), &none, None),
            (
                "without network",
                &none,
                &none,
                &condition("NetworkUnavailable", "True"),
                Some(DrainReason::NetworkUnavailable),
            ),
            ("with network", &none, &none, &condition("NetworkUnavailable", "False"), None),
            ("network unknown", &none, &none, &condition("NetworkUnavailable", "Unknown"), None),
            ("not ready", &none, &none, &condition("Ready", "False"), None),
            (
                "being deleted",
                &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                &none,
                &none,
                Some(DrainReason::Deleting),
            ),
        ] {
            let node = read(json!({"metadata": metadata, "spec": spec, "status": status}));
            assert_eq!(node.drain_reason, expected, "{case}");
        }
    }
}
