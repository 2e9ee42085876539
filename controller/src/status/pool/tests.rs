use super::*;
use crate::fixtures::{at_second, ip, node, pool, record};
use crate::pools::Pools;
use crate::pools::free::Free;
use crate::pools::occupied::Occupied;
use crds::ip_address_pool::AddressRange;
use crds::{IPAddressPool, NodeAddresses};
use std::sync::Arc;

/// The statuses of these pools, oldest first, while the addresses in `used` are used.
fn statuses(pools: &[Arc<IPAddressPool>], occupied: &Occupied, used: &[&str]) -> Vec<IPAddressPoolStatus> {
    let pools = Pools::new(pools, occupied);
    let free = Free::new(&pools, used.iter().map(|text| ip(text)));
    let held = || PoolHolders::new([], 0);
    pools.iter().map(|pool| pool_status(pool, &free.counts(pool), held, &Truncated::default(), at_second(9))).collect()
}

/// The conditions as `Type=Status Reason: message`.
fn lines(status: &IPAddressPoolStatus) -> Vec<String> {
    status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)).collect()
}

fn edit_pool(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut IPAddressPool)) -> Arc<IPAddressPool> {
    edit(Arc::make_mut(&mut pool));
    pool
}

const READY: &str = "Ready=True Ready: Services can get addresses of this pool";
const NO_OVERLAP: &str = "Overlap=False NoOverlap: no older pool has any of its addresses";
const NOT_EXHAUSTED: &str = "Exhausted=False NotExhausted: it has free addresses";

fn overlap(text: &str) -> String {
    format!("Overlap=True Overlap: these addresses belong to an older pool: {text}; this pool assigns only its others")
}

#[test]
fn status_counts_used_and_available_addresses() {
    let lan = edit_pool(pool("lan", 1, &["192.0.2.0/28", "2001:db8::/64"]), |pool| {
        pool.metadata.generation = Some(4);
    });
    let nodes = [node("n1", "192.0.2.5"), node("n2", "192.0.2.15")];
    let network = NodeAddresses { gateways: vec![ip("192.0.2.6")], ..NodeAddresses::default() };
    let occupied = Occupied::new(nodes.iter().map(|node| &**node), [("n1", &network)]);
    // Of 16 addresses, three are used. Two nodes and a gateway have one each; that of n2 is the broadcast address.
    let used = ["192.0.2.0", "192.0.2.3", "192.0.2.4", "2001:db8::7"];
    let [status] = statuses(&[lan], &occupied, &used).try_into().expect("one pool");
    let ready = ", except those of nodes or gateways: 192.0.2.5 of node n1, \
                 192.0.2.6 of the gateway of node n1, 192.0.2.15 of node n2";
    assert_eq!(lines(&status), [format!("{READY}{ready}"), NO_OVERLAP.into(), NOT_EXHAUSTED.into()]);
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(4)));
    let numbers = IPAddressPoolStatus { conditions: vec![], ..status };
    assert_eq!(
        numbers,
        IPAddressPoolStatus {
            assigned_ipv4: 3,
            assigned_ipv6: 1,
            available_ipv4: 10,
            available_ipv6: i64::MAX,
            held_by: vec![],
            conditions: vec![],
        }
    );
}

#[test]
fn conditions_list_each_problem_with_its_addresses() {
    let selector = serde_json::json!({"serviceSelectors": [
        {"matchExpressions": [{"key": "app", "operator": "Like"}]},
    ]});
    let selector = serde_json::from_value(selector).expect("a serviceAllocation");
    let pools = [
        pool("lan", 1, &["192.0.2.0-192.0.2.9"]),
        pool("part", 2, &["192.0.2.9-192.0.2.10", "::1-::2"]),
        pool("none", 3, &["192.0.2.1-192.0.2.2"]),
        pool("bad", 4, &["nonsense", "198.51.100.0/31"]),
        edit_pool(pool("all-bad", 5, &["nonsense"]), |pool| pool.spec.drain = true),
        edit_pool(pool("shut", 6, &["198.51.100.8"]), |pool| pool.spec.exclude = pool.spec.addresses.clone()),
        edit_pool(pool("fence", 7, &["198.51.100.9"]), |pool| pool.spec.service_allocation = Some(selector)),
        edit_pool(pool("unsure", 8, &["2001:db8::/64"]), |pool| {
            pool.spec.exclude = vec![AddressRange("2001:db8::9-2001:db8::1".into())];
        }),
    ];
    let nonsense = "\"nonsense\" is not a CIDR such as 192.0.2.0/28, a range such as 192.0.2.10-192.0.2.20 or an \
                    address";
    let no = |text: &str| format!("Exhausted=False NoAddresses: {text}");
    let nothing = no("it has no addresses to assign");
    let expected = [
        [READY.to_owned(), NO_OVERLAP.to_owned(), NOT_EXHAUSTED.to_owned()].to_vec(),
        [READY.into(), overlap("192.0.2.9-192.0.2.9 of pool lan"), NOT_EXHAUSTED.into()].to_vec(),
        [
            "Ready=False Overlap: all its addresses belong to older pools: 192.0.2.1-192.0.2.2 of pool lan".into(),
            overlap("192.0.2.1-192.0.2.2 of pool lan"),
            nothing.clone(),
        ]
        .to_vec(),
        [
            format!("Ready=False InvalidRange: {nonsense}; Services can get its other addresses"),
            NO_OVERLAP.into(),
            NOT_EXHAUSTED.into(),
        ]
        .to_vec(),
        [
            format!(
                "Ready=False InvalidRange: {nonsense}; it has no addresses: add some to spec.addresses; spec.drain \
                 is set, so its addresses are no longer assigned"
            ),
            NO_OVERLAP.into(),
            nothing.clone(),
            "Drained=True Drained: no Service has an address of this pool: the pool can be deleted".into(),
        ]
        .to_vec(),
        [
            "Ready=False NoAddresses: none of its addresses can be assigned without a request by name".into(),
            NO_OVERLAP.into(),
            nothing.clone(),
        ]
        .to_vec(),
        [
            "Ready=False InvalidSelector: serviceAllocation.serviceSelectors[0] selects nothing: Invalid \
             expression operator; Services that match the other selectors can get addresses"
                .into(),
            NO_OVERLAP.into(),
            NOT_EXHAUSTED.into(),
        ]
        .to_vec(),
        [
            "Ready=False InvalidRange: spec.exclude: \"2001:db8::9-2001:db8::1\" ends before it begins; until this is \
             corrected, the pool assigns only addresses that are requested by name"
                .into(),
            NO_OVERLAP.into(),
            nothing,
        ]
        .to_vec(),
    ];
    let statuses = statuses(&pools, &Occupied::default(), &[]);
    assert_eq!(statuses.iter().map(lines).collect::<Vec<_>>(), expected);
}

#[test]
fn pool_is_exhausted_when_one_of_its_families_is() {
    let exhausted =
        |text: &str| format!("Exhausted=True Exhausted: {text}: add addresses, or create another IPAddressPool");
    let free = NOT_EXHAUSTED.to_owned();
    for (ranges, used, expected) in [
        (&["192.0.2.1"][..], &[][..], free.clone()),
        (&["192.0.2.1"], &["192.0.2.1"], exhausted("no IPv4 address is free")),
        (&["192.0.2.1", "::1"], &["::1"], exhausted("no IPv6 address is free; the other family has free addresses")),
        (&["192.0.2.1", "::1"], &["192.0.2.1", "::1"], exhausted("no IPv4 and no IPv6 address is free")),
        // Addresses that are assigned on request only do not count as free.
        (&["192.0.2.0/30"], &["192.0.2.1", "192.0.2.2"], exhausted("no IPv4 address is free")),
        (&["192.0.2.0/30"], &["192.0.2.0", "192.0.2.2"], free),
    ] {
        let [status] = statuses(&[pool("p", 1, ranges)], &Occupied::default(), used).try_into().expect("one");
        assert_eq!(lines(&status)[2], expected, "{ranges:?} {used:?}");
    }
}

#[test]
fn addresses_outside_the_networks_of_nodes_need_a_route() {
    let addresses = |networks: &[&str]| NodeAddresses {
        networks: networks.iter().map(|text| text.parse().expect("a network")).collect(),
        ..NodeAddresses::default()
    };
    let off = |ranges: &str, networks: &str| {
        Some(format!(
            "OffSubnet=True OffSubnet: no node has a network that contains {ranges}: clients need a route to these \
             addresses; the nodes have {networks}"
        ))
    };
    let many: Vec<_> = (0..8).map(|third| format!("10.0.{third}.0/24")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for (networks, ranges, exclude, expected) in [
        (&[][..], &["192.0.2.1"][..], "192.0.2.9", None),
        (&["192.0.2.0/24"], &["192.0.2.0/28", "192.0.2.255"], "192.0.2.9", None),
        (&["192.0.2.0/24"], &["198.51.100.7"], "192.0.2.9", off("198.51.100.7-198.51.100.7", "192.0.2.0/24")),
        (&["192.0.2.0/24"], &["192.0.2.1", "198.51.100.7"], "198.51.100.0/24", None),
        (
            &["192.0.2.0/25"],
            &["192.0.2.100-192.0.2.200"],
            "192.0.2.128",
            off("192.0.2.129-192.0.2.200", "192.0.2.0/25"),
        ),
        (&["192.0.2.0/25", "192.0.2.128/25"], &["192.0.2.100-192.0.2.200"], "192.0.2.9", None),
        (
            &["192.0.2.0/24", "2001:db8::/64"],
            &["2001:db8:1::/64"],
            "::1",
            off("2001:db8:1::-2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ),
        (
            &["192.0.2.0/24"],
            &["192.0.2.1", "2001:db8::1"],
            "::1",
            off("2001:db8::1-2001:db8::1", "no network of this family"),
        ),
        (
            &many,
            &["192.0.2.1", "192.0.2.3", "192.0.2.5", "192.0.2.7", "192.0.2.9", "192.0.2.11"],
            "::1",
            off(
                "192.0.2.1-192.0.2.1, 192.0.2.3-192.0.2.3, 192.0.2.5-192.0.2.5, 192.0.2.7-192.0.2.7, \
             192.0.2.9-192.0.2.9 and 1 more",
                "10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24, 10.0.3.0/24, 10.0.4.0/24 and 3 more",
            ),
        ),
    ] {
        let object = edit_pool(pool("lan", 1, ranges), |pool| pool.spec.exclude = vec![AddressRange(exclude.into())]);
        let occupied = Occupied::new([], [("n1", &addresses(networks))]);
        let [status] = statuses(&[object], &occupied, &[]).try_into().expect("one pool");
        let lines = lines(&status);
        assert_eq!(lines.get(3), expected.as_ref(), "{networks:?} {ranges:?}");
        assert!(lines[0].starts_with(READY), "{}", lines[0]);
        assert_eq!(warnings(&[], &status.conditions).count(), 0, "a route is no problem");
    }
}

#[test]
fn draining_pool_names_its_holders_until_it_is_empty() {
    let draining = edit_pool(pool("lan", 1, &["192.0.2.0/24"]), |pool| pool.spec.drain = true);
    let pools = Pools::new([&draining], &Occupied::default());
    let free = Free::new(&pools, []);
    let lan = pools.get("lan").expect("a pool");
    let outcome = |held: PoolHolders| {
        let status = pool_status(lan, &free.counts(lan), || held, &Truncated::default(), at_second(9));
        (lines(&status).pop().expect("Drained"), status.held_by)
    };
    let many: Vec<_> = (0..130).map(|number| format!("s{number:03}")).collect();
    let record_of = |names: &[&str]| record("192.0.2.1", "lan", names).1;
    let all = record_of(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let (line, held_by) = outcome(PoolHolders::new([&*all, &*all], 0));
    assert_eq!(
        line,
        "Drained=False Held: 130 Services still have addresses of this pool: default/s000, default/s001, default/s002, \
         default/s003, default/s004 and 125 more; move the Services: request another pool in \
         landfall.dev/address-pool"
    );
    assert_eq!((held_by.len(), held_by[99].as_str()), (100, "default/s099"));
    let (line, held_by) = outcome(PoolHolders::new([&*record_of(&["web"])], 2));
    assert_eq!(
        line,
        "Drained=False Held: 1 Service still has addresses of this pool: default/web; 2 LoadBalancerIPs of this \
         pool can't be read; move the Services: request another pool in landfall.dev/address-pool"
    );
    assert_eq!(held_by, ["default/web"]);
    // A reservation without holders does not count.
    let (line, held_by) = outcome(PoolHolders::new([&*record_of(&[])], 0));
    assert_eq!(line, "Drained=True Drained: no Service has an address of this pool: the pool can be deleted");
    assert_eq!(held_by, [""; 0]);
}

#[test]
fn temporary_conditions_end_and_foreign_conditions_stay() {
    let mut lan = edit_pool(pool("lan", 1, &["192.0.2.1"]), |pool| pool.spec.drain = true);
    let [drained] = statuses(std::slice::from_ref(&lan), &Occupied::default(), &[]).try_into().expect("one");
    let pool = Arc::make_mut(&mut lan);
    let other = Condition { type_: "example.com/Checked".into(), ..drained.conditions[0].clone() };
    pool.spec.drain = false;
    let off_subnet = Condition { type_: "OffSubnet".into(), ..drained.conditions[0].clone() };
    pool.status = Some(drained);
    pool.status.iter_mut().for_each(|status| status.conditions.push(off_subnet.clone()));
    pool.status.iter_mut().for_each(|status| status.conditions.push(other.clone()));
    let [now] = statuses(&[lan], &Occupied::default(), &[]).try_into().expect("one");
    let types: Vec<_> = now.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(types, ["Ready", "Overlap", "Exhausted", "example.com/Checked"]);
    assert_eq!(now.conditions[3], other);
}

#[test]
fn each_new_problem_is_one_warning() {
    let full = [pool("p", 1, &["192.0.2.1", "nonsense"])];
    let [before] = statuses(&full, &Occupied::default(), &[]).try_into().expect("one");
    let [now] = statuses(&full, &Occupied::default(), &["192.0.2.1"]).try_into().expect("one");
    let reasons =
        |before: &[Condition], now: &[Condition]| warnings(before, now).map(|(reason, _)| reason).collect::<Vec<_>>();
    assert_eq!(reasons(&[], &now.conditions), ["NotReady", "Exhausted"]);
    assert_eq!(reasons(&before.conditions, &now.conditions), ["Exhausted"]);
    assert_eq!(reasons(&now.conditions, &now.conditions), [""; 0]);
    assert_eq!(reasons(&now.conditions, &before.conditions), [""; 0]);
}
