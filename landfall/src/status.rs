//! `landfall status`: pools, Services, addresses, and who announces them, in tables for people.
//!
//! What is shown is decided by [`report`], from the objects alone.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use crds::{IPAddressPool, LoadBalancerIP, Service};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::client::Connection;
use crate::output::print;

/// What to show.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Show only Services of this namespace. Pools and addresses have no namespace and are always shown.
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Asks the API server and prints the tables.
pub(crate) async fn run(connection: &Connection, options: Options) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let observed = observe(client, options.namespace.as_deref()).await?;
    print(&report(&observed, Timestamp::now()))
}

/// What the tables are made of.
#[derive(Debug, Default)]
struct Observed {
    pools: Vec<IPAddressPool>,
    addresses: Vec<LoadBalancerIP>,
    services: Vec<core::Service>,
}

async fn observe(client: Client, namespace: Option<&str>) -> anyhow::Result<Observed> {
    let all = ListParams::default();
    let missing = "is Landfall installed? kubectl apply -f deploy/";
    let services: Api<core::Service> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    Ok(Observed {
        pools: Api::all(client.clone())
            .list(&all)
            .await
            .with_context(|| format!("list IPAddressPools ({missing})"))?
            .items,
        addresses: Api::all(client)
            .list(&all)
            .await
            .with_context(|| format!("list LoadBalancerIPs ({missing})"))?
            .items,
        services: services.list(&all).await.context("list Services")?.items,
    })
}

/// The tables. Every list is sorted: addresses by number, the rest by name.
fn report(observed: &Observed, now: Timestamp) -> String {
    let sections =
        [("POOLS", pools(observed)), ("SERVICES", services(observed)), ("ADDRESSES", addresses(observed, now))];
    sections.map(|(title, table)| format!("{title}\n{}\n", table.unwrap_or_else(|| "  none".into()))).join("\n")
}

fn pools(observed: &Observed) -> Option<String> {
    let mut pools: Vec<&IPAddressPool> = observed.pools.iter().collect();
    pools.sort_by_key(|pool| pool.name_any());
    let rows = pools.into_iter().map(|pool| {
        let status = pool.status.clone().unwrap_or_default();
        let unhealthy = status.conditions.iter().filter(|c| (c.type_ == "Ready") != (c.status == "True"));
        let ranges: Vec<_> = pool.spec.addresses.iter().map(|range| range.0.clone()).collect();
        [
            pool.name_any(),
            ranges.join(", "),
            if pool.spec.auto_assign { "yes" } else { "on request" }.to_owned(),
            status.assigned_ipv4.to_string(),
            status.available_ipv4.to_string(),
            notes(unhealthy.map(|c| c.message.as_str())),
        ]
    });
    table(["NAME", "ADDRESSES", "AUTO-ASSIGN", "USED", "FREE", "NOTES"], rows)
}

fn services(observed: &Observed) -> Option<String> {
    let mut announced: BTreeMap<String, String> = BTreeMap::new();
    for object in &observed.addresses {
        announced.insert(object.spec.address.clone(), announcers(object));
    }
    let mut malformed = Vec::new();
    let mut rows = Vec::new();
    for object in &observed.services {
        match Service::try_from(object) {
            Ok(service) if service.is_load_balancer => rows.push(service),
            Ok(_) => {}
            Err(problem) => malformed.push(problem),
        }
    }
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let rows = rows.into_iter().map(|service| {
        let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.number, port.protocol)).collect();
        let addresses: Vec<String> = service.ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect();
        let on: Vec<_> = addresses.iter().filter_map(|address| announced.get(address)).cloned().collect();
        // Whether a Service of no class is ours depends on how the controller was started; its condition tells.
        let foreign = service.class.as_deref().filter(|class| *class != crds::service::CLASS);
        let problem = service.conditions.iter().find(|c| c.type_.starts_with(crds::GROUP) && c.status != "True");
        [
            service.key.to_string(),
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(", ") },
            ports.join(", "),
            on.join(", "),
            match (foreign, problem) {
                (Some(class), _) => format!("of class {class}: not served by Landfall"),
                (None, Some(condition)) => format!("{}: {}", condition.reason, condition.message),
                (None, None) => String::new(),
            },
        ]
    });
    let rows: Vec<_> = rows
        .chain(malformed.into_iter().map(|m| [m.name, String::new(), String::new(), String::new(), m.problem]))
        .collect();
    table(["SERVICE", "ADDRESS", "PORTS", "ANNOUNCED BY", "NOTES"], rows)
}

fn addresses(observed: &Observed, now: Timestamp) -> Option<String> {
    let mut objects: Vec<_> = observed.addresses.iter().map(|object| (object.address(), object)).collect();
    objects.sort_by_key(|(address, object)| (address.clone().ok(), object.name_any()));
    let rows = objects.into_iter().map(|(address, object)| {
        let holders: Vec<_> =
            object.spec.services.iter().map(|holder| format!("{}/{}", holder.namespace, holder.name)).collect();
        let since = object.status.iter().flat_map(|status| &status.announcers).map(|announcer| announcer.since.0).max();
        [
            object.name_any(),
            object.spec.pool.clone(),
            holders.join(", "),
            announcers(object),
            since.map_or_else(String::new, |since| age(since, now)),
            notes(address.err().map(|malformed| malformed.problem).as_deref()),
        ]
    });
    table(["ADDRESS", "POOL", "SERVICE", "ANNOUNCED BY", "SINCE", "NOTES"], rows)
}

fn announcers(object: &LoadBalancerIP) -> String {
    let announcers = object.status.iter().flat_map(|status| &status.announcers);
    let on: Vec<_> = announcers.map(|announcer| format!("{} ({})", announcer.node, announcer.link)).collect();
    if on.is_empty() { "nobody".to_owned() } else { on.join(", ") }
}

fn notes<'a>(notes: impl IntoIterator<Item = &'a str>) -> String {
    notes.into_iter().collect::<Vec<_>>().join("; ")
}

/// As kubectl writes ages: the largest unit, whole.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A table with `header`, or nothing where there are no rows.
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

    #[test]
    fn the_report_shows_pools_services_addresses_and_what_is_wrong() {
        let observed = Observed {
            pools: vec![object(json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "IPAddressPool", "metadata": {"name": "lan"},
                "spec": {"addresses": ["192.0.2.200-192.0.2.201"]},
                "status": {"assignedIPv4": 1, "availableIPv4": 1, "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Ready", "message": "fine", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Overlap", "status": "True", "reason": "Overlap", "message": "shares with old", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ]},
            }))],
            addresses: vec![object(json!({
                "apiVersion": "landfall.dev/v1alpha1", "kind": "LoadBalancerIP", "metadata": {"name": "192.0.2.200"},
                "spec": {"address": "192.0.2.200", "pool": "lan", "services": [{"namespace": "default", "name": "web", "uid": "u"}]},
                "status": {"announcers": [{"node": "n2", "link": "eth0", "epoch": 3, "since": "2026-01-01T00:00:00Z"}]},
            }))],
            services: vec![
                object(json!({
                    "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]},
                    "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.200"}]}},
                })),
                object(json!({
                    "metadata": {"namespace": "default", "name": "late"},
                    "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
                    "status": {"conditions": [{
                        "type": "landfall.dev/Allocated", "status": "False", "reason": "PoolsExhausted",
                        "message": "no address is left", "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }]},
                })),
                object(json!({"metadata": {"namespace": "default", "name": "inner"}, "spec": {"type": "ClusterIP"}})),
            ],
        };
        let now = "2026-01-01T00:05:00Z".parse().expect("time");
        let expected = "\
POOLS
  NAME  ADDRESSES                AUTO-ASSIGN  USED  FREE  NOTES
  lan   192.0.2.200-192.0.2.201  yes          1     1     shares with old

SERVICES
  SERVICE       ADDRESS      PORTS           ANNOUNCED BY  NOTES
  default/late  <pending>    80/TCP                        PoolsExhausted: no address is left
  default/web   192.0.2.200  80/TCP, 53/UDP  n2 (eth0)

ADDRESSES
  ADDRESS      POOL  SERVICE      ANNOUNCED BY  SINCE  NOTES
  192.0.2.200  lan   default/web  n2 (eth0)     5m
";
        assert_eq!(report(&observed, now), expected);
    }

    #[test]
    fn an_empty_cluster_has_an_empty_report() {
        let expected = "POOLS\n  none\n\nSERVICES\n  none\n\nADDRESSES\n  none\n";
        assert_eq!(report(&Observed::default(), Timestamp::UNIX_EPOCH), expected);
    }
}
