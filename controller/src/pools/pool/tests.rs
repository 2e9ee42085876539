use std::collections::BTreeSet;

use crds::address::InvalidRange;
use crds::ip_address_pool::AddressRange;
use crds::{Labels, Range};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{ip, node, pool};
use crate::pools::{OccupiedAddress, Overlap};

fn texts(pool: &Pool) -> Vec<String> {
    pool.ranges.iter().map(ToString::to_string).collect()
}

fn overlap(pool: &str, range: &str) -> Overlap {
    Overlap { pool: pool.into(), range: range.parse().expect("a range") }
}

#[test]
fn shared_addresses_belong_to_the_older_pool() {
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
        younger.overlaps.first,
        [
            overlap("b-older", "192.0.2.5-192.0.2.9"),
            overlap("b-older", "192.0.2.15-192.0.2.15"),
            overlap("b-older", "192.0.2.30-192.0.2.30"),
        ]
    );
}

#[test]
fn equally_old_pools_are_ordered_by_name() {
    let pools = [pool("b", 1, &["192.0.2.1-192.0.2.2"]), pool("a", 1, &["192.0.2.1-192.0.2.1"])];
    let pools = Pools::new(&pools, &Occupied::default());
    assert_eq!(pools.pool_of(ip("192.0.2.1")).map(Pool::name), Some("a"));
    assert_eq!(pools.pool_of(ip("192.0.2.2")).map(Pool::name), Some("b"));
    assert_eq!(pools.pool_of(ip("192.0.2.3")).map(Pool::name), None);
}

#[test]
fn repeated_range_of_one_pool_is_no_overlap() {
    let pools = [pool("lan", 1, &["192.0.2.1-192.0.2.9", "192.0.2.5-192.0.2.12", "192.0.2.1-192.0.2.9"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let lan = pools.iter().next().expect("a pool");
    assert_eq!((texts(lan), lan.overlaps.len()), (vec!["192.0.2.1-192.0.2.12".into()], 0));
}

#[test]
fn unreadable_range_is_reported_and_the_others_serve() {
    let pools = [pool("lan", 1, &["192.0.2.9-192.0.2.1", "192.0.2.0/33", "192.0.2.20-192.0.2.21"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let lan = pools.iter().next().expect("a pool");
    assert_eq!(texts(lan), ["192.0.2.20-192.0.2.21"]);
    assert_eq!(
        lan.invalid.first,
        [InvalidRange::Order("192.0.2.9-192.0.2.1".into()), InvalidRange::Syntax("192.0.2.0/33".into())]
    );
}

#[test]
fn network_ends_are_withheld_unless_another_range_contains_them() {
    for (ranges, withheld) in [
        (&["192.0.2.0/24"][..], &["192.0.2.0", "192.0.2.255"][..]),
        (&["192.0.2.0/30"], &["192.0.2.0", "192.0.2.3"]),
        (&["192.0.2.0/31"], &[]),
        (&["192.0.2.7/32"], &[]),
        (&["192.0.2.7"], &[]),
        (&["192.0.2.0-192.0.2.255"], &[]),
        (&["192.0.2.0/25", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.127", "192.0.2.128", "192.0.2.255"]),
        (&["192.0.2.0/24", "192.0.2.128/25"], &["192.0.2.0", "192.0.2.255"]),
        (&["192.0.2.0/24", "192.0.2.255-192.0.2.255"], &["192.0.2.0"]),
        (&["0.0.0.0/0"], &["0.0.0.0", "255.255.255.255"]),
        (&["2001:db8::/64"], &["2001:db8::"]),
        (&["2001:db8::/127", "2001:db8::8/128"], &[]),
        (&["2001:db8::/64", "2001:db8::/48"], &["2001:db8::"]),
        (&["2001:db8:0:1::/64", "2001:db8::/48"], &["2001:db8::"]),
        (&["::/0"], &["::"]),
    ] {
        let pools = [pool("lan", 1, ranges)];
        let pools = Pools::new(&pools, &Occupied::default());
        let expected: BTreeSet<_> = withheld.iter().map(|text| ip(text)).collect();
        assert_eq!(pools.pools[0].network_ends, expected, "{ranges:?}");
        assert!(expected.iter().all(|address| pools.withheld(*address) == Some(Withheld::NetworkEnd)));
    }
    // A pool withholds no end that belongs to an older pool.
    let pools = [pool("old", 1, &["192.0.2.0-192.0.2.9"]), pool("lan", 2, &["192.0.2.0/24"])];
    let pools = Pools::new(&pools, &Occupied::default());
    assert_eq!(pools.pools[1].network_ends, [ip("192.0.2.255")].into());
    assert_eq!(pools.withheld(ip("192.0.2.0")), None);
}

fn edit_pool(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut crds::IPAddressPoolSpec)) -> Arc<IPAddressPool> {
    edit(&mut Arc::make_mut(&mut pool).spec);
    pool
}

fn address_ranges(texts: &[&str]) -> Vec<AddressRange> {
    texts.iter().map(|text| AddressRange((*text).to_owned())).collect()
}

#[test]
fn address_is_withheld_for_the_most_important_reason() {
    let pools = [
        edit_pool(pool("lan", 1, &["192.0.2.0/24", "192.0.3.0-192.0.3.1"]), |spec| {
            spec.exclude = address_ranges(&["192.0.2.8/30", "198.51.100.1", "nonsense"]);
            spec.avoid_buggy_ips = true;
        }),
        edit_pool(pool("young", 2, &["192.0.2.9", "198.51.100.0/31", "2001:db8::/64"]), |spec| {
            spec.exclude = address_ranges(&["192.0.2.20", "2001:db8::-2001:db8::f"]);
            spec.avoid_buggy_ips = true;
        }),
    ];
    let nodes = [node("n1", "192.0.2.9"), node("n2", "203.0.113.1")];
    let network = crds::NodeAddresses { gateways: vec![ip("192.0.2.255")], ..crds::NodeAddresses::default() };
    let occupied = Occupied::new(nodes.iter().map(|node| &**node), [("n2", &network)]);
    let pools = Pools::new(&pools, &occupied);
    let [n1, n2] = ["n1", "n2"].map(|name| Occupant::Node(name.into()));
    let gateway = Occupant::Gateway("n2".into());
    for (address, withheld, owner) in [
        ("192.0.2.0", Some(Withheld::Buggy), Some("lan")),
        ("192.0.2.7", None, Some("lan")),
        ("192.0.2.8", Some(Withheld::Excluded), Some("lan")),
        // The younger pool names it too, but does not get addresses that the older pool excludes.
        ("192.0.2.9", Some(Withheld::Occupied(&n1)), Some("lan")),
        // The exclusions of another pool have no effect here.
        ("192.0.2.20", None, Some("lan")),
        ("198.51.100.1", None, Some("young")),
        ("192.0.2.255", Some(Withheld::Occupied(&gateway)), Some("lan")),
        ("192.0.3.0", Some(Withheld::Buggy), Some("lan")),
        ("192.0.3.1", None, Some("lan")),
        ("203.0.113.1", Some(Withheld::Occupied(&n2)), None),
        ("203.0.113.2", None, None),
        ("2001:db8::", Some(Withheld::Excluded), Some("young")),
        ("2001:db8::1:0", None, Some("young")),
        ("2001:db8::ff", None, Some("young")),
    ] {
        let address = ip(address);
        let found = (pools.withheld(address), pools.pool_of(address).map(Pool::name));
        assert_eq!(found, (withheld, owner), "{address}");
    }
    let lan = pools.get("lan").expect("a pool");
    assert_eq!(lan.invalid_exclude.first, [InvalidRange::Syntax("nonsense".into())]);
    assert_eq!(
        lan.occupied.first,
        [OccupiedAddress { address: ip("192.0.2.255"), occupant: Occupant::Gateway("n2".into()) }],
        "excluded addresses are not reported as occupied"
    );
}

#[test]
fn pools_are_tried_by_priority_then_age() {
    let selector = |priority, namespaces: &[&str]| {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Some(crds::ServiceAllocation { priority, namespaces, ..Default::default() })
    };
    let pools = [
        pool("open-b", 1, &["192.0.2.1"]),
        edit_pool(pool("last", 1, &["192.0.2.2"]), |spec| spec.service_allocation = selector(0, &[])),
        edit_pool(pool("twenty", 1, &["192.0.2.3"]), |spec| spec.service_allocation = selector(20, &["a", "b"])),
        edit_pool(pool("ten-young", 3, &["192.0.2.4"]), |spec| spec.service_allocation = selector(10, &["a"])),
        edit_pool(pool("ten-old", 2, &["192.0.2.5"]), |spec| spec.service_allocation = selector(10, &["b"])),
        pool("open-a", 1, &["192.0.2.6"]),
        edit_pool(pool("by-hand", 0, &["192.0.2.7"]), |spec| spec.auto_assign = false),
        edit_pool(pool("dry", 0, &["192.0.2.8"]), |spec| spec.drain = true),
    ];
    let pools = Pools::new(&pools, &Occupied::default());
    let tried = |namespace: &str| {
        let admitting = pools.automatic().filter(|pool| pool.admits(namespace, None, &Labels::default()));
        admitting.map(Pool::name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(tried("a"), "ten-young twenty last open-a open-b");
    assert_eq!(tried("b"), "ten-old twenty last open-a open-b");
    assert_eq!(tried("c"), "last open-a open-b");
}

#[test]
fn object_with_a_new_status_replaces_the_old_one() {
    let old = pool("lan", 1, &["192.0.2.1"]);
    let mut pools = Pools::new([&old], &Occupied::default());
    let mut new = (*old).clone();
    new.metadata.resource_version = Some("2".into());
    new.status = Some(crds::IPAddressPoolStatus { assigned_ipv4: 7, ..Default::default() });
    assert!(pools.replace_object(&Arc::new(new.clone())));
    assert_eq!(pools.get("lan").map(|pool| &*pool.object), Some(&new));
    let mut other = new.clone();
    other.spec.drain = true;
    let mut recreated = new.clone();
    recreated.metadata.uid = Some("another".into());
    for changed in [other, recreated, (*pool("wan", 1, &["192.0.2.1"])).clone()] {
        assert!(!pools.replace_object(&Arc::new(changed)));
    }
    assert_eq!(pools.get("lan").map(|pool| &*pool.object), Some(&new));
}

#[test]
fn many_pools_ranges_and_nodes_are_built_fast() {
    // Pools with the maximum number of ranges and exclusions: each range is in four pools, and all are in the last
    // pool.
    let text = |pool: u32, range: u32| format!("10.{pool}.{range}.10-10.{pool}.{range}.99");
    let pools: Vec<_> = (0..100)
        .map(|index| {
            let ranges: Vec<_> = (0..256).map(|range| text(index / 4, range)).collect();
            let ranges: Vec<_> = ranges.iter().map(String::as_str).collect();
            edit_pool(pool(&format!("p{index:03}"), 1, &ranges), |spec| {
                spec.exclude = (0..256).map(|range| AddressRange(format!("10.{}.{range}.11", index / 4))).collect();
            })
        })
        .chain([pool("rest", 2, &["10.0.0.0/8"])])
        .collect();
    let nodes =
        (0..5_000).map(|index: u32| node(&format!("n{index}"), &format!("10.1.{}.{}", index / 100, index % 100)));
    let nodes: Vec<_> = nodes.collect();
    let occupied = Occupied::new(nodes.iter().map(|node| &**node), []);
    let pools = Pools::new(&pools, &occupied);
    let rest = pools.get("rest").expect("a pool");
    assert_eq!((pools.get("p000").map(|pool| pool.overlaps.len()), rest.overlaps.len()), (Some(0), 25 * 256));
    assert_eq!(pools.get("p001").map(|pool| (pool.overlaps.len(), pool.ranges.len())), Some((256, 0)));
    assert_eq!(pools.pool_of(ip("10.24.255.99")).map(Pool::name), Some("p096"));
    assert_eq!(pools.withheld(ip("10.24.255.11")), Some(Withheld::Excluded));
    assert_eq!(pools.withheld(ip("10.1.49.99")), Some(Withheld::Occupied(&Occupant::Node("n4999".into()))));
}

#[test]
fn pool_of_all_addresses_works_like_any_other() {
    let pools = [pool("all", 2, &["0.0.0.0/0", "::/0"]), pool("lan", 1, &["192.0.2.1-192.0.2.1"])];
    let pools = Pools::new(&pools, &Occupied::default());
    let all = &pools.pools[1];
    assert_eq!(texts(all)[..2], ["0.0.0.0-192.0.2.0", "192.0.2.2-255.255.255.255"]);
    assert!(all.has_family(Family::V6));
    assert_eq!(pools.pool_of(ip("2001:db8::1")).map(Pool::name), Some("all"));
}

proptest! {
    #[test]
    fn address_belongs_to_the_oldest_pool_that_names_it(
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
