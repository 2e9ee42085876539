//! What is said of a pool: how many addresses it has left, and what is wrong with it.
//!
//! A pool, its [`Counts`] and (of one that drains) its [`Holders`] → the status that the pool should have. It costs the
//! same for every pool, however many addresses it has and however many of them are in use.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crds::condition::{Condition, ConditionStatus, DesiredCondition};
use crds::service::Family;
use crds::{Holder, IPAddressPoolStatus, Key, Record};
use jiff::Timestamp;

use crate::pools::free::Counts;
use crate::pools::intervals::{ByFamily, FAMILIES};
use crate::pools::truncated::Few;
use crate::pools::{LeftOut, Overlap, Pool};

/// The condition that says which addresses nobody gets because somebody else on the LAN uses them; there only as long as
/// there are any.
const CONFLICT: &str = "Conflict";

/// The condition that says whether a draining pool is empty.
const DRAINED: &str = "Drained";

/// How many Services `status.heldBy` names: enough for an administrator to go through, and a bound on the object.
const MAX_HELD_BY: usize = 100;

/// Who has addresses of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holders {
    /// The Services.
    services: BTreeSet<Key>,
    /// Addresses that nobody can say who has: their LoadBalancerIPs can't be read.
    unreadable: usize,
}

/// An address that somebody else on the LAN uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Strange {
    pub(crate) address: IpAddr,
    /// Who uses it.
    pub(crate) mac: String,
}

impl fmt::Display for Strange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.address, self.mac)
    }
}

impl Holders {
    /// Those that these records name. `unreadable` counts the addresses of the pool whose record can't be read.
    pub(crate) fn new<'a>(records: impl IntoIterator<Item = &'a Record>, unreadable: usize) -> Self {
        let holders = records.into_iter().flat_map(|record| &record.holders);
        let services = holders.map(Holder::service).collect();
        Self { services, unreadable }
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.unreadable == 0
    }
}

/// The status that `pool` should have. Conditions of others in it stay. Its holders matter only while it drains.
pub(crate) fn status(
    pool: &Pool,
    counts: &ByFamily<Counts>,
    holders: impl FnOnce() -> Holders,
    strangers: &Few<Strange>,
    now: Timestamp,
) -> IPAddressPoolStatus {
    let old = pool.object.status.as_ref();
    let holders = pool.object.spec.drain.then(holders);
    let mut conditions = old.map(|status| status.conditions.clone()).unwrap_or_default();
    for desired in conditions_of(pool, counts, holders.as_ref(), strangers) {
        if !desired.is_in(&conditions) {
            conditions = desired.set_in(&conditions, now);
        }
    }
    if holders.is_none() {
        conditions.retain(|condition| condition.type_ != DRAINED);
    }
    if strangers.is_empty() {
        conditions.retain(|condition| condition.type_ != CONFLICT);
    }
    let written = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    let held_by = holders.iter().flat_map(|holders| &holders.services).take(MAX_HELD_BY);
    IPAddressPoolStatus {
        assigned_ipv4: written(counts.v4.used),
        assigned_ipv6: written(counts.v6.used),
        available_ipv4: written(counts.v4.available()),
        available_ipv6: written(counts.v6.available()),
        held_by: held_by.map(ToString::to_string).collect(),
        conditions,
    }
}

/// What of `now` an administrator should be told that was not said `before`: each with a reason.
pub(crate) fn warnings<'a>(
    before: &'a [Condition],
    now: &'a [Condition],
) -> impl Iterator<Item = (&'static str, &'a Condition)> {
    let is_said = |condition: &Condition| {
        // Who else has run out while it was full is no news.
        let is_same = |c: &&Condition| c.reason == condition.reason && c.message == condition.message;
        before.iter().filter(|c| c.type_ == condition.type_ && c.status == condition.status).any(|c| is_same(&c))
    };
    now.iter().filter(move |condition| !is_said(condition)).filter_map(|condition| {
        match (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str()) {
            // Who drains a pool knows.
            ("Ready", "False", "Draining") => None,
            ("Ready", "False", _) => Some(("NotReady", condition)),
            ("Overlap", "True", _) => Some(("Overlap", condition)),
            ("Exhausted", "True", _) => Some(("Exhausted", condition)),
            (CONFLICT, "True", _) => Some(("AddressConflict", condition)),
            _ => None,
        }
    })
}

/// `Ready`, `Overlap` and `Exhausted`, of a draining pool `Drained`, and `Conflict` where there is one.
fn conditions_of(
    pool: &Pool,
    counts: &ByFamily<Counts>,
    holders: Option<&Holders>,
    strangers: &Few<Strange>,
) -> Vec<DesiredCondition> {
    let desired = |type_, (status, reason, message)| DesiredCondition {
        type_,
        status,
        reason,
        message,
        observed_generation: pool.object.metadata.generation,
    };
    let mut conditions = vec![
        desired("Ready", ready(pool, counts)),
        desired("Overlap", overlap(pool)),
        desired("Exhausted", exhausted(counts)),
    ];
    conditions.extend(holders.map(|holders| desired(DRAINED, drained(holders))));
    if !strangers.is_empty() {
        let message = format!(
            "nobody gets these addresses for some minutes, because others on the LAN were found to use them: {strangers}; \
             find these machines, or leave the addresses out (spec.exclude)"
        );
        conditions.push(desired(CONFLICT, (ConditionStatus::True, "AddressConflict", message)));
    }
    conditions
}

/// Whether something holds, why, and the sentence for people.
type Said = (ConditionStatus, &'static str, String);

/// Several things may be wrong at once: all are said, and the first is the reason.
fn ready(pool: &Pool, counts: &ByFamily<Counts>) -> Said {
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    if !pool.invalid.is_empty() {
        wrong.push(("InvalidRange", pool.invalid.to_string()));
    }
    if !pool.invalid_exclude.is_empty() {
        let text = format!(
            "exclude: {}; until that is put right, only addresses that are asked for by name are given",
            pool.invalid_exclude
        );
        wrong.push(("InvalidRange", text));
    }
    if !pool.invalid_selectors.is_empty() {
        wrong.push(("InvalidSelector", pool.invalid_selectors.to_string()));
    }
    if pool.ranges.is_empty() && !pool.overlaps.is_empty() {
        wrong.push(("Overlap", format!("all its addresses belong to older pools: {}", pool.overlaps)));
    } else if FAMILIES.iter().all(|family| counts[*family].size == 0) {
        wrong.push(("NoAddresses", "it has no addresses: add some to spec.addresses".to_owned()));
    } else if pool.invalid_exclude.is_empty() && FAMILIES.iter().all(|family| !gives(&counts[*family])) {
        let mut text = "none of its addresses can be given without being asked for by name".to_owned();
        if !pool.left_out.is_empty() {
            text += &format!("; nodes or gateways have these: {}", pool.left_out);
        }
        wrong.push(("NoAddresses", text));
    }
    let is_draining = pool.object.spec.drain;
    if is_draining {
        wrong.push(("Draining", "spec.drain is set, and no address of it is given any more".to_owned()));
    }
    let Some((reason, _)) = wrong.first() else {
        let mut message = "its addresses are given out".to_owned();
        if !pool.left_out.is_empty() {
            message += &format!("; left out, because nodes or gateways have them: {}", pool.left_out);
        }
        return (ConditionStatus::True, "Ready", message);
    };
    let gives_some = !is_draining && FAMILIES.iter().any(|family| gives(&counts[*family]));
    let mut message = wrong.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ");
    match *reason {
        "InvalidRange" if gives_some => message += "; its other addresses are given out",
        "InvalidSelector" if gives_some => message += "; who is admitted otherwise gets its addresses",
        _ => {}
    }
    (ConditionStatus::False, reason, message)
}

/// Whether there are addresses that it gives without being asked for one by name, though they be used up.
fn gives(counts: &Counts) -> bool {
    counts.open > 0
}

fn overlap(pool: &Pool) -> Said {
    if pool.overlaps.is_empty() {
        return (ConditionStatus::False, "NoOverlap", "no older pool has any of its addresses".to_owned());
    }
    let message = format!("these addresses belong to an older pool, and this one serves the others: {}", pool.overlaps);
    (ConditionStatus::True, "Overlap", message)
}

/// Of a family that it never had, it can't be out.
fn exhausted(counts: &ByFamily<Counts>) -> Said {
    let had: Vec<Family> = FAMILIES.into_iter().filter(|family| gives(&counts[*family])).collect();
    let out: Few<_> = had.iter().filter(|family| counts[**family].available() == 0).collect();
    match (had.as_slice(), out.listed()) {
        ([], _) => (ConditionStatus::False, "NoAddresses", "it has no addresses to give".to_owned()),
        (_, []) => (ConditionStatus::False, "NotExhausted", "it has free addresses".to_owned()),
        (had, out) => {
            let families = out.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and no ");
            let rest = if out.len() < had.len() { "; of the other family there are some" } else { "" };
            let message =
                format!("no {families} address is free{rest}: add addresses, or create another IPAddressPool");
            (ConditionStatus::True, "Exhausted", message)
        }
    }
}

fn drained(holders: &Holders) -> Said {
    if holders.is_empty() {
        return (
            ConditionStatus::True,
            "Drained",
            "no Service has an address of it any more: it can be deleted".to_owned(),
        );
    }
    let mut held = Vec::new();
    if !holders.services.is_empty() {
        let named: Few<_> = holders.services.iter().collect();
        let have = if named.len() == 1 { "has" } else { "have" };
        held.push(format!("{} still {have} addresses of it: {named}", counted(named.len(), "Service")));
    }
    if holders.unreadable > 0 {
        held.push(format!("{} of it can't be read", counted(holders.unreadable, "LoadBalancerIP")));
    }
    let message = format!("{}; move them by asking for another pool in landfall.dev/address-pool", held.join("; "));
    (ConditionStatus::False, "Held", message)
}

/// A number of things.
fn counted(number: usize, thing: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{number} {thing}{}", if number == 1 { "" } else { "s" }))
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pool {}", self.range, self.pool)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.address, self.occupant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at, ip, node, pool, record};
    use crate::pools::Pools;
    use crate::pools::free::Free;
    use crate::pools::occupied::Occupied;
    use crds::IPAddressPool;
    use std::sync::Arc;

    /// The statuses of pools, oldest first, where these addresses are used.
    fn statuses(pools: &[Arc<IPAddressPool>], occupied: &Occupied, used: &[&str]) -> Vec<IPAddressPoolStatus> {
        let pools = Pools::new(pools, occupied);
        let free = Free::new(&pools, used.iter().map(|text| ip(text)));
        let held = || Holders::new([], 0);
        pools.iter().map(|pool| status(pool, &free.counts(pool), held, &Few::default(), at(9))).collect()
    }

    /// The conditions as `Type=Status Reason: message`.
    fn lines(status: &IPAddressPoolStatus) -> Vec<String> {
        status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)).collect()
    }

    fn edited(mut pool: Arc<IPAddressPool>, edit: impl FnOnce(&mut IPAddressPool)) -> Arc<IPAddressPool> {
        edit(Arc::make_mut(&mut pool));
        pool
    }

    const READY: &str = "Ready=True Ready: its addresses are given out";
    const NO_OVERLAP: &str = "Overlap=False NoOverlap: no older pool has any of its addresses";
    const NOT_EXHAUSTED: &str = "Exhausted=False NotExhausted: it has free addresses";

    fn overlap(text: &str) -> String {
        format!("Overlap=True Overlap: these addresses belong to an older pool, and this one serves the others: {text}")
    }

    #[test]
    fn a_pool_counts_what_somebody_has_and_what_can_still_be_had() {
        let lan = edited(pool("lan", 1, &["192.0.2.0/28", "2001:db8::/64"]), |pool| {
            pool.metadata.generation = Some(4);
        });
        let nodes = [node("n1", "192.0.2.5"), node("n2", "192.0.2.15")];
        let network = crds::Network { addresses: vec![], gateways: vec![ip("192.0.2.6")] };
        let occupied = Occupied::new(nodes.iter().map(|node| &**node), [("n1", &network)]);
        // 16, of which three are somebody's, one is the broadcast address and a node's at once, one a node's and one a
        // gateway.
        let used = ["192.0.2.0", "192.0.2.3", "192.0.2.4", "2001:db8::7"];
        let [status] = statuses(&[lan], &occupied, &used).try_into().expect("one pool");
        let ready = "; left out, because nodes or gateways have them: 192.0.2.5 of node n1, \
                     192.0.2.6 of the gateway of node n1, 192.0.2.15 of node n2";
        assert_eq!(lines(&status), [format!("{READY}{ready}"), NO_OVERLAP.into(), NOT_EXHAUSTED.into()]);
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(4)));
        let numbers = IPAddressPoolStatus { conditions: vec![], ..status };
        assert_eq!(
            numbers,
            IPAddressPoolStatus {
                assigned_ipv4: 3,
                assigned_ipv6: 1,
                available_ipv4: 10,
                available_ipv6: i64::MAX,
                held_by: vec![],
                conditions: vec![],
            }
        );
    }

    #[test]
    fn what_is_wrong_with_a_pool_is_said_with_the_addresses() {
        let selector = serde_json::json!({"serviceSelectors": [
            {"matchExpressions": [{"key": "app", "operator": "Like"}]},
        ]});
        let selector = serde_json::from_value(selector).expect("a serviceAllocation");
        let pools = [
            pool("lan", 1, &["192.0.2.0-192.0.2.9"]),
            pool("part", 2, &["192.0.2.9-192.0.2.10", "::1-::2"]),
            pool("none", 3, &["192.0.2.1-192.0.2.2"]),
            pool("bad", 4, &["nonsense", "198.51.100.0/31"]),
            edited(pool("all-bad", 5, &["nonsense"]), |pool| pool.spec.drain = true),
            edited(pool("shut", 6, &["198.51.100.8"]), |pool| pool.spec.exclude = pool.spec.addresses.clone()),
            edited(pool("fence", 7, &["198.51.100.9"]), |pool| pool.spec.service_allocation = Some(selector)),
            edited(pool("unsure", 8, &["2001:db8::/64"]), |pool| {
                pool.spec.exclude = vec![crds::ip_address_pool::AddressRange("2001:db8::9-2001:db8::1".into())];
            }),
        ];
        let nonsense = "\"nonsense\" is not a CIDR such as 192.0.2.0/28, a range such as 192.0.2.10-192.0.2.20 or an \
                        address";
        let no = |text: &str| format!("Exhausted=False NoAddresses: {text}");
        let nothing = no("it has no addresses to give");
        let expected = [
            [READY.to_owned(), NO_OVERLAP.to_owned(), NOT_EXHAUSTED.to_owned()].to_vec(),
            [READY.into(), overlap("192.0.2.9-192.0.2.9 of pool lan"), NOT_EXHAUSTED.into()].to_vec(),
            [
                "Ready=False Overlap: all its addresses belong to older pools: 192.0.2.1-192.0.2.2 of pool lan".into(),
                overlap("192.0.2.1-192.0.2.2 of pool lan"),
                nothing.clone(),
            ]
            .to_vec(),
            [
                format!("Ready=False InvalidRange: {nonsense}; its other addresses are given out"),
                NO_OVERLAP.into(),
                NOT_EXHAUSTED.into(),
            ]
            .to_vec(),
            [
                format!(
                    "Ready=False InvalidRange: {nonsense}; it has no addresses: add some to spec.addresses; spec.drain \
                     is set, and no address of it is given any more"
                ),
                NO_OVERLAP.into(),
                nothing.clone(),
                "Drained=True Drained: no Service has an address of it any more: it can be deleted".into(),
            ]
            .to_vec(),
            [
                "Ready=False NoAddresses: none of its addresses can be given without being asked for by name".into(),
                NO_OVERLAP.into(),
                nothing.clone(),
            ]
            .to_vec(),
            [
                "Ready=False InvalidSelector: serviceAllocation.serviceSelectors[0] selects nothing: Invalid \
                 expression operator; who is admitted otherwise gets its addresses"
                    .into(),
                NO_OVERLAP.into(),
                NOT_EXHAUSTED.into(),
            ]
            .to_vec(),
            [
                "Ready=False InvalidRange: exclude: \"2001:db8::9-2001:db8::1\" ends before it begins; until that is put \
                 right, only addresses that are asked for by name are given"
                    .into(),
                NO_OVERLAP.into(),
                nothing,
            ]
            .to_vec(),
        ];
        let statuses = statuses(&pools, &Occupied::default(), &[]);
        assert_eq!(statuses.iter().map(lines).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_pool_is_exhausted_when_a_family_that_it_has_is_used_up() {
        let exhausted =
            |text: &str| format!("Exhausted=True Exhausted: {text}: add addresses, or create another IPAddressPool");
        let free = NOT_EXHAUSTED.to_owned();
        for (ranges, used, expected) in [
            (&["192.0.2.1"][..], &[][..], free.clone()),
            (&["192.0.2.1"], &["192.0.2.1"], exhausted("no IPv4 address is free")),
            (&["192.0.2.1", "::1"], &["::1"], exhausted("no IPv6 address is free; of the other family there are some")),
            (&["192.0.2.1", "::1"], &["192.0.2.1", "::1"], exhausted("no IPv4 and no IPv6 address is free")),
            // What only who asks for it by name can have is not counted as free.
            (&["192.0.2.0/30"], &["192.0.2.1", "192.0.2.2"], exhausted("no IPv4 address is free")),
            (&["192.0.2.0/30"], &["192.0.2.0", "192.0.2.2"], free),
        ] {
            let [status] = statuses(&[pool("p", 1, ranges)], &Occupied::default(), used).try_into().expect("one");
            assert_eq!(lines(&status)[2], expected, "{ranges:?} {used:?}");
        }
    }

    #[test]
    fn a_draining_pool_names_who_still_has_addresses_and_says_when_nobody_has() {
        let draining = edited(pool("lan", 1, &["192.0.2.0/24"]), |pool| pool.spec.drain = true);
        let pools = Pools::new([&draining], &Occupied::default());
        let free = Free::new(&pools, []);
        let lan = pools.get("lan").expect("a pool");
        let said = |held: Holders| {
            let status = status(lan, &free.counts(lan), || held, &Few::default(), at(9));
            (lines(&status).pop().expect("Drained"), status.held_by)
        };
        let many: Vec<_> = (0..130).map(|number| format!("s{number:03}")).collect();
        let record_of = |names: &[&str]| record("192.0.2.1", "lan", names).1;
        let all = record_of(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let (line, held_by) = said(Holders::new([&*all, &*all], 0));
        assert_eq!(
            line,
            "Drained=False Held: 130 Services still have addresses of it: default/s000, default/s001, default/s002, \
             default/s003, default/s004 and 125 more; move them by asking for another pool in landfall.dev/address-pool"
        );
        assert_eq!((held_by.len(), held_by[99].as_str()), (100, "default/s099"));
        let (line, held_by) = said(Holders::new([&*record_of(&["web"])], 2));
        assert_eq!(
            line,
            "Drained=False Held: 1 Service still has addresses of it: default/web; 2 LoadBalancerIPs of it can't be \
             read; move them by asking for another pool in landfall.dev/address-pool"
        );
        assert_eq!(held_by, ["default/web"]);
        // A reservation that nobody uses holds nothing up.
        let (line, held_by) = said(Holders::new([&*record_of(&[])], 0));
        assert_eq!(line, "Drained=True Drained: no Service has an address of it any more: it can be deleted");
        assert_eq!(held_by, [""; 0]);
    }

    #[test]
    fn a_pool_that_drains_no_more_says_nothing_of_it_and_conditions_of_others_stay() {
        let mut lan = edited(pool("lan", 1, &["192.0.2.1"]), |pool| pool.spec.drain = true);
        let [drained] = statuses(std::slice::from_ref(&lan), &Occupied::default(), &[]).try_into().expect("one");
        let pool = Arc::make_mut(&mut lan);
        let other = Condition { type_: "example.com/Checked".into(), ..drained.conditions[0].clone() };
        pool.spec.drain = false;
        pool.status = Some(drained);
        pool.status.iter_mut().for_each(|status| status.conditions.push(other.clone()));
        let [now] = statuses(&[lan], &Occupied::default(), &[]).try_into().expect("one");
        let types: Vec<_> = now.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types, ["Ready", "Overlap", "Exhausted", "example.com/Checked"]);
        assert_eq!(now.conditions[3], other);
    }

    #[test]
    fn an_administrator_is_warned_once_of_what_is_wrong() {
        let full = [pool("p", 1, &["192.0.2.1", "nonsense"])];
        let [before] = statuses(&full, &Occupied::default(), &[]).try_into().expect("one");
        let [now] = statuses(&full, &Occupied::default(), &["192.0.2.1"]).try_into().expect("one");
        let reasons = |before: &[Condition], now: &[Condition]| {
            warnings(before, now).map(|(reason, _)| reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&[], &now.conditions), ["NotReady", "Exhausted"]);
        assert_eq!(reasons(&before.conditions, &now.conditions), ["Exhausted"]);
        assert_eq!(reasons(&now.conditions, &now.conditions), [""; 0]);
        assert_eq!(reasons(&now.conditions, &before.conditions), [""; 0]);
    }
}
