//! Tests of the single parts of the snapshots: objects, options, reply links, and links with their peers.

use super::super::*;
use super::oracle::Observed;
use crds::node_network::NodeLink;
use crds::{EndpointSlice, Holder, PeerLinks, PoolSettings, Record};
use serde_json::json;

fn objects() -> Observed {
    let service = |name: &str, kind: &str| {
        let object = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
            "spec": {"type": kind, "ports": [{"port": 80}]},
        }));
        let service = Service::try_from(&object.expect("a Service")).expect("a view");
        (service.key.clone(), Arc::new(service))
    };
    let slice = |name: &str, service: &str| {
        let slice = EndpointSlice {
            key: Key::new("default", name),
            service: Key::new("default", service),
            ports: Box::default(),
            endpoints: vec![],
            refused: None,
        };
        (slice.key.clone(), Arc::new(slice))
    };
    let record = |address: &str, deleting: bool| {
        let address: IpAddr = address.parse().expect("address");
        let holder = Holder { namespace: "default".into(), name: "web".into(), uid: "uid-web".into(), terms: None };
        let record = Record {
            address,
            uid: "".into(),
            resource_version: 0,
            deleting,
            pool: "lan".into(),
            holders: vec![holder],
            sharing_key: None,
            reservation: None,
            quarantine: None,
            announcers: vec![],
            first_announced: None,
            conflicts: vec![],
        };
        (address, Arc::new(record))
    };
    let pod_cidrs = vec!["10.244.1.0/24".into(), "?".into()];
    let addresses = vec!["192.0.2.11".parse().expect("an address")];
    let node = Node { name: "n1".into(), pod_cidrs, addresses, ..Node::default() };
    Observed {
        services: [service("web", "LoadBalancer"), service("inner", "ClusterIP")].into(),
        slices: [slice("web-1", "web"), slice("web-2", "web"), slice("inner-1", "inner")].into(),
        nodes: [("n1".to_owned(), Arc::new(node))].into(),
        pools: [("lan".to_owned(), Arc::new(PoolSettings { labels: Arc::default(), spread: true }))].into(),
        advertisements: BTreeMap::new(),
        addresses: [record("192.0.2.1", false), record("192.0.2.2", true)].into(),
        peer_links: BTreeMap::new(),
        neighbours: None,
    }
}

#[test]
fn only_load_balancers_and_existing_records_are_composed() {
    let mut composition = objects().composition("n1");
    composition.dataplane.dead = BTreeSet::from(["n2".into()]);
    let (dataplane, speaker) = (&composition.dataplane, &composition.speaker);
    let web = Key::new("default", "web");
    assert_eq!(dataplane.services.keys().collect::<Vec<_>>(), [&web]);
    assert_eq!(dataplane.slices.keys().collect::<Vec<_>>(), [&web]);
    assert_eq!(dataplane.slices[&web].len(), 2);
    let address: IpAddr = "192.0.2.1".parse().expect("address");
    assert_eq!(dataplane.addresses.keys().collect::<Vec<_>>(), [&address]);
    assert_eq!(speaker.addresses.keys().collect::<Vec<_>>(), [&address]);
    assert_eq!(dataplane.dead, BTreeSet::from(["n2".to_owned()]));
    assert_eq!(dataplane.node_ips, ["192.0.2.11".parse::<IpAddr>().expect("an address")]);
}

#[test]
fn options_have_source_ranges_and_affinity() {
    let mut objects = objects();
    let web = Key::new("default", "web");
    let options = |objects: &Observed| objects.composition("n1").dataplane.services[&web].options.clone();
    let open = options(&objects);
    assert_eq!(*open, ServiceOptions::default());
    let service = Arc::make_mut(objects.services.get_mut(&web).expect("a Service"));
    (service.source_ranges, service.affinity) = (["192.0.2.0/24".into()].into(), Some(60));
    assert_eq!(
        *options(&objects),
        ServiceOptions { sources: Sources::parse(["192.0.2.0/24"], None), affinity: Some(60), no_spreading: false }
    );
    let service = Arc::make_mut(objects.services.get_mut(&web).expect("a Service"));
    (service.source_ranges, service.source_ranges_annotation) = (Box::default(), Some("198.51.100.0/24".into()));
    assert_eq!(options(&objects).sources, Sources::parse(["198.51.100.0/24"], None));
}

#[test]
fn a_service_or_its_pool_disables_spreading() {
    let no_spreading = |objects: Observed| {
        objects.composition("n1").dataplane.services[&Key::new("default", "web")].options.no_spreading
    };
    let settings = |spread| PoolSettings { labels: Arc::default(), spread };
    assert!(!no_spreading(objects()));
    let mut by_its_pool = objects();
    by_its_pool.pools.insert("lan".into(), Arc::new(settings(false)));
    assert!(no_spreading(by_its_pool));
    let mut by_another_pool = objects();
    by_another_pool.pools.insert("other".into(), Arc::new(settings(false)));
    assert!(!no_spreading(by_another_pool));
    let mut by_itself = objects();
    let web = by_itself.services.get_mut(&Key::new("default", "web")).expect("a Service");
    Arc::make_mut(web).spread_disabled = true;
    assert!(no_spreading(by_itself));
}

#[test]
fn reply_links_exclude_pod_links_and_unused_families() {
    let mut composition = objects().composition("n1");
    let link = |name: &str, addresses: &[&str]| NodeLink {
        name: name.into(),
        addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        mac: None,
    };
    let links = vec![
        link("cni0", &["10.244.1.1/24", "2001:db8:244:1::1/64"]),
        link("eth0", &["192.0.2.11/24"]),
        link("eth1", &["10.244.2.1/24", "?"]),
    ];
    let network = NodeNetworkSpec { links, gateways: vec![] };
    let name = |name: &str| LinkName::new(name).expect("a name");
    let expected = ReplyPathInput { links: [name("eth0"), name("eth1")].into(), families: [Family::V4].into() };
    assert_eq!(composition.reply_links(), None, "the network is unknown");
    composition.set_network(Some(&network));
    assert_eq!(composition.reply_links(), Some(expected.clone()));
    assert_eq!(*composition.dataplane.lan_links, expected.links);
    // A link without a carrier is not in the network, but packets may arrive by it as soon as it has one again.
    let gone = NodeNetworkSpec { links: network.links[..2].to_vec(), gateways: vec![] };
    composition.set_network(Some(&gone));
    assert_eq!(*composition.dataplane.lan_links, expected.links);
}

#[test]
fn links_without_pod_ranges_are_of_clients() {
    let mut objects = objects();
    let node = Arc::make_mut(objects.nodes.get_mut("n1").expect("a Node"));
    node.pod_cidrs = Vec::new();
    let mut composition = objects.composition("n1");
    let link = |name: &str, address: &str| NodeLink { name: name.into(), addresses: vec![address.into()], mac: None };
    let links = vec![link("cni0", "10.244.1.1/24"), link("eth0", "192.0.2.11/24")];
    composition.set_network(Some(&NodeNetworkSpec { links, gateways: vec![] }));
    let names =
        |composition: &Composition| composition.dataplane.lan_links.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&composition), ["cni0", "eth0"]);
    // The range of the pods arrives later.
    let node = Arc::new(Node { pod_cidrs: vec!["10.244.1.0/24".into()], ..Node::clone(&objects.nodes["n1"]) });
    composition.apply([Change::Node("n1".into(), Some(node))]);
    assert_eq!(names(&composition), ["eth0"]);
}

#[test]
fn own_addresses_are_those_of_the_node_and_of_its_links() {
    let mut composition = objects().composition("n1");
    let own = |composition: &Composition| {
        composition.dataplane.own_addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(own(&composition), ["192.0.2.11"]);
    let addresses = ["192.0.2.11/24", "192.0.2.200/32", "?", "2001:db8::11/64"];
    let eth0 = NodeLink { name: "eth0".into(), addresses: addresses.map(str::to_owned).into(), mac: None };
    composition.set_network(Some(&NodeNetworkSpec { links: vec![eth0], gateways: vec!["192.0.2.1".into()] }));
    assert_eq!(own(&composition), ["192.0.2.11", "192.0.2.200", "2001:db8::11"]);
    composition.set_network(None);
    assert_eq!(own(&composition), ["192.0.2.11"]);
}

#[test]
fn links_have_only_heard_nodes_of_the_same_network() {
    let link = |name: &str, mac: &str, address: &str| {
        let address: IpNet = address.parse().expect("an address");
        let (networks, addresses) = (vec![address.trunc()], vec![address]);
        PeerLink { name: name.into(), mac: mac.into(), networks, addresses }
    };
    let peer = |node: &str, links: &[PeerLink]| (node.to_owned(), Arc::new(PeerLinks { links: links.to_vec() }));
    let lan = |last: u8| link("eth0", &format!("02:00:00:00:00:{last:02x}"), &format!("192.0.2.{last}/24"));
    let storage = |last: u8| link("eth1", &format!("02:00:00:00:01:{last:02x}"), &format!("198.51.100.{last}/24"));
    let mut objects = objects();
    for name in ["n2", "n3", "n4", "twin"] {
        objects.nodes.insert(name.into(), Arc::new(Node { name: name.into(), ..Node::default() }));
    }
    objects.peer_links = [
        peer("n1", &[lan(1), storage(1)]),
        peer("n2", &[link("ens3", "02:00:00:00:00:02", "192.0.2.2/24")]),
        peer("n3", &[lan(3), storage(3)]),
        peer("n4", &[link("eth0", "02:00:00:00:00:04", "203.0.113.4/24")]),
        peer("twin", &[lan(1)]),
        peer("gone", &[lan(9)]),
    ]
    .into();
    let mac = |fifth: u8, last: u8| MacAddr(2, 0, 0, 0, fifth, last);
    let name = |name: &str| LinkName::new(name).expect("a name");
    let link_with = |own: MacAddr, network: &str, peers: &[(&str, MacAddr)]| Link {
        mac: own,
        peers: peers.iter().map(|(node, mac)| ((*node).to_owned(), *mac)).collect(),
        addresses: peers
            .iter()
            .map(|(node, mac)| ((*node).to_owned(), vec![format!("{network}.{}", mac.5).parse().expect("an address")]))
            .collect(),
    };
    let (lan_net, storage_net) = ("192.0.2", "198.51.100");
    let expected = BTreeMap::from([
        (name("eth0"), link_with(mac(0, 1), lan_net, &[("n2", mac(0, 2)), ("n3", mac(0, 3))])),
        (name("eth1"), link_with(mac(1, 1), storage_net, &[("n3", mac(1, 3))])),
    ]);
    assert_eq!(objects.composition("n1").dataplane.links, expected);
    assert_eq!(objects.composition("n4").dataplane.links, BTreeMap::new(), "no other node on its link");
    // With a speaker, a node is a peer only if the speaker heard it from the MAC address in its NodeNetwork.
    let mut neighbours = Neighbours::default();
    neighbours.record("eth0", "n2", mac(0, 2));
    neighbours.record("eth0", "n3", mac(0, 9));
    neighbours.record("eth0", "n4", mac(0, 4));
    objects.neighbours = Some(neighbours.clone());
    let heard = BTreeMap::from([(name("eth0"), link_with(mac(0, 1), lan_net, &[("n2", mac(0, 2))]))]);
    assert_eq!(objects.composition("n1").dataplane.links, heard);
    neighbours.record("eth0", "n3", mac(0, 3));
    neighbours.record("eth1", "n3", mac(1, 3));
    objects.neighbours = Some(neighbours);
    assert_eq!(objects.composition("n1").dataplane.links, expected);
    objects.peer_links.remove("n1");
    assert_eq!(objects.composition("n1").dataplane.links, BTreeMap::new(), "its own links are unknown");
}
