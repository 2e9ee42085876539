//! The engine: makes the kernel's tables what a [`Ruleset`] says. Touches nf_tables through a netlink [`Socket`].
//!
//! It remembers what the kernel has acknowledged, so that a change costs what it changes: one transaction with just the
//! elements that differ, and nothing at all if none does. When it does not know (after a start, or when something went
//! wrong), it reads the tables first. A table that is as it should be but for some elements is changed like any other,
//! so that traffic flows on while the agent restarts; any other is replaced. All tables change in one transaction.
//!
//! Blocks while it talks to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::flows::affinity::Loose;
use crate::metrics::traffic::Counted;
use crate::netlink::socket::{self, Socket};
use crate::nft::codec::contents::{Contents, contents};
use crate::nft::codec::dump::{self, Found, FoundSet};
use crate::nft::codec::request::Requests;
use crate::nft::diff::{Change, changes, diff};
use crate::nft::elements::{self, Elements, Key, Value, all, elements, is_needed};
use crate::nft::layout::{self, Table};
use crate::nft::optional_chains::Hooked;
use crate::rules::ruleset::Ruleset;

/// How often to read the table again because nf_tables changed meanwhile, before going on with what was read last.
/// Others (kube-proxy) may change their tables all the time, and it is not likely to be ours.
const ATTEMPTS: usize = 4;
/// How long a packet may take from one rule to the next: microseconds, as a rule.
const ON_ITS_WAY: Duration = Duration::from_millis(1);

/// Why the kernel's tables are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("reading the tables from the kernel failed, nothing changed")]
    Read(#[source] socket::Error),
    /// The kernel refused a change; all of the transaction is undone.
    #[error("the kernel refused to {what}, nothing changed")]
    Refused {
        /// What it refused, in words.
        what: String,
        /// The table that it was about, if it was about one.
        table: Option<Table>,
        /// Why.
        #[source]
        source: socket::Error,
    },
    /// There is no socket, or it could not be used.
    #[error("talking to the kernel failed")]
    Socket(#[from] socket::Error),
}

impl Error {
    /// Whether it may be because of the table that spreads frames: without it, the others may do.
    pub fn is_about_frames(&self) -> bool {
        matches!(self, Self::Refused { table: None | Some(Table::Link), .. })
    }

    /// Whether it may be because of a table that translates.
    pub fn is_about_packets(&self) -> bool {
        matches!(self, Self::Refused { table: None | Some(Table::V4 | Table::V6), .. })
    }
}

/// What was done to each table; one that was as it should be is left out.
pub type Applied = BTreeMap<Table, Done>;

/// What was done to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was changed, so.
    Changed(Vec<Change>),
    /// There was none, and it was made, with this many elements.
    Created(usize),
    /// It was not ours to change, and was replaced.
    Replaced {
        /// What was wrong with it.
        because: String,
        /// How many elements the new one has.
        elements: usize,
    },
    /// It was taken away, since it has nothing to do any more; and with it went all that is known to have been in it.
    Removed(Vec<Change>),
}

impl Done {
    /// How many elements came, went or changed.
    pub fn size(&self) -> u64 {
        let count = match self {
            Self::Changed(changes) | Self::Removed(changes) => changes.len(),
            Self::Created(elements) | Self::Replaced { elements, .. } => *elements,
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// What the kernel has of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// No such table.
    Absent,
    /// A table with a skeleton that is not ours, and what is wrong with it.
    Foreign(String),
    /// Our table with these elements.
    Ours(Elements),
}

/// Makes the kernel's tables what they should be.
#[derive(Debug)]
pub struct Engine {
    socket: Socket,
    /// What the kernel has acknowledged; `None` if it has to be read first.
    applied: Option<Known>,
}

/// What the kernel is known to have.
#[derive(Debug)]
struct Known {
    ruleset: Arc<Ruleset>,
    /// The generation of nf_tables if nobody but us has changed anything since.
    generation: u32,
}

impl Engine {
    /// An engine for the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel has no nf_tables for us.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()?, applied: None })
    }

    /// Makes the tables what `desired` says.
    ///
    /// # Errors
    /// If it could not. The engine then reads the tables before the next change.
    pub fn apply(&mut self, desired: &Arc<Ruleset>) -> Result<Applied, Error> {
        if self.applied.as_ref().is_some_and(|known| Arc::ptr_eq(&known.ruleset, desired)) {
            return Ok(Applied::new());
        }
        // Taken, so that after an error nothing is taken for known.
        let mut known = self.applied.take();
        let mut enlarged = BTreeSet::new();
        loop {
            let done = match &known {
                Some(known) => self.advance(known, desired),
                None => self.establish(desired, &BTreeSet::new()),
            };
            match done {
                Err(Error::Refused { table: Some(table), source, .. }) if source.errno() == Some(libc::ENFILE) => {
                    // Kernels before 6.5 don't make a set larger.
                    if !enlarged.insert(table) {
                        return self.establish(desired, &enlarged);
                    }
                    self.enlarge(table, desired)?;
                    if let Some(known) = &mut known {
                        known.generation = following(known.generation);
                    }
                }
                done => return done,
            }
        }
    }

    /// Lets the sets of a table have as many elements as they are to have, and some more.
    fn enlarge(&mut self, table: Table, desired: &Ruleset) -> Result<(), Error> {
        let mut requests = Requests::default();
        requests.enlarge(table, &contents(all(desired)).remove(&table).unwrap_or_default());
        self.transact(&requests, None)
    }

    /// Whether the kernel still has what was applied; `Some` with what is wrong if not, and the next
    /// [`apply`](Self::apply) repairs it. Costs one question if nobody else changed anything in nf_tables.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn check(&mut self) -> Result<Option<String>, Error> {
        let Some(expected) = self.applied.as_ref().map(|known| known.generation) else { return Ok(None) };
        if self.generation()? == expected {
            return Ok(None);
        }
        let (observed, generation) = self.observe()?;
        let Some(known) = &mut self.applied else { return Ok(None) };
        let expected = of_tables(elements(&known.ruleset));
        let nothing = Elements::new();
        let wrong = observed.iter().find_map(|(table, observed)| {
            let wrong = match (observed, is_needed(&known.ruleset, *table)) {
                (Observed::Absent, false) => None,
                (Observed::Absent, true) => Some("it is gone".to_owned()),
                (_, false) => Some("it is there again".to_owned()),
                (Observed::Foreign(why), true) => Some(why.clone()),
                (Observed::Ours(elements), true) => {
                    let changes = diff(elements, expected.get(table).unwrap_or(&nothing));
                    changes.first().map(|first| format!("to repair: {first} and {} more", changes.len() - 1))
                }
            };
            wrong.map(|wrong| format!("table {table}: {wrong}"))
        });
        match wrong {
            None => known.generation = generation,
            Some(_) => self.applied = None,
        }
        Ok(wrong)
    }

    /// Makes the kernel forget clients that should not go where they went before, and returns how many there were. Only
    /// those families are looked at whose tables are there.
    ///
    /// # Errors
    /// If the kernel does not list or forget them.
    pub fn forget(&mut self, loose: &Loose) -> Result<usize, Error> {
        let mut forgotten = 0;
        let Some(known) = self.applied.as_ref().filter(|_| !loose.is_empty()) else { return Ok(0) };
        let of_families = Table::ALL.into_iter().filter(|table| table.family().is_some());
        let tables = of_families.filter(|table| is_needed(&known.ruleset, *table));
        for table in tables.collect::<Vec<_>>() {
            // Until there is nothing to forget any more. A packet that was on its way has found the client in the map before
            // it was forgotten, and puts it back with its old endpoint. (Not for ever: see [`Loose::is`] about the node itself.)
            for _ in 0..ATTEMPTS {
                match self.forget_once(table, loose)? {
                    0 => break,
                    count => forgotten += count,
                }
                std::thread::sleep(ON_ITS_WAY);
            }
        }
        Ok(forgotten)
    }

    /// The same, for one table and those who are there now.
    fn forget_once(&mut self, table: Table, loose: &Loose) -> Result<usize, Error> {
        let mut attempt = 1;
        loop {
            let question = dump::get_remembered(table);
            let all = self.socket.dump(question, |answer| dump::remembered(table, answer)).map_err(Error::Read)?;
            let gone: Vec<_> = all.into_iter().flatten().filter(|remembered| loose.is(remembered)).collect();
            if gone.is_empty() {
                return Ok(0);
            }
            let mut requests = Requests::default();
            requests.forget(table, &gone);
            match self.transact(&requests, None) {
                Ok(()) => {
                    if let Some(known) = &mut self.applied {
                        known.generation = following(known.generation);
                    }
                    return Ok(gone.len());
                }
                // One went by itself meanwhile, and with it the whole transaction.
                Err(Error::Refused { source, .. }) if source.errno() == Some(libc::ENOENT) && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes from what is known to what is desired.
    fn advance(&mut self, known: &Known, desired: &Arc<Ruleset>) -> Result<Applied, Error> {
        let mut changes = of_tables(changes(&known.ruleset, desired));
        let todos = Table::ALL.map(|table| {
            let changes: Vec<Change> = changes.remove(&table).unwrap_or_default();
            let todo = match (is_needed(&known.ruleset, table), is_needed(desired, table)) {
                (true, true) => Todo::Change(changes),
                (false, true) => {
                    let added = changes.into_iter().filter_map(|change| match change {
                        Change::Add(key, value) => Some((key, value)),
                        Change::Delete(..) => None,
                    });
                    Todo::create(contents(added).remove(&table).unwrap_or_default(), None)
                }
                (true, false) => Todo::Remove(changes),
                (false, false) => Todo::Nothing,
            };
            (table, todo)
        });
        self.execute(todos.into(), desired, known.generation, None)
    }

    /// Reads what there is and goes from there. A table that is `full` is made anew, for more elements.
    fn establish(&mut self, desired: &Arc<Ruleset>, full: &BTreeSet<Table>) -> Result<Applied, Error> {
        let nothing = Elements::new();
        let mut attempt = 1;
        loop {
            let (mut observed, generation) = self.observe()?;
            let anew = |table: &Table| (*table, Observed::Foreign("one of its sets is full".to_owned()));
            observed.extend(full.iter().map(anew));
            let (mut compared, mut made): (BTreeMap<Table, Elements>, _) = Default::default();
            if observed.values().any(|observed| matches!(observed, Observed::Ours(_))) {
                compared = of_tables(all(desired));
            }
            if observed.values().any(|observed| !matches!(observed, Observed::Ours(_))) {
                made = contents(all(desired));
            }
            let todo = |(table, observed)| {
                let target = compared.get(&table).unwrap_or(&nothing);
                let mut anew = |because| Todo::create(made.remove(&table).unwrap_or_default(), because);
                let todo = match (observed, is_needed(desired, table)) {
                    (Observed::Absent, false) => Todo::Nothing,
                    (Observed::Ours(elements), false) => Todo::Remove(diff(&elements, &nothing)),
                    (Observed::Foreign(_), false) => Todo::Remove(Vec::new()),
                    (Observed::Absent, true) => anew(None),
                    (Observed::Foreign(because), true) => anew(Some(because)),
                    (Observed::Ours(elements), true) => Todo::Change(diff(&elements, target)),
                };
                (table, todo)
            };
            let todos = observed.into_iter().map(todo).collect();
            let last = attempt >= ATTEMPTS;
            match self.execute(todos, desired, generation, (!last).then_some(generation)) {
                Err(Error::Refused { source, .. }) if !last && source.errno() == Some(ERESTART) => attempt += 1,
                done => return done,
            }
        }
    }

    /// Does it, as one transaction, and remembers what the kernel has now. With `only_at`, only if the kernel's
    /// generation is still that one.
    fn execute(
        &mut self,
        mut todos: BTreeMap<Table, Todo>,
        desired: &Arc<Ruleset>,
        generation: u32,
        only_at: Option<u32>,
    ) -> Result<Applied, Error> {
        let mut requests = Requests::default();
        todos.iter_mut().for_each(|(table, todo)| todo.request(*table, &mut requests));
        let commits = !requests.messages.is_empty();
        self.transact(&requests, only_at)?;
        let generation = if commits { following(generation) } else { generation };
        self.applied = Some(Known { ruleset: Arc::clone(desired), generation });
        Ok(todos.into_iter().filter_map(|(table, todo)| todo.done().map(|done| (table, done))).collect())
    }

    /// Reads all tables, with the generation they are from.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn observe(&mut self) -> Result<(BTreeMap<Table, Observed>, u32), Error> {
        let mut attempt = 1;
        loop {
            let before = self.generation()?;
            let read = |table| Ok((table, self.read(table)?));
            let observed: Result<BTreeMap<_, _>, _> = Table::ALL.into_iter().map(read).collect();
            let after = self.generation()?;
            // What was read in parts is only worth something if nothing changed in between.
            if before == after || attempt >= ATTEMPTS {
                return Ok((observed.map_err(Error::Read)?, before));
            }
            attempt += 1;
        }
    }

    fn generation(&mut self) -> Result<u32, Error> {
        let answer = self.socket.ask(dump::get_generation(), dump::generation).map_err(Error::Read)?;
        Ok(answer.flatten().unwrap_or(0))
    }

    fn read(&mut self, table: Table) -> Result<Observed, socket::Error> {
        let Some(mut found) = known(self.socket.ask(dump::get_table(table), Found::table))? else {
            return Ok(Observed::Absent);
        };
        found.sets = self.socket.dump(dump::get_sets(table), FoundSet::read)?;
        for (chain, rule) in self.socket.dump(dump::get_rules(table), dump::rule)?.into_iter().flatten() {
            found.rules.entry(chain).or_default().push(rule);
        }
        let fixed = layout::chains(table).into_iter().map(|chain| chain.name);
        let comes_and_goes = |name: &str| Hooked::called(name).is_some() || elements::returns(name).is_some();
        let hooked = |name: &&String| table == Table::Link || comes_and_goes(name);
        let changing = found.rules.keys().filter(hooked).cloned();
        for name in fixed.chain(changing).collect::<BTreeSet<_>>() {
            if let Some(hook) = known(self.socket.ask(dump::get_chain(table, &name), dump::chain_hook))? {
                found.chains.insert(name, hook);
            }
        }
        let chains = match found.check(table) {
            Ok(chains) => chains,
            Err(why) => return Ok(Observed::Foreign(why)),
        };
        Ok(match self.read_elements(table, &chains)? {
            Some(elements) => Observed::Ours(elements),
            None => Observed::Foreign("it has elements that nobody but us could read, and not even we".to_owned()),
        })
    }

    fn read_elements(&mut self, table: Table, chains: &BTreeSet<Key>) -> Result<Option<Elements>, socket::Error> {
        let mut all = Vec::new();
        let mut pods = Vec::new();
        for set in layout::sets(table).into_iter().filter(|set| set.learned.is_none()) {
            let question = dump::get_elements(table, set.name);
            if set.ranges && set.parts().is_none() {
                pods.extend(
                    self.socket.dump(question, |answer| dump::boundaries(table, answer))?.into_iter().flatten(),
                );
            } else {
                let answers = self.socket.dump(question, |answer| dump::elements(table, set.name, answer))?;
                all.extend(answers.into_iter().flatten());
            }
        }
        let pods = pods.into_iter().collect::<Option<Vec<_>>>().and_then(dump::ranges);
        let all = all.into_iter().collect::<Option<Vec<_>>>();
        Ok(all.zip(pods).map(|(all, pods)| dump::assembled(table, all, chains, pods)))
    }

    fn transact(&mut self, requests: &Requests<'_>, generation: Option<u32>) -> Result<(), Error> {
        self.socket.transact(&requests.messages, generation).map_err(|source| match &source {
            socket::Error::Refused { message, offset, .. } => {
                let what = message.map_or_else(|| "make changes".to_owned(), |m| requests.subject(m, *offset));
                let table = message.and_then(|message| requests.table(message));
                Error::Refused { what, table, source }
            }
            _ => Error::Socket(source),
        })
    }
}

/// What is to be done to a table.
enum Todo {
    Nothing,
    Change(Vec<Change>),
    Create { contents: Contents, elements: usize, instead_of: Option<String> },
    Remove(Vec<Change>),
}

impl Todo {
    fn create(contents: Contents, instead_of: Option<String>) -> Self {
        let elements = contents.count();
        Self::Create { contents, elements, instead_of }
    }

    /// Puts it into words that the kernel understands. What is created is not kept.
    fn request<'a>(&'a mut self, table: Table, requests: &mut Requests<'a>) {
        match self {
            Self::Nothing => {}
            Self::Change(changes) => requests.change(changes),
            Self::Create { contents, instead_of, .. } => {
                if instead_of.is_some() {
                    requests.delete_table(table);
                }
                requests.create_table(table, std::mem::take(contents));
            }
            Self::Remove(_) => requests.delete_table(table),
        }
    }

    /// What it is when it is done, if anything was.
    fn done(self) -> Option<Done> {
        match self {
            Self::Nothing => None,
            Self::Change(changes) if changes.is_empty() => None,
            Self::Change(changes) => Some(Done::Changed(changes)),
            Self::Create { elements, instead_of: None, .. } => Some(Done::Created(elements)),
            Self::Create { elements, instead_of: Some(because), .. } => Some(Done::Replaced { because, elements }),
            Self::Remove(changes) => Some(Done::Removed(changes)),
        }
    }
}

/// Sorts what belongs to several tables, in the order it has.
fn of_tables<T: Belongs, C: Default + Extend<T>>(all: impl IntoIterator<Item = T>) -> BTreeMap<Table, C> {
    let mut tables: BTreeMap<Table, C> = BTreeMap::new();
    for one in all {
        tables.entry(one.table()).or_default().extend([one]);
    }
    tables
}

/// What is of one table.
trait Belongs {
    fn table(&self) -> Table;
}

impl Belongs for Change {
    fn table(&self) -> Table {
        self.key().table()
    }
}

impl Belongs for (Key, Value) {
    fn table(&self) -> Table {
        self.0.table()
    }
}

/// The generation after this one: every transaction counts up by one, and leaves out 0.
fn following(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// The errno of a transaction that came too late: something changed since the generation it was made for. User space
/// normally never sees it, so libc has no name for it.
const ERESTART: i32 = 85;

/// What was asked for, or nothing if the kernel says that it isn't there.
fn known<T>(answer: Result<Option<T>, socket::Error>) -> Result<Option<T>, socket::Error> {
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

/// Takes everything of ours out of the kernel, in the network namespace of the calling thread; for an uninstallation.
/// Returns whether there was anything. [`run`](crate::run()) must have ended before, or it would make it again.
///
/// # Errors
/// If the kernel does not tell or refuses.
pub fn remove() -> Result<bool, Error> {
    let mut engine = Engine::open()?;
    let mut requests = Requests::default();
    for table in Table::ALL {
        if known(engine.socket.ask(dump::get_table(table), |_| ())).map_err(Error::Read)?.is_some() {
            requests.delete_table(table);
        }
    }
    engine.transact(&requests, None)?;
    Ok(!requests.messages.is_empty())
}

/// What the kernel has counted since its tables were made, in the network namespace of the calling thread. Costs one dump of
/// each set that counts: some 10 ms for 10,000 Services.
///
/// # Errors
/// If the kernel does not tell.
pub fn count() -> Result<Counted, Error> {
    let mut socket = Socket::open()?;
    let mut counted = Counted::default();
    for table in [Table::V4, Table::V6] {
        let mut ports = |set| {
            let question = dump::get_elements(table, set);
            let answers = known(socket.dump(question, |answer| dump::counted_ports(table, answer)).map(Some));
            answers.map(|answers| answers.into_iter().flatten().flatten())
        };
        counted.denied.extend(ports("denied").map_err(Error::Read)?);
        counted.refusals.extend(ports("refusals").map_err(Error::Read)?);
        counted.begun.extend(ports("begun").map_err(Error::Read)?);
        counted.traffic.extend(ports("traffic").map_err(Error::Read)?);
        let question = dump::get_elements(table, "strays");
        let strays = known(socket.dump(question, |answer| dump::counted_addresses(table, answer)).map(Some));
        counted.strays.extend(strays.map_err(Error::Read)?.into_iter().flatten().flatten());
    }
    Ok(counted)
}
