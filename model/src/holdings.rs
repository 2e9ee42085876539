//! Which addresses each Service holds: what the records of addresses say, turned around.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crds::{Holder, Key};

/// The addresses that Services hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeSet<(Key, IpAddr)>);

impl Holdings {
    /// From now on these hold `address`, and those `before` no more.
    pub fn change<'a>(
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

    /// The addresses that `service` holds, in their order.
    pub fn of(&self, service: &Key) -> impl Iterator<Item = IpAddr> {
        const LEAST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let from_here = self.0.range((service.clone(), LEAST)..);
        from_here.take_while(move |(key, _)| key == service).map(|(_, address)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { namespace: "default".into(), name: name.into(), uid: "1".into(), terms: None }
    }

    #[test]
    fn each_service_has_the_addresses_it_holds_and_no_others() {
        let (a, b, c) = (holder("a"), holder("b"), holder("c"));
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let of = |holdings: &Holdings, holder: &Holder| holdings.of(&holder.service()).collect::<Vec<_>>();
        let mut holdings = Holdings::default();
        holdings.change(ip("192.0.2.2"), [], [&b]);
        holdings.change(ip("2001:db8::1"), [], [&b]);
        holdings.change(ip("0.0.0.0"), [], [&b, &c]);
        assert_eq!(of(&holdings, &a), [] as [IpAddr; 0]);
        assert_eq!(of(&holdings, &b), ["0.0.0.0", "192.0.2.2", "2001:db8::1"].map(ip));
        assert_eq!(of(&holdings, &c), [ip("0.0.0.0")]);
        holdings.change(ip("0.0.0.0"), [&b, &c], [&c, &a]);
        assert_eq!(of(&holdings, &a), [ip("0.0.0.0")]);
        assert_eq!(of(&holdings, &b), ["192.0.2.2", "2001:db8::1"].map(ip));
        assert_eq!(of(&holdings, &c), [ip("0.0.0.0")]);
    }
}
