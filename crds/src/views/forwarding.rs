//! How a node forwards packets to a load-balancer address, as reported in the status of a LoadBalancerIP.
//!
//! Agent and controller can have different versions. So an unknown value is parsed as `Other`, and the schema does not
//! restrict the values.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::InternedStr;

/// How the announcing node forwards packets from clients to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Re-sent to the nodes that run the endpoints. The endpoints see the client address.
    Spread,
    /// Some packets as with `Spread`, others as with `Translated`.
    Mixed,
    /// Translated by the announcing node, or not forwarded. Endpoints on other nodes see the address of the announcing
    /// node.
    #[default]
    Translated,
    /// Forwarded by the Service proxy, or by another proxy that the Service names.
    Proxied,
    /// A value of a newer version.
    Other,
}

impl Reach {
    /// All known values, without `Other`.
    pub const ALL: [Self; 4] = [Self::Spread, Self::Mixed, Self::Translated, Self::Proxied];

    /// The value in the API. It is also the reason of the condition `landfall.dev/Forwarding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "Spread",
            Self::Mixed => "Mixed",
            Self::Translated => "Translated",
            Self::Proxied => "Proxied",
            Self::Other => "Other",
        }
    }
}

/// Why a part of a Service is not forwarded as specified. Ordered by severity, the most severe last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemReason {
    /// A value of a newer version.
    Other,
    /// Replies may leave the node through another link than the requests arrived on.
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
    /// A port has endpoints, but with traffic policy Local none on this node: packets are dropped.
    NoLocalEndpoints,
    /// A port has no usable endpoint: connections are refused.
    NoEndpoints,
}

impl ProblemReason {
    /// All known values, without `Other`.
    pub const ALL: [Self; 8] = [
        Self::AnswersElsewhere,
        Self::UnknownBackend,
        Self::BackendUnavailable,
        Self::InvalidSourceRange,
        Self::EndpointsRefused,
        Self::RequestsFiltered,
        Self::NoLocalEndpoints,
        Self::NoEndpoints,
    ];

    /// The value in the API. It is also the reason of the condition `landfall.dev/Forwarding`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Other => "Other",
            Self::AnswersElsewhere => "AnswersElsewhere",
            Self::UnknownBackend => "UnknownBackend",
            Self::BackendUnavailable => "BackendUnavailable",
            Self::InvalidSourceRange => "InvalidSourceRange",
            Self::EndpointsRefused => "EndpointsRefused",
            Self::RequestsFiltered => "RequestsFiltered",
            Self::NoLocalEndpoints => "NoLocalEndpoints",
            Self::NoEndpoints => "NoEndpoints",
        }
    }
}

impl Serialize for Reach {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(deserializer)?;
        Ok(Self::ALL.into_iter().find(|known| known.as_str() == word).unwrap_or(Self::Other))
    }
}

impl Serialize for ProblemReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProblemReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(deserializer)?;
        Ok(Self::ALL.into_iter().find(|known| known.as_str() == word).unwrap_or(Self::Other))
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
    /// `UnknownBackend`, `AnswersElsewhere` or `RequestsFiltered`.
    #[schemars(with = "String", length(max = 63))]
    pub reason: ProblemReason,
    /// The affected part, depending on `reason`: ports (`80/TCP, 53/UDP`), the address of an endpoint, a source range, the
    /// backend and its missing requirement, or a link of the node.
    #[schemars(length(max = 253))]
    pub what: InternedStr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_are_parsed_as_other() {
        for reach in Reach::ALL {
            assert_eq!(serde_json::from_value::<Reach>(serde_json::json!(reach)).ok(), Some(reach));
        }
        for reason in ProblemReason::ALL {
            let word = serde_json::json!(reason);
            assert_eq!(serde_json::from_value::<ProblemReason>(word).ok(), Some(reason));
        }
        assert_eq!(serde_json::from_str::<Reach>("\"Teleported\"").ok(), Some(Reach::Other));
        assert_eq!(serde_json::from_str::<ProblemReason>("\"NoTeleporter\"").ok(), Some(ProblemReason::Other));
    }
}
