//! Which rules and routes lead answers back by the link that the request came in by: [`Wanted`] and [`Observed`] →
//! [`Plan`], by [`plan`]; and what to change, by [`diff`].
//!
//! A link keeps its mark as long as the kernel's tables show which one it has: connections live longer than agents.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crds::service::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Gap, Mask, Return, Wanted};
use crate::netlink::route::{ANYWHERE, Hop, MAIN, Route, Rule, UNICAST};
use crate::snapshot::LinkName;

/// Who made our routes and rules (RTPROT_*): a number that nobody has registered (/etc/iproute2/rt_protos).
pub const PROTOCOL: u8 = 76;
/// The routing table of mark 1 is the one after this.
pub const TABLES: u32 = 76_000;
/// Where our rules stand: behind those that network plugins make for their own traffic (Cilium up to 111), before those
/// that send what comes from pods somewhere else.
pub const PRIORITY: u32 = 760;
/// The metric of a default route that the table `main` does not have.
const METRIC: u32 = 1024;
/// How many routes a table takes at most, the widest first. A router that has the routes of the internet knows better by
/// its own, and who has this many gets the rest by their default route.
const MOST: usize = 256;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The wanted links that there are, with their numbers.
    pub links: BTreeMap<LinkName, u32>,
    /// The routes of the table `main` by those links, and all that are in tables of ours.
    pub routes: Vec<Route>,
    /// All rules.
    pub rules: Vec<Rule>,
    /// The links on which the kernel filters strictly by source.
    pub strict: BTreeSet<LinkName>,
}

/// What the kernel should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The links whose connections are marked.
    pub returns: BTreeSet<Return>,
    /// Our rules.
    pub rules: BTreeSet<Rule>,
    /// Our routes.
    pub routes: BTreeMap<Way, Route>,
    /// Where that is not enough.
    pub gaps: BTreeSet<Gap>,
}

/// Of these, a table has only one route: its number, the destination and the metric.
pub type Way = (u32, IpNet, u32);

/// A change of what the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A route comes, or becomes another.
    Put(Route),
    /// A rule comes.
    Add(Rule),
    /// A rule goes.
    Remove(Rule),
    /// A route goes.
    Delete(Route),
}

/// What should be there.
///
/// Nothing where a family has fewer than two links with routes, for then there is only one way back.
pub fn plan(wanted: &Wanted, observed: &Observed, mask: Mask) -> Plan {
    let mut plan = Plan::default();
    let families: Vec<Family> = FAMILIES
        .into_iter()
        .filter(|family| wanted.families.contains(family))
        .filter(|family| {
            observed.links.values().filter(|link| !by_link(observed, *family, **link).is_empty()).count() > 1
        })
        .collect();
    if families.is_empty() {
        return plan;
    }
    let slots = slots(observed, mask, &mut plan.gaps);
    for (name, link) in &observed.links {
        let Some(slot) = slots.get(name) else { continue };
        let (mark, table) = (mask.mark(*slot), TABLES + slot);
        for family in &families {
            let routes = by_link(observed, *family, *link);
            if routes.is_empty() {
                continue;
            }
            plan.returns.insert(Return { family: *family, link: *name, mark });
            plan.rules.insert(Rule {
                family: *family,
                priority: PRIORITY,
                table,
                protocol: PROTOCOL,
                mark: mark.value,
                mask: mark.mask.bits(),
                plain: true,
            });
            let default = match everybody(*family, &routes) {
                Ok(default) => default,
                Err(Unknown) => {
                    plan.gaps.insert(Gap::NoRouter(*family, *name));
                    None
                }
            };
            for route in routes.into_iter().chain(default) {
                let route = Route { table, protocol: PROTOCOL, ..route };
                plan.routes.entry(way(&route)).or_insert(route);
            }
            if *family == Family::V4 && observed.strict.contains(name) && usual(observed) != Some(*link) {
                plan.gaps.insert(Gap::StrictFilter(*name));
            }
        }
    }
    plan
}

/// What makes the kernel's routes and rules those of the plan, in an order in which a rule leads nowhere but to routes
/// that are there. What is not ours is not looked at.
pub fn diff(observed: &Observed, plan: &Plan) -> Vec<Change> {
    let ours = |route: &&Route| route.protocol == PROTOCOL && is_ours(route.table);
    let there: BTreeMap<Way, &Route> = observed.routes.iter().filter(ours).map(|route| (way(route), route)).collect();
    let rules: BTreeSet<Rule> = observed.rules.iter().filter(|rule| made_here(rule)).copied().collect();
    let put = plan.routes.iter().filter(|(way, route)| there.get(*way) != Some(route));
    let put = put.map(|(_, route)| Change::Put(route.clone()));
    let add = plan.rules.difference(&rules).map(|rule| Change::Add(*rule));
    let remove = rules.difference(&plan.rules).map(|rule| Change::Remove(*rule));
    let delete = there.iter().filter(|(way, _)| !plan.routes.contains_key(*way));
    let delete = delete.map(|(_, route)| Change::Delete((*route).clone()));
    // A default route needs its router to be a neighbour, so routes to neighbours are first.
    let mut puts: Vec<Change> = put.collect();
    puts.sort_by_key(
        |change| matches!(change, Change::Put(route) if route.hops.iter().any(|hop| hop.gateway.is_some())),
    );
    puts.into_iter().chain(add).chain(remove).chain(delete).collect()
}

/// Whether a table of this number would be ours, under any mask.
pub fn is_ours(table: u32) -> bool {
    (1..=255).contains(&table.wrapping_sub(TABLES))
}

fn made_here(rule: &Rule) -> bool {
    rule.protocol == PROTOCOL && is_ours(rule.table) && rule.plain
}

fn way(route: &Route) -> Way {
    (route.table, route.destination, route.metric)
}

/// Which link has which mark.
fn slots(observed: &Observed, mask: Mask, gaps: &mut BTreeSet<Gap>) -> BTreeMap<LinkName, u32> {
    let foreign_routes = observed.routes.iter().filter(|route| route.protocol != PROTOCOL).map(|route| route.table);
    let foreign_rules = observed.rules.iter().filter(|rule| !made_here(rule)).map(|rule| rule.table);
    let taken: BTreeSet<u32> = foreign_routes.chain(foreign_rules).filter(|table| is_ours(*table)).collect();
    gaps.extend(taken.iter().filter(|table| **table - TABLES <= mask.slots()).map(|table| Gap::TakenTable(*table)));
    let free = |slot: &u32| !taken.contains(&(TABLES + slot));
    let mut slots = BTreeMap::new();
    let mut given = BTreeSet::new();
    for (name, link) in &observed.links {
        let by_it = |route: &&Route| route.protocol == PROTOCOL && route.hops.iter().any(|hop| hop.link == *link);
        let had = observed.routes.iter().filter(by_it).map(|route| route.table).filter(|table| is_ours(*table));
        let had = had.map(|table| table - TABLES).filter(|slot| *slot <= mask.slots()).filter(free);
        if let Some(slot) = had.min().filter(|slot| given.insert(*slot)) {
            slots.insert(*name, slot);
        }
    }
    for name in observed.links.keys() {
        if slots.contains_key(name) {
            continue;
        }
        match (1..=mask.slots()).filter(free).find(|slot| !given.contains(slot)) {
            Some(slot) => {
                given.insert(slot);
                slots.insert(*name, slot);
            }
            None => drop(gaps.insert(Gap::NoMark(*name))),
        }
    }
    slots
}

/// The link by which the node reaches everybody in IPv4 whom it has no other route to.
fn usual(observed: &Observed) -> Option<u32> {
    let default =
        |route: &&Route| route.table == MAIN && of(route) == Family::V4 && route.destination.prefix_len() == 0;
    let best = observed.routes.iter().filter(default).min_by_key(|route| route.metric)?;
    best.hops.first().map(|hop| hop.link)
}

/// The routes that the table `main` has by a link, each with the hop on that link alone: the widest destinations first.
fn by_link(observed: &Observed, family: Family, link: u32) -> Vec<Route> {
    let usable = observed.routes.iter().filter(|route| {
        route.table == MAIN && route.kind == UNICAST && route.service == 0 && !route.wraps && of(route) == family
    });
    let leads_somewhere = |route: &&Route| match route.destination.addr() {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_multicast(),
    };
    let mut routes: Vec<Route> = usable
        .filter(leads_somewhere)
        .filter_map(|route| {
            let hop = route.hops.iter().filter(|hop| hop.link == link).min()?;
            Some(Route { hops: vec![*hop], ..route.clone() })
        })
        .collect();
    routes.sort_by_key(|route| (route.destination.prefix_len(), route.destination, route.metric, route.clone()));
    routes.dedup_by_key(|route| (route.destination, route.metric));
    routes.truncate(MOST);
    routes
}

/// No router is known for everybody.
struct Unknown;

/// The default route that these lack, if they lack one and it can be known: where all that is not on the link goes to one
/// router, that is who knows the way to everybody else.
fn everybody(family: Family, routes: &[Route]) -> Result<Option<Route>, Unknown> {
    if routes.iter().any(|route| route.destination.prefix_len() == 0) {
        return Ok(None);
    }
    let through = routes.iter().filter(|route| route.hops.iter().any(|hop| hop.gateway.is_some()));
    let routers: BTreeSet<Hop> = through.flat_map(|route| route.hops.clone()).collect();
    let [router] = routers.into_iter().collect::<Vec<_>>()[..] else { return Err(Unknown) };
    let anywhere = match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    };
    Ok(Some(Route {
        table: MAIN,
        protocol: PROTOCOL,
        kind: UNICAST,
        scope: ANYWHERE,
        service: 0,
        destination: anywhere,
        metric: METRIC,
        properties: Vec::new(),
        hops: vec![router],
        wraps: false,
    }))
}

fn of(route: &Route) -> Family {
    Family::from(route.destination.addr())
}

#[cfg(test)]
mod tests;
