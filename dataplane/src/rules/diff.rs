//! The differences between two rulesets or two maps. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::ruleset::{LbIp, Ruleset};

/// The lb_ips that may differ, with their states before and after. An lb_ip that both rulesets share costs only a
/// comparison of pointers.
pub(crate) fn changed_lb_ips<'a>(
    before: &'a Ruleset,
    after: &'a Ruleset,
) -> impl Iterator<Item = (IpAddr, Option<&'a Arc<LbIp>>, Option<&'a Arc<LbIp>>)> {
    let differing =
        before.addresses.differing(&after.addresses).map(|(address, before, after)| (*address, before, after));
    differing.filter(|(_, before, after)| !matches!((before, after), (Some(a), Some(b)) if Arc::ptr_eq(a, b)))
}

/// Walks two small maps at once: calls `each` for every key of either, in order, with the values of both.
pub(crate) fn full_outer_join<'a, K: Ord, V>(
    left: &'a BTreeMap<K, V>,
    right: &'a BTreeMap<K, V>,
    mut each: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>),
) {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let from_left = if order.is_le() { left.next() } else { None };
        let from_right = if order.is_ge() { right.next() } else { None };
        if let Some((key, _)) = from_left.or(from_right) {
            each(key, from_left.map(|(_, value)| value), from_right.map(|(_, value)| value));
        }
    }
}
