//! What packets to a Service are sent to, and whose business it is to send them there.

use std::fmt;
use std::str::FromStr;

use crate::labels::Labels;

/// The annotation of a Service that says what packets to it are sent to: `endpoints`, `nodeport` or `clusterip`.
pub const ANNOTATION: &str = "landfall.dev/backend";

/// The label that names the one proxy whose a Service is; kube-proxy, which has no name, leaves it alone (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The name of Landfall among those proxies.
const PROXY: &str = "landfall";

/// The label by which no proxy has anything to do with a Service, whatever its value.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What packets to a Service are sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// Its endpoints, by Landfall alone.
    #[default]
    Endpoints,
    /// Its node port on the same node, and from there to where the Service proxy sends what comes to that.
    NodePort,
    /// Its ClusterIP, and from there the same.
    ClusterIp,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Endpoints, Self::NodePort, Self::ClusterIp];
}

impl FromStr for Backend {
    type Err = String;

    /// Reads what users write; what is none comes back as it is.
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

/// Whose business it is to forward packets to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarder {
    /// Landfall's, and that of the cluster's Service proxy (kube-proxy).
    LandfallAndProxy,
    /// Landfall's alone: `service.kubernetes.io/service-proxy-name: landfall`.
    Landfall,
    /// Another proxy's, which that label names; or nobody's: `service.kubernetes.io/headless`.
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
    fn a_backend_is_read_as_it_is_written_and_nothing_else_is_one() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        for wrong in ["", "NodePort", "clusterIP ", "pods"] {
            assert_eq!(wrong.parse::<Backend>(), Err(wrong.to_owned()));
        }
    }

    #[test]
    fn labels_say_who_forwards() {
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
