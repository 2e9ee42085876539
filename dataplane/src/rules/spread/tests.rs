use super::*;
use proptest::prelude::*;

fn share(parts: &[(&str, u32)]) -> Share {
    Share::new(By::Flow, parts.iter().copied())
}

/// Who has each of the 1,024 pieces, with these nodes dead.
fn owners(share: &Share, dead: &[&str]) -> Vec<Arc<str>> {
    let table = share.table();
    let of = |number: u32| table.slots.get(&number).map(|token| table.nodes[token].clone());
    (0..SLOTS * PIECES)
        .map(|piece| {
            let ranked = of(piece / PIECES).or_else(|| of(FIRST_PIECE + piece)).expect("every piece is somebody's");
            match ranked.second {
                Some(second) if dead.contains(&&*ranked.first) => second,
                _ => ranked.first,
            }
        })
        .collect()
}

/// Which part of all each node has.
fn parts(owners: &[Arc<str>]) -> BTreeMap<&str, f64> {
    let mut parts = BTreeMap::new();
    for owner in owners {
        *parts.entry(&**owner).or_default() += 1.0 / owners.len() as f64;
    }
    parts
}

/// Which part has another owner.
fn moved(before: &[Arc<str>], after: &[Arc<str>]) -> f64 {
    before.iter().zip(after).filter(|(a, b)| a != b).count() as f64 / before.len() as f64
}

fn a_share() -> impl Strategy<Value = Share> {
    proptest::collection::btree_map("[a-z]{1,8}", 1u32..9, 1..9)
        .prop_map(|parts| Share::new(By::Flow, parts.iter().map(|(node, part)| (&**node, *part))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_node_gets_what_its_weight_says_to_a_thousandth(share in a_share()) {
        let all: u32 = share.weights.values().sum();
        let owners = owners(&share, &[]);
        let parts = parts(&owners);
        for (node, weight) in &share.weights {
            let should = f64::from(*weight) / f64::from(all);
            prop_assert!((parts[&**node] - should).abs() <= 1.0 / 1024.0, "{node}: {} and not {should}", parts[&**node]);
        }
    }

    #[test]
    fn when_a_node_dies_only_what_was_its_own_moves_and_the_rest_share_it(share in a_share()) {
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
    fn a_table_is_never_larger_than_a_message_of_some_hundred_entries(share in a_share()) {
        let whole = share.table().slots.keys().filter(|slot| **slot < FIRST_PIECE).count();
        let left = SLOTS as usize - whole;
        prop_assert!(left < share.weights.len().max(1));
        prop_assert_eq!(share.table().slots.len(), whole + left * PIECES as usize);
    }
}

#[test]
fn the_same_proportions_have_the_same_table_and_others_another() {
    assert_eq!(share(&[("a", 2), ("b", 4)]), share(&[("b", 2), ("a", 1), ("c", 0)]));
    let tokens: BTreeSet<Token> = [
        share(&[("a", 1), ("b", 2)]),
        share(&[("a", 1), ("b", 2)]).decided(By::Client),
        share(&[("a", 2), ("b", 1)]),
        share(&[("a", 1)]),
        share(&[("b", 1)]),
        share(&[("a", 1), ("b", 1), ("c", 1)]),
    ]
    .iter()
    .map(Share::token)
    .collect();
    assert_eq!(tokens.len(), 6);
    assert!(tokens.iter().all(|token| token.0[0] & 1 == 1), "no host has such an address");
}

#[test]
fn tokens_and_ranks_are_equal_in_every_version() {
    let table = share(&[("n1", 1), ("n2", 2)]);
    assert_eq!(table.token(), Token([0x8b, 0x34, 0x60, 0x30, 0xed, 0x88]));
    assert_eq!(table.token_by(By::Client), Token([0xd5, 0xd8, 0xb5, 0xa3, 0x11, 0x91]));
    let ranked = |second: Option<&str>| Ranked { first: "n1".into(), second: second.map(Arc::from) };
    assert_eq!(ranked(Some("n2")).token(), Token([0x7f, 0x10, 0x95, 0xbc, 0xbe, 0xc2]));
    assert_eq!(ranked(None).token(), Token([0x27, 0xac, 0x74, 0x88, 0xef, 0xec]));
    assert_eq!(rank("n1", "default/web"), 0xf253_11b2_bd27_7e4a);
}

#[test]
fn little_moves_when_a_node_comes_or_has_one_endpoint_more() {
    // How much has to move, and how much more does: the price of shares that are exact.
    let equal = |count: usize| -> Vec<String> { (0..count).map(|n| format!("worker-{n}")).collect() };
    for count in 2..9usize {
        let names = equal(count + 1);
        let some = |count: usize| Share::new(By::Flow, names[..count].iter().map(|name| (&**name, 1)));
        let has_to = 1.0 / (count as f64 + 1.0);
        let moved = moved(&owners(&some(count), &[]), &owners(&some(count + 1), &[]));
        assert!(moved <= has_to + 0.10, "{count} nodes and one more: {moved} instead of {has_to}");
    }
}

#[test]
fn the_table_is_the_same_in_every_version_and_on_every_machine() {
    // Nodes of two versions must agree while they are upgraded.
    let table = share(&[("n1", 1), ("n2", 2)]).table();
    let sum = table.slots.iter().fold(0u64, |sum, (slot, token)| {
        let [a, b, c, d, e, f] = token.0;
        splitmix64(sum ^ u64::from(*slot) << 48 ^ u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    });
    assert_eq!((table.slots.len(), sum), (79, 3_990_524_850_249_790_243), "a change here needs a way to upgrade");
}
