//! The observed state of a table, the task to execute, and its outcome. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::codec::contents::TableContents;
use crate::nft::codec::request::Requests;
use crate::nft::diff::ElementChange;
use crate::nft::elements::{ElementKey, Elements, KeyParts};
use crate::nft::layout::{SetId, Table};
use crate::rules::Frontend;

/// A table in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelTable {
    Absent,
    /// Another layout than ours, and the first difference.
    Foreign(String),
    Ours(Elements),
}

/// The outcome by table; unchanged tables are left out.
pub type TableOutcomes = BTreeMap<Table, TableOutcome>;

/// The outcome of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableOutcome {
    Changed(Vec<ElementChange>),
    /// Created with this number of elements.
    Created(usize),
    /// Replaced, since it did not have our layout.
    Replaced {
        because: String,
        elements: usize,
    },
    /// Removed, since it has nothing to do, and all known elements with it.
    Removed(Vec<ElementChange>),
}

impl TableOutcome {
    /// The number of changed elements.
    pub fn size(&self) -> u64 {
        let count = match self {
            Self::Changed(changes) | Self::Removed(changes) => changes.len(),
            Self::Created(elements) | Self::Replaced { elements, .. } => *elements,
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// The ports whose endpoints changed or that were removed from existing tables.
pub fn removed_ports(outcomes: TableOutcomes) -> BTreeSet<Frontend> {
    let changes = outcomes.into_values().filter_map(|outcome| match outcome {
        TableOutcome::Changed(changes) | TableOutcome::Removed(changes) => Some(changes),
        TableOutcome::Created(_) | TableOutcome::Replaced { .. } => None,
    });
    let removed = changes.flatten().filter_map(|change| match change {
        ElementChange::Delete(ElementKey::In(_, set, KeyParts::Frontend(port)), _)
            if [SetId::Services, SetId::Inside, SetId::Refused].contains(&set) =>
        {
            Some(port)
        }
        _ => None,
    });
    removed.collect()
}

/// The task of the engine for one table.
pub(super) enum TableTask {
    Nothing,
    Change(Vec<ElementChange>),
    Create {
        contents: TableContents,
        elements: usize,
        /// Why the existing table is replaced.
        because: Option<String>,
    },
    Remove(Vec<ElementChange>),
}

impl TableTask {
    pub(super) fn create(contents: TableContents, because: Option<String>) -> Self {
        let elements = contents.count();
        Self::Create { contents, elements, because }
    }

    /// Adds the messages. The contents of a new table are moved there.
    pub(super) fn request<'a>(&'a mut self, table: Table, requests: &mut Requests<'a>) {
        match self {
            Self::Nothing => {}
            Self::Change(changes) => requests.change(changes),
            Self::Create { contents, because, .. } => {
                if because.is_some() {
                    requests.delete_table(table);
                }
                requests.create_table(table, std::mem::take(contents));
            }
            Self::Remove(_) => requests.delete_table(table),
        }
    }

    /// The outcome once it is executed; `None` if nothing changed.
    pub(super) fn outcome(self) -> Option<TableOutcome> {
        match self {
            Self::Nothing => None,
            Self::Change(changes) if changes.is_empty() => None,
            Self::Change(changes) => Some(TableOutcome::Changed(changes)),
            Self::Create { elements, because: None, .. } => Some(TableOutcome::Created(elements)),
            Self::Create { elements, because: Some(because), .. } => Some(TableOutcome::Replaced { because, elements }),
            Self::Remove(changes) => Some(TableOutcome::Removed(changes)),
        }
    }
}
