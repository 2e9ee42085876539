//! The addresses that a Service requests: `spec.loadBalancerIP`, and annotations of Landfall and MetalLB.
//!
//! Metadata and spec → [`RequestedAddresses`] or [`InvalidRequest`]. A Service may repeat its request in several
//! fields and annotations if all have the same value. Addresses are compared by value, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::InternedStr;
use crate::condition::{MAX_QUOTED, Quoted};

/// Annotations that request a pool by name.
pub const ADDRESS_POOL: [&str; 3] =
    ["landfall.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// Annotations that request specific addresses, separated by commas.
pub const LOAD_BALANCER_IPS: [&str; 3] =
    ["landfall.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];

/// Annotations that set the sharing key. Services with the same key can share an address.
pub const ALLOW_SHARED_IP: [&str; 3] =
    ["landfall.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// Annotation that lists other namespaces whose Services may share the address, separated by commas; `*` for all.
/// Services of two namespaces share an address only if each of them lists the namespace of the other.
pub const SHARE_WITH_NAMESPACES: &str = "landfall.dev/share-with-namespaces";

/// The field that requests one address. Kubernetes deprecated the field, but users still set it. So Landfall grants or
/// refuses the request, and never ignores it.
const LOAD_BALANCER_IP: &str = "spec.loadBalancerIP";

/// Maximum number of addresses that a Service can request. The limit bounds the size of the status.
pub const MAX_ADDRESSES: usize = 16;

/// Maximum number of characters of a sharing key. The API server refuses a `LoadBalancerIP` with a longer one.
pub const MAX_SHARING_KEY: usize = 253;

/// The addresses that a Service requests, and its settings for sharing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedAddresses {
    /// Specific addresses without duplicates, in the order in which the Service lists them. Empty: any address.
    pub addresses: Vec<IpAddr>,
    /// Name of the pool. `None`: any pool.
    pub pool: Option<InternedStr>,
    /// Sharing key. `None`: the Service does not share addresses.
    pub sharing_key: Option<InternedStr>,
    /// Other namespaces that the Service shares addresses with.
    pub consent: Consent,
}

/// The request of a Service, or the error in it. Most Services request nothing: they share one value in memory.
pub type ParsedRequest = Result<Arc<RequestedAddresses>, Box<InvalidRequest>>;

/// Other namespaces that a Service shares its addresses with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Consent {
    /// No other namespace.
    #[default]
    None,
    /// The listed namespaces.
    Namespaces(BTreeSet<String>),
    /// All namespaces.
    All,
}

impl Consent {
    /// Whether the Service shares with this namespace.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::None => false,
            Self::Namespaces(names) => names.contains(namespace),
            Self::All => true,
        }
    }
}

/// Error in a request. Its text is shown to the user and names the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The text is not an IP address.
    #[error("{place} {} is not an IP address: use an address such as 192.0.2.10, or remove it", Quoted(text))]
    NotAnAddress {
        /// Field or annotation.
        place: &'static str,
        /// The invalid text.
        text: String,
    },
    /// More than [`MAX_ADDRESSES`] addresses.
    #[error("{place} requests more than {MAX_ADDRESSES} addresses: request fewer")]
    TooManyAddresses {
        /// Field or annotation.
        place: &'static str,
    },
    /// The sharing key has more than [`MAX_SHARING_KEY`] characters.
    #[error("{place} has more than {MAX_SHARING_KEY} characters: use a shorter sharing key")]
    LongSharingKey {
        /// Annotation.
        place: &'static str,
    },
    /// Two fields or annotations contradict each other.
    #[error(
        "{} requests {}, but {} requests {}: remove one of them",
        .one.0, Quoted(&.one.1), .other.0, Quoted(&.other.1)
    )]
    Contradiction {
        /// A field or annotation with its value.
        one: (&'static str, String),
        /// Another field or annotation with its value.
        other: (&'static str, String),
    },
}

impl RequestedAddresses {
    /// Reads the request in these annotations and `spec.loadBalancerIP`. Empty values are ignored.
    ///
    /// # Errors
    /// If an address is invalid, if there are too many, or if two places contradict each other.
    pub fn read(annotations: Option<&BTreeMap<String, String>>, load_balancer_ip: Option<&str>) -> ParsedRequest {
        static NOTHING: LazyLock<Arc<RequestedAddresses>> = LazyLock::new(Arc::default);
        let request = Self::parse(annotations, load_balancer_ip)?;
        Ok(if request == Self::default() { NOTHING.clone() } else { request.into() })
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
        let places = field.map(|text| (LOAD_BALANCER_IP, text)).into_iter();
        let places = places.chain(LOAD_BALANCER_IPS.into_iter().filter_map(value));
        let addresses = places.map(|(place, text)| Ok(((place, text), parse_addresses(place, text)?)));
        let intern = |(place, text)| Ok(((place, text), InternedStr::from(text)));
        let pools = ADDRESS_POOL.into_iter().filter_map(value).map(intern);
        let sharing_keys = ALLOW_SHARED_IP.into_iter().filter_map(value).map(|(place, text)| {
            let is_short = text.chars().count() <= MAX_SHARING_KEY;
            if is_short { intern((place, text)) } else { Err(InvalidRequest::LongSharingKey { place }) }
        });
        Ok(Self {
            addresses: merge(addresses, |one, other| have_same_addresses(one, other))?.unwrap_or_default(),
            pool: merge(pools, InternedStr::eq)?,
            sharing_key: merge(sharing_keys, InternedStr::eq)?,
            consent: value(SHARE_WITH_NAMESPACES).map_or(Consent::None, |(_, text)| parse_consent(text)),
        })
    }
}

/// Returns the value that all entries have in common, or an error if two entries differ; `None` without entries.
fn merge<'a, T>(
    entries: impl Iterator<Item = Result<((&'static str, &'a str), T), InvalidRequest>>,
    same: impl Fn(&T, &T) -> bool,
) -> Result<Option<T>, InvalidRequest> {
    let mut first: Option<((&'static str, &str), T)> = None;
    for entry in entries {
        let (place, value) = entry?;
        match &first {
            None => first = Some((place, value)),
            Some((_, first)) if same(first, &value) => {}
            Some((one, _)) => {
                let owned = |(name, text): (&'static str, &str)| (name, clamp(text));
                return Err(InvalidRequest::Contradiction { one: owned(*one), other: owned(place) });
            }
        }
    }
    Ok(first.map(|(_, value)| value))
}

/// The start of a text that an error quotes. One character more than it shows, so that it shows the cut.
fn clamp(text: &str) -> String {
    text.chars().take(MAX_QUOTED + 1).collect()
}

fn have_same_addresses(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.iter().collect::<BTreeSet<_>>() == other.iter().collect::<BTreeSet<_>>()
}

fn parse_addresses(place: &'static str, text: &str) -> Result<Vec<IpAddr>, InvalidRequest> {
    let mut addresses = Vec::new();
    for part in text.split(',') {
        let address: Option<IpAddr> = part.trim().parse().ok();
        // An IPv4-mapped IPv6 address is invalid (KEP-4858).
        let address = address.filter(|address| address.to_canonical() == *address);
        let address = address.ok_or_else(|| InvalidRequest::NotAnAddress { place, text: clamp(part.trim()) })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.len() > MAX_ADDRESSES {
        return Err(InvalidRequest::TooManyAddresses { place });
    }
    Ok(addresses)
}

fn parse_consent(text: &str) -> Consent {
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
    fn all_annotation_names_request_the_same() {
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
    fn empty_values_request_nothing() {
        let empty = read(&[(LOAD_BALANCER_IPS[0], " "), (ADDRESS_POOL[1], ""), (ALLOW_SHARED_IP[2], "")], Some(""));
        assert_eq!(empty, Ok(Arc::default()));
        assert_eq!(RequestedAddresses::read(None, None), Ok(Arc::default()));
    }

    #[test]
    fn equal_requests_are_merged_and_contradictions_refused() {
        let both =
            [(LOAD_BALANCER_IPS[0], "192.0.2.1,2001:db8::1"), (LOAD_BALANCER_IPS[1], "2001:db8:0::1, 192.0.2.1")];
        assert_eq!(read(&both, None).map(|request| request.addresses.clone()), Ok(ips(&["192.0.2.1", "2001:db8::1"])));
        assert_eq!(
            read(&both[..1], Some("192.0.2.1")).expect_err("not the same"),
            "spec.loadBalancerIP requests \"192.0.2.1\", but landfall.dev/load-balancer-ips requests \
             \"192.0.2.1,2001:db8::1\": remove one of them"
        );
        assert!(read(&[(ADDRESS_POOL[0], "a"), (ADDRESS_POOL[2], "b")], None).is_err());
        assert!(read(&[(ALLOW_SHARED_IP[0], "a"), (ALLOW_SHARED_IP[2], "a")], None).is_ok());
    }

    #[test]
    fn invalid_address_is_refused_with_its_place() {
        for text in ["web", "192.0.2.01", "192.0.2.1/32", "::ffff:192.0.2.1", "192.0.2.1,", "192.0.2.1 192.0.2.2"] {
            let error = read(&[], Some(text)).expect_err(text);
            assert!(error.starts_with("spec.loadBalancerIP \""), "{error}");
        }
        let many: Vec<_> = (0..17).map(|last| format!("192.0.2.{last}")).collect();
        assert_eq!(
            read(&[(LOAD_BALANCER_IPS[0], &many.join(","))], None),
            Err("landfall.dev/load-balancer-ips requests more than 16 addresses: request fewer".into())
        );
    }

    #[test]
    fn long_sharing_key_is_refused() {
        let fits = "ü".repeat(MAX_SHARING_KEY);
        assert!(read(&[(ALLOW_SHARED_IP[1], &fits)], None).is_ok());
        assert_eq!(
            read(&[(ALLOW_SHARED_IP[1], &(fits + "k"))], None),
            Err("metallb.io/allow-shared-ip has more than 253 characters: use a shorter sharing key".into())
        );
    }

    #[test]
    fn quoted_values_are_short_in_messages() {
        let long = "\n".repeat(100_000);
        let pools = |one: &str, other: &str| read(&[(ADDRESS_POOL[0], one), (ADDRESS_POOL[2], other)], None);
        let text = format!("x{long}x");
        for error in [pools(&text, "b"), pools("a", &text), read(&[(LOAD_BALANCER_IPS[0], &text)], None)] {
            let error = error.expect_err("invalid");
            assert!(error.chars().count() < 300 && error.contains("…\""), "{error}");
        }
    }

    #[test]
    fn consent_covers_listed_or_all_namespaces() {
        for (text, a, b) in [("a", true, false), ("a, b", true, true), ("*", true, true), ("", false, false)] {
            let consent = read(&[(SHARE_WITH_NAMESPACES, text)], None).expect("a request").consent.clone();
            assert_eq!((consent.includes("a"), consent.includes("b")), (a, b), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_text_never_panics(text in "[0-9a-f:., *]{0,40}") {
            let _ = read(&[(LOAD_BALANCER_IPS[0], &text), (SHARE_WITH_NAMESPACES, &text)], Some(&text));
        }
    }
}
