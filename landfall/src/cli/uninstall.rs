//! `landfall uninstall`: takes Landfall off the cluster and leaves nothing behind, in the order that can't go wrong.
//!
//! ```text
//!   policies go           that which keeps addresses in use from being deleted
//!   controller goes       nobody gives out addresses any more
//!   Services let go       our finalizer, conditions and addresses leave their status: they can be deleted
//!   addresses deleted     node agents withdraw them from the wire, then from the kernel
//!   node agents go        each takes its tables, rules and routes along, since no address is left
//!   all the rest          pools, what agents said of nodes, definitions, rights, namespace
//! ```
//!
//! Every step is repeatable, and finds what an earlier run, or a `kubectl delete`, has left.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use crds::condition::without_ours;
use crds::service::FINALIZER;
use crds::{IPAddressPool, InternedStr, LoadBalancerIP, NodeNetwork, Service};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{self as core, Namespace, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::output::print;
use crate::client::Connection;

/// The namespace and the names that deploy/landfall.yaml uses.
const NAMESPACE: &str = "landfall-system";
const CONTROLLER: &str = "landfall-controller";
const NODE: &str = "landfall-node";
const POLICIES: [&str; 2] = ["landfall-address-in-use", "landfall-own-node"];

/// How long each step may take; a pod has 10 s to end, and a busy cluster needs some more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to take away.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Do it. Without this, only say what would be done.
    #[arg(long)]
    yes: bool,
}

/// Does it, or says what it would do.
pub(crate) async fn run(connection: &Connection, options: Options) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let services = ours(&client).await?;
    if !options.yes {
        let names: Vec<_> = services.iter().map(|ours| format!("  {}\n", ours.service.key)).collect();
        return print(&format!(
            "Landfall would leave this cluster: {} Services lose their address (they stay, and stay pending),\n{}\
             and all IPAddressPools, LoadBalancerIPs, the namespace {NAMESPACE} and Landfall's definitions are deleted.\n\
             Do it with: landfall uninstall --yes\n",
            services.len(),
            names.concat(),
        ));
    }
    print("the policies and the controller go\n")?;
    for policy in POLICIES {
        delete::<ValidatingAdmissionPolicyBinding>(&Api::all(client.clone()), policy).await?;
        delete::<ValidatingAdmissionPolicy>(&Api::all(client.clone()), policy).await?;
    }
    end::<Deployment>(&client, CONTROLLER, "controller").await?;
    // Once more: the controller may have given an address to another one meanwhile.
    for ours in ours(&client).await? {
        print(&format!("Service {} is let go\n", ours.service.key))?;
        release(&client, &ours).await?;
    }
    print("the addresses are withdrawn\n")?;
    delete_all::<LoadBalancerIP>(&client).await?;
    print("the node agents go\n")?;
    end::<DaemonSet>(&client, NODE, "node").await?;
    print("pools, definitions, rights and the namespace go\n")?;
    delete_all::<IPAddressPool>(&client).await?;
    delete_all::<NodeNetwork>(&client).await?;
    for definition in crds::manifest::definitions() {
        delete::<CustomResourceDefinition>(&Api::all(client.clone()), &definition.name_any()).await?;
    }
    for name in [CONTROLLER, NODE] {
        delete::<ClusterRoleBinding>(&Api::all(client.clone()), name).await?;
        delete::<ClusterRole>(&Api::all(client.clone()), name).await?;
    }
    delete::<Namespace>(&Api::all(client.clone()), NAMESPACE).await?;
    print("Landfall is gone\n")
}

/// A Service that Landfall has written to.
struct Ours {
    service: Service,
    /// Whether address and finalizer are ours too, and not only a condition: a pending Service may have them from
    /// another provider.
    has_address: bool,
}

/// The Services that Landfall has written to: those that hold an address, and those with a condition of ours. The
/// finalizer alone proves nothing, since every provider uses it.
async fn ours(client: &Client) -> anyhow::Result<Vec<Ours>> {
    let addresses = list::<LoadBalancerIP>(client).await?;
    let holders: BTreeSet<InternedStr> =
        addresses.into_iter().flat_map(|address| address.spec.services).map(|holder| holder.uid).collect();
    let services: Vec<core::Service> = list(client).await?;
    let views = services.iter().filter_map(|object| Service::try_from(object).ok());
    Ok(views
        .filter(|service| holders.contains(&service.uid) || without_ours(&service.conditions) != service.conditions)
        .map(|service| Ours { has_address: holders.contains(&service.uid) || service.is_allocated(), service })
        .collect())
}

/// Takes out of a Service what Landfall wrote there.
async fn release(client: &Client, Ours { service, has_address }: &Ours) -> anyhow::Result<()> {
    let mut patch = json!({
        "metadata": {"resourceVersion": service.resource_version.to_string()},
        "status": {"conditions": without_ours(&service.conditions)},
    });
    if *has_address {
        let finalizers = service.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER);
        patch["metadata"]["finalizers"] = json!(finalizers.collect::<Vec<_>>());
        patch["status"]["loadBalancer"] = json!({"ingress": null});
    }
    let services: Api<core::Service> = Api::namespaced(client.clone(), &service.key.namespace);
    match services.patch_status(&service.key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(error) if !is_gone(&error) => Err(error).with_context(|| format!("let Service {} go", service.key)),
        _ => Ok(()),
    }
}

/// Deletes a workload of ours and waits until its pods are gone.
async fn end<K>(client: &Client, name: &str, component: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    delete::<K>(&Api::namespaced(client.clone(), NAMESPACE), name).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let of = ListParams::default()
        .labels(&format!("app.kubernetes.io/name=landfall,app.kubernetes.io/component={component}"));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = pods.list(&of).await.context("list Landfall's pods")?.items;
        match left.first() {
            None => return Ok(()),
            Some(pod) if tokio::time::Instant::now() > deadline => bail!(
                "pod {NAMESPACE}/{} does not end; is its node down? Then delete it with --force and run this again",
                pod.name_any()
            ),
            Some(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn delete_all<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let objects = Api::all(client.clone());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for object in list::<K>(client).await? {
        loop {
            match delete::<K>(&objects, &object.name_any()).await {
                // An API server may know the policy for some time after it was deleted.
                Err(error) if is_forbidden(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                deleted => break deleted?,
            }
        }
    }
    Ok(())
}

/// All objects of a kind; none where the kind itself isn't known any more.
async fn list<K>(client: &Client) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    match Api::<K>::all(client.clone()).list(&ListParams::default()).await {
        Ok(objects) => Ok(objects.items),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list objects of kind {}", K::kind(&()))),
    }
}

/// Deletes an object; fine if it is gone.
async fn delete<K>(objects: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    match objects.delete(name, &DeleteParams::background()).await {
        Err(error) if !is_gone(&error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
        _ => Ok(()),
    }
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 403)
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
