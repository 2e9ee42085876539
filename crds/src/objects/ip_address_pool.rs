//! `IPAddressPool`: addresses that Landfall may assign to Services.

#![allow(clippy::duplicated_attributes, reason = "printer columns may share a type")]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::address::{InvalidRange, Range};
use crate::labels::Labels;
use crate::objects::range_rules;

/// Maximum number of ranges in a list of a pool. Bounds the cost of CEL validation.
const MAX_RANGES: usize = 256;

/// Maximum number of namespaces or selectors in a list of a pool. Bounds the cost of matching.
const MAX_NAMES: usize = 256;

/// Default cool-down of a released address. Neighbour caches keep an unused entry for about a minute (RFC 1122
/// §2.3.2.1). Clients cache DNS records for a similar time.
pub const REUSE_AFTER: Duration = Duration::from_secs(60);

/// Addresses that Landfall may assign to Services of type LoadBalancer. One pool is enough to start: it serves all
/// Services, and its addresses are announced on the network that they belong to.
///
/// Choose unused addresses of your nodes' network: outside the DHCP range, and not the address of a node or router.
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
    doc = "Addresses that Landfall may assign to Services of type LoadBalancer. No other object is required: the \
           addresses are announced on the network that they belong to.",
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
    /// Addresses of this pool, IPv4 or IPv6. Each entry is a CIDR (`192.0.2.0/28`), a range that includes both ends
    /// (`192.0.2.10-192.0.2.20`) or a single address (`192.0.2.10`). At least 1 and at most 256 entries. An address in
    /// two pools belongs to the older pool; the condition `Overlap` of the younger pool reports it.
    ///
    /// The first and the last address of an IPv4 CIDR are assigned only if a Service requests them: they can be the
    /// network address and the broadcast address. The same holds for the first address of an IPv6 CIDR: it can be the
    /// anycast address of the routers (RFC 4291 §2.6.1). A CIDR of one or two addresses has no such exception.
    /// Addresses of nodes and of their gateways are never assigned, and neither are the ends of a network of nodes.
    /// Services keep their addresses when a range is removed or the pool is deleted.
    #[schemars(length(min = 1, max = MAX_RANGES))]
    pub addresses: Vec<AddressRange>,

    /// Addresses of this pool that are never assigned, in the notation of `addresses`. At most 256 entries. Default:
    /// none. A Service that already holds such an address keeps it. Example: `192.0.2.12-192.0.2.14`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RANGES))]
    pub exclude: Vec<AddressRange>,

    /// Whether a Service can get an address of this pool without requesting the pool or the address. Default: true.
    #[serde(default = "default_true")]
    pub auto_assign: bool,

    /// Whether to skip IPv4 addresses that end in .0 or .255. Some old network devices treat them as broadcast
    /// addresses. Skipped addresses are not assigned, even on request. Default: false.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// Which Services may get addresses of this pool, and in which order pools are tried. Default: all Services; the
    /// pool is tried after all pools with a `serviceAllocation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,

    /// Maximum number of addresses of this pool that the Services of one namespace can hold at the same time. IPv4 and
    /// IPv6 addresses count together. A shared address counts once. At least 1. Default: no limit. Services that
    /// already exceed the limit keep their addresses. Example: `5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("format" = "int32"))]
    pub max_per_namespace: Option<u32>,

    /// Cool-down of an address after its last Service released it. Meanwhile clients and network devices drop stale
    /// cache entries. A duration such as `60s` or `1h30m`. Default: `60s`. During the cool-down, the address is only
    /// assigned to the Service that held it (same namespace and name) or to a Service that requests it. If this pool
    /// has no other free address of that family, any Service can get the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(
        "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$')"
    ).message("must be a duration such as 60s or 1h30m"))]
    pub reuse_after: Option<String>,

    /// Whether to drain this pool: its addresses are no longer assigned, even on request. Services keep the addresses
    /// that they hold. `status.heldBy` lists these Services. The condition `Drained` becomes true when no Service holds
    /// an address of this pool. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,

    /// Whether the announcing node spreads packets: it re-sends them to the nodes that run the endpoints. Then the
    /// endpoints see the client address. With `false` the announcing node translates all packets itself, for every
    /// Service that holds an address of this pool. Default: true. To disable spreading for one Service, annotate the
    /// Service with `landfall.dev/spread: "false"`.
    #[serde(default = "default_true")]
    pub spread: bool,
}

/// The fields of a pool that node agents use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Labels of the pool, matched by L2Advertisements.
    pub labels: Arc<Labels>,
    /// `spec.spread`.
    pub spread: bool,
}

impl From<&IPAddressPool> for PoolSettings {
    fn from(pool: &IPAddressPool) -> Self {
        Self { labels: Arc::new(Labels::from(pool.metadata.labels.as_ref())), spread: pool.spec.spread }
    }
}

impl IPAddressPoolSpec {
    /// Cool-down of released addresses. An invalid value counts as the default: the API server checks the value, but
    /// the object can be older than the check.
    pub fn reuse_after(&self) -> Duration {
        let written: Option<kube::core::Duration> = self.reuse_after.as_deref().and_then(|text| text.parse().ok());
        written.map_or(REUSE_AFTER, Duration::from)
    }
}

/// Which Services may get addresses of a pool, and in which order pools are tried. The fields mean the same as in
/// MetalLB. A Service is admitted if both conditions hold:
///
/// - Its namespace is in `namespaces` or matches one of `namespaceSelectors`, or both lists are empty.
/// - The Service matches one of `serviceSelectors`, or that list is empty.
///
/// A request does not bypass these limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Order of the pools: 1 is tried first, higher numbers later, and 0 last. Among equal numbers the oldest pool is
    /// tried first. Minimum: 0. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub priority: i32,

    /// Namespaces whose Services are admitted, by name. The namespaces that `namespaceSelectors` matches are admitted
    /// too. At most 256 entries. Example: `team-a`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub namespaces: Vec<String>,

    /// Namespaces whose Services are admitted, by label: each namespace that matches at least one entry. The namespaces
    /// in `namespaces` are admitted too. At most 256 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub namespace_selectors: Vec<LabelSelector>,

    /// Services that are admitted, by label: each Service that matches at least one entry. Default: all Services. At
    /// most 256 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES))]
    pub service_selectors: Vec<LabelSelector>,
}

fn default_true() -> bool {
    true
}

impl Default for IPAddressPoolSpec {
    /// No addresses; all other fields have the default that the API server sets.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            exclude: Vec::new(),
            auto_assign: default_true(),
            avoid_buggy_ips: false,
            service_allocation: None,
            max_per_namespace: None,
            reuse_after: None,
            drain: false,
            spread: default_true(),
        }
    }
}

/// Observed state of a pool. Written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// Number of IPv4 addresses of this pool that are held by Services or reserved.
    #[serde(default, rename = "assignedIPv4")]
    pub assigned_ipv4: i64,

    /// Number of IPv6 addresses of this pool that are held by Services or reserved.
    #[serde(default, rename = "assignedIPv6")]
    pub assigned_ipv6: i64,

    /// Number of IPv4 addresses that a Service can get without requesting a specific address. Includes addresses in
    /// cool-down.
    #[serde(default, rename = "availableIPv4")]
    pub available_ipv4: i64,

    /// Number of IPv6 addresses that a Service can get without requesting a specific address. Includes addresses in
    /// cool-down. Greater numbers are reported as 2^63 - 1.
    #[serde(default, rename = "availableIPv6")]
    pub available_ipv6: i64,

    /// Services that still hold addresses of this pool while `spec.drain` is true, as `namespace/name`, sorted. At most
    /// 100 entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,

    /// `Ready` is true if Services can get addresses of this pool, and if its spec has no error. `Overlap` is true if
    /// some of its addresses belong to an older pool. `Exhausted` is true if the pool has no free address of a family
    /// that it assigns. `Drained` exists only while `spec.drain` is true; it is true if no Service holds an address of
    /// this pool. `Conflict` exists only while addresses of this pool are quarantined because hosts outside the cluster
    /// use them. `OffSubnet` exists only while no network of a node contains some of its addresses: clients need a
    /// route to these. `OverlapsCluster` exists only while nodes, pods or Services of the cluster use some of its
    /// addresses. `ExcessNodeAddresses` exists only while agents report more addresses of pools as their own than a
    /// node can withhold, and this pool assigns some of these.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Schema of a list of conditions. The API server treats the list as a map by type, so that each writer can own its
/// conditions.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<v1::Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// One range as written by the user. The API server checks it with the rules of the schema, but the object can be older
/// than these rules. So [`AddressRange::parse`] checks again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddressRange(pub String);

impl AddressRange {
    /// Parses the range.
    ///
    /// # Errors
    /// If the text is not a valid range.
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

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 100,
            "x-kubernetes-validations": range_rules::for_range(),
        })
    }
}
