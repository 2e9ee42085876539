//! The clients allowed to use a Service: `spec.loadBalancerSourceRanges` or its annotation → [`Sources`], by
//! [`Sources::parse`]. Pure.
//!
//! A Service with at least one range is closed to all clients outside of its ranges. An invalid entry allows no client,
//! so a Service whose only entry is invalid is closed. Ranges of one family alone close the Service in the other
//! family: a list of allowed clients excludes all others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crds::Range;
use crds::service::Family;
use ipnet::IpNet;

/// The clients allowed to use a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The allowed ranges of IPv4 and IPv6, sorted and merged; `None`: every client is allowed.
    only: Option<[Arc<[Range]>; 2]>,
    /// Entries that are not ranges, verbatim.
    invalid: Vec<String>,
}

impl Sources {
    /// Parses the field. If it is empty, parses the annotation `service.beta.kubernetes.io/load-balancer-source-ranges`
    /// (ranges separated by commas), as Kubernetes does.
    pub fn parse<'a>(field: impl IntoIterator<Item = &'a str>, annotation: Option<&'a str>) -> Self {
        let mut entries: Vec<&str> = field.into_iter().collect();
        if entries.is_empty() {
            // A blank annotation counts as absent.
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
        let all = merge_ranges(&nets);
        let (v4, v6): (Vec<Range>, Vec<Range>) = all.into_iter().partition(Range::is_ipv4);
        Self { only: Some([v4.into(), v6.into()]), invalid }
    }

    /// The allowed ranges of this family, sorted and merged; `None` if every client is allowed.
    pub fn for_family(&self, family: Family) -> Option<Arc<[Range]>> {
        let [v4, v6] = self.only.as_ref()?;
        let (ranges, all) = match family {
            Family::V4 => (v4, (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::BROADCAST))),
            Family::V6 => (v6, (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into())),
        };
        let is_everything = ranges.iter().any(|range| (range.first(), range.last()) == all);
        (!is_everything).then(|| Arc::clone(ranges))
    }

    /// Entries that are not ranges, verbatim, to be reported to the user.
    pub fn invalid(&self) -> &[String] {
        &self.invalid
    }
}

/// Whether one of these ranges, sorted and merged, contains the address.
pub fn contains_address(ranges: &[Range], address: IpAddr) -> bool {
    let after = ranges.partition_point(|range| range.first() <= address);
    after.checked_sub(1).and_then(|last| ranges.get(last)).is_some_and(|range| range.contains(address))
}

/// The same addresses in the smallest number of ranges, sorted.
pub fn merge_ranges(nets: &[IpNet]) -> Vec<Range> {
    let mut ranges: Vec<Range> = nets.iter().filter_map(|net| Range::new(net.network(), net.broadcast())).collect();
    ranges.sort();
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if are_joined(last, &range) => {
                let end = last.last().max(range.last());
                *last = Range::new(last.first(), end).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether no address is between `first` and `second`. `second` must not begin before `first`.
fn are_joined(first: &Range, second: &Range) -> bool {
    first.is_ipv4() == second.is_ipv4() && crds::address::next(first.last()).is_none_or(|after| second.first() <= after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges_of(sources: &Sources, family: Family) -> Option<Vec<String>> {
        sources.for_family(family).map(|ranges| ranges.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_listed_ranges_are_allowed_and_mistakes_allow_nothing() {
        type Open = Option<&'static [&'static str]>;
        type Case = (&'static str, &'static [&'static str], Option<&'static str>, Open, Open, usize);
        // The field, the annotation, the allowed ranges of IPv4 and IPv6, the number of invalid entries.
        let cases: [Case; 11] = [
            ("nothing", &[], None, None, None, 0),
            ("one", &["10.0.0.0/8"], None, Some(&["10.0.0.0-10.255.255.255"]), Some(&[]), 0),
            ("every client", &["0.0.0.0/0", "::/0"], None, None, None, 0),
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
            let sources = Sources::parse(field.iter().copied(), annotation);
            let expected = |open: Open| open.map(|ranges| ranges.iter().map(ToString::to_string).collect());
            assert_eq!(
                (ranges_of(&sources, Family::V4), ranges_of(&sources, Family::V6), sources.invalid().len()),
                (expected(v4), expected(v6), invalid),
                "{case}"
            );
        }
    }

    #[test]
    fn an_address_is_allowed_if_a_range_contains_it() {
        let ranges = merge_ranges(&["10.0.0.0/31", "10.0.0.4/32"].map(|net| net.parse().expect("a range")));
        let allowed = |last: u8| contains_address(&ranges, IpAddr::from([10, 0, 0, last]));
        assert_eq!([0, 1, 2, 3, 4, 5].map(allowed), [true, true, false, false, true, false]);
        assert!(!contains_address(&ranges, "9.255.255.255".parse().expect("an address")));
        assert!(!contains_address(&[], IpAddr::from([10, 0, 0, 0])));
    }
}
