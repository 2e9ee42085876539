//! What is written is read back, and no answer makes reading panic.

use super::*;
use crate::netlink::attribute::{Writer, attributes};
use crate::nft::codec::contents::{Contents, contents, told as told_of};
use crate::nft::diff::diff;
use crate::nft::elements::Returning;
use crate::nft::layout;
use crate::reply_path::Mask;
use crate::rules::ruleset::{Pick, Way};
use crds::Backend;
use proptest::prelude::*;

fn a_table() -> impl Strategy<Value = Table> {
    proptest::sample::select(Table::ALL.to_vec())
}

fn a_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn address_of(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    }
}

fn a_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

/// Any elements of the table that spreads frames.
fn elements_of_frames() -> impl Strategy<Value = Elements> {
    let token = || any::<[u8; 6]>().prop_map(Token);
    let mac = || any::<[u8; 6]>().prop_map(MacAddr::from);
    let link = || "[a-z][a-z0-9.@-]{0,14}".prop_map(|name| LinkName::new(&name).expect("a name"));
    let address = || a_family().prop_flat_map(address_of);
    let element = prop_oneof![
        address().prop_map(|a| (Key::Spread(a), Value::Present)),
        (address(), a_protocol(), any::<u16>(), token()).prop_map(|(address, protocol, port, t)| (
            Key::Class(Frontend { address, protocol, port }),
            Value::Token(t)
        )),
        (address(), a_protocol(), token()).prop_map(|(a, protocol, t)| (Key::Whole(a, protocol), Value::Token(t))),
        (token(), any::<u32>(), token()).prop_map(|(t, slot, nodes)| (Key::Slot(t, slot), Value::Token(nodes))),
        (link(), token(), mac()).prop_map(|(link, t, mac)| (Key::Hop(link, t), Value::Mac(mac))),
        mac().prop_map(|mac| (Key::Peer(mac), Value::Present)),
        (link(), mac()).prop_map(|(link, mac)| (Key::Own(link, mac), Value::Present)),
        (link(), mac()).prop_map(|(link, mac)| (Key::Alive(link, mac), Value::Present)),
        (link(), mac()).prop_map(|(link, mac)| (Key::Mac(link), Value::Mac(mac))),
    ];
    proptest::collection::btree_map(any::<u64>(), element, 0..40).prop_map(|elements| elements.into_values().collect())
}

/// Any elements of any table.
fn some_elements() -> impl Strategy<Value = Elements> {
    a_table().prop_flat_map(elements_of)
}

fn elements_of(table: Table) -> BoxedStrategy<Elements> {
    let Some(family) = table.family() else { return elements_of_frames().boxed() };
    let address = move || address_of(family);
    let frontend = (address(), a_protocol(), any::<u16>())
        .prop_map(|(address, protocol, port)| Frontend { address, protocol, port })
        .boxed();
    let way = (any::<u32>(), 1u32.., any::<bool>(), proptest::option::of(any::<u32>())).prop_map(
        |(from, count, restricted, affinity)| Way {
            pick: Pick { from, count },
            restricted,
            affinity,
            ..Way::default()
        },
    );
    let proxied = (prop_oneof![Just(Backend::NodePort), Just(Backend::ClusterIp)], any::<bool>());
    let way = prop_oneof![way, proxied.prop_map(|(backend, restricted)| Way { restricted, backend, ..Way::default() })];
    let range = (address(), address()).prop_map(|(a, b)| Range::new(a.min(b), a.max(b)).expect("a range"));
    let endpoint = (address(), any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port));
    let element = prop_oneof![
        address().prop_map(|a| (Key::Address(a), Value::Present)),
        (frontend.clone(), any::<u32>()).prop_map(|(f, lead)| (Key::Service(f), Value::Lead(Lead(lead)))),
        (frontend.clone(), any::<u32>()).prop_map(|(f, lead)| (Key::Inside(f), Value::Lead(Lead(lead)))),
        way.prop_map(move |way| (Key::Lead(family, Lead::to(way)), Value::Way(way))),
        (frontend.clone(), any::<bool>()).prop_map(|(f, restricted)| (Key::Refused(f), Value::Refuse { restricted })),
        frontend.clone().prop_map(|f| (Key::Refused(f), Value::Leave)),
        (frontend.clone(), any::<u16>()).prop_map(|(f, port)| (Key::NodePort(f), Value::NewPort(port))),
        (frontend.clone(), address()).prop_map(|(f, a)| (Key::ClusterIp(f), Value::NewAddress(a))),
        (address(), address()).prop_map(|(a, node)| (Key::Node(a), Value::NewAddress(node))),
        (frontend.clone(), any::<u32>()).prop_map(|(f, seconds)| (Key::Remembered(f), Value::Remember(seconds))),
        (frontend.clone(), range).prop_map(|(f, range)| (Key::Source(f, range), Value::Present)),
        (frontend.clone(), any::<u32>(), endpoint).prop_map(|(f, i, e)| (Key::Endpoint(f, i), Value::Endpoint(e))),
        (frontend.clone()).prop_map(|f| (Key::Traffic(f), Value::Present)),
        (frontend.clone()).prop_map(|f| (Key::Begun(f), Value::Present)),
        (address(), address()).prop_map(|(a, e)| (Key::Local(a, e), Value::Present)),
        (address(), address()).prop_map(|(a, e)| (Key::Hairpin(a, e), Value::Present)),
    ];
    proptest::collection::btree_map(any::<u64>(), element, 0..40)
        .prop_map(|elements| elements.into_values().collect())
        .boxed()
}

/// What the messages that add all of `elements` say, read as if the kernel had said it.
fn told(elements: &Elements) -> Vec<Option<(Key, Value)>> {
    let changes = diff(&Elements::new(), elements);
    let mut requests = Requests::default();
    requests.change(&changes);
    let mut told = Vec::new();
    let Some(table) = elements.keys().next().map(Key::table) else { return told };
    for message in requests.messages {
        let mut bytes = Vec::new();
        message.encode(0, &mut bytes);
        assert!(bytes.len() < 1 << 16, "a message has an attribute of less than 64 KiB");
        let answer = attributes(&bytes[Message::HEADERS..]);
        let set = answer.find(ELEM_LIST_SET).and_then(|set| set.text()).expect("a set");
        told.extend(self::elements(table, set, answer));
    }
    told
}

proptest! {
    #[test]
    fn elements_are_read_as_they_are_written(elements in some_elements()) {
        let read: Option<Elements> = told(&elements).into_iter().collect();
        prop_assert_eq!(read, Some(elements));
    }

    #[test]
    fn a_table_that_is_made_anew_holds_the_same_and_each_element_is_told_by_its_place(elements in some_elements()) {
        let Some(table) = elements.keys().next().map(Key::table) else { return Ok(()) };
        let all = contents(elements.clone()).remove(&table).expect("contents");
        prop_assert_eq!(all.count(), elements.len());
        let mut read = Elements::new();
        for (name, set) in all.sets {
            for message in set.messages(table, name) {
                let list = message.attributes().find(ELEM_LIST_ELEMENTS).expect("elements");
                let found = self::elements(table, name, message.attributes());
                let mut bytes = Vec::new();
                message.encode(0, &mut bytes);
                for (item, found) in list.inner().zip(found) {
                    let (key, value) = found.expect("an element");
                    // A list is the last in a message.
                    let place = bytes.len() - list.value.len() + (item.value.as_ptr().addr() - list.value.as_ptr().addr());
                    prop_assert_eq!(told_of(table, name, &message, Some(place)), format!("add {key}"));
                    read.insert(key, value);
                }
            }
        }
        prop_assert_eq!(read, elements);
    }

    #[test]
    fn ranges_are_read_as_they_are_written(
        family in a_family(),
        ends in proptest::collection::btree_set(any::<u128>(), 0..12),
    ) {
        let table = Table::of_family(family);
        let address = |bits: u128| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::from_bits((bits >> 96) as u32)),
            Family::V6 => Ipv6Addr::from_bits(bits).into(),
        };
        let ends: Vec<_> = ends.into_iter().map(address).collect();
        // Ranges that touch are one.
        let apart = |pair: &[IpAddr]| crds::address::next(pair[0]).is_some_and(|after| after < pair[1]);
        prop_assume!(ends.windows(2).all(apart));
        let expected: Vec<_> = ends.chunks_exact(2).filter_map(|pair| Range::new(pair[0], pair[1])).collect();
        let mut list = Writer::default();
        list.nested(ELEM_LIST_ELEMENTS, |list| {
            crate::nft::codec::request::element(&Key::Pods(family), &Value::Ranges(expected.clone()), true, list);
        });
        let boundaries = boundaries(table, attributes(&list.finish())).into_iter().collect::<Option<Vec<_>>>();
        prop_assert_eq!(boundaries.and_then(ranges), Some(expected));
    }

    #[test]
    fn who_is_forgotten_is_who_was_remembered(
        family in a_family(),
        // Few, and as many as one message just takes and does not take any more.
        clients in prop_oneof![0usize..4, 499usize..502].prop_flat_map(|count| {
            proptest::collection::vec((any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>()), count)
        }),
    ) {
        let table = Table::of_family(family);
        let address = |bytes: [u8; 16]| match family {
            Family::V4 => IpAddr::from(*bytes.first_chunk::<4>().expect("four bytes")),
            Family::V6 => IpAddr::from(bytes),
        };
        let expected: Vec<Remembered> = clients
            .into_iter()
            .map(|(client, lb_ip, port)| Remembered {
                client: address(client),
                port: (address(lb_ip), Protocol::Udp, port),
                endpoint: SocketAddr::new(address([7; 16]), 9),
            })
            .collect();
        let mut requests = Requests::default();
        requests.forget(table, &expected);
        let mut told = Vec::new();
        for message in requests.messages {
            let mut bytes = Vec::new();
            message.encode(0, &mut bytes);
            prop_assert!(bytes.len() < 1 << 16);
            let answer = attributes(&bytes[Message::HEADERS..]);
            prop_assert_eq!(answer.find(ELEM_LIST_SET).and_then(|set| set.text()), Some("affinity"));
            for item in answer.find(ELEM_LIST_ELEMENTS).expect("elements").inner() {
                let key = item.inner().find(ELEM_KEY).and_then(|key| decode_value(key.inner())).expect("a key");
                let mut key = Parts { family, rest: key };
                told.push((key.address(), key.frontend().map(|front| (front.address, front.protocol, front.port))));
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|one| (Some(one.client), Some(one.port))).collect();
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn reading_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let answer = attributes(&bytes);
        let _ = (Found::table(answer), FoundSet::read(answer), chain_hook(answer), rule(answer), generation(answer));
        for table in Table::ALL {
            for set in layout::sets(table) {
                let _ = elements(table, set.name, answer);
            }
            let _ = remembered(table, answer);
            let _ = boundaries(table, answer).into_iter().collect::<Option<Vec<_>>>().and_then(ranges);
        }
    }

    #[test]
    fn reading_an_answer_with_a_flaw_never_panics(
        (table, elements) in a_table().prop_flat_map(|table| (Just(table), elements_of(table))),
        at: usize,
        flaw: u8,
    ) {
        let changes = diff(&Elements::new(), &elements);
        let mut requests = Requests::default();
        requests.create_table(table, Contents::default());
        requests.change(&changes);
        for message in requests.messages {
            let mut bytes = Vec::new();
            message.encode(0, &mut bytes);
            let mut bytes = bytes.split_off(Message::HEADERS);
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] = flaw;
            }
            let answer = attributes(&bytes);
            let _ = (Found::table(answer), FoundSet::read(answer), chain_hook(answer), rule(answer));
            for set in layout::sets(table) {
                let _ = self::elements(table, set.name, answer);
            }
        }
    }
}

#[test]
fn every_rule_is_read_as_it_is_written() {
    let open = Way { pick: Pick { from: 0, count: 1 }, ..Way::default() };
    let ways = [
        open,
        Way { pick: Pick { from: 3, count: 7 }, restricted: true, affinity: Some(1), ..Way::default() },
        Way { backend: Backend::NodePort, ..Way::default() },
        Way { restricted: true, backend: Backend::ClusterIp, ..Way::default() },
    ];
    let chains = |table: Table| {
        let changing = match table.family() {
            Some(family) => {
                let ways = ways.map(|way| layout::way(family, way));
                let mark = Mask::default().mark(5);
                let link = LinkName::new("eth0.7").expect("a name");
                let returns =
                    [Returning::Arrives(link, mark), Returning::Leaves(mark), Returning::LeavesFromHere(mark)];
                let returns = returns.map(|one| layout::returning(family, one));
                ways.into_iter().chain([layout::remember(family, 10_800)]).chain(returns).collect()
            }
            None => vec![layout::ingress(LinkName::new("eth0").expect("a name"))],
        };
        layout::chains(table).into_iter().chain(changing)
    };
    for chain in Table::ALL.into_iter().flat_map(chains) {
        for expected in chain.rules {
            let mut message = Writer::default();
            message.text(RULE_CHAIN, &chain.name).nested(RULE_EXPRESSIONS, |list| {
                expected.iter().for_each(|expression| expression.encode(list));
            });
            let read = rule(attributes(&message.finish()));
            assert_eq!(read, Some((chain.name.clone(), Some(expected))));
        }
    }
}

#[test]
fn a_chain_for_answers_is_known_by_its_name() {
    let mark = Mask::new(0x1800).expect("a mask").mark(2);
    let link = LinkName::new("bond0-by.7").expect("a name");
    for one in [Returning::Arrives(link, mark), Returning::Leaves(mark), Returning::LeavesFromHere(mark)] {
        assert_eq!(elements::returns(&elements::returning(one)), Some(one));
    }
    for other in ["by-", "by-0x10", "by-0x10-of-0x70", "by-16-of-0x70-eth0", "back-0x10-of-0x50", "on-eth0", "back-"] {
        assert_eq!(elements::returns(other), None, "{other}");
    }
}

#[test]
fn many_elements_are_spread_over_messages() {
    let elements = (0..5_000).map(|n| (Key::Address(Ipv4Addr::from_bits(n).into()), Value::Present)).collect();
    assert_eq!(told(&elements).len(), 5_000);
}

#[test]
fn boundaries_that_do_not_fit_are_no_ranges() {
    let at = |last: u8| IpAddr::from([10, 0, 0, last]);
    let range = |first, last| vec![Range::new(first, last).expect("a range")];
    assert_eq!(ranges(vec![]), Some(vec![]));
    assert_eq!(ranges(vec![(at(2), true), (at(1), false)]), Some(range(at(1), at(1))));
    assert_eq!(ranges(vec![(at(1), false)]), Some(range(at(1), Ipv4Addr::BROADCAST.into())));
    assert_eq!(ranges(vec![(at(1), false), (at(2), false)]), None);
    assert_eq!(ranges(vec![(at(1), false), (at(2), true), (at(3), true)]), None);
}
