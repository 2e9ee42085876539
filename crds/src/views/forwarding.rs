//! What a node says of how it forwards what comes to an address: words that stand in the status of a LoadBalancerIP.
//!
//! An agent and a controller may be of different versions, so a word that is not known is read as one, and the API server
//! checks none.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::InternedStr;

/// How packets from outside get from the node that announces an address to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Through the nodes that the endpoints are on: each of them sees the client.
    Spread,
    /// Some in the one way, some in the other.
    Mixed,
    /// Not at all, or through the node that announces the address, which endpoints on other nodes see instead of the client.
    #[default]
    Translated,
    /// As the Service proxy of the node sends them, or another proxy that the Service is left to.
    Proxied,
    /// In a way that only a newer version knows.
    Other,
}

impl Reach {
    /// All that this version knows.
    pub const ALL: [Self; 4] = [Self::Spread, Self::Mixed, Self::Translated, Self::Proxied];

    /// The word for it, which is also the reason of the condition `landfall.dev/Forwarding`.
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

/// Why something of a Service is not forwarded as it is written, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemReason {
    /// Something that only a newer version knows.
    Other,
    /// Answers may leave the node by another link than the requests came in by.
    AnswersElsewhere,
    /// The annotation `landfall.dev/backend` says nothing that is known, and is ignored.
    UnknownBackend,
    /// Packets go to endpoints that should go through the Service proxy: something is missing for that.
    BackendUnavailable,
    /// A source range is none, and lets nobody in.
    InvalidSourceRange,
    /// An endpoint has an address that none can have, and is left out.
    EndpointsRefused,
    /// The kernel of the node drops requests by where they come from (rp_filter).
    RequestsFiltered,
    /// A port has endpoints, but under the policy Local none on this node: it drops.
    NoLocalEndpoints,
    /// A port has no endpoint that could be used: it refuses.
    NoEndpoints,
}

impl ProblemReason {
    /// All that this version knows.
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

    /// The word for it, which is also the reason of the condition `landfall.dev/Forwarding`.
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
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reach {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(from)?;
        Ok(Self::ALL.into_iter().find(|known| known.as_str() == word).unwrap_or(Self::Other))
    }
}

impl Serialize for ProblemReason {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProblemReason {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(from)?;
        Ok(Self::ALL.into_iter().find(|known| known.as_str() == word).unwrap_or(Self::Other))
    }
}

/// Something of a Service that is not forwarded as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForwardingProblem {
    /// The namespace of the Service.
    #[schemars(length(max = 63))]
    pub namespace: InternedStr,
    /// The name of the Service.
    #[schemars(length(max = 63))]
    pub name: InternedStr,
    /// Why: `NoEndpoints`, `NoLocalEndpoints`, `EndpointsRefused`, `InvalidSourceRange`, `BackendUnavailable`,
    /// `UnknownBackend`, `AnswersElsewhere` or `RequestsFiltered`.
    #[schemars(with = "String", length(max = 63))]
    pub reason: ProblemReason,
    /// What it is about: ports (`80/TCP, 53/UDP`), the address of an endpoint, a source range, a backend and what is
    /// missing for it, or a link of the node.
    #[schemars(length(max = 253))]
    pub what: InternedStr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_a_word_of_a_newer_version_is_no_mistake() {
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
