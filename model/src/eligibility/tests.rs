//! Tables and properties of who may announce.

use super::*;
use crds::{DrainReason, Endpoint, L2Advertisement};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What is in the cluster: `web` and `dns` are Services of policy Cluster, `local` and `other` of policy Local. The pool is
/// called `lan`.
#[derive(Clone)]
struct Cluster(Observed);

impl Cluster {
    /// With nodes `n1`, `n2` and so on, each with these labels.
    fn new(nodes: &[&str]) -> Self {
        let node = |(n, labels): (usize, &&str)| {
            let name = format!("n{}", n + 1);
            let addresses = vec![IpAddr::from([192, 0, 2, 11 + n as u8])];
            (name.clone(), Arc::new(Node { name, addresses, labels: read_labels(labels), ..Node::default() }))
        };
        let nodes = nodes.iter().enumerate().map(node).collect();
        let pools = [("lan".to_owned(), Arc::new(Labels::default()))].into();
        let mut cluster = Self(Observed { nodes, pools, ..Observed::default() });
        for (name, policy) in [
            ("web", TrafficPolicy::Cluster),
            ("dns", TrafficPolicy::Cluster),
            ("local", TrafficPolicy::Local),
            ("other", TrafficPolicy::Local),
        ] {
            let labels = Labels::from([("app", name)]);
            cluster.0.services.insert(Key::new("default", name), Arc::new(service(name, policy, labels)));
        }
        cluster
    }

    fn node(mut self, name: &str, change: impl FnOnce(&mut Node)) -> Self {
        change(Arc::make_mut(self.0.nodes.get_mut(name).expect("a node")));
        self
    }

    fn excluded(self, name: &str) -> Self {
        self.node(name, |node| node.excluded = true)
    }

    fn relieved(self, name: &str) -> Self {
        self.node(name, |node| node.drain_reason = Some(DrainReason::Drained))
    }

    fn pool(mut self, name: &str, labels: &str) -> Self {
        self.0.pools.insert(name.into(), Arc::new(read_labels(labels)));
        self
    }

    fn advertise(mut self, spec: Value) -> Self {
        let name = format!("ad{}", self.0.advertisements.len());
        let object = L2Advertisement::new(&name, serde_json::from_value(spec).expect("a spec"));
        self.0.advertisements.insert(name, Arc::new(Advertisement::from(&object)));
        self
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
        let (ports, endpoints) = (Box::default(), endpoints.collect());
        let slice = EndpointSlice { key: key.clone(), service: key.clone(), ports, endpoints, refused: None };
        let known = self.0.slices.get(&key).into_iter().flat_map(|slices| slices.iter()).cloned();
        let slices = known.chain([Arc::new(slice)]).collect();
        self.0.slices.insert(key, slices);
        self
    }

    /// Who may announce an address that these Services hold, if anybody should. See [`written`].
    fn candidates(self, holders: &[&str]) -> Option<String> {
        self.candidates_while(holders, None)
    }

    /// The same while n1 announces it, and forwards what comes in this way.
    fn candidates_while(mut self, holders: &[&str], reach: Option<Reach>) -> Option<String> {
        let mut record = record("lan", holders);
        record.announcers.iter_mut().for_each(|announcer| announcer.reach = reach);
        self.0.addresses.insert(record.address, Arc::new(record.clone()));
        let wanted = policies(&self.0).remove(&record.address)?;
        assert_eq!(wanted.epoch, 4);
        Some(written(&wanted.candidates))
    }
}

/// `n1 n2:60@eth1`: n1 where the address belongs; n2, preferred by 60, on eth1 alone.
fn written(candidates: &Candidates) -> String {
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

fn read_labels(written: &str) -> Labels {
    let pairs = written.split_whitespace().filter_map(|pair| pair.split_once('='));
    Labels::from(Some(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

fn record(pool: &str, holders: &[&str]) -> Record {
    let announcer = |epoch| crds::Announcer {
        node: "n1".into(),
        link: "eth0".into(),
        epoch,
        since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        moved: None,
        reach: None,
        unforwarded: vec![],
    };
    Record {
        address: [192, 0, 2, 200].into(),
        uid: "".into(),
        resource_version: 0,
        deleting: false,
        pool: pool.into(),
        holders: holders.iter().map(|name| holder(name)).collect(),
        sharing_key: None,
        reservation: None,
        quarantine: None,
        announcers: vec![announcer(3), announcer(4), announcer(-1)],
        first_announced: None,
        conflicts: vec![],
    }
}

fn holder(name: &str) -> Holder {
    let (name, uid) = name.split_once('/').unwrap_or((name, "u1"));
    Holder { namespace: "default".into(), name: name.into(), uid: uid.into(), terms: None }
}

fn service(name: &str, traffic_policy: TrafficPolicy, labels: Labels) -> Service {
    let object = serde_json::json!({
        "metadata": {"namespace": "default", "name": name, "uid": "u1"},
        "spec": {"type": "LoadBalancer"},
    });
    let object: k8s_openapi::api::core::v1::Service = serde_json::from_value(object).expect("a Service");
    Service { traffic_policy, labels, ..Service::try_from(&object).expect("a view") }
}

fn matching(labels: &str) -> Value {
    json!({"matchLabels": read_labels(labels).to_map()})
}

/// Four nodes, the last of which is excluded.
fn four() -> Cluster {
    Cluster::new(&["", "", "", ""]).excluded("n4")
}

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
            "two Local ones that meet nowhere, and one of policy Cluster",
            vec![("local", vec![("n1", 'r')]), ("other", vec![("n3", 'r')])],
            vec!["local", "web", "other"],
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
        let cluster =
            endpoints.into_iter().fold(four(), |cluster, (service, endpoints)| cluster.endpoints(service, &endpoints));
        assert_eq!(cluster.candidates(&holders).as_deref(), expected, "{what}");
    }
}

#[test]
fn who_spreads_an_address_stays_a_candidate_while_its_own_endpoint_drains() {
    use Reach::{Mixed, Spread, Translated};
    for (what, endpoints, reach, expected) in [
        ("it spreads", vec![("n1", 's'), ("n2", 'r')], Some(Spread), "n1 n2"),
        ("it does not", vec![("n1", 's'), ("n2", 'r')], Some(Translated), "n2"),
        ("not everything", vec![("n1", 's'), ("n2", 'r')], Some(Mixed), "n2"),
        ("it has not said", vec![("n1", 's'), ("n2", 'r')], None, "n2"),
        ("its endpoint has ended", vec![("n1", '-'), ("n2", 'r')], Some(Spread), "n2"),
        ("its endpoint is gone", vec![("n2", 'r')], Some(Spread), "n2"),
        ("another one's drains", vec![("n1", 'r'), ("n2", 's')], Some(Spread), "n1"),
        ("all drain", vec![("n1", 's'), ("n2", 's')], Some(Spread), "n1 n2"),
    ] {
        let cluster = four().endpoints("local", &endpoints);
        assert_eq!(cluster.candidates_while(&["local"], reach).as_deref(), Some(expected), "{what}");
    }
    let drained = four().endpoints("local", &[("n1", 's'), ("n2", 'r')]).relieved("n1");
    assert_eq!(drained.candidates_while(&["local"], Some(Spread)).as_deref(), Some("n2"), "the node drains too");
}

#[test]
fn where_every_node_is_excluded_none_is() {
    let cluster = Cluster::new(&["", ""]).excluded("n1").excluded("n2");
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1 n2"));
}

#[test]
fn nodes_that_others_should_stand_in_for_are_candidates_only_where_there_are_no_others() {
    let cluster = || Cluster::new(&["role=edge", "role=edge", ""]).endpoints("local", &[("n1", 'r'), ("n3", 'r')]);
    let edge = json!({"nodeSelectors": [matching("role=edge")]});
    let one = |cluster: Cluster| cluster.relieved("n1");
    for (what, cluster, holder, expected) in [
        ("one of three", one(cluster()), "web", "n2 n3"),
        ("one of two with an endpoint", one(cluster()), "local", "n3"),
        ("both with an endpoint", one(cluster()).relieved("n3"), "local", "n1 n3"),
        ("the only one that isn't excluded", one(cluster()).excluded("n2").excluded("n3"), "web", "n1"),
        ("one of two that are advertised", one(cluster()).advertise(edge.clone()), "web", "n2"),
        ("both that are advertised", one(cluster()).relieved("n2").advertise(edge), "web", "n1 n2"),
        ("all", one(cluster()).relieved("n2").relieved("n3"), "web", "n1 n2 n3"),
        (
            "one that has gone",
            {
                let mut cluster = cluster();
                cluster.0.nodes.remove("n1");
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
fn a_pool_is_announced_by_all_until_an_advertisement_selects_it_and_then_only_as_those_say_that_do() {
    let cluster = || Cluster::new(&["zone=a", "zone=b", "zone=b"]).pool("lan", "tier=gold").pool("dmz", "");
    let zone = |zone: &str| json!([matching(&format!("zone={zone}"))]);
    for (what, specs, expected) in [
        ("no advertisement", vec![], "n1 n2 n3"),
        ("an empty one", vec![json!({})], "n1 n2 n3"),
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
        let cluster = specs.into_iter().fold(cluster(), Cluster::advertise);
        assert_eq!(cluster.candidates(&["web"]).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn an_advertisement_may_be_about_some_services_alone() {
    let cluster = || Cluster::new(&["zone=a", "zone=b", "zone=b"]);
    let for_app = |app: &str, zone: &str| json!({"serviceSelectors": [matching(&format!("app={app}"))], "nodeSelectors": [matching(&format!("zone={zone}"))]});
    let either = json!({"serviceSelectors": [matching("app=web"), matching("app=dns")]});
    for (what, specs, holders, expected) in [
        ("it matches", vec![for_app("web", "a")], vec!["web"], "n1"),
        ("it doesn't, and no other does", vec![for_app("dns", "a")], vec!["web"], ""),
        ("it doesn't, and another does", vec![for_app("dns", "a"), for_app("web", "b")], vec!["web"], "n2 n3"),
        ("one of two selectors", vec![either], vec!["dns"], "n1 n2 n3"),
        ("two on different nodes", vec![for_app("web", "a"), for_app("web", "b")], vec!["web"], "n1 n2 n3"),
        (
            "the Service matches, and not the pool",
            vec![
                json!({"ipAddressPools": ["x"], "serviceSelectors": [matching("app=web")], "nodeSelectors": [matching("zone=a")]}),
            ],
            vec!["web"],
            "n1 n2 n3",
        ),
        (
            "shared by two that are",
            vec![for_app("web", "b"), json!({"serviceSelectors": [matching("app=dns")]})],
            vec!["web", "dns"],
            "n2 n3",
        ),
        (
            "shared by two that meet nowhere",
            vec![for_app("web", "a"), for_app("dns", "b")],
            vec!["web", "dns"],
            "n1 n2 n3",
        ),
        ("shared by one that is and one that isn't", vec![for_app("web", "a")], vec!["dns", "web"], "n1"),
    ] {
        let cluster = specs.into_iter().fold(cluster(), Cluster::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn an_edit_of_a_services_labels_starts_and_stops_it() {
    let mut cluster = Cluster::new(&["", ""]).advertise(json!({"serviceSelectors": [matching("expose=yes")]}));
    assert_eq!(cluster.clone().candidates(&["web"]).as_deref(), Some(""));
    let labels = Labels::from([("expose", "yes")]);
    let web = service("web", TrafficPolicy::Cluster, labels);
    cluster.0.services.insert(web.key.clone(), Arc::new(web));
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1 n2"));
}

#[test]
fn links_are_those_of_all_advertisements_that_select_the_node() {
    let cluster = || Cluster::new(&["zone=a", "zone=b"]);
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
        let cluster = specs.into_iter().fold(cluster(), Cluster::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn weights_are_added_up_over_the_advertisements_that_let_the_node_announce() {
    let cluster =
        || Cluster::new(&["zone=a gpu=y", "zone=b", "zone=a"]).endpoints("local", &[("n2", 'r'), ("n3", 'r')]);
    let prefer = |weight: u32, labels: &str| json!({"weight": weight, "preference": matching(labels)});
    let a = json!({"preferredNodeSelectors": [prefer(60, "zone=a"), prefer(50, "gpu=y")]});
    let b = json!({"preferredNodeSelectors": [prefer(70, "zone=b")]});
    let hard = json!({"nodeSelectors": [matching("zone=b")], "preferredNodeSelectors": [prefer(100, "zone=a"), prefer(1, "")]});
    let for_dns = json!({"serviceSelectors": [matching("app=dns")], "preferredNodeSelectors": [prefer(100, "zone=b")]});
    for (what, specs, holders, expected) in [
        ("in one advertisement", vec![a.clone()], vec!["web"], "n1:110 n2 n3:60"),
        ("in two", vec![a.clone(), b.clone()], vec!["web"], "n1:110 n2:70 n3:60"),
        ("twice the same", vec![a.clone(), a.clone()], vec!["web"], "n1:220 n2 n3:120"),
        ("the filter wins, and lifts nobody else", vec![hard.clone()], vec!["web"], "n2:1"),
        ("nor those whom another one admits", vec![hard, json!({})], vec!["web"], "n1 n2:1 n3"),
        ("of a Service", vec![a.clone(), for_dns.clone()], vec!["web"], "n1:110 n2 n3:60"),
        ("of another Service", vec![a.clone(), for_dns.clone()], vec!["dns"], "n1:110 n2:100 n3:60"),
        ("of two Services, once each", vec![a.clone(), for_dns], vec!["dns", "web"], "n1:110 n2:100 n3:60"),
        ("not for those without an endpoint", vec![a], vec!["local"], "n2 n3:60"),
    ] {
        let cluster = specs.into_iter().fold(cluster(), Cluster::advertise);
        assert_eq!(cluster.candidates(&holders).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn an_address_of_a_pool_that_is_gone_follows_those_that_name_it() {
    let mut cluster = Cluster::new(&["zone=a", ""]).advertise(json!({
        "ipAddressPools": ["lan"], "nodeSelectors": [matching("zone=a")],
    }));
    cluster.0.pools.clear();
    assert_eq!(cluster.candidates(&["web"]).as_deref(), Some("n1"));
}

#[test]
fn a_service_that_is_no_load_balancer_any_more_holds_nothing() {
    let mut cluster = four();
    let service = Service { is_load_balancer: false, ..service("web", TrafficPolicy::Cluster, Labels::default()) };
    cluster.0.services.insert(service.key.clone(), Arc::new(service));
    assert_eq!(cluster.candidates(&["web"]), None);
}

#[test]
fn an_address_that_is_being_deleted_is_not_wanted() {
    let mut cluster = four();
    let record = Record { deleting: true, ..record("lan", &["web"]) };
    cluster.0.addresses.insert(record.address, Arc::new(record));
    assert_eq!(policies(&cluster.0), SharedMap::default());
}

#[test]
fn equal_sets_of_candidates_are_one() {
    let mut cluster = four().endpoints("local", &[("n2", 'r')]).endpoints("other", &[("n2", 'r')]);
    for (last, name) in [(1, "web"), (2, "dns"), (3, "local"), (4, "other")] {
        cluster.0.addresses.insert([192, 0, 2, last].into(), Arc::new(record("lan", &[name])));
    }
    let policies = policies(&cluster.0);
    let sets: Vec<_> = policies.values().map(|wanted| Arc::clone(&wanted.candidates)).collect();
    assert!(Arc::ptr_eq(&sets[0], &sets[1]) && Arc::ptr_eq(&sets[2], &sets[3]));
}

/// Selectors of labels `l=0`, `l=1`; an empty list selects all.
fn any_selectors() -> impl Strategy<Value = Vec<u8>> {
    vec(0u8..2, 0..2)
}

fn to_json(selectors: &[u8]) -> Value {
    selectors.iter().map(|value| matching(&format!("l={value}"))).collect()
}

/// An advertisement: for named pools, labels of nodes, labels of Services, interfaces, and weights of labels.
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

/// A node: its label, whether it is excluded, whether it is relieved.
type AnyNode = (u8, bool, bool);

/// A Service: its label, and the nodes that have an endpoint if its policy is Local.
type AnyService = (u8, Option<BTreeSet<usize>>);

fn cluster(nodes: &[AnyNode], services: &[AnyService], ads: &[Ad]) -> Cluster {
    let labels: Vec<String> = nodes.iter().map(|(label, _, _)| format!("l={label}")).collect();
    let mut cluster = Cluster::new(&labels.iter().map(String::as_str).collect::<Vec<_>>());
    for (n, (_, excluded, relieved)) in nodes.iter().enumerate() {
        cluster = cluster.node(&format!("n{}", n + 1), |node| {
            (node.excluded, node.drain_reason) = (*excluded, relieved.then_some(DrainReason::OutOfService));
        });
    }
    for (n, (label, local)) in services.iter().enumerate() {
        let policy = if local.is_some() { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let service = service(&format!("s{n}"), policy, read_labels(&format!("l={label}")));
        cluster.0.services.insert(service.key.clone(), Arc::new(service));
        for node in local.iter().flatten() {
            cluster = cluster.endpoints(&format!("s{n}"), &[(&format!("n{}", node + 1), 'r')]);
        }
    }
    ads.iter().map(spec).fold(cluster, Cluster::advertise)
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
    /// What MetalLB's rules say of one Service, word for word.
    #[test]
    fn who_may_announce_for_one_service_is_what_the_rules_say_of_each_node_alone((nodes, services, ads) in any_cluster()) {
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
        let willing: Vec<usize> = able.iter().copied().filter(|n| !nodes[*n].2).collect();
        let expected = if willing.is_empty() { able } else { willing };
        let expected: Candidates = expected.into_iter().map(|n| {
            let mut candidate = Candidate { links: Links { home: for_pool.is_empty(), named: BTreeSet::new() }, preference: 0 };
            for (_, _, _, interfaces, preferences) in for_service.iter().filter(|ad| matches(&ad.1, nodes[n].0)) {
                candidate.links.home |= interfaces.is_empty();
                candidate.links.named.extend(interfaces.iter().map(|n| format!("eth{n}")));
                candidate.preference += preferences.iter().filter(|(_, l)| *l == nodes[n].0).map(|(weight, _)| weight).sum::<u32>();
            }
            (format!("n{}", n + 1), candidate)
        }).collect();
        let got = cluster(&nodes, &services, &ads).candidates(&["s0"]);
        prop_assert_eq!(got, Some(written(&expected)));
    }

    #[test]
    fn the_order_of_holders_of_slices_and_of_advertisements_never_matters((nodes, services, ads) in any_cluster()) {
        let names: Vec<String> = (0..services.len()).map(|n| format!("s{n}")).collect();
        let mut holders: Vec<&str> = names.iter().map(String::as_str).collect();
        let forth = cluster(&nodes, &services, &ads).candidates(&holders);
        holders.reverse();
        let mut back = cluster(&nodes, &services, &ads.iter().rev().cloned().collect::<Vec<_>>());
        back.0.slices.values_mut().for_each(|slices| Arc::make_mut(slices).reverse());
        prop_assert_eq!(forth, back.candidates(&holders));
    }

    /// Sharing an address never adds a node that none of its Services may be announced from, and never leaves out all of
    /// them.
    #[test]
    fn a_shared_address_is_announced_from_where_one_of_its_services_may_be((nodes, services, ads) in any_cluster()) {
        let able = nodes.iter().map(|(label, excluded, _)| (*label, *excluded, false)).collect::<Vec<_>>();
        let of = |holders: &[&str]| {
            let mut cluster = cluster(&able, &services, &ads);
            let record = record("lan", holders);
            cluster.0.addresses.insert(record.address, Arc::new(record));
            let wanted = policies(&cluster.0).values().next().expect("it is wanted").clone();
            wanted.candidates.iter().map(|(node, _)| node.to_owned()).collect::<BTreeSet<String>>()
        };
        let names: Vec<String> = (0..services.len()).map(|n| format!("s{n}")).collect();
        let alone: BTreeSet<String> = names.iter().flat_map(|name| of(&[name])).collect();
        let together = of(&names.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert!(together.is_subset(&alone), "{:?} {:?}", together, alone);
        prop_assert_eq!(together.is_empty(), alone.is_empty());
    }
}
