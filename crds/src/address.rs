//! Addresses: ranges of them, and the name that an address has as an object.
//!
//! A range is an interval of addresses of one family. Its size is a number and never a list, so that a /8, or a /32 of
//! IPv6, costs no more than a /32.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// All addresses from the first to the last, both included, of one family.
///
/// Written as a CIDR (`192.0.2.0/28`), as `first-last` (`192.0.2.10-192.0.2.20`) or as one address (`192.0.2.10`); host
/// bits of a CIDR are ignored, as MetalLB does. The order is by family, then first, then last address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is not a [`Range`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// Neither a CIDR, nor `first-last`, nor an address.
    #[error("{0:?} is neither a CIDR such as 192.0.2.0/28 nor a range such as 192.0.2.10-192.0.2.20 nor an address")]
    Syntax(String),
    /// The two ends are of different families.
    #[error("{0:?} goes from one address family to the other")]
    Families(String),
    /// The first address is greater than the last.
    #[error("{0:?} ends before it begins")]
    Order(String),
}

impl Range {
    /// The range from `first` to `last`; `None` if they are of different families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }

    /// The addresses that both have, if there are any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.is_ipv4() != other.is_ipv4() {
            return None;
        }
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// How many addresses there are; `u128::MAX` for the one range whose number does not fit, all of IPv6.
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }
}

/// The address after `address`, or `None` after the last of its family.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before `address`, or `None` before the first of its family.
pub fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let syntax = || InvalidRange::Syntax(text.to_owned());
        if text.contains('/') {
            let net: IpNet = text.trim().parse().map_err(|_| syntax())?;
            // Of a CIDR every address counts: whether the network and broadcast address are given out is the pool's
            // to decide, not the range's.
            let last = match net {
                IpNet::V4(v4) => IpAddr::V4(v4.broadcast()),
                IpNet::V6(v6) => IpAddr::V6(v6.broadcast()),
            };
            return Ok(Self { first: net.network(), last });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.trim().parse().map_err(|_| syntax())?;
        let last: IpAddr = last.trim().parse().map_err(|_| syntax())?;
        if first.is_ipv4() != last.is_ipv4() {
            return Err(InvalidRange::Families(text.to_owned()));
        }
        Self::new(first, last).ok_or_else(|| InvalidRange::Order(text.to_owned()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The name that `address` has as an object: itself for IPv4 (`192.0.2.10`), its eight groups joined by dashes for
/// IPv6 (`2001-db8-0-0-0-0-0-1`). One address has one name, and [`parse_object_name`] takes it back.
pub fn object_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
    }
}

/// The address whose [`object_name`] this is.
pub fn parse_object_name(object: &str) -> Option<IpAddr> {
    let address = match object.parse::<Ipv4Addr>() {
        Ok(v4) => IpAddr::V4(v4),
        Err(_) => IpAddr::V6(object.replace('-', ":").parse().ok()?),
    };
    (object_name(address) == object).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_written_as_cidr_or_as_first_and_last_or_as_one_address() {
        for (text, written, size) in [
            ("192.0.2.0/28", "192.0.2.0-192.0.2.15", 16),
            ("192.0.2.9/28", "192.0.2.0-192.0.2.15", 16),
            ("192.0.2.10-192.0.2.20", "192.0.2.10-192.0.2.20", 11),
            (" 192.0.2.10 - 192.0.2.10 ", "192.0.2.10-192.0.2.10", 1),
            ("192.0.2.10", "192.0.2.10-192.0.2.10", 1),
            ("2001:db8::1", "2001:db8::1-2001:db8::1", 1),
            ("0.0.0.0/0", "0.0.0.0-255.255.255.255", 1 << 32),
            ("2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", 1 << 64),
            ("::/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", u128::MAX),
        ] {
            let range: Range = text.parse().expect(text);
            assert_eq!((range.to_string().as_str(), range.size()), (written, size), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_range_is_refused_with_the_reason() {
        let syntax = |text: &str| InvalidRange::Syntax(text.to_owned());
        for (text, error) in [
            ("", syntax("")),
            ("-", syntax("-")),
            ("192.0.2.1-", syntax("192.0.2.1-")),
            ("192.0.2.0/33", syntax("192.0.2.0/33")),
            ("192.0.2.300-192.0.2.301", syntax("192.0.2.300-192.0.2.301")),
            ("192.0.2.01-192.0.2.2", syntax("192.0.2.01-192.0.2.2")),
            ("192.0.2.1-::1", InvalidRange::Families("192.0.2.1-::1".into())),
            ("192.0.2.2-192.0.2.1", InvalidRange::Order("192.0.2.2-192.0.2.1".into())),
        ] {
            assert_eq!(text.parse::<Range>(), Err(error));
        }
    }

    #[test]
    fn ranges_of_different_families_have_nothing_in_common() {
        let (v4, v6): (Range, Range) = ("0.0.0.0/0".parse().expect("v4"), "::/0".parse().expect("v6"));
        assert_eq!(v4.intersection(&v6), None);
        assert!(!v6.contains("192.0.2.1".parse().expect("address")));
    }

    #[test]
    fn the_first_address_has_none_before_it() {
        assert_eq!(previous("192.0.3.0".parse().expect("v4")), Some("192.0.2.255".parse().expect("v4")));
        assert_eq!(previous("0.0.0.0".parse().expect("v4")), None);
        assert_eq!(previous("::".parse().expect("v6")), None);
    }

    #[test]
    fn the_last_address_has_no_next() {
        assert_eq!(next("192.0.2.255".parse().expect("v4")), Some("192.0.3.0".parse().expect("v4")));
        assert_eq!(next("255.255.255.255".parse().expect("v4")), None);
        assert_eq!(next("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().expect("v6")), None);
    }

    #[test]
    fn an_object_of_another_spelling_names_no_address() {
        for object in ["192.0.2.01", "2001-db8--1", "2001-DB8-0-0-0-0-0-1", "2001:db8::1", "web"] {
            assert_eq!(parse_object_name(object), None, "{object}");
        }
        assert_eq!(parse_object_name("2001-db8-0-0-0-0-0-1"), Some("2001:db8::1".parse().expect("v6")));
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::V4), any::<Ipv6Addr>().prop_map(IpAddr::V6)]
    }

    proptest! {
        #[test]
        fn a_name_leads_back_to_its_address_and_is_a_dns_subdomain(address in address()) {
            let name = object_name(address);
            prop_assert_eq!(parse_object_name(&name), Some(address));
            prop_assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.'));
        }

        #[test]
        fn what_is_written_is_read_back(a in address(), b in address()) {
            if let Some(range) = Range::new(a.min(b), a.max(b)) {
                prop_assert_eq!(range.to_string().parse(), Ok(range));
            }
        }

        #[test]
        fn an_address_is_in_the_intersection_when_it_is_in_both(a in any::<[u8; 4]>(), x in any::<u8>()) {
            let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
            let range = |p: u8, q: u8| Range::new(ip(p.min(q)), ip(p.max(q))).expect("ordered");
            let (one, other) = (range(a[0], a[1]), range(a[2], a[3]));
            let both = one.intersection(&other).is_some_and(|common| common.contains(ip(x)));
            prop_assert_eq!(both, one.contains(ip(x)) && other.contains(ip(x)));
        }

        #[test]
        fn reading_any_text_never_panics(text in "[0-9a-f:./ -]{0,40}") {
            let _ = text.parse::<Range>();
            let _ = parse_object_name(&text);
        }
    }
}
