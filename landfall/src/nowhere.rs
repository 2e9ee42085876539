//! Why no node may announce an address, for the controller to say.
//!
//! Which nodes may is the speakers' to decide ([`model::eligibility`]), and they are asked what they would do if one thing
//! were otherwise: what makes a node a candidate then is what is missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::{Circumstances, Nowhere};
use crds::{Advertisement, Node};
use model::SharedMap;
use model::eligibility::Observed;

/// One thing otherwise than it is.
type Change = fn(&mut Observed);

/// Why no node may announce an address; `None` if one may.
pub(crate) fn nowhere(circumstances: &Circumstances<'_>) -> Option<Nowhere> {
    let as_it_is = observed(circumstances);
    if has_candidates(&as_it_is) {
        return None;
    }
    let changes: [(Nowhere, Change); 4] = [
        (Nowhere::NoEndpoint, |observed| observed.slices = SharedMap::default()),
        (Nowhere::NodesExcluded, |observed| {
            edit(&mut observed.nodes, |node: &mut Node| node.excluded = false);
        }),
        (Nowhere::ServiceNotSelected, |observed| {
            edit(&mut observed.advertisements, |advertisement: &mut Advertisement| {
                advertisement.services = crds::l2_advertisement::Selectors::default();
            });
        }),
        (Nowhere::NodesNotSelected, |observed| {
            edit(&mut observed.advertisements, |advertisement: &mut Advertisement| {
                advertisement.nodes = crds::l2_advertisement::Selectors::default();
            });
        }),
    ];
    let would_do = |change: &fn(&mut Observed)| {
        let mut otherwise = as_it_is.clone();
        change(&mut otherwise);
        has_candidates(&otherwise)
    };
    let missing = changes.iter().find(|(_, change)| would_do(change));
    Some(missing.map_or(Nowhere::Several, |(nowhere, _)| *nowhere))
}

fn observed(circumstances: &Circumstances<'_>) -> Observed {
    let record = circumstances.record;
    Observed {
        services: circumstances.services.iter().map(|(key, service)| (key.clone(), Arc::clone(service))).collect(),
        slices: circumstances.slices.iter().map(|(key, slices)| (key.clone(), slices.as_slice().into())).collect(),
        nodes: circumstances.nodes.clone(),
        pools: circumstances.pools.clone(),
        advertisements: circumstances.advertisements.clone(),
        addresses: [(record.address, Arc::clone(record))].into(),
    }
}

fn has_candidates(observed: &Observed) -> bool {
    model::eligibility::policies(observed).values().any(|wanted| wanted.candidates.iter().next().is_some())
}

fn edit<T: Clone>(all: &mut BTreeMap<String, Arc<T>>, edit: impl Fn(&mut T)) {
    all.values_mut().for_each(|one| edit(Arc::make_mut(one)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{EndpointSlice, Key, L2Advertisement, Labels, LoadBalancerIP, Record, Service};
    use serde_json::{Value, json};

    /// What there is in a cluster of the nodes n1 and n2 with the address of a Service.
    struct Cluster {
        nodes: BTreeMap<String, Arc<Node>>,
        advertisements: BTreeMap<String, Arc<Advertisement>>,
        policy: &'static str,
        /// Where an endpoint is ready.
        endpoints: Vec<&'static str>,
    }

    impl Cluster {
        /// These nodes are labelled to take no traffic; there is this advertisement.
        fn with(excluded: &[&str], advertisement: Value) -> Self {
            let node = |name: &str| {
                let labels = Labels::from([("name", name)]);
                let excluded = excluded.contains(&name);
                (name.to_owned(), Arc::new(Node { name: name.into(), labels, excluded, ..Node::default() }))
            };
            let read = |spec: Value| {
                let spec = serde_json::from_value(spec).expect("a spec");
                ("ad".to_owned(), Arc::new(Advertisement::from(&L2Advertisement::new("ad", spec))))
            };
            let advertisements = (!advertisement.is_null()).then(|| read(advertisement)).into_iter().collect();
            Self { nodes: ["n1", "n2"].map(node).into(), advertisements, policy: "Cluster", endpoints: vec![] }
        }

        fn local(self, endpoints: &[&'static str]) -> Self {
            Self { policy: "Local", endpoints: endpoints.to_vec(), ..self }
        }

        fn nowhere(&self) -> Option<Nowhere> {
            let service = serde_json::from_value(json!({
                "metadata": {"namespace": "default", "name": "web", "uid": "u1", "labels": {"app": "web"}},
                "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": self.policy},
            }));
            let service = Service::try_from(&service.expect("a Service")).expect("a view");
            let record: LoadBalancerIP = serde_json::from_value(json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": "192.0.2.1"},
                "spec": {
                    "address": "192.0.2.1", "pool": "lan",
                    "services": [{"namespace": "default", "name": "web", "uid": "u1"}],
                },
            }))
            .expect("a LoadBalancerIP");
            let slice = EndpointSlice {
                key: Key::new("default", "web-1"),
                service: service.key.clone(),
                ports: Box::default(),
                refused: None,
                endpoints: self
                    .endpoints
                    .iter()
                    .map(|node| crds::endpoints::Endpoint {
                        address: [10, 0, 0, 1].into(),
                        node: Some((*node).into()),
                        ready: true,
                        serving: true,
                        terminating: false,
                    })
                    .collect(),
            };
            nowhere(&Circumstances {
                record: &Arc::new(Record::try_from(&record).expect("a record")),
                slices: [(service.key.clone(), vec![Arc::new(slice)])].into(),
                services: [(service.key.clone(), Arc::new(service))].into(),
                nodes: &self.nodes,
                pools: [("lan".to_owned(), Arc::default())].into(),
                advertisements: &self.advertisements,
            })
        }
    }

    #[test]
    fn what_would_make_a_node_a_candidate_is_what_is_missing() {
        let name = |name: &str| json!([{"matchLabels": {"name": name}}]);
        let app = |app: &str| json!([{"matchLabels": {"app": app}}]);
        let n1 = || json!({"nodeSelectors": name("n1")});
        for (cluster, expected) in [
            (Cluster::with(&[], json!(null)), None),
            // The label counts for none where all have it.
            (Cluster::with(&["n1", "n2"], json!(null)), None),
            (Cluster::with(&[], n1()), None),
            (Cluster::with(&["n1"], n1()), Some(Nowhere::NodesExcluded)),
            (Cluster::with(&[], json!({"nodeSelectors": name("n3")})), Some(Nowhere::NodesNotSelected)),
            (Cluster::with(&[], json!({"serviceSelectors": app("db")})), Some(Nowhere::ServiceNotSelected)),
            (Cluster::with(&[], json!({"ipAddressPools": ["other"], "nodeSelectors": name("n3")})), None),
            (Cluster::with(&[], n1()).local(&["n1"]), None),
            (Cluster::with(&[], n1()).local(&["n2"]), Some(Nowhere::NoEndpoint)),
            (Cluster::with(&["n2"], json!(null)).local(&["n2"]), Some(Nowhere::NoEndpoint)),
            // Where no endpoint is ready at all, any node answers.
            (Cluster::with(&[], n1()).local(&[]), None),
            (
                Cluster::with(&[], json!({"nodeSelectors": name("n3"), "serviceSelectors": app("db")})),
                Some(Nowhere::Several),
            ),
        ] {
            assert_eq!(cluster.nowhere(), expected, "{:?} {:?}", cluster.advertisements, cluster.endpoints);
        }
    }
}
