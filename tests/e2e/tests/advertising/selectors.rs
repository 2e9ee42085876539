//! Which nodes, interfaces and Services advertisements select.

use anyhow::{Result, ensure};
use e2e::scene::Scene;
use serde_json::json;

use crate::fixture::{ROLE, Stage, named};

pub async fn addresses_are_answered_on_the_interfaces_that_are_named_and_on_no_other(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 212, 213).await?;
    let n1 = [named(&["n1"])];
    stage.advertise("one", json!({"interfaces": ["eth1"], "nodeSelectors": n1})).await?;
    let addresses = stage.service("web", "web", json!({})).await?;
    stage.answered_by(&addresses, &["n1/eth1"]).await?;
    stage.advertise("one", json!({"interfaces": ["eth0"], "nodeSelectors": n1})).await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    // Where nobody has such an interface, nobody announces.
    stage.advertise("one", json!({"interfaces": ["eth9"]})).await?;
    stage.answered_by(&addresses, &[]).await?;
    // Together two are wider; on each of the links there is one node.
    stage.advertise("one", json!({"interfaces": ["eth0"], "nodeSelectors": n1})).await?;
    stage.advertise("two", json!({"interfaces": ["eth1", "eth9"], "nodeSelectors": [named(&["n1", "n2"])]})).await?;
    for seen in stage.answered(&addresses, |seen| seen.len() == 2).await? {
        let on_second = seen.contains("n1/eth1") || seen.contains("n2/eth1");
        ensure!(seen.contains("n1") && on_second, "{seen:?}");
    }
    Ok(())
}

pub async fn the_announcer_follows_the_node_selector_and_is_nobody_where_it_selects_nobody(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 214, 215).await?;
    stage.advertise("one", json!({"nodeSelectors": [named(&["n1"])]})).await?;
    let addresses = stage.service("web", "web", json!({})).await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    stage.advertise("one", json!({"nodeSelectors": [named(&["n2"])]})).await?;
    stage.answered_by(&addresses, &["n2"]).await?;
    stage.advertise("one", json!({"nodeSelectors": [{"matchLabels": {ROLE: "edge"}}]})).await?;
    stage.answered_by(&addresses, &[]).await?;
    stage.label("n3", json!({ROLE: "edge"})).await?;
    stage.answered_by(&addresses, &["n3"]).await
}

pub async fn under_local_a_node_answers_that_is_selected_and_has_an_endpoint(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 216, 217).await?;
    // Its only pod is on n1.
    stage.advertise("one", json!({"nodeSelectors": [named(&["n2"])]})).await?;
    stage.advertise("all", json!({})).await?;
    let addresses = stage.service("first", "first", json!({"externalTrafficPolicy": "Local"})).await?;
    stage.answered_by(&addresses, &["n1"]).await
}

pub async fn a_service_is_announced_where_an_advertisement_selects_its_pool_and_itself(
    scene: &Scene<'_>,
) -> Result<()> {
    let stage = Stage::set(scene, 218, 219).await?;
    let shop = json!([{"matchLabels": {"app": "shop"}}]);
    let shop_or_bank = json!([{"matchLabels": {"app": "shop"}}, {"matchLabels": {"app": "bank"}}]);
    let label =
        async |value: &str| scene.world.patch_service("web", json!({"metadata": {"labels": {"app": value}}})).await;
    // The Service is selected, and its pool isn't: then another advertisement says nothing of it, and by default it is
    // announced; with one that selects the pool and not the Service it is not.
    stage.advertise("one", json!({"ipAddressPools": ["other"], "serviceSelectors": shop})).await?;
    let addresses = stage.service("web", "web", json!({"labels": {"app": "shop"}})).await?;
    stage.owners(&addresses).await?;
    stage
        .advertise(
            "one",
            json!({"ipAddressPools": ["lan"], "serviceSelectors": shop, "nodeSelectors": [named(&["n1"])]}),
        )
        .await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    label("garden").await?;
    stage.answered_by(&addresses, &[]).await?;
    // One of several selectors is enough.
    stage.advertise("one", json!({"serviceSelectors": shop_or_bank, "nodeSelectors": [named(&["n1"])]})).await?;
    label("bank").await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    // Two advertisements on different nodes: one of them announces.
    stage.advertise("two", json!({"serviceSelectors": shop_or_bank, "nodeSelectors": [named(&["n2"])]})).await?;
    scene.settle().await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    // A node counts only where its own advertisement selects the Service.
    stage.advertise("one", json!({"serviceSelectors": shop, "nodeSelectors": [named(&["n1"])]})).await?;
    stage.answered_by(&addresses, &["n2"]).await
}
