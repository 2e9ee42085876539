//! Plans for single features of requests and pools. Random histories are in [`crate::history`].

use super::*;
use crate::fixtures::{at_second, ip, node, pool, record, request_for, request_of, service};
use crate::snapshot::plan;
use crate::world::{ServiceView, World, effect_name, shows};
use crds::ip_address_pool::AddressRange;
use crds::request::Consent;
use crds::service::{ALLOCATED, Family};
use crds::{
    FamilyPolicy, IPAddressPool, Key, Labels, Namespace, Node, NodeAddresses, Port, Protocol, RequestedAddresses,
    Reservation, ServiceAllocation, ServiceRange, TrafficPolicy,
};
use std::net::IpAddr;

mod adoption;
mod changes;
mod cut;
mod families;
mod finalizer;
mod namespaces;
mod pools;
mod refused_writes;
mod sharing;
mod standby;

fn edit_pool(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut crds::IPAddressPoolSpec)) -> Arc<IPAddressPool> {
    edit(&mut Arc::make_mut(&mut pool).spec);
    pool
}

fn lan() -> Arc<IPAddressPool> {
    pool("lan", 1, &["192.0.2.10-192.0.2.12"])
}

fn both() -> Arc<IPAddressPool> {
    pool("both", 2, &["192.0.2.20-192.0.2.21", "2001:db8::20-2001:db8::21"])
}

/// A Service with a request that `edit` has changed.
fn requesting(name: &str, created: i64, edit: impl FnOnce(&mut RequestedAddresses)) -> Service {
    let mut service = service(name, created);
    edit(request_of(&mut service));
    service
}

fn of_families(mut service: Service, families: &[Family], policy: FamilyPolicy) -> Service {
    (service.families, service.family_policy) = (families.into(), policy);
    service
}

/// A Service with this port that shares under `k`.
fn sharing(name: &str, created: i64, port: u16) -> Service {
    let mut service = requesting(name, created, |request| request.sharing_key = Some("k".into()));
    service.ports = vec![Port { name: "".into(), protocol: Protocol::Tcp, number: port, node_port: None }];
    service
}

fn ingress(world: &World, name: &str) -> Vec<String> {
    world.view(name).ingress
}

fn condition(world: &World, name: &str) -> String {
    world.view(name).condition.unwrap_or_default()
}

/// Status and reason of the condition of a Service.
fn reason(world: &World, name: &str) -> String {
    let condition = condition(world, name);
    condition.split(':').next().unwrap_or_default().to_owned()
}

/// The names of the holders of an address, and its sharing key.
fn holders(world: &World, address: &str) -> (Vec<String>, Option<String>) {
    let record = &world.snapshot.records[&ip(address)];
    (
        record.holders.iter().map(|holder| holder.name.to_string()).collect(),
        record.sharing_key.clone().map(String::from),
    )
}

fn set_pool(world: &mut World, pool: Arc<IPAddressPool>) {
    let name = pool.metadata.name.clone().expect("a name");
    world.snapshot.pools.insert(name, pool);
}

const V4_V6: &[Family] = &[Family::V4, Family::V6];
