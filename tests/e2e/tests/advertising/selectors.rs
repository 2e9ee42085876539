//! Nodes, interfaces and Services that advertisements select.

use anyhow::{Result, ensure};
use e2e::scene::Scene;
use serde_json::json;

use super::fixture::{AdvertisingFixture, ROLE, nodes_named};

pub async fn addresses_are_answered_only_on_selected_interfaces(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 212, 213).await?;
    let n1 = [nodes_named(&["n1"])];
    fixture.advertise("one", json!({"interfaces": ["eth1"], "nodeSelectors": n1})).await?;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    fixture.expect_answering(&addresses, &["n1/eth1"]).await?;
    fixture.advertise("one", json!({"interfaces": ["eth0"], "nodeSelectors": n1})).await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    // Without such an interface on any node, no node announces.
    fixture.advertise("one", json!({"interfaces": ["eth9"]})).await?;
    fixture.expect_answering(&addresses, &[]).await?;
    // Two advertisements add up, and each link has one announcer.
    fixture.advertise("one", json!({"interfaces": ["eth0"], "nodeSelectors": n1})).await?;
    fixture
        .advertise("two", json!({"interfaces": ["eth1", "eth9"], "nodeSelectors": [nodes_named(&["n1", "n2"])]}))
        .await?;
    for seen in fixture.wait_for_answering(&addresses, |seen| seen.len() == 2).await? {
        let on_second = seen.contains("n1/eth1") || seen.contains("n2/eth1");
        ensure!(seen.contains("n1") && on_second, "{seen:?}");
    }
    Ok(())
}

pub async fn the_announcer_follows_the_node_selector(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 214, 215).await?;
    fixture.advertise("one", json!({"nodeSelectors": [nodes_named(&["n1"])]})).await?;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    fixture.advertise("one", json!({"nodeSelectors": [nodes_named(&["n2"])]})).await?;
    fixture.expect_answering(&addresses, &["n2"]).await?;
    fixture.advertise("one", json!({"nodeSelectors": [{"matchLabels": {ROLE: "edge"}}]})).await?;
    fixture.expect_answering(&addresses, &[]).await?;
    fixture.label("n3", json!({ROLE: "edge"})).await?;
    fixture.expect_answering(&addresses, &["n3"]).await
}

pub async fn local_policy_needs_a_selected_node_with_an_endpoint(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 216, 217).await?;
    // Its only pod is on n1.
    fixture.advertise("one", json!({"nodeSelectors": [nodes_named(&["n2"])]})).await?;
    fixture.advertise("all", json!({})).await?;
    let addresses = fixture.create_service("first", "first", json!({"externalTrafficPolicy": "Local"})).await?;
    fixture.expect_answering(&addresses, &["n1"]).await
}

pub async fn an_advertisement_must_select_pool_and_service(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 218, 219).await?;
    let shop = json!([{"matchLabels": {"app": "shop"}}]);
    let shop_or_bank = json!([{"matchLabels": {"app": "shop"}}, {"matchLabels": {"app": "bank"}}]);
    let label =
        async |value: &str| scene.world.patch_service("web", json!({"metadata": {"labels": {"app": value}}})).await;
    // First the advertisement selects the Service but not its pool: it does not apply, so the address is announced by
    // default. At last it selects the pool but not the Service: the address is not announced.
    fixture.advertise("one", json!({"ipAddressPools": ["other"], "serviceSelectors": shop})).await?;
    let addresses = fixture.create_service("web", "web", json!({"labels": {"app": "shop"}})).await?;
    fixture.wait_for_owners(&addresses).await?;
    fixture
        .advertise(
            "one",
            json!({"ipAddressPools": ["lan"], "serviceSelectors": shop, "nodeSelectors": [nodes_named(&["n1"])]}),
        )
        .await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    label("garden").await?;
    fixture.expect_answering(&addresses, &[]).await?;
    // One of several selectors is enough.
    fixture
        .advertise("one", json!({"serviceSelectors": shop_or_bank, "nodeSelectors": [nodes_named(&["n1"])]}))
        .await?;
    label("bank").await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    // Two advertisements on different nodes: one of them announces.
    fixture
        .advertise("two", json!({"serviceSelectors": shop_or_bank, "nodeSelectors": [nodes_named(&["n2"])]}))
        .await?;
    scene.settle().await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    // A node is a candidate only if its own advertisement selects the Service.
    fixture.advertise("one", json!({"serviceSelectors": shop, "nodeSelectors": [nodes_named(&["n1"])]})).await?;
    fixture.expect_answering(&addresses, &["n2"]).await
}
