//! The manifests of our objects' definitions, as `deploy/crds.yaml` has them: generated from the types, so that what is
//! installed, what `kubectl explain` says and what the code means are one thing.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{IPAddressPool, L2Advertisement, LoadBalancerIP, NodeNetwork};

/// Stands on top of the generated file.
const HEADER: &str = "# Generated from the types in crds/: change them there, then run `make crds`.\n";

/// The definitions of all our objects, in the order in which they are installed.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![IPAddressPool::crd(), L2Advertisement::crd(), LoadBalancerIP::crd(), NodeNetwork::crd()];
    for definition in &mut definitions {
        let labels = definition.metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".into(), "landfall".into());
    }
    definitions
}

/// The same as one YAML text, ready for `kubectl apply`.
///
/// # Errors
/// If a definition can't be written as YAML, which no definition of ours is.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = HEADER.to_owned();
    for definition in definitions() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run `make crds` to bring the file up to date; the diff is reviewed like code.
    #[test]
    fn the_manifest_in_deploy_is_what_the_types_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds.yaml");
        let generated = yaml().expect("YAML");
        if std::env::var_os("LANDFALL_WRITE_GOLDENS").is_some() {
            std::fs::write(path, &generated).expect("write deploy/crds.yaml");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(generated == committed, "deploy/crds.yaml is not what the types say: run `make crds`");
    }
}
