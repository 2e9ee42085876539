//! What Landfall reads of a Node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use crate::labels::Labels;

/// The label that keeps a node from taking traffic from outside of the cluster.
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The label by which an administrator asks that other nodes announce what this one announces, before it is taken down:
///
/// - `landfall.dev/drain=cordoned`: while the node is cordoned, which `kubectl drain` does first of all. It may stay on all
///   nodes forever.
/// - `landfall.dev/drain=` or `=true`: at once, and for as long as the label is there.
/// - `landfall.dev/drain=false`: as if it weren't there.
///
/// A label and not an annotation, so that `kubectl get nodes -l landfall.dev/drain` tells who has it. To cordon a node
/// without it moves nothing: that is also what one does to a node that should go on as it is.
pub const DRAIN: &str = "landfall.dev/drain";

/// The value of [`DRAIN`] by which a node is drained only while it is cordoned.
const WHEN_CORDONED: &str = "cordoned";

/// The taint by which an administrator says that a node is down and won't come back as it was (KEP-2268).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The taint that the cluster autoscaler puts on a node that it is about to take away.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What Landfall reads of a Node.
///
/// Whether it is ready isn't among that: a node that has lost the API server, and so is not ready, goes on forwarding, and
/// whether it is alive is for the speakers to know, who hear it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses inside the cluster's network (type InternalIP), in its own order.
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods' addresses are from, as written.
    pub pod_cidrs: Vec<String>,
    /// Whether it is labelled to take no traffic from outside: `node.kubernetes.io/exclude-from-external-load-balancers`
    /// with any value but a false one, as the cloud controllers of Kubernetes read it.
    pub excluded: bool,
    /// Why other nodes should announce in its place, if they should.
    pub drain_reason: Option<DrainReason>,
}

/// Why a node should announce nothing that another one can announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainReason {
    /// It is labelled so ([`DRAIN`]).
    Drained,
    /// It is being deleted.
    Deleting,
    /// It has the taint `node.kubernetes.io/out-of-service`.
    OutOfService,
    /// It has the taint `ToBeDeletedByClusterAutoscaler`.
    ToBeDeleted,
    /// Its condition `NetworkUnavailable` is true: it can't reach the pods of other nodes.
    NetworkUnavailable,
}

impl DrainReason {
    /// All reasons, the one that is reported first where several apply.
    pub const ALL: [Self; 5] =
        [Self::Drained, Self::Deleting, Self::OutOfService, Self::ToBeDeleted, Self::NetworkUnavailable];
}

impl From<&core::Node> for Node {
    fn from(object: &core::Node) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let internal = status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP");
        let exclude = object.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDE));
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            labels: Labels::from(object.metadata.labels.as_ref()),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
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
    reasons.into_iter().find(|(_, is_so)| *is_so).map(|(drain_reason, _)| drain_reason)
}

/// The spellings of false that Go's `strconv.ParseBool` knows, which is what Kubernetes reads such labels with.
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
    fn a_node_is_excluded_by_its_label_unless_the_value_is_false() {
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
                ]},
            }));
            let expected = Node {
                name: "n1".into(),
                labels: Labels::from(Some(&labels)),
                addresses: vec!["192.0.2.11".parse().expect("address")],
                pod_cidrs: vec!["10.244.1.0/24".into()],
                excluded,
                drain_reason: None,
            };
            assert_eq!(node, expected, "{labels:?}");
        }
    }

    #[test]
    fn others_announce_in_place_of_a_node_that_is_drained_or_about_to_go_and_not_of_one_that_is_not_ready() {
        let drain = |value: &str| json!({"labels": {DRAIN: value}});
        let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoSchedule"}]});
        let condition = |kind: &str, status: &str| {
            json!({"conditions": [
                {"type": kind, "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
            ]})
        };
        let (none, cordoned) = (json!({}), json!({"unschedulable": true}));
        for (what, metadata, spec, status, expected) in [
            ("a healthy node", &none, &none, &none, None),
            ("one that is cordoned", &none, &cordoned, &none, None),
            ("one with the label", &drain(""), &none, &none, Some(DrainReason::Drained)),
            ("with a value", &drain("true"), &none, &none, Some(DrainReason::Drained)),
            ("with a false one", &drain("false"), &cordoned, &none, None),
            ("when cordoned, and it isn't", &drain("cordoned"), &none, &none, None),
            ("when cordoned, and it is", &drain("cordoned"), &cordoned, &none, Some(DrainReason::Drained)),
            ("out of service", &none, &taint(OUT_OF_SERVICE), &none, Some(DrainReason::OutOfService)),
            ("taken away", &none, &taint(TO_BE_DELETED), &none, Some(DrainReason::ToBeDeleted)),
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
            assert_eq!(node.drain_reason, expected, "{what}");
        }
    }
}
