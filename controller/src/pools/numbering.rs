//! The numbers of the addresses of a pool. The addresses that have a number are numbered without gaps.

use std::net::IpAddr;

use crds::Range;
use crds::service::Family;

use crate::pools::intervals;

/// The number of IPv4 addresses that share their first three octets.
const BLOCK: u128 = 256;

/// The number of addresses in a block that end neither in .0 nor in .255.
const GOOD_PER_BLOCK: u128 = BLOCK - 2;

/// Which addresses have a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbering {
    All,
    /// All except IPv4 addresses that end in .0 or .255. These have no number, so the 131,072 of them in a /8 are
    /// skipped without cost.
    WithoutBuggy,
}

impl Numbering {
    /// The number of an address, if it has one.
    pub(crate) fn number(self, address: IpAddr) -> Option<u128> {
        let (first, last) = self.numbers(Range::new(address, address)?)?;
        debug_assert_eq!(first, last, "one address has one number");
        Some(first)
    }

    /// The first and the last number in a range, if any of its addresses has one.
    pub(crate) fn numbers(self, range: Range) -> Option<(u128, u128)> {
        let (first, last) = (intervals::number(range.first()), intervals::number(range.last()));
        if self == Self::All || !range.is_ipv4() {
            return Some((first, last));
        }
        // The number of numbered addresses below this one.
        let before = |bits: u128| bits / BLOCK * GOOD_PER_BLOCK + (bits % BLOCK).saturating_sub(1);
        let (first, end) = (before(first), before(last + 1));
        (first < end).then(|| (first, end - 1))
    }

    /// The address with this number.
    pub(crate) fn address(self, family: Family, number: u128) -> IpAddr {
        match (self, family) {
            (Self::WithoutBuggy, Family::V4) => {
                intervals::address(family, number / GOOD_PER_BLOCK * BLOCK + number % GOOD_PER_BLOCK + 1)
            }
            _ => intervals::address(family, number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;
    use proptest::prelude::*;

    #[test]
    fn good_addresses_have_consecutive_numbers() {
        let numbering = Numbering::WithoutBuggy;
        for (text, number) in [
            ("0.0.0.0", None),
            ("0.0.0.1", Some(0)),
            ("0.0.0.254", Some(253)),
            ("0.0.0.255", None),
            ("0.0.1.0", None),
            ("0.0.1.1", Some(254)),
            ("255.255.255.254", Some((1 << 24) * 254 - 1)),
            ("255.255.255.255", None),
            ("::", Some(0)),
            ("::ff", Some(255)),
        ] {
            assert_eq!(numbering.number(ip(text)), number, "{text}");
        }
        for (text, numbers) in [
            ("0.0.0.0/0", Some((0, (1 << 24) * 254 - 1))),
            ("192.0.2.255-192.0.3.0", None),
            ("0.0.0.255-0.0.1.1", Some((254, 254))),
        ] {
            assert_eq!(numbering.numbers(text.parse().expect("a range")), numbers, "{text}");
        }
    }

    proptest! {
        #[test]
        fn address_of_the_number_is_the_same_address(bits: u32) {
            let address = IpAddr::from(bits.to_be_bytes());
            let number = Numbering::WithoutBuggy.number(address);
            prop_assert_eq!(number.is_none(), [0, 255].contains(&(bits & 255)));
            prop_assert!(number.is_none_or(|number| Numbering::WithoutBuggy.address(Family::V4, number) == address));
        }
    }
}
