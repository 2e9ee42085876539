//! The observed state of a table, and the outcome of a change. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::diff::ElementChange;
use crate::nft::elements::{ElementKey, Elements, KeyParts};
use crate::nft::layout::{SetId, Table};
use crate::rules::Frontend;

/// A table in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelTable {
    Absent,
    /// The table must be replaced, for this reason: mostly the first difference from our layout.
    Foreign(String),
    Ours(Elements),
}

/// The outcome by table; unchanged tables are left out.
pub type TableOutcomes = BTreeMap<Table, TableOutcome>;

/// The change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableOutcome {
    Changed(Vec<ElementChange>),
    /// Created with this number of elements.
    Created(usize),
    /// Replaced, since it did not have our layout, or one of its sets was full.
    Replaced {
        because: String,
        elements: usize,
    },
    /// Removed together with all its known elements, since the table has nothing to do.
    Removed(Vec<ElementChange>),
}

impl TableOutcome {
    /// The number of elements that were added or deleted.
    pub fn size(&self) -> u64 {
        let count = match self {
            Self::Changed(changes) | Self::Removed(changes) => changes.len(),
            Self::Created(elements) | Self::Replaced { elements, .. } => *elements,
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// The ports that were removed from existing tables, or whose elements there changed.
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
