//! The engine: makes the kernel's tables equal to a [`Ruleset`]. Touches nf_tables through a netlink [`Socket`].
//!
//! It remembers the ruleset that the kernel has acknowledged. So a change costs only one transaction with the changed
//! elements, or no transaction if no element differs. After a start or an error it dumps the tables first. In a table
//! with our layout it changes only the elements that differ, so that traffic continues while the agent restarts. It
//! replaces a table with another layout. All tables change in one transaction.
//!
//! It blocks while the kernel works.

mod observe;
mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::codec::contents::{TableContents, table_contents};
use super::codec::dump;
use super::codec::request::Requests;
use super::diff::{ElementChange, diff_elements, diff_rulesets};
use super::elements::{ElementKey, ElementValue, Elements};
use super::layout::{self, SetId, Table};
use super::projection::{all_elements, is_needed};
use crate::flows::affinity::RetiredClients;
use crate::rules::Ruleset;
use netlink::socket::{NetlinkError, Socket};
pub(super) use observe::none_if_missing;
pub use outcome::{KernelTable, TableOutcome, TableOutcomes, removed_ports};

/// The greatest number of attempts to dump the tables, or to change dumped tables, without another change of nf_tables
/// in between. The last dump is used in any case: other programs, such as kube-proxy, may change their own tables
/// constantly, but they seldom change ours.
const DUMP_ATTEMPTS: usize = 4;
/// The greatest number of rounds that delete retired clients, and of attempts in each round. Packets can add entries
/// meanwhile, and entries can expire.
const FORGET_ATTEMPTS: usize = 4;
/// A time in which a packet certainly passes from the rule that finds an entry to the rule that adds it again. Usually
/// this takes microseconds.
const PACKET_TRANSIT: Duration = Duration::from_millis(1);
/// The errno of a transaction whose generation is outdated. User space normally never sees this errno, so libc has no
/// name for it.
const ERESTART: i32 = 85;

/// Why the kernel's tables are not in the desired state.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("reading the tables from the kernel failed, nothing changed")]
    Read(#[source] NetlinkError),
    /// The whole transaction is undone.
    #[error("the kernel refused to {what}, nothing changed")]
    Refused {
        /// A description of the refused change.
        what: String,
        /// The table of the refused change; `None` for the transaction as a whole.
        table: Option<Table>,
        #[source]
        source: NetlinkError,
    },
    /// The socket cannot be opened, or it failed.
    #[error("communication with the kernel failed")]
    Socket(#[from] NetlinkError),
}

impl EngineError {
    /// Whether the table that spreads frames may be the cause. Then the other tables may succeed without it.
    pub fn is_about_frames(&self) -> bool {
        matches!(self, Self::Refused { table: None | Some(Table::Link), .. })
    }

    /// Whether a table that translates packets may be the cause.
    pub fn is_about_packets(&self) -> bool {
        matches!(self, Self::Refused { table: None | Some(Table::V4 | Table::V6), .. })
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Read(source) | Self::Refused { source, .. } | Self::Socket(source) => source.errno(),
        }
    }
}

/// Makes the kernel's tables equal to a ruleset.
#[derive(Debug)]
pub struct Engine {
    socket: Socket,
    /// The acknowledged state; `None`: the state is unknown, so the tables must be dumped first.
    applied: Option<AppliedState>,
}

/// The state that the kernel has acknowledged.
#[derive(Debug)]
struct AppliedState {
    ruleset: Arc<Ruleset>,
    /// The generation of nf_tables. If another program has changed nf_tables since, the kernel has another generation.
    generation: u32,
}

impl Engine {
    /// An engine for the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the socket to nf_tables cannot be opened.
    pub fn open() -> Result<Self, EngineError> {
        Ok(Self { socket: Socket::open()?, applied: None })
    }

    /// Makes the tables equal to `desired`.
    ///
    /// # Errors
    /// If the kernel refuses or cannot be read. The next call dumps the tables first.
    pub fn apply(&mut self, desired: &Arc<Ruleset>) -> Result<TableOutcomes, EngineError> {
        if self.applied.as_ref().is_some_and(|applied| Arc::ptr_eq(&applied.ruleset, desired)) {
            return Ok(TableOutcomes::new());
        }
        // The state is taken out, because it is unknown after an error.
        let mut applied = self.applied.take();
        let (mut enlarged, mut replaced) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let result = match &applied {
                Some(applied) if replaced.is_empty() => self.advance(applied, desired),
                _ => self.establish(desired, &replaced),
            };
            match result {
                Err(EngineError::Refused { table: Some(table), source, .. })
                    if source.errno() == Some(libc::ENFILE) && !replaced.contains(&table) =>
                {
                    // Kernels before 6.5 do not enlarge a set, so the set can still be full after the attempt. Then the
                    // table is replaced. Another table may be full as well: a Service has elements in each.
                    if !enlarged.insert(table) {
                        replaced.insert(table);
                        continue;
                    }
                    self.enlarge(table, desired)?;
                    if let Some(applied) = &mut applied {
                        applied.generation = next_generation(applied.generation);
                    }
                }
                result => return result,
            }
        }
    }

    /// Enlarges the sets of a table for the elements of `desired`.
    fn enlarge(&mut self, table: Table, desired: &Ruleset) -> Result<(), EngineError> {
        let mut requests = Requests::default();
        requests.enlarge(table, &table_contents(all_elements(desired)).remove(&table).unwrap_or_default());
        self.transact(&requests, None)
    }

    /// Checks whether the kernel still has the applied state. Returns a description of the first difference. If
    /// there is one, the next [`apply`](Self::apply) repairs it. Costs one query if no other program has changed
    /// nf_tables.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub fn check(&mut self) -> Result<Option<String>, EngineError> {
        let Some(expected) = self.applied.as_ref().map(|applied| applied.generation) else { return Ok(None) };
        if self.generation()? == expected {
            return Ok(None);
        }
        let (observed, generation) = self.observe()?;
        let Some(applied) = &mut self.applied else { return Ok(None) };
        let repairs = plan_outcomes(observed, &applied.ruleset, &BTreeMap::new());
        if repairs.is_empty() {
            applied.generation = generation;
        } else {
            self.applied = None;
        }
        Ok(repairs.first_key_value().map(|(table, repair)| format!("table {table}: {}", describe_damage(repair))))
    }

    /// Deletes the entries of retired clients from `affinity`, and returns their number. Skips families without a
    /// table.
    ///
    /// # Errors
    /// If the kernel does not list or delete them.
    pub fn forget_clients(&mut self, retired: &RetiredClients) -> Result<usize, EngineError> {
        let mut forgotten = 0;
        let Some(applied) = self.applied.as_ref().filter(|_| !retired.is_empty()) else { return Ok(0) };
        let ip_tables = Table::ALL.into_iter().filter(|table| table.family().is_some());
        let tables = ip_tables.filter(|table| is_needed(&applied.ruleset, *table));
        for table in tables.collect::<Vec<_>>() {
            // Repeats until no entry is left. A packet may find an entry in one rule, and add it again in a later rule,
            // after the deletion. The rounds are limited, because the node itself may add entries repeatedly (see
            // [`RetiredClients::contains`]).
            for _ in 0..FORGET_ATTEMPTS {
                match self.forget_clients_once(table, retired)? {
                    0 => break,
                    count => forgotten += count,
                }
                std::thread::sleep(PACKET_TRANSIT);
            }
        }
        Ok(forgotten)
    }

    /// Deletes the entries of retired clients that exist now.
    fn forget_clients_once(&mut self, table: Table, retired: &RetiredClients) -> Result<usize, EngineError> {
        let affinity = layout::sets(table).into_iter().find(|set| set.id == SetId::Affinity);
        let Some(affinity) = affinity else { return Ok(0) };
        let mut attempt = 1;
        loop {
            let query = dump::get_elements(table, SetId::Affinity);
            let all = self.socket.dump(query, |body| dump::decode_affinity(&affinity, body.attributes()));
            let all = all.map_err(EngineError::Read)?;
            let gone: Vec<_> = all.into_iter().filter(|entry| retired.contains(entry)).collect();
            if gone.is_empty() {
                return Ok(0);
            }
            let mut requests = Requests::default();
            requests.forget_clients(table, &gone);
            match self.transact(&requests, None) {
                Ok(()) => {
                    if let Some(applied) = &mut self.applied {
                        applied.generation = next_generation(applied.generation);
                    }
                    return Ok(gone.len());
                }
                // An entry has expired meanwhile, so the whole transaction fails.
                Err(error @ EngineError::Refused { .. })
                    if error.errno() == Some(libc::ENOENT) && attempt < FORGET_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes the tables from the applied to the desired state.
    fn advance(&mut self, applied: &AppliedState, desired: &Arc<Ruleset>) -> Result<TableOutcomes, EngineError> {
        let mut changes: BTreeMap<Table, Vec<ElementChange>> = BTreeMap::new();
        for change in diff_rulesets(&applied.ruleset, desired) {
            changes.entry(change.key().table()).or_default().push(change);
        }
        let (mut outcomes, mut contents) = (TableOutcomes::new(), BTreeMap::new());
        for table in Table::ALL {
            let changes = changes.remove(&table).unwrap_or_default();
            let outcome = match (is_needed(&applied.ruleset, table), is_needed(desired, table)) {
                (true, true) if !changes.is_empty() => TableOutcome::Changed(changes),
                (false, true) => {
                    let added = changes.into_iter().filter_map(|change| match change {
                        ElementChange::Add(key, value) => Some((key, value)),
                        ElementChange::Delete(..) => None,
                    });
                    let new = table_contents(added).remove(&table).unwrap_or_default();
                    let outcome = TableOutcome::Created(new.count());
                    contents.insert(table, new);
                    outcome
                }
                (true, false) => TableOutcome::Removed(changes),
                _ => continue,
            };
            outcomes.insert(table, outcome);
        }
        self.execute(outcomes, contents, desired, Generations { current: applied.generation, required: None })
    }

    /// Dumps the tables and changes them to the desired state. `full` are the tables with a full set: they are
    /// replaced, with larger sets.
    fn establish(&mut self, desired: &Arc<Ruleset>, full: &BTreeSet<Table>) -> Result<TableOutcomes, EngineError> {
        let mut attempt = 1;
        loop {
            let (mut observed, current) = self.observe()?;
            let foreign = |table: &Table| (*table, KernelTable::Foreign("one of its sets is full".to_owned()));
            observed.extend(full.iter().map(foreign));
            let is_last = attempt >= DUMP_ATTEMPTS;
            let generations = Generations { current, required: (!is_last).then_some(current) };
            let contents = new_contents(&observed, desired);
            let outcomes = plan_outcomes(observed, desired, &contents);
            match self.execute(outcomes, contents, desired, generations) {
                Err(EngineError::Refused { source, .. }) if !is_last && source.errno() == Some(ERESTART) => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Makes all changes in one transaction, and remembers the new state.
    fn execute(
        &mut self,
        outcomes: TableOutcomes,
        mut contents: BTreeMap<Table, TableContents>,
        desired: &Arc<Ruleset>,
        generations: Generations,
    ) -> Result<TableOutcomes, EngineError> {
        let mut requests = Requests::default();
        for (&table, outcome) in &outcomes {
            if matches!(outcome, TableOutcome::Replaced { .. } | TableOutcome::Removed(_)) {
                requests.delete_table(table);
            }
            match outcome {
                TableOutcome::Changed(changes) => requests.change(changes),
                TableOutcome::Created(_) | TableOutcome::Replaced { .. } => {
                    requests.create_table(table, contents.remove(&table).unwrap_or_default());
                }
                TableOutcome::Removed(_) => {}
            }
        }
        let commits = !requests.messages.is_empty();
        self.transact(&requests, generations.required)?;
        let generation = if commits { next_generation(generations.current) } else { generations.current };
        self.applied = Some(AppliedState { ruleset: Arc::clone(desired), generation });
        Ok(outcomes)
    }

    fn transact(&mut self, requests: &Requests, required: Option<u32>) -> Result<(), EngineError> {
        self.socket.transact(&requests.messages, required).map_err(|source| match &source {
            NetlinkError::Refused { message, offset, .. } => {
                let what = message.map_or_else(|| "make changes".to_owned(), |m| requests.describe(m, *offset));
                let table = message.and_then(|message| requests.table(message));
                EngineError::Refused { what, table, source }
            }
            _ => EngineError::Socket(source),
        })
    }
}

/// The generations of a transaction.
struct Generations {
    /// The generation before the transaction.
    current: u32,
    /// The kernel refuses the transaction with ERESTART unless it is at this generation. `None`: it accepts any.
    required: Option<u32>,
}

/// The generation after this one: each transaction increments it, and 0 is skipped.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// The contents of all needed tables if one of them must be created or replaced; empty otherwise.
fn new_contents(observed: &BTreeMap<Table, KernelTable>, desired: &Ruleset) -> BTreeMap<Table, TableContents> {
    let is_new = |(table, observed): (&Table, &KernelTable)| {
        !matches!(observed, KernelTable::Ours(_)) && is_needed(desired, *table)
    };
    if observed.iter().any(is_new) { table_contents(all_elements(desired)) } else { BTreeMap::new() }
}

/// The changes from the observed tables to the desired state. `contents` are those of new tables.
fn plan_outcomes(
    observed: BTreeMap<Table, KernelTable>,
    desired: &Ruleset,
    contents: &BTreeMap<Table, TableContents>,
) -> TableOutcomes {
    let nothing = Elements::new();
    let mut compared = BTreeMap::new();
    if observed.values().any(|table| matches!(table, KernelTable::Ours(_))) {
        compared = split_by_table(all_elements(desired));
    }
    let outcome = |table: Table, observed| {
        let elements = contents.get(&table).map_or(0, TableContents::count);
        Some(match (observed, is_needed(desired, table)) {
            (KernelTable::Absent, false) => return None,
            (KernelTable::Ours(elements), false) => TableOutcome::Removed(diff_elements(&elements, &nothing)),
            (KernelTable::Foreign(_), false) => TableOutcome::Removed(Vec::new()),
            (KernelTable::Absent, true) => TableOutcome::Created(elements),
            (KernelTable::Foreign(because), true) => TableOutcome::Replaced { because, elements },
            (KernelTable::Ours(elements), true) => {
                let changes = diff_elements(&elements, compared.get(&table).unwrap_or(&nothing));
                (!changes.is_empty()).then_some(TableOutcome::Changed(changes))?
            }
        })
    };
    observed.into_iter().filter_map(|(table, observed)| Some((table, outcome(table, observed)?))).collect()
}

/// Describes the damage that makes this change necessary.
fn describe_damage(repair: &TableOutcome) -> String {
    match repair {
        TableOutcome::Created(_) => "it is missing".to_owned(),
        TableOutcome::Removed(_) => "it exists again".to_owned(),
        TableOutcome::Replaced { because, .. } => because.clone(),
        TableOutcome::Changed(changes) => format!("to repair: {} and {} more", changes[0], changes.len() - 1),
    }
}

fn split_by_table(all: impl IntoIterator<Item = (ElementKey, ElementValue)>) -> BTreeMap<Table, Elements> {
    let mut tables: BTreeMap<Table, Elements> = BTreeMap::new();
    for (key, value) in all {
        tables.entry(key.table()).or_default().insert(key, value);
    }
    tables
}

/// Deletes all tables of Landfall in the network namespace of the calling thread, for an uninstallation. Returns
/// whether there were any. [`run`](crate::run()) must have ended before, or it would create them again.
///
/// # Errors
/// If the kernel cannot be read or refuses.
pub fn remove() -> Result<bool, EngineError> {
    let mut engine = Engine::open()?;
    let mut requests = Requests::default();
    for table in Table::ALL {
        let found = engine.socket.query(dump::get_table(table), |_| ());
        if none_if_missing(found).map_err(EngineError::Read)?.is_some() {
            requests.delete_table(table);
        }
    }
    engine.transact(&requests, None)?;
    Ok(!requests.messages.is_empty())
}
