//! Services and LoadBalancerIPs, as the API server reports them: I1, I2, and the objects of I5 and I13. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crds::Record;
use crds::request::ALLOW_SHARED_IP;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use serde_json::json;

use crate::breach::{Invariant, Subject};
use crate::checks::lasting::{Finding, Lasting};

/// Prefixes of all annotations by which a user requests something from Landfall.
const ANNOTATIONS: [&str; 2] = ["landfall.dev/", "metallb."];

/// The parts of a Service that the checks use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    pub uid: String,
    /// `namespace/name`.
    pub key: String,
    /// Whether it is being deleted. Its status is then out of date.
    pub is_ending: bool,
    /// Whether Landfall serves it.
    pub is_ours: bool,
    /// Whether it has a sharing key.
    pub is_shared: bool,
    /// The addresses that its status shows.
    pub addresses: BTreeSet<IpAddr>,
    /// All fields by which a user can request other addresses.
    pub request: String,
}

impl From<&Service> for ServiceFacts {
    fn from(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let annotations = service.annotations();
        let is_shared = ALLOW_SHARED_IP.iter().any(|key| annotations.contains_key(*key));
        let is_ours = |name: &str| ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix));
        let ours: BTreeMap<_, _> = annotations.iter().filter(|(name, _)| is_ours(name)).collect();
        // These fields decide whether Services can share an address.
        let terms = is_shared.then(|| json!([spec.ports, spec.external_traffic_policy, spec.selector]));
        let class = &spec.load_balancer_class;
        let request =
            json!([spec.type_, class, spec.ip_families, spec.ip_family_policy, spec.load_balancer_ip, ours, terms]);
        let status = service.status.clone().unwrap_or_default().load_balancer.unwrap_or_default();
        Self {
            uid: service.uid().unwrap_or_default(),
            key: format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any()),
            is_ending: service.metadata.deletion_timestamp.is_some(),
            is_ours: spec.type_.as_deref() == Some("LoadBalancer")
                && class.as_ref().is_none_or(|class| class == crds::service::CLASS),
            is_shared,
            addresses: status.ingress.iter().flatten().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect(),
            request: request.to_string(),
        }
    }
}

/// A Service and the request under which it got its addresses.
#[derive(Clone, Debug)]
struct KnownService {
    facts: ServiceFacts,
    assigned_under: String,
}

/// The current objects.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    services: BTreeMap<String, KnownService>,
    records: BTreeMap<IpAddr, Record>,
    /// The time of deletion of each record that no longer exists.
    deleted_records: BTreeMap<IpAddr, Duration>,
    /// Services and records that disagree.
    pub mismatches: Lasting,
}

impl Objects {
    /// Adds a new state of a Service.
    pub fn add_service(&mut self, facts: ServiceFacts) -> Vec<Finding> {
        let mut found = Vec::new();
        let before = self.services.get(&facts.uid);
        if let Some(before) = before.filter(|_| !facts.is_ending) {
            let lost: Vec<_> = before.facts.addresses.difference(&facts.addresses).collect();
            if !lost.is_empty() && facts.request == before.assigned_under {
                let subject = Subject::Service(facts.key.clone());
                found.push((Invariant::I2, subject, format!("lost {lost:?} without a request of its user")));
            }
        }
        let had = before.map(|before| before.facts.addresses.clone()).unwrap_or_default();
        let serves = |service: &ServiceFacts| service.is_ours && !service.is_ending;
        let others = self.services.values().map(|other| &other.facts).filter(|other| other.uid != facts.uid);
        for other in others.filter(|other| serves(other) && serves(&facts) && !(other.is_shared && facts.is_shared)) {
            for gained in facts.addresses.difference(&had).filter(|gained| other.addresses.contains(gained)) {
                let text = format!("shows {gained}, which {} holds without sharing it", other.key);
                found.push((Invariant::I1, Subject::Service(facts.key.clone()), text));
            }
        }
        let is_changed = before.is_none_or(|before| before.facts.addresses != facts.addresses);
        let assigned_under = match before {
            Some(before) if !is_changed => before.assigned_under.clone(),
            _ => facts.request.clone(),
        };
        self.services.insert(facts.uid.clone(), KnownService { facts, assigned_under });
        found
    }

    pub fn delete_service(&mut self, uid: &str) {
        self.services.remove(uid);
    }

    /// Adds all Services of a list.
    pub fn add_services(&mut self, list: Vec<ServiceFacts>) -> Vec<Finding> {
        let listed: BTreeSet<&str> = list.iter().map(|service| service.uid.as_str()).collect();
        self.services.retain(|uid, _| listed.contains(uid.as_str()));
        list.into_iter().flat_map(|service| self.add_service(service)).collect()
    }

    /// Adds a new state of a record.
    pub fn add_record(&mut self, record: Record) -> Vec<Finding> {
        let mut found = Vec::new();
        if record.holders.len() > 1 && record.sharing_key.is_none() {
            let text = format!("is held by {} Services without a sharing key", record.holders.len());
            found.push((Invariant::I1, Subject::Address(record.address), text));
        }
        self.deleted_records.remove(&record.address);
        self.records.insert(record.address, record);
        found
    }

    pub fn delete_record(&mut self, now: Duration, address: IpAddr) {
        if self.records.remove(&address).is_some() {
            self.deleted_records.insert(address, now);
        }
    }

    /// Adds all records of a list.
    pub fn add_records(&mut self, now: Duration, list: Vec<Record>) -> Vec<Finding> {
        let listed: BTreeSet<IpAddr> = list.iter().map(|record| record.address).collect();
        let missing: Vec<IpAddr> = self.records.keys().filter(|address| !listed.contains(address)).copied().collect();
        for address in missing {
            self.delete_record(now, address);
        }
        list.into_iter().flat_map(|record| self.add_record(record)).collect()
    }

    pub fn records(&self) -> &BTreeMap<IpAddr, Record> {
        &self.records
    }

    /// The addresses in the status of Services.
    pub fn shown_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.services.values().flat_map(|service| service.facts.addresses.iter().copied())
    }

    /// Addresses whose record was deleted, with the time.
    pub fn deleted_records(&self) -> &BTreeMap<IpAddr, Duration> {
        &self.deleted_records
    }

    /// Finds Services and records that have disagreed for `limit`: the watches of both are not synchronous.
    pub fn compare(&mut self, now: Duration, limit: Duration) -> Vec<Finding> {
        let mut present = Vec::new();
        for record in self.records.values().filter(|record| !record.holders.is_empty() && !record.deleting) {
            let is_alive = |uid: &str| self.services.contains_key(uid);
            if !record.holders.iter().any(|holder| is_alive(&holder.uid)) {
                let text = format!("is held by {}, which does not exist", record.holders[0].service());
                present.push((Invariant::I13, Subject::Address(record.address), text));
            }
        }
        for service in self.services.values().map(|known| &known.facts).filter(|it| it.is_ours && !it.is_ending) {
            let holds = |address: &IpAddr| {
                let record = self.records.get(address);
                record.is_some_and(|record| record.holders.iter().any(|holder| *holder.uid == *service.uid))
            };
            let without: Vec<_> = service.addresses.iter().filter(|address| !holds(address)).collect();
            if !without.is_empty() {
                let text = format!("shows {without:?} without a LoadBalancerIP");
                present.push((Invariant::I5, Subject::Service(service.key.clone()), text));
            }
        }
        self.mismatches.update(now, limit, present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{Holder, LoadBalancerIP};

    const LIMIT: Duration = Duration::from_secs(5);

    fn service(uid: &str, addresses: &[&str]) -> ServiceFacts {
        ServiceFacts {
            uid: uid.to_owned(),
            key: format!("default/{uid}"),
            is_ending: false,
            is_ours: true,
            is_shared: false,
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            request: "any".to_owned(),
        }
    }

    fn record(address: &str, holders: &[&str]) -> Record {
        let object: LoadBalancerIP = serde_json::from_value(json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
            "metadata": {"name": address}, "spec": {"address": address},
        }))
        .expect("a LoadBalancerIP");
        let mut record = Record::try_from(&object).expect("a record");
        let holder =
            |uid: &&str| Holder { namespace: "default".into(), name: (*uid).into(), uid: (*uid).into(), terms: None };
        record.holders = holders.iter().map(holder).collect();
        record
    }

    #[test]
    fn an_address_is_lost_only_by_request() {
        let with_request = |request: &str, addresses: &[&str]| ServiceFacts {
            request: request.to_owned(),
            ..service("web", addresses)
        };
        let ending = ServiceFacts { is_ending: true, ..service("web", &[]) };
        let (one, two) = (&["192.0.2.1"][..], &["192.0.2.2"][..]);
        for (case, states, expected) in [
            ("kept", vec![service("web", one), service("web", one)], 0),
            ("changed", vec![service("web", one), service("web", two)], 1),
            ("lost", vec![service("web", one), service("web", &[])], 1),
            ("a second family", vec![service("web", one), service("web", &["192.0.2.1", "2001:db8::1"])], 0),
            ("a new request", vec![service("web", one), with_request("two", two)], 0),
            ("an earlier request", vec![service("web", one), with_request("two", one), with_request("two", two)], 0),
            ("changed again", vec![service("web", one), with_request("two", two), with_request("two", one)], 1),
            ("being deleted", vec![service("web", one), ending], 0),
            (
                "another Service of the name",
                vec![service("web", one), ServiceFacts { uid: "u2".into(), ..service("web", &[]) }],
                0,
            ),
        ] {
            let mut objects = Objects::default();
            let found: Vec<_> = states.into_iter().flat_map(|state| objects.add_service(state)).collect();
            assert_eq!(found.len(), expected, "{case}: {found:?}");
            assert!(found.iter().all(|(invariant, ..)| *invariant == Invariant::I2), "{case}: {found:?}");
        }
    }

    #[test]
    fn two_services_have_one_address_only_if_both_share() {
        let address = &["192.0.2.1"][..];
        let sharing = |uid: &str| ServiceFacts { is_shared: true, ..service(uid, address) };
        let ending = ServiceFacts { is_ending: true, ..service("a", address) };
        let foreign = ServiceFacts { is_ours: false, ..service("a", address) };
        for (case, first, second, expected) in [
            ("neither shares", service("a", address), service("b", address), 1),
            ("one shares", service("a", address), sharing("b"), 1),
            ("both share", sharing("a"), sharing("b"), 0),
            ("one is being deleted", ending, service("b", address), 0),
            ("one is of another provider", foreign, service("b", address), 0),
            ("different addresses", service("a", address), service("b", &["192.0.2.2"]), 0),
        ] {
            let mut objects = Objects::default();
            objects.add_service(first);
            let found = objects.add_service(second);
            assert_eq!(found.len(), expected, "{case}: {found:?}");
            assert!(found.iter().all(|(invariant, ..)| *invariant == Invariant::I1), "{case}: {found:?}");
        }
        for (case, key, holders, expected) in [
            ("shared", Some("k"), &["a", "b"][..], 0),
            ("without a key", None, &["a", "b"], 1),
            ("one", None, &["a"], 0),
        ] {
            let record = Record { sharing_key: key.map(Into::into), ..record("192.0.2.1", holders) };
            assert_eq!(Objects::default().add_record(record).len(), expected, "{case}");
        }
    }

    #[test]
    fn services_and_records_that_disagree_for_long_are_found() {
        let address = &["192.0.2.1"][..];
        let foreign = ServiceFacts { is_ours: false, ..service("web", address) };
        for (case, services, records, expected) in [
            ("agreement", vec![service("web", address)], vec![record("192.0.2.1", &["web"])], None),
            ("a record without a Service", vec![], vec![record("192.0.2.1", &["web"])], Some(Invariant::I13)),
            ("a reservation", vec![], vec![record("192.0.2.1", &[])], None),
            ("a status without a record", vec![service("web", address)], vec![], Some(Invariant::I5)),
            (
                "a record of another Service",
                vec![service("web", address), service("other", &[])],
                vec![record("192.0.2.1", &["other"])],
                Some(Invariant::I5),
            ),
            ("a Service of another provider", vec![foreign], vec![], None),
        ] {
            let mut objects = Objects::default();
            objects.add_services(services);
            objects.add_records(Duration::ZERO, records);
            assert_eq!(objects.compare(Duration::ZERO, LIMIT), [], "{case}: at once");
            let found = objects.compare(LIMIT, LIMIT);
            assert_eq!(found.first().map(|(invariant, ..)| *invariant), expected, "{case}: {found:?}");
        }
    }

    #[test]
    fn objects_that_a_list_lacks_are_deleted() {
        let mut objects = Objects::default();
        objects.add_services(vec![service("web", &["192.0.2.1"])]);
        objects.add_records(Duration::ZERO, vec![record("192.0.2.1", &["web"]), record("192.0.2.2", &[])]);
        objects.add_services(vec![]);
        objects.add_records(LIMIT, vec![record("192.0.2.2", &[])]);
        assert!(objects.services.is_empty());
        assert_eq!(objects.records().len(), 1);
        let deleted = objects.deleted_records();
        assert_eq!(deleted, &BTreeMap::from([("192.0.2.1".parse().expect("an address"), LIMIT)]));
    }
}
