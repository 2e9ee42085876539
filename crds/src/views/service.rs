//! The fields of a Service that Landfall uses.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::condition::Condition;
use crate::forwarding::{BACKEND, Backend, Forwarder};
use crate::labels::Labels;
use crate::request::{ParsedRequest, RequestedAddresses};
use crate::{InternedStr, Malformed, ResourceVersion};

/// The value of `spec.loadBalancerClass` that selects Landfall.
pub const CLASS: &str = "landfall.dev/landfall";

/// The finalizer that keeps a deleted Service until its addresses are withdrawn (KEP-980).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// The name of the controller in `metadata.managedFields`.
pub const CONTROLLER_MANAGER: &str = "landfall-controller";

/// The annotation that lists the source ranges of clients, separated by commas.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// The annotation that, with the value `"false"`, disables spreading: the announcing node forwards all packets itself.
const SPREAD: &str = "landfall.dev/spread";

/// Default timeout of session affinity in seconds: 3 hours, as in `ClientIPConfig.timeoutSeconds`.
const DEFAULT_AFFINITY: u32 = 10_800;

/// Condition type: whether Landfall has assigned the requested addresses to the Service.
pub const ALLOCATED: &str = "landfall.dev/Allocated";

/// Condition type: whether nodes announce the addresses of the Service. The message lists the nodes or the cause.
pub const ANNOUNCED: &str = "landfall.dev/Announced";

/// Condition type: how packets to the addresses of the Service reach its endpoints, and which packets do not.
pub const FORWARDING: &str = "landfall.dev/Forwarding";

/// Namespace and name of an object. Printed as `namespace/name`; ordered by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace of the object.
    pub namespace: InternedStr,
    /// Name of the object.
    pub name: InternedStr,
}

impl Key {
    /// Creates a key.
    pub fn new(namespace: impl Into<InternedStr>, name: impl Into<InternedStr>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Parses the name of a protocol as written in Kubernetes. `None` means TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// IANA protocol number, as in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Packets from clients may go to any endpoint.
    #[default]
    Cluster,
    /// Packets from clients go only to endpoints on the node that receives them.
    Local,
}

/// `spec.ipFamilyPolicy` (KEP-563): whether the Service needs an address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FamilyPolicy {
    /// One family: the first of `spec.ipFamilies`.
    #[default]
    SingleStack,
    /// Both families if available, otherwise one.
    PreferDualStack,
    /// Both families, or no address.
    RequireDualStack,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Name of the port; ports of EndpointSlices refer to it. Can be empty if the Service has one port.
    pub name: InternedStr,
    /// Transport protocol of the port.
    pub protocol: Protocol,
    /// Port number that clients use.
    pub number: u16,
    /// Node port: every node's Service proxy forwards this port to the same endpoints.
    pub node_port: Option<u16>,
}

/// An address family, as in `spec.ipFamilies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An ordered set of address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// The families, then padding: the first family again, or IPv4 in an empty set. So equal sets have equal fields.
    all: [Family; 2],
    count: u8,
}

impl std::ops::Deref for Families {
    type Target = [Family];

    fn deref(&self) -> &[Family] {
        &self.all[..usize::from(self.count)]
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<T: IntoIterator<Item = Family>>(families: T) -> Self {
        let mut families = families.into_iter();
        let Some(first) = families.next() else { return Self { all: [Family::V4; 2], count: 0 } };
        match families.find(|family| *family != first) {
            Some(second) => Self { all: [first, second], count: 2 },
            None => Self { all: [first; 2], count: 1 },
        }
    }
}

impl<T: AsRef<[Family]>> From<T> for Families {
    fn from(families: T) -> Self {
        families.as_ref().iter().copied().collect()
    }
}

/// The fields of a Service that Landfall uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Namespace and name of the Service.
    pub key: Key,
    /// UID of the Service.
    pub uid: InternedStr,
    /// Version for conditional writes.
    pub resource_version: ResourceVersion,
    /// `metadata.generation`, if the API server sets it for Services.
    pub generation: Option<i64>,
    /// Time of creation.
    pub created: Timestamp,
    /// Whether the Service is being deleted and waits for finalizers.
    pub deleting: bool,
    /// Whether the type is LoadBalancer. For other types, Landfall reads the other fields only to clean up.
    pub is_load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<InternedStr>,
    /// Requested addresses, or the error in the request.
    pub request: ParsedRequest,
    /// Labels of the Service.
    pub labels: Labels,
    /// `spec.selector`: the labels of its pods.
    pub selector: Labels,
    /// `spec.ipFamilies`.
    pub families: Families,
    /// `spec.ipFamilyPolicy`.
    pub family_policy: FamilyPolicy,
    /// `spec.ports`.
    pub ports: Vec<Port>,
    /// `spec.externalTrafficPolicy`.
    pub traffic_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`: an external load balancer can check on this port whether a node has endpoints. Set
    /// only with traffic policy Local.
    pub health_check_port: Option<u16>,
    /// `spec.loadBalancerSourceRanges`, not parsed. Empty: all clients are admitted.
    pub source_ranges: Box<[InternedStr]>,
    /// Source ranges in the annotation, not parsed. Used if `source_ranges` is empty.
    pub source_ranges_annotation: Option<InternedStr>,
    /// Timeout of the session affinity in seconds. `None`: no affinity (`spec.sessionAffinity` is not `ClientIP`).
    pub affinity: Option<u32>,
    /// Whether the annotation `landfall.dev/spread: "false"` is set: the announcing node forwards all packets itself.
    pub spread_disabled: bool,
    /// Backend in the annotation `landfall.dev/backend`, or its unknown value. `None`: the default of the cluster.
    pub backend: Option<Result<Backend, InternedStr>>,
    /// `spec.clusterIPs`: at most one per family.
    pub cluster_ips: Box<[IpAddr]>,
    /// All finalizers.
    pub finalizers: Vec<InternedStr>,
    /// Whether our controller added [`FINALIZER`], according to `metadata.managedFields`. Other providers use the same
    /// finalizer.
    pub owns_finalizer: bool,
    /// `status.loadBalancer.ingress`. Any user with access to the status can write it. So Landfall neither announces
    /// nor forwards an address because it is listed here.
    pub ingress: Vec<Ingress>,
    /// All conditions.
    pub conditions: Vec<Condition>,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ingress {
    /// The address, not parsed.
    pub ip: Option<InternedStr>,
    /// `VIP` or `Proxy`.
    pub ip_mode: Option<InternedStr>,
    /// The host name. Landfall never writes host names.
    pub hostname: Option<InternedStr>,
}

impl From<IpAddr> for Ingress {
    /// The entry that Landfall writes for `address`. Its mode `VIP` means that packets arrive with this address as
    /// their destination (KEP-1860).
    fn from(address: IpAddr) -> Self {
        Self { ip: Some(address.to_string().into()), ip_mode: Some("VIP".into()), hostname: None }
    }
}

impl Service {
    /// Whether Landfall serves this Service: it has type LoadBalancer and our class. A Service without a class is
    /// served if Landfall is the `default` provider of the cluster (KEP-1959).
    pub fn is_ours(&self, default: bool) -> bool {
        self.is_load_balancer && self.class.as_deref().map_or(default, |class| class == CLASS)
    }

    /// Whether the addresses in the status come from Landfall: whether the condition [`ALLOCATED`] is true. The
    /// controller writes this condition together with the addresses and the finalizer. Addresses and finalizer alone
    /// could be those of another provider.
    pub fn is_allocated(&self) -> bool {
        self.conditions.iter().any(|condition| condition.type_ == ALLOCATED && condition.status == "True")
    }

    /// Whether Landfall has assigned addresses to this Service. The Service may have lost them since. The condition
    /// proves the assignment. The finalizer of our controller proves it too: it stays while a refused Service keeps its
    /// addresses, also while no pool and no record exists. Records prove nothing: the release of an address deletes its
    /// record first.
    pub fn was_given_addresses(&self) -> bool {
        self.is_allocated() || self.owns_finalizer
    }

    /// The program that forwards packets to the Service. Landfall assigns and announces the addresses in any case.
    pub fn forwarder(&self) -> Forwarder {
        Forwarder::from(&self.labels)
    }

    /// The ClusterIP of this family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::from(*address) == family)
    }

    /// Clears the fields that do not affect forwarding. So node agents need less memory and see fewer changes.
    pub fn into_forwarding_view(self) -> Self {
        Self {
            resource_version: 0,
            generation: None,
            selector: Labels::default(),
            finalizers: Vec::new(),
            owns_finalizer: false,
            ingress: Vec::new(),
            conditions: Vec::new(),
            ..self
        }
    }

    /// Whether [`FINALIZER`] is set.
    pub fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

impl TryFrom<&core::Service> for Service {
    type Error = Malformed;

    fn try_from(object: &core::Service) -> Result<Self, Malformed> {
        let meta = &object.metadata;
        let key = key(meta);
        let malformed = |problem: String| Malformed { kind: "Service", name: key.to_string(), problem };
        let spec = object.spec.clone().unwrap_or_default();
        let ports = ports(&spec).map_err(malformed)?;
        let annotation = |name: &str| meta.annotations.as_ref()?.get(name);
        let families = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
        let status = object.status.clone().unwrap_or_default();
        let ingress = status.load_balancer.and_then(|balancer| balancer.ingress).unwrap_or_default();
        Ok(Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            resource_version: version(meta),
            generation: meta.generation,
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: meta.deletion_timestamp.is_some(),
            is_load_balancer: spec.type_.as_deref() == Some("LoadBalancer"),
            class: spec.load_balancer_class.map(InternedStr::from),
            request: RequestedAddresses::read(meta.annotations.as_ref(), spec.load_balancer_ip.as_deref()),
            labels: Labels::from(meta.labels.as_ref()),
            selector: Labels::from(spec.selector.as_ref()),
            families: families.collect(),
            family_policy: match spec.ip_family_policy.as_deref() {
                Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
                Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
                _ => FamilyPolicy::SingleStack,
            },
            ports,
            traffic_policy: match spec.external_traffic_policy.as_deref() {
                Some("Local") => TrafficPolicy::Local,
                _ => TrafficPolicy::Cluster,
            },
            health_check_port: spec
                .health_check_node_port
                .filter(|_| spec.external_traffic_policy.as_deref() == Some("Local"))
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0),
            source_ranges: spec.load_balancer_source_ranges.into_iter().flatten().map(InternedStr::from).collect(),
            source_ranges_annotation: annotation(SOURCE_RANGES).map(InternedStr::from),
            spread_disabled: annotation(SPREAD).is_some_and(|spread| spread == "false"),
            backend: annotation(BACKEND).map(|text| text.parse().map_err(InternedStr::from)),
            // A headless Service has the text `None` here, which is not an address.
            cluster_ips: spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect(),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
                timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_AFFINITY)
            }),
            finalizers: collect_exact(meta.finalizers.iter().flatten().map(InternedStr::from)),
            owns_finalizer: owns_finalizer(meta),
            ingress: collect_exact(ingress.into_iter().map(|entry| Ingress {
                ip: entry.ip.map(InternedStr::from),
                ip_mode: entry.ip_mode.map(InternedStr::from),
                hostname: entry.hostname.map(InternedStr::from),
            })),
            conditions: collect_exact(status.conditions.into_iter().flatten().map(Condition::from)),
            key,
        })
    }
}

/// Whether [`CONTROLLER_MANAGER`] owns [`FINALIZER`]. For each element of the list, the API server records the client
/// that added it.
fn owns_finalizer(meta: &ObjectMeta) -> bool {
    let entries = meta.managed_fields.iter().flatten();
    let own = entries.filter(|entry| entry.manager.as_deref() == Some(CONTROLLER_MANAGER));
    let element = format!("v:\"{FINALIZER}\"");
    own.filter_map(|entry| entry.fields_v1.as_ref())
        .any(|fields| fields.0["f:metadata"]["f:finalizers"].get(&element).is_some())
}

/// The ports of a Service, or the error in the first invalid port.
fn ports(spec: &core::ServiceSpec) -> Result<Vec<Port>, String> {
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    for port in spec.ports.iter().flatten() {
        let protocol =
            Protocol::parse(port.protocol.as_deref()).ok_or_else(|| format!("unknown protocol {:?}", port.protocol))?;
        let number = u16::try_from(port.port).map_err(|_| format!("port {} is out of range (1-65535)", port.port))?;
        if !seen.insert((protocol, number)) {
            return Err(format!("port {number}/{protocol} is listed twice"));
        }
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        ports.push(Port { name: port.name.as_deref().unwrap_or_default().into(), protocol, number, node_port });
    }
    Ok(collect_exact(ports.into_iter()))
}

pub(crate) fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// Collects items into a vector without spare capacity.
fn collect_exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.shrink_to_fit();
    items
}

/// The version of an object; 0 for an object that does not come from an API server.
pub(crate) fn version(meta: &ObjectMeta) -> ResourceVersion {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Result<Service, Malformed> {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "7", "generation": 3,
                "labels": {"tier": "front"}, "annotations": {
                    "landfall.dev/address-pool": "lan",
                    "service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24",
                    "landfall.dev/spread": "false", "landfall.dev/backend": "nodeport",
                },
            },
            "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}},
        }))
        .expect("a Service");
        Service::try_from(&object)
    }

    #[test]
    fn view_has_all_fields_of_the_service() {
        let read = service(json!({
            "type": "LoadBalancer",
            "selector": {"app": "web"},
            "loadBalancerIP": "192.0.2.1",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000,
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ipFamilies": ["IPv6", "IPv4"],
            "ipFamilyPolicy": "PreferDualStack",
            "clusterIPs": ["2001:db8::7", "10.96.0.7"],
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "dns-tcp", "port": 53},
            ],
        }))
        .expect("a view");
        let port = |name: &str, protocol, node_port| Port { name: name.into(), protocol, number: 53, node_port };
        assert_eq!(
            read,
            Service {
                key: Key::new("default", "web"),
                uid: "u1".into(),
                resource_version: 7,
                generation: Some(3),
                created: Timestamp::UNIX_EPOCH,
                deleting: false,
                is_load_balancer: true,
                class: None,
                request: Ok(Arc::new(RequestedAddresses {
                    addresses: vec!["192.0.2.1".parse().expect("address")],
                    pool: Some("lan".into()),
                    ..RequestedAddresses::default()
                })),
                labels: [("tier", "front")].into(),
                selector: [("app", "web")].into(),
                families: [Family::V6, Family::V4].into(),
                family_policy: FamilyPolicy::PreferDualStack,
                ports: vec![port("dns", Protocol::Udp, Some(30053)), port("dns-tcp", Protocol::Tcp, None)],
                traffic_policy: TrafficPolicy::Local,
                health_check_port: Some(32000),
                source_ranges: ["198.51.100.0/24".into()].into(),
                source_ranges_annotation: Some("192.0.2.0/24".into()),
                spread_disabled: true,
                backend: Some(Ok(Backend::NodePort)),
                cluster_ips: ["2001:db8::7", "10.96.0.7"].map(|ip| ip.parse().expect("an address")).into(),
                affinity: Some(60),
                finalizers: vec![],
                owns_finalizer: false,
                ingress: vec![Ingress::from("192.0.2.1".parse::<IpAddr>().expect("address"))],
                conditions: vec![],
            }
        );
    }

    #[test]
    fn class_decides_whether_landfall_serves_the_service() {
        for (spec, default, ours) in [
            (json!({"type": "LoadBalancer"}), true, true),
            (json!({"type": "LoadBalancer"}), false, false),
            (json!({"type": "LoadBalancer", "loadBalancerClass": CLASS}), false, true),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}), true, false),
            (json!({"type": "ClusterIP"}), true, false),
            (json!({}), true, false),
        ] {
            assert_eq!(service(spec.clone()).expect("a view").is_ours(default), ours, "{spec}, default {default}");
        }
    }

    #[test]
    fn finalizer_belongs_to_the_manager_that_added_it() {
        let finalizer =
            json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"service.kubernetes.io/load-balancer-cleanup\"": {}}}});
        for (manager, fields, owns) in [
            ("landfall-controller", finalizer.clone(), true),
            ("cloud-controller-manager", finalizer, false),
            ("landfall-controller", json!({"f:metadata": {"f:finalizers": {"v:\"example.com/other\"": {}}}}), false),
            ("landfall-controller", json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}}), false),
        ] {
            let entry = json!({"manager": manager, "operation": "Update", "subresource": "status", "fieldsV1": fields});
            let object: core::Service = serde_json::from_value(json!({
                "metadata": {
                    "namespace": "default", "name": "web", "finalizers": [FINALIZER], "managedFields": [entry],
                },
            }))
            .expect("a Service");
            let view = Service::try_from(&object).expect("a view");
            assert_eq!((view.owns_finalizer, view.has_finalizer()), (owns, true), "{entry}");
        }
    }

    #[test]
    fn invalid_port_is_refused_with_the_service_name() {
        for ports in
            [json!([{"port": 70000}]), json!([{"port": 1, "protocol": "ICMP"}]), json!([{"port": 1}, {"port": 1}])]
        {
            let error = service(json!({"type": "LoadBalancer", "ports": ports})).expect_err("malformed");
            assert!(error.to_string().starts_with("Service default/web: "), "{error}");
        }
    }

    #[test]
    fn families_are_ordered_and_distinct() {
        let families = |families: &[Family]| Families::from(families).to_vec();
        assert_eq!(families(&[]), []);
        assert_eq!(families(&[Family::V6]), [Family::V6]);
        assert_eq!(families(&[Family::V6, Family::V6, Family::V4]), [Family::V6, Family::V4]);
        assert_eq!(Families::from([Family::V4]), Families::from([Family::V4, Family::V4]));
    }

    #[test]
    fn view_fits_into_an_allocation_of_320_bytes() {
        // An `Arc` adds two counters, and the allocator of musl adds four bytes. The next larger size class of this
        // allocator is 400 bytes.
        assert!(size_of::<Service>() + 16 + 4 <= 320, "{}", size_of::<Service>());
    }
}
