//! Parts of the dataplane's snapshot that follow from a few objects. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crds::node_network::{NodeNetworkSpec, PeerLink};
use crds::service::Family;
use crds::{MacAddr, Node, Service, parse_station};
use dataplane::reply_path::ReplyPathInput;
use dataplane::rules::Sources;
use dataplane::snapshot::{Link, LinkName, ServiceOptions};
use ipnet::IpNet;
use model::Cluster;
use speaker::Neighbours;

/// What must be known to lead answers back by the link that the request came in by. Links that pods have their addresses
/// on are none that a client comes by: what comes in there to an lb_ip is from this node's own pods.
pub(super) fn wanted(network: &NodeNetworkSpec, snapshot: &dataplane::Snapshot) -> ReplyPathInput {
    let is_of_pods = |address: &String| {
        let own: Option<IpAddr> = address.split('/').next().and_then(|own| own.parse().ok());
        own.is_some_and(|own| snapshot.pod_ranges.iter().any(|range| range.contains(&own)))
    };
    let links = network.links.iter().filter(|link| !link.addresses.iter().any(is_of_pods));
    let ends = [snapshot.addresses.keys().next(), snapshot.addresses.keys().next_back()];
    ReplyPathInput {
        links: links.filter_map(|link| LinkName::new(&link.name)).collect(),
        // All of IPv4 come before all of IPv6.
        families: ends.into_iter().flatten().copied().map(Family::from).collect(),
    }
}

/// The links on which frames can be handed to other nodes, and those. Two nodes are on one link if they have addresses of
/// the same network there, and the speaker has met the other one on it, under the MAC address that this one tells. The same
/// network may be in several places.
pub(super) fn links(node: &str, cluster: &Cluster, neighbours: Option<&Neighbours>) -> BTreeMap<LinkName, Link> {
    let (nodes, peer_links) = (cluster.nodes(), cluster.peer_links());
    let mut links = BTreeMap::new();
    for own in peer_links.get(node).iter().flat_map(|wiring| &wiring.links) {
        let (Some(name), Some(mac)) = (LinkName::new(&own.name), parse_station(&own.mac)) else { continue };
        let here = |link: &&PeerLink| link.networks.iter().any(|network| own.networks.contains(network));
        let others = peer_links.iter().filter(|(other, _)| *other != node && nodes.contains_key(*other));
        let peers = others.filter_map(|(other, wiring)| {
            let peer = parse_station(&wiring.links.iter().find(here)?.mac)?;
            let is_met = neighbours.is_none_or(|neighbours| neighbours.mac(&own.name, other) == Some(peer));
            // Two that have the same one can't be told apart.
            (is_met && peer != mac).then(|| (other.clone(), peer))
        });
        let peers: BTreeMap<String, MacAddr> = peers.collect();
        if !peers.is_empty() {
            links.insert(name, Link { mac, peers });
        }
    }
    links
}

/// What decides who may use a Service, and whether clients stay with their endpoints.
pub(super) fn service_options(service: &Service, unspread: bool) -> ServiceOptions {
    let field = service.source_ranges.iter().map(|range| &**range);
    let sources = Sources::parse(field, service.source_ranges_annotation.as_deref());
    ServiceOptions { sources, affinity: service.affinity, unspread }
}

/// Where the pods of this node have their addresses from. A range that can't be read is as good as none: the pods count as
/// clients from outside.
pub(super) fn pod_ranges(own: Option<&Arc<Node>>) -> Vec<IpNet> {
    own.into_iter().flat_map(|own| &own.pod_cidrs).filter_map(|cidr| cidr.parse().ok()).collect()
}

/// The addresses of this node.
pub(super) fn own_addresses(own: Option<&Arc<Node>>) -> Vec<IpAddr> {
    own.map(|own| own.addresses.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::oracle::Observed;
    use super::*;
    use crds::node_network::NodeLink;
    use crds::{EndpointSlice, Holder, Key, PeerLinks, PoolSettings, Record};
    use serde_json::json;
    use std::collections::BTreeSet;

    fn observed() -> Observed {
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
    fn only_load_balancers_with_their_slices_and_addresses_in_use_are_handed_on() {
        let mut composition = observed().composition("n1");
        composition.set_dead(BTreeSet::from(["n2".into()]));
        let (dataplane, speaker) = (composition.dataplane(), composition.speaker());
        let web = Key::new("default", "web");
        assert_eq!(dataplane.services.keys().collect::<Vec<_>>(), [&web]);
        assert_eq!(dataplane.slices.keys().collect::<Vec<_>>(), [&web]);
        assert_eq!(dataplane.slices[&web].len(), 2);
        let address: IpAddr = "192.0.2.1".parse().expect("address");
        assert_eq!(dataplane.addresses.keys().collect::<Vec<_>>(), [&address]);
        assert_eq!(speaker.addresses.keys().collect::<Vec<_>>(), [&address]);
        assert_eq!(dataplane.pod_ranges, ["10.244.1.0/24".parse().expect("range")]);
        assert_eq!(dataplane.dead, BTreeSet::from(["n2".to_owned()]));
        assert_eq!(dataplane.node_ips, ["192.0.2.11".parse::<IpAddr>().expect("an address")]);
    }

    #[test]
    fn a_service_says_who_may_use_it_and_whether_clients_stay_with_their_endpoint() {
        let mut observed = observed();
        let web = Key::new("default", "web");
        let options = |observed: &Observed| observed.composition("n1").dataplane().services[&web].options.clone();
        let open = options(&observed);
        assert_eq!(*open, ServiceOptions::default());
        let service = Arc::make_mut(observed.services.get_mut(&web).expect("a Service"));
        (service.source_ranges, service.affinity) = (["192.0.2.0/24".into()].into(), Some(60));
        assert_eq!(
            *options(&observed),
            ServiceOptions { sources: Sources::parse(["192.0.2.0/24"], None), affinity: Some(60), unspread: false }
        );
        let service = Arc::make_mut(observed.services.get_mut(&web).expect("a Service"));
        (service.source_ranges, service.source_ranges_annotation) = (Box::default(), Some("198.51.100.0/24".into()));
        assert_eq!(options(&observed).sources, Sources::parse(["198.51.100.0/24"], None));
    }

    #[test]
    fn a_service_is_not_spread_if_it_or_the_pool_of_one_of_its_addresses_says_so() {
        let unspread = |observed: Observed| {
            observed.composition("n1").dataplane().services[&Key::new("default", "web")].options.unspread
        };
        let of_the_pool = |spread| PoolSettings { labels: Arc::default(), spread };
        assert!(!unspread(observed()));
        let mut of_a_pool = observed();
        of_a_pool.pools.insert("lan".into(), Arc::new(of_the_pool(false)));
        assert!(unspread(of_a_pool));
        let mut of_another_pool = observed();
        of_another_pool.pools.insert("other".into(), Arc::new(of_the_pool(false)));
        assert!(!unspread(of_another_pool));
        let mut by_itself = observed();
        let web = by_itself.services.get_mut(&Key::new("default", "web")).expect("a Service");
        Arc::make_mut(web).spread_disabled = true;
        assert!(unspread(by_itself));
    }

    #[test]
    fn answers_are_led_back_by_all_links_but_those_of_pods_in_the_families_in_use() {
        let composition = observed().composition("n1");
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
        assert_eq!(wanted(&network, composition.dataplane()), expected);
    }

    #[test]
    fn frames_are_handed_to_nodes_that_exist_have_an_address_of_the_same_network_and_were_met_there() {
        let link = |name: &str, mac: &str, network: &str| PeerLink {
            name: name.into(),
            mac: mac.into(),
            networks: vec![network.parse().expect("a network")],
        };
        let wiring = |node: &str, links: &[PeerLink]| (node.to_owned(), Arc::new(PeerLinks { links: links.to_vec() }));
        let lan = |last: u8| link("eth0", &format!("02:00:00:00:00:{last:02x}"), "192.0.2.0/24");
        let storage = |last: u8| link("eth1", &format!("02:00:00:00:01:{last:02x}"), "198.51.100.0/24");
        let mut observed = observed();
        for name in ["n2", "n3", "n4", "twin"] {
            observed.nodes.insert(name.into(), Arc::new(Node { name: name.into(), ..Node::default() }));
        }
        observed.peer_links = [
            wiring("n1", &[lan(1), storage(1)]),
            wiring("n2", &[link("ens3", "02:00:00:00:00:02", "192.0.2.0/24")]),
            wiring("n3", &[lan(3), storage(3)]),
            wiring("n4", &[link("eth0", "02:00:00:00:00:04", "203.0.113.0/24")]),
            wiring("twin", &[lan(1)]),
            wiring("gone", &[lan(9)]),
        ]
        .into();
        let mac = |fifth: u8, last: u8| MacAddr(2, 0, 0, 0, fifth, last);
        let name = |name: &str| LinkName::new(name).expect("a name");
        let peers = |peers: &[(&str, MacAddr)]| peers.iter().map(|(node, mac)| ((*node).to_owned(), *mac)).collect();
        let expected = BTreeMap::from([
            (name("eth0"), Link { mac: mac(0, 1), peers: peers(&[("n2", mac(0, 2)), ("n3", mac(0, 3))]) }),
            (name("eth1"), Link { mac: mac(1, 1), peers: peers(&[("n3", mac(1, 3))]) }),
        ]);
        assert_eq!(observed.composition("n1").dataplane().links, expected);
        assert_eq!(observed.composition("n4").dataplane().links, BTreeMap::new(), "it is alone on its link");
        // Of those, only who was met there, and under that address.
        let mut met = Neighbours::default();
        met.record("eth0", "n2", mac(0, 2));
        met.record("eth0", "n3", mac(0, 9));
        met.record("eth0", "n4", mac(0, 4));
        observed.neighbours = Some(met.clone());
        let heard = BTreeMap::from([(name("eth0"), Link { mac: mac(0, 1), peers: peers(&[("n2", mac(0, 2))]) })]);
        assert_eq!(observed.composition("n1").dataplane().links, heard);
        met.record("eth0", "n3", mac(0, 3));
        met.record("eth1", "n3", mac(1, 3));
        observed.neighbours = Some(met);
        assert_eq!(observed.composition("n1").dataplane().links, expected);
        observed.peer_links.remove("n1");
        assert_eq!(observed.composition("n1").dataplane().links, BTreeMap::new(), "nothing is known of its own");
    }
}
