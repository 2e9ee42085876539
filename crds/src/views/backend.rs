//! Where packets to a Service are sent, and which program sends them.

use std::fmt;
use std::str::FromStr;

use crate::labels::Labels;

/// The annotation of a Service that selects its backend: `endpoints`, `nodeport` or `clusterip`.
pub const ANNOTATION: &str = "landfall.dev/backend";

/// The label that assigns a Service to a named proxy. kube-proxy ignores a Service with this label (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The value of [`PROXY_NAME`] that assigns a Service to Landfall.
const PROXY: &str = "landfall";

/// The label that makes all proxies ignore a Service, whatever value the label has.
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

    /// Parses the value of [`ANNOTATION`]. The error is the unknown value.
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
    /// Another proxy, which `service.kubernetes.io/service-proxy-name` names, or no proxy
    /// (`service.kubernetes.io/headless`).
    Other,
}

impl Forwarder {
    /// All forwarders.
    pub const ALL: [Self; 3] = [Self::LandfallAndProxy, Self::Landfall, Self::Other];
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
}
