//! Reads and changes the kernel's rules and routes, through a netlink [`Socket`]. [`super::plan`](mod@super::plan)
//! decides their desired state.
//!
//! It blocks while the kernel works.

use std::collections::BTreeSet;

use crds::service::Family;

use super::plan::{ObservedRouting, RouteChange, TABLES, diff_routing, is_our_table, plan_routing};
use super::{Gap, Mask, ReplyPath, ReplyPathInput};
use crate::link_name::LinkName;
use netlink::message::{CREATE, EXCLUSIVE, Message, REPLACE};
use netlink::packet_route::RouteNetlinkMessage;
use netlink::route::{self, MAIN, Route, Rule};
use netlink::socket::{NetlinkError, Socket};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// The greatest slot of any mask.
const LAST_SLOT: u32 = 255;

/// Why replies may leave by another link than the requests came in by.
#[derive(Debug, thiserror::Error)]
pub enum ReplyPathError {
    /// The netlink socket for routes and rules cannot be used.
    #[error("communication with the kernel about routes failed")]
    Socket(#[from] NetlinkError),
    #[error("listing links, rules and routes failed, nothing changed")]
    Read(#[source] NetlinkError),
    /// The kernel refused a change; the changes before it stay.
    #[error("the kernel refused to {what}")]
    Refused {
        /// The refused change, described.
        what: String,
        #[source]
        source: NetlinkError,
    },
}

/// The kernel's state after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyPathState {
    /// The links whose connections may be marked: their rules and routes exist.
    pub reply_paths: BTreeSet<ReplyPath>,
    pub gaps: BTreeSet<Gap>,
    /// The number of rules and routes that were added, deleted or changed.
    pub changes: usize,
}

/// The rules and routes of a network namespace.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
    /// Whether this agent has read all tables that an earlier agent may have used.
    all_tables_read: bool,
}

impl Routing {
    /// The rules and routes of the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the netlink socket for routes and rules cannot be opened.
    pub fn open() -> Result<Self, ReplyPathError> {
        Ok(Self { socket: Socket::open_routing()?, all_tables_read: false })
    }

    /// Changes the rules and routes to those that `input` needs.
    ///
    /// # Errors
    /// If the kernel cannot be read, or refuses a change.
    pub fn apply(&mut self, input: &ReplyPathInput, mask: Mask) -> Result<ReplyPathState, ReplyPathError> {
        let observed = self.observe(input, mask)?;
        let plan = plan_routing(input, &observed, mask);
        let changes = diff_routing(&observed, &plan);
        for change in &changes {
            self.make_change(change)?;
        }
        self.all_tables_read = true;
        Ok(ReplyPathState { reply_paths: plan.reply_paths, gaps: plan.gaps, changes: changes.len() })
    }

    fn observe(&mut self, input: &ReplyPathInput, mask: Mask) -> Result<ObservedRouting, ReplyPathError> {
        let mut observed = ObservedRouting::default();
        for name in &input.links {
            match if_nametoindex(name.as_str()) {
                Ok(link) => drop(observed.links.insert(*name, link)),
                Err(Errno::ENODEV) => {}
                Err(errno) => return Err(ReplyPathError::Read(NetlinkError::Open(errno.into()))),
            }
        }
        for family in [Family::V4, Family::V6] {
            observed.rules.extend(self.list(&route::get_rules(family), Rule::decode)?);
        }
        let last = if self.all_tables_read { mask.slots() } else { LAST_SLOT };
        let mut tables: BTreeSet<u32> = (1..=last).map(|slot| TABLES + slot).collect();
        tables.extend(observed.rules.iter().map(|rule| rule.table).filter(|table| is_our_table(*table)));
        for family in [Family::V4, Family::V6] {
            for table in &tables {
                observed.routes.extend(self.routes(family, *table, None)?);
            }
            if !input.families.contains(&family) {
                continue;
            }
            // A route with hops on several links is listed for each of them.
            let mut main = BTreeSet::new();
            for link in observed.links.values() {
                main.extend(self.routes(family, MAIN, Some(*link))?);
            }
            observed.routes.extend(main);
        }
        observed.strict = observed.links.keys().filter(|link| filters_strictly(link)).copied().collect();
        Ok(observed)
    }

    fn routes(&mut self, family: Family, table: u32, link: Option<u32>) -> Result<Vec<Route>, ReplyPathError> {
        let mut routes = self.list(&route::get_routes(family, Some(table), link), Route::decode)?;
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    /// Lists objects. If the kernel lacks their table or family, the list is empty.
    fn list<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        decode: fn(&RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, ReplyPathError> {
        let absent = [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
        match self.socket.dump(Message::routing(request, 0), |body| decode(&body.routing()?)) {
            Err(error) if error.errno().is_some_and(|errno| absent.contains(&errno)) => Ok(Vec::new()),
            answer => answer.map_err(ReplyPathError::Read),
        }
    }

    fn make_change(&mut self, change: &RouteChange) -> Result<(), ReplyPathError> {
        use RouteNetlinkMessage::{DelRoute, DelRule, NewRoute, NewRule};
        let (message, flags) = match change {
            RouteChange::PutRoute(route) => (NewRoute(route.encode()), CREATE | REPLACE),
            RouteChange::DeleteRoute(route) => (DelRoute(route.encode()), 0),
            RouteChange::AddRule(rule) => (NewRule(rule.encode()), CREATE | EXCLUSIVE),
            RouteChange::DeleteRule(rule) => (DelRule(rule.encode()), 0),
        };
        match self.socket.command(Message::routing(&message, flags)) {
            // The object no longer exists: the kernel deletes the routes of a link with the link.
            Err(error) if flags == 0 && matches!(error.errno(), Some(libc::ESRCH | libc::ENOENT)) => Ok(()),
            Err(source) => Err(ReplyPathError::Refused { what: describe(change), source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Deletes all rules and routes of Landfall in the network namespace of the calling thread, for an uninstallation.
/// Returns whether there were any. [`run`](super::run()) must have ended before.
///
/// # Errors
/// If the kernel cannot be read or refuses.
pub fn remove() -> Result<bool, ReplyPathError> {
    let state = Routing::open()?.apply(&ReplyPathInput::default(), Mask::default())?;
    Ok(state.changes > 0)
}

fn describe(change: &RouteChange) -> String {
    match change {
        RouteChange::PutRoute(route) => format!("add a route to {} in table {}", route.destination, route.table),
        RouteChange::DeleteRoute(route) => {
            format!("delete the route to {} from table {}", route.destination, route.table)
        }
        RouteChange::AddRule(rule) => format!("add the rule for mark {:#x} to table {}", rule.mark, rule.table),
        RouteChange::DeleteRule(rule) => format!("delete the rule for mark {:#x} to table {}", rule.mark, rule.table),
    }
}

/// Whether the kernel drops packets that come in by this link if it would reply by another (rp_filter 1). The greater
/// of two sysctls counts: that of the link, and that of all links.
fn filters_strictly(link: &LinkName) -> bool {
    let sysctl = |of: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
        std::fs::read_to_string(path).ok().and_then(|value| value.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    sysctl("all").max(sysctl(link.as_str())) == 1
}
