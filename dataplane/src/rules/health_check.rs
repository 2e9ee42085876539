//! What a load balancer in front is told: whether this node has endpoints of a Service whose traffic stays on the node it
//! reached (`externalTrafficPolicy: Local`), asked at the Service's `healthCheckNodePort`.
//!
//! As kube-proxy answers it: only endpoints count that new connections may go to in any case, so that a node whose
//! endpoints all terminate is avoided from then on, while it still serves (KEP-1669).

use std::collections::{BTreeMap, BTreeSet};

use crds::{Forwarder, Key};

use crate::snapshot::Snapshot;

/// What there is to say of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The Service.
    pub service: Key,
    /// How many of its endpoints are on this node and ready.
    pub local_endpoints: usize,
    /// Whether kube-proxy does not answer for it, though it is there.
    pub alone: bool,
}

/// What this node says at which port, for each Service that holds an lb_ip.
pub fn health(snapshot: &Snapshot) -> BTreeMap<u16, Health> {
    // What is another proxy's, that one answers for.
    let ours = |object: &crds::Service| object.is_load_balancer && object.forwarder() != Forwarder::Other;
    let asked = |object: &crds::Service| object.health_check_port.filter(|_| ours(object));
    let services = snapshot.services.iter();
    let mut asked: BTreeMap<&Key, (u16, &str)> =
        services.filter_map(|(key, service)| Some((key, (asked(&service.object)?, &*service.object.uid)))).collect();
    if asked.is_empty() {
        return BTreeMap::new();
    }
    let mut ports = BTreeMap::new();
    for holder in snapshot.addresses.values().flat_map(|holders| holders.iter()) {
        let key = Key::new(&*holder.namespace, &*holder.name);
        if asked.get(&key).is_some_and(|(_, uid)| *uid == holder.uid)
            && let Some((port, _)) = asked.remove(&key)
        {
            let alone = snapshot.services.get(&key).is_some_and(|s| s.object.forwarder() == Forwarder::Landfall);
            ports.insert(port, Health { local_endpoints: local_endpoints(snapshot, &key), alone, service: key });
        }
    }
    ports
}

/// An endpoint counts once, whichever slices and families it is in several times: they differ in address, and kube-proxy
/// counts those of the Service's first family. We count addresses of the family that has the most.
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
    use crate::snapshot::{Service, Terms};
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
        Service { object, terms: Arc::new(Terms::default()) }
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
    fn ready_endpoints_of_this_node_count_and_each_once() {
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
            let told = Health { service: key.clone(), local_endpoints: expected, alone: false };
            assert_eq!(health(&snapshot(node, slices)), BTreeMap::from([(32000, told)]), "{node}");
        }
    }

    #[test]
    fn who_answers_for_a_service_follows_from_whose_it_is() {
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
            health(&snapshot).get(&32000).map(|health| health.alone)
        };
        assert_eq!(labelled(None), Some(false), "kube-proxy, if it is there");
        assert_eq!(labelled(Some("landfall")), Some(true));
        assert_eq!(labelled(Some("example.com")), None);
    }

    #[test]
    fn only_services_of_the_policy_local_that_hold_an_address_are_told_of() {
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
        let told: Vec<_> = health(&snapshot).into_iter().map(|(port, health)| (port, health.service.name)).collect();
        assert_eq!(told, [(32000, "local".into())]);
    }
}
