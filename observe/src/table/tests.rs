//! What a table knows after which lists, events and answers.

use super::*;
use proptest::prelude::*;

type Texts = Table<&'static str, &'static str>;

fn seen(
    key: &'static str,
    uid: &str,
    version: ResourceVersion,
    value: &'static str,
) -> Observation<&'static str, &'static str> {
    Observation { key, uid: uid.into(), version, content: Content::Known(value) }
}

fn known(table: &Texts) -> Vec<(&'static str, &'static str)> {
    table.known().map(|(key, value)| (*key, **value)).collect()
}

/// A table after a list of `web` (uid u1) at version 5, taken at version 6.
fn listed() -> Texts {
    let mut table = Table::default();
    table.list_begins();
    table.listed(seen("web", "u1", 5, "listed"));
    assert!(table.list_ends(6));
    table
}

#[test]
fn a_table_is_synced_after_the_first_whole_list() {
    let mut table = Texts::default();
    table.list_begins();
    table.listed(seen("web", "u1", 5, "listed"));
    table.list_begins();
    assert!(!table.synced());
    assert!(table.list_ends(6), "an empty list is news when it is the first");
    assert_eq!((table.synced(), known(&table)), (true, vec![]));
}

#[test]
fn a_stale_event_does_not_undo_an_own_write() {
    let mut table = listed();
    assert!(table.put(seen("web", "u1", 9, "ours")));
    assert!(!table.applied(seen("web", "u1", 8, "theirs, before")));
    assert_eq!(known(&table), [("web", "ours")]);
    assert!(!table.applied(seen("web", "u1", 9, "ours")), "the echo of an own write is no news");
    assert!(table.applied(seen("web", "u1", 10, "theirs, after")));
    assert_eq!(known(&table), [("web", "theirs, after")]);
}

#[test]
fn a_late_answer_does_not_undo_what_the_watch_told() {
    let mut table = listed();
    assert!(table.applied(seen("web", "u1", 9, "theirs")));
    assert!(!table.put(seen("web", "u1", 8, "ours")));
    assert!(table.deleted(&"web", "u1", 12));
    assert!(!table.put(seen("web", "u1", 11, "ours")), "the watch knows that it is gone again");
    assert_eq!(known(&table), []);
}

#[test]
fn what_we_deleted_is_not_raised_by_older_events_and_its_name_can_be_taken_again() {
    let mut table = listed();
    assert!(table.put(seen("new", "u2", 8, "ours")));
    assert!(table.forget(&"new", "u2"));
    assert!(!table.applied(seen("new", "u2", 8, "ours")));
    assert!(!table.deleted(&"new", "u2", 9));
    assert!(table.applied(seen("new", "u3", 10, "theirs")));
    assert!(!table.forget(&"new", "u2"), "the answer to the deletion came twice, or late");
    assert_eq!(known(&table), [("new", "theirs"), ("web", "listed")]);
    assert!(table.dead.is_empty());
}

#[test]
fn a_list_replaces_all_but_own_writes_that_are_newer_than_it() {
    let mut table = listed();
    table.put(seen("before", "u2", 7, "answered before the list was asked for, gone by now"));
    table.list_begins();
    table.put(seen("during", "u3", 30, "newer than the list"));
    table.put(seen("during, older", "u4", 8, "older than the list, gone by now"));
    table.listed(seen("other", "u5", 9, "listed"));
    assert!(table.list_ends(20));
    assert_eq!(known(&table), [("during", "newer than the list"), ("other", "listed")]);
    table.list_begins();
    table.listed(seen("other", "u5", 9, "listed"));
    assert!(table.list_ends(3), "the storage was restored from a copy");
    assert_eq!(known(&table), [("other", "listed")]);
    assert!(table.put(seen("other", "u5", 10, "ours")), "versions count from there again");
}

#[test]
fn what_we_delete_while_a_list_is_under_way_stays_deleted() {
    let mut table = listed();
    table.list_begins();
    table.listed(seen("web", "u1", 5, "listed"));
    assert!(table.forget(&"web", "u1"));
    table.list_ends(7);
    assert_eq!(known(&table), []);
    table.deleted(&"web", "u1", 8);
    assert!(table.dead.is_empty());
}

#[test]
fn an_object_that_cannot_be_read_any_more_is_known_as_it_was() {
    let unreadable =
        |key, uid: &str, version| Observation { content: Content::Unreadable, ..seen(key, uid, version, "") };
    let mut table = listed();
    assert!(table.applied(unreadable("web", "u1", 7)));
    assert!(table.applied(unreadable("bad", "u2", 8)));
    assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
    table.list_begins();
    table.listed(unreadable("web", "u1", 7));
    table.listed(unreadable("bad", "u2", 8));
    assert!(!table.list_ends(9));
    assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
    assert!(table.applied(seen("web", "u1", 10, "listed")));
    assert!(table.deleted(&"bad", "u2", 11));
    assert_eq!((known(&table), table.unreadable()), (vec![("web", "listed")], &BTreeSet::new()));
}

#[test]
fn changes_are_told_once_each_with_the_newest_state() {
    let mut table = listed();
    table.put(seen("unnoted", "u9", 7, "before anybody asked"));
    assert_eq!(table.take_changes(), vec![], "nobody has asked");
    table.note_changes();
    type Value = Option<&'static str>;
    let change = |key, before: Value, value: Value, is_unreadable| {
        let [before, value] = [before, value].map(|value| value.map(Arc::new));
        Change { key, before, value, is_unreadable }
    };
    let unnoted = "before anybody asked";
    assert_eq!(
        table.take_changes(),
        [change("unnoted", None, Some(unnoted), false), change("web", None, Some("listed"), false)]
    );
    assert_eq!(table.take_changes(), vec![]);
    table.applied(seen("web", "u1", 8, "once"));
    table.applied(seen("web", "u1", 9, "twice"));
    table.put(seen("web", "u1", 9, "twice"));
    table.applied(Observation { content: Content::Unreadable, ..seen("bad", "u2", 10, "") });
    table.deleted(&"unnoted", "u9", 11);
    assert_eq!(
        table.take_changes(),
        [
            change("bad", None, None, true),
            change("unnoted", Some(unnoted), None, false),
            change("web", Some("listed"), Some("twice"), false)
        ]
    );
    table.list_begins();
    table.listed(seen("new", "u3", 12, "listed"));
    table.listed(seen("web", "u1", 9, "twice"));
    table.list_ends(13);
    assert_eq!(table.take_changes(), [change("bad", None, None, false), change("new", None, Some("listed"), false)]);
}

#[test]
fn an_object_that_ceases_to_matter_is_not_known() {
    let mut table = listed();
    assert!(table.applied(Observation { content: Content::Ignored, ..seen("web", "u1", 7, "") }));
    assert_eq!(known(&table), []);
}

/// One thing that happens between an API server and a table.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// We create or change the object of this name, and the answer arrives some time.
    Write(u8),
    /// We delete it.
    Delete(u8),
    /// Somebody else creates or changes it, or deletes it.
    Foreign(u8, bool),
    /// The next answer of those on their way arrives: the n-th of them.
    Answer(u8),
    /// The watch tells the next event.
    Event,
    /// A list is asked for, or if one was, its answer (as of when it was asked for, or of now) arrives.
    List(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..3u8;
    prop_oneof![
        3 => name.clone().prop_map(Step::Write),
        2 => name.clone().prop_map(Step::Delete),
        2 => (name, any::<bool>()).prop_map(|(name, delete)| Step::Foreign(name, delete)),
        4 => any::<u8>().prop_map(Step::Answer),
        4 => Just(Step::Event),
        1 => any::<bool>().prop_map(Step::List),
    ]
}

type State = Observation<u8, ResourceVersion>;

/// The API server, and what is on its way from there.
#[derive(Default)]
struct Server {
    version: ResourceVersion,
    objects: BTreeMap<u8, State>,
    /// All events, of which the watch has told the first `told`.
    events: Vec<(bool, State)>,
    told: usize,
    /// Answers: to a write the state it made, to a deletion the last one before.
    answers: Vec<(bool, State)>,
    /// A list that was asked for, as the objects were then.
    list: Option<(ResourceVersion, usize, BTreeMap<u8, State>)>,
}

impl Server {
    fn write(&mut self, name: u8) -> State {
        self.version += 1;
        let uid =
            self.objects.get(&name).map_or_else(|| format!("u{}", self.version).into(), |state| state.uid.clone());
        let state = Observation { key: name, uid, version: self.version, content: Content::Known(self.version) };
        self.objects.insert(name, state.clone());
        self.events.push((false, state.clone()));
        state
    }

    fn delete(&mut self, name: u8) -> Option<State> {
        let state = self.objects.remove(&name)?;
        self.version += 1;
        self.events.push((true, Observation { version: self.version, ..state.clone() }));
        Some(state)
    }

    fn take(&mut self, step: Step, table: &mut Table<u8, ResourceVersion>) {
        match step {
            Step::Write(name) => {
                let state = self.write(name);
                self.answers.push((false, state));
            }
            Step::Delete(name) => {
                let state = self.delete(name);
                self.answers.extend(state.map(|state| (true, state)));
            }
            Step::Foreign(name, false) => drop(self.write(name)),
            Step::Foreign(name, true) => drop(self.delete(name)),
            Step::Answer(_) if self.answers.is_empty() => {}
            Step::Answer(which) => match self.answers.remove(usize::from(which) % self.answers.len()) {
                (false, state) => drop(table.put(state)),
                (true, state) => drop(table.forget(&state.key, &state.uid)),
            },
            // While a list is asked for, there is no watch.
            Step::Event if self.list.is_some() => {}
            Step::Event => {
                let Some((deleted, state)) = self.events.get(self.told).cloned() else { return };
                self.told += 1;
                if deleted {
                    table.deleted(&state.key, &state.uid, state.version);
                } else {
                    table.applied(state);
                }
            }
            Step::List(again) => match self.list.take() {
                Some((version, told, objects)) if !again => {
                    objects.into_values().for_each(|state| table.listed(state));
                    table.list_ends(version);
                    self.told = told;
                }
                _ => {
                    table.list_begins();
                    self.list = Some((self.version, self.events.len(), self.objects.clone()));
                }
            },
        }
    }
}

proptest! {
    #[test]
    fn any_order_of_events_and_answers_ends_in_the_newest_state_and_never_goes_back(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let (mut server, mut table) = (Server::default(), Table::default());
        table.note_changes();
        let mut followed = BTreeMap::new();
        server.take(Step::List(false), &mut table);
        let mut newest = BTreeMap::<u8, ResourceVersion>::new();
        let rest = std::iter::repeat_n([Step::Answer(0), Step::Event], 200).flatten();
        for step in steps.into_iter().chain([Step::List(false)]).chain(rest) {
            // A list that is on its way when the steps are over arrives.
            let step = if matches!(step, Step::Event) && server.answers.is_empty() && server.list.is_some() {
                Step::List(false)
            } else {
                step
            };
            server.take(step, &mut table);
            for Change { key, before, value, .. } in table.take_changes() {
                let was = match value {
                    Some(value) => followed.insert(key, value),
                    None => followed.remove(&key),
                };
                prop_assert_eq!(before, was, "and has known it before");
            }
            let known: BTreeMap<_, _> = table.known().map(|(name, value)| (*name, value.clone())).collect();
            prop_assert_eq!(&followed, &known, "who follows the changes knows the same");
            for (name, value) in table.known() {
                let before = newest.insert(*name, **value).unwrap_or_default();
                prop_assert!(before <= **value, "{name} went from {before} back to {value}");
            }
        }
        let truth: Vec<_> = server.objects.iter().map(|(name, state)| (*name, state.content.clone())).collect();
        let known: Vec<_> = table.known().map(|(name, value)| (*name, Content::Known(**value))).collect();
        prop_assert_eq!(known, truth);
        prop_assert!(table.dead.is_empty());
    }
}
