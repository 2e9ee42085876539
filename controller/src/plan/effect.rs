//! What a plan has done: each write as data, and as the JSON that the API server gets.

use std::fmt;
use std::net::IpAddr;

use crds::service::Ingress;
use crds::{
    Condition, Holder, IPAddressPoolStatus, InternedStr, Key, LoadBalancerIP, LoadBalancerIPSpec, Quarantine,
    ResourceVersion, address,
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use serde_json::{Map, Value, json};

impl Effect {
    /// The address whose record it makes, changes or deletes.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Create { address, .. } | Self::Delete { address, .. } => Some(*address),
            Self::PatchAddress(patch) => Some(patch.address),
            Self::PatchService(_) | Self::TellService(_) | Self::PatchPool(_) | Self::Event(_) => None,
        }
    }
}

/// What series of effects are about. Two series about one subject are never under way at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An address that several may hold, or that nobody holds any more.
    Address(IpAddr),
    /// A Service, and the addresses that it alone has, gets or loses.
    Service(Key),
    /// A pool.
    Pool(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "LoadBalancerIP {address}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Pool(name) => write!(f, "IPAddressPool {name}"),
        }
    }
}

/// Effects in the order in which they are to happen: the next only after the one before has succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What they are about.
    pub subject: Subject,
    /// The effects.
    pub effects: Vec<Effect>,
}

impl Series {
    /// Whether it only tells how things are that others have done, and nobody waits for it: what gives or takes an address
    /// comes first.
    pub fn can_wait(&self) -> bool {
        matches!(self.effects.first(), Some(Effect::TellService(_)))
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Take an address for a Service. The API server refuses that if somebody has it.
    Create {
        /// The address.
        address: IpAddr,
        /// Its pool.
        pool: InternedStr,
        /// The Service.
        holder: Holder,
        /// The key by which the Service shares it.
        sharing_key: Option<InternedStr>,
    },
    /// Change who holds an address.
    PatchAddress(AddressPatch),
    /// Withdraw an address, if it is still held by this very record.
    Delete {
        /// The address.
        address: IpAddr,
        /// The record's UID.
        uid: InternedStr,
        /// The version that was looked at, where others than the holder may come to it. If the record is another by now,
        /// the deletion fails.
        resource_version: Option<ResourceVersion>,
    },
    /// Write a Service's status and finalizers.
    PatchService(ServicePatch),
    /// The same, where nothing changes but what is said of who announces its addresses.
    TellService(ServicePatch),
    /// Write a pool's status.
    PatchPool(PoolPatch),
    /// Tell people.
    Event(Event),
}

/// What changes of a record, in one write.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressPatch {
    /// The address.
    pub address: IpAddr,
    /// The version that was looked at, as for Services.
    pub resource_version: ResourceVersion,
    /// All its holders.
    pub holders: Vec<Holder>,
    /// The key by which they share it.
    pub sharing_key: Option<InternedStr>,
    /// Its pool, where that changes.
    pub pool: Option<InternedStr>,
    /// Whether to write down that it is a reservation, of which only its emptiness told before.
    pub becomes_reservation: bool,
    /// Why nobody is to get it from now on, where that is so.
    pub quarantine: Option<Quarantine>,
}

/// What changes of a Service, in one write. What is `None` stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePatch {
    /// Namespace and name.
    pub key: Key,
    /// The version that was looked at. If the Service is another by now, the write fails and nothing is changed.
    pub resource_version: ResourceVersion,
    /// All its finalizers.
    pub finalizers: Option<Vec<InternedStr>>,
    /// All entries of `status.loadBalancer.ingress`.
    pub ingress: Option<Vec<Ingress>>,
    /// All its conditions.
    pub conditions: Option<Vec<Condition>>,
}

/// The new status of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPatch {
    /// Its name.
    pub name: String,
    /// The version that was looked at, as for Services.
    pub resource_version: String,
    /// The new status.
    pub status: IPAddressPoolStatus,
}

/// Something that people should know, as `kubectl describe` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What it is about.
    pub regarding: ObjectReference,
    /// Whether something is wrong.
    pub is_warning: bool,
    /// One CamelCase word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl ServicePatch {
    /// The JSON merge patch (RFC 7386) for `services/status`, where lists are replaced as a whole. That subresource
    /// takes metadata too, so that finalizer, address and condition are one write: a crash can't come between.
    pub fn body(&self) -> Value {
        let mut metadata = Map::from_iter([("resourceVersion".to_owned(), json!(self.resource_version.to_string()))]);
        if let Some(finalizers) = &self.finalizers {
            metadata.insert("finalizers".into(), json!(finalizers));
        }
        let mut status = Map::new();
        if let Some(ingress) = &self.ingress {
            let entries: Vec<Value> = ingress.iter().map(entry).collect();
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

fn entry(ingress: &Ingress) -> Value {
    let fields = [("ip", &ingress.ip), ("ipMode", &ingress.ip_mode), ("hostname", &ingress.hostname)];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect()
}

impl AddressPatch {
    /// The JSON merge patch for a `loadbalancerips` object.
    pub fn body(&self) -> Value {
        // `null` takes the key away.
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
    /// The JSON merge patch for `ipaddresspools/status`. A list that is left out where it is empty has to be taken away
    /// by name, or the old one would stay.
    pub fn body(&self) -> Value {
        let mut body = json!({"metadata": {"resourceVersion": self.resource_version}, "status": self.status});
        if self.status.held_by.is_empty() {
            body["status"]["heldBy"] = Value::Null;
        }
        body
    }
}

/// The object that makes `address` this Service's.
pub fn load_balancer_ip(address: IpAddr, pool: &str, holder: &Holder, sharing_key: Option<&str>) -> LoadBalancerIP {
    let spec = LoadBalancerIPSpec {
        address: address.to_string(),
        pool: pool.into(),
        services: vec![holder.clone()],
        sharing_key: sharing_key.map(str::to_owned),
        ..LoadBalancerIPSpec::default()
    };
    LoadBalancerIP::new(&address::object_name(address), spec)
}

/// A reference to a Service, for events.
pub fn service_reference(key: &Key, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(uid.into()),
        ..ObjectReference::default()
    }
}

/// A reference to a pool, for events.
pub fn pool_reference(pool: &crds::IPAddressPool) -> ObjectReference {
    pool.object_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;

    #[test]
    fn a_patch_of_a_record_replaces_its_holders_and_key_and_nothing_that_stays() {
        let patch = AddressPatch {
            address: ip("192.0.2.1"),
            resource_version: 7,
            holders: vec![],
            sharing_key: None,
            pool: None,
            becomes_reservation: false,
            quarantine: None,
        };
        let body = json!({"metadata": {"resourceVersion": "7"}, "spec": {"services": [], "sharingKey": null}});
        assert_eq!(patch.body(), body);
        let holder = Holder { terms: Some("t".into()), ..crate::fixtures::holder("web") };
        let all = AddressPatch {
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
    fn a_patch_of_a_pool_replaces_all_that_its_status_said() {
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
    fn a_patch_names_only_what_changes_and_the_version_it_is_for() {
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
