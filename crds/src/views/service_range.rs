//! The fields of a ServiceCIDR that Landfall uses.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;

/// Networks from which the API server assigns ClusterIPs. Invalid entries are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRange {
    /// `spec.cidrs`.
    pub networks: Vec<IpNet>,
}

impl From<&networking::ServiceCIDR> for ServiceRange {
    fn from(object: &networking::ServiceCIDR) -> Self {
        let texts = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        Self { networks: texts.filter_map(|text| text.parse().ok()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_network_of_a_service_cidr_is_skipped() {
        let object = serde_json::json!({
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/12", "nonsense", "fd00::/108"]},
        });
        let object: networking::ServiceCIDR = serde_json::from_value(object).expect("a ServiceCIDR");
        let networks = ["10.96.0.0/12", "fd00::/108"].map(|text| text.parse().expect("a network"));
        assert_eq!(ServiceRange::from(&object), ServiceRange { networks: networks.to_vec() });
    }
}
