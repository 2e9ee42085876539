//! Address ranges, and the object name of an address.
//!
//! A range is an interval of addresses of one family. It stores its two ends, so an IPv6 /32 takes no more memory than
//! a single address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// All addresses of one family from the first to the last, both included.
///
/// Parsed from a CIDR (`192.0.2.0/28`), from `first-last` (`192.0.2.10-192.0.2.20`) or from one address (`192.0.2.10`).
/// The host bits of a CIDR are ignored, as in MetalLB. Ranges are ordered by family, then by first and last address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Error of parsing a [`Range`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// The text is not a CIDR, not `first-last` and not an address.
    #[error("{0:?} is not a CIDR such as 192.0.2.0/28, a range such as 192.0.2.10-192.0.2.20 or an address")]
    Syntax(String),
    /// The two ends have different families.
    #[error("{0:?} mixes IPv4 and IPv6")]
    Families(String),
    /// The first address is greater than the last.
    #[error("{0:?} ends before it begins")]
    Order(String),
}

impl Range {
    /// Returns the range from `first` to `last`; `None` if their families differ or `first` is greater than `last`.
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

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }

    /// The addresses that both ranges contain; `None` if they share no address.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.is_ipv4() != other.is_ipv4() {
            return None;
        }
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Number of addresses, at most `u128::MAX`. The range of all IPv6 addresses has one more.
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
            // The range includes the network and broadcast address. The pool decides whether to assign them.
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

/// The object name of `address`: the address itself for IPv4 (`192.0.2.10`), its eight groups joined by dashes for IPv6
/// (`2001-db8-0-0-0-0-0-1`). Each address has exactly one name; [`parse_object_name`] is the inverse.
pub fn object_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
    }
}

/// The address with this [`object_name`]; `None` if no address has this name.
pub fn parse_object_name(name: &str) -> Option<IpAddr> {
    let address = match name.parse::<Ipv4Addr>() {
        Ok(v4) => IpAddr::V4(v4),
        Err(_) => IpAddr::V6(name.replace('-', ":").parse().ok()?),
    };
    (object_name(address) == name).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cidr_range_and_single_address_are_parsed() {
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
    fn invalid_range_is_refused_with_its_reason() {
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
    fn ranges_of_different_families_are_disjoint() {
        let (v4, v6): (Range, Range) = ("0.0.0.0/0".parse().expect("v4"), "::/0".parse().expect("v6"));
        assert_eq!(v4.intersection(&v6), None);
        assert!(!v6.contains("192.0.2.1".parse().expect("address")));
    }

    #[test]
    fn first_address_has_no_previous_address() {
        assert_eq!(previous("192.0.3.0".parse().expect("v4")), Some("192.0.2.255".parse().expect("v4")));
        assert_eq!(previous("0.0.0.0".parse().expect("v4")), None);
        assert_eq!(previous("::".parse().expect("v6")), None);
    }

    #[test]
    fn last_address_has_no_next_address() {
        assert_eq!(next("192.0.2.255".parse().expect("v4")), Some("192.0.3.0".parse().expect("v4")));
        assert_eq!(next("255.255.255.255".parse().expect("v4")), None);
        assert_eq!(next("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().expect("v6")), None);
    }

    #[test]
    fn non_canonical_object_name_is_refused() {
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
        fn object_name_is_a_dns_subdomain_and_invertible(address in address()) {
            let name = object_name(address);
            prop_assert_eq!(parse_object_name(&name), Some(address));
            prop_assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.'));
        }

        #[test]
        fn printed_range_parses_to_the_same_range(a in address(), b in address()) {
            if let Some(range) = Range::new(a.min(b), a.max(b)) {
                prop_assert_eq!(range.to_string().parse(), Ok(range));
            }
        }

        #[test]
        fn intersection_contains_exactly_the_common_addresses(a in any::<[u8; 4]>(), x in any::<u8>()) {
            let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
            let range = |p: u8, q: u8| Range::new(ip(p.min(q)), ip(p.max(q))).expect("ordered");
            let (one, other) = (range(a[0], a[1]), range(a[2], a[3]));
            let both = one.intersection(&other).is_some_and(|common| common.contains(ip(x)));
            prop_assert_eq!(both, one.contains(ip(x)) && other.contains(ip(x)));
        }

        #[test]
        fn parsing_any_text_never_panics(text in "[0-9a-f:./ -]{0,40}") {
            let _ = text.parse::<Range>();
            let _ = parse_object_name(&text);
        }
    }
}
