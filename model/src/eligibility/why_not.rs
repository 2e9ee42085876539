//! Why no node may announce an address.
//!
//! The rules are applied again, each time with one input changed. If there are candidates then, that input is the
//! reason.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crds::l2_advertisement::Selectors;
use crds::{Advertisement, Node, Record};

use super::rules::{Rules, View};
use crate::SharedMap;
use crate::cluster::{Cluster, Named};

/// Why no node may announce an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCandidateReason {
    /// No node that may announce otherwise has a ready endpoint.
    NoEndpoint,
    /// Every node that could announce has the label that excludes it from load balancers.
    NodesExcluded,
    /// L2Advertisements select the pool, and none of them selects the Service.
    ServiceNotSelected,
    /// L2Advertisements select the pool and the Service, and none of them selects a node.
    NodesNotSelected,
    /// More than one of these.
    Several,
}

/// Why no node may announce the address of `record`; `None` if a node may.
pub fn why_not(cluster: &Cluster, record: &Record) -> Option<NoCandidateReason> {
    let view = View::new(cluster);
    if has_candidates(view, record) {
        return None;
    }
    let without_slices = SharedMap::default();
    if has_candidates(View { slices: &without_slices, ..view }, record) {
        return Some(NoCandidateReason::NoEndpoint);
    }
    let included = edit_all(view.nodes, |node: &mut Node| node.excluded = false);
    if has_candidates(View { nodes: &included, ..view }, record) {
        return Some(NoCandidateReason::NodesExcluded);
    }
    let for_all_services = edit_all(view.advertisements, |ad: &mut Advertisement| ad.services = Selectors::default());
    if has_candidates(View { advertisements: &for_all_services, ..view }, record) {
        return Some(NoCandidateReason::ServiceNotSelected);
    }
    let for_all_nodes = edit_all(view.advertisements, |ad: &mut Advertisement| ad.nodes = Selectors::default());
    if has_candidates(View { advertisements: &for_all_nodes, ..view }, record) {
        return Some(NoCandidateReason::NodesNotSelected);
    }
    Some(NoCandidateReason::Several)
}

fn has_candidates(view: View<'_>, record: &Record) -> bool {
    Rules::new(view).candidates(record).is_some_and(|candidates| !candidates.is_empty())
}

fn edit_all<T: Clone>(all: &Named<T>, edit: impl Fn(&mut T)) -> Named<T> {
    let one = |(name, object): (&String, &Arc<T>)| {
        let mut object = T::clone(object);
        edit(&mut object);
        (name.clone(), Arc::new(object))
    };
    all.iter().map(one).collect::<BTreeMap<_, _>>()
}

impl fmt::Display for NoCandidateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEndpoint => {
                "externalTrafficPolicy is Local, and no endpoint is ready on a node that may announce it: let pods run there, \
                 or let other nodes announce"
            }
            Self::NodesExcluded => {
                "the nodes that could have the label node.kubernetes.io/exclude-from-external-load-balancers: take it from \
                 one of them"
            }
            Self::ServiceNotSelected => {
                "L2Advertisements select its pool, and none of them selects this Service: see their serviceSelectors, or \
                 create another L2Advertisement"
            }
            Self::NodesNotSelected => {
                "the L2Advertisements that select it select no node: see their nodeSelectors and the labels of the nodes"
            }
            Self::Several => {
                "L2Advertisements, labels of nodes and endpoints together leave none: see which nodes have an endpoint, \
                 which ones the L2Advertisements select, and which ones are labelled \
                 node.kubernetes.io/exclude-from-external-load-balancers"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Change;
    use crate::fixtures;
    use crds::{L2Advertisement, Labels, TrafficPolicy};
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
            let service = fixtures::service("web", policy, Labels::from([("app", "web")]));
            let endpoints: Vec<_> = self.endpoints.iter().copied().flatten().map(|node| (*node, 'r')).collect();
            let slice = fixtures::slice("web-1", "web", &endpoints);
            let record = fixtures::record([192, 0, 2, 1].into(), "lan", &["web"]);
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
    fn the_change_that_would_give_candidates_is_the_reason() {
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
