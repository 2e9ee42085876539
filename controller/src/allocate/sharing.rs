//! Which Services may share an address.
//!
//! Two Services → whether they fit, and if not, why. They fit if they have the same key, no common port of one protocol
//! and compatible traffic policies. Services of two namespaces must also consent to each other.
//!
//! Two policies are compatible if both are Cluster. Two Local policies are compatible if the Services are in one
//! namespace and select the same pods: only then can one announcing node serve both.
//!
//! The holders of an address → which of them stay. If two holders no longer fit, the one that changed has to leave. The
//! record keeps a fingerprint of each holder's terms, so every controller decides this in the same way at any time.

use std::fmt;

use crds::request::Consent;
use crds::{Holder, InternedStr, Key, Protocol, Service, TrafficPolicy};
use model::stable_hash::Fnv1a;

/// Why two Services cannot share an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// One of them has no sharing key, or their keys differ.
    Key,
    /// Both have this port.
    Port(Protocol, u16),
    /// Their traffic policies are not compatible.
    Policy,
    /// They are in two namespaces that have not both consented.
    Namespaces,
    /// The other Service is unreadable.
    Unreadable,
    /// The address has the maximum number of holders, Services that are about to join included.
    Full,
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => f.write_str("has another key in landfall.dev/allow-shared-ip"),
            Self::Port(protocol, number) => write!(f, "has port {number}/{protocol} too"),
            Self::Policy => f.write_str(
                "has another spec.externalTrafficPolicy, or another namespace or spec.selector while both policies are \
                 Local",
            ),
            Self::Namespaces => f.write_str(
                "is in another namespace: each must name the other namespace in landfall.dev/share-with-namespaces",
            ),
            Self::Unreadable => f.write_str("can't be read"),
            Self::Full => f.write_str("shares it with the maximum number of Services already"),
        }
    }
}

/// The key under which a Service shares addresses.
pub(crate) fn key(service: &Service) -> Option<&str> {
    service.request.as_ref().ok()?.sharing_key.as_deref()
}

/// Why two Services cannot share an address; `None` if they can.
pub(crate) fn clash(one: &Service, other: &Service) -> Option<Clash> {
    if key(one).is_none() || key(one) != key(other) {
        return Some(Clash::Key);
    }
    let common = one
        .ports
        .iter()
        .find(|port| other.ports.iter().any(|theirs| (theirs.protocol, theirs.number) == (port.protocol, port.number)));
    if let Some(port) = common {
        return Some(Clash::Port(port.protocol, port.number));
    }
    let is_one_namespace = one.key.namespace == other.key.namespace;
    let is_compatible = match (one.traffic_policy, other.traffic_policy) {
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster) => true,
        (TrafficPolicy::Local, TrafficPolicy::Local) => {
            is_one_namespace && one.selector == other.selector && !one.selector.is_empty()
        }
        _ => false,
    };
    if !is_compatible {
        return Some(Clash::Policy);
    }
    let may_share = is_one_namespace || (consents(one, other) && consents(other, one));
    (!may_share).then_some(Clash::Namespaces)
}

fn consent(service: &Service) -> Option<&Consent> {
    service.request.as_ref().ok().map(|request| &request.consent)
}

/// Whether a Service consents to share with the namespace of another one.
fn consents(service: &Service, other: &Service) -> bool {
    consent(service).is_some_and(|consent| consent.includes(&other.key.namespace))
}

/// A fingerprint of everything that [`clash`] compares; `None` for a Service that does not share.
pub(crate) fn terms(service: &Service) -> Option<InternedStr> {
    let mut hash = Fnv1a::default();
    write_text(&mut hash, key(service)?);
    let mut ports: Vec<_> = service.ports.iter().map(|port| (port.protocol.number(), port.number)).collect();
    ports.sort_unstable();
    for (protocol, number) in ports {
        hash.write(&[protocol]);
        hash.write(&number.to_be_bytes());
    }
    match service.traffic_policy {
        TrafficPolicy::Cluster => write_text(&mut hash, "Cluster"),
        TrafficPolicy::Local => {
            write_text(&mut hash, "Local");
            for (name, value) in service.selector.iter() {
                write_text(&mut hash, name);
                write_text(&mut hash, value);
            }
        }
    }
    // Separates the labels of the selector from the namespaces: no text contains this byte.
    hash.write(&[0xfe]);
    match consent(service)? {
        Consent::None => {}
        Consent::Namespaces(names) => names.iter().for_each(|name| write_text(&mut hash, name)),
        Consent::All => write_text(&mut hash, "*"),
    }
    Some(format!("{:016x}", hash.finish()).into())
}

/// The entry of a record that names this Service.
pub(crate) fn holder(service: &Service) -> Holder {
    let key = &service.key;
    Holder { namespace: key.namespace.clone(), name: key.name.clone(), uid: service.uid.clone(), terms: terms(service) }
}

/// Appends a text and an end mark, so that two texts differ from their concatenation.
fn write_text(hash: &mut Fnv1a, text: &str) {
    hash.write(text.as_bytes());
    hash.write(&[0xff]);
}

/// The state of the Service that a record names as a holder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HolderState<'a> {
    /// It may hold addresses.
    Service(&'a Service),
    /// It exists, and is unreadable.
    Unreadable,
    /// It does not exist, or may not hold addresses.
    Gone,
}

/// Whether a holder keeps its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Stays,
    /// The holder stays, because its Service is unreadable.
    Unreadable,
    /// The holder has to leave, because it does not fit with this Service.
    Clashes(Key, Clash),
    /// The Service of the holder does not exist or may not hold addresses, or the record names it more than once.
    Gone,
}

/// The standing of each holder, in the order of the holders. Holders with unchanged terms are considered first, then
/// holders with new terms, both in the order in which they joined. A holder stays if it fits with all holders that
/// stay.
pub(crate) fn standings<'a>(holders: &'a [Holder], state: impl Fn(&Holder) -> HolderState<'a>) -> Vec<Standing> {
    let states: Vec<_> = holders.iter().map(state).collect();
    let mut standings = vec![Standing::Gone; holders.len()];
    let mut staying = Vec::<usize>::new();
    for is_unchanged in [true, false] {
        for (index, holder) in holders.iter().enumerate() {
            let is_repeated = staying.iter().any(|other| holders[*other].service() == holder.service());
            let service = match states[index] {
                HolderState::Unreadable if is_unchanged && !is_repeated => {
                    standings[index] = Standing::Unreadable;
                    staying.push(index);
                    continue;
                }
                HolderState::Service(service) if !is_repeated && (holder.terms == terms(service)) == is_unchanged => {
                    service
                }
                _ => continue,
            };
            match staying.iter().find_map(|other| clash_with(service, &holders[*other], states[*other], is_unchanged)) {
                Some((key, clash)) => standings[index] = Standing::Clashes(key, clash),
                None => {
                    standings[index] = Standing::Stays;
                    staying.push(index);
                }
            }
        }
    }
    standings
}

/// Why a Service clashes with another holder, and the key of that holder.
fn clash_with(service: &Service, holder: &Holder, state: HolderState<'_>, is_unchanged: bool) -> Option<(Key, Clash)> {
    let clash = match state {
        HolderState::Service(other) => clash(service, other),
        // Both fitted when they joined, and still fit if neither has changed.
        _ => (!is_unchanged).then_some(Clash::Unreadable),
    };
    Some((holder.service(), clash?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{request_of, service};
    use crds::{Labels, Port, RequestedAddresses};

    fn sharing(name: &str, key: &str, port: u16) -> Service {
        Service {
            request: Ok(RequestedAddresses { sharing_key: Some(key.into()), ..RequestedAddresses::default() }.into()),
            ports: vec![Port { name: "".into(), protocol: Protocol::Tcp, number: port, node_port: None }],
            ..service(name, 1)
        }
    }

    fn set_consent(service: &mut Service, consent: Consent) {
        request_of(service).consent = consent;
    }

    #[test]
    fn services_fit_by_key_ports_policy_and_namespace() {
        let with = |edit: &dyn Fn(&mut Service)| {
            let mut other = sharing("other", "k", 443);
            edit(&mut other);
            other
        };
        let away = |consent: Consent| {
            with(&|other| {
                other.key.namespace = "away".into();
                set_consent(other, consent.clone());
            })
        };
        let names = |names: &[&str]| Consent::Namespaces(names.iter().map(|name| (*name).to_owned()).collect());
        let local = |selector: [(&str, &str); 1]| {
            with(&|other| (other.traffic_policy, other.selector) = (TrafficPolicy::Local, Labels::from(selector)))
        };
        let mut web = sharing("web", "k", 80);
        set_consent(&mut web, names(&["away"]));
        let mut web_local = web.clone();
        (web_local.traffic_policy, web_local.selector) = (TrafficPolicy::Local, Labels::from([("app", "web")]));
        let udp = |other: &mut Service| (other.ports[0].protocol, other.ports[0].number) = (Protocol::Udp, 80);
        for (one, other, expected) in [
            (&web, with(&|_| {}), None),
            (&web, with(&udp), None),
            (&web, with(&|other| other.ports[0].number = 80), Some(Clash::Port(Protocol::Tcp, 80))),
            (&web, sharing("other", "l", 443), Some(Clash::Key)),
            (&web, with(&|other| other.request = Ok(RequestedAddresses::default().into())), Some(Clash::Key)),
            (&web, local([("app", "web")]), Some(Clash::Policy)),
            (&web_local, local([("app", "web")]), None),
            (&web_local, local([("app", "db")]), Some(Clash::Policy)),
            (&web_local, Service { key: Key::new("away", "x"), ..local([("app", "web")]) }, Some(Clash::Policy)),
            (&web, away(Consent::None), Some(Clash::Namespaces)),
            (&web, away(names(&["other"])), Some(Clash::Namespaces)),
            (&web, away(names(&["default"])), None),
            (&web, away(Consent::All), None),
            (&sharing("web", "k", 80), away(Consent::All), Some(Clash::Namespaces)),
        ] {
            assert_eq!(clash(one, &other), expected, "{one:?} {other:?}");
            assert_eq!(clash(&other, one), expected, "reversed: {one:?} {other:?}");
        }
        let mut no_selector = web_local.clone();
        no_selector.selector = Labels::default();
        let other = Service { ports: vec![], key: Key::new("default", "other"), ..no_selector.clone() };
        // Without a selector, other clients write the endpoints.
        assert_eq!(clash(&no_selector, &other), Some(Clash::Policy));
    }

    #[test]
    fn terms_change_exactly_with_compared_fields() {
        let web = sharing("web", "k", 80);
        let terms_of = |edit: &dyn Fn(&mut Service)| {
            let mut web = web.clone();
            edit(&mut web);
            terms(&web)
        };
        let same = terms(&web);
        assert_eq!(same.as_deref(), Some("d110ff63a7f1c586"), "the same in every version");
        assert_eq!(terms_of(&|web| web.resource_version = 9), same);
        assert_eq!(
            terms_of(&|web| web.selector = [("app", "web")].into()),
            same,
            "the selector has no effect under Cluster"
        );
        assert_eq!(terms_of(&|web| web.request = Ok(RequestedAddresses::default().into())), None);
        let request = |web: &mut Service, edit: &dyn Fn(&mut RequestedAddresses)| edit(request_of(web));
        let changed: Vec<_> = [
            terms_of(&|web| request(web, &|request| request.sharing_key = Some("l".into()))),
            terms_of(&|web| request(web, &|request| request.consent = Consent::All)),
            terms_of(&|web| web.ports[0].number = 81),
            terms_of(&|web| web.ports[0].protocol = Protocol::Udp),
            terms_of(&|web| web.traffic_policy = TrafficPolicy::Local),
            terms_of(&|web| (web.traffic_policy, web.selector) = (TrafficPolicy::Local, [("app", "web")].into())),
        ]
        .into_iter()
        .chain([same])
        .collect();
        let local = |selector: Labels, consent: &[&str]| {
            let consent = Consent::Namespaces(consent.iter().map(|name| (*name).to_owned()).collect());
            terms_of(&|web| {
                (web.traffic_policy, web.selector) = (TrafficPolicy::Local, selector.clone());
                request(web, &|request| request.consent = consent.clone());
            })
        };
        let many = local([("app", "web"), ("team", "x")].into(), &[]);
        assert_ne!(many, local([("app", "web")].into(), &["team", "x"]), "labels and namespaces are distinct");
        let distinct: std::collections::BTreeSet<_> = changed.iter().collect();
        assert_eq!(distinct.len(), changed.len());
    }

    #[test]
    fn changed_holder_leaves_when_two_no_longer_fit() {
        let services = [sharing("a", "k", 80), sharing("b", "k", 443), sharing("c", "k", 53)];
        let holder = |service: &Service| Holder {
            namespace: service.key.namespace.clone(),
            name: service.key.name.clone(),
            uid: service.uid.clone(),
            terms: terms(service),
        };
        let holders = services.clone().map(|service| holder(&service));
        let clash = |with: &str, clash| Standing::Clashes(Key::new("default", with), clash);
        let port = |number| Clash::Port(Protocol::Tcp, number);
        use Standing::{Gone, Stays, Unreadable};
        let now = |edit: &dyn Fn(&mut [Service; 3]), except: Option<(usize, HolderState<'static>)>| {
            let mut services = services.clone();
            edit(&mut services);
            let find = |holder: &Holder| {
                let index = services.iter().position(|service| service.uid == holder.uid).expect("a Service");
                match except {
                    Some((other, known)) if other == index => known,
                    _ => HolderState::Service(&services[index]),
                }
            };
            standings(&holders, find)
        };
        assert_eq!(now(&|_| {}, None), [Stays, Stays, Stays]);
        assert_eq!(now(&|s| s[0].ports[0].number = 443, None), [clash("b", port(443)), Stays, Stays]);
        assert_eq!(now(&|s| s[0].ports[0].number = 444, None), [Stays, Stays, Stays]);
        // If two have changed, the one that joined first stays.
        let both = |s: &mut [Service; 3]| (s[0].ports[0].number, s[1].ports[0].number) = (8080, 8080);
        assert_eq!(now(&both, None), [Stays, clash("a", port(8080)), Stays]);
        assert_eq!(now(&|_| {}, Some((1, HolderState::Gone))), [Stays, Gone, Stays]);
        assert_eq!(now(&|_| {}, Some((1, HolderState::Unreadable))), [Stays, Unreadable, Stays]);
        let changed = now(&|s| s[2].ports[0].number = 54, Some((1, HolderState::Unreadable)));
        assert_eq!(changed, [Stays, Unreadable, clash("b", Clash::Unreadable)]);
    }

    #[test]
    fn repeated_holder_counts_only_once() {
        let web = service("web", 1);
        let holder = crate::fixtures::holder("web");
        let standings = standings(&[holder.clone(), holder], |_| HolderState::Service(&web));
        assert_eq!(standings, [Standing::Stays, Standing::Gone]);
    }
}
