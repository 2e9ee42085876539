//! What to change: [`diff`] between the elements that are there and those that should be, and [`changes`] between two
//! rulesets, which looks only at what differs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::nft::elements::{Elements, Key, Value, of_address, of_table, of_wires, shared};
use crate::rules::ruleset::{LbIp, Ruleset};
use crate::rules::spread;

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This element comes.
    Add(Key, Value),
    /// This element, which has this value, goes.
    Delete(Key, Value),
}

impl Change {
    /// The element.
    pub fn key(&self) -> &Key {
        match self {
            Self::Add(key, _) | Self::Delete(key, _) => key,
        }
    }

    /// Where it stands in a transaction. A chain must be there before an element leads to it, and can go only after
    /// the last one that did. An element that changes goes before it comes: to the kernel, the same key with another
    /// value is an error.
    fn place(&self) -> u8 {
        match self {
            Self::Add(Key::Way(..) | Key::Remember(..) | Key::Hooked(..), _) => 0,
            Self::Delete(Key::Way(..) | Key::Remember(..) | Key::Hooked(..), _) => 3,
            Self::Delete(..) => 1,
            Self::Add(..) => 2,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(key, _) => write!(f, "add {key}"),
            Self::Delete(key, _) => write!(f, "delete {key}"),
        }
    }
}

/// What makes `desired` of `observed`, in an order that is good for one transaction: by place (see [`Change`]), then
/// by key.
pub fn diff(observed: &Elements, desired: &Elements) -> Vec<Change> {
    let mut changes = Vec::new();
    both(observed, desired, |key, before, after| {
        if before != after {
            changes.extend(before.map(|value| Change::Delete(*key, value.clone())));
            changes.extend(after.map(|value| Change::Add(*key, value.clone())));
        }
    });
    ordered(changes)
}

/// What makes the elements of `desired` of those of `applied`: the same as [`diff`] of all their elements. What both
/// share costs a comparison of pointers.
pub fn changes(applied: &Ruleset, desired: &Ruleset) -> Vec<Change> {
    let mut changes = Vec::new();
    for (address, before, after) in applied.addresses.differing(&desired.addresses) {
        let same = match (before, after) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after) || before == after,
            _ => false,
        };
        if !same {
            changes.extend(diff(&one(*address, before), &one(*address, after)));
        }
    }
    let (before, after) = (shared(applied).into_iter().collect(), shared(desired).into_iter().collect());
    changes.extend(diff(&before, &after));
    for (token, before, after) in applied.differing_tables(desired) {
        let elements = |table: Option<&Arc<spread::Table>>| -> Elements {
            table.map(|table| of_table(token, table).into_iter().collect()).unwrap_or_default()
        };
        changes.extend(diff(&elements(before), &elements(after)));
    }
    if !Arc::ptr_eq(&applied.wires, &desired.wires) {
        let elements = |ruleset: &Ruleset| -> Elements { of_wires(&ruleset.wires).into_iter().collect() };
        changes.extend(diff(&elements(applied), &elements(desired)));
    }
    ordered(changes)
}

fn one(address: IpAddr, lb_ip: Option<&Arc<LbIp>>) -> Elements {
    lb_ip.map(|lb_ip| of_address(address, lb_ip).into_iter().collect()).unwrap_or_default()
}

fn ordered(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by_key(|change| (change.place(), *change.key()));
    changes
}

/// Walks two small maps at once: every key of either, in order, with what each has there.
pub(crate) fn both<'a, K: Ord, V>(
    left: &'a BTreeMap<K, V>,
    right: &'a BTreeMap<K, V>,
    mut each: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>),
) {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        if let Some((key, _)) = from_left.or(from_right) {
            each(key, from_left.map(|(_, value)| value), from_right.map(|(_, value)| value));
        }
    }
}
