//! Announcers of addresses, as seen on the LAN, with advertisements, node labels, endpoints and dead nodes.
//!
//! Every Service here has an IPv4 and an IPv6 address, and every check covers both. The checks send ARP requests and
//! neighbour solicitations on each of two LANs. Landfall's status must agree with the replies.
//!
//! | file | content |
//! |---|---|
//! | [`wire`] | ARP and NDP requests from the client |
//! | [`fixture`] | objects for the scenes |
//! | [`traffic`] | both traffic policies, shared addresses, excluded nodes, dead nodes and agents |
//! | [`selectors`] | nodes, interfaces and Services that advertisements select |
//! | [`preferences`] | preferred nodes |
//!
//! All are scenes on one cluster: see [`e2e::scene`].

mod fixture;
mod preferences;
mod selectors;
mod traffic;
mod wire;

use anyhow::Result;
use e2e::{Scenes, World};
use lab::Topology;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn selected_live_nodes_answer_for_addresses() -> Result<()> {
    let world = World::with_landfall("e2e-advertising", Topology::default()).await?;
    wire::add_second_lan(&world)?;
    world.create_whoami("web", 3).await?;
    world.create_whoami_with("first", 1, json!({"nodeName": "n1"})).await?;
    let mut scenes = Scenes::new(&world);
    scenes.add(traffic::one_node_announces_and_all_pods_are_reached);
    scenes.add(traffic::local_policy_reaches_all_pods_with_the_client_address);
    scenes.add(traffic::shared_addresses_are_announced_by_one_node);
    scenes.add(traffic::an_ineligible_node_hands_over_its_addresses_for_good);
    scenes.add(selectors::addresses_are_answered_only_on_selected_interfaces);
    scenes.add(selectors::the_announcer_follows_the_node_selector);
    scenes.add(selectors::local_policy_needs_a_selected_node_with_an_endpoint);
    scenes.add(selectors::an_advertisement_must_select_pool_and_service);
    scenes.add(preferences::an_eligible_preferred_node_takes_the_address_back);
    scenes.add(preferences::weights_add_up_but_make_no_node_eligible);
    scenes.add(traffic::addresses_of_a_node_without_agent_move_for_good);
    scenes.add_last(traffic::another_node_takes_over_from_a_dead_owner);
    scenes.play().await?;
    world.end()
}
