use super::*;
use crate::fixtures::{ip, pool};
use proptest::prelude::*;

fn texts(pool: &Pool) -> Vec<String> {
    pool.ranges.iter().map(ToString::to_string).collect()
}

fn overlap(pool: &str, range: &str) -> Overlap {
    Overlap { pool: pool.into(), range: range.parse().expect("a range") }
}

#[test]
fn shared_addresses_belong_to_the_older_pool_and_the_other_serves_the_rest() {
    let pools = [
        pool("a-younger", 2, &["192.0.2.0-192.0.2.30", "192.0.2.100-192.0.2.101"]),
        pool("b-older", 1, &["192.0.2.5-192.0.2.9", "192.0.2.15-192.0.2.15", "192.0.2.30-192.0.2.40"]),
    ];
    let pools = Pools::new(&pools, &Occupied::default());
    let [older, younger] = &pools.pools[..] else { panic!("two pools") };
    assert_eq!(older.name(), "b-older");
    assert_eq!((texts(older).len(), older.overlaps.len()), (3, 0));
    assert_eq!(
        texts(younger),
        ["192.0.2.0-192.0.2.4", "192.0.2.10-192.0.2.14", "192.0.2.16-192.0.2.29", "192.0.2.100-192.0.2.101"]
    );
    assert_eq!(
        younger.overlaps.listed(),
        [
            overlap("b-older", "192.0.2.5-192.0.2.9"),
            overlap("b-older", "192.0.2.15-192.0.2.15"),
            overlap("b-older", "192.0.2.30-192.0.2.30"),
        ]
    );
}

#[test]
fn of_two_pools_of_one_age_the_first_by_name_is_the_older() {
    let pools = [pool("b", 1, &["192.0.2.1-192.0.2.2"]), pool("a", 1, &["192.0.2.1-192.0.2.1"])];
    let pools = Pools::new(&pools, &Occupied::default());
    assert_eq!(pools.pool_of(ip("192.0.2.1")).map(Pool::name), Some("a"));
    assert_eq!(pools.pool_of(ip("192.0.2.2")).map(Pool::name), Some("b"));
    assert_eq!(pools.pool_of(ip("192.0.2.3")).map(Pool::name), None);
}

#[test]
fn a_range_twice_in_one_pool_is_there_once_and_no_overlap() {
    let pools = [pool("lan", 1, &["192.0.2.1-192.0.2.9", "192.0.2.5-192.0.2.12", "192.0.2.1-192.0.2.9"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let lan = pools.iter().next().expect("a pool");
    assert_eq!((texts(lan), lan.overlaps.len()), (vec!["192.0.2.1-192.0.2.12".into()], 0));
}

#[test]
fn a_range_that_cannot_be_read_is_reported_and_the_others_serve() {
    let pools = [pool("lan", 1, &["192.0.2.9-192.0.2.1", "192.0.2.0/33", "192.0.2.20-192.0.2.21"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let lan = pools.iter().next().expect("a pool");
    assert_eq!(texts(lan), ["192.0.2.20-192.0.2.21"]);
    assert_eq!(
        lan.invalid.listed(),
        [InvalidRange::Order("192.0.2.9-192.0.2.1".into()), InvalidRange::Syntax("192.0.2.0/33".into())]
    );
}

#[test]
fn the_ends_of_a_network_are_withheld_unless_another_range_of_the_pool_has_them_inside() {
    for (ranges, withheld) in [
        (&["192.0.2.0/24"][..], &["192.0.2.0", "192.0.2.255"][..]),
        (&["192.0.2.0/30"], &["192.0.2.0", "192.0.2.3"]),
        (&["192.0.2.0/31"], &[]),
        (&["192.0.2.7/32"], &[]),
        (&["192.0.2.0-192.0.2.255"], &[]),
        (&["192.0.2.0/25", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.127", "192.0.2.128", "192.0.2.255"]),
        (&["192.0.2.0/24", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.255"]),
        (&["192.0.2.0/24", "192.0.2.255-192.0.2.255"], &["192.0.2.0"]),
        (&["0.0.0.0/0"], &["0.0.0.0", "255.255.255.255"]),
    ] {
        let pools = [pool("lan", 1, ranges)];
        let pools = Pools::new(&pools, &Occupied::default());
        let expected: BTreeSet<_> = withheld.iter().map(|text| ip(text)).collect();
        assert_eq!(pools.pools[0].withheld, expected, "{ranges:?}");
    }
}

#[test]
fn all_addresses_of_both_families_are_a_pool_as_any_other() {
    let pools = [pool("all", 2, &["0.0.0.0/0", "::/0"]), pool("lan", 1, &["192.0.2.1-192.0.2.1"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let all = &pools.pools[1];
    assert_eq!(texts(all)[..2], ["0.0.0.0-192.0.2.0", "192.0.2.2-255.255.255.255"]);
    assert!(all.has(Family::V6));
    assert_eq!(pools.pool_of(ip("2001:db8::1")).map(Pool::name), Some("all"));
}

proptest! {
    #[test]
    fn an_address_belongs_to_the_oldest_pool_that_names_it(
        written in proptest::collection::vec(proptest::collection::vec((0..40u8, 0..8u8), 1..4), 0..5),
    ) {
        let objects: Vec<_> = written
            .iter()
            .enumerate()
            .map(|(age, ranges)| {
                let texts: Vec<_> = ranges.iter().map(|(a, n)| format!("192.0.2.{a}-192.0.2.{}", a + n)).collect();
                pool(&format!("p{age}"), age as i64, &texts.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let pools = Pools::new(objects.iter().rev(), &Occupied::default());
        let mut sizes = vec![0; written.len()];
        for last in 0..60u8 {
            let has = |ranges: &Vec<(u8, u8)>| ranges.iter().any(|(a, n)| (*a..=a + n).contains(&last));
            let owner = written.iter().position(has);
            let found = pools.pool_of(IpAddr::from([192, 0, 2, last])).map(|pool| pool.name().to_owned());
            prop_assert_eq!(found, owner.map(|index| format!("p{index}")));
            owner.into_iter().for_each(|index| sizes[index] += 1);
        }
        for (pool, size) in pools.iter().zip(sizes) {
            prop_assert_eq!(pool.ranges.iter().map(Range::size).sum::<u128>(), size);
        }
    }
}
