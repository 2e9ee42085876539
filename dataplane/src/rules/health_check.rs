//! The health check that an external load balancer reads at the `healthCheckNodePort` of a Service with
//! `externalTrafficPolicy: Local`. It reports whether this node has endpoints of the Service. Pure.
//!
//! As in kube-proxy, only ready endpoints count. So an external load balancer avoids a node whose endpoints all
//! terminate, although the node still serves (KEP-1669).

use std::collections::{BTreeMap, BTreeSet};

use crds::{Forwarder, Key};

use crate::snapshot::Snapshot;

/// The health check of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub service: Key,
    /// The number of ready endpoints on this node.
    pub local_endpoints: usize,
    /// Whether only Landfall serves this health check: kube-proxy, if it runs, ignores the Service.
    pub ours_alone: bool,
}

/// The health checks that this node serves, by port: one for each Service that holds an lb_ip.
pub fn health_checks(snapshot: &Snapshot) -> BTreeMap<u16, HealthCheck> {
    // Another proxy serves the health checks of its own Services.
    let ours = |object: &crds::Service| object.is_load_balancer && object.forwarder() != Forwarder::Other;
    let port = |object: &crds::Service| object.health_check_port.filter(|_| ours(object));
    let services = snapshot.services.iter();
    let mut checked: BTreeMap<&Key, (u16, &str)> =
        services.filter_map(|(key, service)| Some((key, (port(&service.object)?, &*service.object.uid)))).collect();
    if checked.is_empty() {
        return BTreeMap::new();
    }
    let mut ports = BTreeMap::new();
    for holder in snapshot.addresses.values().flat_map(|holders| holders.iter()) {
        let key = Key::new(&*holder.namespace, &*holder.name);
        if checked.get(&key).is_some_and(|(_, uid)| holder.uid == *uid)
            && let Some((port, _)) = checked.remove(&key)
        {
            let ours_alone = snapshot.services.get(&key).is_some_and(|s| s.object.forwarder() == Forwarder::Landfall);
            let local_endpoints = local_endpoints(snapshot, &key);
            ports.insert(port, HealthCheck { local_endpoints, ours_alone, service: key });
        }
    }
    ports
}

/// Counts each endpoint once, even if it is in several slices or families. kube-proxy counts the addresses of the
/// Service's first family; this function counts the family with more addresses.
fn local_endpoints(snapshot: &Snapshot, service: &Key) -> usize {
    let slices = snapshot.slices.get(service).map_or(&[][..], |slices| slices);
    let ready = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = ready.filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(&*snapshot.node));
    let (v4, v6): (BTreeSet<_>, BTreeSet<_>) =
        ready.map(|endpoint| endpoint.address).partition(|address| address.is_ipv4());
    v4.len().max(v6.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Service, ServiceOptions};
    use crds::{EndpointSlice, Holder, Labels};
    use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn service(name: &str, port: u16, policy: &str) -> Service {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
            "spec": {
                "type": "LoadBalancer", "ports": [{"port": 80}],
                "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            },
        }))
        .expect("a Service");
        let object = Arc::new(crds::Service::try_from(&object).expect("a view"));
        Service { object, options: Arc::new(ServiceOptions::default()) }
    }

    fn slice(service: &str, family: &str, endpoints: Value) -> Arc<EndpointSlice> {
        let object: discovery::EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": format!("{service}-{family}"),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family, "ports": [{"port": 8080}], "endpoints": endpoints,
        }))
        .expect("a slice");
        Arc::new(EndpointSlice::read(&object).expect("it makes sense").expect("it belongs to a Service"))
    }

    fn endpoint(address: &str, node: &str, ready: bool, terminating: bool) -> Value {
        let conditions = json!({"ready": ready, "serving": true, "terminating": terminating});
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    }

    fn holder(name: &str, uid: &str) -> Holder {
        Holder { namespace: "default".into(), name: name.into(), uid: uid.into(), terms: None }
    }

    #[test]
    fn ready_local_endpoints_are_counted_once() {
        let key = Key::new("default", "web");
        let v4 = slice(
            "web",
            "IPv4",
            json!([
                endpoint("10.244.1.2", "n1", true, false),
                endpoint("10.244.1.3", "n1", false, true),
                endpoint("10.244.1.4", "n1", false, false),
                endpoint("10.244.2.2", "n2", true, false),
            ]),
        );
        let v6 = slice("web", "IPv6", json!([endpoint("fd00::2", "n1", true, false)]));
        let snapshot = |node: &str, slices: Vec<Arc<EndpointSlice>>| Snapshot {
            node: node.into(),
            addresses: [("192.0.2.1".parse().expect("an address"), [holder("web", "uid-web")].into())].into(),
            services: [(key.clone(), service("web", 32000, "Local"))].into(),
            slices: [(key.clone(), slices.into())].into(),
            ..Snapshot::default()
        };
        for (node, slices, expected) in [
            ("n1", vec![v4.clone(), v6.clone(), v4.clone()], 1),
            ("n2", vec![v4.clone()], 1),
            ("n3", vec![v4.clone(), v6], 0),
            ("n1", vec![], 0),
        ] {
            let check = HealthCheck { service: key.clone(), local_endpoints: expected, ours_alone: false };
            assert_eq!(health_checks(&snapshot(node, slices)), BTreeMap::from([(32000, check)]), "{node}");
        }
    }

    #[test]
    fn the_proxy_name_label_selects_the_health_server() {
        let labelled = |value: Option<&str>| {
            let service = service("web", 32000, "Local");
            let labels: Labels = match value {
                Some(value) => [("service.kubernetes.io/service-proxy-name", value)].into(),
                None => Labels::default(),
            };
            let object = crds::Service { labels, ..crds::Service::clone(&service.object) };
            let snapshot = Snapshot {
                addresses: [("192.0.2.1".parse().expect("an address"), [holder("web", "uid-web")].into())].into(),
                services: [(Key::new("default", "web"), Service { object: Arc::new(object), ..service })].into(),
                ..Snapshot::default()
            };
            health_checks(&snapshot).get(&32000).map(|check| check.ours_alone)
        };
        assert_eq!(labelled(None), Some(false), "kube-proxy, if it runs");
        assert_eq!(labelled(Some("landfall")), Some(true));
        assert_eq!(labelled(Some("example.com")), None);
    }

    #[test]
    fn only_local_services_with_an_address_have_health_checks() {
        let services = [("local", "Local"), ("cluster", "Cluster"), ("no-address", "Local"), ("recreated", "Local")];
        let numbered = services.iter().zip(32000..);
        let snapshot = Snapshot {
            node: "n1".into(),
            addresses: [(
                "192.0.2.1".parse().expect("an address"),
                [holder("local", "uid-local"), holder("cluster", "uid-cluster"), holder("recreated", "older")].into(),
            )]
            .into(),
            services: numbered.map(|((n, p), port)| (Key::new("default", *n), service(n, port, p))).collect(),
            ..Snapshot::default()
        };
        let checks = health_checks(&snapshot).into_iter();
        let checks: Vec<_> = checks.map(|(port, check)| (port, check.service.name)).collect();
        assert_eq!(checks, [(32000, "local".into())]);
    }
}
