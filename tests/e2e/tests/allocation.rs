//! Allocation of addresses to Services, and reasons of refusals.
//!
//! | file | content |
//! |---|---|
//! | `order` | order of allocation, and an address during the life of its Service |
//! | `pools` | selection of pools, and edits of pools, which never take an address away |
//! | `requests` | requests for addresses and pools, forged status, output of kubectl |
//! | `sharing` | several Services on one address |
//! | `dual_stack` | both families |
//! | `reservations` | reserved addresses |
//! | `refused_writes` | writes of the controller that a policy refuses |
//! | `permissions` | what the tokens of agents and controllers, and users, may write |
//! | `restarts` | restarts of the controller |
//! | `restores` | restore from a backup, and reinstallation |
//! | `high_availability` | leader election |
//! | `crash_safety` | a crash of the controller at each of its writes |
//!
//! Most are scenes on one cluster with one node, which is enough for allocation: see [`e2e::scenes`].

mod crash_safety;
mod dual_stack;
mod high_availability;
mod order;
mod permissions;
mod pools;
mod refused_writes;
mod requests;
mod reservations;
mod restarts;
mod restores;
mod sharing;

use anyhow::Result;
use e2e::{Scenes, World};
use lab::Topology;

#[tokio::test(flavor = "multi_thread")]
async fn services_get_and_keep_addresses_by_the_rules() -> Result<()> {
    let world = World::with_landfall("e2e-allocation", Topology { nodes: 1, ..Topology::default() }).await?;
    let mut scenes = Scenes::new(&world);
    order::add_scenes(&mut scenes);
    pools::add_scenes(&mut scenes);
    requests::add_scenes(&mut scenes);
    sharing::add_scenes(&mut scenes);
    dual_stack::add_scenes(&mut scenes);
    reservations::add_scenes(&mut scenes);
    permissions::add_scenes(&mut scenes);
    refused_writes::add_scenes(&mut scenes);
    restarts::add_scenes(&mut scenes);
    restores::add_scenes(&mut scenes);
    scenes.play().await?;
    world.end()
}
