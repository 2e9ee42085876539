//! Generates the CustomResourceDefinitions in `deploy/landfall.yaml` from the types. So the code, the installed schema
//! and `kubectl explain` always agree.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{IPAddressPool, L2Advertisement, LoadBalancerIP, NodeNetwork};

/// First line of the generated text.
const HEADER: &str = "# Generated from the types in crds/: change them there, then run `make crds`.\n";

/// Definitions of all kinds, in the order of the text.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![IPAddressPool::crd(), L2Advertisement::crd(), LoadBalancerIP::crd(), NodeNetwork::crd()];
    for definition in &mut definitions {
        let labels = definition.metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".into(), "landfall".into());
    }
    definitions
}

/// All definitions as one YAML stream for `kubectl apply`.
///
/// # Errors
/// If a definition cannot be serialized as YAML. That is a bug.
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

    /// The line of the manifest after the generated text.
    const END: &str = "# End of the generated definitions.\n";

    /// `make crds` updates the manifest. Its diff is reviewed like code.
    #[test]
    fn committed_manifest_matches_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/landfall.yaml");
        let manifest = std::fs::read_to_string(path).expect("read deploy/landfall.yaml");
        let (before, rest) = manifest.split_once(HEADER).expect("the first line of the definitions");
        let (_, after) = rest.split_once(END).expect("the line after the definitions");
        let expected = [before, &yaml().expect("YAML"), END, after].concat();
        if std::env::var_os("LANDFALL_WRITE_GOLDENS").is_some() {
            std::fs::write(path, &expected).expect("write deploy/landfall.yaml");
            return;
        }
        assert!(manifest == expected, "deploy/landfall.yaml does not match the types: run `make crds`");
    }
}
