//! The addresses that each Service holds: the holders of all records, by Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crds::{Holder, Key};

/// Pairs of a Service and an address that it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeSet<(Key, IpAddr)>);

impl Holdings {
    /// Replaces the holders of `address`. `before` must be the same as `after` in the last call for this address.
    pub fn replace<'a>(
        &mut self,
        address: IpAddr,
        before: impl IntoIterator<Item = &'a Holder>,
        after: impl IntoIterator<Item = &'a Holder>,
    ) {
        for holder in before {
            self.0.remove(&(holder.service(), address));
        }
        self.0.extend(after.into_iter().map(|holder| (holder.service(), address)));
    }

    /// The addresses that `service` holds, in order.
    pub fn addresses_of(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        const LEAST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let from_here = self.0.range((service.clone(), LEAST)..);
        from_here.take_while(move |(key, _)| key == service).map(|(_, address)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::holder;

    #[test]
    fn each_service_has_exactly_the_addresses_it_holds() {
        let [a, b, c] = ["a", "b", "c"].map(holder);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let addresses =
            |holdings: &Holdings, holder: &Holder| holdings.addresses_of(&holder.service()).collect::<Vec<_>>();
        let mut holdings = Holdings::default();
        holdings.replace(ip("192.0.2.2"), [], [&b]);
        holdings.replace(ip("2001:db8::1"), [], [&b]);
        holdings.replace(ip("0.0.0.0"), [], [&b, &c]);
        assert_eq!(addresses(&holdings, &a), [] as [IpAddr; 0]);
        assert_eq!(addresses(&holdings, &b), ["0.0.0.0", "192.0.2.2", "2001:db8::1"].map(ip));
        assert_eq!(addresses(&holdings, &c), [ip("0.0.0.0")]);
        holdings.replace(ip("0.0.0.0"), [&b, &c], [&c, &a]);
        assert_eq!(addresses(&holdings, &a), [ip("0.0.0.0")]);
        assert_eq!(addresses(&holdings, &b), ["192.0.2.2", "2001:db8::1"].map(ip));
        assert_eq!(addresses(&holdings, &c), [ip("0.0.0.0")]);
    }
}
