//! `LoadBalancerIP`: one load-balancer address, the Services that hold it and the nodes that announce it.
//!
//! The name of the object is the address. So the API server guarantees that an address is assigned once: it refuses to
//! create a second object of the same name. An address is announced and forwarded only while its object exists.

#![allow(clippy::duplicated_attributes, reason = "printer columns may share a type")]

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::forwarding::{ForwardingProblem, Reach};
use crate::objects::range_rules;
use crate::service::{Key, version};
use crate::{InternedStr, Malformed, ResourceVersion, address};

/// One load-balancer address that is assigned to Services or reserved. `kubectl get lbip` lists all.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "LoadBalancerIP",
    plural = "loadbalancerips",
    shortname = "lbip",
    category = "landfall",
    status = "LoadBalancerIPStatus",
    derive = "PartialEq",
    doc = "One load-balancer address, the Services that hold it and the nodes that announce it. The name is the \
           address, so the API server guarantees that an address is assigned once. Landfall creates and deletes these \
           objects. To reserve an address, create an object without services: it stays even if no Service uses the \
           address.",
    selectable = ".spec.pool",
    validation = Rule::new(
        "self.metadata.name.contains('.') ? self.metadata.name == self.spec.address \
         : self.metadata.name.matches('^(0|[1-9a-f][0-9a-f]{0,3})(-(0|[1-9a-f][0-9a-f]{0,3})){7}$') \
         && isIP(self.spec.address) && ip(self.metadata.name.replace('-', ':')) in [ip(self.spec.address)]"
    ).message("the name must be the address: 192.0.2.10, or 2001-db8-0-0-0-0-0-1 for 2001:db8::1"),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.services[*].namespace"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.services[*].name"),
    printcolumn(name = "Sharing-Key", type_ = "string", json_path = ".spec.sharingKey", priority = 1),
    printcolumn(name = "Announcer", type_ = "string", json_path = ".status.announcers[*].node"),
    printcolumn(name = "Reach", type_ = "string", json_path = ".status.announcers[*].reach"),
    printcolumn(name = "Conflict", type_ = "string", json_path = ".status.conflicts[*].mac"),
    printcolumn(name = "Link", type_ = "string", json_path = ".status.announcers[*].link", priority = 1),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.announcers[0].since", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIPSpec {
    /// The address in canonical form. Immutable. Examples: `192.0.2.10`, `2001:db8::1`.
    #[schemars(length(max = 45))]
    #[x_kube(
        validation = Rule::new("isIP(self) && ip.isCanonical(self)").message("must be an IP address in canonical form"),
        validation = range_rules::usable_address(),
        validation = Rule::new("self == oldSelf").message("the address of a LoadBalancerIP is immutable")
    )]
    pub address: String,

    /// Pool of the address. Omit it in a reservation: Landfall sets it when a Service uses the address.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub pool: String,

    /// Services that hold the address, oldest holder first. At most 100. Written only by Landfall.
    #[serde(default)]
    #[schemars(length(max = MAX_HOLDERS))]
    pub services: Vec<Holder>,

    /// Sharing key of the holders: the value of their annotation `landfall.dev/allow-shared-ip`. Absent: the address is
    /// not shared. Written by Landfall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub sharing_key: Option<String>,

    /// Reserves the address: this object stays even if no Service uses the address. The address is assigned only to a
    /// Service that requests it, or to the Service that is named here. An object that is created without `services` is
    /// always a reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.__namespace__) || !has(self.service)").message(
        "a reservation for a Service must also set its namespace"
    ))]
    pub reservation: Option<Reservation>,

    /// Set by Landfall if another host on the LAN uses the address, and no node has announced the address yet. The
    /// Service gets another address, and this one is not assigned for 10 minutes. Then Landfall deletes the object, and
    /// the address can be assigned again. Delete the object to end the quarantine early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

/// Why an address is not assigned for some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quarantine {
    /// MAC address of the conflicting host. Example: `02:00:5e:10:00:99`.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Node that detected the conflict.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Network interface of that node.
    #[schemars(length(max = 15))]
    pub link: String,
    /// Start of the quarantine.
    pub since: Time,
    /// Service that released the address.
    pub service: Holder,
}

/// Maximum number of Services that share an address. Bounds the size of the object.
pub const MAX_HOLDERS: usize = 100;

/// The Services for which an address is reserved. Empty: any Service that requests the address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// Only Services of this namespace can get the address. Default: any namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<InternedStr>,

    /// Only the Service with this name in `namespace` gets the address, even without a request. Default: any Service
    /// that requests the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub service: Option<InternedStr>,
}

/// A Service that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Namespace of the Service.
    #[schemars(length(max = 63))]
    pub namespace: InternedStr,
    /// Name of the Service.
    #[schemars(length(max = 63))]
    pub name: InternedStr,
    /// UID of the Service. A Service that is deleted and created again under the same name has a different UID.
    #[schemars(length(max = 63))]
    pub uid: InternedStr,
    /// Fingerprint of the fields that decide whether Services can share an address: key, ports, traffic policy and
    /// selector. If two holders become incompatible, the one whose fingerprint changed loses the address. Absent for a
    /// Service that does not share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub terms: Option<InternedStr>,
}

impl Holder {
    /// Namespace and name of the Service.
    pub fn service(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }
}

/// The nodes that announce the address, and other hosts that use it. Each node reports its own announcements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIPStatus {
    /// Nodes that announce the address now, one per link. At most 16.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub announcers: Vec<Announcer>,

    /// Time of the first announcement. From then on the address is in use, and its Services keep it even if another
    /// host on the LAN uses it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_announced: Option<Time>,

    /// Hosts outside the cluster that use the address, as seen by its announcers and candidates. At most 16. Absent: no
    /// conflict is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conflicts: Vec<AddressConflict>,
}

/// Use of the address by a host on the LAN that is not a node of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressConflict {
    /// Node that detected the conflict.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Network interface of that node.
    #[schemars(length(max = 15))]
    pub link: String,
    /// MAC address of the conflicting host. Example: `02:00:5e:10:00:99`.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// True if the node does not announce the address because of the conflict. Only an address that was never announced
    /// is held back; an address that was announced before stays announced.
    pub held_back: bool,
    /// Time at which the node detected the conflict.
    pub since: Time,
}

/// A node that announces the address on one of its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcer {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: InternedStr,
    /// Network interface of the node.
    #[schemars(length(max = 15))]
    pub link: InternedStr,
    /// Number of the claim. Each takeover of the address raises it. If two nodes claim the address, the greater epoch
    /// wins.
    pub epoch: i64,
    /// Time at which the node began to announce the address.
    pub since: Time,
    /// Takeover of the address from another node. Absent: no previous announcer is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Takeover>,
    /// How this node forwards packets from clients to endpoints. `Spread`: through the nodes that run the endpoints;
    /// the endpoints see the client address. `Translated`: by this node; endpoints on other nodes see the address of
    /// this node. `Mixed`: both. `Proxied`: by the Service proxy. Absent: Landfall does not forward packets on this
    /// node (`--dataplane=off`), or the agent has an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 63))]
    pub reach: Option<Reach>,
    /// Parts of the Services that this node does not forward as specified. At most 100. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HOLDERS))]
    pub unforwarded: Vec<ForwardingProblem>,
}

/// Takeover of an address from another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Takeover {
    /// Node that announced the address before.
    #[schemars(length(max = 253))]
    pub from: InternedStr,
    /// Why the previous node lost the address. `died`: no Hello arrived from it. `deaf`: it reported that it receives
    /// no Hellos. `left`: it reported that it shuts down. `ceded`: it ceded the address to a preferred node and
    /// announced it until the takeover. `released`: it had already withdrawn the address.
    #[schemars(length(max = 32))]
    pub cause: InternedStr,
    /// Time from the last Hello of the previous node to the announcement by this node, in milliseconds. If the previous
    /// node died, the outage was at most this long, because the node died after that Hello. If the previous node ceded
    /// the address, there was no outage.
    #[schemars(range(min = 0))]
    pub took_milliseconds: i64,
}

impl LoadBalancerIP {
    /// The address.
    ///
    /// # Errors
    /// If the name does not match `spec.address`. The caller must ignore such an object.
    pub fn address(&self) -> Result<IpAddr, Malformed> {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        match (address::parse_object_name(name), self.spec.address.parse::<IpAddr>()) {
            (Some(from_name), Ok(from_spec)) if from_name == from_spec => Ok(from_name),
            _ => Err(Malformed {
                kind: "LoadBalancerIP",
                name: name.to_owned(),
                problem: format!("the name does not match spec.address {:?}", self.spec.address),
            }),
        }
    }
}

/// The fields of a [`LoadBalancerIP`] that Landfall uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The load-balancer address.
    pub address: IpAddr,
    /// UID of the object.
    pub uid: InternedStr,
    /// Version for conditional writes.
    pub resource_version: ResourceVersion,
    /// Whether the object is being deleted and waits for finalizers. Until the object is removed, its `holders` do not
    /// count, and the address is not assigned.
    pub deleting: bool,
    /// Pool of the address.
    pub pool: InternedStr,
    /// Services that hold the address, oldest holder first.
    pub holders: Vec<Holder>,
    /// Sharing key of the holders.
    pub sharing_key: Option<InternedStr>,
    /// `spec.reservation`. See also [`Record::is_reservation`].
    pub reservation: Option<Box<Reservation>>,
    /// `spec.quarantine`.
    pub quarantine: Option<Box<Quarantine>>,
    /// Nodes that announce the address. Each node reports itself.
    pub announcers: Vec<Announcer>,
    /// Time of the first announcement.
    pub first_announced: Option<Time>,
    /// Hosts outside the cluster that use the address, as reported by nodes.
    pub conflicts: Vec<AddressConflict>,
}

impl Record {
    /// Whether the object stays even if no Service uses the address.
    pub fn is_reservation(&self) -> bool {
        self.reservation.is_some() || (self.holders.is_empty() && self.quarantine.is_none())
    }
}

impl TryFrom<&LoadBalancerIP> for Record {
    type Error = Malformed;

    fn try_from(object: &LoadBalancerIP) -> Result<Self, Malformed> {
        let meta = &object.metadata;
        let status = object.status.clone().unwrap_or_default();
        Ok(Self {
            address: object.address()?,
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            resource_version: version(meta),
            deleting: meta.deletion_timestamp.is_some(),
            pool: object.spec.pool.as_str().into(),
            holders: object.spec.services.clone(),
            sharing_key: object.spec.sharing_key.as_deref().map(InternedStr::from),
            reservation: object.spec.reservation.clone().map(Box::new),
            quarantine: object.spec.quarantine.clone().map(Box::new),
            announcers: status.announcers,
            first_announced: status.first_announced,
            conflicts: status.conflicts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::ProblemReason;

    fn object(name: &str, address: &str) -> LoadBalancerIP {
        LoadBalancerIP::new(name, LoadBalancerIPSpec { address: address.into(), ..LoadBalancerIPSpec::default() })
    }

    #[test]
    fn record_has_all_fields_of_the_object() {
        let object: LoadBalancerIP = serde_json::from_value(serde_json::json!({
            "apiVersion": "landfall.dev/v1alpha1",
            "kind": "LoadBalancerIP",
            "metadata": {
                "name": "192.0.2.1", "uid": "a1", "resourceVersion": "7", "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "address": "192.0.2.1",
                "pool": "lan",
                "services": [{"namespace": "default", "name": "web", "uid": "u1", "terms": "t1"}],
                "sharingKey": "k",
                "reservation": {"namespace": "default"},
                "quarantine": {
                    "mac": "02:00:00:00:00:99", "node": "n1", "link": "eth0", "since": "1970-01-01T00:00:00Z",
                    "service": {"namespace": "default", "name": "web", "uid": "u1"},
                },
            },
            "status": {
                "announcers": [{
                    "node": "n1", "link": "eth0", "epoch": 3, "since": "1970-01-01T00:00:00Z", "reach": "Spread",
                    "unforwarded": [{
                        "namespace": "default", "name": "web", "reason": "EndpointsRefused", "what": "127.0.0.1",
                    }],
                }],
                "firstAnnounced": "1970-01-01T00:00:00Z",
                "conflicts": [{
                    "node": "n1", "link": "eth0", "mac": "02:00:00:00:00:99", "heldBack": true,
                    "since": "1970-01-01T00:00:00Z",
                }],
            },
        }))
        .expect("a LoadBalancerIP");
        assert_eq!(
            Record::try_from(&object),
            Ok(Record {
                address: "192.0.2.1".parse().expect("address"),
                uid: "a1".into(),
                resource_version: 7,
                deleting: true,
                pool: "lan".into(),
                holders: vec![Holder {
                    namespace: "default".into(),
                    name: "web".into(),
                    uid: "u1".into(),
                    terms: Some("t1".into()),
                }],
                sharing_key: Some("k".into()),
                reservation: Some(Box::new(Reservation { namespace: Some("default".into()), service: None })),
                quarantine: Some(Box::new(Quarantine {
                    mac: "02:00:00:00:00:99".into(),
                    node: "n1".into(),
                    link: "eth0".into(),
                    since: Time(jiff::Timestamp::UNIX_EPOCH),
                    service: Holder { namespace: "default".into(), name: "web".into(), uid: "u1".into(), terms: None },
                })),
                announcers: vec![Announcer {
                    node: "n1".into(),
                    link: "eth0".into(),
                    epoch: 3,
                    since: Time(jiff::Timestamp::UNIX_EPOCH),
                    moved: None,
                    reach: Some(Reach::Spread),
                    unforwarded: vec![ForwardingProblem {
                        namespace: "default".into(),
                        name: "web".into(),
                        reason: ProblemReason::EndpointsRefused,
                        what: "127.0.0.1".into(),
                    }],
                }],
                first_announced: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
                conflicts: vec![AddressConflict {
                    node: "n1".into(),
                    link: "eth0".into(),
                    mac: "02:00:00:00:00:99".into(),
                    held_back: true,
                    since: Time(jiff::Timestamp::UNIX_EPOCH),
                }],
            })
        );
    }

    #[test]
    fn address_requires_that_name_and_spec_agree() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        assert_eq!(object("192.0.2.1", "192.0.2.1").address(), Ok(ip("192.0.2.1")));
        assert_eq!(object("2001-db8-0-0-0-0-0-1", "2001:db8::1").address(), Ok(ip("2001:db8::1")));
        assert!(object("192.0.2.1", "192.0.2.2").address().is_err());
        assert!(object("web", "192.0.2.2").address().is_err());
    }
}
