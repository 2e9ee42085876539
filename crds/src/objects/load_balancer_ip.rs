//! `LoadBalancerIP`: one address in use, and the truth about who holds it.
//!
//! The object is named by the address, so the API server itself sees to it that an address is given once: the second
//! create is refused. Nothing is announced or forwarded but what has such an object.

#![allow(clippy::duplicated_attributes, reason = "the columns of `kubectl get` may share a type")]

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::forwarding::{ForwardingProblem, Reach};
use crate::service::{Key, version};
use crate::{InternedStr, Malformed, ResourceVersion, address};

/// One address that is given to a Service, or reserved. To see who has which address: `kubectl get lbip`.
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
    doc = "One address that is given to Services, and who announces it. Its name is the address, which makes the API \
           server the judge of who has it. Made and deleted by Landfall, except for reservations: create one without \
           services to keep an address, and it outlives the Services that use it.",
    selectable = ".spec.pool",
    validation = Rule::new(
        "self.metadata.name.contains('.') ? self.metadata.name == self.spec.address \
         : self.metadata.name.matches('^(0|[1-9a-f][0-9a-f]{0,3})(-(0|[1-9a-f][0-9a-f]{0,3})){7}$') \
         && isIP(self.spec.address) && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address)"
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
    /// The address, in its canonical form. It never changes.
    #[schemars(length(max = 45))]
    #[x_kube(
        validation = Rule::new("isIP(self) && ip.isCanonical(self)").message("not an address in canonical form"),
        validation = Rule::new("self == oldSelf").message("the address of a LoadBalancerIP never changes")
    )]
    pub address: String,

    /// The pool it was taken from. Leave it out of a reservation: Landfall fills it in when a Service uses it.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub pool: String,

    /// The Services that hold it, in the order in which they came to it. Written by Landfall alone.
    #[serde(default)]
    #[schemars(length(max = MAX_HOLDERS))]
    pub services: Vec<Holder>,

    /// The key by which Services share it: their annotation `landfall.dev/allow-shared-ip`. Absent: it is not shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub sharing_key: Option<String>,

    /// Set on an address that is kept whether or not a Service uses it. It is given only to a Service that asks for it
    /// by name, or that is named here. One that is created without `services` is a reservation in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.namespace) || !has(self.service)").message(
        "a reservation for a Service must name its namespace too"
    ))]
    pub reservation: Option<Reservation>,

    /// Set by Landfall on an address that was about to be announced for the first time when somebody else on the LAN turned
    /// out to use it: its Service has got another one, and for ten minutes nobody gets this one. Then the object is deleted,
    /// and the address is tried again. Delete the object to have it tried at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
}

/// Why nobody gets an address for the time being.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quarantine {
    /// The MAC address of who uses it.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// The node that noticed.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The network interface on which it did.
    #[schemars(length(max = 15))]
    pub link: String,
    /// When the address was given up.
    pub since: Time,
    /// The Service that gave it up.
    pub service: Holder,
}

/// The most Services that may share an address: each has a port at least, and the object has to stay small.
pub const MAX_HOLDERS: usize = 100;

/// Whom an address is kept for. Empty: for any Service that asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// Only Services of this namespace may have it. Default: those of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<InternedStr>,

    /// Only the Service of this name in that namespace may have it, and gets it without asking. Default: any that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub service: Option<InternedStr>,
}

/// A Service that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: InternedStr,
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: InternedStr,
    /// Its UID: a Service that is deleted and made again under the same name is another one.
    #[schemars(length(max = 63))]
    pub uid: InternedStr,
    /// Of a Service that shares: a fingerprint of what it shares under (key, ports, traffic policy and selector). Of
    /// two that do not fit together any more, the one that has changed since loses the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub terms: Option<InternedStr>,
}

impl Holder {
    /// The Service by its name.
    pub fn service(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }
}

/// Who announces the address and who else uses it, written by the nodes themselves after the fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIPStatus {
    /// The nodes that announce it now, one for each link.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub announcers: Vec<Announcer>,

    /// When it was announced for the first time. From then on it is in use, and its Services keep it even if somebody else
    /// on the LAN uses it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_announced: Option<Time>,

    /// Who else on the LAN uses the address, as the nodes see it that announce it or would. Absent: nobody is known to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conflicts: Vec<AddressConflict>,
}

/// Somebody on the LAN, and no node of this cluster, uses an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressConflict {
    /// The node that noticed.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The network interface on which it did.
    #[schemars(length(max = 15))]
    pub link: String,
    /// The MAC address of who uses it.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Whether the node doesn't announce the address because of that: so it is with an address that was never announced.
    /// One that was announced before goes on being announced.
    pub held_back: bool,
    /// When the node noticed.
    pub since: Time,
}

/// A node that announces an address on one of its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcer {
    /// The node's name.
    #[schemars(length(max = 253))]
    pub node: InternedStr,
    /// The network interface of the node.
    #[schemars(length(max = 15))]
    pub link: InternedStr,
    /// Counts the owners that this address has had. When two nodes claim it, the greater epoch wins.
    pub epoch: i64,
    /// When the node took it.
    pub since: Time,
    /// How it came there from another node. Absent: no other node is known to have had it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Takeover>,
    /// How packets from outside get from this node to endpoints: `Spread` over the nodes that these are on, so that they see
    /// the client; `Translated` by this node, which endpoints elsewhere see instead; `Mixed`; or `Proxied`, as the node's
    /// Service proxy or another one sends them. Absent: Landfall forwards nothing there, or the agent is of an older
    /// version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 63))]
    pub reach: Option<Reach>,
    /// What of the Services is not forwarded from this node as it is written. Absent: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HOLDERS))]
    pub unforwarded: Vec<ForwardingProblem>,
}

/// How an address came to a node from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Takeover {
    /// The node that had it before.
    #[schemars(length(max = 253))]
    pub from: InternedStr,
    /// What became of that node: `died` (it was not heard any more), `deaf` (it said that it hears nobody), `left` (it was
    /// about to stop, and said so), `ceded` (it left the address to a node that should rather have it, and went on until that
    /// one had it), `released` (it had given the address up already).
    #[schemars(length(max = 32))]
    pub cause: InternedStr,
    /// How long that node had not been heard, in milliseconds, when the address was announced from here. If it died, clients
    /// lost the address for so long at most: it may have died at any moment after it was heard last. In any other case the
    /// node went on answering until the address was taken over.
    #[schemars(range(min = 0))]
    pub took_milliseconds: i64,
}

impl LoadBalancerIP {
    /// The address, if name and spec agree on one.
    ///
    /// # Errors
    /// If they don't: then the object is nobody's word on anything.
    pub fn address(&self) -> Result<IpAddr, Malformed> {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        match (address::parse_object_name(name), self.spec.address.parse::<IpAddr>()) {
            (Some(named), Ok(written)) if named == written => Ok(named),
            _ => Err(Malformed {
                kind: "LoadBalancerIP",
                name: name.to_owned(),
                problem: format!("the name is not that of its address {:?}", self.spec.address),
            }),
        }
    }
}

/// What Landfall reads of a [`LoadBalancerIP`]: who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The address.
    pub address: IpAddr,
    /// Which of all objects that ever had this name it is.
    pub uid: InternedStr,
    /// What a conditional write must name.
    pub resource_version: ResourceVersion,
    /// Whether it is being deleted and waits for finalizers: nobody holds it any more, and nobody can have it yet.
    pub deleting: bool,
    /// The pool it was taken from.
    pub pool: InternedStr,
    /// The Services that hold it, in the order in which they came to it.
    pub holders: Vec<Holder>,
    /// The key by which they share it.
    pub sharing_key: Option<InternedStr>,
    /// Whom it is kept for, if it is a reservation.
    pub reservation: Option<Box<Reservation>>,
    /// Why nobody is to get it, if so.
    pub quarantine: Option<Box<Quarantine>>,
    /// Who announces it, as the announcers say themselves.
    pub announcers: Vec<Announcer>,
    /// When it was announced for the first time, if it ever was.
    pub first_announced: Option<Time>,
    /// Who else uses it, as nodes say that noticed.
    pub conflicts: Vec<AddressConflict>,
}

impl Record {
    /// Whether it is kept whether or not a Service uses it.
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
    fn a_record_is_read_whole() {
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
    fn the_address_is_what_name_and_spec_agree_on() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        assert_eq!(object("192.0.2.1", "192.0.2.1").address(), Ok(ip("192.0.2.1")));
        assert_eq!(object("2001-db8-0-0-0-0-0-1", "2001:db8::1").address(), Ok(ip("2001:db8::1")));
        assert!(object("192.0.2.1", "192.0.2.2").address().is_err());
        assert!(object("web", "192.0.2.2").address().is_err());
    }
}
