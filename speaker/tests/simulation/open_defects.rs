//! Known defects. Each has a minimal test, which panics in the same way in each run. When a defect is mended, its test
//! no longer panics. Then remove `should_panic`, and the exclusion that names the test.

use std::time::Duration;

use crate::exploration::{Fault, check_reports, explore, observed_world};
use crate::{SETTLING_TIME, check, planned_moves};

/// TODO(correctness): a node that was cut off announces an address for a moment, until the owner's equal claim outbids
/// it. The owner does not announce again before its next refresh, so clients may use the wrong node until then.
#[test]
#[should_panic(expected = "the last to announce")]
fn outbid_node_is_not_the_last_to_announce() {
    // Without these faults, this seed meets the defect.
    explore(2979, &[Fault::LinkDown, Fault::LinkUp, Fault::Kill], &[]);
}

/// TODO(correctness): clients hear two nodes that do not hear each other. Without a third node to forward Hellos, both
/// announce all addresses for as long as the cut lasts.
#[test]
#[should_panic(expected = "has several announcers on LAN 0")]
fn pair_without_a_third_node_leaves_one_announcer() {
    let mut world = observed_world(1, 2);
    world.cut(0, 1, true);
    world.cut(1, 0, true);
    world.advance(Duration::from_secs(5));
}

/// TODO(correctness): one of two nodes hears neither its peer nor another host, but the peer still hears that node.
/// Then both announce the addresses of the peer until the node hears it again.
#[test]
#[should_panic(expected = "has several announcers on LAN 0")]
fn node_of_two_that_hears_nothing_leaves_one_announcer() {
    let mut world = observed_world(1, 2);
    world.cut(1, 0, true);
    world.advance(Duration::from_secs(5));
}

/// TODO(correctness): a stopping node without a quorum announces its addresses beside their new owner until its
/// handover timeout. The claim of the new owner is not backed, and therefore weaker than the old one.
#[test]
#[should_panic(expected = "has several announcers on LAN 0")]
fn node_stopping_without_a_quorum_leaves_in_time() {
    let mut world = observed_world(1, 4);
    for dead in [3, 2] {
        world.crash(dead);
        world.advance(Duration::from_secs(5));
    }
    world.stop(1);
    world.advance(SETTLING_TIME);
    check(&world);
}

/// TODO(correctness): an isolated node writes itself to the status as an announcer, with the epoch of the owner. If
/// that node dies, its entry stays, because only a greater epoch or a later claim removes the entry of another node.
#[test]
#[should_panic(expected = "the reported announcers of")]
fn entry_of_a_dead_isolated_node_leaves_the_api() {
    let mut world = observed_world(1, 3);
    world.isolate(1, true);
    world.advance(Duration::from_secs(5));
    world.crash(1);
    world.advance(Duration::from_secs(30));
    check_reports(&world);
}

/// TODO(correctness): two candidates can take a ceded address within a few milliseconds of each other, because neither
/// has heard the claim of the other. Then three nodes announce the address.
#[test]
#[should_panic(expected = "is owned by [0, 1, 2]")]
fn ceded_address_has_at_most_two_announcers() {
    planned_moves::drain_in_any_order(666_045_194_567);
}
