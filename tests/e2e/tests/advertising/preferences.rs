//! Which nodes advertisements prefer.

use anyhow::Result;
use e2e::scene::Scene;
use serde_json::json;

use crate::fixture::{EXCLUDE, Stage, named, others, prefer};

pub async fn the_preferred_node_answers_as_long_as_it_may_and_gets_the_address_back(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 220, 221).await?;
    // A preference that nobody meets changes nothing.
    stage.advertise("one", json!({"preferredNodeSelectors": [prefer("n9", 100)]})).await?;
    let addresses = stage.service("web", "web", json!({})).await?;
    let first = stage.owners(&addresses).await?.swap_remove(0);
    let [second, third] = others(&first);
    stage.advertise("one", json!({"preferredNodeSelectors": [prefer(second, 100)]})).await?;
    stage.answered_by(&addresses, &[second]).await?;
    stage.label(second, json!({EXCLUDE: "true"})).await?;
    stage.answered(&addresses, |seen| seen.len() == 1 && !seen.contains(second)).await?;
    stage.label(second, json!({EXCLUDE: null})).await?;
    stage.answered_by(&addresses, &[second]).await?;
    stage.advertise("one", json!({"preferredNodeSelectors": [prefer(third, 100)]})).await?;
    stage.answered_by(&addresses, &[third]).await?;
    // Without a preference there is no reason to move.
    stage.withdraw_all().await?;
    scene.settle().await?;
    stage.answered_by(&addresses, &[third]).await
}

pub async fn weights_add_up_over_advertisements_and_never_make_a_candidate(scene: &Scene<'_>) -> Result<()> {
    let stage = Stage::set(scene, 222, 223).await?;
    // 90 for n1; 60 and 50 for n2; 100 for n3, for which no advertisement lets it announce.
    let both = [named(&["n1", "n2"])];
    let preferred = [prefer("n1", 90), prefer("n2", 60), prefer("n3", 100)];
    stage.advertise("one", json!({"nodeSelectors": both, "preferredNodeSelectors": preferred})).await?;
    let addresses = stage.service("web", "web", json!({"labels": {"app": "shop"}})).await?;
    stage.answered_by(&addresses, &["n1"]).await?;
    stage.advertise("two", json!({"nodeSelectors": both, "preferredNodeSelectors": [prefer("n2", 50)]})).await?;
    stage.answered_by(&addresses, &["n2"]).await?;
    // It counts only for Services that it selects.
    let bank = json!([{"matchLabels": {"app": "bank"}}]);
    let two = json!({"nodeSelectors": both, "preferredNodeSelectors": [prefer("n2", 50)], "serviceSelectors": bank});
    stage.advertise("two", two).await?;
    stage.answered_by(&addresses, &["n1"]).await
}
