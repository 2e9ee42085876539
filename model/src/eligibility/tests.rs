//! Tables and properties of the candidates of an address.

use std::collections::BTreeSet;

use crds::{Advertisement, DrainReason, L2Advertisement, Labels, Node, PoolSettings, Reach, Service, TrafficPolicy};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cluster::Change;
use crate::test_objects::{record, service, slice};

/// The address that all tables are about.
const LB_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 200));

/// A cluster with a pool `lan`, Services `web` and `dns` of policy Cluster, and `local` and `other` of policy Local.
#[derive(Clone)]
struct World {
    cluster: Cluster,
    slices: usize,
}

impl World {
    /// A cluster with nodes `n1`, `n2` and so on that have these labels.
    fn new(nodes: &[&str]) -> Self {
        let mut world = Self { cluster: Cluster::default(), slices: 0 };
        for (n, labels) in nodes.iter().enumerate() {
            let name = format!("n{}", n + 1);
            let node = Node { name: name.clone(), labels: read_labels(labels), ..Node::default() };
            world.apply(Change::Node(name, Some(Arc::new(node))));
        }
        for (name, policy) in [
            ("web", TrafficPolicy::Cluster),
            ("dns", TrafficPolicy::Cluster),
            ("local", TrafficPolicy::Local),
            ("other", TrafficPolicy::Local),
        ] {
            world.put_service(service(name, policy, Labels::from([("app", name)])));
        }
        world.pool("lan", "")
    }

    fn apply(&mut self, change: Change) {
        self.cluster.apply([change]);
    }

    fn put_service(&mut self, service: Service) {
        self.apply(Change::Service(service.key.clone(), Some(Arc::new(service))));
    }

    fn put_record(&mut self, lb_ip: IpAddr, holders: &[&str]) {
        self.apply(Change::Record(lb_ip, Some(Arc::new(record(lb_ip, "lan", holders)))));
    }

    fn node(mut self, name: &str, change: impl FnOnce(&mut Node)) -> Self {
        let mut node = self.cluster.nodes()[name].clone();
        change(Arc::make_mut(&mut node));
        self.apply(Change::Node(name.into(), Some(node)));
        self
    }

    fn exclude(self, name: &str) -> Self {
        self.node(name, |node| node.excluded = true)
    }

    fn drain(self, name: &str) -> Self {
        self.node(name, |node| node.drain_reason = Some(DrainReason::Drained))
    }

    fn pool(mut self, name: &str, labels: &str) -> Self {
        let settings = PoolSettings { labels: Arc::new(read_labels(labels)), spread: true };
        self.apply(Change::Pool(name.into(), Some(Arc::new(settings))));
        self
    }

    fn advertise(mut self, spec: Value) -> Self {
        let name = format!("ad{}", self.cluster.advertisements.len());
        let object = L2Advertisement::new(&name, serde_json::from_value(spec).expect("a spec"));
        self.apply(Change::Advertisement(name, Some(Arc::new(Advertisement::from(&object)))));
        self
    }

    /// Adds a slice of a Service with an endpoint for each entry: see [`slice`].
    fn endpoints(self, service: &str, endpoints: &[(&str, char)]) -> Self {
        let name = format!("slice-{}", self.slices);
        self.named_endpoints(&name, service, endpoints)
    }

    fn named_endpoints(mut self, name: &str, service: &str, endpoints: &[(&str, char)]) -> Self {
        self.slices += 1;
        let after = Some(Arc::new(slice(name, service, endpoints)));
        self.apply(Change::Slice { before: None, after });
        self
    }

    fn policies(&self) -> SharedMap<IpAddr, AnnouncementPolicy> {
        let mut eligibility = Eligibility::default();
        eligibility.update(&self.cluster, &Affected { nodes: true, ..Affected::default() });
        eligibility.policies
    }

    /// The candidates of an address that these Services hold, if it has a policy. See [`describe`].
    fn candidates(self, holders: &[&str]) -> Option<String> {
        self.candidates_while(holders, None)
    }

    /// The candidates, while n1 announces the address with this reach.
    fn candidates_while(mut self, holders: &[&str], reach: Option<Reach>) -> Option<String> {
        let mut record = record(LB_IP, "lan", holders);
        record.announcers.iter_mut().for_each(|announcer| announcer.reach = reach);
        self.apply(Change::Record(LB_IP, Some(Arc::new(record))));
        let policy = self.policies().remove(&LB_IP)?;
        assert_eq!(policy.epoch, 4);
        Some(describe(&policy.candidates))
    }
}

/// For example `n1 n2:60@eth1`: n1 on its home link; n2 with preference 60, on eth1 only.
fn describe(candidates: &Candidates) -> String {
    let links = |links: &Links| {
        let home = links.home.then_some("home").filter(|_| !links.named.is_empty());
        let all: Vec<&str> = home.into_iter().chain(links.named.iter().map(String::as_str)).collect();
        if all.is_empty() { String::new() } else { format!("@{}", all.join(",")) }
    };
    let one = |(node, candidate): (&str, &Candidate)| {
        let preference = Some(candidate.preference).filter(|preference| *preference > 0);
        let preference = preference.map(|preference| format!(":{preference}")).unwrap_or_default();
        format!("{node}{preference}{}", links(&candidate.links))
    };
    candidates.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn read_labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    Labels::from(Some(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

fn matching(labels: &str) -> Value {
    json!({"matchLabels": read_labels(labels).to_map()})
}

/// A world of four nodes. The last one is excluded from load balancers.
fn four_nodes() -> World {
    World::new(&["", "", "", ""]).exclude("n4")
}

#[test]
fn candidates_follow_labels_policies_and_endpoints_of_all_holders() {
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
            "two of policy Local",
            vec![("local", vec![("n1", 'r'), ("n2", 'r')]), ("other", vec![("n2", 'r'), ("n3", 'r')])],
            vec!["local", "other"],
            Some("n2"),
        ),
        (
            "two of policy Local without a common node",
            vec![("local", vec![("n1", 'r')]), ("other", vec![("n3", 'r')])],
            vec!["local", "other"],
            Some("n1 n3"),
        ),
        (
            "two of policy Local without a common node, and one of policy Cluster",
            vec![("local", vec![("n1", 'r')]), ("other", vec![("n3", 'r')])],
            vec!["local", "web", "other"],
            Some("n1 n3"),
        ),
        (
            "two of policy Local, one without endpoints",
            vec![("local", vec![("n1", 'r')])],
            vec!["local", "other"],
            Some("n1"),
        ),
        ("a reservation", vec![], vec![], None),
        ("a deleted Service", vec![], vec!["gone"], None),
        ("another Service of that name", vec![], vec!["web/u2"], None),
        ("a deleted Service and an existing one", vec![], vec!["gone", "web"], all),
    ] {
        let cluster = endpoints
            .into_iter()
            .fold(four_nodes(), |cluster, (service, endpoints)| cluster.endpoints(service, &endpoints));
        assert_eq!(cluster.candidates(&holders).as_deref(), expected, "{what}");
    }
}

#[test]
fn spreading_node_stays_candidate_while_its_endpoint_drains() {
    use Reach::{Mixed, Spread, Translated};
    for (what, endpoints, reach, expected) in [
        ("it spreads", vec![("n1", 's'), ("n2", 'r')], Some(Spread), "n1 n2"),
        ("it only translates", vec![("n1", 's'), ("n2", 'r')], Some(Translated), "n2"),
        ("it spreads only some ports", vec![("n1", 's'), ("n2", 'r')], Some(Mixed), "n2"),
        ("it has not reported", vec![("n1", 's'), ("n2", 'r')], None, "n2"),
        ("its endpoint has ended", vec![("n1", '-'), ("n2", 'r')], Some(Spread), "n2"),
        ("its endpoint was deleted", vec![("n2", 'r')], Some(Spread), "n2"),
        ("the endpoint of another node drains", vec![("n1", 'r'), ("n2", 's')], Some(Spread), "n1"),
        ("all endpoints drain", vec![("n1", 's'), ("n2", 's')], Some(Spread), "n1 n2"),
    ] {
        let cluster = four_nodes().endpoints("local", &endpoints);
        assert_eq!(cluster.candidates_while(&["local"], reach).as_deref(), Some(expected), "{what}");
    }
    let drained = four_nodes().endpoints("local", &[("n1", 's'), ("n2", 'r')]).drain("n1");
    assert_eq!(drained.candidates_while(&["local"], Some(Spread)).as_deref(), Some("n2"), "the node drains too");
}

#[test]
fn excluding_all_nodes_excludes_none() {
    let cluster = World::new(&["", ""]).exclude("n1").exclude("n2");
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1 n2"));
}

#[test]
fn drained_nodes_are_candidates_only_without_others() {
    let cluster = || World::new(&["role=edge", "role=edge", ""]).endpoints("local", &[("n1", 'r'), ("n3", 'r')]);
    let edge = json!({"nodeSelectors": [matching("role=edge")]});
    let drain_n1 = |cluster: World| cluster.drain("n1");
    for (what, cluster, holder, expected) in [
        ("one of three", drain_n1(cluster()), "web", "n2 n3"),
        ("one of two with an endpoint", drain_n1(cluster()), "local", "n3"),
        ("both with an endpoint", drain_n1(cluster()).drain("n3"), "local", "n1 n3"),
        ("the only one that is not excluded", drain_n1(cluster()).exclude("n2").exclude("n3"), "web", "n1"),
        ("one of two that are advertised", drain_n1(cluster()).advertise(edge.clone()), "web", "n2"),
        ("both that are advertised", drain_n1(cluster()).drain("n2").advertise(edge), "web", "n1 n2"),
        ("all", drain_n1(cluster()).drain("n2").drain("n3"), "web", "n1 n2 n3"),
        (
            "a deleted node",
            {
                let mut cluster = cluster();
                cluster.apply(Change::Node("n1".into(), None));
                cluster
            },
            "web",
            "n2 n3",
        ),
    ] {
        assert_eq!(cluster.candidates(&[holder]).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn every_node_announces_pools_that_no_advertisement_selects() {
    let cluster = || World::new(&["zone=a", "zone=b", "zone=b"]).pool("lan", "tier=gold").pool("dmz", "");
    let zone = |zone: &str| json!([matching(&format!("zone={zone}"))]);
    for (what, specs, expected) in [
        ("no advertisement", vec![], "n1 n2 n3"),
        ("an empty advertisement", vec![json!({})], "n1 n2 n3"),
        ("one for another pool", vec![json!({"ipAddressPools": ["dmz"], "nodeSelectors": zone("a")})], "n1 n2 n3"),
        (
            "one for a pool that does not exist",
            vec![json!({"ipAddressPools": ["x"], "nodeSelectors": zone("a")})],
            "n1 n2 n3",
        ),
        ("one for the pool by name", vec![json!({"ipAddressPools": ["lan"], "nodeSelectors": zone("a")})], "n1"),
        (
            "one for the pool by label",
            vec![json!({"ipAddressPoolSelectors": [matching("tier=gold")], "nodeSelectors": zone("a")})],
            "n1",
        ),
        ("one for other labels", vec![json!({"ipAddressPoolSelectors": [matching("tier=tin")]})], "n1 n2 n3"),
        ("one for all pools", vec![json!({"nodeSelectors": zone("b")})], "n2 n3"),
        ("no node matches", vec![json!({"nodeSelectors": zone("c")})], ""),
        ("two selectors", vec![json!({"nodeSelectors": [zone("a")[0], zone("b")[0]]})], "n1 n2 n3"),
        (
            "two advertisements",
            vec![json!({"nodeSelectors": zone("a")}), json!({"nodeSelectors": zone("b")})],
            "n1 n2 n3",
        ),
        (
            "two advertisements, one for another pool",
            vec![json!({"nodeSelectors": zone("a")}), json!({"ipAddressPools": ["dmz"]})],
            "n1",
        ),
    ] {
        let cluster = specs.into_iter().fold(cluster(), World::advertise);
        assert_eq!(cluster.candidates(&["web"]).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn advertisement_may_select_only_some_services() {
    let cluster = || World::new(&["zone=a", "zone=b", "zone=b"]);
    let for_app = |app: &str, zone: &str| {
        let [app, zone] = [format!("app={app}"), format!("zone={zone}")];
        json!({"serviceSelectors": [matching(&app)], "nodeSelectors": [matching(&zone)]})
    };
    let other_pool = json!({
        "ipAddressPools": ["x"],
        "serviceSelectors": [matching("app=web")],
        "nodeSelectors": [matching("zone=a")],
    });
    let either = json!({"serviceSelectors": [matching("app=web"), matching("app=dns")]});
    for (what, specs, holders, expected) in [
        ("its selector matches", vec![for_app("web", "a")], vec!["web"], "n1"),
        ("its selector does not match, and no other does", vec![for_app("dns", "a")], vec!["web"], ""),
        (
            "its selector does not match, and another does",
            vec![for_app("dns", "a"), for_app("web", "b")],
            vec!["web"],
            "n2 n3",
        ),
        ("one of two selectors", vec![either], vec!["dns"], "n1 n2 n3"),
        ("two on different nodes", vec![for_app("web", "a"), for_app("web", "b")], vec!["web"], "n1 n2 n3"),
        ("the Service matches, and not the pool", vec![other_pool], vec!["web"], "n1 n2 n3"),
        (
            "shared by two that are selected",
            vec![for_app("web", "b"), json!({"serviceSelectors": [matching("app=dns")]})],
            vec!["web", "dns"],
            "n2 n3",
        ),
        (
            "shared by two without a common node",
            vec![for_app("web", "a"), for_app("dns", "b")],
            vec!["web", "dns"],
            "n1 n2 n3",
        ),
        ("shared by one that is selected and one that is not", vec![for_app("web", "a")], vec!["dns", "web"], "n1"),
    ] {
        let cluster = specs.into_iter().fold(cluster(), World::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn editing_labels_of_a_service_starts_its_announcement() {
    let mut cluster = World::new(&["", ""]).advertise(json!({"serviceSelectors": [matching("expose=yes")]}));
    assert_eq!(cluster.clone().candidates(&["web"]).as_deref(), Some(""));
    let labels = Labels::from([("expose", "yes")]);
    cluster.put_service(service("web", TrafficPolicy::Cluster, labels));
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1 n2"));
}

#[test]
fn links_of_all_applicable_advertisements_are_used() {
    let cluster = || World::new(&["zone=a", "zone=b"]);
    let on = |interfaces: &[&str]| json!({"interfaces": interfaces});
    let in_b = |interfaces: &[&str]| json!({"interfaces": interfaces, "nodeSelectors": [matching("zone=b")]});
    let for_dns = json!({"interfaces": ["eth2"], "serviceSelectors": [matching("app=dns")]});
    for (what, specs, holders, expected) in [
        ("one", vec![on(&["eth1"])], vec!["web"], "n1@eth1 n2@eth1"),
        ("two in one", vec![on(&["eth2", "eth1"])], vec!["web"], "n1@eth1,eth2 n2@eth1,eth2"),
        ("two in two", vec![on(&["eth1"]), on(&["eth2"])], vec!["web"], "n1@eth1,eth2 n2@eth1,eth2"),
        ("on one node", vec![in_b(&["eth1"])], vec!["web"], "n2@eth1"),
        ("another on one node", vec![on(&["eth0"]), in_b(&["eth1"])], vec!["web"], "n1@eth0 n2@eth0,eth1"),
        ("one that names none", vec![json!({}), in_b(&["eth1"])], vec!["web"], "n1 n2@home,eth1"),
        ("for another Service", vec![on(&["eth1"]), for_dns.clone()], vec!["web"], "n1@eth1 n2@eth1"),
        (
            "for one that shares the address",
            vec![on(&["eth1"]), for_dns],
            vec!["web", "dns"],
            "n1@eth1,eth2 n2@eth1,eth2",
        ),
    ] {
        let cluster = specs.into_iter().fold(cluster(), World::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn weights_of_all_applicable_advertisements_are_added() {
    let cluster = || World::new(&["zone=a gpu=y", "zone=b", "zone=a"]).endpoints("local", &[("n2", 'r'), ("n3", 'r')]);
    let prefer = |weight: u32, labels: &str| json!({"weight": weight, "preference": matching(labels)});
    let a = json!({"preferredNodeSelectors": [prefer(60, "zone=a"), prefer(50, "gpu=y")]});
    let b = json!({"preferredNodeSelectors": [prefer(70, "zone=b")]});
    let preferences = [prefer(100, "zone=a"), prefer(1, "")];
    let hard = json!({"nodeSelectors": [matching("zone=b")], "preferredNodeSelectors": preferences});
    let for_dns = json!({"serviceSelectors": [matching("app=dns")], "preferredNodeSelectors": [prefer(100, "zone=b")]});
    for (what, specs, holders, expected) in [
        ("in one advertisement", vec![a.clone()], vec!["web"], "n1:110 n2 n3:60"),
        ("in two", vec![a.clone(), b.clone()], vec!["web"], "n1:110 n2:70 n3:60"),
        ("in two equal advertisements", vec![a.clone(), a.clone()], vec!["web"], "n1:220 n2 n3:120"),
        ("nodeSelectors limit preferences", vec![hard.clone()], vec!["web"], "n2:1"),
        (
            "nodeSelectors limit preferences beside another advertisement",
            vec![hard, json!({})],
            vec!["web"],
            "n1 n2:1 n3",
        ),
        ("of a Service", vec![a.clone(), for_dns.clone()], vec!["web"], "n1:110 n2 n3:60"),
        ("of another Service", vec![a.clone(), for_dns.clone()], vec!["dns"], "n1:110 n2:100 n3:60"),
        ("of two Services, once each", vec![a.clone(), for_dns], vec!["dns", "web"], "n1:110 n2:100 n3:60"),
        ("not for those without an endpoint", vec![a], vec!["local"], "n2 n3:60"),
    ] {
        let cluster = specs.into_iter().fold(cluster(), World::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn address_of_deleted_pool_follows_advertisements_naming_it() {
    let mut cluster = World::new(&["zone=a", ""]).advertise(json!({
        "ipAddressPools": ["lan"], "nodeSelectors": [matching("zone=a")],
    }));
    cluster.apply(Change::Pool("lan".into(), None));
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1"));
}

#[test]
fn former_load_balancer_holds_no_address() {
    let mut cluster = four_nodes();
    let service = Service { is_load_balancer: false, ..service("web", TrafficPolicy::Cluster, Labels::default()) };
    cluster.put_service(service);
    assert_eq!(cluster.candidates(&["web"]), None);
}

#[test]
fn record_being_deleted_has_no_policy() {
    let mut cluster = four_nodes();
    let record = Record { deleting: true, ..record(LB_IP, "lan", &["web"]) };
    cluster.apply(Change::Record(LB_IP, Some(Arc::new(record))));
    assert_eq!(cluster.policies(), SharedMap::default());
}

#[test]
fn equal_sets_of_candidates_are_stored_once() {
    let mut cluster = four_nodes().endpoints("local", &[("n2", 'r')]).endpoints("other", &[("n2", 'r')]);
    for (last, name) in [(1, "web"), (2, "dns"), (3, "local"), (4, "other")] {
        cluster.put_record([192, 0, 2, last].into(), &[name]);
    }
    let policies = cluster.policies();
    let sets: Vec<_> = policies.values().map(|policy| Arc::clone(&policy.candidates)).collect();
    assert!(Arc::ptr_eq(&sets[0], &sets[1]) && Arc::ptr_eq(&sets[2], &sets[3]));
}

/// Selectors of labels `l=0`, `l=1`; an empty list selects all.
fn any_selectors() -> impl Strategy<Value = Vec<u8>> {
    vec(0u8..2, 0..2)
}

fn to_json(selectors: &[u8]) -> Value {
    selectors.iter().map(|value| matching(&format!("l={value}"))).collect()
}

/// An advertisement: whether its pool is `lan` or `dmz` (`None`: all pools), label values of nodes and of Services,
/// interfaces, and weights of label values.
type Ad = (Option<bool>, Vec<u8>, Vec<u8>, Vec<u8>, Vec<(u32, u8)>);

fn any_ad() -> impl Strategy<Value = Ad> {
    let preferences = vec((1u32..=100, 0u8..2), 0..3);
    (any::<Option<bool>>(), any_selectors(), any_selectors(), vec(0u8..3, 0..2), preferences)
}

fn spec((pool, nodes, services, interfaces, preferences): &Ad) -> Value {
    let preferences = preferences
        .iter()
        .map(|(weight, value)| json!({"weight": weight, "preference": matching(&format!("l={value}"))}));
    json!({
        "ipAddressPools": pool.map(|ours| if ours { "lan" } else { "dmz" }).into_iter().collect::<Vec<_>>(),
        "nodeSelectors": to_json(nodes),
        "serviceSelectors": to_json(services),
        "interfaces": interfaces.iter().map(|n| format!("eth{n}")).collect::<BTreeSet<_>>(),
        "preferredNodeSelectors": preferences.collect::<Value>(),
    })
}

/// A node: its label, whether it is excluded, whether it is drained.
type AnyNode = (u8, bool, bool);

/// A Service: its label, and the nodes that have an endpoint if its policy is Local.
type AnyService = (u8, Option<BTreeSet<usize>>);

fn cluster(nodes: &[AnyNode], services: &[AnyService], ads: &[Ad]) -> World {
    cluster_in_order(nodes, services, ads, |n| n)
}

/// The same cluster as [`cluster`], with another order of slices. `order` maps the index of a node to the number in the
/// name of its slice.
fn cluster_in_order(nodes: &[AnyNode], services: &[AnyService], ads: &[Ad], order: fn(usize) -> usize) -> World {
    let labels: Vec<String> = nodes.iter().map(|(label, _, _)| format!("l={label}")).collect();
    let mut cluster = World::new(&labels.iter().map(String::as_str).collect::<Vec<_>>());
    for (n, (_, excluded, drained)) in nodes.iter().enumerate() {
        cluster = cluster.node(&format!("n{}", n + 1), |node| {
            (node.excluded, node.drain_reason) = (*excluded, drained.then_some(DrainReason::OutOfService));
        });
    }
    for (n, (label, local)) in services.iter().enumerate() {
        let policy = if local.is_some() { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let service = service(&format!("s{n}"), policy, read_labels(&format!("l={label}")));
        cluster.put_service(service);
        for node in local.iter().flatten() {
            let name = format!("slice-{:02}", order(*node));
            cluster =
                cluster.named_endpoints(&format!("s{n}-{name}"), &format!("s{n}"), &[(&format!("n{}", node + 1), 'r')]);
        }
    }
    ads.iter().map(spec).fold(cluster, World::advertise)
}

prop_compose! {
    fn any_cluster()(
        nodes in vec((0u8..3, prop::bool::weighted(0.2), prop::bool::weighted(0.3)), 1..5),
        services in vec((0u8..3, prop::option::of(prop::collection::btree_set(0usize..4, 0..3))), 1..4),
        ads in vec(any_ad(), 0..4),
    ) -> (Vec<AnyNode>, Vec<AnyService>, Vec<Ad>) {
        (nodes, services, ads)
    }
}

proptest! {
    /// A second implementation of MetalLB's rules, for one Service.
    #[test]
    fn candidates_for_one_service_match_the_rules_per_node((nodes, services, ads) in any_cluster()) {
        let (label, local) = &services[0];
        let matches = |selectors: &[u8], label: u8| selectors.is_empty() || selectors.contains(&label);
        let for_pool: Vec<&Ad> = ads.iter().filter(|ad| ad.0 != Some(false)).collect();
        let for_service: Vec<&&Ad> = for_pool.iter().filter(|ad| matches(&ad.2, *label)).collect();
        let all_excluded = nodes.iter().all(|node| node.1);
        let may = |n: usize| {
            let (label, excluded, _) = nodes[n];
            let advertised = for_pool.is_empty() || for_service.iter().any(|ad| matches(&ad.1, label));
            let confined = local.as_ref().filter(|local| !local.is_empty());
            advertised && (all_excluded || !excluded) && confined.is_none_or(|local| local.contains(&n))
        };
        let able: Vec<usize> = (0..nodes.len()).filter(|n| may(*n)).collect();
        let undrained: Vec<usize> = able.iter().copied().filter(|n| !nodes[*n].2).collect();
        let expected = if undrained.is_empty() { able } else { undrained };
        let expected: Candidates = expected.into_iter().map(|n| {
            let links = Links { home: for_pool.is_empty(), named: BTreeSet::new() };
            let mut candidate = Candidate { links, preference: 0 };
            for (_, _, _, interfaces, preferences) in for_service.iter().filter(|ad| matches(&ad.1, nodes[n].0)) {
                candidate.links.home |= interfaces.is_empty();
                candidate.links.named.extend(interfaces.iter().map(|n| format!("eth{n}")));
                let weights = preferences.iter().filter(|(_, l)| *l == nodes[n].0).map(|(weight, _)| weight);
                candidate.preference += weights.sum::<u32>();
            }
            (format!("n{}", n + 1), candidate)
        }).collect();
        let got = cluster(&nodes, &services, &ads).candidates(&["s0"]);
        prop_assert_eq!(got, Some(describe(&expected)));
    }

    #[test]
    fn order_of_holders_slices_and_advertisements_never_matters((nodes, services, ads) in any_cluster()) {
        let names: Vec<String> = (0..services.len()).map(|n| format!("s{n}")).collect();
        let mut holders: Vec<&str> = names.iter().map(String::as_str).collect();
        let forward = cluster(&nodes, &services, &ads).candidates(&holders);
        holders.reverse();
        let reversed: Vec<Ad> = ads.iter().rev().cloned().collect();
        let backward = cluster_in_order(&nodes, &services, &reversed, |n| 9 - n);
        prop_assert_eq!(forward, backward.candidates(&holders));
    }

    /// Each candidate of a shared address would be a candidate for at least one of the Services alone. The shared
    /// address has a candidate if and only if at least one of the Services alone has one.
    #[test]
    fn sharing_adds_no_candidate_and_leaves_at_least_one((nodes, services, ads) in any_cluster()) {
        let undrained = nodes.iter().map(|(label, excluded, _)| (*label, *excluded, false)).collect::<Vec<_>>();
        let candidates_of = |holders: &[&str]| {
            let mut cluster = cluster(&undrained, &services, &ads);
            cluster.put_record(LB_IP, holders);
            let policy = cluster.policies().remove(&LB_IP).expect("a policy");
            policy.candidates.iter().map(|(node, _)| node.to_owned()).collect::<BTreeSet<String>>()
        };
        let names: Vec<String> = (0..services.len()).map(|n| format!("s{n}")).collect();
        let alone: BTreeSet<String> = names.iter().flat_map(|name| candidates_of(&[name])).collect();
        let together = candidates_of(&names.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert!(together.is_subset(&alone), "{:?} {:?}", together, alone);
        prop_assert_eq!(together.is_empty(), alone.is_empty());
    }
}
