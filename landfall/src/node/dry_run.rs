//! `landfall node --dry-run`: what this node would be programmed to do, as text, from the objects as they are now.
//!
//! The same way as in the agent, up to the ruleset: observe, compose, plan. It ends there.

use std::collections::BTreeSet;

use anyhow::Result;
use crds::Backend;
use kube::Client;
use observe::Wake;
use tokio::task::JoinSet;

use super::compose;
use super::stores::Stores;
use crate::output::print;

/// Prints the ruleset of `node`. Waits for the API server as long as it takes.
pub(super) async fn run(client: &Client, node: &str, backend: Backend, counts: bool) -> Result<()> {
    let wake = Wake::default();
    let mut listener = wake.listener();
    let stores = Stores::new(&wake);
    let mut watches = JoinSet::new();
    stores.watch(client, &mut watches);
    let observed = loop {
        if let Some(observed) = stores.observed() {
            break observed;
        }
        listener.woken().await;
    };
    print(&shown(node, backend, observed, counts))
}

/// What is printed. Nobody is taken for dead: that only speakers know.
fn shown(node: &str, backend: Backend, observed: compose::Observed, counts: bool) -> String {
    let is_known = observed.nodes.contains_key(node);
    let (mut snapshot, _) = compose::snapshots(node, backend, observed, BTreeSet::new());
    snapshot.counts = counts;
    let ruleset = dataplane::ruleset::ruleset(&snapshot);
    let mut text = format!("# what node {node} would be programmed to do: {} addresses\n", ruleset.addresses.len());
    if !is_known {
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
    use crds::{Holder, Key, Record, Service};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn the_ruleset_is_shown_with_what_is_wrong_with_it() {
        let object = json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["everywhere"]},
        });
        let service = Service::try_from(&serde_json::from_value(object).expect("a Service")).expect("a view");
        let object = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
            "metadata": {"name": "192.0.2.1", "uid": "l", "resourceVersion": "1"},
            "spec": {"address": "192.0.2.1", "pool": "lan", "services": []},
        });
        let record = Record::try_from(&serde_json::from_value(object).expect("an address")).expect("a view");
        let holder = Holder { namespace: "default".into(), name: "web".into(), uid: "u".into(), terms: None };
        let record = Record { holders: vec![holder], ..record };
        let observed = compose::Observed {
            services: [(Key::new("default", "web"), Arc::new(service))].into(),
            addresses: [(record.address, Arc::new(record))].into(),
            ..compose::Observed::default()
        };
        let shown = shown("n1", Backend::Endpoints, observed, false);
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
