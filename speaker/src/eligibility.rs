//! Which nodes may announce an lb_ip.
//!
//! Objects in, a [`Snapshot`] out. It is decided for each address, over all Services that hold it: two decisions about one
//! address could only contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crds::{EndpointSlice, Holder, Key, Node, Service, TrafficPolicy};

use crate::snapshot::{Snapshot, Wanted};

/// What is observed, as far as it bears on who may announce.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All Services that a holder may name. More do no harm.
    pub services: BTreeMap<Key, Arc<Service>>,
    /// The slices of each Service, in any order.
    pub slices: BTreeMap<Key, Vec<Arc<EndpointSlice>>>,
    /// All nodes, by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Who holds each address, and the greatest epoch that its status tells.
    pub addresses: BTreeMap<IpAddr, (Arc<[Holder]>, u64)>,
}

/// What the speaker on the node `me` has to know.
///
/// An address without a Service (a reservation, or one whose holder is gone or is another one by now) is not wanted.
///
/// Where every node is labelled to take no traffic from outside, none is: kubeadm labels control planes so, also where
/// they are the only nodes, and an address that nobody announces serves nobody.
pub fn snapshot(me: &str, observed: &Observed) -> Snapshot {
    let all_excluded = observed.nodes.values().all(|node| node.excluded);
    let included = observed.nodes.values().filter(|node| all_excluded || !node.excluded);
    let included: Arc<BTreeSet<String>> = Arc::new(included.map(|node| node.name.clone()).collect());
    // Equal sets are one set: there may be as many addresses as Services, and as many names in each as nodes.
    let mut sets = BTreeSet::from([Arc::clone(&included)]);
    let mut addresses = BTreeMap::new();
    for (lb_ip, (holders, epoch)) in &observed.addresses {
        let services = holders.iter().filter_map(|holder| holding(holder, observed)).collect::<Vec<_>>();
        if services.is_empty() {
            continue;
        }
        let local = services.iter().filter(|service| service.traffic_policy == TrafficPolicy::Local);
        let candidates = candidates(&included, local.filter_map(|service| with_endpoints(&service.key, observed)));
        let candidates = match sets.get(&candidates) {
            Some(known) => Arc::clone(known),
            None => {
                let new = Arc::new(candidates);
                sets.insert(Arc::clone(&new));
                new
            }
        };
        addresses.insert(*lb_ip, Wanted { candidates, epoch: *epoch });
    }
    let node_addresses = observed.nodes.get(me).map(|node| node.addresses.clone()).unwrap_or_default();
    Snapshot { node_addresses, addresses }
}

/// The Service that a holder means: a Service of that name with another UID is another one.
fn holding<'a>(holder: &Holder, observed: &'a Observed) -> Option<&'a Service> {
    let service = observed.services.get(&Key::new(holder.namespace.clone(), holder.name.clone()))?;
    (service.uid == holder.uid && service.is_load_balancer).then_some(service)
}

/// The nodes of `included` that all of `local` have endpoints on: each Service of traffic policy Local that has endpoints
/// names its nodes.
///
/// If no node has endpoints of all, those that have endpoints of one will do: some of the Services are better than none,
/// and a packet for the others is refused by the dataplane, as the policy wants it.
fn candidates(included: &BTreeSet<String>, local: impl Iterator<Item = BTreeSet<String>>) -> BTreeSet<String> {
    let local: Vec<BTreeSet<String>> = local.collect();
    let all = included.iter().filter(|node| local.iter().all(|nodes| nodes.contains(*node)));
    let all: BTreeSet<String> = all.cloned().collect();
    if !all.is_empty() {
        return all;
    }
    included.iter().filter(|node| local.iter().any(|nodes| nodes.contains(*node))).cloned().collect()
}

/// The nodes with an endpoint of a Service that new connections may go to: one that is ready or, if there is none in the
/// whole cluster, one that still serves while it terminates (KEP-1669). `None` for a Service without any: then every node
/// may announce its address, and the dataplane there refuses connections, which tells clients more than silence.
fn with_endpoints(service: &Key, observed: &Observed) -> Option<BTreeSet<String>> {
    let endpoints = || observed.slices.get(service).into_iter().flatten().flat_map(|slice| &slice.endpoints);
    let ready = endpoints().filter(|endpoint| endpoint.ready).filter_map(|endpoint| endpoint.node.clone());
    let serving = endpoints().filter(|endpoint| endpoint.serving).filter_map(|endpoint| endpoint.node.clone());
    let nodes: BTreeSet<String> = ready.collect();
    let nodes = if nodes.is_empty() { serving.collect() } else { nodes };
    (!nodes.is_empty()).then_some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Endpoint;

    /// What is in the cluster: `web` and `dns` are Services of policy Cluster, `local` and `other` of policy Local.
    struct Cluster(Observed);

    impl Cluster {
        fn new(nodes: &[(&str, bool)]) -> Self {
            let node = |(n, (name, excluded)): (usize, &(&str, bool))| {
                let addresses = vec![IpAddr::from([192, 0, 2, 11 + n as u8])];
                let node = Node { name: (*name).into(), addresses, pod_cidrs: vec![], excluded: *excluded };
                (node.name.clone(), Arc::new(node))
            };
            let nodes = nodes.iter().enumerate().map(node).collect();
            let mut cluster = Self(Observed { nodes, ..Observed::default() });
            for (name, policy) in [
                ("web", TrafficPolicy::Cluster),
                ("dns", TrafficPolicy::Cluster),
                ("local", TrafficPolicy::Local),
                ("other", TrafficPolicy::Local),
            ] {
                cluster.0.services.insert(Key::new("default", name), Arc::new(service(name, policy)));
            }
            cluster
        }

        /// Gives a Service an endpoint on a node for each entry: ready (`r`), serving while it terminates (`s`), or
        /// neither (`-`).
        fn endpoints(mut self, service: &str, endpoints: &[(&str, char)]) -> Self {
            let key = Key::new("default", service);
            let endpoints = endpoints.iter().map(|(node, state)| Endpoint {
                address: [10, 0, 0, 1].into(),
                node: Some((*node).into()),
                ready: *state == 'r',
                serving: *state != '-',
                terminating: *state == 's',
            });
            let (ports, endpoints) = (BTreeMap::new(), endpoints.collect());
            let slice = EndpointSlice { key: key.clone(), service: key.clone(), ports, endpoints };
            self.0.slices.entry(key).or_default().push(Arc::new(slice));
            self
        }

        fn candidates(mut self, holders: &[&str]) -> Option<String> {
            let lb_ip: IpAddr = [192, 0, 2, 200].into();
            self.0.addresses.insert(lb_ip, (holders.iter().map(|name| holder(name)).collect(), 4));
            let wanted = snapshot("n1", &self.0).addresses.remove(&lb_ip)?;
            assert_eq!(wanted.epoch, 4);
            Some(wanted.candidates.iter().cloned().collect::<Vec<_>>().join(" "))
        }
    }

    fn holder(name: &str) -> Holder {
        let (name, uid) = name.split_once('/').unwrap_or((name, "u1"));
        Holder { namespace: "default".into(), name: name.into(), uid: uid.into(), terms: None }
    }

    fn service(name: &str, traffic_policy: TrafficPolicy) -> Service {
        let object = serde_json::json!({
            "metadata": {"namespace": "default", "name": name, "uid": "u1"},
            "spec": {"type": "LoadBalancer"},
        });
        let object: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).expect("a Service");
        Service { traffic_policy, ..Service::try_from(&object).expect("a view") }
    }

    const NODES: &[(&str, bool)] = &[("n1", false), ("n2", false), ("n3", false), ("n4", true)];

    #[test]
    fn candidates_follow_labels_policies_and_endpoints_of_all_services_that_share_the_address() {
        let all = Some("n1 n2 n3");
        for (what, endpoints, holders, expected) in [
            ("a Service without endpoints", vec![], vec!["web"], all),
            ("endpoints under Cluster", vec![("web", vec![("n2", 'r')])], vec!["web"], all),
            ("Local without endpoints", vec![], vec!["local"], all),
            ("Local", vec![("local", vec![("n2", 'r'), ("n3", '-')])], vec!["local"], Some("n2")),
            (
                "Local in two slices",
                vec![("local", vec![("n2", 'r')]), ("local", vec![("n3", 'r')])],
                vec!["local"],
                Some("n2 n3"),
            ),
            ("Local on an excluded node", vec![("local", vec![("n4", 'r')])], vec!["local"], Some("")),
            ("Local, all terminating", vec![("local", vec![("n2", 's'), ("n3", '-')])], vec!["local"], Some("n2")),
            ("Local, one terminating", vec![("local", vec![("n2", 's'), ("n3", 'r')])], vec!["local"], Some("n3")),
            (
                "Local with Cluster",
                vec![("local", vec![("n2", 'r')]), ("web", vec![("n1", 'r')])],
                vec!["web", "local"],
                Some("n2"),
            ),
            (
                "two Local ones",
                vec![("local", vec![("n1", 'r'), ("n2", 'r')]), ("other", vec![("n2", 'r'), ("n3", 'r')])],
                vec!["local", "other"],
                Some("n2"),
            ),
            (
                "two Local ones that meet nowhere",
                vec![("local", vec![("n1", 'r')]), ("other", vec![("n3", 'r')])],
                vec!["local", "other"],
                Some("n1 n3"),
            ),
            (
                "two Local ones, one without endpoints",
                vec![("local", vec![("n1", 'r')])],
                vec!["local", "other"],
                Some("n1"),
            ),
            ("a reservation", vec![], vec![], None),
            ("a Service that is gone", vec![], vec!["gone"], None),
            ("another Service of that name", vec![], vec!["web/u2"], None),
            ("one that is gone and one that is there", vec![], vec!["gone", "web"], all),
        ] {
            let cluster = endpoints
                .into_iter()
                .fold(Cluster::new(NODES), |cluster, (service, endpoints)| cluster.endpoints(service, &endpoints));
            assert_eq!(cluster.candidates(&holders).as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn where_every_node_is_excluded_none_is() {
        let cluster = Cluster::new(&[("cp1", true), ("cp2", true)]);
        assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("cp1 cp2"));
    }

    #[test]
    fn a_service_that_is_no_load_balancer_any_more_holds_nothing() {
        let mut cluster = Cluster::new(NODES);
        let service = Service { is_load_balancer: false, ..service("web", TrafficPolicy::Cluster) };
        cluster.0.services.insert(service.key.clone(), Arc::new(service));
        assert_eq!(cluster.candidates(&["web"]), None);
    }

    #[test]
    fn equal_sets_of_candidates_are_one_and_the_node_knows_its_own_addresses() {
        let mut cluster = Cluster::new(NODES).endpoints("local", &[("n2", 'r')]);
        for (last, name) in [(1, "web"), (2, "dns"), (3, "local"), (4, "local")] {
            cluster.0.addresses.insert([192, 0, 2, last].into(), ([holder(name)].into(), 0));
        }
        let snapshot = snapshot("n2", &cluster.0);
        let sets: Vec<_> = snapshot.addresses.values().map(|wanted| Arc::clone(&wanted.candidates)).collect();
        assert!(Arc::ptr_eq(&sets[0], &sets[1]) && Arc::ptr_eq(&sets[2], &sets[3]));
        assert_eq!(snapshot.node_addresses, [IpAddr::from([192, 0, 2, 12])]);
    }
}
