//! `landfall node --dry-run`: what this node would be programmed to do, as text, from the objects as they are now.
//!
//! The same way as in the agent, up to the ruleset: observe, compose, plan. It ends there.

use agent::Planned;
use anyhow::Result;
use crds::Backend;
use kube::Client;

use super::output::print;

/// Prints the ruleset of `node`. Waits for the API server as long as it takes.
pub(crate) async fn run(client: &Client, node: &str, backend: Backend, counts: bool) -> Result<()> {
    print(&shown(node, &agent::plan_once(client, node, backend, counts).await))
}

/// What is printed. Nobody is taken for dead: that only speakers know.
fn shown(node: &str, planned: &Planned) -> String {
    let ruleset = dataplane::rules::plan::ruleset(&planned.snapshot);
    let mut text = format!("# what node {node} would be programmed to do: {} addresses\n", ruleset.addresses.len());
    if !planned.is_known {
        text += "# there is no node of this name\n";
    }
    for (address, lb_ip) in ruleset.addresses.iter() {
        for problem in &lb_ip.problems {
            text += &format!("# {address}: {problem}\n");
        }
    }
    text + &dataplane::nft::text::text(&ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{Holder, Key, Service};
    use dataplane::rules::sources::Sources;
    use dataplane::snapshot::Terms;
    use serde_json::json;
    use std::net::IpAddr;
    use std::sync::Arc;

    #[test]
    fn the_ruleset_is_shown_with_what_is_wrong_with_it() {
        let object = json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["everywhere"]},
        });
        let service = Service::try_from(&serde_json::from_value(object).expect("a Service")).expect("a view");
        let holder = Holder { namespace: "default".into(), name: "web".into(), uid: "u".into(), terms: None };
        let sources = Sources::read(["everywhere"], None);
        let terms = Terms { sources, ..Terms::default() };
        let service = dataplane::snapshot::Service { object: Arc::new(service), terms: Arc::new(terms) };
        let snapshot = dataplane::Snapshot {
            node: "n1".into(),
            services: [(Key::new("default", "web"), service)].into_iter().collect(),
            addresses: [(IpAddr::from([192, 0, 2, 1]), [holder].into())].into_iter().collect(),
            ..dataplane::Snapshot::default()
        };
        let shown = shown("n1", &Planned { snapshot, is_known: false });
        for line in [
            "# what node n1 would be programmed to do: 1 addresses",
            "# there is no node of this name",
            "# 192.0.2.1: loadBalancerSourceRanges of Service default/web: \"everywhere\" is no CIDR such as 192.0.2.0/24, \
             and lets nobody in",
            "table ip landfall {",
            "\t\telements = { 192.0.2.1 . tcp . 80 : goto restricted-refuse }",
            "\t\tip daddr @addresses goto unserved",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
        }
    }
}
