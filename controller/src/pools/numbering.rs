//! How the addresses of a pool are numbered, so that those that come after each other have numbers that do.

use std::net::IpAddr;

use crds::Range;

use crds::service::Family;

use crate::pools::intervals::{address, number};

/// IPv4 addresses that share their first three octets, and how many of those end neither in .0 nor in .255.
const BLOCK: u128 = 256;
const GOOD: u128 = BLOCK - 2;

/// Which addresses have a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// All of them.
    All,
    /// All but those of IPv4 that end in .0 or .255. That they have no number, and not only a mark, is what makes it
    /// cost nothing to pass by the 131,072 of them in a /8.
    WithoutBuggy,
}

impl Numbering {
    /// The place of an address, if it has one.
    pub(crate) fn place(self, address: IpAddr) -> Option<u128> {
        let (first, last) = self.places(Range::new(address, address)?)?;
        debug_assert_eq!(first, last, "one address has one place");
        Some(first)
    }

    /// The first and the last place of these addresses, if one of them has any.
    pub(crate) fn places(self, range: Range) -> Option<(u128, u128)> {
        let (first, last) = (number(range.first()), number(range.last()));
        if self == Self::All || !range.is_ipv4() {
            return Some((first, last));
        }
        // How many places come before a number.
        let before = |number: u128| number / BLOCK * GOOD + (number % BLOCK).saturating_sub(1);
        let (first, end) = (before(first), before(last + 1));
        (first < end).then(|| (first, end - 1))
    }

    /// The address at a place.
    pub(crate) fn address(self, family: Family, place: u128) -> IpAddr {
        match (self, family) {
            (Self::WithoutBuggy, Family::V4) => address(family, place / GOOD * BLOCK + place % GOOD + 1),
            _ => address(family, place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ip;
    use proptest::prelude::*;

    #[test]
    fn the_places_of_good_addresses_come_after_each_other_up_to_the_last() {
        let numbering = Numbering::WithoutBuggy;
        for (text, place) in [
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
            assert_eq!(numbering.place(ip(text)), place, "{text}");
        }
        for (text, places) in [
            ("0.0.0.0/0", Some((0, (1 << 24) * 254 - 1))),
            ("192.0.2.255-192.0.3.0", None),
            ("0.0.0.255-0.0.1.1", Some((254, 254))),
        ] {
            assert_eq!(numbering.places(text.parse().expect("a range")), places, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_place_leads_back_to_its_address(bits: u32) {
            let address = IpAddr::from(bits.to_be_bytes());
            let place = Numbering::WithoutBuggy.place(address);
            prop_assert_eq!(place.is_none(), [0, 255].contains(&(bits & 255)));
            prop_assert!(place.is_none_or(|place| Numbering::WithoutBuggy.address(Family::V4, place) == address));
        }
    }
}
