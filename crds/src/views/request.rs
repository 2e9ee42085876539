//! What a Service asks for: `spec.loadBalancerIP`, and annotations of ours and in MetalLB's spelling.
//!
//! Metadata and spec → [`RequestedAddresses`], or why it makes no sense. Addresses are compared by value; several spellings of one
//! wish may stand beside each other as long as they agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::InternedStr;

/// Asks for addresses of this pool.
pub const ADDRESS_POOL: [&str; 3] =
    ["landfall.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// Asks for these addresses, separated by commas.
pub const LOAD_BALANCER_IPS: [&str; 3] =
    ["landfall.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];

/// Lets Services with the same key share an address.
pub const ALLOW_SHARED_IP: [&str; 3] =
    ["landfall.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// Names the other namespaces whose Services may share the address too, separated by commas; `*` for all. It takes the
/// consent of both.
pub const SHARE_WITH_NAMESPACES: &str = "landfall.dev/share-with-namespaces";

/// The field that asks for one address. Kubernetes has deprecated it, and it must be honoured or refused all the same.
const LOAD_BALANCER_IP: &str = "spec.loadBalancerIP";

/// More addresses than this no Service may ask for: the status has to stay small.
pub const MAX_ADDRESSES: usize = 16;

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedAddresses {
    /// These addresses, in the order in which they are written, none twice. Empty: any.
    pub addresses: Vec<IpAddr>,
    /// A pool to take addresses from.
    pub pool: Option<InternedStr>,
    /// The key by which it shares an address.
    pub sharing_key: Option<InternedStr>,
    /// With which other namespaces it shares.
    pub consent: Consent,
}

/// What a Service asks for, or why that makes no sense. Nearly all ask for nothing: these share it.
pub type ParsedRequest = Result<Arc<RequestedAddresses>, Box<InvalidRequest>>;

/// With which other namespaces a Service shares its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Consent {
    /// With none.
    #[default]
    None,
    /// With these.
    Namespaces(BTreeSet<String>),
    /// With all.
    All,
}

impl Consent {
    /// Whether it is with that namespace.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::None => false,
            Self::Namespaces(names) => names.contains(namespace),
            Self::All => true,
        }
    }
}

/// Why what a Service asks for makes no sense: a sentence for people, with the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidRequest {
    /// There is something that is no address.
    NotAnAddress {
        /// The field or annotation.
        place: &'static str,
        /// What stands there.
        text: String,
    },
    /// More addresses than one Service may have.
    TooManyAddresses {
        /// The field or annotation.
        place: &'static str,
    },
    /// Two spellings of one wish that do not agree.
    Contradiction {
        /// One field or annotation, and what stands there.
        one: (&'static str, String),
        /// The other.
        other: (&'static str, String),
    },
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAddress { place, text } => {
                write!(f, "{place} {text:?} is not an address: write one such as 192.0.2.10, or leave it out")
            }
            Self::TooManyAddresses { place } => {
                write!(f, "{place} asks for more than {MAX_ADDRESSES} addresses: ask for fewer")
            }
            Self::Contradiction { one, other } => {
                write!(f, "{} asks for {:?}, but {} for {:?}: leave one of them out", one.0, one.1, other.0, other.1)
            }
        }
    }
}

impl RequestedAddresses {
    /// What these annotations and this `spec.loadBalancerIP` ask for. What is empty asks for nothing.
    ///
    /// # Errors
    /// If it makes no sense; the error says why.
    pub fn read(annotations: Option<&BTreeMap<String, String>>, load_balancer_ip: Option<&str>) -> ParsedRequest {
        static NOTHING: LazyLock<Arc<RequestedAddresses>> = LazyLock::new(Arc::default);
        let request = Self::parse(annotations, load_balancer_ip)?;
        Ok(if request.is_empty() { NOTHING.clone() } else { request.into() })
    }

    fn parse(
        annotations: Option<&BTreeMap<String, String>>,
        load_balancer_ip: Option<&str>,
    ) -> Result<Self, InvalidRequest> {
        let value = |name: &'static str| {
            let text = annotations?.get(name)?.trim();
            (!text.is_empty()).then_some((name, text))
        };
        let field = load_balancer_ip.map(str::trim).filter(|text| !text.is_empty());
        let asked = field.map(|text| (LOAD_BALANCER_IP, text)).into_iter();
        let asked = asked.chain(LOAD_BALANCER_IPS.into_iter().filter_map(value));
        let addresses = asked.map(|(place, text)| Ok(((place, text), addresses(place, text)?)));
        let same = |one: &Vec<IpAddr>, other: &Vec<IpAddr>| {
            one.iter().collect::<BTreeSet<_>>() == other.iter().collect::<BTreeSet<_>>()
        };
        let word = |names: [&'static str; 3]| {
            let written =
                names.into_iter().filter_map(value).map(|(place, text)| Ok(((place, text), InternedStr::from(text))));
            agreed(written, InternedStr::eq)
        };
        Ok(Self {
            addresses: agreed(addresses, same)?.unwrap_or_default(),
            pool: word(ADDRESS_POOL)?,
            sharing_key: word(ALLOW_SHARED_IP)?,
            consent: value(SHARE_WITH_NAMESPACES).map_or(Consent::None, |(_, text)| consent(text)),
        })
    }

    /// Whether it asks for nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The first of these, if the others say the same.
fn agreed<'a, T>(
    written: impl Iterator<Item = Result<((&'static str, &'a str), T), InvalidRequest>>,
    same: impl Fn(&T, &T) -> bool,
) -> Result<Option<T>, InvalidRequest> {
    let mut first: Option<((&'static str, &str), T)> = None;
    for entry in written {
        let (place, value) = entry?;
        match &first {
            None => first = Some((place, value)),
            Some((_, agreed)) if same(agreed, &value) => {}
            Some((one, _)) => {
                let owned = |(name, text): (&'static str, &str)| (name, text.to_owned());
                return Err(InvalidRequest::Contradiction { one: owned(*one), other: owned(place) });
            }
        }
    }
    Ok(first.map(|(_, value)| value))
}

fn addresses(place: &'static str, text: &str) -> Result<Vec<IpAddr>, InvalidRequest> {
    let mut addresses = Vec::new();
    for part in text.split(',') {
        let address: Option<IpAddr> = part.trim().parse().ok();
        // An IPv4 address inside an IPv6 one is neither (KEP-4858).
        let address = address.filter(|address| address.to_canonical() == *address);
        let address = address.ok_or_else(|| InvalidRequest::NotAnAddress { place, text: part.trim().to_owned() })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.len() > MAX_ADDRESSES {
        return Err(InvalidRequest::TooManyAddresses { place });
    }
    Ok(addresses)
}

fn consent(text: &str) -> Consent {
    let names = || text.split(',').map(str::trim);
    if names().any(|name| name == "*") {
        Consent::All
    } else {
        Consent::Namespaces(names().filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(annotations: &[(&str, &str)], field: Option<&str>) -> Result<Arc<RequestedAddresses>, String> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        RequestedAddresses::read(Some(&annotations), field).map_err(|error| error.to_string())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn every_spelling_asks_for_the_same() {
        for names in [0, 1, 2].map(|i| (LOAD_BALANCER_IPS[i], ADDRESS_POOL[i], ALLOW_SHARED_IP[i])) {
            let request = read(&[(names.0, "2001:DB8::0:1, 192.0.2.1"), (names.1, "lan"), (names.2, " k ")], None);
            let expected = RequestedAddresses {
                addresses: ips(&["2001:db8::1", "192.0.2.1"]),
                pool: Some("lan".into()),
                sharing_key: Some("k".into()),
                consent: Consent::None,
            };
            assert_eq!(request, Ok(Arc::new(expected)), "{names:?}");
        }
    }

    #[test]
    fn what_is_empty_asks_for_nothing() {
        let empty = read(&[(LOAD_BALANCER_IPS[0], " "), (ADDRESS_POOL[1], ""), (ALLOW_SHARED_IP[2], "")], Some(""));
        assert_eq!(empty, Ok(Arc::default()));
        assert_eq!(RequestedAddresses::read(None, None), Ok(Arc::default()));
    }

    #[test]
    fn spellings_that_agree_by_value_are_one_and_others_are_refused() {
        let both =
            [(LOAD_BALANCER_IPS[0], "192.0.2.1,2001:db8::1"), (LOAD_BALANCER_IPS[1], "2001:db8:0::1, 192.0.2.1")];
        assert_eq!(read(&both, None).map(|request| request.addresses.clone()), Ok(ips(&["192.0.2.1", "2001:db8::1"])));
        assert_eq!(
            read(&both[..1], Some("192.0.2.1")).expect_err("not the same"),
            "spec.loadBalancerIP asks for \"192.0.2.1\", but landfall.dev/load-balancer-ips for \
             \"192.0.2.1,2001:db8::1\": leave one of them out"
        );
        assert!(read(&[(ADDRESS_POOL[0], "a"), (ADDRESS_POOL[2], "b")], None).is_err());
        assert!(read(&[(ALLOW_SHARED_IP[0], "a"), (ALLOW_SHARED_IP[2], "a")], None).is_ok());
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_place() {
        for text in ["web", "192.0.2.01", "192.0.2.1/32", "::ffff:192.0.2.1", "192.0.2.1,", "192.0.2.1 192.0.2.2"] {
            let error = read(&[], Some(text)).expect_err(text);
            assert!(error.starts_with("spec.loadBalancerIP \""), "{error}");
        }
        let many: Vec<_> = (0..17).map(|last| format!("192.0.2.{last}")).collect();
        assert_eq!(
            read(&[(LOAD_BALANCER_IPS[0], &many.join(","))], None),
            Err("landfall.dev/load-balancer-ips asks for more than 16 addresses: ask for fewer".into())
        );
    }

    #[test]
    fn consent_is_given_by_namespace_or_to_all() {
        for (text, a, b) in [("a", true, false), ("a, b", true, true), ("*", true, true), ("", false, false)] {
            let consent = read(&[(SHARE_WITH_NAMESPACES, text)], None).expect("a request").consent.clone();
            assert_eq!((consent.includes("a"), consent.includes("b")), (a, b), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn reading_any_text_never_panics(text in "[0-9a-f:., *]{0,40}") {
            let _ = read(&[(LOAD_BALANCER_IPS[0], &text), (SHARE_WITH_NAMESPACES, &text)], Some(&text));
        }
    }
}
