//! Writes of the controller that a policy of the cluster refuses.

use anyhow::{Context, Result, ensure};
use crds::{LoadBalancerIP, LoadBalancerIPSpec, address};
use e2e::Scenes;
use e2e::scene::Scene;
use e2e::world::SOON;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use lab::wait_until;
use serde_json::json;

pub fn add_scenes(scenes: &mut Scenes<'_>) {
    scenes.add(refusals_of_a_policy_are_stated_until_they_end);
}

const POLICY: &str = "refuse-a-load-balancer-ip";
const MESSAGE: &str = "this address needs an approval";

async fn refusals_of_a_policy_are_stated_until_they_end(scene: &Scene<'_>) -> Result<()> {
    let lb_ip = scene.ip(10);
    let client = || scene.world.client.clone();
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client());
    scene.create_pool("lan", json!({"addresses": [scene.range(10, 11)]})).await?;
    let policy = json!({
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["landfall.dev"], "apiVersions": ["*"], "operations": ["CREATE"],
                "resources": ["loadbalancerips"],
            }]},
            "validations": [{
                "expression": format!("object.metadata.name != '{}'", address::object_name(lb_ip)),
                "message": MESSAGE,
            }],
        },
    });
    let binding = json!({"metadata": {"name": POLICY}, "spec": {"policyName": POLICY, "validationActions": ["Deny"]}});
    policies.create(&PostParams::default(), &serde_json::from_value(policy)?).await.context("create the policy")?;
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await.context("create the binding")?;
    let result = play(scene, &policies, &bindings).await;
    // Also after a failure.
    bindings.delete(POLICY, &DeleteParams::default()).await.ok();
    policies.delete(POLICY, &DeleteParams::default()).await.ok();
    result
}

async fn play(
    scene: &Scene<'_>,
    policies: &Api<ValidatingAdmissionPolicy>,
    bindings: &Api<ValidatingAdmissionPolicyBinding>,
) -> Result<()> {
    let lb_ip = scene.ip(10);
    wait_until(SOON, "the policy to take effect", async || {
        let spec = LoadBalancerIPSpec { address: lb_ip.to_string(), ..LoadBalancerIPSpec::default() };
        let attempt = LoadBalancerIP::new(&address::object_name(lb_ip), spec);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let answer = scene.record_api().create(&dry_run, &attempt).await;
        ensure!(answer.as_ref().is_err_and(|error| error.to_string().contains(MESSAGE)), "{answer:?}");
        Ok(())
    })
    .await?;
    scene.create_service("web", json!({})).await?;
    let message = scene.expect_refusal("web", "WriteRefused").await?;
    ensure!(message.contains(MESSAGE) && message.contains(&lb_ip.to_string()), "{message}");
    let note = scene.expect_event("web", "Warning", "WriteRefused").await?;
    ensure!(note == message, "{note}");
    let version = scene.get_service("web").await?.metadata.resource_version;
    // The next address is not affected, and the repeated attempts write nothing.
    scene.create_service("other", json!({})).await?;
    scene.expect_addresses("other", &[scene.ip(11)]).await?;
    scene.settle().await?;
    ensure!(scene.get_service("web").await?.metadata.resource_version == version, "an attempt changed the Service");
    let events = scene.events_of("web").await?;
    ensure!(events.iter().filter(|event| event.reason == "WriteRefused").count() == 1, "{events:?}");
    bindings.delete(POLICY, &DeleteParams::default()).await?;
    policies.delete(POLICY, &DeleteParams::default()).await?;
    // The next attempt may come 30 s after the last one.
    wait_until(2 * SOON, "the refused Service to get its address", async || {
        let shown = e2e::world::ingress(&scene.get_service("web").await?);
        ensure!(shown == [lb_ip], "{shown:?}");
        Ok(())
    })
    .await?;
    scene.expect_addresses("web", &[lb_ip]).await
}
