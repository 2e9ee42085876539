//! What a Service wants: how many addresses, of which families, and where from.
//!
//! Service → [`Wish`], or why what it asks for makes no sense. Its families are those of `spec.ipFamilies` (KEP-563): of
//! SingleStack the first, of the others both. An address that it asks for takes the place of its family; a family of
//! which it asks for none by name takes any.

use std::net::IpAddr;

use crds::service::Family;
use crds::{FamilyPolicy, Service};

use crate::allocate::refusal::Refusal;

/// What a Service wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish<'a> {
    /// Its addresses to be, in the order in which its status shows them.
    pub(crate) slots: Vec<Slot>,
    /// The pool that they are to be from.
    pub(crate) pool: Option<&'a str>,
    /// The key by which it shares them.
    pub(crate) sharing_key: Option<&'a str>,
}

/// A place for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The family that it is for.
    pub(crate) family: Family,
    /// The only address that will do; `None`: any.
    pub(crate) address: Option<IpAddr>,
    /// Whether the Service is to have no address at all rather than none here.
    pub(crate) is_required: bool,
}

/// In which order wishes are served: who can do with nothing else first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// It names addresses.
    Address,
    /// It names a pool.
    Pool,
    /// It takes any.
    Any,
}

impl Wish<'_> {
    /// Its place in the order in which wishes are served.
    pub(crate) fn rank(&self) -> Rank {
        if self.slots.iter().any(|slot| slot.address.is_some()) {
            Rank::Address
        } else if self.pool.is_some() {
            Rank::Pool
        } else {
            Rank::Any
        }
    }
}

/// The families of which a Service is to have addresses, the first one first.
pub(crate) fn families(service: &Service) -> &[Family] {
    match (service.family_policy, &service.families[..]) {
        // Absent where nobody has filled it in, which the API server does.
        (_, []) => &[Family::V4],
        (FamilyPolicy::SingleStack, families) => &families[..1],
        (_, families) => families,
    }
}

/// Whether it wants both families or nothing.
pub(crate) fn wants_both_or_none(service: &Service) -> bool {
    service.family_policy == FamilyPolicy::RequireDualStack && families(service).len() > 1
}

/// What `service` wants.
pub(crate) fn wish(service: &Service) -> Result<Wish<'_>, Refusal> {
    let request = service.request.as_ref().map_err(|invalid| Refusal::InvalidRequest(invalid.to_string()))?;
    let families = families(service);
    if let Some(address) = request.addresses.iter().find(|address| !families.contains(&Family::from(**address))) {
        return Err(Refusal::FamilyMismatch(*address, families.to_vec()));
    }
    let mut slots = Vec::with_capacity(families.len());
    for (index, family) in families.iter().copied().enumerate() {
        let asked = request.addresses.iter().filter(|address| Family::from(**address) == family);
        slots.extend(asked.map(|address| Slot { family, address: Some(*address), is_required: true }));
        if slots.last().is_none_or(|slot| slot.family != family) {
            let is_required = index == 0 || service.family_policy == FamilyPolicy::RequireDualStack;
            slots.push(Slot { family, address: None, is_required });
        }
    }
    Ok(Wish { slots, pool: request.pool.as_deref(), sharing_key: request.sharing_key.as_deref() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, service};
    use crds::RequestedAddresses;

    use Family::{V4, V6};
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};

    /// The slots of a wish as words: the family or the address, in brackets where it can be left out.
    fn slots(families: &[Family], policy: FamilyPolicy, asked: &[&str]) -> Result<Vec<String>, Refusal> {
        let mut web = service("web", 1);
        (web.families, web.family_policy) = (families.into(), policy);
        web.request = Ok(RequestedAddresses {
            addresses: asked.iter().map(|text| ip(text)).collect(),
            ..RequestedAddresses::default()
        }
        .into());
        let word = |slot: &Slot| {
            let word = slot.address.map_or_else(|| slot.family.to_string(), |address| address.to_string());
            if slot.is_required { word } else { format!("[{word}]") }
        };
        wish(&web).map(|wish| wish.slots.iter().map(word).collect())
    }

    #[test]
    fn a_service_wants_an_address_of_each_of_its_families_and_those_that_it_names() {
        let (a, b, six) = ("192.0.2.1", "192.0.2.2", "2001:db8::1");
        for (families, policy, asked, wanted) in [
            (&[][..], SingleStack, &[][..], &["IPv4"][..]),
            (&[V6], SingleStack, &[], &["IPv6"]),
            (&[V4, V6], SingleStack, &[], &["IPv4"]),
            (&[V6, V4], PreferDualStack, &[], &["IPv6", "[IPv4]"]),
            (&[V4], PreferDualStack, &[], &["IPv4"]),
            (&[V4, V6], RequireDualStack, &[], &["IPv4", "IPv6"]),
            (&[V4], RequireDualStack, &[], &["IPv4"]),
            (&[V4], SingleStack, &[b, a], &[b, a]),
            (&[V4, V6], PreferDualStack, &[six, b, a], &[b, a, six]),
            (&[V4, V6], PreferDualStack, &[six], &["IPv4", six]),
            (&[V4, V6], PreferDualStack, &[a], &[a, "[IPv6]"]),
            (&[V6, V4], RequireDualStack, &[a], &["IPv6", a]),
        ] {
            let wanted: Vec<_> = wanted.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(slots(families, policy, asked), Ok(wanted), "{families:?} {policy:?} {asked:?}");
        }
    }

    #[test]
    fn an_address_of_a_family_that_the_service_has_not_is_refused() {
        for (families, policy) in [(&[V4][..], SingleStack), (&[V4, V6], SingleStack), (&[V4], PreferDualStack)] {
            let refused = Err(Refusal::FamilyMismatch(ip("2001:db8::1"), vec![V4]));
            assert_eq!(slots(families, policy, &["192.0.2.1", "2001:db8::1"]), refused, "{families:?} {policy:?}");
        }
    }

    #[test]
    fn who_names_addresses_comes_before_who_names_a_pool_and_then_who_takes_any() {
        let mut web = service("web", 1);
        web.request = Ok(RequestedAddresses {
            pool: Some("lan".into()),
            addresses: vec![ip("192.0.2.1")],
            ..RequestedAddresses::default()
        }
        .into());
        assert_eq!(wish(&web).map(|wish| wish.rank()), Ok(Rank::Address));
        web.request = Ok(RequestedAddresses { pool: Some("lan".into()), ..RequestedAddresses::default() }.into());
        assert_eq!(wish(&web).map(|wish| (wish.rank(), wish.pool)), Ok((Rank::Pool, Some("lan"))));
        web.request = Ok(RequestedAddresses::default().into());
        assert_eq!(wish(&web).map(|wish| wish.rank()), Ok(Rank::Any));
    }
}
