//! `landfall status`: tables of pools, Services, addresses and the last moves.
//!
//! [`report`] builds the tables from the objects alone (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use anyhow::Context;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use crds::service::{ALLOCATED, ANNOUNCED, CLASS, FORWARDING};
use crds::{AddressConflict, Announcer, Condition, IPAddressPool, LoadBalancerIP, Quarantine, Reach, Service};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::output::print;
use crate::client::Connection;

/// The table names at most this number of holders of an address, and counts the others.
const NAMED_HOLDERS: usize = 5;

/// The reasons of the condition `Forwarding` that need no note: Landfall forwards to the endpoints, without a problem.
const REACHES: [&str; 3] = ["Spread", "Mixed", "Translated"];

/// The maximal number of moves in the table.
const SHOWN_MOVES: usize = 10;

/// The options of `landfall status`.
#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// Show only Services of this namespace. Pools and addresses have no namespace, and are always shown.
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Reads the objects and prints the tables.
pub(crate) async fn run(connection: &Connection, options: StatusOptions) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let objects = read_objects(client, options.namespace.as_deref()).await?;
    print(&report(&objects, Timestamp::now()))
}

/// The objects that the tables show.
#[derive(Debug, Default)]
struct Objects {
    pools: Vec<IPAddressPool>,
    addresses: Vec<LoadBalancerIP>,
    services: Vec<core::Service>,
}

async fn read_objects(client: Client, namespace: Option<&str>) -> anyhow::Result<Objects> {
    let services = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    Ok(Objects {
        pools: list(
            Api::all(client.clone()),
            "IPAddressPools (is Landfall installed? kubectl apply -f deploy/landfall.yaml)",
        )
        .await?,
        addresses: list(
            Api::all(client),
            "LoadBalancerIPs (is Landfall installed? kubectl apply -f deploy/landfall.yaml)",
        )
        .await?,
        services: list(services, "Services").await?,
    })
}

async fn list<K: Clone + Debug + DeserializeOwned>(objects: Api<K>, kind: &str) -> anyhow::Result<Vec<K>> {
    Ok(objects.list(&ListParams::default()).await.with_context(|| format!("list {kind}"))?.items)
}

/// The tables. Every list is sorted: addresses by number, moves by time, the rest by name. Services that cannot be
/// parsed come last.
fn report(objects: &Objects, now: Timestamp) -> String {
    let mut sections = vec![
        ("POOLS", pool_table(objects)),
        ("SERVICES", service_table(objects)),
        ("ADDRESSES", address_table(objects, now)),
    ];
    sections.extend(move_table(objects, now).map(|moves| ("LAST MOVES", Some(moves))));
    let sections = sections.into_iter();
    sections
        .map(|(title, table)| format!("{title}\n{}\n", table.unwrap_or_else(|| "  none".into())))
        .collect::<Vec<_>>()
        .join("\n")
}

fn pool_table(objects: &Objects) -> Option<String> {
    let mut pools: Vec<&IPAddressPool> = objects.pools.iter().collect();
    pools.sort_by_key(|pool| pool.name_any());
    let rows = pools.into_iter().map(|pool| {
        let status = pool.status.clone().unwrap_or_default();
        let ranges: Vec<_> = pool.spec.addresses.iter().map(|range| range.0.clone()).collect();
        let has = |is_ipv4: bool| {
            pool.spec.addresses.iter().filter_map(|range| range.parse().ok()).any(|range| range.is_ipv4() == is_ipv4)
        };
        [
            pool.name_any(),
            ranges.join(", "),
            match (pool.spec.drain, pool.spec.auto_assign) {
                (true, _) => "nothing (drain)",
                (false, true) => "automatically",
                (false, false) => "on request",
            }
            .to_owned(),
            used_and_free(has(true), status.assigned_ipv4, status.available_ipv4),
            used_and_free(has(false), status.assigned_ipv6, status.available_ipv6),
            notes(status.conditions.iter().filter(|condition| is_notable(condition)).map(|c| c.message.as_str())),
        ]
    });
    table(["NAME", "ADDRESSES", "ASSIGNS", "IPV4 USED/FREE", "IPV6 USED/FREE", "NOTES"], rows)
}

/// Used and free addresses of a family; empty if the pool has none of that family.
fn used_and_free(has_any: bool, used: i64, free: i64) -> String {
    // In the status, `i64::MAX` also stands for every greater number of free addresses.
    let free = if free == i64::MAX { "2^63 or more".to_owned() } else { free.to_string() };
    if has_any || used > 0 { format!("{used}/{free}") } else { String::new() }
}

/// Whether the table shows a condition of a pool: a problem, or the state of a drain.
fn is_notable(condition: &Condition) -> bool {
    match condition.type_.as_str() {
        "Ready" => condition.status != "True",
        // This condition exists only while the pool is drained, and its message names the remaining holders.
        "Drained" => true,
        _ => condition.status == "True",
    }
}

fn service_table(objects: &Objects) -> Option<String> {
    let announcers_of: BTreeMap<&str, String> =
        objects.addresses.iter().map(|object| (object.spec.address.as_str(), places(object))).collect();
    let mut malformed = Vec::new();
    let mut rows = Vec::new();
    for object in &objects.services {
        match Service::try_from(object) {
            Ok(service) if service.is_load_balancer => rows.push(service),
            Ok(_) => {}
            Err(problem) => malformed.push(problem),
        }
    }
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let rows = rows.into_iter().map(|service| {
        let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.number, port.protocol)).collect();
        let addresses: Vec<String> =
            service.ingress.iter().filter_map(|ingress| ingress.ip.clone().map(String::from)).collect();
        let announcers: Vec<_> =
            addresses.iter().filter_map(|address| announcers_of.get(address.as_str())).cloned().collect();
        [
            service.key.to_string(),
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(", ") },
            ports.join(", "),
            announcers.join(", "),
            service_notes(&service),
        ]
    });
    let rows: Vec<_> = rows
        .chain(malformed.into_iter().map(|m| [m.name, String::new(), String::new(), String::new(), m.problem]))
        .collect();
    table(["SERVICE", "ADDRESS", "PORTS", "ANNOUNCED BY", "NOTES"], rows)
}

/// Why a Service is pending, or the condition that reports another problem.
fn service_notes(service: &Service) -> String {
    if let Some(class) = service.class.as_deref().filter(|class| *class != CLASS) {
        return format!("class {class}: not served by Landfall");
    }
    let ours = service.conditions.iter().filter(|condition| condition.type_.starts_with(crds::GROUP));
    let lacks_a_family = service.ingress.len() < service.families.len();
    let has_unusual_reason = |condition: &&Condition| match condition.type_.as_str() {
        ALLOCATED => condition.reason != "Allocated" || lacks_a_family,
        ANNOUNCED => condition.reason != "Announced",
        FORWARDING => !REACHES.contains(&condition.reason.as_str()),
        _ => false,
    };
    let failed = ours.clone().find(|condition| condition.status != "True");
    match failed.or_else(|| ours.clone().find(has_unusual_reason)) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        // A Service without a class may lack a condition because Landfall does not serve it. An option of the
        // controller decides whether Landfall serves Services without a class.
        None if service.class.is_some() && ours.count() == 0 => {
            "no condition yet; check that a controller runs: kubectl -n landfall-system get pods".to_owned()
        }
        None => String::new(),
    }
}

fn address_table(objects: &Objects, now: Timestamp) -> Option<String> {
    let mut objects: Vec<_> = objects.addresses.iter().map(|object| (object.address(), object)).collect();
    objects.sort_by_key(|(address, object)| (address.clone().ok(), object.name_any()));
    let rows = objects.into_iter().map(|(address, object)| {
        let since = announcers(object).map(|announcer| announcer.since.0).max();
        let shown = address.as_ref().map_or_else(|_| object.name_any(), ToString::to_string);
        let malformed = address.err().map(|malformed| malformed.problem);
        let all = [malformed, sharing_note(object), reservation_note(object), quarantine_note(object)];
        let all: Vec<_> = all.into_iter().flatten().chain(conflict_notes(object)).collect();
        [
            shown,
            object.spec.pool.clone(),
            holders(object),
            // An address without a holder is not announced.
            if object.spec.services.is_empty() { String::new() } else { places(object) },
            reach(object),
            since.map_or_else(String::new, |since| age(since, now)),
            notes(all.iter().map(String::as_str)),
        ]
    });
    table(["ADDRESS", "POOL", "SERVICE", "ANNOUNCED BY", "REACH", "SINCE", "NOTES"], rows)
}

/// The first holders of an address by name, and the number of the others.
fn holders(object: &LoadBalancerIP) -> String {
    let names = object.spec.services.iter().map(|holder| format!("{}/{}", holder.namespace, holder.name));
    let shown: Vec<_> = names.take(NAMED_HOLDERS).collect();
    match object.spec.services.len().saturating_sub(NAMED_HOLDERS) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn sharing_note(object: &LoadBalancerIP) -> Option<String> {
    object.spec.sharing_key.as_ref().map(|key| format!("shared by key {key}"))
}

/// The namespace or Service for which an address is reserved. A record that has neither a holder nor a quarantine is a
/// reservation, even if `spec.reservation` is not set.
fn reservation_note(object: &LoadBalancerIP) -> Option<String> {
    let spec = &object.spec;
    let is_reserved = spec.services.is_empty() && spec.quarantine.is_none();
    let reservation = spec.reservation.clone().or_else(|| is_reserved.then(Default::default))?;
    Some(match (reservation.namespace, reservation.service) {
        (None, _) => "reserved".to_owned(),
        (Some(namespace), None) => format!("reserved for namespace {namespace}"),
        (Some(namespace), Some(service)) => format!("reserved for {namespace}/{service}"),
    })
}

/// Why a quarantined address is not assigned to a Service.
fn quarantine_note(object: &LoadBalancerIP) -> Option<String> {
    let Quarantine { mac, node, link, .. } =
        object.spec.quarantine.as_ref().filter(|_| object.spec.services.is_empty())?;
    Some(format!("not assigned: {mac} uses it (seen by {node} on {link})"))
}

/// A note about each host outside the cluster that uses the load-balancer address.
fn conflict_notes(object: &LoadBalancerIP) -> impl Iterator<Item = String> {
    let conflicts = object.status.iter().flat_map(|status| &status.conflicts);
    conflicts.map(|AddressConflict { mac, node, link, held_back, .. }| {
        let why = if *held_back { "not announced: " } else { "" };
        format!("{why}{mac} also uses it (seen by {node} on {link})")
    })
}

/// The last moves of addresses from node to node, the latest first.
fn move_table(objects: &Objects, now: Timestamp) -> Option<String> {
    let all = objects.addresses.iter().flat_map(|object| {
        announcers(object).filter(|announcer| announcer.epoch > 1).map(move |announcer| (object, announcer))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(object, announcer)| (std::cmp::Reverse(announcer.since.0), object.address().ok()));
    let rows = all.into_iter().take(SHOWN_MOVES).map(|(object, announcer)| {
        let to = format!("{} ({})", announcer.node, announcer.link);
        let (from, why, took) = announcer.moved.as_ref().map_or_else(Default::default, |moved| {
            (moved.from.to_string(), cause_text(&moved.cause).to_owned(), format!("{} ms", moved.took_milliseconds))
        });
        [object.spec.address.clone(), from, why, to, took, announcer.epoch.to_string(), age(announcer.since.0, now)]
    });
    table(["ADDRESS", "FROM", "CAUSE", "TO", "TOOK", "OWNERS SO FAR", "AGO"], rows)
}

/// Why the previous node lost an address.
fn cause_text(cause: &str) -> &str {
    match cause {
        "deaf" => "received no Hellos",
        "left" => "stopped",
        "ceded" => "ceded the address",
        "released" => "had withdrawn the address",
        // `died`, and causes of newer agents.
        other => other,
    }
}

fn announcers(object: &LoadBalancerIP) -> impl Iterator<Item = &Announcer> {
    object.status.iter().flat_map(|status| &status.announcers)
}

/// The nodes and links that announce an address.
fn places(object: &LoadBalancerIP) -> String {
    let places: Vec<_> =
        announcers(object).map(|announcer| format!("{} ({})", announcer.node, announcer.link)).collect();
    if places.is_empty() { "no node".to_owned() } else { places.join(", ") }
}

/// How packets to an address get to endpoints.
fn reach(object: &LoadBalancerIP) -> String {
    let reaches: BTreeSet<_> = announcers(object).filter_map(|announcer| announcer.reach).map(Reach::as_str).collect();
    reaches.into_iter().collect::<Vec<_>>().join(", ")
}

fn notes<'a>(notes: impl IntoIterator<Item = &'a str>) -> String {
    notes.into_iter().collect::<Vec<_>>().join("; ")
}

/// An age in its largest unit, as kubectl prints it.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A table with `header`; `None` without rows.
fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Option<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table.add_rows(rows);
    (!table.is_empty())
        .then(|| table.lines().map(|line| format!(" {}", line.trim_end())).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    fn pool(name: &str, spec: serde_json::Value, status: serde_json::Value) -> IPAddressPool {
        object(json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool",
            "metadata": {"name": name}, "spec": spec, "status": status,
        }))
    }

    fn address(text: &str, spec: serde_json::Value, announcers: serde_json::Value) -> LoadBalancerIP {
        let name = crds::address::object_name(text.parse().expect("an address"));
        let mut object = json!({
            "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP",
            "metadata": {"name": name}, "spec": spec, "status": {"announcers": announcers},
        });
        object["spec"]["address"] = json!(text);
        self::object(object)
    }

    fn service(name: &str, spec: serde_json::Value, addresses: &[&str], allocated: serde_json::Value) -> core::Service {
        let mut spec = spec;
        spec["type"] = json!("LoadBalancer");
        spec["ports"] = json!([{"port": 80}, {"port": 53, "protocol": "UDP"}]);
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let conditions = if allocated.is_null() { json!([]) } else { json!([allocated]) };
        object(json!({
            "metadata": {"namespace": "default", "name": name}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}, "conditions": conditions},
        }))
    }

    #[test]
    fn each_reach_of_an_address_is_shown_once() {
        for (reaches, expected) in [
            (&[][..], ""),
            (&["Translated"], "Translated"),
            (&["Spread", "Spread"], "Spread"),
            (&["Spread", "Translated", "Spread"], "Spread, Translated"),
        ] {
            let announcers: serde_json::Value = reaches
                .iter()
                .map(|reach| {
                    json!({"node": "n1", "link": "eth0", "epoch": 1, "since": "2026-01-01T00:00:00Z", "reach": reach})
                })
                .collect();
            assert_eq!(reach(&address("192.0.2.200", json!({}), announcers)), expected, "{reaches:?}");
        }
    }

    fn holder_refs(names: &[&str]) -> serde_json::Value {
        names.iter().map(|name| json!({"namespace": "default", "name": name, "uid": name})).collect()
    }

    #[test]
    fn the_report_shows_all_objects_and_problems() {
        let announcer = json!([{
            "node": "n2", "link": "eth0", "epoch": 3, "since": "2026-01-01T00:00:00Z", "reach": "Spread",
            "moved": {"from": "n1", "cause": "died", "tookMilliseconds": 142},
        }]);
        let allocated = |message: &str| condition("landfall.dev/Allocated", "True", "Allocated", message);
        let quarantine = json!({
            "mac": "02:00:00:00:00:99", "node": "n1", "link": "eth0", "since": "2026-01-01T00:00:00Z",
            "service": holder_refs(&["web"])[0],
        });
        let mut conflicting =
            address("192.0.2.203", json!({"pool": "lan", "services": holder_refs(&["x"])}), json!([]));
        conflicting.status.as_mut().expect("a status").conflicts = object(json!([{
            "node": "n3", "link": "eth1", "mac": "02:00:00:00:00:98", "heldBack": true, "since": "2026-01-01T00:00:00Z",
        }]));
        let objects = Objects {
            pools: vec![
                pool(
                    "lan",
                    json!({"addresses": ["192.0.2.200-192.0.2.209", "2001:db8::/32"]}),
                    json!({
                        "assignedIPv4": 10, "availableIPv4": 0, "assignedIPv6": 1, "availableIPv6": i64::MAX,
                        "conditions": [
                            condition("Ready", "True", "Ready", "fine"),
                            condition("Overlap", "True", "Overlap", "shares with old"),
                            condition("Exhausted", "True", "Exhausted", "no IPv4 address is free"),
                        ],
                    }),
                ),
                pool(
                    "old",
                    json!({"addresses": ["198.51.100.0/24"], "drain": true}),
                    json!({
                        "assignedIPv4": 1, "availableIPv4": 0,
                        "conditions": [
                            condition("Ready", "False", "Draining", "it is being emptied"),
                            condition("Drained", "False", "Held", "1 Service still has addresses of it: default/dns"),
                        ],
                    }),
                ),
                pool("vip", json!({"addresses": ["203.0.113.7/32"], "autoAssign": false}), json!(null)),
            ],
            addresses: vec![
                address("192.0.2.200", json!({"pool": "lan", "services": holder_refs(&["web"])}), announcer),
                address(
                    "192.0.2.201",
                    json!({"pool": "lan", "services": holder_refs(&["a", "b", "c", "d", "e", "f"]), "sharingKey": "k"}),
                    json!([]),
                ),
                address("192.0.2.202", json!({"pool": "lan", "quarantine": quarantine}), json!([])),
                conflicting,
                address("203.0.113.7", json!({}), json!([])),
                address("203.0.113.8", json!({"reservation": {"namespace": "team"}}), json!([])),
                address(
                    "2001:db8::1",
                    json!({
                        "pool": "lan", "services": holder_refs(&["api"]),
                        "reservation": {"namespace": "default", "service": "api"},
                    }),
                    json!([]),
                ),
            ],
            services: vec![
                service("web", json!({}), &["192.0.2.200"], allocated("has 192.0.2.200")),
                service(
                    "late",
                    json!({}),
                    &[],
                    condition("landfall.dev/Allocated", "False", "PoolsExhausted", "no address is left"),
                ),
                service(
                    "dns",
                    json!({}),
                    &["198.51.100.1"],
                    condition("landfall.dev/Allocated", "True", "PoolDraining", "its pool is being emptied"),
                ),
                service(
                    "both",
                    json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
                    &["192.0.2.201"],
                    allocated("has 192.0.2.201; without an IPv6 address: none is free"),
                ),
                service("new", json!({"loadBalancerClass": CLASS}), &[], json!(null)),
                service("theirs", json!({"loadBalancerClass": "example.com/other"}), &[], json!(null)),
                object(json!({"metadata": {"namespace": "default", "name": "inner"}, "spec": {"type": "ClusterIP"}})),
            ],
        };
        let now = "2026-01-01T00:05:00Z".parse().expect("time");
        let expected = "\
POOLS
  NAME  ADDRESSES                               ASSIGNS          IPV4 USED/FREE  IPV6 USED/FREE  NOTES
  lan   192.0.2.200-192.0.2.209, 2001:db8::/32  automatically    10/0            1/2^63 or more  shares with old; no IPv4 address is free
  old   198.51.100.0/24                         nothing (drain)  1/0                             it is being emptied; 1 Service still has addresses of it: default/dns
  vip   203.0.113.7/32                          on request       0/0

SERVICES
  SERVICE         ADDRESS       PORTS           ANNOUNCED BY  NOTES
  default/both    192.0.2.201   80/TCP, 53/UDP  no node       Allocated: has 192.0.2.201; without an IPv6 address: none is free
  default/dns     198.51.100.1  80/TCP, 53/UDP                PoolDraining: its pool is being emptied
  default/late    <pending>     80/TCP, 53/UDP                PoolsExhausted: no address is left
  default/new     <pending>     80/TCP, 53/UDP                no condition yet; check that a controller runs: kubectl -n landfall-system get pods
  default/theirs  <pending>     80/TCP, 53/UDP                class example.com/other: not served by Landfall
  default/web     192.0.2.200   80/TCP, 53/UDP  n2 (eth0)

ADDRESSES
  ADDRESS      POOL  SERVICE                                                           ANNOUNCED BY  REACH   SINCE  NOTES
  192.0.2.200  lan   default/web                                                       n2 (eth0)     Spread  5m
  192.0.2.201  lan   default/a, default/b, default/c, default/d, default/e and 1 more  no node                      shared by key k
  192.0.2.202  lan                                                                                                  not assigned: 02:00:00:00:00:99 uses it (seen by n1 on eth0)
  192.0.2.203  lan   default/x                                                         no node                      not announced: 02:00:00:00:00:98 also uses it (seen by n3 on eth1)
  203.0.113.7                                                                                                       reserved
  203.0.113.8                                                                                                       reserved for namespace team
  2001:db8::1  lan   default/api                                                       no node                      reserved for default/api

LAST MOVES
  ADDRESS      FROM  CAUSE  TO         TOOK    OWNERS SO FAR  AGO
  192.0.2.200  n1    died   n2 (eth0)  142 ms  3              5m
";
        assert_eq!(report(&objects, now), expected);
    }

    #[test]
    fn an_empty_cluster_has_an_empty_report() {
        let expected = "POOLS\n  none\n\nSERVICES\n  none\n\nADDRESSES\n  none\n";
        assert_eq!(report(&Objects::default(), Timestamp::UNIX_EPOCH), expected);
    }
}
