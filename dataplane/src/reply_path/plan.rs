//! The rules and routes by which replies leave by the link of the request. [`plan_routing`]: [`ReplyPathInput`] and
//! [`ObservedRouting`] → [`RoutingPlan`]. [`diff_routing`] returns the changes to make. Pure.
//!
//! A link keeps its mark while one of our tables in the kernel has routes by the link, because connections outlive
//! agents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crds::service::Family;
use ipnet::IpNet;

use super::{Gap, Mask, ReplyPath, ReplyPathInput};
use crate::link_name::LinkName;
use netlink::route::{Hop, MAIN, Route, Rule, SCOPE_UNIVERSE, UNICAST, anywhere};

/// The protocol of our routes and rules (RTPROT_*): an unregistered number (/etc/iproute2/rt_protos).
pub const PROTOCOL: u8 = 76;
/// The routing table of slot n has this number plus n.
pub const TABLES: u32 = 76_000;
/// The priority of our rules. They come after the rules of network plugins for their own traffic (Cilium up to 111),
/// and before rules that route packets of pods elsewhere.
pub const PRIORITY: u32 = 760;
/// The metric of an inferred default route, which the main table does not have.
const METRIC: u32 = 1024;
/// The greatest number of routes in a table. Those with the shortest prefixes are kept. Replies to other destinations
/// take the default route of the table. Without one, as on a node with all routes of the internet, they follow the
/// node's own routes.
const MAX_ROUTES: usize = 256;

/// The kernel's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRouting {
    /// The existing links of the input, with their indexes.
    pub links: BTreeMap<LinkName, u32>,
    /// The routes of the main table by those links, and all routes in our tables.
    pub routes: Vec<Route>,
    /// All rules.
    pub rules: Vec<Rule>,
    /// The links on which the kernel filters strictly by source (rp_filter 1).
    pub strict: BTreeSet<LinkName>,
}

/// The desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingPlan {
    /// The links whose connections are marked.
    pub reply_paths: BTreeSet<ReplyPath>,
    /// Our rules.
    pub rules: BTreeSet<Rule>,
    /// Our routes.
    pub routes: BTreeMap<RouteKey, Route>,
    pub gaps: BTreeSet<Gap>,
}

/// Identifies a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    table: u32,
    destination: IpNet,
    metric: u32,
}

impl RouteKey {
    fn new(route: &Route) -> Self {
        Self { table: route.table, destination: route.destination, metric: route.metric }
    }
}

/// A change of the kernel's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Adds a route, or replaces the one with its key.
    PutRoute(Route),
    AddRule(Rule),
    DeleteRule(Rule),
    DeleteRoute(Route),
}

/// Plans the desired state. It is empty for a family in which fewer than two links have routes, since there is at most
/// one reply path then.
pub fn plan_routing(input: &ReplyPathInput, observed: &ObservedRouting, mask: Mask) -> RoutingPlan {
    let mut plan = RoutingPlan::default();
    let families: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|family| input.families.contains(family))
        .filter(|family| {
            observed.links.values().filter(|link| !routes_by_link(observed, *family, **link).is_empty()).count() > 1
        })
        .collect();
    if families.is_empty() {
        return plan;
    }
    let slots = assign_slots(observed, mask, &mut plan.gaps);
    for (name, link) in &observed.links {
        let Some(slot) = slots.get(name) else { continue };
        let (mark, table) = (mask.mark(*slot), TABLES + slot);
        for family in &families {
            let routes = routes_by_link(observed, *family, *link);
            if routes.is_empty() {
                continue;
            }
            plan.reply_paths.insert(ReplyPath { family: *family, link: *name, mark });
            plan.rules.insert(Rule {
                family: *family,
                priority: PRIORITY,
                table,
                protocol: PROTOCOL,
                mark: mark.value,
                mask: mark.mask.bits(),
                plain: true,
            });
            let default = match missing_default_route(*family, &routes) {
                Ok(default) => default,
                Err(UnknownRouter) => {
                    plan.gaps.insert(Gap::NoRouter(*family, *name));
                    None
                }
            };
            for route in routes.into_iter().chain(default) {
                let route = Route { table, protocol: PROTOCOL, ..route };
                plan.routes.entry(RouteKey::new(&route)).or_insert(route);
            }
            if *family == Family::V4 && observed.strict.contains(name) && default_link(observed) != Some(*link) {
                plan.gaps.insert(Gap::StrictFilter(*name));
            }
        }
    }
    plan
}

/// The changes from the kernel's state to the plan, in an order in which the routes of a rule exist before the rule.
/// Routes and rules of other programs are ignored.
pub fn diff_routing(observed: &ObservedRouting, plan: &RoutingPlan) -> Vec<RouteChange> {
    let ours = |route: &&Route| route.protocol == PROTOCOL && is_our_table(route.table);
    let existing: BTreeMap<RouteKey, &Route> =
        observed.routes.iter().filter(ours).map(|route| (RouteKey::new(route), route)).collect();
    let rules: BTreeSet<Rule> = observed.rules.iter().filter(|rule| is_our_rule(rule)).copied().collect();
    let put = plan.routes.iter().filter(|(key, route)| existing.get(*key) != Some(route));
    let put = put.map(|(_, route)| RouteChange::PutRoute(route.clone()));
    let add = plan.rules.difference(&rules).map(|rule| RouteChange::AddRule(*rule));
    let remove = rules.difference(&plan.rules).map(|rule| RouteChange::DeleteRule(*rule));
    let delete = existing.iter().filter(|(key, _)| !plan.routes.contains_key(*key));
    let delete = delete.map(|(_, route)| RouteChange::DeleteRoute((*route).clone()));
    // The kernel accepts a gateway only if a route to it exists, so routes without a gateway come first.
    let mut puts: Vec<RouteChange> = put.collect();
    puts.sort_by_key(
        |change| matches!(change, RouteChange::PutRoute(route) if route.hops.iter().any(|hop| hop.gateway.is_some())),
    );
    puts.into_iter().chain(add).chain(remove).chain(delete).collect()
}

/// Whether this is the number of one of our tables, under any mask.
pub fn is_our_table(table: u32) -> bool {
    (1..=255).contains(&table.wrapping_sub(TABLES))
}

fn is_our_rule(rule: &Rule) -> bool {
    rule.protocol == PROTOCOL && is_our_table(rule.table) && rule.plain
}

/// Assigns slots to links. A link that has a slot in the kernel's routes keeps it.
fn assign_slots(observed: &ObservedRouting, mask: Mask, gaps: &mut BTreeSet<Gap>) -> BTreeMap<LinkName, u32> {
    let foreign_routes = observed.routes.iter().filter(|route| route.protocol != PROTOCOL).map(|route| route.table);
    let foreign_rules = observed.rules.iter().filter(|rule| !is_our_rule(rule)).map(|rule| rule.table);
    let taken: BTreeSet<u32> = foreign_routes.chain(foreign_rules).filter(|table| is_our_table(*table)).collect();
    gaps.extend(taken.iter().filter(|table| **table - TABLES <= mask.slots()).map(|table| Gap::TakenTable(*table)));
    let free = |slot: &u32| !taken.contains(&(TABLES + slot));
    let mut slots = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (name, link) in &observed.links {
        let by_it = |route: &&Route| route.protocol == PROTOCOL && route.hops.iter().any(|hop| hop.link == *link);
        let current = observed.routes.iter().filter(by_it).map(|route| route.table);
        let current = current.filter(|table| is_our_table(*table)).map(|table| table - TABLES);
        let current = current.filter(|slot| *slot <= mask.slots()).filter(free).min();
        if let Some(slot) = current.filter(|slot| used.insert(*slot)) {
            slots.insert(*name, slot);
        }
    }
    for name in observed.links.keys() {
        if slots.contains_key(name) {
            continue;
        }
        match (1..=mask.slots()).filter(free).find(|slot| !used.contains(slot)) {
            Some(slot) => {
                used.insert(slot);
                slots.insert(*name, slot);
            }
            None => drop(gaps.insert(Gap::NoMark(*name))),
        }
    }
    slots
}

/// The link of the node's default route in IPv4.
fn default_link(observed: &ObservedRouting) -> Option<u32> {
    let default =
        |route: &&Route| route.table == MAIN && family_of(route) == Family::V4 && route.destination.prefix_len() == 0;
    let best = observed.routes.iter().filter(default).min_by_key(|route| route.metric)?;
    best.hops.first().map(|hop| hop.link)
}

/// The routes of the main table by a link, each with only the hop on that link, those with the shortest prefixes first.
fn routes_by_link(observed: &ObservedRouting, family: Family, link: u32) -> Vec<Route> {
    let usable = observed.routes.iter().filter(|route| {
        route.table == MAIN && route.kind == UNICAST && route.tos == 0 && !route.encap && family_of(route) == family
    });
    let is_global = |route: &&Route| match route.destination.addr() {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_multicast(),
    };
    let mut routes: Vec<Route> = usable
        .filter(is_global)
        .filter_map(|route| {
            let hop = route.hops.iter().filter(|hop| hop.link == link).min()?;
            Some(Route { hops: vec![*hop], ..route.clone() })
        })
        .collect();
    routes.sort_by_key(|route| (route.destination.prefix_len(), route.destination, route.metric, route.clone()));
    routes.dedup_by_key(|route| (route.destination, route.metric));
    routes.truncate(MAX_ROUTES);
    routes
}

/// No router is known to lead to all destinations.
struct UnknownRouter;

/// The default route to add if these routes lack one. If all routes with a gateway have the same gateway, that router
/// is assumed to lead to all other destinations. Otherwise the router for these is unknown.
fn missing_default_route(family: Family, routes: &[Route]) -> Result<Option<Route>, UnknownRouter> {
    if routes.iter().any(|route| route.destination.prefix_len() == 0) {
        return Ok(None);
    }
    let via_router = routes.iter().filter(|route| route.hops.iter().any(|hop| hop.gateway.is_some()));
    let routers: BTreeSet<Hop> = via_router.flat_map(|route| route.hops.clone()).collect();
    let [router] = routers.into_iter().collect::<Vec<_>>()[..] else { return Err(UnknownRouter) };
    Ok(Some(Route {
        table: MAIN,
        protocol: PROTOCOL,
        kind: UNICAST,
        scope: SCOPE_UNIVERSE,
        tos: 0,
        destination: anywhere(family),
        metric: METRIC,
        metrics: Vec::new(),
        hops: vec![router],
        encap: false,
    }))
}

fn family_of(route: &Route) -> Family {
    Family::from(route.destination.addr())
}

#[cfg(test)]
mod tests;
