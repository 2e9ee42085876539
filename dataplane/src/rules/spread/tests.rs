use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn share(parts: &[(&str, u32)]) -> Share {
    Share::new(HashBy::Flow, parts.iter().copied())
}

/// The node that gets each of the 1,024 pieces while these nodes are dead.
fn owners(share: &Share, dead: &[&str]) -> Vec<Arc<str>> {
    let table = share.table();
    let pair = |number: u32| table.slots.get(&number).map(|id| table.pairs[id].clone());
    (0..SLOTS * PIECES)
        .map(|piece| {
            let pair = pair(piece / PIECES).or_else(|| pair(FIRST_PIECE + piece)).expect("every piece has a pair");
            match pair.second {
                Some(second) if dead.contains(&&*pair.first) => second,
                _ => pair.first,
            }
        })
        .collect()
}

/// The part of all pieces that each node has.
fn parts(owners: &[Arc<str>]) -> BTreeMap<&str, f64> {
    let mut parts = BTreeMap::new();
    for owner in owners {
        *parts.entry(&**owner).or_default() += 1.0 / owners.len() as f64;
    }
    parts
}

/// The part of all pieces whose owner changes.
fn moved_part(before: &[Arc<str>], after: &[Arc<str>]) -> f64 {
    before.iter().zip(after).filter(|(a, b)| a != b).count() as f64 / before.len() as f64
}

fn a_share() -> impl Strategy<Value = Share> {
    proptest::collection::btree_map("[a-z]{1,8}", 1u32..9, 1..9)
        .prop_map(|parts| Share::new(HashBy::Flow, parts.iter().map(|(node, part)| (&**node, *part))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_part_equals_its_weight_to_a_thousandth(share in a_share()) {
        let all: u32 = share.weights.values().sum();
        let owners = owners(&share, &[]);
        let parts = parts(&owners);
        for (node, weight) in &share.weights {
            let should = f64::from(*weight) / f64::from(all);
            let part = parts[&**node];
            prop_assert!((part - should).abs() <= 1.0 / 1024.0, "{node}: {part} and not {should}");
        }
    }

    #[test]
    fn pieces_of_a_dead_node_move_evenly_and_no_others(share in a_share()) {
        prop_assume!(share.weights.len() > 1);
        for dead in share.nodes() {
            let (before, after) = (owners(&share, &[]), owners(&share, &[dead]));
            for (was, is) in before.iter().zip(&after) {
                prop_assert!(&**is != dead && (was == is || &**was == dead));
            }
            let left: u32 = share.weights.iter().filter(|(node, _)| &***node != dead).map(|(_, weight)| weight).sum();
            let parts = parts(&after);
            for (node, weight) in share.weights.iter().filter(|(node, _)| &***node != dead) {
                let should = f64::from(*weight) / f64::from(left);
                let found = parts.get(&**node).copied().unwrap_or(0.0);
                prop_assert!((found - should).abs() <= 1.0 / 64.0, "{node} without {dead}: {found} and not {should}");
            }
        }
    }

    #[test]
    fn fewer_slots_are_cut_than_nodes_exist(share in a_share()) {
        let whole = share.table().slots.keys().filter(|slot| **slot < FIRST_PIECE).count();
        let left = SLOTS as usize - whole;
        prop_assert!(left < share.weights.len().max(1));
        prop_assert_eq!(share.table().slots.len(), whole + left * PIECES as usize);
    }
}

#[test]
fn only_equal_proportions_share_a_table_id() {
    assert_eq!(share(&[("a", 2), ("b", 4)]), share(&[("b", 2), ("a", 1), ("c", 0)]));
    let ids: BTreeSet<TableId> = [
        share(&[("a", 1), ("b", 2)]),
        share(&[("a", 1), ("b", 2)]).hashed_by(HashBy::Client),
        share(&[("a", 2), ("b", 1)]),
        share(&[("a", 1)]),
        share(&[("b", 1)]),
        share(&[("a", 1), ("b", 1), ("c", 1)]),
    ]
    .iter()
    .map(Share::table_id)
    .collect();
    assert_eq!(ids.len(), 6);
}

#[test]
fn few_pieces_move_when_a_node_joins() {
    // Compares the part that must move with the part that moves. The difference is the cost of exact shares.
    let equal = |count: usize| -> Vec<String> { (0..count).map(|n| format!("worker-{n}")).collect() };
    for count in 2..9usize {
        let names = equal(count + 1);
        let some = |count: usize| Share::new(HashBy::Flow, names[..count].iter().map(|name| (&**name, 1)));
        let must_move = 1.0 / (count as f64 + 1.0);
        let moved = moved_part(&owners(&some(count), &[]), &owners(&some(count + 1), &[]));
        assert!(moved <= must_move + 0.10, "{count} nodes and one more: {moved} instead of {must_move}");
    }
}

#[test]
fn the_table_is_equal_in_all_versions_and_machines() {
    // Nodes of two versions must agree during an upgrade.
    let table = share(&[("n1", 1), ("n2", 2)]).table();
    // In the kernel an id has the bit of group addresses set.
    let sum =
        table.slots.iter().fold(0u64, |sum, (slot, id)| splitmix64(sum ^ u64::from(*slot) << 48 ^ (id.0 | 1 << 40)));
    assert_eq!((table.slots.len(), sum), (79, 3_990_524_850_249_790_243), "a change here needs a way to upgrade");
}
