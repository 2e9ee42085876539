//! The addresses a Service needs: how many, of which families, and from where.
//!
//! Service → [`AddressRequest`], or the refusal of an invalid request. The families are those of `spec.ipFamilies`
//! (KEP-563): the first for SingleStack, both otherwise. A requested address fills the slot of its family; a family
//! without a requested address takes any.

use std::net::IpAddr;

use crds::service::Family;
use crds::{FamilyPolicy, Service};

use crate::allocate::refusal::Refusal;

/// The addresses a Service needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressRequest<'a> {
    /// In the order in which the status shows the addresses.
    pub(crate) slots: Vec<Slot>,
    pub(crate) pool: Option<&'a str>,
    pub(crate) sharing_key: Option<&'a str>,
}

/// One address of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) family: Family,
    /// The requested address; `None`: any.
    pub(crate) lb_ip: Option<IpAddr>,
    /// Whether the Service must have no address at all if this slot stays empty.
    pub(crate) is_required: bool,
}

/// The order in which requests are served: those with the fewest alternatives first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The request names addresses.
    Address,
    /// The request names a pool.
    Pool,
    Any,
}

impl AddressRequest<'_> {
    pub(crate) fn rank(&self) -> Rank {
        if self.slots.iter().any(|slot| slot.lb_ip.is_some()) {
            Rank::Address
        } else if self.pool.is_some() {
            Rank::Pool
        } else {
            Rank::Any
        }
    }
}

/// The families of the addresses that a Service gets, in order.
pub(crate) fn families(service: &Service) -> &[Family] {
    match (service.family_policy, &service.families[..]) {
        // The API server always sets the families.
        (_, []) => &[Family::V4],
        (FamilyPolicy::SingleStack, families) => &families[..1],
        (_, families) => families,
    }
}

/// Whether a Service must have both families or none.
pub(crate) fn requires_both_families(service: &Service) -> bool {
    service.family_policy == FamilyPolicy::RequireDualStack && families(service).len() > 1
}

/// The request of a Service, or the refusal if it is invalid.
pub(crate) fn address_request(service: &Service) -> Result<AddressRequest<'_>, Refusal> {
    let request = service.request.as_ref().map_err(|invalid| Refusal::InvalidRequest(invalid.to_string()))?;
    let families = families(service);
    if let Some(lb_ip) = request.addresses.iter().find(|lb_ip| !families.contains(&Family::from(**lb_ip))) {
        return Err(Refusal::FamilyMismatch(*lb_ip, families.to_vec()));
    }
    let mut slots = Vec::with_capacity(families.len());
    for (index, family) in families.iter().copied().enumerate() {
        let requested = request.addresses.iter().filter(|lb_ip| Family::from(**lb_ip) == family);
        slots.extend(requested.map(|lb_ip| Slot { family, lb_ip: Some(*lb_ip), is_required: true }));
        if slots.last().is_none_or(|slot| slot.family != family) {
            let is_required = index == 0 || service.family_policy == FamilyPolicy::RequireDualStack;
            slots.push(Slot { family, lb_ip: None, is_required });
        }
    }
    Ok(AddressRequest { slots, pool: request.pool.as_deref(), sharing_key: request.sharing_key.as_deref() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ip, service};
    use crds::RequestedAddresses;

    use Family::{V4, V6};
    use FamilyPolicy::{PreferDualStack, RequireDualStack, SingleStack};

    /// The slots of a request as words: the family or the address, in brackets if it is optional.
    fn slots(families: &[Family], policy: FamilyPolicy, requested: &[&str]) -> Result<Vec<String>, Refusal> {
        let mut web = service("web", 1);
        (web.families, web.family_policy) = (families.into(), policy);
        web.request = Ok(RequestedAddresses {
            addresses: requested.iter().map(|text| ip(text)).collect(),
            ..RequestedAddresses::default()
        }
        .into());
        let word = |slot: &Slot| {
            let word = slot.lb_ip.map_or_else(|| slot.family.to_string(), |lb_ip| lb_ip.to_string());
            if slot.is_required { word } else { format!("[{word}]") }
        };
        address_request(&web).map(|request| request.slots.iter().map(word).collect())
    }

    #[test]
    fn request_has_slots_for_families_and_named_addresses() {
        let (a, b, six) = ("192.0.2.1", "192.0.2.2", "2001:db8::1");
        for (families, policy, requested, expected) in [
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
            let expected: Vec<_> = expected.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(slots(families, policy, requested), Ok(expected), "{families:?} {policy:?} {requested:?}");
        }
    }

    #[test]
    fn address_of_another_family_is_refused() {
        for (families, policy) in [(&[V4][..], SingleStack), (&[V4, V6], SingleStack), (&[V4], PreferDualStack)] {
            let refusal = Err(Refusal::FamilyMismatch(ip("2001:db8::1"), vec![V4]));
            assert_eq!(slots(families, policy, &["192.0.2.1", "2001:db8::1"]), refusal, "{families:?} {policy:?}");
        }
    }

    #[test]
    fn rank_is_address_then_pool_then_any() {
        let mut web = service("web", 1);
        web.request = Ok(RequestedAddresses {
            pool: Some("lan".into()),
            addresses: vec![ip("192.0.2.1")],
            ..RequestedAddresses::default()
        }
        .into());
        assert_eq!(address_request(&web).map(|request| request.rank()), Ok(Rank::Address));
        web.request = Ok(RequestedAddresses { pool: Some("lan".into()), ..RequestedAddresses::default() }.into());
        assert_eq!(address_request(&web).map(|request| (request.rank(), request.pool)), Ok((Rank::Pool, Some("lan"))));
        web.request = Ok(RequestedAddresses::default().into());
        assert_eq!(address_request(&web).map(|request| request.rank()), Ok(Rank::Any));
    }
}
