//! Properties of a `Cluster`: its indexes agree with its views, and [`Affected`] misses nothing.

use std::collections::BTreeMap;

use crds::{Labels, TrafficPolicy};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::eligibility::Eligibility;
use crate::test_objects::{holder, record, service, slice};

/// The new state of one object, which the number selects; `None` deletes the object.
#[derive(Clone, Debug)]
enum Step {
    /// Whether its traffic policy is Local.
    Service(u8, Option<bool>),
    /// The Service of the slice, and the node of its endpoint.
    Slice(u8, Option<(u8, u8)>),
    /// The Services that hold the address.
    Record(u8, Option<Vec<u8>>),
    /// Whether the node is excluded from load balancers.
    Node(u8, Option<bool>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u8, option::weighted(0.7, any::<bool>())).prop_map(|(n, state)| Step::Service(n, state)),
        3 => (0..4u8, option::weighted(0.7, (0..3u8, 0..3u8))).prop_map(|(n, state)| Step::Slice(n, state)),
        3 => (0..3u8, option::weighted(0.7, vec(0..3u8, 0..3))).prop_map(|(n, state)| Step::Record(n, state)),
        1 => (0..3u8, option::weighted(0.8, any::<bool>())).prop_map(|(n, state)| Step::Node(n, state)),
    ]
}

fn lb_ip(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn key(n: u8) -> Key {
    Key::new("default", format!("s{n}"))
}

/// The plain state from which a `Cluster` can be built in one batch.
#[derive(Clone, Default)]
struct Objects {
    services: BTreeMap<Key, Arc<Service>>,
    slices: BTreeMap<Key, Arc<EndpointSlice>>,
    records: BTreeMap<IpAddr, Arc<Record>>,
    nodes: BTreeMap<String, Arc<Node>>,
}

/// Sets or removes an entry and returns the value before.
fn set_entry<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

impl Objects {
    /// Performs a step, and returns it as a change of the cluster.
    fn apply(&mut self, step: Step) -> Change {
        match step {
            Step::Service(n, state) => {
                let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                let after =
                    state.map(|is_local| Arc::new(service(&format!("s{n}"), policy(is_local), Labels::default())));
                set_entry(&mut self.services, key(n), after.clone());
                Change::Service(key(n), after)
            }
            Step::Slice(n, state) => {
                let name = format!("slice-{n}");
                let after = state.map(|(service, node)| {
                    Arc::new(slice(&name, &format!("s{service}"), &[(&format!("n{node}"), 'r')]))
                });
                let before = set_entry(&mut self.slices, Key::new("default", &*name), after.clone());
                Change::Slice { before, after }
            }
            Step::Record(n, holders) => {
                let names: Option<Vec<String>> =
                    holders.map(|holders| holders.iter().map(|holder| format!("s{holder}")).collect());
                let after = names.map(|names| {
                    Arc::new(record(lb_ip(n), "lan", &names.iter().map(String::as_str).collect::<Vec<_>>()))
                });
                set_entry(&mut self.records, lb_ip(n), after.clone());
                Change::Record(lb_ip(n), after)
            }
            Step::Node(n, state) => {
                let name = format!("n{n}");
                let after = state.map(|excluded| Arc::new(Node { name: name.clone(), excluded, ..Node::default() }));
                set_entry(&mut self.nodes, name.clone(), after.clone());
                Change::Node(name, after)
            }
        }
    }

    fn cluster(&self) -> Cluster {
        let services = self.services.iter().map(|(key, value)| Change::Service(key.clone(), Some(value.clone())));
        let slices = self.slices.values().map(|slice| Change::Slice { before: None, after: Some(slice.clone()) });
        let records = self.records.iter().map(|(lb_ip, value)| Change::Record(*lb_ip, Some(value.clone())));
        let nodes = self.nodes.iter().map(|(name, value)| Change::Node(name.clone(), Some(value.clone())));
        let mut cluster = Cluster::default();
        cluster.apply(slices.chain(records).chain(services).chain(nodes));
        cluster
    }

    fn eligibility(&self) -> Eligibility {
        let mut eligibility = Eligibility::default();
        eligibility.update(&self.cluster(), &Affected { nodes: true, ..Affected::default() });
        eligibility
    }

    /// The addresses whose records name this Service.
    fn addresses_of(&self, service: &Key) -> Vec<IpAddr> {
        let names = |record: &Record| record.holders.iter().any(|holder| holder.service() == *service);
        self.records.values().filter(|record| names(record)).map(|record| record.address).collect()
    }

    fn slices_of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        self.slices.values().filter(|slice| slice.service == *service).cloned().collect()
    }
}

proptest! {
    #[test]
    fn indexes_and_policies_follow_every_batch_of_changes(batches in vec(vec(step(), 1..5), 1..20)) {
        let (mut objects, mut cluster) = (Objects::default(), Cluster::default());
        let mut eligibility = Eligibility::default();
        for batch in batches {
            let before = objects.clone();
            let changes: Vec<Change> = batch.into_iter().map(|step| objects.apply(step)).collect();
            let affected = cluster.apply(changes);
            eligibility.update(&cluster, &affected);

            prop_assert!(cluster.services().iter().eq(&objects.services));
            prop_assert!(cluster.records().iter().eq(&objects.records));
            prop_assert_eq!(cluster.nodes(), &objects.nodes);
            for n in 0..3 {
                let key = key(n);
                prop_assert_eq!(cluster.addresses_of(&key).collect::<Vec<_>>(), objects.addresses_of(&key));
                let expected = if objects.services.contains_key(&key) { objects.slices_of(&key) } else { vec![] };
                prop_assert_eq!(cluster.slices().get(&key).map(|slices| slices.to_vec()).unwrap_or_default(), expected);
                if before.services.get(&key) != objects.services.get(&key)
                    || before.addresses_of(&key) != objects.addresses_of(&key)
                {
                    prop_assert!(affected.services.contains(&key), "{:?} is affected", key);
                }
            }
            prop_assert!(cluster.slices().values().all(|slices| !slices.is_empty()));
            let sole = objects.services.values().map(|service| {
                let held = objects.addresses_of(&service.key);
                (service, held.first().copied().filter(|_| held.len() == 1))
            });
            prop_assert!(cluster.services_with_sole_address().eq(sole));
            let from_scratch = objects.eligibility();
            prop_assert_eq!(eligibility.policies(), from_scratch.policies());
        }
    }
}

#[test]
fn each_service_has_exactly_the_addresses_it_holds() {
    let [a, b, c] = ["a", "b", "c"].map(holder);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let addresses = |holdings: &Holdings, holder: &Holder| holdings.addresses_of(&holder.service()).collect::<Vec<_>>();
    let mut holdings = Holdings::default();
    holdings.replace(ip("192.0.2.2"), [], [&b]);
    holdings.replace(ip("2001:db8::1"), [], [&b]);
    holdings.replace(ip("0.0.0.0"), [], [&b, &c]);
    assert_eq!(addresses(&holdings, &a), [] as [IpAddr; 0]);
    assert_eq!(addresses(&holdings, &b), ["0.0.0.0", "192.0.2.2", "2001:db8::1"].map(ip));
    assert_eq!(addresses(&holdings, &c), [ip("0.0.0.0")]);
    holdings.replace(ip("0.0.0.0"), [&b, &c], [&c, &a]);
    assert_eq!(addresses(&holdings, &a), [ip("0.0.0.0")]);
    assert_eq!(addresses(&holdings, &b), ["192.0.2.2", "2001:db8::1"].map(ip));
    assert_eq!(addresses(&holdings, &c), [ip("0.0.0.0")]);
}
