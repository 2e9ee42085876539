//! Reads and changes the kernel's rules and routes, through a netlink [`Socket`]. What they should be is decided in
//! [`super::plan`](mod@super::plan).
//!
//! Blocks while it talks to the kernel.

use std::collections::BTreeSet;

use crds::service::Family;

use super::plan::{Change, Observed, TABLES, diff, is_ours, plan};
use super::{Gap, Mask, Return, Wanted};
use crate::netlink::route::{self, MAIN};
use crate::netlink::socket::{self, Socket};
use crate::snapshot::LinkName;

/// The last table that could be ours, counted from the first: more than any mask makes.
const LAST: u32 = 255;

/// Why answers may not leave by the link that the request came in by.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket to routing.
    #[error("talking to the kernel about routes failed")]
    Socket(#[from] socket::Error),
    /// Links, rules or routes could not be listed.
    #[error("listing links, rules and routes failed, nothing changed")]
    Read(#[source] socket::Error),
    /// The kernel refused a change; those before it are made.
    #[error("the kernel refused to {what}")]
    Refused {
        /// What it refused, in words.
        what: String,
        /// Why.
        #[source]
        source: socket::Error,
    },
}

/// What was done, and what there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The links whose connections may be marked: what that leads to is there.
    pub returns: BTreeSet<Return>,
    /// Where that is not enough.
    pub gaps: BTreeSet<Gap>,
    /// How many rules and routes came, went or changed.
    pub changes: usize,
}

/// The rules and routes of a network namespace.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    /// Whether all tables have been looked at that an earlier agent can have left something in.
    knows_all: bool,
}

impl Kernel {
    /// Those of the calling thread.
    ///
    /// # Errors
    /// If the kernel does not let us ask.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open_routing()?, knows_all: false })
    }

    /// Makes rules and routes what `wanted` needs, by changing what differs.
    ///
    /// # Errors
    /// If the kernel does not tell what there is, or refuses a change.
    pub fn settle(&mut self, wanted: &Wanted, mask: Mask) -> Result<Settled, Error> {
        let observed = self.observe(wanted, mask)?;
        let plan = plan(wanted, &observed, mask);
        let changes = diff(&observed, &plan);
        for change in &changes {
            self.apply(change)?;
        }
        self.knows_all = true;
        Ok(Settled { returns: plan.returns, gaps: plan.gaps, changes: changes.len() })
    }

    fn observe(&mut self, wanted: &Wanted, mask: Mask) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for name in &wanted.links {
            let found = self.socket.ask_routing(route::get_link(name), route::link);
            if let Some(link) = there(found, &[libc::ENODEV]).map_err(Error::Read)?.flatten().flatten() {
                observed.links.insert(*name, link);
            }
        }
        for family in [Family::V4, Family::V6] {
            let rules = self.socket.dump_routing(route::get_rules(family), route::rule);
            observed.rules.extend(rules_of(family, rules).map_err(Error::Read)?);
        }
        let last = if self.knows_all { mask.slots() } else { LAST };
        let mut tables: BTreeSet<u32> = (1..=last).map(|slot| TABLES + slot).collect();
        tables.extend(observed.rules.iter().map(|rule| rule.table).filter(|table| is_ours(*table)));
        for family in [Family::V4, Family::V6] {
            for table in &tables {
                observed.routes.extend(self.routes(family, *table, None)?);
            }
            if !wanted.families.contains(&family) {
                continue;
            }
            // One with hops on several links is told for each of them.
            let mut main = BTreeSet::new();
            for link in observed.links.values() {
                main.extend(self.routes(family, MAIN, Some(*link))?);
            }
            observed.routes.extend(main);
        }
        observed.strict = observed.links.keys().filter(|link| filters_strictly(link)).copied().collect();
        Ok(observed)
    }

    fn routes(&mut self, family: Family, table: u32, link: Option<u32>) -> Result<Vec<route::Route>, Error> {
        let found = self.socket.dump_routing(route::get_routes(family, table, link), route::route);
        let found = there(found, &[libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP]).map_err(Error::Read)?;
        Ok(found.into_iter().flatten().flatten().filter(|route| route.table == table).collect())
    }

    fn apply(&mut self, change: &Change) -> Result<(), Error> {
        let (message, goes) = match change {
            Change::Put(route) => (route::put_route(route), false),
            Change::Delete(route) => (route::delete_route(route), true),
            Change::Add(rule) => (route::add_rule(rule), false),
            Change::Remove(rule) => (route::delete_rule(rule), true),
        };
        match self.socket.command(message) {
            // It went by itself meanwhile: a link takes its routes along.
            Err(error) if goes && matches!(error.errno(), Some(libc::ESRCH | libc::ENOENT)) => Ok(()),
            Err(source) => Err(Error::Refused { what: words(change), source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Takes all rules and routes of ours out of the kernel, in the network namespace of the calling thread; for an
/// uninstallation. Returns whether there were any. [`run`](super::run()) must have ended before.
///
/// # Errors
/// If the kernel does not tell or refuses.
pub fn remove() -> Result<bool, Error> {
    let settled = Kernel::open()?.settle(&Wanted::default(), Mask::default())?;
    Ok(settled.changes > 0)
}

fn words(change: &Change) -> String {
    match change {
        Change::Put(route) => format!("add a route to {} in table {}", route.destination, route.table),
        Change::Delete(route) => format!("delete the route to {} from table {}", route.destination, route.table),
        Change::Add(rule) => format!("add the rule that marks of {:#x} lead to table {}", rule.mark, rule.table),
        Change::Remove(rule) => format!("delete the rule that marks of {:#x} lead to table {}", rule.mark, rule.table),
    }
}

/// The rules in answers. A kernel without a family has no rules of it.
fn rules_of(
    family: Family,
    answers: Result<Vec<Option<route::Rule>>, socket::Error>,
) -> Result<Vec<route::Rule>, socket::Error> {
    let answers = there(answers, &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP])?.unwrap_or_default();
    Ok(answers.into_iter().flatten().filter(|rule| rule.family == family).collect())
}

/// What was asked for, or nothing if the kernel says by one of these that there is no such thing.
fn there<T>(answer: Result<T, socket::Error>, absent: &[i32]) -> Result<Option<T>, socket::Error> {
    match answer {
        Err(error) if error.errno().is_some_and(|errno| absent.contains(&errno)) => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the kernel drops what comes in by this link from where it would not answer to by it (rp_filter 1). Of the two
/// switches the higher one counts.
fn filters_strictly(link: &LinkName) -> bool {
    let switch = |of: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
        std::fs::read_to_string(path).ok().and_then(|value| value.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    switch("all").max(switch(link.as_str())) == 1
}
