//! Sequences of lists, events and responses, and the state that a table has after them.

use super::*;
use proptest::prelude::*;

type Texts = Table<&'static str, &'static str>;

fn observation(
    key: &'static str,
    uid: &str,
    version: ResourceVersion,
    value: &'static str,
) -> Observation<&'static str, &'static str> {
    Observation { key, uid: uid.into(), version, content: Content::Known(value) }
}

fn known_objects(table: &Texts) -> Vec<(&'static str, &'static str)> {
    table.objects().map(|(key, value)| (*key, **value)).collect()
}

/// A table after a list at version 6 that contains `web` with uid u1 and version 5.
fn listed_table() -> Texts {
    let mut table = Table::default();
    table.begin_list();
    table.add_listed(observation("web", "u1", 5, "listed"));
    assert!(table.finish_list(6));
    table
}

#[test]
fn table_is_synced_after_the_first_complete_list() {
    let mut table = Texts::default();
    table.begin_list();
    table.add_listed(observation("web", "u1", 5, "listed"));
    table.begin_list();
    assert!(!table.is_synced());
    assert!(table.finish_list(6), "the first list is a change even if it is empty");
    assert_eq!((table.is_synced(), known_objects(&table)), (true, vec![]));
}

#[test]
fn stale_event_does_not_undo_an_own_write() {
    let mut table = listed_table();
    assert!(table.apply_response(observation("web", "u1", 9, "ours")));
    assert!(!table.apply(observation("web", "u1", 8, "theirs, before")));
    assert_eq!(known_objects(&table), [("web", "ours")]);
    assert!(!table.apply(observation("web", "u1", 9, "ours")), "the event of an own write is not a change");
    assert!(table.apply(observation("web", "u1", 10, "theirs, after")));
    assert_eq!(known_objects(&table), [("web", "theirs, after")]);
}

#[test]
fn late_response_does_not_undo_a_watch_event() {
    let mut table = listed_table();
    assert!(table.apply(observation("web", "u1", 9, "theirs")));
    assert!(!table.apply_response(observation("web", "u1", 8, "ours")));
    assert!(table.apply_deletion(&"web", "u1", 12));
    assert!(!table.apply_response(observation("web", "u1", 11, "ours")), "the watch has reported the deletion");
    assert_eq!(known_objects(&table), []);
}

#[test]
fn older_event_does_not_restore_a_deleted_object() {
    let mut table = listed_table();
    assert!(table.apply_response(observation("new", "u2", 8, "ours")));
    assert!(table.forget(&"new", "u2"));
    assert!(!table.apply(observation("new", "u2", 8, "ours")));
    assert!(!table.apply_deletion(&"new", "u2", 9));
    assert!(table.apply(observation("new", "u3", 10, "theirs")));
    assert!(!table.forget(&"new", "u2"), "the response to the deletion came twice or late");
    assert_eq!(known_objects(&table), [("new", "theirs"), ("web", "listed")]);
    assert!(table.deleted.is_empty());
}

#[test]
fn list_replaces_all_except_newer_own_writes() {
    let mut table = listed_table();
    table.apply_response(observation("before", "u2", 7, "response before the list request, deleted since"));
    table.begin_list();
    table.apply_response(observation("during", "u3", 30, "newer than the list"));
    table.apply_response(observation("during, older", "u4", 8, "older than the list, deleted since"));
    table.add_listed(observation("other", "u5", 9, "listed"));
    assert!(table.finish_list(20));
    assert_eq!(known_objects(&table), [("during", "newer than the list"), ("other", "listed")]);
    table.begin_list();
    table.add_listed(observation("other", "u5", 9, "listed"));
    assert!(table.finish_list(3), "the storage was restored from a backup");
    assert_eq!(known_objects(&table), [("other", "listed")]);
    assert!(table.apply_response(observation("other", "u5", 10, "ours")), "versions continue from there");
}

#[test]
fn object_that_we_delete_during_a_list_stays_deleted() {
    let mut table = listed_table();
    table.begin_list();
    table.add_listed(observation("web", "u1", 5, "listed"));
    assert!(table.forget(&"web", "u1"));
    table.finish_list(7);
    assert_eq!(known_objects(&table), []);
    table.apply_deletion(&"web", "u1", 8);
    assert!(table.deleted.is_empty());
}

#[test]
fn unreadable_object_keeps_its_last_known_state() {
    let unreadable =
        |key, uid: &str, version| Observation { content: Content::Unreadable, ..observation(key, uid, version, "") };
    let mut table = listed_table();
    assert!(table.apply(unreadable("web", "u1", 7)));
    assert!(table.apply(unreadable("bad", "u2", 8)));
    assert_eq!((known_objects(&table), &table.unreadable), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
    table.begin_list();
    table.add_listed(unreadable("web", "u1", 7));
    table.add_listed(unreadable("bad", "u2", 8));
    assert!(!table.finish_list(9));
    assert_eq!((known_objects(&table), &table.unreadable), (vec![("web", "listed")], &BTreeSet::from(["bad", "web"])));
    assert!(table.apply(observation("web", "u1", 10, "listed")));
    assert!(table.apply_deletion(&"bad", "u2", 11));
    assert_eq!((known_objects(&table), &table.unreadable), (vec![("web", "listed")], &BTreeSet::new()));
}

#[test]
fn changes_are_returned_once_with_the_newest_state() {
    let mut table = listed_table();
    table.apply_response(observation("early", "u9", 7, "ours"));
    type Value = Option<&'static str>;
    let change = |key, before: Value, value: Value, is_unreadable| {
        let [before, value] = [before, value].map(|value| value.map(Arc::new));
        Change { key, before, value, is_unreadable }
    };
    assert_eq!(
        table.take_changes(),
        [change("early", None, Some("ours"), false), change("web", None, Some("listed"), false)]
    );
    assert_eq!(table.take_changes(), vec![]);
    table.apply(observation("web", "u1", 8, "once"));
    table.apply(observation("web", "u1", 9, "twice"));
    table.apply_response(observation("web", "u1", 9, "twice"));
    table.apply(Observation { content: Content::Unreadable, ..observation("bad", "u2", 10, "") });
    table.apply_deletion(&"early", "u9", 11);
    assert_eq!(
        table.take_changes(),
        [
            change("bad", None, None, true),
            change("early", Some("ours"), None, false),
            change("web", Some("listed"), Some("twice"), false)
        ]
    );
    table.begin_list();
    table.add_listed(observation("new", "u3", 12, "listed"));
    table.add_listed(observation("web", "u1", 9, "twice"));
    table.finish_list(13);
    assert_eq!(table.take_changes(), [change("bad", None, None, false), change("new", None, Some("listed"), false)]);
}

#[test]
fn object_that_becomes_ignored_is_removed() {
    let mut table = listed_table();
    assert!(table.apply(Observation { content: Content::Ignored, ..observation("web", "u1", 7, "") }));
    assert_eq!(known_objects(&table), []);
}

/// One step between an API server and a table.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of our writes creates or changes the object with this name. The response arrives later.
    Write(u8),
    /// One of our writes deletes the object with this name. The response arrives later.
    Delete(u8),
    /// Another client writes the object, or deletes it if the flag is set.
    Foreign(u8, bool),
    /// The n-th of the pending responses arrives.
    Response(u8),
    /// The watch sends the next event.
    Event,
    /// If no list is pending, a list is requested. If a list is pending, it arrives; with the flag, a new request
    /// replaces it.
    List(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..3u8;
    prop_oneof![
        3 => name.clone().prop_map(Step::Write),
        2 => name.clone().prop_map(Step::Delete),
        2 => (name, any::<bool>()).prop_map(|(name, delete)| Step::Foreign(name, delete)),
        4 => any::<u8>().prop_map(Step::Response),
        4 => Just(Step::Event),
        1 => any::<bool>().prop_map(Step::List),
    ]
}

type State = Observation<u8, ResourceVersion>;

/// The API server, with its pending responses.
#[derive(Default)]
struct Server {
    version: ResourceVersion,
    objects: BTreeMap<u8, State>,
    /// All events. The watch has sent the first `sent` of them.
    events: Vec<(bool, State)>,
    sent: usize,
    /// Pending responses: the state after a write, or the last state before a deletion (true).
    responses: Vec<(bool, State)>,
    /// A pending list, with the state of the objects at its request.
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

    fn perform(&mut self, step: Step, table: &mut Table<u8, ResourceVersion>) {
        match step {
            Step::Write(name) => {
                let state = self.write(name);
                self.responses.push((false, state));
            }
            Step::Delete(name) => {
                let state = self.delete(name);
                self.responses.extend(state.map(|state| (true, state)));
            }
            Step::Foreign(name, false) => drop(self.write(name)),
            Step::Foreign(name, true) => drop(self.delete(name)),
            Step::Response(_) if self.responses.is_empty() => {}
            Step::Response(which) => match self.responses.remove(usize::from(which) % self.responses.len()) {
                (false, state) => drop(table.apply_response(state)),
                (true, state) => drop(table.forget(&state.key, &state.uid)),
            },
            // There is no watch while a list is pending.
            Step::Event if self.list.is_some() => {}
            Step::Event => {
                let Some((deleted, state)) = self.events.get(self.sent).cloned() else { return };
                self.sent += 1;
                if deleted {
                    table.apply_deletion(&state.key, &state.uid, state.version);
                } else {
                    table.apply(state);
                }
            }
            Step::List(again) => match self.list.take() {
                Some((version, sent, objects)) if !again => {
                    objects.into_values().for_each(|state| table.add_listed(state));
                    table.finish_list(version);
                    self.sent = sent;
                }
                _ => {
                    table.begin_list();
                    self.list = Some((self.version, self.events.len(), self.objects.clone()));
                }
            },
        }
    }
}

proptest! {
    #[test]
    fn any_order_of_arrival_ends_in_the_newest_state(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let (mut server, mut table) = (Server::default(), Table::default());
        let mut followed = BTreeMap::new();
        server.perform(Step::List(false), &mut table);
        let mut newest = BTreeMap::<u8, ResourceVersion>::new();
        let rest = std::iter::repeat_n([Step::Response(0), Step::Event], 200).flatten();
        for step in steps.into_iter().chain([Step::List(false)]).chain(rest) {
            // The watch sends no event while a list is pending. If no response is pending, the list arrives instead.
            let step = if matches!(step, Step::Event) && server.responses.is_empty() && server.list.is_some() {
                Step::List(false)
            } else {
                step
            };
            server.perform(step, &mut table);
            for Change { key, before, value, .. } in table.take_changes() {
                let was = match value {
                    Some(value) => followed.insert(key, value),
                    None => followed.remove(&key),
                };
                prop_assert_eq!(before, was, "the previous state");
            }
            let known: BTreeMap<_, _> = table.objects().map(|(name, value)| (*name, value.clone())).collect();
            prop_assert_eq!(&followed, &known, "changes add up to the same state");
            for (name, value) in table.objects() {
                let before = newest.insert(*name, **value).unwrap_or_default();
                prop_assert!(before <= **value, "{name} went from {before} back to {value}");
            }
        }
        let truth: Vec<_> = server.objects.iter().map(|(name, state)| (*name, state.content.clone())).collect();
        let known: Vec<_> = table.objects().map(|(name, value)| (*name, Content::Known(**value))).collect();
        prop_assert_eq!(known, truth);
        prop_assert!(table.deleted.is_empty());
    }
}
