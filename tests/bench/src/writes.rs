//! The two writes that give a Service an address, as the rivals make them: the same objects, the same bytes but for
//! names, on the same conditions as Landfall's.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use crds::service::{ALLOCATED, FINALIZER};
use crds::{Holder, LoadBalancerIP, LoadBalancerIPSpec, address};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

/// Landfall's API group.
pub const LANDFALL: &str = crds::GROUP;

/// The group of a copy of Landfall's definitions, for the records of a rival. Landfall would delete records of its own
/// group whose Service it does not serve.
pub const COPY: &str = "bench.landfall.dev";

/// The class of the Services that the echo serves.
pub const ECHO_CLASS: &str = "bench.landfall.dev/echo";

/// The addresses of Landfall's pool: the lower half of the range of RFC 2544 for benchmarks.
pub const POOL: &str = "198.18.0.0/16";

/// The writer in `metadata.managedFields`.
const FIELD_MANAGER: &str = "bench";

/// Assigns addresses without a decision: the next one each time.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    records: Api<LoadBalancerIP>,
    copies: Option<Api<DynamicObject>>,
}

impl Writer {
    /// One whose records are of this group.
    pub fn new(client: Client, group: &str) -> Self {
        let copies = (group != LANDFALL).then(|| {
            let kind = GroupVersionKind::gvk(group, "v1alpha1", "LoadBalancerIP");
            Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "loadbalancerips"))
        });
        Self { records: Api::all(client.clone()), copies, client }
    }

    /// The n-th address of the upper half.
    pub fn address(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(198, 19, high, low))
    }

    /// Creates the record, then writes finalizer, address and condition to the Service in one patch of the observed
    /// version.
    pub async fn give(&self, service: &Service, lb_ip: IpAddr) -> Result<()> {
        self.record(service, lb_ip).await?;
        let patch = json!({
            "metadata": {"resourceVersion": service.resource_version(), "finalizers": [FINALIZER]},
            "status": {
                "loadBalancer": {"ingress": [{"ip": lb_ip.to_string(), "ipMode": "VIP"}]},
                "conditions": [{
                    "type": ALLOCATED, "status": "True", "reason": "Allocated",
                    "message": format!("{lb_ip} from pool bench"), "lastTransitionTime": Time(Timestamp::now()),
                }],
            },
        });
        let services: Api<Service> = Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default());
        let (name, patch) = (service.name_any(), Patch::Merge(patch));
        services.patch_status(&name, &params_of_patch(), &patch).await.context("write a status")?;
        Ok(())
    }

    /// Creates only the record: the Service holds the address, and its status does not show it.
    pub async fn record(&self, service: &Service, lb_ip: IpAddr) -> Result<()> {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let holder = Holder {
            namespace: namespace.into(),
            name: name.into(),
            uid: service.uid().unwrap_or_default().into(),
            terms: None,
        };
        let spec = LoadBalancerIPSpec {
            address: lb_ip.to_string(),
            pool: "bench".into(),
            services: vec![holder],
            ..LoadBalancerIPSpec::default()
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let record = LoadBalancerIP::new(&address::object_name(lb_ip), spec);
        match &self.copies {
            None => drop(self.records.create(&params, &record).await.context("create a record")?),
            Some(copies) => {
                let mut copy = serde_json::to_value(&record)?;
                copy["apiVersion"] = json!(format!("{COPY}/v1alpha1"));
                copies.create(&params, &serde_json::from_value(copy)?).await.context("create a record")?;
            }
        }
        Ok(())
    }

    /// Deletes the record of a Service that is being deleted, then removes the finalizer.
    pub async fn take_back(&self, service: &Service, lb_ip: IpAddr) -> Result<()> {
        let (name, params) = (address::object_name(lb_ip), DeleteParams::default());
        match &self.copies {
            None => drop(self.records.delete(&name, &params).await.context("delete a record")?),
            Some(copies) => drop(copies.delete(&name, &params).await.context("delete a record")?),
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"metadata": {"finalizers": []}}));
        services.patch_status(&service.name_any(), &params_of_patch(), &patch).await.context("release a Service")?;
        Ok(())
    }
}

fn params_of_patch() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// The address in a Service's status, if there is one.
pub fn ingress(service: &Service) -> Option<IpAddr> {
    let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
    balancer.ingress.as_ref()?.first()?.ip.as_ref()?.parse().ok()
}
