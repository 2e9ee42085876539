use super::*;
use netlink::route::SCOPE_LINK;
use proptest::prelude::*;

fn name(link: &str) -> LinkName {
    LinkName::new(link).expect("a name")
}

fn hop(link: u32, gateway: &str) -> Hop {
    Hop { link, gateway: Some(gateway.parse().expect("an address")), on_link: false }
}

fn route(destination: &str, hops: &[Hop]) -> Route {
    let is_on_link = hops.iter().all(|hop| hop.gateway.is_none());
    Route {
        table: MAIN,
        protocol: 3,
        kind: UNICAST,
        scope: if is_on_link { SCOPE_LINK } else { SCOPE_UNIVERSE },
        tos: 0,
        destination: destination.parse().expect("a network"),
        metric: 0,
        metrics: Vec::new(),
        hops: hops.to_vec(),
        encap: false,
    }
}

fn on_link(destination: &str, link: u32) -> Route {
    route(destination, &[Hop { link, gateway: None, on_link: false }])
}

/// Two links. The first has the default route.
fn two_links(more: &[Route]) -> ObservedRouting {
    let routes =
        [on_link("192.0.2.0/24", 2), on_link("203.0.113.0/24", 3), route("0.0.0.0/0", &[hop(2, "192.0.2.254")])];
    let links = [(name("eth0"), 2), (name("eth1"), 3)].into();
    ObservedRouting { links, routes: [&routes[..], more].concat(), ..ObservedRouting::default() }
}

fn input() -> ReplyPathInput {
    ReplyPathInput { links: [name("eth0"), name("eth1")].into(), families: [Family::V4].into() }
}

/// The destinations and routers in a table of the plan.
fn table(plan: &RoutingPlan, slot: u32) -> Vec<(String, Option<String>)> {
    let routes = plan.routes.values().filter(|route| route.table == TABLES + slot);
    routes
        .map(|route| {
            let router = route.hops.first().and_then(|hop| hop.gateway).map(|router| router.to_string());
            (route.destination.to_string(), router)
        })
        .collect()
}

#[test]
fn each_link_gets_its_routes_and_a_default() {
    let text = |routes: &[(&str, &str)]| -> Vec<(String, Option<String>)> {
        let router = |router: &str| Some(router.to_owned()).filter(|router| !router.is_empty());
        routes.iter().map(|(to, by)| ((*to).to_owned(), router(by))).collect()
    };
    let eth1_net = ("203.0.113.0/24", "");
    let gap: BTreeSet<Gap> = [Gap::NoRouter(Family::V4, name("eth1"))].into();
    let far = |destination, gateway| route(destination, &[hop(3, gateway)]);
    for (case, more, eth1, gaps) in [
        ("no router", vec![], text(&[eth1_net]), &gap),
        (
            "its own default route",
            vec![Route { metric: 500, ..far("0.0.0.0/0", "203.0.113.254") }],
            text(&[("0.0.0.0/0", "203.0.113.254"), eth1_net]),
            &BTreeSet::new(),
        ),
        (
            "one router for some",
            vec![far("10.0.0.0/8", "203.0.113.254"), far("172.16.0.0/12", "203.0.113.254")],
            text(&[
                ("0.0.0.0/0", "203.0.113.254"),
                ("10.0.0.0/8", "203.0.113.254"),
                ("172.16.0.0/12", "203.0.113.254"),
                eth1_net,
            ]),
            &BTreeSet::new(),
        ),
        (
            "two routers for some",
            vec![far("10.0.0.0/8", "203.0.113.254"), far("172.16.0.0/12", "203.0.113.253")],
            text(&[("10.0.0.0/8", "203.0.113.254"), ("172.16.0.0/12", "203.0.113.253"), eth1_net]),
            &gap,
        ),
        (
            "a route by both links",
            vec![route("10.0.0.0/8", &[hop(2, "192.0.2.254"), hop(3, "203.0.113.254")])],
            text(&[("0.0.0.0/0", "203.0.113.254"), ("10.0.0.0/8", "203.0.113.254"), eth1_net]),
            &BTreeSet::new(),
        ),
        (
            "unusable routes",
            vec![
                Route { kind: 7, ..far("10.0.0.0/8", "203.0.113.254") },
                Route { encap: true, ..far("10.1.0.0/16", "203.0.113.254") },
                on_link("169.254.0.0/16", 3),
                on_link("fe80::/64", 3),
                on_link("2001:db8::/64", 3),
            ],
            text(&[eth1_net]),
            &gap,
        ),
    ] {
        let plan = plan_routing(&input(), &two_links(&more), Mask::default());
        assert_eq!((table(&plan, 2), &plan.gaps), (eth1, gaps), "{case}");
        assert_eq!(table(&plan, 1)[0], ("0.0.0.0/0".into(), Some("192.0.2.254".into())), "{case}");
    }
}

#[test]
fn a_family_with_one_link_has_no_plan() {
    let dual = ReplyPathInput { families: Family::ALL.into(), ..input() };
    let plan = |more: &[Route]| plan_routing(&dual, &two_links(more), Mask::default());
    let families = |plan: RoutingPlan| plan.reply_paths.into_iter().map(|one| one.family).collect::<BTreeSet<_>>();
    assert_eq!(families(plan(&[on_link("2001:db8::/64", 3)])), [Family::V4].into());
    assert_eq!(families(plan(&[on_link("2001:db8::/64", 3), on_link("2001:db8:1::/64", 2)])), Family::ALL.into());
    let mut alone = two_links(&[]);
    alone.links.remove(&name("eth1"));
    assert_eq!(plan_routing(&dual, &alone, Mask::default()), RoutingPlan::default());
    assert_eq!(plan_routing(&ReplyPathInput::default(), &two_links(&[]), Mask::default()), RoutingPlan::default());
}

#[test]
fn more_links_than_marks_leave_a_gap() {
    let links: BTreeMap<LinkName, u32> = (2..6).map(|link| (name(&format!("eth{link}")), link)).collect();
    let routes = (2..6).map(|link| on_link(&format!("10.{link}.0.0/16"), link)).collect();
    let observed = ObservedRouting { links: links.clone(), routes, ..ObservedRouting::default() };
    let input = ReplyPathInput { links: links.into_keys().collect(), ..input() };
    let plan = plan_routing(&input, &observed, Mask::new(0x3).expect("a mask"));
    assert_eq!(plan.reply_paths.len(), 3);
    assert!(plan.gaps.contains(&Gap::NoMark(name("eth5"))), "{:?}", plan.gaps);
}

#[test]
fn rules_under_another_mask_are_replaced() {
    let mut observed = two_links(&[]);
    let before = plan_routing(&input(), &observed, Mask::new(0x6).expect("a mask"));
    observed.rules.extend(before.rules.clone());
    observed.routes.extend(before.routes.into_values());
    let after = plan_routing(&input(), &observed, Mask::default());
    let rules = |rules: &BTreeSet<Rule>| rules.iter().map(|rule| (rule.table, rule.mark)).collect::<Vec<_>>();
    assert_eq!(rules(&after.rules), [(TABLES + 1, 0x10), (TABLES + 2, 0x20)]);
    let removed = before.rules.iter().map(|rule| RouteChange::DeleteRule(*rule));
    let expected: Vec<RouteChange> =
        after.rules.iter().map(|rule| RouteChange::AddRule(*rule)).chain(removed).collect();
    assert_eq!(diff_routing(&observed, &after), expected);
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
    // The kernel has one route for each key.
    proptest::collection::vec(route, 0..20).prop_map(|mut routes| {
        let mut seen = BTreeSet::new();
        routes.retain(|route| seen.insert(RouteKey::new(route)));
        routes
    })
}

proptest! {
    #[test]
    fn changes_reach_the_plan_and_spare_other_programs(
        routes in routes(),
        links in proptest::collection::btree_set(2u32..6, 0..5),
        gone in proptest::collection::btree_set(2u32..6, 0..3),
    ) {
        let links: BTreeMap<LinkName, u32> =
            links.into_iter().map(|link| (name(&format!("eth{}", 9 - link)), link)).collect();
        let input = ReplyPathInput { links: links.keys().copied().collect(), families: [Family::V4].into() };
        let mut observed = ObservedRouting { links, routes, ..ObservedRouting::default() };
        let first = plan_routing(&input, &observed, Mask::default());
        let changes = diff_routing(&observed, &first);
        make_changes(&mut observed, &changes);
        // A second plan equals the first, and needs no changes.
        let again = plan_routing(&input, &observed, Mask::default());
        prop_assert_eq!(&again, &first);
        prop_assert_eq!(diff_routing(&observed, &again), Vec::new());
        // Links that stay keep their marks.
        observed.links.retain(|_, link| !gone.contains(link));
        let fewer = plan_routing(&input, &observed, Mask::default());
        for one in &fewer.reply_paths {
            prop_assert!(first.reply_paths.contains(one), "{:?} of {:?}", one, first.reply_paths);
        }
    }
}

/// Changes the state as the kernel would. A change must not concern routes of another program.
fn make_changes(observed: &mut ObservedRouting, changes: &[RouteChange]) {
    for change in changes {
        match change {
            RouteChange::PutRoute(route) => {
                assert!(route.protocol == PROTOCOL && is_our_table(route.table));
                let same = |other: &Route| other.protocol == PROTOCOL && RouteKey::new(other) == RouteKey::new(route);
                observed.routes.retain(|other| !same(other));
                observed.routes.push(route.clone());
            }
            RouteChange::DeleteRoute(route) => {
                assert!(route.protocol == PROTOCOL && is_our_table(route.table));
                observed.routes.retain(|other| other != route);
            }
            RouteChange::AddRule(rule) => observed.rules.push(*rule),
            RouteChange::DeleteRule(rule) => observed.rules.retain(|other| other != rule),
        }
    }
}
