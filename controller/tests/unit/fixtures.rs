//! Objects for tests. The fields that matter to a test are arguments.

use std::net::IpAddr;
use std::sync::Arc;

use crds::ip_address_pool::AddressRange;
use crds::request::ParsedRequest;
use crds::service::Family;
use crds::{
    FamilyPolicy, Holder, IPAddressPool, IPAddressPoolSpec, Key, Labels, Node, Record, RequestedAddresses, Service,
    TrafficPolicy,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn at_second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A pool with its creation time in seconds.
pub(crate) fn pool(name: &str, created: i64, addresses: &[&str]) -> Arc<IPAddressPool> {
    let addresses = addresses.iter().map(|text| AddressRange((*text).to_owned())).collect();
    let mut pool = IPAddressPool::new(name, IPAddressPoolSpec { addresses, ..IPAddressPoolSpec::default() });
    pool.metadata.creation_timestamp = Some(Time(at_second(created)));
    pool.metadata.resource_version = Some("1".into());
    pool.metadata.uid = Some(format!("pool-{name}"));
    Arc::new(pool)
}

pub(crate) fn node(name: &str, address: &str) -> Arc<Node> {
    Arc::new(Node { name: name.into(), addresses: vec![ip(address)], ..Node::default() })
}

/// A Service of type LoadBalancer in namespace `default`, with its creation time in seconds. Its UID is its name.
pub(crate) fn service(name: &str, created: i64) -> Service {
    Service {
        key: Key::new("default", name),
        uid: name.into(),
        resource_version: 1,
        generation: None,
        created: at_second(created),
        deleting: false,
        is_load_balancer: true,
        class: None,
        request: Ok(Arc::default()),
        labels: Labels::default(),
        selector: Labels::default(),
        families: [Family::V4].into(),
        family_policy: FamilyPolicy::SingleStack,
        ports: vec![],
        traffic_policy: TrafficPolicy::Cluster,
        source_ranges: Box::default(),
        health_check_port: None,
        source_ranges_annotation: None,
        spread_disabled: false,
        backend: None,
        cluster_ips: Box::default(),
        affinity: None,
        finalizers: vec![],
        owns_finalizer: false,
        ingress: vec![],
        conditions: vec![],
    }
}

/// The request of a Service, to be changed.
pub(crate) fn request_of(service: &mut Service) -> &mut RequestedAddresses {
    Arc::make_mut(service.request.as_mut().expect("a request"))
}

/// The request of a Service with this address in `spec.loadBalancerIP`.
pub(crate) fn request_for(address: &str) -> ParsedRequest {
    RequestedAddresses::read(None, Some(address))
}

pub(crate) fn holder(service: &str) -> Holder {
    Holder { namespace: "default".into(), name: service.into(), uid: service.into(), terms: None }
}

/// A record with these holders. Its UID is the address.
pub(crate) fn record(address: &str, pool: &str, holders: &[&str]) -> (IpAddr, Arc<Record>) {
    let record = Record {
        address: ip(address),
        uid: address.into(),
        resource_version: 1,
        deleting: false,
        pool: pool.into(),
        holders: holders.iter().map(|name| holder(name)).collect(),
        sharing_key: None,
        reservation: None,
        quarantine: None,
        announcers: vec![],
        first_announced: None,
        conflicts: vec![],
    };
    (record.address, Arc::new(record))
}
