//! Who may use a Service: `spec.loadBalancerSourceRanges` and its annotation → [`Sources`], by [`Sources::read`].
//!
//! A Service that names any range at all is closed to everybody else. What can't be read as a range opens nothing, so a
//! Service whose only range is a mistake is closed to all. So is, in each family, one that names ranges of the other
//! family alone: whoever listed who may come did not mean anybody by leaving a family out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crds::Range;
use crds::service::Family;
use ipnet::IpNet;

/// Who may use a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The ranges that clients may come from, each family sorted and without two that touch; `None`: from anywhere.
    only: Option<[Arc<[Range]>; 2]>,
    /// Entries that are no ranges, as they are written.
    invalid: Vec<String>,
}

impl Sources {
    /// Reads the field, or the annotation `service.beta.kubernetes.io/load-balancer-source-ranges` (ranges with commas
    /// in between) where the field is empty, as the API has it.
    pub fn read<'a>(field: impl IntoIterator<Item = &'a str>, annotation: Option<&'a str>) -> Self {
        let mut entries: Vec<&str> = field.into_iter().collect();
        if entries.is_empty() {
            // An annotation without any text is as good as none.
            let text = annotation.map(str::trim).filter(|text| !text.is_empty());
            entries = text.map(|text| text.split(',').collect()).unwrap_or_default();
        }
        if entries.is_empty() {
            return Self::default();
        }
        let (mut nets, mut invalid) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry.trim().parse::<IpNet>() {
                Ok(net) => nets.push(net),
                Err(_) => invalid.push(entry.to_owned()),
            }
        }
        let all = merged(&nets);
        let of = |family| all.iter().copied().filter(|range| Family::from(range.first()) == family).collect();
        Self { only: Some([of(Family::V4), of(Family::V6)]), invalid }
    }

    /// The ranges of this family that clients may come from, sorted, without two that touch; `None` if they may come
    /// from anywhere.
    pub fn of(&self, family: Family) -> Option<Arc<[Range]>> {
        let [v4, v6] = self.only.as_ref()?;
        let (ranges, all) = match family {
            Family::V4 => (v4, (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::BROADCAST))),
            Family::V6 => (v6, (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into())),
        };
        let anywhere = ranges.iter().any(|range| (range.first(), range.last()) == all);
        (!anywhere).then(|| Arc::clone(ranges))
    }

    /// Entries that are no ranges, as they are written: the user should be told.
    pub fn invalid(&self) -> &[String] {
        &self.invalid
    }
}

/// Whether one of these ranges, which are sorted and don't touch, has the address.
pub fn allows(ranges: &[Range], address: IpAddr) -> bool {
    let after = ranges.partition_point(|range| range.first() <= address);
    after.checked_sub(1).and_then(|last| ranges.get(last)).is_some_and(|range| range.contains(address))
}

/// The same addresses in as few ranges as there can be, in order.
pub fn merged(nets: &[IpNet]) -> Vec<Range> {
    let mut ranges: Vec<Range> = nets.iter().filter_map(|net| Range::new(net.network(), net.broadcast())).collect();
    ranges.sort();
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if touch(last, &range) => {
                let end = last.last().max(range.last());
                *last = Range::new(last.first(), end).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether there is no address between `first` and `second`, of which `second` begins later.
fn touch(first: &Range, second: &Range) -> bool {
    first.is_ipv4() == second.is_ipv4() && crds::address::next(first.last()).is_none_or(|after| second.first() <= after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sources: &Sources, family: Family) -> Option<Vec<String>> {
        sources.of(family).map(|ranges| ranges.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_written_opens_what_it_says_and_a_mistake_opens_nothing() {
        type Open = Option<&'static [&'static str]>;
        type Case = (&'static str, &'static [&'static str], Option<&'static str>, Open, Open, usize);
        // The field, the annotation, who may come over IPv4 and IPv6, how many entries are no ranges.
        let cases: [Case; 11] = [
            ("nothing", &[], None, None, None, 0),
            ("one", &["10.0.0.0/8"], None, Some(&["10.0.0.0-10.255.255.255"]), Some(&[]), 0),
            ("everybody", &["0.0.0.0/0", "::/0"], None, None, None, 0),
            ("all of one family", &["0.0.0.0/0"], None, None, Some(&[]), 0),
            ("a mistake", &["10.0.0.0/33"], None, Some(&[]), Some(&[]), 1),
            ("an empty entry", &[""], None, Some(&[]), Some(&[]), 1),
            ("an address is no range", &["10.0.0.1"], None, Some(&[]), Some(&[]), 1),
            ("a mistake beside a range", &["x", " 10.0.0.1/32 "], None, Some(&["10.0.0.1-10.0.0.1"]), Some(&[]), 1),
            (
                "the annotation",
                &[],
                Some("10.0.0.0/32, fd00::/127"),
                Some(&["10.0.0.0-10.0.0.0"]),
                Some(&["fd00::-fd00::1"]),
                0,
            ),
            ("the field wins", &["10.0.0.0/32"], Some("0.0.0.0/0"), Some(&["10.0.0.0-10.0.0.0"]), Some(&[]), 0),
            ("an empty annotation", &[], Some(" "), None, None, 0),
        ];
        for (case, field, annotation, v4, v6, invalid) in cases {
            let sources = Sources::read(field.iter().copied(), annotation);
            let expected = |open: Open| open.map(|ranges| ranges.iter().map(ToString::to_string).collect());
            assert_eq!(
                (written(&sources, Family::V4), written(&sources, Family::V6), sources.invalid().len()),
                (expected(v4), expected(v6), invalid),
                "{case}"
            );
        }
    }

    #[test]
    fn an_address_is_allowed_if_a_range_has_it() {
        let ranges = merged(&["10.0.0.0/31", "10.0.0.4/32"].map(|net| net.parse().expect("a range")));
        let allowed = |last: u8| allows(&ranges, IpAddr::from([10, 0, 0, last]));
        assert_eq!([0, 1, 2, 3, 4, 5].map(allowed), [true, true, false, false, true, false]);
        assert!(!allows(&ranges, "9.255.255.255".parse().expect("an address")));
        assert!(!allows(&[], IpAddr::from([10, 0, 0, 0])));
    }
}
