//! How packets to a Service are forwarded: the settings of the Service, and the reports of nodes in the status of its
//! LoadBalancerIPs.
//!
//! Agent and controller can have different versions. So an unknown value in a report is parsed as `Other`, and the
//! schema does not restrict the values.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::labels::Labels;
use crate::{InternedStr, words};

/// The annotation of a Service that selects its backend: `endpoints`, `nodeport` or `clusterip`.
pub const BACKEND: &str = "landfall.dev/backend";

/// The label that assigns a Service to a named proxy. kube-proxy ignores a Service with this label (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The value of [`PROXY_NAME`] that assigns a Service to Landfall.
const PROXY: &str = "landfall";

/// The label that makes all proxies ignore a Service. The value of the label does not matter.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Where packets to a Service are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// To its endpoints. The Service proxy is not involved.
    #[default]
    Endpoints,
    /// To its node port on the same node. The Service proxy forwards the packets from there.
    NodePort,
    /// To its ClusterIP. The Service proxy forwards the packets from there.
    ClusterIp,
}

impl Backend {
    /// All backends.
    pub const ALL: [Self; 3] = [Self::Endpoints, Self::NodePort, Self::ClusterIp];
}

impl FromStr for Backend {
    type Err = String;

    /// Parses the value of [`BACKEND`]. The error is the unknown value.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|backend| backend.to_string() == text).ok_or_else(|| text.to_owned())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoints => "endpoints",
            Self::NodePort => "nodeport",
            Self::ClusterIp => "clusterip",
        })
    }
}

/// Which program forwards packets to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    /// Landfall and the Service proxy of the cluster (kube-proxy).
    LandfallAndProxy,
    /// Only Landfall: `service.kubernetes.io/service-proxy-name: landfall`.
    Landfall,
    /// The proxy that `service.kubernetes.io/service-proxy-name` names, or no proxy (`service.kubernetes.io/headless`).
    Other,
}

impl From<&Labels> for Forwarder {
    /// The forwarder that the labels of a Service select.
    fn from(labels: &Labels) -> Self {
        let label = |name: &str| labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value);
        match (label(HEADLESS), label(PROXY_NAME)) {
            (None, None) => Self::LandfallAndProxy,
            (None, Some(PROXY)) => Self::Landfall,
            _ => Self::Other,
        }
    }
}

words! {
    /// How the announcing node forwards packets from clients to endpoints. Also the reason of the condition
    /// `landfall.dev/Forwarding`.
    #[derive(Default, Serialize, Deserialize)]
    Reach {
        /// The frames are re-sent to the nodes that run the endpoints. The endpoints see the client address.
        Spread,
        /// Some packets as with `Spread`, others as with `Translated`.
        Mixed,
        /// Translated by the announcing node, or not forwarded. Endpoints on other nodes see the address of the
        /// announcing node.
        #[default]
        Translated,
        /// Forwarded by the Service proxy, or by another proxy that the Service names.
        Proxied,
        /// A value that this version does not know.
        #[serde(other)]
        Other,
    }
}

words! {
    /// Why a part of a Service is not forwarded as specified. Also the reason of the condition
    /// `landfall.dev/Forwarding`. In ascending order of severity.
    #[derive(Serialize, Deserialize)]
    #[serde(from = "String")]
    ProblemReason {
        /// A value that this version does not know.
        Other,
        /// Replies may leave the node on a different link from the one on which the requests arrived.
        AnswersElsewhere,
        /// The annotation `landfall.dev/backend` has an unknown value and is ignored.
        UnknownBackend,
        /// The selected backend is unavailable, so packets go directly to endpoints.
        BackendUnavailable,
        /// A source range is invalid and admits no client.
        InvalidSourceRange,
        /// An endpoint has an invalid address and is skipped.
        EndpointsRefused,
        /// The kernel of the node drops requests because of their source address (`rp_filter`).
        RequestsFiltered,
        /// The traffic policy is Local, and a port has endpoints only on other nodes: packets are dropped.
        NoLocalEndpoints,
        /// A port has no usable endpoint: connections are refused.
        NoEndpoints,
        /// The address belongs to the node itself, which does not forward it.
        AddressOfNode,
    }
}

impl From<String> for ProblemReason {
    fn from(word: String) -> Self {
        Self::ALL.iter().copied().find(|known| known.as_str() == word).unwrap_or(Self::Other)
    }
}

/// A part of a Service that a node does not forward as specified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForwardingProblem {
    /// Namespace of the Service.
    #[schemars(length(max = 63))]
    pub namespace: InternedStr,
    /// Name of the Service.
    #[schemars(length(max = 63))]
    pub name: InternedStr,
    /// Reason: `NoEndpoints`, `NoLocalEndpoints`, `EndpointsRefused`, `InvalidSourceRange`, `BackendUnavailable`,
    /// `UnknownBackend`, `AnswersElsewhere`, `RequestsFiltered` or
    /// `AddressOfNode`.
    #[schemars(with = "String", length(max = 63))]
    pub reason: ProblemReason,
    /// The affected part, depending on `reason`: ports (`80/TCP, 53/UDP`), the address of an endpoint, a source range,
    /// the backend and its missing requirement, or a link of the node.
    #[schemars(length(max = 253))]
    pub what: InternedStr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_parsed_from_their_exact_names() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        for wrong in ["", "NodePort", "clusterIP ", "pods"] {
            assert_eq!(wrong.parse::<Backend>(), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn labels_select_the_forwarder() {
        for (labels, expected) in [
            (Labels::default(), Forwarder::LandfallAndProxy),
            ([("app", "web")].into(), Forwarder::LandfallAndProxy),
            ([(PROXY_NAME, "landfall")].into(), Forwarder::Landfall),
            ([(PROXY_NAME, "example.com")].into(), Forwarder::Other),
            ([(PROXY_NAME, "")].into(), Forwarder::Other),
            ([(HEADLESS, "")].into(), Forwarder::Other),
            ([(HEADLESS, "false"), (PROXY_NAME, "landfall")].into(), Forwarder::Other),
        ] {
            assert_eq!(Forwarder::from(&labels), expected, "{labels:?}");
        }
    }

    #[test]
    fn unknown_values_are_parsed_as_other() {
        for reach in Reach::ALL.iter().copied() {
            assert_eq!(serde_json::from_value::<Reach>(serde_json::json!(reach)).ok(), Some(reach));
        }
        for reason in ProblemReason::ALL.iter().copied() {
            let word = serde_json::json!(reason);
            assert_eq!(serde_json::from_value::<ProblemReason>(word).ok(), Some(reason));
        }
        assert_eq!(serde_json::from_str::<Reach>("\"Teleported\"").ok(), Some(Reach::Other));
        assert_eq!(serde_json::from_str::<ProblemReason>("\"NoTeleporter\"").ok(), Some(ProblemReason::Other));
    }
}
