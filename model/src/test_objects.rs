//! Services, slices, holders and records for tests.

use std::net::IpAddr;

use crds::{Announcer, Endpoint, EndpointSlice, Holder, Key, Labels, Record, Service, TrafficPolicy};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

/// A Service of type LoadBalancer with the UID `u1`.
pub(crate) fn service(name: &str, traffic_policy: TrafficPolicy, labels: Labels) -> Service {
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "uid": "u1"},
        "spec": {"type": "LoadBalancer"},
    });
    let object: core::Service = serde_json::from_value(object).expect("a Service");
    Service { traffic_policy, labels, ..Service::try_from(&object).expect("a view") }
}

/// A slice with an endpoint on a node for each entry: ready (`r`), serving while it terminates (`s`), or neither (`-`).
pub(crate) fn slice(name: &str, service: &str, endpoints: &[(&str, char)]) -> EndpointSlice {
    let endpoint = |(node, state): &(&str, char)| Endpoint {
        address: [10, 0, 0, 1].into(),
        node: Some((*node).into()),
        ready: *state == 'r',
        serving: *state != '-',
        terminating: *state == 's',
    };
    EndpointSlice {
        key: Key::new("default", name),
        service: Key::new("default", service),
        ports: Box::default(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        refused: None,
    }
}

/// A holder, from its name (`web`, with the UID `u1`) or from name and UID (`web/u2`).
pub(crate) fn holder(name: &str) -> Holder {
    let (name, uid) = name.split_once('/').unwrap_or((name, "u1"));
    Holder { namespace: "default".into(), name: name.into(), uid: uid.into(), terms: None }
}

/// The record of an address that n1 announces, with the epochs 3, 4 and -1.
pub(crate) fn record(address: IpAddr, pool: &str, holders: &[&str]) -> Record {
    let announcer = |epoch| Announcer {
        node: "n1".into(),
        link: "eth0".into(),
        epoch,
        since: Time(jiff::Timestamp::UNIX_EPOCH),
        moved: None,
        reach: None,
        unforwarded: vec![],
    };
    Record {
        address,
        uid: "".into(),
        resource_version: 0,
        deleting: false,
        pool: pool.into(),
        holders: holders.iter().map(|name| holder(name)).collect(),
        sharing_key: None,
        reservation: None,
        quarantine: None,
        announcers: vec![announcer(3), announcer(4), announcer(-1)],
        first_announced: None,
        conflicts: vec![],
    }
}
