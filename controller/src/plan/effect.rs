//! Writes as data: the effects of a plan, and the JSON that the API server receives.

use std::fmt;
use std::net::IpAddr;

use crds::service::Ingress;
use crds::{
    Condition, Holder, IPAddressPoolStatus, InternedStr, Key, LoadBalancerIP, LoadBalancerIPSpec, Quarantine, Record,
    ResourceVersion, Service, address,
};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Map, Value, json};

/// The subject of a series. At most one series of a subject runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The record of an address that several Services may hold, or that has lost its last holder.
    Record(IpAddr),
    /// A Service, and the addresses that it alone has, gets or loses.
    Service(Key),
    Pool(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(lb_ip) => write!(f, "LoadBalancerIP {lb_ip}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Pool(name) => write!(f, "IPAddressPool {name}"),
        }
    }
}

/// Effects in order: each one starts after the one before has succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub subject: Subject,
    pub effects: Vec<Effect>,
}

impl Series {
    /// Whether it only reports that the API server refuses a write of its Service.
    pub fn is_report(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::ReportRefusal(_)))
    }

    /// Whether it only writes conditions about the network, or the new pool of a record. All other series start first.
    pub fn is_deferrable(&self) -> bool {
        match self.effects.first() {
            Some(Effect::PatchConditions(_)) => true,
            Some(Effect::PatchRecord(patch)) => patch.changes_only_pool,
            _ => false,
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Create the record of an address for a Service. The API server refuses it if the record exists.
    Create {
        lb_ip: IpAddr,
        pool: InternedStr,
        holder: Holder,
        sharing_key: Option<InternedStr>,
    },
    PatchRecord(RecordPatch),
    /// Withdraw an address: delete its record.
    Delete {
        lb_ip: IpAddr,
        /// A record with another UID is not deleted.
        uid: InternedStr,
        /// If the record has another version, the deletion fails.
        resource_version: ResourceVersion,
    },
    /// Write status and finalizers of a Service.
    PatchService(ServicePatch),
    /// The same write if only the conditions `Announced` and `Forwarding` change.
    PatchConditions(ServicePatch),
    /// The same write if only the condition `Allocated` changes, because the API server refuses another write.
    ReportRefusal(ServicePatch),
    PatchPool(PoolPatch),
    Event(Event),
}

/// The kind of a write, with the address of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    CreateRecord(IpAddr),
    PatchRecord(IpAddr),
    DeleteRecord(IpAddr),
    PatchService,
    PatchPool,
}

/// The rest of a sentence that starts with `the API server refuses to`.
impl fmt::Display for WriteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateRecord(lb_ip) => write!(f, "create LoadBalancerIP {lb_ip}"),
            Self::PatchRecord(lb_ip) => write!(f, "change LoadBalancerIP {lb_ip}"),
            Self::DeleteRecord(lb_ip) => write!(f, "delete LoadBalancerIP {lb_ip}"),
            Self::PatchService => f.write_str("change the status of this Service"),
            Self::PatchPool => f.write_str("change the status of this IPAddressPool"),
        }
    }
}

impl Effect {
    /// `None` for an event: if it cannot be written, nothing depends on it.
    pub fn write_kind(&self) -> Option<WriteKind> {
        match self {
            Self::Create { lb_ip, .. } => Some(WriteKind::CreateRecord(*lb_ip)),
            Self::PatchRecord(patch) => Some(WriteKind::PatchRecord(patch.lb_ip)),
            Self::Delete { lb_ip, .. } => Some(WriteKind::DeleteRecord(*lb_ip)),
            Self::PatchService(_) | Self::PatchConditions(_) | Self::ReportRefusal(_) => Some(WriteKind::PatchService),
            Self::PatchPool(_) => Some(WriteKind::PatchPool),
            Self::Event(_) => None,
        }
    }

    /// The address whose record it creates, changes or deletes.
    pub fn lb_ip(&self) -> Option<IpAddr> {
        match self.write_kind()? {
            WriteKind::CreateRecord(lb_ip) | WriteKind::PatchRecord(lb_ip) | WriteKind::DeleteRecord(lb_ip) => {
                Some(lb_ip)
            }
            WriteKind::PatchService | WriteKind::PatchPool => None,
        }
    }
}

/// The changes of a record, as one write.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordPatch {
    pub lb_ip: IpAddr,
    /// If the record has another version, the write fails and changes nothing.
    pub resource_version: ResourceVersion,
    /// All holders.
    pub holders: Vec<Holder>,
    /// `None` removes the key.
    pub sharing_key: Option<InternedStr>,
    /// `None`: unchanged.
    pub pool: Option<InternedStr>,
    /// Whether only the pool changes.
    pub changes_only_pool: bool,
    /// Whether to mark the record as a reservation (`spec.reservation: {}`). A record without holders is a reservation
    /// even without the mark. With its first holder, it needs the mark.
    pub becomes_reservation: bool,
    /// `None`: unchanged.
    pub quarantine: Option<Quarantine>,
}

/// The changes of a Service, as one write. `None`: unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePatch {
    pub key: Key,
    /// If the Service has another version, the write fails and changes nothing.
    pub resource_version: ResourceVersion,
    /// All finalizers.
    pub finalizers: Option<Vec<InternedStr>>,
    /// All entries of `status.loadBalancer.ingress`.
    pub ingress: Option<Vec<Ingress>>,
    /// All conditions.
    pub conditions: Option<Vec<Condition>>,
}

/// The new status of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPatch {
    pub name: String,
    /// If the pool has another version, the write fails and changes nothing.
    pub resource_version: String,
    pub status: IPAddressPoolStatus,
}

/// An event for users, as `kubectl describe` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub regarding: ObjectReference,
    pub is_warning: bool,
    /// One CamelCase word for machines.
    pub reason: &'static str,
    pub message: String,
}

impl Effect {
    pub(crate) fn delete(record: &Record) -> Self {
        let (uid, resource_version) = (record.uid.clone(), record.resource_version);
        Self::Delete { lb_ip: record.address, uid, resource_version }
    }
}

impl Event {
    pub(crate) fn for_service(service: &Service, is_warning: bool, reason: &'static str, message: String) -> Self {
        Self { regarding: service_reference(&service.key, &service.uid), is_warning, reason, message }
    }
}

impl ServicePatch {
    /// A write without changes.
    pub(crate) fn new(service: &Service) -> Self {
        let (key, resource_version) = (service.key.clone(), service.resource_version);
        Self { key, resource_version, finalizers: None, ingress: None, conditions: None }
    }

    /// The JSON merge patch (RFC 7396) for `services/status`, which replaces whole lists. This subresource accepts
    /// metadata too, so finalizer, address and condition are one write, and a crash cannot separate them.
    pub fn body(&self) -> Value {
        let mut metadata = Map::from_iter([("resourceVersion".to_owned(), json!(self.resource_version.to_string()))]);
        if let Some(finalizers) = &self.finalizers {
            metadata.insert("finalizers".into(), json!(finalizers));
        }
        let mut status = Map::new();
        if let Some(ingress) = &self.ingress {
            let entries: Vec<Value> = ingress.iter().map(ingress_entry).collect();
            status.insert("loadBalancer".into(), json!({"ingress": entries}));
        }
        if let Some(conditions) = &self.conditions {
            status.insert("conditions".into(), json!(conditions));
        }
        let mut body = json!({"metadata": metadata});
        if !status.is_empty() {
            body["status"] = status.into();
        }
        body
    }
}

fn ingress_entry(ingress: &Ingress) -> Value {
    let fields = [("ip", &ingress.ip), ("ipMode", &ingress.ip_mode), ("hostname", &ingress.hostname)];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect()
}

impl RecordPatch {
    /// A write that leaves a record without holders and sharing key.
    pub(crate) fn new(record: &Record) -> Self {
        Self {
            lb_ip: record.address,
            resource_version: record.resource_version,
            holders: Vec::new(),
            sharing_key: None,
            pool: None,
            changes_only_pool: false,
            becomes_reservation: false,
            quarantine: None,
        }
    }

    /// The JSON merge patch for a `loadbalancerips` object.
    pub fn body(&self) -> Value {
        // `null` removes the key.
        let mut spec = json!({"services": self.holders, "sharingKey": self.sharing_key});
        if let Some(pool) = &self.pool {
            spec["pool"] = json!(pool);
        }
        if self.becomes_reservation {
            spec["reservation"] = json!({});
        }
        if let Some(quarantine) = &self.quarantine {
            spec["quarantine"] = json!(quarantine);
        }
        json!({"metadata": {"resourceVersion": self.resource_version.to_string()}, "spec": spec})
    }
}

impl PoolPatch {
    /// The JSON merge patch for `ipaddresspools/status`. An empty list is omitted from the status, so it must be
    /// removed explicitly.
    pub fn body(&self) -> Value {
        let mut body = json!({"metadata": {"resourceVersion": self.resource_version}, "status": self.status});
        if self.status.held_by.is_empty() {
            body["status"]["heldBy"] = Value::Null;
        }
        body
    }
}

/// A new record that names one Service.
pub(crate) fn load_balancer_ip(lb_ip: IpAddr, pool: &str, holder: &Holder, key: Option<&str>) -> LoadBalancerIP {
    let spec = LoadBalancerIPSpec {
        address: lb_ip.to_string(),
        pool: pool.into(),
        services: vec![holder.clone()],
        sharing_key: key.map(str::to_owned),
        ..LoadBalancerIPSpec::default()
    };
    LoadBalancerIP::new(&address::object_name(lb_ip), spec)
}

/// The reference to a Service in events.
pub(crate) fn service_reference(key: &Key, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(uid.into()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;

    #[test]
    fn record_patch_replaces_only_holders_and_key() {
        let patch = RecordPatch {
            lb_ip: ip("192.0.2.1"),
            resource_version: 7,
            holders: vec![],
            sharing_key: None,
            pool: None,
            changes_only_pool: false,
            becomes_reservation: false,
            quarantine: None,
        };
        let body = json!({"metadata": {"resourceVersion": "7"}, "spec": {"services": [], "sharingKey": null}});
        assert_eq!(patch.body(), body);
        let holder = Holder { terms: Some("t".into()), ..crate::fixtures::holder("web") };
        let all = RecordPatch {
            holders: vec![holder],
            sharing_key: Some("k".into()),
            pool: Some("lan".into()),
            becomes_reservation: true,
            ..patch
        };
        let holder = json!({"namespace": "default", "name": "web", "uid": "web", "terms": "t"});
        assert_eq!(
            all.body()["spec"],
            json!({"services": [holder], "sharingKey": "k", "pool": "lan", "reservation": {}})
        );
    }

    #[test]
    fn pool_patch_replaces_the_whole_status() {
        let mut patch = PoolPatch {
            name: "lan".into(),
            resource_version: "7".into(),
            status: IPAddressPoolStatus { assigned_ipv4: 1, held_by: vec!["default/web".into()], ..Default::default() },
        };
        let counts = json!({"assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 0, "availableIPv6": 0});
        let body = |held_by: Value| {
            let mut status = counts.clone();
            (status["heldBy"], status["conditions"]) = (held_by, json!([]));
            json!({"metadata": {"resourceVersion": "7"}, "status": status})
        };
        assert_eq!(patch.body(), body(json!(["default/web"])));
        patch.status.held_by.clear();
        assert_eq!(patch.body(), body(Value::Null));
    }

    #[test]
    fn service_patch_contains_only_changes_and_the_version() {
        let nothing = ServicePatch {
            key: Key::new("default", "web"),
            resource_version: 7,
            finalizers: None,
            ingress: None,
            conditions: None,
        };
        assert_eq!(nothing.body(), json!({"metadata": {"resourceVersion": "7"}}));
        let all = ServicePatch {
            finalizers: Some(vec!["a".into()]),
            ingress: Some(vec![Ingress::from(ip("192.0.2.1"))]),
            conditions: Some(vec![]),
            ..nothing
        };
        assert_eq!(
            all.body(),
            json!({
                "metadata": {"resourceVersion": "7", "finalizers": ["a"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}, "conditions": []},
            })
        );
    }
}
