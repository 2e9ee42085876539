//! `landfall node --dry-run`: the nftables rules of a node as text, from the current objects.
//!
//! The command observes, composes and plans as the agent does, but applies nothing.

use agent::DataplaneInput;
use anyhow::Result;
use crds::Backend;
use kube::Client;

use super::output::print;

/// Prints the ruleset of `node`. Waits until the API server has sent the objects.
pub(crate) async fn run(client: &Client, node: &str, backend: Backend, count_traffic: bool) -> Result<()> {
    print(&ruleset_text(node, &agent::compose_once(client, node, backend, count_traffic).await))
}

/// The ruleset and its problems, as text. No node is treated as dead: only speakers detect dead nodes.
fn ruleset_text(node: &str, input: &DataplaneInput) -> String {
    let ruleset = dataplane::rules::plan_ruleset(&input.snapshot);
    let mut text = format!("# rules for node {node}: {} addresses\n", ruleset.addresses.len());
    if !input.is_known {
        text += "# the cluster has no node of this name\n";
    }
    for (lb_ip, rules) in ruleset.addresses.iter() {
        for problem in &rules.problems {
            text += &format!("# {lb_ip}: {problem}\n");
        }
    }
    text + &dataplane::nft::print_ruleset(&ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{Holder, Key, Service};
    use dataplane::rules::Sources;
    use dataplane::snapshot::ServiceOptions;
    use serde_json::json;
    use std::net::IpAddr;
    use std::sync::Arc;

    #[test]
    fn the_ruleset_is_printed_with_its_problems() {
        let object = json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["everywhere"]},
        });
        let service = Service::try_from(&serde_json::from_value(object).expect("a Service")).expect("a view");
        let holder = Holder { namespace: "default".into(), name: "web".into(), uid: "u".into(), terms: None };
        let sources = Sources::parse(["everywhere"], None);
        let options = ServiceOptions { sources, ..ServiceOptions::default() };
        let service = dataplane::snapshot::Service { object: Arc::new(service), options: Arc::new(options) };
        let snapshot = dataplane::Snapshot {
            node: "n1".into(),
            services: [(Key::new("default", "web"), service)].into_iter().collect(),
            addresses: [(IpAddr::from([192, 0, 2, 1]), [holder].into())].into_iter().collect(),
            ..dataplane::Snapshot::default()
        };
        let text = ruleset_text("n1", &DataplaneInput { snapshot, is_known: false });
        for line in [
            "# rules for node n1: 1 addresses",
            "# the cluster has no node of this name",
            "# 192.0.2.1: loadBalancerSourceRanges of Service default/web: \"everywhere\" is not a CIDR such as \
             192.0.2.0/24 and allows no client",
            "table ip landfall {",
            "\t\telements = { 192.0.2.1 . tcp . 80 : goto restricted-refuse }",
            "\t\tip daddr @addresses goto unserved",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }
}
