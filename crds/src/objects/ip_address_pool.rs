//! `IPAddressPool`: addresses that an administrator lends to Landfall.

#![allow(clippy::duplicated_attributes, reason = "the columns of `kubectl get` may share a type")]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::address::{InvalidRange, Range};
use crate::labels::Labels;

/// The most ranges a pool may have: enough for any plan of addresses, and a bound on what validation costs.
const MAX_RANGES: usize = 256;

/// The most namespaces or selectors a pool may name, for the same reason.
const MAX_NAMES: usize = 256;

/// How long a freed address rests unless the pool says otherwise. Neighbour caches keep an entry for about a minute
/// after its last use (RFC 1122 §2.3.2.1 asks for that order), and clients keep what DNS told them about as long.
pub const REUSE_AFTER: Duration = Duration::from_secs(60);

/// Addresses that Landfall may give to Services of type LoadBalancer. One pool is enough to start: its addresses are
/// given to whichever Service asks, and announced on the network they belong to.
///
/// Choose addresses of your nodes' network that nothing else uses: outside of the DHCP range, and none of the nodes'
/// or the router's own.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "landfall.dev",
    version = "v1alpha1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    shortname = "lbpool",
    category = "landfall",
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    doc = "Addresses that Landfall may give to Services of type LoadBalancer. A pool alone is enough: its addresses are \
           announced on the network they belong to.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto-Assign", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.assignedIPv4"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.availableIPv4"),
    printcolumn(name = "Used-IPv6", type_ = "integer", json_path = ".status.assignedIPv6"),
    printcolumn(name = "Free-IPv6", type_ = "integer", json_path = ".status.availableIPv6"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolSpec {
    /// The addresses of this pool, each a CIDR (`192.0.2.0/28`), a range with both ends included
    /// (`192.0.2.10-192.0.2.20`) or one address (`192.0.2.10`), IPv4 or IPv6. Where two pools share addresses, those
    /// belong to the older pool, and the other one says so in its conditions.
    ///
    /// The first and the last address of an IPv4 CIDR are, on a network of that size, the network's own and the
    /// broadcast address; the first one of an IPv6 CIDR is that of its routers (RFC 4291 §2.6.1). They are given only to
    /// a Service that asks for them by name. Addresses that a node or a node's gateway has are never given. Services keep
    /// what they have when a pool shrinks or goes.
    #[schemars(length(min = 1, max = MAX_RANGES))]
    pub addresses: Vec<AddressRange>,

    /// Addresses that are not to be given to anybody, written as in `addresses`. Default: none. A Service that has one
    /// already keeps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RANGES))]
    pub exclude: Vec<AddressRange>,

    /// Whether a Service that asks neither for this pool nor for one of its addresses may get one. Default: true.
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Whether to leave out IPv4 addresses that end in .0 or .255, which some old network devices take for broadcast
    /// addresses. They are then given to nobody, not even on request. Default: false.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Which Services may have addresses of this pool, and in which order pools are tried for them. Default: all
    /// Services may, after all pools that have a `serviceAllocation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,

    /// How many addresses of this pool, IPv4 and IPv6 together, the Services of one namespace may have at a time. A
    /// shared address counts once. Default: no limit. Services that have more already keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("format" = "int32"))]
    pub max_per_namespace: Option<u32>,

    /// How long an address rests after its last Service has given it up, so that clients and network devices forget
    /// whose it was: a duration such as `60s` or `1h30m`. Default: `60s`. Until then it is given only to the Service
    /// that had it (by namespace and name), to who asks for it by name, or when this pool has no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(
        "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$')"
    ).message("write a duration such as 60s or 1h30m"))]
    pub reuse_after: Option<String>,

    /// Whether this pool is to be emptied: no address of it is given any more, not even on request. Services keep what
    /// they have; `status.heldBy` names them, and the condition `Drained` turns true when there are none left. Default:
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,

    /// Whether the node that announces an address of this pool hands what comes to it on to the nodes with endpoints, which
    /// then see the client. With `false` it translates all of it itself, for every Service that has an address of this pool.
    /// Default: true. It can be switched off for one Service too, by its annotation `landfall.dev/spread: "false"`.
    #[serde(default = "yes")]
    pub spread: bool,
}

/// What a node agent has to know of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Its labels, by which advertisements select it.
    pub labels: Arc<Labels>,
    /// Whether packets to its addresses are spread over nodes.
    pub spread: bool,
}

impl From<&IPAddressPool> for PoolSettings {
    fn from(pool: &IPAddressPool) -> Self {
        Self { labels: Arc::new(Labels::from(pool.metadata.labels.as_ref())), spread: pool.spec.spread }
    }
}

impl IPAddressPoolSpec {
    /// How long an address rests. What can't be read counts as the default: the API server has checked it, unless the
    /// object was stored before the rule was.
    pub fn reuse_after(&self) -> Duration {
        let written: Option<kube::core::Duration> = self.reuse_after.as_deref().and_then(|text| text.parse().ok());
        written.map_or(REUSE_AFTER, Duration::from)
    }
}

/// Which Services may have addresses of a pool, and in which order pools are tried for them. It has the meaning that
/// MetalLB gives it: a Service must be in one of `namespaces` or match one of `namespaceSelectors` (where both are
/// empty, any namespace will do), and match one of `serviceSelectors` (where that is empty, any Service will do). No
/// request gets past that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Pools with a lower number are tried first. Default: 0, which is tried after all others. Of pools with the same
    /// number the oldest is tried first.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub priority: i32,

    /// Names of namespaces whose Services may have addresses of this pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub namespaces: Vec<String>,

    /// Labels of such namespaces, each entry a selector of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Labels of Services that may have addresses of this pool, each entry a selector of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub service_selectors: Vec<LabelSelector>,
}

fn yes() -> bool {
    true
}

impl Default for IPAddressPoolSpec {
    /// No addresses, and of all other fields the default that the API server fills in.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            exclude: Vec::new(),
            auto_assign: yes(),
            avoid_buggy_ips: false,
            service_allocation: None,
            max_per_namespace: None,
            reuse_after: None,
            drain: false,
            spread: yes(),
        }
    }
}

/// What Landfall says of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// How many IPv4 addresses of this pool are given to Services or reserved.
    #[serde(default, rename = "assignedIPv4")]
    pub assigned_ipv4: i64,

    /// How many IPv6 addresses of this pool are given to Services or reserved.
    #[serde(default, rename = "assignedIPv6")]
    pub assigned_ipv6: i64,

    /// How many IPv4 addresses are left that a Service can get without asking for one by name. Those that rest count.
    #[serde(default, rename = "availableIPv4")]
    pub available_ipv4: i64,

    /// How many IPv6 addresses are left. A number too large to write is written as the largest that fits, 2^63 - 1.
    #[serde(default, rename = "availableIPv6")]
    pub available_ipv6: i64,

    /// While `spec.drain` is set: the Services that still have addresses of this pool, as `namespace/name`, in order; at
    /// most the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,

    /// `Ready`: whether addresses of this pool are given out, and if not, why not. `Overlap`: whether some of its
    /// addresses belong to an older pool as well. `Exhausted`: whether it has no free address left, and of which family.
    /// `Drained` (while `spec.drain` is set): whether no Service has an address of it any more.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// The schema of a list of conditions: keyed by type, so that several writers can each keep their own.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<v1::Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// One range as the user wrote it. The API server has checked it (see the rules of its schema) unless the object was
/// stored before the rules were: [`AddressRange::parse`] checks again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddressRange(pub String);

impl AddressRange {
    /// The range that is meant.
    ///
    /// # Errors
    /// If the text is not a range; the error says why.
    pub fn parse(&self) -> Result<Range, InvalidRange> {
        self.0.parse()
    }
}

impl JsonSchema for AddressRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AddressRange".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// The rules that the API server checks before an object is stored, each with the message that the user reads.
    /// A rule must not fail on what an earlier one refuses: all of them are evaluated.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // CEL has no order on addresses, but octets are numbers. For IPv6 the controller checks the order and says so
        // on the pool.
        let octets = |end: usize| {
            (0..4)
                .map(|octet| {
                    format!("int(self.split('-')[{end}].trim().split('.')[{octet}]) * {}", 1u64 << (24 - 8 * octet))
                })
                .collect::<Vec<_>>()
                .join(" + ")
        };
        let is_range = "self.split('-').size() == 2 && self.split('-').all(end, isIP(end.trim()))";
        let is_address = "isIP(self.trim())";
        let same_family = "ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()";
        let is_ipv4 = "ip(self.split('-')[0].trim()).family() == 4";
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 100,
            "x-kubernetes-validations": [
                {
                    "rule": format!("self.contains('/') ? isCIDR(self) : ({is_address} || {is_range})"),
                    "messageExpression": "\"'\" + self + \"' is neither a CIDR such as 192.0.2.0/28 nor a range such \
                        as 192.0.2.10-192.0.2.20 nor an address\"",
                },
                {
                    "rule": format!("self.contains('/') || !({is_range}) || {same_family}"),
                    "messageExpression": "\"'\" + self + \"' goes from one address family to the other\"",
                },
                {
                    "rule": format!(
                        "self.contains('/') || !({is_range}) || !({same_family}) || !({is_ipv4}) || {} <= {}",
                        octets(0), octets(1),
                    ),
                    "messageExpression": "\"'\" + self + \"' ends before it begins\"",
                },
            ],
        })
    }
}
