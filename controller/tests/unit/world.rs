//! A cluster in memory for tests: the actions of an API server and of users on the observed objects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::service::{ALLOCATED, FINALIZER, Ingress};
use crds::{AddressConflict, Announcer, IPAddressPool, Key, Reach, Record, Reservation, Service};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::fixtures::node;
use crate::plan::effect::{Effect, Event, RecordPatch, ServicePatch};
use crate::snapshot::Snapshot;
use crate::snapshot::plan;

#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) events: Vec<Event>,
    /// Addresses whose records users deleted, against the documentation.
    pub(crate) deleted_records: BTreeSet<IpAddr>,
    version: u64,
}

impl World {
    /// A cluster with these pools and Services.
    pub(crate) fn new(
        pools: impl IntoIterator<Item = Arc<IPAddressPool>>,
        services: impl IntoIterator<Item = Service>,
    ) -> Self {
        let mut world = Self { version: 100, ..Self::default() };
        for pool in pools {
            world.snapshot.pools.insert(pool.metadata.name.clone().expect("a name"), pool);
        }
        for service in services {
            world.snapshot.services.insert(service.key.clone(), Arc::new(service));
        }
        world
    }

    pub(crate) fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    pub(crate) fn service(&self, name: &str) -> &Service {
        &self.snapshot.services[&Self::key(name)]
    }

    /// A user changes a Service.
    pub(crate) fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Service)) {
        self.edit_key(&Self::key(name), edit);
    }

    /// Same, by namespace and name.
    pub(crate) fn edit_key(&mut self, key: &Key, edit: impl FnOnce(&mut Service)) {
        self.version += 1;
        let service = self.snapshot.services.get_mut(key).map(Arc::make_mut).expect("a Service");
        edit(service);
        service.resource_version = self.version;
        service.owns_finalizer &= service.has_finalizer();
        if !service.is_load_balancer {
            // The API server does both in the same write (pkg/registry/core/service).
            service.class = None;
            service.ingress.clear();
        }
    }

    /// A user deletes a Service.
    pub(crate) fn delete(&mut self, name: &str) {
        self.delete_key(&Self::key(name));
    }

    /// Same, by namespace and name.
    pub(crate) fn delete_key(&mut self, key: &Key) {
        self.edit_key(key, |service| service.deleting = true);
        self.collect(key);
    }

    /// A user changes a record.
    pub(crate) fn edit_record(&mut self, address: IpAddr, edit: impl FnOnce(&mut Record)) {
        self.version += 1;
        if let Some(record) = self.snapshot.records.get_mut(&address).map(Arc::make_mut) {
            edit(record);
            record.resource_version = self.version;
        }
    }

    /// A node reports that another host on the LAN uses an address. The node holds back an address that was never
    /// announced.
    pub(crate) fn report_conflict(&mut self, address: IpAddr) {
        self.report(address, |record| {
            record.conflicts = vec![AddressConflict {
                node: "n1".into(),
                link: "eth0".into(),
                mac: "02:00:00:00:00:99".into(),
                held_back: record.first_announced.is_none(),
                since: Time(Timestamp::UNIX_EPOCH),
            }];
        });
    }

    /// A node reports that it announces an address, without a conflict.
    pub(crate) fn announce(&mut self, address: IpAddr) {
        self.report(address, |record| {
            let since = Time(Timestamp::UNIX_EPOCH);
            record.announcers = vec![Announcer {
                node: "n1".into(),
                link: "eth0".into(),
                epoch: 1,
                since: since.clone(),
                moved: None,
                reach: Some(Reach::Spread),
                unforwarded: vec![],
            }];
            record.first_announced.get_or_insert(since);
            record.conflicts.clear();
        });
    }

    /// No node announces an address.
    pub(crate) fn stop_announcing(&mut self, address: IpAddr) {
        self.report(address, |record| record.announcers.clear());
    }

    fn report(&mut self, address: IpAddr, edit: impl FnOnce(&mut Record)) {
        self.snapshot.nodes.entry("n1".into()).or_insert_with(|| node("n1", "198.51.100.1"));
        self.edit_record(address, edit);
    }

    /// A user reserves an address, unless it has a record.
    pub(crate) fn reserve(&mut self, address: IpAddr, reservation: Option<Reservation>) {
        self.version += 1;
        let record = Record {
            address,
            uid: format!("reservation-{}", self.version).into(),
            resource_version: self.version,
            deleting: false,
            pool: "".into(),
            holders: vec![],
            sharing_key: None,
            reservation: reservation.map(Box::new),
            quarantine: None,
            announcers: vec![],
            first_announced: None,
            conflicts: vec![],
        };
        if !self.snapshot.unreadable.records.contains(&address) {
            self.snapshot.records.entry(address).or_insert_with(|| Arc::new(record));
        }
    }

    /// Users delete all Services while no controller runs, and create them again with their status. If the flag is not
    /// set, all records that name a holder are lost.
    pub(crate) fn restore(&mut self, keeps_records: bool) {
        let services = self.snapshot.services.values().filter(|service| !service.deleting);
        for key in services.map(|service| service.key.clone()).collect::<Vec<_>>() {
            let uid = format!("{}-restored-{}", key.name, self.version);
            self.edit_key(&key, |service| {
                service.uid = uid.into();
                service.finalizers.clear();
            });
        }
        if !keeps_records {
            self.snapshot.records.retain(|_, record| record.holders.is_empty());
        }
    }

    /// Removes a Service that is being deleted and has no finalizers.
    fn collect(&mut self, key: &Key) {
        if self.snapshot.services.get(key).is_some_and(|service| service.deleting && service.finalizers.is_empty()) {
            self.snapshot.services.remove(key);
        }
    }

    /// Applies a write as the API server does. Returns `false` if it is refused.
    pub(crate) fn apply(&mut self, effect: &Effect) -> bool {
        self.version += 1;
        self.try_apply(effect).is_some()
    }

    fn try_apply(&mut self, effect: &Effect) -> Option<()> {
        match effect {
            Effect::Create { lb_ip, pool, holder, sharing_key } => {
                let is_used =
                    self.snapshot.records.contains_key(lb_ip) || self.snapshot.unreadable.records.contains(lb_ip);
                let record = Record {
                    address: *lb_ip,
                    uid: format!("record-{}", self.version).into(),
                    resource_version: self.version,
                    deleting: false,
                    pool: pool.clone(),
                    holders: vec![holder.clone()],
                    sharing_key: sharing_key.clone(),
                    reservation: None,
                    quarantine: None,
                    announcers: vec![],
                    first_announced: None,
                    conflicts: vec![],
                };
                (!is_used).then(|| drop(self.snapshot.records.insert(*lb_ip, Arc::new(record))))
            }
            Effect::Delete { lb_ip, uid, resource_version } => self.delete_record(*lb_ip, uid, *resource_version),
            Effect::PatchRecord(patch) => self.patch_record(patch),
            Effect::PatchService(patch) | Effect::PatchConditions(patch) | Effect::ReportRefusal(patch) => {
                self.patch_service(patch)
            }
            Effect::PatchPool(patch) => {
                let pool = self.snapshot.pools.get_mut(&patch.name).map(Arc::make_mut)?;
                if pool.metadata.resource_version.as_deref() != Some(&patch.resource_version) {
                    return None;
                }
                pool.metadata.resource_version = Some(self.version.to_string());
                pool.status = Some(patch.status.clone());
                Some(())
            }
            Effect::Event(event) => {
                self.events.push(event.clone());
                Some(())
            }
        }
    }

    fn delete_record(&mut self, lb_ip: IpAddr, uid: &str, version: u64) -> Option<()> {
        // The controller reads the record again after a conflict. Without the record, its aim is reached.
        let Some(record) = self.snapshot.records.get(&lb_ip).filter(|record| record.uid == *uid) else {
            return Some(());
        };
        (record.resource_version == version).then(|| drop(self.snapshot.records.remove(&lb_ip)))
    }

    fn patch_record(&mut self, patch: &RecordPatch) -> Option<()> {
        let record = self.snapshot.records.get_mut(&patch.lb_ip).map(Arc::make_mut)?;
        if record.resource_version != patch.resource_version {
            return None;
        }
        record.resource_version = self.version;
        record.holders = patch.holders.clone();
        record.sharing_key = patch.sharing_key.clone();
        if let Some(pool) = &patch.pool {
            record.pool = pool.clone();
        }
        if patch.becomes_reservation {
            record.reservation.get_or_insert_default();
        }
        if let Some(quarantine) = &patch.quarantine {
            record.quarantine = Some(Box::new(quarantine.clone()));
        }
        Some(())
    }

    fn patch_service(&mut self, patch: &ServicePatch) -> Option<()> {
        let service = self.snapshot.services.get_mut(&patch.key).map(Arc::make_mut)?;
        if service.resource_version != patch.resource_version {
            return None;
        }
        let before = service.ingress.clone();
        service.resource_version = self.version;
        if let Some(finalizers) = &patch.finalizers {
            let had_finalizer = service.has_finalizer();
            service.finalizers = finalizers.clone();
            // The API server records the client that added it, in the managed fields.
            service.owns_finalizer = service.has_finalizer() && (service.owns_finalizer || !had_finalizer);
        }
        if let Some(ingress) = &patch.ingress {
            assert!(service.is_load_balancer || ingress.is_empty(), "the API server refuses ingress here");
            service.ingress = ingress.clone();
        }
        if let Some(conditions) = &patch.conditions {
            service.conditions = conditions.clone();
        }
        let uid = service.uid.clone();
        let shown = patch.ingress.iter().flatten().filter(|ingress| !before.contains(ingress));
        for lb_ip in shown.filter_map(|ingress| ingress.ip.as_ref()?.parse::<IpAddr>().ok()) {
            let record = self.snapshot.records.get(&lb_ip);
            let held = record.is_some_and(|record| record.holders.iter().any(|holder| holder.uid == uid));
            assert!(held || self.deleted_records.contains(&lb_ip), "{lb_ip} is shown and not held");
        }
        self.collect(&patch.key);
        Some(())
    }

    /// Plans and applies until nothing is left to do. Returns the number of plans.
    pub(crate) fn settle(&mut self) -> usize {
        for plans in 0..20 {
            let series = plan(&self.snapshot).series;
            if series.is_empty() {
                return plans;
            }
            for series in series {
                for effect in &series.effects {
                    if !self.apply(effect) {
                        break;
                    }
                }
            }
        }
        panic!("plans do not end: {:#?}", plan(&self.snapshot));
    }

    /// The status of a Service as a user sees it, and the addresses that it really holds.
    pub(crate) fn view(&self, name: &str) -> ServiceView {
        self.view_key(&Self::key(name))
    }

    /// Same, by namespace and name.
    pub(crate) fn view_key(&self, key: &Key) -> ServiceView {
        let service = &self.snapshot.services[key];
        let condition = service.conditions.iter().find(|condition| condition.type_ == ALLOCATED);
        let held = self.snapshot.records.values().filter(|record| {
            record.holders.iter().any(|holder| holder.uid == service.uid && holder.name == service.key.name)
        });
        ServiceView {
            ingress: service.ingress.iter().filter_map(|ingress| ingress.ip.clone().map(String::from)).collect(),
            condition: condition.map(|c| format!("{} {}: {}", c.status, c.reason, c.message)),
            held: held.map(|record| record.address.to_string()).collect(),
            has_finalizer: service.finalizers.iter().any(|finalizer| finalizer == FINALIZER),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceView {
    pub(crate) ingress: Vec<String>,
    pub(crate) condition: Option<String>,
    pub(crate) held: Vec<String>,
    pub(crate) has_finalizer: bool,
}

impl ServiceView {
    /// A Service that has this address of this pool, with a complete status.
    pub(crate) fn has(address: &str, pool: &str) -> Self {
        Self {
            ingress: vec![address.into()],
            condition: Some(format!("True Allocated: {address} from pool {pool}")),
            held: vec![address.into()],
            has_finalizer: true,
        }
    }

    /// A Service without anything from Landfall.
    pub(crate) fn nothing() -> Self {
        Self { ingress: vec![], condition: None, held: vec![], has_finalizer: false }
    }
}

/// An effect without its contents.
pub(crate) fn effect_name(effect: &Effect) -> String {
    match effect {
        Effect::Create { lb_ip, .. } => format!("create {lb_ip}"),
        Effect::PatchRecord(patch) => format!("patch {}", patch.lb_ip),
        Effect::Delete { lb_ip, .. } => format!("delete {lb_ip}"),
        Effect::PatchService(patch) => format!("patch {}", patch.key),
        Effect::PatchConditions(patch) => format!("patch conditions of {}", patch.key),
        Effect::ReportRefusal(patch) => format!("report a refusal to {}", patch.key),
        Effect::PatchPool(patch) => format!("patch {}", patch.name),
        Effect::Event(event) => format!("event {}", event.reason),
    }
}

/// An ingress with this address.
pub(crate) fn shows(address: &str) -> Vec<Ingress> {
    vec![Ingress::from(address.parse::<IpAddr>().expect("an address"))]
}
