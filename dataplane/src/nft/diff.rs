//! Changes of elements: [`diff_elements`] between observed and desired elements, and [`diff_rulesets`] between two
//! rulesets, which skips shared parts. Pure.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::elements::{ElementKey, ElementValue, Elements};
use super::projection::{lb_ip_elements, next_hop_elements, shared_elements, table_elements};
use crate::rules::{LbIp, Ruleset, SlotTable, changed_lb_ips, full_outer_join};

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementChange {
    Add(ElementKey, ElementValue),
    /// Deletes the element, which has this value.
    Delete(ElementKey, ElementValue),
}

impl ElementChange {
    pub fn key(&self) -> &ElementKey {
        match self {
            Self::Add(key, _) | Self::Delete(key, _) => key,
        }
    }

    /// The stage of a transaction to which the change belongs. A chain is added before the elements that lead to it,
    /// and deleted after them. An element that changes is deleted before it is added: to the kernel, the same key with
    /// another value is an error.
    fn stage(&self) -> u8 {
        match self {
            Self::Add(ElementKey::Chain(..), _) => 0,
            Self::Delete(ElementKey::Chain(..), _) => 3,
            Self::Delete(..) => 1,
            Self::Add(..) => 2,
        }
    }
}

impl fmt::Display for ElementChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(key, _) => write!(f, "add {key}"),
            Self::Delete(key, _) => write!(f, "delete {key}"),
        }
    }
}

/// The changes from `observed` to `desired`, in the order for one transaction: by stage, then by key.
pub fn diff_elements(observed: &Elements, desired: &Elements) -> Vec<ElementChange> {
    let mut changes = Vec::new();
    full_outer_join(observed, desired, |key, before, after| {
        if before != after {
            changes.extend(before.map(|value| ElementChange::Delete(*key, value.clone())));
            changes.extend(after.map(|value| ElementChange::Add(*key, value.clone())));
        }
    });
    sort_changes(changes)
}

/// The changes from the elements of `applied` to those of `desired`: the same as [`diff_elements`] of all elements. But
/// parts that both rulesets share cost only a comparison of pointers.
pub fn diff_rulesets(applied: &Ruleset, desired: &Ruleset) -> Vec<ElementChange> {
    let mut changes = Vec::new();
    for (address, before, after) in changed_lb_ips(applied, desired) {
        if before != after {
            changes.extend(diff_elements(&elements_at(address, before), &elements_at(address, after)));
        }
    }
    let (before, after) =
        (shared_elements(applied).into_iter().collect(), shared_elements(desired).into_iter().collect());
    changes.extend(diff_elements(&before, &after));
    for (id, before, after) in applied.differing_tables(desired) {
        let elements = |table: Option<&Arc<SlotTable>>| -> Elements {
            table.map(|table| table_elements(id, table).into_iter().collect()).unwrap_or_default()
        };
        changes.extend(diff_elements(&elements(before), &elements(after)));
    }
    if !Arc::ptr_eq(&applied.next_hops, &desired.next_hops) {
        let elements = |ruleset: &Ruleset| -> Elements { next_hop_elements(&ruleset.next_hops).into_iter().collect() };
        changes.extend(diff_elements(&elements(applied), &elements(desired)));
    }
    sort_changes(changes)
}

fn elements_at(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> Elements {
    lb_ip.map(|lb_ip| lb_ip_elements(address, lb_ip).into_iter().collect()).unwrap_or_default()
}

fn sort_changes(mut changes: Vec<ElementChange>) -> Vec<ElementChange> {
    changes.sort_by_key(|change| (change.stage(), *change.key()));
    changes
}
