//! `IPAddressPool`: addresses that an administrator lends to Landfall.

#![allow(clippy::duplicated_attributes, reason = "the columns of `kubectl get` may share a type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::address::{InvalidRange, Range};

/// The most ranges a pool may have: enough for any plan of addresses, and a bound on what validation costs.
const MAX_RANGES: usize = 256;

/// Addresses that Landfall may give to Services of type LoadBalancer. One pool is enough to start: its addresses are
/// given to whichever Service asks, and announced on the network they belong to.
///
/// Choose addresses of your nodes' network that nothing else uses: outside of the DHCP range, and none of the nodes'
/// or the router's own.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
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
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.assigned"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.available"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolSpec {
    /// The addresses of this pool, each a CIDR (`192.0.2.0/28`) or a range with both ends included
    /// (`192.0.2.10-192.0.2.20`), IPv4 or IPv6. Where two pools share addresses, those belong to the older pool, and
    /// the other one says so in its conditions.
    #[schemars(length(min = 1, max = MAX_RANGES))]
    pub addresses: Vec<AddressRange>,

    /// Whether a Service that does not ask for a particular address may get one of these. Default: true. With false,
    /// addresses of this pool are given only to Services that ask for one of them by name.
    #[serde(default = "yes")]
    pub auto_assign: bool,
}

fn yes() -> bool {
    true
}

/// What Landfall says of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    /// How many addresses of this pool are given to Services.
    #[serde(default)]
    pub assigned: i64,

    /// How many are left. A number too large to write is written as the largest that fits, 2^63 - 1.
    #[serde(default)]
    pub available: i64,

    /// `Ready`: whether addresses of this pool are given out, and if not, why not. `Overlap`: whether some of its
    /// addresses belong to another pool as well.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// The schema of a list of conditions: keyed by type, so that several writers can each keep their own.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<Condition>();
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
        let same_family = "ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()";
        let is_ipv4 = "ip(self.split('-')[0].trim()).family() == 4";
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 100,
            "x-kubernetes-validations": [
                {
                    "rule": format!("self.contains('/') ? isCIDR(self) : {is_range}"),
                    "messageExpression": "\"'\" + self + \"' is neither a CIDR such as 192.0.2.0/28 nor a range such \
                        as 192.0.2.10-192.0.2.20\"",
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
