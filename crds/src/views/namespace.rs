//! The fields of a Namespace that Landfall uses.

use k8s_openapi::api::core::v1 as core;

use crate::labels::Labels;

/// The fields of a Namespace that Landfall uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name of the namespace.
    pub name: String,
    /// Labels of the namespace.
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
