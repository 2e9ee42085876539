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

use crate::{Malformed, address};

/// One address that is given to a Service. Made by Landfall; to see who has which address: `kubectl get lbip`.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "LoadBalancerIP",
    plural = "loadbalancerips",
    shortname = "lbip",
    category = "landfall",
    status = "LoadBalancerIPStatus",
    derive = "PartialEq",
    doc = "One address that is given to a Service, and who announces it. Its name is the address, which makes the API \
           server the judge of who has it. Made and deleted by Landfall.",
    validation = Rule::new(
        "self.metadata.name.contains('.') ? self.metadata.name == self.spec.address \
         : self.metadata.name.matches('^(0|[1-9a-f][0-9a-f]{0,3})(-(0|[1-9a-f][0-9a-f]{0,3})){7}$') \
         && isIP(self.spec.address) && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address)"
    ).message("the name must be the address: 192.0.2.10, or 2001-db8-0-0-0-0-0-1 for 2001:db8::1"),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.services[*].namespace"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.services[*].name"),
    printcolumn(name = "Announcer", type_ = "string", json_path = ".status.announcers[*].node"),
    printcolumn(name = "Link", type_ = "string", json_path = ".status.announcers[*].link", priority = 1),
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

    /// The pool it was taken from.
    #[schemars(length(max = 253))]
    pub pool: String,

    /// The Services that hold it.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub services: Vec<Holder>,
}

/// A Service that holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its UID: a Service that is deleted and made again under the same name is another one.
    #[schemars(length(max = 63))]
    pub uid: String,
}

/// Who announces the address, written by the announcer itself after the fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIPStatus {
    /// The nodes that announce it now, one for each link.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub announcers: Vec<Announcer>,
}

/// A node that announces an address on one of its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Announcer {
    /// The node's name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The network interface of the node.
    #[schemars(length(max = 15))]
    pub link: String,
    /// Counts the owners that this address has had. When two nodes claim it, the greater epoch wins.
    pub epoch: i64,
    /// When the node took it.
    pub since: Time,
}

impl LoadBalancerIP {
    /// The address, if name and spec agree on one.
    ///
    /// # Errors
    /// If they don't: then the object is nobody's word on anything.
    pub fn address(&self) -> Result<IpAddr, Malformed> {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        match (address::named(name), self.spec.address.parse::<IpAddr>()) {
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
    pub uid: String,
    /// What a conditional write must name.
    pub resource_version: String,
    /// Whether it is being deleted and waits for finalizers: nobody holds it any more, and nobody can have it yet.
    pub deleting: bool,
    /// The pool it was taken from.
    pub pool: String,
    /// The Services that hold it.
    pub holders: Vec<Holder>,
    /// Who announces it, as the announcers say themselves.
    pub announcers: Vec<Announcer>,
}

impl TryFrom<&LoadBalancerIP> for Record {
    type Error = Malformed;

    fn try_from(object: &LoadBalancerIP) -> Result<Self, Malformed> {
        let meta = &object.metadata;
        Ok(Self {
            address: object.address()?,
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            pool: object.spec.pool.clone(),
            holders: object.spec.services.clone(),
            announcers: object.status.as_ref().map(|status| status.announcers.clone()).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, address: &str) -> LoadBalancerIP {
        let spec = LoadBalancerIPSpec { address: address.into(), pool: "lan".into(), services: vec![] };
        LoadBalancerIP::new(name, spec)
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
                "services": [{"namespace": "default", "name": "web", "uid": "u1"}],
            },
            "status": {"announcers": [{"node": "n1", "link": "eth0", "epoch": 3, "since": "1970-01-01T00:00:00Z"}]},
        }))
        .expect("a LoadBalancerIP");
        assert_eq!(
            Record::try_from(&object),
            Ok(Record {
                address: "192.0.2.1".parse().expect("address"),
                uid: "a1".into(),
                resource_version: "7".into(),
                deleting: true,
                pool: "lan".into(),
                holders: vec![Holder { namespace: "default".into(), name: "web".into(), uid: "u1".into() }],
                announcers: vec![Announcer {
                    node: "n1".into(),
                    link: "eth0".into(),
                    epoch: 3,
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
