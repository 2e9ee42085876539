//! Why no node may announce an address.
//!
//! The rules are applied again, each time with one changed input. The input whose change leads to candidates is the
//! reason. Only the existence of a candidate matters here. An address has no candidate if and only if none of its
//! claimants may use any node: the other rules ([`super`]) never exclude the last node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crds::{Advertisement, Labels, PoolSettings, Record};

use super::{local_nodes, service_of};
use crate::cluster::Cluster;

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

/// The nodes and advertisements of a cluster, prepared to find out why no node may announce an address. The labels of
/// nodes and pools are matched once, for all addresses.
///
/// It is valid until a Node, a pool or an advertisement changes.
#[derive(Debug)]
pub struct Diagnosis {
    /// All nodes, and whether each of them is included in load balancers.
    nodes: BTreeMap<String, bool>,
    has_included_node: bool,
    /// In order of their names.
    advertisements: Vec<Prepared>,
    /// For each pool, the indexes of the advertisements that select it.
    pools: BTreeMap<String, Vec<usize>>,
}

/// An advertisement, with the nodes that it selects.
#[derive(Debug)]
struct Prepared {
    advertisement: Arc<Advertisement>,
    nodes: BTreeSet<String>,
    /// Whether one of these nodes is included in load balancers.
    has_included_node: bool,
}

/// A holder of an address.
struct PreparedHolder<'a> {
    /// The advertisements that select the pool and the Service.
    advertisements: Vec<usize>,
    /// The nodes that may announce because of the endpoints; `None`: all nodes.
    local: Option<BTreeSet<&'a str>>,
}

/// The rules that apply.
#[derive(Clone, Copy)]
struct Applied {
    endpoints: bool,
    exclusion: bool,
    service_selectors: bool,
    node_selectors: bool,
}

impl Applied {
    const ALL: Self = Self { endpoints: true, exclusion: true, service_selectors: true, node_selectors: true };
}

impl Diagnosis {
    pub fn new(cluster: &Cluster) -> Self {
        let all_excluded = cluster.nodes.values().all(|node| node.excluded);
        let is_included = |excluded: bool| all_excluded || !excluded;
        let nodes = cluster.nodes.values().map(|node| (node.name.clone(), is_included(node.excluded))).collect();
        let advertisements = cluster.advertisements.values().map(|advertisement| {
            let selected = cluster.nodes.values().filter(|node| advertisement.nodes.admit(&node.labels));
            Prepared {
                advertisement: advertisement.clone(),
                nodes: selected.clone().map(|node| node.name.clone()).collect(),
                has_included_node: selected.clone().any(|node| is_included(node.excluded)),
            }
        });
        let mut diagnosis = Self {
            nodes,
            has_included_node: cluster.nodes.values().any(|node| is_included(node.excluded)),
            advertisements: advertisements.collect(),
            pools: BTreeMap::new(),
        };
        let selecting = |(name, settings): (&String, &Arc<PoolSettings>)| {
            (name.clone(), diagnosis.select_by_pool(name, &settings.labels))
        };
        diagnosis.pools = cluster.pools.iter().map(selecting).collect();
        diagnosis
    }

    /// Why no node may announce the address of `record`; `None` if a node may. `cluster` contains the nodes, pools and
    /// advertisements that this diagnosis was made of.
    pub fn why_not(&self, cluster: &Cluster, record: &Record) -> Option<NoCandidateReason> {
        // A pool that was deleted while Services hold its addresses has no labels.
        let deleted_pool = || self.select_by_pool(&record.pool, &Labels::default());
        let unknown = (!self.pools.contains_key(&*record.pool)).then(deleted_pool);
        let of_pool = unknown.as_ref().unwrap_or_else(|| &self.pools[&*record.pool]);
        let services = record.holders.iter().filter_map(|holder| service_of(holder, &cluster.services));
        let claimants: Vec<_> = services
            .map(|service| {
                let selects = |index: &usize| self.advertisements[*index].advertisement.services.admit(&service.labels);
                PreparedHolder {
                    advertisements: of_pool.iter().copied().filter(selects).collect(),
                    local: local_nodes(service, cluster.slices.get(&service.key), record),
                }
            })
            .collect();
        let has_candidate = |applied: Applied| {
            !record.deleting && claimants.iter().any(|claimant| self.may_use_some_node(claimant, of_pool, applied))
        };
        let all = Applied::ALL;
        [
            (all, None),
            (Applied { endpoints: false, ..all }, Some(NoCandidateReason::NoEndpoint)),
            (Applied { exclusion: false, ..all }, Some(NoCandidateReason::NodesExcluded)),
            (Applied { service_selectors: false, ..all }, Some(NoCandidateReason::ServiceNotSelected)),
            (Applied { node_selectors: false, ..all }, Some(NoCandidateReason::NodesNotSelected)),
        ]
        .into_iter()
        .find(|(applied, _)| has_candidate(*applied))
        .map_or(Some(NoCandidateReason::Several), |(_, reason)| reason)
    }

    /// The indexes of the advertisements that select a pool.
    fn select_by_pool(&self, pool: &str, labels: &Labels) -> Vec<usize> {
        let all = self.advertisements.iter().enumerate();
        all.filter(|(_, prepared)| prepared.advertisement.selects_pool(pool, labels)).map(|(index, _)| index).collect()
    }

    /// Whether a claimant may use any node, if these rules apply. `of_pool`: the advertisements that select the pool.
    fn may_use_some_node(&self, claimant: &PreparedHolder<'_>, of_pool: &[usize], applied: Applied) -> bool {
        let applicable = if applied.service_selectors { &claimant.advertisements } else { of_pool };
        // Every node may announce the addresses of a pool that no advertisement selects.
        let selects_all = of_pool.is_empty() || (!applied.node_selectors && !applicable.is_empty());
        let advertisements = || applicable.iter().map(|index| &self.advertisements[*index]);
        match claimant.local.as_ref().filter(|_| applied.endpoints) {
            Some(local) => local.iter().any(|node| {
                self.nodes.get(*node).is_some_and(|is_included| *is_included || !applied.exclusion)
                    && (selects_all || advertisements().any(|prepared| prepared.nodes.contains(*node)))
            }),
            None if selects_all && applied.exclusion => self.has_included_node,
            None if selects_all => !self.nodes.is_empty(),
            None if applied.exclusion => advertisements().any(|prepared| prepared.has_included_node),
            None => advertisements().any(|prepared| !prepared.nodes.is_empty()),
        }
    }
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
                "L2Advertisements select its pool and this Service, and none of them selects a node: see their \
                 nodeSelectors and the labels of the nodes"
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
    use crate::SharedMap;
    use crate::cluster::{Change, Named};
    use crate::eligibility::Rules;
    use crate::test_objects;
    use crds::l2_advertisement::Selectors;
    use crds::{L2Advertisement, Node, Service, TrafficPolicy};
    use serde_json::{Value, json};

    /// The same answer from the rules that decide about candidates: each time with one edited input.
    fn why_not_by_rules(cluster: &Cluster, record: &Record) -> Option<NoCandidateReason> {
        fn edit_all<T: Clone>(all: &mut Named<T>, edit: fn(&mut T)) {
            all.values_mut().for_each(|object| edit(Arc::make_mut(object)));
        }
        type Edit = fn(&mut Cluster);
        let reasons: [(Edit, Option<NoCandidateReason>); 5] = [
            (|_| {}, None),
            (|cluster| cluster.slices = SharedMap::default(), Some(NoCandidateReason::NoEndpoint)),
            (
                |cluster| edit_all(&mut cluster.nodes, |node| node.excluded = false),
                Some(NoCandidateReason::NodesExcluded),
            ),
            (
                |cluster| edit_all(&mut cluster.advertisements, |ad| ad.services = Selectors::default()),
                Some(NoCandidateReason::ServiceNotSelected),
            ),
            (
                |cluster| edit_all(&mut cluster.advertisements, |ad| ad.nodes = Selectors::default()),
                Some(NoCandidateReason::NodesNotSelected),
            ),
        ];
        for (edit, reason) in reasons {
            let mut edited = cluster.clone();
            edit(&mut edited);
            if Rules::new(&edited).candidates(record).is_some_and(|candidates| !candidates.is_empty()) {
                return reason;
            }
        }
        Some(NoCandidateReason::Several)
    }

    fn advertisement(name: &str, spec: &Value) -> Change {
        let spec = serde_json::from_value(spec.clone()).expect("a spec");
        Change::Advertisement(name.into(), Some(Arc::new(Advertisement::from(&L2Advertisement::new(name, spec)))))
    }

    fn node(name: &str, excluded: bool) -> Change {
        let labels = Labels::from([("name", name)]);
        Change::Node(name.into(), Some(Arc::new(Node { name: name.into(), labels, excluded, ..Node::default() })))
    }

    /// The Services `web` and `db`, each with the nodes of its ready endpoints. `None`: its policy is Cluster.
    fn services(endpoints: [Option<&[&str]>; 2]) -> Vec<Change> {
        let changes = ["web", "db"].into_iter().zip(endpoints).map(|(name, endpoints)| {
            let policy = endpoints.map_or(TrafficPolicy::Cluster, |_| TrafficPolicy::Local);
            let service: Service = test_objects::service(name, policy, Labels::from([("app", name)]));
            let endpoints: Vec<_> = endpoints.iter().copied().flatten().map(|node| (*node, 'r')).collect();
            let slice = test_objects::slice(&format!("{name}-1"), name, &endpoints);
            [
                Change::Service(service.key.clone(), Some(Arc::new(service))),
                Change::Slice { before: None, after: Some(Arc::new(slice)) },
            ]
        });
        changes.flatten().collect()
    }

    #[test]
    fn diagnosis_agrees_with_the_rules_about_candidates() {
        let name = |name: &str| json!([{"matchLabels": {"name": name}}]);
        let app = |app: &str| json!([{"matchLabels": {"app": app}}]);
        let specs = [
            json!(null),
            json!({}),
            json!({"nodeSelectors": name("n1")}),
            json!({"nodeSelectors": name("n3")}),
            json!({"serviceSelectors": app("web")}),
            json!({"serviceSelectors": app("other"), "nodeSelectors": name("n2")}),
            json!({"serviceSelectors": app("db"), "nodeSelectors": name("n3")}),
            json!({"ipAddressPools": ["other"], "nodeSelectors": name("n1")}),
        ];
        let endpoints: [Option<&[&str]>; 5] = [None, Some(&[]), Some(&["n1"]), Some(&["n2"]), Some(&["gone"])];
        let holders: [&[&str]; 4] = [&["web"], &["web", "db"], &["db"], &[]];
        let mut reasons = BTreeSet::new();
        for excluded in 0..4 {
            for (first, second) in specs.iter().flat_map(|first| specs.iter().map(move |second| (first, second))) {
                let mut cluster = Cluster::default();
                cluster.apply([node("n1", excluded & 1 > 0), node("n2", excluded & 2 > 0)]);
                let written = [("first", first), ("second", second)].into_iter().filter(|(_, spec)| !spec.is_null());
                cluster.apply(written.map(|(name, spec)| advertisement(name, spec)));
                let diagnosis = Diagnosis::new(&cluster);
                for (web, db) in endpoints.iter().flat_map(|web| endpoints[..3].iter().map(move |db| (*web, *db))) {
                    cluster.apply(services([web, db]));
                    for holders in holders {
                        let record = test_objects::record([192, 0, 2, 1].into(), "lan", holders);
                        let reason = diagnosis.why_not(&cluster, &record);
                        let case = || format!("{excluded} {first} {second} {web:?} {db:?} {holders:?}");
                        assert_eq!(reason, why_not_by_rules(&cluster, &record), "{}", case());
                        reasons.insert(format!("{reason:?}"));
                    }
                }
            }
        }
        assert_eq!(reasons.len(), 6, "each reason occurs: {reasons:?}");
    }

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
            let record = test_objects::record([192, 0, 2, 1].into(), "lan", &["web"]);
            let mut cluster = Cluster::default();
            cluster.apply(["n1", "n2"].map(|name| node(name, self.excluded.contains(&name))));
            cluster.apply((!self.advertisement.is_null()).then(|| advertisement("ad", &self.advertisement)));
            cluster.apply(services([self.endpoints, None]));
            cluster.apply([Change::Record(record.address, Some(Arc::new(record.clone())))]);
            let reason = Diagnosis::new(&cluster).why_not(&cluster, &record);
            assert_eq!(reason, why_not_by_rules(&cluster, &record), "{self:?}");
            reason
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
