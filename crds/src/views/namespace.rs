//! What Landfall reads of a Namespace.

use k8s_openapi::api::core::v1 as core;

use crate::labels::Labels;

/// What Landfall reads of a Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

impl From<&core::Namespace> for Namespace {
    fn from(object: &core::Namespace) -> Self {
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            labels: Labels::from(object.metadata.labels.as_ref()),
        }
    }
}
