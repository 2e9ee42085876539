//! Which Services may share an address.
//!
//! Two Services → whether they fit together, and if not, why. They fit if they have the same key, no port of the same
//! protocol in common, compatible traffic policies, and are of one namespace or agreed with each other. Compatible are
//! two that send traffic to any node, and two that send it only to nodes with endpoints (Local) and have the same
//! endpoints: the node that announces the address can be right for both only then.
//!
//! The holders of an address → who of them stays. Each Service's terms are kept with the address as a fingerprint, so
//! that of two that do not fit any more the one that changed has to go, whoever plans, and whenever.

use std::fmt;

use crds::request::Consent;
use crds::{Holder, InternedStr, Key, Protocol, Service, TrafficPolicy};
use model::stable_hash::Fnv1a;

/// Why two Services can't share an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// One of them has no sharing key, or another one.
    Key,
    /// Both have this port.
    Port(Protocol, u16),
    /// Their traffic policies are not compatible.
    Policy,
    /// They are of two namespaces that have not both agreed.
    Namespaces,
    /// The other one can't be read.
    Unreadable,
    /// As many share it as can.
    Full,
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => f.write_str("has another key in landfall.dev/allow-shared-ip"),
            Self::Port(protocol, number) => write!(f, "has port {number}/{protocol} too"),
            Self::Policy => f.write_str(
                "has another spec.externalTrafficPolicy, or both are Local and not in one namespace with one spec.selector",
            ),
            Self::Namespaces => f.write_str(
                "is in another namespace: each of both must name the other's in landfall.dev/share-with-namespaces",
            ),
            Self::Unreadable => f.write_str("can't be read"),
            Self::Full => f.write_str("and others share it, as many as can"),
        }
    }
}

/// The key by which a Service shares addresses.
pub(crate) fn key(service: &Service) -> Option<&str> {
    service.request.as_ref().ok()?.sharing_key.as_deref()
}

/// Why these two can't share an address, if they can't.
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
    let agrees = |a: &Service, b: &Service| consent(a).is_some_and(|consent| consent.includes(&b.key.namespace));
    let may_share = is_one_namespace || (agrees(one, other) && agrees(other, one));
    (!may_share).then_some(Clash::Namespaces)
}

fn consent(service: &Service) -> Option<&Consent> {
    service.request.as_ref().ok().map(|request| &request.consent)
}

/// A fingerprint of all that [`clash`] looks at; `None` for a Service that does not share.
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
    // No text has this byte: what comes after it is no label of the selector.
    hash.write(&[0xfe]);
    match consent(service)? {
        Consent::None => {}
        Consent::Namespaces(names) => names.iter().for_each(|name| write_text(&mut hash, name)),
        Consent::All => write_text(&mut hash, "*"),
    }
    Some(format!("{:016x}", hash.finish()).into())
}

/// How a record names this Service.
pub(crate) fn holder(service: &Service) -> Holder {
    let key = &service.key;
    Holder { namespace: key.namespace.clone(), name: key.name.clone(), uid: service.uid.clone(), terms: terms(service) }
}

/// Appends a text and a byte that ends it, so that two texts differ from both in one.
fn write_text(hash: &mut Fnv1a, text: &str) {
    hash.write(text.as_bytes());
    hash.write(&[0xff]);
}

/// What is known of the Service that a holder names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known<'a> {
    /// It is this one, and may have addresses.
    Service(&'a Service),
    /// It exists, and can't be read.
    Unreadable,
    /// It does not exist, or is not ours (any more).
    Gone,
}

/// What becomes of a holder of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It keeps the address.
    Stays,
    /// It keeps the address, and nobody knows anything else of it.
    Unreadable,
    /// It loses the address, because it does not fit to this one.
    Clashes(Key, Clash),
    /// It is gone already.
    Gone,
}

/// What becomes of each holder. First come those with the terms that they came with, then those with new ones, in the
/// order in which they came; each stays if it fits to all that stay.
pub(crate) fn standings<'a>(holders: &'a [Holder], known: impl Fn(&Holder) -> Known<'a>) -> Vec<Standing> {
    let known: Vec<_> = holders.iter().map(known).collect();
    let mut standings = vec![Standing::Gone; holders.len()];
    let mut staying = Vec::<usize>::new();
    for is_unchanged in [true, false] {
        for (index, holder) in holders.iter().enumerate() {
            let is_twice = staying.iter().any(|other| holders[*other].uid == holder.uid);
            let service = match known[index] {
                Known::Unreadable if is_unchanged && !is_twice => {
                    standings[index] = Standing::Unreadable;
                    staying.push(index);
                    continue;
                }
                Known::Service(service) if !is_twice && (holder.terms == terms(service)) == is_unchanged => service,
                _ => continue,
            };
            let against = |other: &usize| {
                let clash = match known[*other] {
                    Known::Service(other) => clash(service, other),
                    // They came together, so they fit as long as nobody changes.
                    _ => (!is_unchanged).then_some(Clash::Unreadable),
                };
                Some((holders[*other].service(), clash?))
            };
            match staying.iter().find_map(against) {
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

    fn consents(service: &mut Service, consent: Consent) {
        request_of(service).consent = consent;
    }

    #[test]
    fn two_services_fit_by_key_ports_policy_and_namespace() {
        let with = |edit: &dyn Fn(&mut Service)| {
            let mut other = sharing("other", "k", 443);
            edit(&mut other);
            other
        };
        let away = |consent: Consent| {
            with(&|other| {
                other.key.namespace = "away".into();
                consents(other, consent.clone());
            })
        };
        let names = |names: &[&str]| Consent::Namespaces(names.iter().map(|name| (*name).to_owned()).collect());
        let local = |selector: [(&str, &str); 1]| {
            with(&|other| (other.traffic_policy, other.selector) = (TrafficPolicy::Local, Labels::from(selector)))
        };
        let mut web = sharing("web", "k", 80);
        consents(&mut web, names(&["away"]));
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
            assert_eq!(clash(&other, one), expected, "the other way round: {one:?} {other:?}");
        }
        let mut nobody = web_local.clone();
        nobody.selector = Labels::default();
        let other = Service { ports: vec![], key: Key::new("default", "other"), ..nobody.clone() };
        assert_eq!(clash(&nobody, &other), Some(Clash::Policy), "endpoints that somebody else makes are not known");
    }

    #[test]
    fn terms_change_with_all_that_fitting_depends_on_and_with_nothing_else() {
        let web = sharing("web", "k", 80);
        let terms_of = |edit: &dyn Fn(&mut Service)| {
            let mut web = web.clone();
            edit(&mut web);
            terms(&web)
        };
        let same = terms(&web);
        assert_eq!(same.as_deref(), Some("d110ff63a7f1c586"), "the same in every version");
        assert_eq!(terms_of(&|web| web.resource_version = 9), same);
        assert_eq!(terms_of(&|web| web.selector = [("app", "web")].into()), same, "under Cluster it doesn't matter");
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
        assert_ne!(many, local([("app", "web")].into(), &["team", "x"]), "a label is no namespace");
        let distinct: std::collections::BTreeSet<_> = changed.iter().collect();
        assert_eq!(distinct.len(), changed.len());
    }

    #[test]
    fn of_two_that_do_not_fit_any_more_the_one_that_changed_goes() {
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
        let now = |edit: &dyn Fn(&mut [Service; 3]), except: Option<(usize, Known<'static>)>| {
            let mut services = services.clone();
            edit(&mut services);
            let find = |holder: &Holder| {
                let index = services.iter().position(|service| service.uid == holder.uid).expect("a Service");
                match except {
                    Some((other, known)) if other == index => known,
                    _ => Known::Service(&services[index]),
                }
            };
            standings(&holders, find)
        };
        assert_eq!(now(&|_| {}, None), [Stays, Stays, Stays]);
        assert_eq!(now(&|s| s[0].ports[0].number = 443, None), [clash("b", port(443)), Stays, Stays]);
        assert_eq!(now(&|s| s[0].ports[0].number = 444, None), [Stays, Stays, Stays]);
        // Of two that changed, the one that came first stays.
        let both = |s: &mut [Service; 3]| (s[0].ports[0].number, s[1].ports[0].number) = (8080, 8080);
        assert_eq!(now(&both, None), [Stays, clash("a", port(8080)), Stays]);
        assert_eq!(now(&|_| {}, Some((1, Known::Gone))), [Stays, Gone, Stays]);
        assert_eq!(now(&|_| {}, Some((1, Known::Unreadable))), [Stays, Unreadable, Stays]);
        let changed = now(&|s| s[2].ports[0].number = 54, Some((1, Known::Unreadable)));
        assert_eq!(changed, [Stays, Unreadable, clash("b", Clash::Unreadable)]);
    }

    #[test]
    fn a_holder_that_is_there_twice_is_there_once() {
        let web = service("web", 1);
        let holder = crate::fixtures::holder("web");
        let standings = standings(&[holder.clone(), holder], |_| Known::Service(&web));
        assert_eq!(standings, [Standing::Stays, Standing::Gone]);
    }
}
