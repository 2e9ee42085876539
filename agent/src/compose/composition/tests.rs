//! Tests that the incremental composition equals one from scratch.

mod oracle;
mod parts;

use super::*;
use crds::l2_advertisement::L2AdvertisementSpec;
use crds::{
    Advertisement, DrainReason, Endpoint, EndpointSlice, Holder, L2Advertisement, Labels, PeerLinks, PoolSettings,
    Protocol, Record, TrafficPolicy,
};
use oracle::{Observed, snapshots};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;

/// The node of the composition.
const NODE: &str = "n0";

/// A change of one input. The first number selects the object, and an `Option` has its new state: `None` removes it.
#[derive(Clone, Debug)]
enum Step {
    /// Whether it is a load balancer; whether it has the traffic policy Local; whether it disables spreading; its UID.
    Service(u8, Option<(bool, bool, bool, u8)>),
    /// The Service of the slice; the node of each endpoint, and whether the endpoint is ready.
    Slice(u8, Option<(u8, Vec<(u8, bool)>)>),
    /// The pool and the holders of the record, and whether the record is being deleted.
    Address(u8, Option<(u8, Vec<u8>, bool)>),
    /// Whether the pool enables spreading.
    Pool(u8, Option<bool>),
    /// Whether the node is excluded; whether it is drained; its UID.
    Node(u8, Option<(bool, bool, u8)>),
    /// One of four specs: see [`advertisement`].
    Advertisement(u8, Option<u8>),
    /// The LAN of the node.
    PeerLinks(u8, Option<u8>),
    /// The speaker hears the node.
    Hear(u8),
    /// The node dies, or lives again.
    Die(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let is = any::<bool>;
    prop_oneof![
        4 => (0..4u8, option::weighted(0.8, (is(), is(), is(), 0..2u8))).prop_map(|(n, state)| Step::Service(n, state)),
        4 => (0..4u8, option::weighted(0.7, (0..4u8, vec((0..4u8, is()), 0..3))))
            .prop_map(|(n, state)| Step::Slice(n, state)),
        4 => (0..4u8, option::weighted(0.8, (0..3u8, vec(0..4u8, 0..3), is())))
            .prop_map(|(n, state)| Step::Address(n, state)),
        1 => (0..3u8, option::of(is())).prop_map(|(n, state)| Step::Pool(n, state)),
        1 => (0..3u8, option::weighted(0.8, (is(), is(), 0..2u8))).prop_map(|(n, state)| Step::Node(n, state)),
        1 => (0..2u8, option::of(0..4u8)).prop_map(|(n, state)| Step::Advertisement(n, state)),
        1 => (0..3u8, option::weighted(0.8, 0..2u8)).prop_map(|(n, state)| Step::PeerLinks(n, state)),
        1 => (0..3u8).prop_map(Step::Hear),
        1 => (0..3u8).prop_map(Step::Die),
    ]
}

fn put_in<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: Option<V>) {
    match value {
        // As in a table, an equal value is no change.
        Some(value) if map.get(&key).is_some_and(|known| **known == value) => {}
        Some(value) => drop(map.insert(key, Arc::new(value))),
        None => drop(map.remove(&key)),
    }
}

fn service(n: u8, (is_load_balancer, is_local, disables_spreading, uid): (bool, bool, bool, u8)) -> Service {
    let object = json!({
        "metadata": {
            "namespace": "default",
            "name": format!("s{n}"),
            "uid": format!("u{uid}"),
            "labels": {"app": format!("a{uid}")},
        },
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    });
    let service = Service::try_from(&serde_json::from_value(object).expect("a Service")).expect("a view");
    let traffic_policy = if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    Service {
        is_load_balancer,
        traffic_policy,
        spread_disabled: disables_spreading,
        affinity: (uid == 1).then_some(60),
        ..service
    }
}

fn slice(n: u8, (service, endpoints): (u8, Vec<(u8, bool)>)) -> EndpointSlice {
    let endpoint = |(node, ready): (u8, bool)| Endpoint {
        address: [10, 0, n, node].into(),
        node: Some(format!("n{node}").into()),
        ready,
        serving: ready,
        terminating: false,
    };
    EndpointSlice {
        key: Key::new("default", format!("slice-{n}")),
        service: Key::new("default", format!("s{service}")),
        ports: [(("".into(), Protocol::Tcp), 8080)].into(),
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        refused: None,
    }
}

fn record(n: u8, (pool, holders, deleting): (u8, Vec<u8>, bool)) -> Record {
    let object = json!({
        "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
        "metadata": {"name": format!("192.0.2.{n}"), "uid": "l", "resourceVersion": "1"},
        "spec": {"address": format!("192.0.2.{n}"), "pool": format!("p{pool}"), "services": []},
    });
    let record = Record::try_from(&serde_json::from_value(object).expect("an address")).expect("a view");
    let holder = |service: u8| Holder {
        namespace: "default".into(),
        name: format!("s{service}").into(),
        uid: "u0".into(),
        terms: None,
    };
    Record { holders: holders.into_iter().map(holder).collect(), deleting, ..record }
}

fn node(n: u8, (excluded, drained, uid): (bool, bool, u8)) -> Node {
    Node {
        name: format!("n{n}"),
        labels: Labels::from([("rack", if uid == 0 { "r0" } else { "r1" })]),
        addresses: vec![[192, 0, 2, 10 + n + uid].into()],
        external_addresses: vec![],
        pod_cidrs: vec![format!("10.{n}.{uid}.0/24")],
        excluded,
        drain_reason: drained.then_some(DrainReason::Drained),
    }
}

fn advertisement(n: u8, state: u8) -> Advertisement {
    let spec = match state {
        0 => json!({}),
        1 => json!({"ipAddressPools": ["p0"], "nodeSelectors": [{"matchLabels": {"rack": "r0"}}]}),
        2 => json!({"serviceSelectors": [{"matchLabels": {"app": "a0"}}]}),
        _ => json!({"interfaces": ["eth1"]}),
    };
    let spec: L2AdvertisementSpec = serde_json::from_value(spec).expect("a spec");
    Advertisement::from(&L2Advertisement::new(&format!("ad{n}"), spec))
}

fn peer_links(n: u8, lan: u8) -> PeerLinks {
    let address: ipnet::IpNet = format!("192.0.{lan}.{n}/24").parse().expect("an address");
    let (networks, addresses) = (vec![address.trunc()], vec![address]);
    PeerLinks { links: vec![PeerLink { name: "eth0".into(), mac: mac(n).to_string(), networks, addresses }] }
}

fn mac(n: u8) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, n)
}

/// All observed objects, and the state of the speaker.
#[derive(Clone, Default)]
struct World {
    observed: Observed,
    dead: BTreeSet<String>,
}

impl World {
    fn apply(&mut self, step: Step) {
        let World { observed, dead } = self;
        let key = |n: u8| Key::new("default", format!("s{n}"));
        match step {
            Step::Service(n, state) => put_in(&mut observed.services, key(n), state.map(|state| service(n, state))),
            Step::Slice(n, state) => {
                put_in(
                    &mut observed.slices,
                    Key::new("default", format!("slice-{n}")),
                    state.map(|state| slice(n, state)),
                );
            }
            Step::Address(n, state) => {
                put_in(&mut observed.addresses, [192, 0, 2, n].into(), state.map(|state| record(n, state)));
            }
            Step::Pool(n, state) => {
                let settings = |spread| PoolSettings { labels: Arc::default(), spread };
                put_in(&mut observed.pools, format!("p{n}"), state.map(settings));
            }
            Step::Node(n, state) => put_in(&mut observed.nodes, format!("n{n}"), state.map(|state| node(n, state))),
            Step::Advertisement(n, state) => {
                put_in(&mut observed.advertisements, format!("ad{n}"), state.map(|state| advertisement(n, state)));
            }
            Step::PeerLinks(n, lan) => {
                put_in(&mut observed.peer_links, format!("n{n}"), lan.map(|lan| peer_links(n, lan)))
            }
            Step::Hear(n) => {
                observed.neighbours.get_or_insert_default().record("eth0", &format!("n{n}"), mac(n));
            }
            Step::Die(n) => {
                let node = format!("n{n}");
                if !dead.remove(&node) {
                    dead.insert(node);
                }
            }
        }
    }
}

/// Applies the changes between two worlds.
fn follow(composition: &mut Composition, before: &World, after: &World) {
    composition.dataplane.dead = after.dead.clone();
    composition.set_neighbours(after.observed.neighbours.as_ref().unwrap_or(&Neighbours::default()));
    composition.apply(after.observed.changes_since(&before.observed));
}

/// A world with an object of each kind except L2Advertisement.
fn populated_world() -> World {
    let mut world = World::default();
    for step in [
        Step::Service(0, Some((true, false, false, 0))),
        Step::Slice(0, Some((0, vec![(0, true), (1, true)]))),
        Step::Address(0, Some((0, vec![0], false))),
        Step::Pool(0, Some(true)),
        Step::Node(0, Some((false, false, 0))),
        Step::Node(1, Some((false, false, 0))),
        Step::PeerLinks(0, Some(0)),
        Step::PeerLinks(1, Some(0)),
        Step::Hear(1),
    ] {
        world.apply(step);
    }
    world
}

proptest! {
    #[test]
    fn incremental_composition_equals_one_from_scratch(
        starts_populated: bool,
        batches in vec(vec(step(), 1..6), 1..12),
    ) {
        let mut before = World::default();
        before.observed.neighbours = Some(Neighbours::default());
        let mut composition = Composition::new(NODE, Backend::Endpoints, false);
        if starts_populated {
            let first = populated_world();
            follow(&mut composition, &before, &first);
            before = first;
        }
        for batch in batches {
            let mut after = before.clone();
            batch.into_iter().for_each(|step| after.apply(step));
            follow(&mut composition, &before, &after);
            let (dataplane, speaker) = snapshots(NODE, &after.observed, after.dead.clone());
            prop_assert_eq!(&composition.dataplane, &dataplane);
            prop_assert_eq!(&composition.speaker, &speaker);
            before = after;
        }
    }
}

#[test]
fn unchanged_parts_are_shared_with_the_previous_snapshot() {
    let before = populated_world();
    let mut composition = Composition::new(NODE, Backend::Endpoints, false);
    follow(&mut composition, &World::default(), &before);
    let (dataplane, speaker) = (composition.dataplane.clone(), composition.speaker.clone());
    let mut after = before.clone();
    after.apply(Step::Slice(0, Some((0, vec![(0, false)]))));
    follow(&mut composition, &before, &after);
    assert_eq!(dataplane.services.differing(&composition.dataplane.services).count(), 0);
    assert_eq!(dataplane.addresses.differing(&composition.dataplane.addresses).count(), 0);
    assert_eq!(dataplane.slices.differing(&composition.dataplane.slices).count(), 1);
    assert_eq!(speaker.addresses.differing(&composition.speaker.addresses).count(), 0);
}

#[test]
fn composition_knows_when_all_neighbours_were_heard() {
    let mut world = populated_world();
    world.apply(Step::Node(2, Some((false, false, 0))));
    world.apply(Step::PeerLinks(2, Some(0)));
    let mut composition = Composition::new(NODE, Backend::Endpoints, false);
    follow(&mut composition, &World::default(), &world);
    assert!(!composition.has_heard_all(), "n2 was not heard");
    let before = world.clone();
    world.apply(Step::Hear(2));
    follow(&mut composition, &before, &world);
    assert!(composition.has_heard_all());
}
