//! Why no node may announce an address.
//!
//! The rules are applied again, each time with one changed input. The input whose change leads to candidates is the
//! reason.

use std::fmt;
use std::sync::Arc;

use crds::Record;
use crds::l2_advertisement::Selectors;

use super::Rules;
use crate::SharedMap;
use crate::cluster::{Cluster, Named};

/// Why no node may announce an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCandidateReason {
    /// None of the nodes that satisfy the other rules has a ready endpoint.
    NoEndpoint,
    /// Every node that could announce has the label that excludes it from load balancers.
    NodesExcluded,
    /// L2Advertisements select the pool, and none of them selects the Service.
    ServiceNotSelected,
    /// L2Advertisements select the pool and the Service, and none of them selects a node.
    NodesNotSelected,
    /// Several of these at the same time.
    Several,
}

/// Why no node may announce the address of `record`; `None` if a node may.
pub fn why_not(cluster: &Cluster, record: &Record) -> Option<NoCandidateReason> {
    type Edit = fn(&mut Cluster);
    let reasons: [(Edit, Option<NoCandidateReason>); 5] = [
        (|_| {}, None),
        (|cluster| cluster.slices = SharedMap::default(), Some(NoCandidateReason::NoEndpoint)),
        (|cluster| edit_all(&mut cluster.nodes, |node| node.excluded = false), Some(NoCandidateReason::NodesExcluded)),
        (
            |cluster| edit_all(&mut cluster.advertisements, |ad| ad.services = Selectors::default()),
            Some(NoCandidateReason::ServiceNotSelected),
        ),
        (
            |cluster| edit_all(&mut cluster.advertisements, |ad| ad.nodes = Selectors::default()),
            Some(NoCandidateReason::NodesNotSelected),
        ),
    ];
    let inputs = cluster.announcement_inputs(&record.pool);
    for (edit, reason) in reasons {
        let mut edited = inputs.clone();
        edit(&mut edited);
        if Rules::new(&edited).candidates(record).is_some_and(|candidates| !candidates.is_empty()) {
            return reason;
        }
    }
    Some(NoCandidateReason::Several)
}

fn edit_all<T: Clone>(all: &mut Named<T>, edit: fn(&mut T)) {
    all.values_mut().for_each(|object| edit(Arc::make_mut(object)));
}

impl fmt::Display for NoCandidateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoint => {
                "externalTrafficPolicy is Local, and none of the nodes that the other rules allow has a ready \
                 endpoint: run pods on one of them, or let other nodes announce"
            }
            Self::NodesExcluded => {
                "every node that could announce it has the label \
                 node.kubernetes.io/exclude-from-external-load-balancers: remove the label from one of them"
            }
            Self::ServiceNotSelected => {
                "L2Advertisements select its pool, and none of them selects this Service: see their serviceSelectors, \
                 or create another L2Advertisement"
            }
            Self::NodesNotSelected => {
                "the L2Advertisements that select it select no node: see their nodeSelectors and the labels of the \
                 nodes"
            }
            Self::Several => {
                "no node satisfies the L2Advertisements, the labels of nodes and the endpoints at the same time: see \
                 which nodes have an endpoint, which ones the L2Advertisements select, and which ones have the label \
                 node.kubernetes.io/exclude-from-external-load-balancers"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Change;
    use crate::test_objects;
    use crds::{Advertisement, L2Advertisement, Labels, Node, TrafficPolicy};
    use serde_json::{Value, json};

    /// The nodes n1 and n2, one advertisement (or null) and one Service. `excluded`: the nodes that are excluded from
    /// load balancers. `endpoints`: the nodes with a ready endpoint of the Service, which then has traffic policy
    /// Local; `None`: its policy is Cluster.
    #[derive(Debug)]
    struct Case {
        excluded: &'static [&'static str],
        advertisement: Value,
        endpoints: Option<&'static [&'static str]>,
    }

    impl Case {
        fn new(excluded: &'static [&'static str], advertisement: Value) -> Self {
            Self { excluded, advertisement, endpoints: None }
        }

        fn local(self, endpoints: &'static [&'static str]) -> Self {
            Self { endpoints: Some(endpoints), ..self }
        }

        fn why_not(&self) -> Option<NoCandidateReason> {
            let node = |name: &str| {
                let labels = Labels::from([("name", name)]);
                let excluded = self.excluded.contains(&name);
                Change::Node(
                    name.into(),
                    Some(Arc::new(Node { name: name.into(), labels, excluded, ..Node::default() })),
                )
            };
            let advertisement = |spec: &Value| {
                let spec = serde_json::from_value(spec.clone()).expect("a spec");
                Change::Advertisement(
                    "ad".into(),
                    Some(Arc::new(Advertisement::from(&L2Advertisement::new("ad", spec)))),
                )
            };
            let policy = self.endpoints.map_or(TrafficPolicy::Cluster, |_| TrafficPolicy::Local);
            let service = test_objects::service("web", policy, Labels::from([("app", "web")]));
            let endpoints: Vec<_> = self.endpoints.iter().copied().flatten().map(|node| (*node, 'r')).collect();
            let slice = test_objects::slice("web-1", "web", &endpoints);
            let record = test_objects::record([192, 0, 2, 1].into(), "lan", &["web"]);
            let mut cluster = Cluster::default();
            cluster.apply(["n1", "n2"].map(node));
            cluster.apply((!self.advertisement.is_null()).then(|| advertisement(&self.advertisement)));
            cluster.apply([
                Change::Service(service.key.clone(), Some(Arc::new(service))),
                Change::Slice { before: None, after: Some(Arc::new(slice)) },
                Change::Record(record.address, Some(Arc::new(record.clone()))),
            ]);
            why_not(&cluster, &record)
        }
    }

    #[test]
    fn input_whose_change_leads_to_candidates_is_the_reason() {
        let name = |name: &str| json!([{"matchLabels": {"name": name}}]);
        let app = |app: &str| json!([{"matchLabels": {"app": app}}]);
        let n1 = || json!({"nodeSelectors": name("n1")});
        for (case, expected) in [
            (Case::new(&[], json!(null)), None),
            // If all nodes are excluded, the exclusion is ignored.
            (Case::new(&["n1", "n2"], json!(null)), None),
            (Case::new(&[], n1()), None),
            (Case::new(&["n1"], n1()), Some(NoCandidateReason::NodesExcluded)),
            (Case::new(&[], json!({"nodeSelectors": name("n3")})), Some(NoCandidateReason::NodesNotSelected)),
            (Case::new(&[], json!({"serviceSelectors": app("db")})), Some(NoCandidateReason::ServiceNotSelected)),
            (Case::new(&[], json!({"ipAddressPools": ["other"], "nodeSelectors": name("n3")})), None),
            (Case::new(&[], n1()).local(&["n1"]), None),
            (Case::new(&[], n1()).local(&["n2"]), Some(NoCandidateReason::NoEndpoint)),
            (Case::new(&["n2"], json!(null)).local(&["n2"]), Some(NoCandidateReason::NoEndpoint)),
            // If no endpoint is ready in the whole cluster, any node may announce.
            (Case::new(&[], n1()).local(&[]), None),
            (
                Case::new(&[], json!({"nodeSelectors": name("n3"), "serviceSelectors": app("db")})),
                Some(NoCandidateReason::Several),
            ),
        ] {
            assert_eq!(case.why_not(), expected, "{case:?}");
        }
    }
}
