//! What Landfall reads of a Node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

/// The label that keeps a node from taking traffic from outside of the cluster.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What Landfall reads of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses inside the cluster's network (type InternalIP), in its own order.
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods' addresses are from, as written.
    pub pod_cidrs: Vec<String>,
    /// Whether it is labelled to take no traffic from outside: `node.kubernetes.io/exclude-from-external-load-balancers`
    /// with any value but a false one, as the cloud controllers of Kubernetes read it.
    pub excluded: bool,
}

impl From<&core::Node> for Node {
    fn from(object: &core::Node) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let internal = status.addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
        let exclude = object.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDE));
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
            pod_cidrs: object.spec.clone().and_then(|spec| spec.pod_cidrs).unwrap_or_default(),
            excluded: exclude.is_some_and(|value| !is_false(value)),
        }
    }
}

/// The spellings of false that Go's `strconv.ParseBool` knows, which is what Kubernetes reads this label with.
fn is_false(value: &str) -> bool {
    ["0", "f", "F", "FALSE", "false", "False"].contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_excluded_by_its_label_unless_the_value_is_false() {
        for (labels, excluded) in [
            (json!({}), false),
            (json!({EXCLUDE: ""}), true),
            (json!({EXCLUDE: "true"}), true),
            (json!({EXCLUDE: "maybe"}), true),
            (json!({EXCLUDE: "false"}), false),
            (json!({EXCLUDE: "0"}), false),
        ] {
            let object = serde_json::from_value(json!({
                "metadata": {"name": "n1", "labels": labels},
                "spec": {"podCIDRs": ["10.244.1.0/24"]},
                "status": {"addresses": [
                    {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.11"},
                ]},
            }))
            .expect("a Node");
            let expected = Node {
                name: "n1".into(),
                addresses: vec!["192.0.2.11".parse().expect("address")],
                pod_cidrs: vec!["10.244.1.0/24".into()],
                excluded,
            };
            assert_eq!(Node::from(&object), expected, "{labels}");
        }
    }
}
