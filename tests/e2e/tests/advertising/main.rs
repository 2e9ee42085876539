//! Who announces an address: what advertisements, labels of nodes, endpoints and losses make of it, as the LAN sees it.
//!
//! Every Service here has an address of either family, and everything that is said is said of both. What counts is who
//! answers ARP and neighbour solicitations on the wire, on each of two LANs; what Landfall says of itself must agree.
//!
//! | room | what is in it |
//! |---|---|
//! | [`wire`] | who answers, asked from the client |
//! | [`fixture`] | the objects that the scenes need |
//! | [`traffic`] | both traffic policies, shared addresses, nodes that take no traffic, and nodes and agents that go |
//! | [`selectors`] | which nodes, interfaces and Services advertisements select |
//! | [`preferences`] | which nodes they prefer |
//!
//! All are scenes on a common cluster: see [`e2e::scene`].

mod fixture;
mod preferences;
mod selectors;
mod traffic;
mod wire;

use anyhow::Result;
use e2e::World;
use e2e::scene::Scenes;
use lab::Topology;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_node_answers_that_advertisements_labels_and_endpoints_ask_for_and_one_that_lives() -> Result<()> {
    let world = World::with_landfall("e2e-advertising", Topology::default()).await?;
    wire::second_lan(&world)?;
    world.whoami("web", 3).await?;
    world.whoami_on("first", 1, json!({"nodeName": "n1"})).await?;
    let mut scenes = Scenes::on(&world);
    scenes.play(traffic::one_node_answers_and_says_so_and_every_pod_is_reached_until_the_service_goes).await;
    scenes.play(traffic::under_local_pods_on_all_nodes_are_reached_and_see_the_client).await;
    scenes.play(traffic::services_that_share_an_address_are_announced_by_one_node_wherever_their_pods_are).await;
    scenes.play(traffic::a_node_without_network_or_excluded_by_label_gives_its_addresses_away_for_good).await;
    scenes.play(selectors::addresses_are_answered_on_the_interfaces_that_are_named_and_on_no_other).await;
    scenes.play(selectors::the_announcer_follows_the_node_selector_and_is_nobody_where_it_selects_nobody).await;
    scenes.play(selectors::under_local_a_node_answers_that_is_selected_and_has_an_endpoint).await;
    scenes.play(selectors::a_service_is_announced_where_an_advertisement_selects_its_pool_and_itself).await;
    scenes.play(preferences::the_preferred_node_answers_as_long_as_it_may_and_gets_the_address_back).await;
    scenes.play(preferences::weights_add_up_over_advertisements_and_never_make_a_candidate).await;
    scenes.play(traffic::without_its_agent_a_node_gives_its_addresses_away_and_they_stay_where_they_went).await;
    scenes.play(traffic::when_the_owner_dies_another_node_answers_and_serves).await;
    scenes.end()?;
    world.end()
}
