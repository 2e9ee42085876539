//! `landfall uninstall`: removes Landfall from the cluster completely, in a safe order.
//!
//! ```text
//!   policies           one of them forbids the deletion of addresses in use
//!   controller         assigns no further address
//!   Services           lose our finalizer, conditions and addresses, so that they can be deleted
//!   LoadBalancerIPs    agents withdraw these addresses, then remove them from the kernel
//!   agents             each removes its tables, rules and routes, since the DaemonSet is deleted
//!   the rest           pools, NodeNetworks, definitions, roles, namespace
//! ```
//!
//! Every step can be repeated: it skips objects that an earlier run or a `kubectl delete` has removed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use crds::condition::without_ours;
use crds::service::FINALIZER;
use crds::{IPAddressPool, InternedStr, LoadBalancerIP, NodeNetwork, Service};
use k8s_openapi::NamespaceResourceScope;
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

/// The names in deploy/landfall.yaml.
const CONTROLLER: &str = "landfall-controller";
const NODE: &str = "landfall-node";

/// The label of all objects in deploy/landfall.yaml.
const LABEL: &str = "app.kubernetes.io/name=landfall";

/// How long a step may take. A pod has 10 s to end; the rest is for a busy cluster.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// The options of `landfall uninstall`.
#[derive(Debug, Args)]
pub(crate) struct UninstallOptions {
    /// Remove Landfall. Without this option, only show what would be removed.
    #[arg(long)]
    yes: bool,

    /// Namespace of Landfall.
    #[arg(long, default_value = "landfall-system", value_name = "NAMESPACE")]
    namespace: String,

    /// Keep the definitions, pools and addresses. After a new installation, each Service has its former address.
    #[arg(long)]
    keep_crds: bool,

    /// Only stop the controller and release the Services, so that users can delete them. Another tool removes the rest.
    #[arg(long, conflicts_with = "keep_crds")]
    services_only: bool,
}

/// Removes Landfall, or shows what would be removed.
pub(crate) async fn run(connection: &Connection, options: UninstallOptions) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let services = our_services(&client).await?;
    if !options.yes {
        return print(&preview(&options, &services));
    }
    let namespace = &options.namespace;
    if !options.services_only {
        print("removing the policies\n")?;
        delete_policies(&client).await?;
    }
    print("removing the controller\n")?;
    delete_workload::<Deployment>(&client, namespace, CONTROLLER, "controller").await?;
    // The Services are read again, because the controller may have assigned further addresses.
    for ours in our_services(&client).await? {
        print(&format!("releasing Service {}\n", ours.service.key))?;
        release(&client, &ours).await?;
    }
    if options.services_only {
        return print("released the Services\n");
    }
    if !options.keep_crds {
        print("removing the addresses\n")?;
        delete_all::<LoadBalancerIP>(&client).await?;
    }
    print("removing the node agents\n")?;
    delete_workload::<DaemonSet>(&client, namespace, NODE, "node").await?;
    if !options.keep_crds {
        print("removing the pools and definitions\n")?;
        delete_all::<IPAddressPool>(&client).await?;
        delete_all::<NodeNetwork>(&client).await?;
        for definition in crds::manifest::definitions() {
            delete::<CustomResourceDefinition>(&Api::all(client.clone()), &definition.name_any()).await?;
        }
    }
    print("removing the roles and the namespace\n")?;
    for name in [CONTROLLER, NODE] {
        delete::<ClusterRoleBinding>(&Api::all(client.clone()), name).await?;
        delete::<ClusterRole>(&Api::all(client.clone()), name).await?;
    }
    delete::<Namespace>(&Api::all(client.clone()), namespace).await?;
    print("removed Landfall\n")
}

/// The text about a removal that has not begun.
fn preview(options: &UninstallOptions, services: &[OurService]) -> String {
    let names: Vec<_> = services.iter().map(|ours| format!("  {}\n", ours.service.key)).collect();
    let namespace = &options.namespace;
    let objects = if options.services_only {
        format!("the Deployment {namespace}/{CONTROLLER}")
    } else if options.keep_crds {
        format!("the namespace {namespace}, and Landfall's roles")
    } else {
        format!(
            "all IPAddressPools, L2Advertisements, LoadBalancerIPs and NodeNetworks, the namespace {namespace}, and \
             Landfall's definitions and roles"
        )
    };
    format!(
        "This would remove Landfall.\n\
         Services that would lose their addresses and conditions, and stay pending: {}\n{}\
         Objects that would be deleted: {objects}.\n\
         To proceed, add --yes.\n",
        services.len(),
        names.concat(),
    )
}

/// A kind of object that can be listed and deleted.
trait Object: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug {}

impl<K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug> Object for K {}

/// A Service that Landfall has written to.
struct OurService {
    service: Service,
    /// Whether Landfall wrote an address and the finalizer to the Service, and not only a condition. If false, an
    /// address or a finalizer of the Service may belong to another provider.
    has_address: bool,
}

/// The Services that Landfall has written to: those that hold an address, those with a condition of ours, and those to
/// which our controller added the finalizer. A finalizer that another client added proves nothing, because every
/// provider uses the same finalizer.
async fn our_services(client: &Client) -> anyhow::Result<Vec<OurService>> {
    let addresses = list::<LoadBalancerIP>(client).await?;
    let holders: BTreeSet<InternedStr> =
        addresses.into_iter().flat_map(|address| address.spec.services).map(|holder| holder.uid).collect();
    let services: Vec<core::Service> = list(client).await?;
    let views = services.iter().filter_map(|object| Service::try_from(object).ok());
    let has_address = |service: &Service| holders.contains(&service.uid) || service.was_given_addresses();
    Ok(views
        .map(|service| OurService { has_address: has_address(&service), service })
        .filter(|ours| ours.has_address || without_ours(&ours.service.conditions) != ours.service.conditions)
        .collect())
}

/// Removes all that Landfall has written to a Service.
async fn release(client: &Client, OurService { service, has_address }: &OurService) -> anyhow::Result<()> {
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
        Err(error) if !is_missing(&error) => Err(error).with_context(|| format!("release Service {}", service.key)),
        _ => Ok(()),
    }
}

/// Deletes our policies, each after its binding. The binding has the same name.
async fn delete_policies(client: &Client) -> anyhow::Result<()> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    let ours = policies.list(&ListParams::default().labels(LABEL)).await.context("list the policies")?;
    for name in ours.iter().map(ResourceExt::name_any) {
        delete::<ValidatingAdmissionPolicyBinding>(&Api::all(client.clone()), &name).await?;
        delete(&policies, &name).await?;
    }
    Ok(())
}

/// Deletes a Deployment or DaemonSet of Landfall, and waits until its pods have ended.
async fn delete_workload<K>(client: &Client, namespace: &str, name: &str, component: &str) -> anyhow::Result<()>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    delete::<K>(&Api::namespaced(client.clone(), namespace), name).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&format!("{LABEL},app.kubernetes.io/component={component}"));
    let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
    loop {
        let remaining: Vec<_> = pods.list(&ours).await.context("list Landfall's pods")?.items;
        match remaining.first() {
            None => return Ok(()),
            Some(pod) if tokio::time::Instant::now() > deadline => bail!(
                "pod {namespace}/{} does not end; if its node is down, delete the pod with --force and run this again",
                pod.name_any()
            ),
            Some(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Deletes all objects of a kind.
async fn delete_all<K: Object>(client: &Client) -> anyhow::Result<()> {
    let objects = Api::all(client.clone());
    let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
    for object in list::<K>(client).await? {
        loop {
            match delete::<K>(&objects, &object.name_any()).await {
                // An API server may enforce a policy for some time after its deletion.
                Err(error) if is_refused(&error) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                deleted => break deleted?,
            }
        }
    }
    Ok(())
}

/// All objects of a kind; none if the kind no longer exists.
async fn list<K: Object>(client: &Client) -> anyhow::Result<Vec<K>> {
    match Api::<K>::all(client.clone()).list(&ListParams::default()).await {
        Ok(objects) => Ok(objects.items),
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list objects of kind {}", K::kind(&()))),
    }
}

/// Deletes an object, if it exists.
async fn delete<K: Object>(objects: &Api<K>, name: &str) -> anyhow::Result<()> {
    match objects.delete(name, &DeleteParams::background()).await {
        Err(error) if !is_missing(&error) => Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
        _ => Ok(()),
    }
}

/// Whether a policy refuses the request: 403, or 422 if the ServiceAccount of the policy no longer exists.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if matches!(status.code, 403 | 422))
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
