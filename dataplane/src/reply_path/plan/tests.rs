use super::*;
use crate::netlink::route::NEIGHBOUR;
use proptest::prelude::*;

fn name(link: &str) -> LinkName {
    LinkName::new(link).expect("a name")
}

fn hop(link: u32, gateway: &str) -> Hop {
    Hop { link, gateway: Some(gateway.parse().expect("an address")), on_link: false }
}

fn route(destination: &str, hops: &[Hop]) -> Route {
    let neighbours = hops.iter().all(|hop| hop.gateway.is_none());
    Route {
        table: MAIN,
        protocol: 3,
        kind: UNICAST,
        scope: if neighbours { NEIGHBOUR } else { ANYWHERE },
        service: 0,
        destination: destination.parse().expect("a network"),
        metric: 0,
        properties: Vec::new(),
        hops: hops.to_vec(),
        wraps: false,
    }
}

fn near(destination: &str, link: u32) -> Route {
    route(destination, &[Hop { link, gateway: None, on_link: false }])
}

/// Two links, of which the first has the default route.
fn two_links(more: &[Route]) -> Observed {
    let routes = [near("192.0.2.0/24", 2), near("203.0.113.0/24", 3), route("0.0.0.0/0", &[hop(2, "192.0.2.254")])];
    let links = [(name("eth0"), 2), (name("eth1"), 3)].into();
    Observed { links, routes: [&routes[..], more].concat(), ..Observed::default() }
}

fn wanted() -> Wanted {
    Wanted { links: [name("eth0"), name("eth1")].into(), families: [Family::V4].into() }
}

/// What a table of the plan has: destinations, and routers.
fn table(plan: &Plan, slot: u32) -> Vec<(String, Option<String>)> {
    let routes = plan.routes.values().filter(|route| route.table == TABLES + slot);
    routes
        .map(|route| {
            let router = route.hops.first().and_then(|hop| hop.gateway).map(|router| router.to_string());
            (route.destination.to_string(), router)
        })
        .collect()
}

#[test]
fn each_link_has_a_table_of_the_routes_by_it_and_a_router_for_everybody_where_it_can_be_known() {
    let text = |routes: &[(&str, &str)]| -> Vec<(String, Option<String>)> {
        let router = |router: &str| Some(router.to_owned()).filter(|router| !router.is_empty());
        routes.iter().map(|(to, by)| ((*to).to_owned(), router(by))).collect()
    };
    let near_eth1 = ("203.0.113.0/24", "");
    let gap: BTreeSet<Gap> = [Gap::NoRouter(Family::V4, name("eth1"))].into();
    let far = |destination, gateway| route(destination, &[hop(3, gateway)]);
    for (case, more, eth1, gaps) in [
        ("no router", vec![], text(&[near_eth1]), &gap),
        (
            "its own default route",
            vec![Route { metric: 500, ..far("0.0.0.0/0", "203.0.113.254") }],
            text(&[("0.0.0.0/0", "203.0.113.254"), near_eth1]),
            &BTreeSet::new(),
        ),
        (
            "one router for some",
            vec![far("10.0.0.0/8", "203.0.113.254"), far("172.16.0.0/12", "203.0.113.254")],
            text(&[
                ("0.0.0.0/0", "203.0.113.254"),
                ("10.0.0.0/8", "203.0.113.254"),
                ("172.16.0.0/12", "203.0.113.254"),
                near_eth1,
            ]),
            &BTreeSet::new(),
        ),
        (
            "two routers for some",
            vec![far("10.0.0.0/8", "203.0.113.254"), far("172.16.0.0/12", "203.0.113.253")],
            text(&[("10.0.0.0/8", "203.0.113.254"), ("172.16.0.0/12", "203.0.113.253"), near_eth1]),
            &gap,
        ),
        (
            "a route by both links",
            vec![route("10.0.0.0/8", &[hop(2, "192.0.2.254"), hop(3, "203.0.113.254")])],
            text(&[("0.0.0.0/0", "203.0.113.254"), ("10.0.0.0/8", "203.0.113.254"), near_eth1]),
            &BTreeSet::new(),
        ),
        (
            "what is no way for clients",
            vec![
                Route { kind: 7, ..far("10.0.0.0/8", "203.0.113.254") },
                Route { wraps: true, ..far("10.1.0.0/16", "203.0.113.254") },
                near("169.254.0.0/16", 3),
                near("fe80::/64", 3),
                near("2001:db8::/64", 3),
            ],
            text(&[near_eth1]),
            &gap,
        ),
    ] {
        let plan = plan(&wanted(), &two_links(&more), Mask::default());
        assert_eq!((table(&plan, 2), &plan.gaps), (eth1, gaps), "{case}");
        assert_eq!(table(&plan, 1)[0], ("0.0.0.0/0".into(), Some("192.0.2.254".into())), "{case}");
    }
}

#[test]
fn a_family_with_one_way_back_is_left_alone() {
    let dual = Wanted { families: FAMILIES.into(), ..wanted() };
    let plan = |more: &[Route]| super::plan(&dual, &two_links(more), Mask::default());
    let families = |plan: Plan| plan.returns.into_iter().map(|one| one.family).collect::<BTreeSet<_>>();
    assert_eq!(families(plan(&[near("2001:db8::/64", 3)])), [Family::V4].into());
    assert_eq!(families(plan(&[near("2001:db8::/64", 3), near("2001:db8:1::/64", 2)])), FAMILIES.into());
    let mut alone = two_links(&[]);
    alone.links.remove(&name("eth1"));
    assert_eq!(super::plan(&dual, &alone, Mask::default()), Plan::default());
    assert_eq!(super::plan(&Wanted::default(), &two_links(&[]), Mask::default()), Plan::default());
}

#[test]
fn more_links_than_marks_are_told() {
    let links: BTreeMap<LinkName, u32> = (2..6).map(|link| (name(&format!("eth{link}")), link)).collect();
    let routes = (2..6).map(|link| near(&format!("10.{link}.0.0/16"), link)).collect();
    let observed = Observed { links: links.clone(), routes, ..Observed::default() };
    let wanted = Wanted { links: links.into_keys().collect(), ..wanted() };
    let plan = plan(&wanted, &observed, Mask::new(0x3).expect("a mask"));
    assert_eq!(plan.returns.len(), 3);
    assert!(plan.gaps.contains(&Gap::NoMark(name("eth5"))), "{:?}", plan.gaps);
}

#[test]
fn rules_under_another_mask_are_replaced() {
    let mut observed = two_links(&[]);
    let before = plan(&wanted(), &observed, Mask::new(0x6).expect("a mask"));
    observed.rules.extend(before.rules.clone());
    observed.routes.extend(before.routes.into_values());
    let after = plan(&wanted(), &observed, Mask::default());
    let rules = |rules: &BTreeSet<Rule>| rules.iter().map(|rule| (rule.table, rule.mark)).collect::<Vec<_>>();
    assert_eq!(rules(&after.rules), [(TABLES + 1, 0x10), (TABLES + 2, 0x20)]);
    let removed = before.rules.iter().map(|rule| Change::Remove(*rule));
    let expected: Vec<Change> = after.rules.iter().map(|rule| Change::Add(*rule)).chain(removed).collect();
    assert_eq!(diff(&observed, &after), expected);
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let hop = (2u32..6, proptest::option::of(1u8..4)).prop_map(|(link, router)| Hop {
        link,
        gateway: router.map(|n| [10, 0, 0, n].into()),
        on_link: false,
    });
    let table = prop_oneof![3 => Just(MAIN), 1 => TABLES + 1..TABLES + 4, 1 => Just(100)];
    let route = (table, 0u8..4, 0u8..3, prop_oneof![Just(3), Just(PROTOCOL)], hop).prop_map(
        |(table, octet, length, protocol, hop)| Route {
            table,
            protocol: if table == MAIN { 3 } else { protocol },
            ..route(&format!("{}.0.0.0/{}", if length == 0 { 0 } else { 16 * octet }, 4 * length), &[hop])
        },
    );
    // The kernel has one of each way.
    proptest::collection::vec(route, 0..20).prop_map(|mut routes| {
        let mut seen = BTreeSet::new();
        routes.retain(|route| seen.insert(way(route)));
        routes
    })
}

proptest! {
    #[test]
    fn the_difference_makes_of_what_there_is_what_should_be_and_touches_nothing_of_others(
        routes in routes(),
        links in proptest::collection::btree_set(2u32..6, 0..5),
        gone in proptest::collection::btree_set(2u32..6, 0..3),
    ) {
        let links: BTreeMap<LinkName, u32> =
            links.into_iter().map(|link| (name(&format!("eth{}", 9 - link)), link)).collect();
        let wanted = Wanted { links: links.keys().copied().collect(), families: [Family::V4].into() };
        let mut observed = Observed { links, routes, ..Observed::default() };
        let first = plan(&wanted, &observed, Mask::default());
        let changes = diff(&observed, &first);
        applied(&mut observed, &changes);
        // Planned again, nothing changes.
        let again = plan(&wanted, &observed, Mask::default());
        prop_assert_eq!(&again, &first);
        prop_assert_eq!(diff(&observed, &again), Vec::new());
        // Links that stay keep their marks.
        observed.links.retain(|_, link| !gone.contains(link));
        let fewer = plan(&wanted, &observed, Mask::default());
        for one in &fewer.returns {
            prop_assert!(first.returns.contains(one), "{:?} of {:?}", one, first.returns);
        }
    }
}

/// What the kernel would make of these changes. Others have none.
fn applied(observed: &mut Observed, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(route) => {
                assert!(route.protocol == PROTOCOL && is_ours(route.table));
                let same = |other: &Route| other.protocol == PROTOCOL && way(other) == way(route);
                observed.routes.retain(|other| !same(other));
                observed.routes.push(route.clone());
            }
            Change::Delete(route) => {
                assert!(route.protocol == PROTOCOL && is_ours(route.table));
                observed.routes.retain(|other| other != route);
            }
            Change::Add(rule) => observed.rules.push(*rule),
            Change::Remove(rule) => observed.rules.retain(|other| other != rule),
        }
    }
}
