//! Preferred nodes of advertisements.

use anyhow::Result;
use e2e::scene::Scene;
use serde_json::json;

use super::fixture::{AdvertisingFixture, EXCLUDE, nodes_named, other_nodes, prefer};

pub async fn an_eligible_preferred_node_takes_the_address_back(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 220, 221).await?;
    // A preference without a matching node has no effect.
    fixture.advertise("one", json!({"preferredNodeSelectors": [prefer("n9", 100)]})).await?;
    let addresses = fixture.create_service("web", "web", json!({})).await?;
    let first = fixture.wait_for_owners(&addresses).await?.swap_remove(0);
    let [second, third] = other_nodes(&first);
    fixture.advertise("one", json!({"preferredNodeSelectors": [prefer(second, 100)]})).await?;
    fixture.expect_answering(&addresses, &[second]).await?;
    fixture.label(second, json!({EXCLUDE: "true"})).await?;
    fixture.wait_for_answering(&addresses, |seen| seen.len() == 1 && !seen.contains(second)).await?;
    fixture.label(second, json!({EXCLUDE: null})).await?;
    fixture.expect_answering(&addresses, &[second]).await?;
    fixture.advertise("one", json!({"preferredNodeSelectors": [prefer(third, 100)]})).await?;
    fixture.expect_answering(&addresses, &[third]).await?;
    // Without a preference the address stays.
    fixture.withdraw_all().await?;
    scene.settle().await?;
    fixture.expect_answering(&addresses, &[third]).await
}

pub async fn weights_add_up_but_make_no_node_eligible(scene: &Scene<'_>) -> Result<()> {
    let fixture = AdvertisingFixture::prepare(scene, 222, 223).await?;
    // The weights: 90 for n1; 60 and 50 for n2; 100 for n3, which no advertisement selects.
    let both = [nodes_named(&["n1", "n2"])];
    let preferred = [prefer("n1", 90), prefer("n2", 60), prefer("n3", 100)];
    fixture.advertise("one", json!({"nodeSelectors": both, "preferredNodeSelectors": preferred})).await?;
    let addresses = fixture.create_service("web", "web", json!({"labels": {"app": "shop"}})).await?;
    fixture.expect_answering(&addresses, &["n1"]).await?;
    fixture.advertise("two", json!({"nodeSelectors": both, "preferredNodeSelectors": [prefer("n2", 50)]})).await?;
    fixture.expect_answering(&addresses, &["n2"]).await?;
    // A preference counts only for the Services of its advertisement.
    let bank = json!([{"matchLabels": {"app": "bank"}}]);
    let two = json!({"nodeSelectors": both, "preferredNodeSelectors": [prefer("n2", 50)], "serviceSelectors": bank});
    fixture.advertise("two", two).await?;
    fixture.expect_answering(&addresses, &["n1"]).await
}
