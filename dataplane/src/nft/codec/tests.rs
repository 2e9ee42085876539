//! Messages are decoded as they were encoded, and no answer causes a panic.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crds::service::Family;
use crds::{Backend, MacAddr, Protocol, Range};
use proptest::prelude::*;

use super::contents::{TableContents, describe_elements, table_contents};
use super::dump::{
    DumpedSet, DumpedTable, decode_affinity, decode_elements, decode_generation, decode_hook, decode_rule,
};
use super::element::{decode_affinity_key, items};
use super::expression::{Expression, is_rule};
use super::numbers::*;
use super::request::Requests;
use crate::flows::affinity::AffinityEntry;
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::diff::diff_elements;
use crate::nft::dispatch_id::DispatchId;
use crate::nft::elements::{ElementKey, ElementValue, Elements, KeyParts};
use crate::nft::layout::{self, Chain, Set, SetId, Table, variable_chain};
use crate::reply_path::Mask;
use crate::rules::{Dispatch, Frontend, Pick};
use netlink::attribute::{Attributes, attributes};
use netlink::message::Message;

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

fn set_named(table: Table, name: &str) -> Set {
    layout::sets(table).into_iter().find(|set| set.name == name).expect("a set")
}

/// Any elements of the table that spreads frames.
fn elements_of_frames() -> impl Strategy<Value = Elements> {
    use SetId::{Alive, Classes4, Classes6, Hops, Macs, Own, Peers, Slots, Spread4, Spread6, Wholes4, Wholes6};
    let element = |set, key, value| (ElementKey::In(Table::Link, set, key), value);
    let present = move |set, key| element(set, key, ElementValue::Present);
    let by_family = |address: IpAddr, sets| SetId::by_family(Family::from(address), sets);
    let mac = || any::<[u8; 6]>().prop_map(MacAddr::from);
    let link = || "[a-z][a-z0-9.@-]{0,14}".prop_map(|name| LinkName::new(&name).expect("a name"));
    let address = || a_family().prop_flat_map(address_of);
    let any_element = prop_oneof![
        address().prop_map(move |a| present(by_family(a, [Spread4, Spread6]), KeyParts::Address(a))),
        (address(), a_protocol(), any::<u16>(), mac()).prop_map(move |(address, protocol, port, mac)| {
            let key = KeyParts::Frontend(Frontend { address, protocol, port });
            element(by_family(address, [Classes4, Classes6]), key, ElementValue::Mac(mac))
        }),
        (address(), a_protocol(), mac()).prop_map(move |(a, protocol, mac)| {
            let set = by_family(a, [Wholes4, Wholes6]);
            element(set, KeyParts::AddressProtocol(a, protocol), ElementValue::Mac(mac))
        }),
        (mac(), any::<u32>(), mac()).prop_map(move |(table, slot, pair)| element(
            Slots,
            KeyParts::Slot(table, slot),
            ElementValue::Mac(pair)
        )),
        (link(), mac(), mac()).prop_map(move |(link, pair, mac)| element(
            Hops,
            KeyParts::LinkMac(link, pair),
            ElementValue::Mac(mac)
        )),
        mac().prop_map(move |mac| present(Peers, KeyParts::Mac(mac))),
        (link(), mac()).prop_map(move |(link, mac)| present(Own, KeyParts::LinkMac(link, mac))),
        (link(), mac()).prop_map(move |(link, mac)| present(Alive, KeyParts::LinkMac(link, mac))),
        (link(), mac()).prop_map(move |(link, mac)| element(Macs, KeyParts::Link(link), ElementValue::Mac(mac))),
    ];
    proptest::collection::btree_map(any::<u64>(), any_element, 0..40)
        .prop_map(|elements| elements.into_values().collect())
}

/// Any elements of any table.
fn some_elements() -> impl Strategy<Value = Elements> {
    a_table().prop_flat_map(elements_of)
}

fn a_dispatch() -> impl Strategy<Value = Dispatch> {
    let picked = (any::<u32>(), 1u32.., any::<bool>(), proptest::option::of(any::<u32>()));
    let picked = picked.prop_map(|(from, count, restricted, affinity)| Dispatch {
        pick: Pick { from, count },
        restricted,
        affinity,
        ..Dispatch::default()
    });
    let proxied = (prop_oneof![Just(Backend::NodePort), Just(Backend::ClusterIp)], any::<bool>());
    let proxied = proxied.prop_map(|(backend, restricted)| Dispatch { restricted, backend, ..Dispatch::default() });
    prop_oneof![picked, proxied]
}

fn elements_of(table: Table) -> BoxedStrategy<Elements> {
    use SetId::{
        Addresses, Begun, ClusterIps, Endpoints, Hairpin, Inside, Local, NodePorts, Nodes, Refused, Remember, Rings,
        Services, Sources, Successors, Traffic, Tries, Ways,
    };
    let Some(family) = table.family() else { return elements_of_frames().boxed() };
    let element = move |set, key, value| (ElementKey::In(table, set, key), value);
    let present = move |set, key| element(set, key, ElementValue::Present);
    let goto = |chain| ElementValue::Goto(chain);
    let address = move || address_of(family);
    let frontend = (address(), a_protocol(), any::<u16>())
        .prop_map(|(address, protocol, port)| Frontend { address, protocol, port })
        .boxed();
    let port = frontend.clone().prop_map(KeyParts::Frontend).boxed();
    let id = any::<u32>().prop_map(|id| ElementValue::DispatchId(DispatchId(id))).boxed();
    let range = (address(), address()).prop_map(|(a, b)| Range::new(a.min(b), a.max(b)).expect("a range"));
    let endpoint = (address(), any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port));
    let any_element = prop_oneof![
        address().prop_map(move |a| present(Addresses, KeyParts::Address(a))),
        (port.clone(), id.clone()).prop_map(move |(port, id)| element(Services, port, id)),
        (port.clone(), id.clone()).prop_map(move |(port, id)| element(Inside, port, id)),
        (port.clone(), id).prop_map(move |(port, id)| element(Rings, port, id)),
        (any::<u32>(), any::<u8>()).prop_map(move |(ring, others)| {
            element(Tries, KeyParts::DispatchId(DispatchId(ring)), goto(ChainName::Tries(others)))
        }),
        (any::<u32>(), address()).prop_map(move |(ring, next)| {
            element(Successors, KeyParts::DispatchId(DispatchId(ring)), ElementValue::Address(next))
        }),
        a_dispatch().prop_map(move |dispatch| {
            let key = KeyParts::DispatchId(DispatchId::new(dispatch));
            element(Ways, key, goto(ChainName::Dispatch(dispatch)))
        }),
        (port.clone(), any::<bool>()).prop_map(move |(port, restricted)| element(
            Refused,
            port,
            goto(ChainName::Refuse { restricted })
        )),
        port.clone().prop_map(move |port| element(Refused, port, ElementValue::Return)),
        (port.clone(), any::<u16>()).prop_map(move |(port, to)| element(NodePorts, port, ElementValue::Port(to))),
        (port.clone(), address()).prop_map(move |(port, to)| element(ClusterIps, port, ElementValue::Address(to))),
        (address(), address()).prop_map(move |(a, node)| element(
            Nodes,
            KeyParts::Address(a),
            ElementValue::Address(node)
        )),
        (port.clone(), any::<u32>()).prop_map(move |(port, seconds)| element(
            Remember,
            port,
            goto(ChainName::Remember(seconds))
        )),
        (frontend.clone(), range)
            .prop_map(move |(frontend, range)| present(Sources, KeyParts::FrontendRange(frontend, range))),
        (frontend, any::<u32>(), endpoint).prop_map(move |(frontend, index, endpoint)| {
            element(Endpoints, KeyParts::FrontendIndex(frontend, index), ElementValue::Endpoint(endpoint))
        }),
        port.clone().prop_map(move |port| present(Traffic, port)),
        port.prop_map(move |port| present(Begun, port)),
        (address(), address()).prop_map(move |(a, e)| present(Local, KeyParts::Pair(a, e))),
        (address(), address()).prop_map(move |(a, e)| present(Hairpin, KeyParts::Hairpin(a, e))),
    ];
    proptest::collection::btree_map(any::<u64>(), any_element, 0..40)
        .prop_map(|elements| elements.into_values().collect())
        .boxed()
}

/// The elements of a message that adds some.
fn decode_message(table: Table, answer: Attributes<'_>) -> Vec<Option<(ElementKey, ElementValue)>> {
    let set = answer.find(ELEM_LIST_SET).and_then(|set| set.text()).expect("a set");
    decode_elements(table, &set_named(table, set), answer)
}

/// All `elements`, encoded and decoded as if they were answers of the kernel.
fn round_trip(elements: &Elements) -> Vec<Option<(ElementKey, ElementValue)>> {
    let changes = diff_elements(&Elements::new(), elements);
    let mut requests = Requests::default();
    requests.change(&changes);
    let mut decoded = Vec::new();
    let Some(table) = elements.keys().next().map(ElementKey::table) else { return decoded };
    for message in requests.messages {
        let mut bytes = Vec::new();
        message.encode(0, &mut bytes);
        assert!(bytes.len() < 1 << 16, "a message has an attribute of less than 64 KiB");
        decoded.extend(decode_message(table, attributes(&bytes[Message::HEADERS..])));
    }
    decoded
}

proptest! {
    #[test]
    fn elements_are_decoded_as_they_were_encoded(elements in some_elements()) {
        let read: Option<Elements> = round_trip(&elements).into_iter().collect();
        prop_assert_eq!(read, Some(elements));
    }

    #[test]
    fn contents_hold_the_elements_at_described_offsets(elements in some_elements()) {
        let Some(table) = elements.keys().next().map(ElementKey::table) else { return Ok(()) };
        let all = table_contents(elements.clone()).remove(&table).expect("contents");
        prop_assert_eq!(all.count(), elements.len());
        let mut read = Elements::new();
        for (id, set) in all.sets {
            for message in set.into_messages() {
                let list = message.attributes().find(ELEM_LIST_ELEMENTS).expect("elements");
                let found = decode_message(table, message.attributes());
                let mut bytes = Vec::new();
                message.encode(0, &mut bytes);
                for (item, found) in list.inner().zip(found) {
                    let (key, value) = found.expect("an element");
                    // The list is the last attribute of the message.
                    let in_list = item.value.as_ptr().addr() - list.value.as_ptr().addr();
                    let offset = u32::try_from(bytes.len() - list.value.len() + in_list).expect("short");
                    prop_assert_eq!(describe_elements(table, id, &message, Some(offset)), format!("add {key}"));
                    read.insert(key, value);
                }
            }
        }
        prop_assert_eq!(read, elements);
    }

    #[test]
    fn exactly_the_given_clients_are_forgotten(
        family in a_family(),
        // A few clients, or about as many as fit into one message.
        clients in prop_oneof![0usize..4, 499usize..502].prop_flat_map(|count| {
            proptest::collection::vec((any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u16>()), count)
        }),
    ) {
        let table = Table::for_family(family);
        let address = |bytes: [u8; 16]| match family {
            Family::V4 => IpAddr::from(*bytes.first_chunk::<4>().expect("four bytes")),
            Family::V6 => IpAddr::from(bytes),
        };
        let expected: Vec<AffinityEntry> = clients
            .into_iter()
            .map(|(client, lb_ip, port)| AffinityEntry {
                client: address(client),
                frontend: Frontend { address: address(lb_ip), protocol: Protocol::Udp, port },
                endpoint: SocketAddr::new(address([7; 16]), 9),
            })
            .collect();
        let mut requests = Requests::default();
        requests.forget_clients(table, &expected);
        let mut forgotten = Vec::new();
        for message in requests.messages {
            let mut bytes = Vec::new();
            message.encode(0, &mut bytes);
            prop_assert!(bytes.len() < 1 << 16);
            let answer = attributes(&bytes[Message::HEADERS..]);
            prop_assert_eq!(answer.find(ELEM_LIST_SET).and_then(|set| set.text()), Some("affinity"));
            for item in items(answer) {
                forgotten.push(decode_affinity_key(&set_named(table, "affinity"), item));
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|one| Some((one.client, one.frontend))).collect();
        prop_assert_eq!(forgotten, expected);
    }

    #[test]
    fn decoding_any_answer_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let answer = attributes(&bytes);
        let _ = (DumpedTable::decode(answer), DumpedSet::decode(answer), decode_hook(answer));
        let _ = (decode_rule(answer), decode_generation(answer), is_rule(&bytes, &[Expression::Masquerade]));
        for table in Table::ALL {
            for set in layout::sets(table) {
                let _ = decode_elements(table, &set, answer);
                if set.id == SetId::Affinity {
                    let _ = decode_affinity(&set, answer);
                }
            }
        }
    }

    #[test]
    fn decoding_an_answer_with_a_flaw_never_panics(
        (table, elements) in a_table().prop_flat_map(|table| (Just(table), elements_of(table))),
        at: usize,
        flaw: u8,
    ) {
        let changes = diff_elements(&Elements::new(), &elements);
        let mut requests = Requests::default();
        requests.create_table(table, TableContents::default());
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
            let _ = (DumpedTable::decode(answer), DumpedSet::decode(answer), decode_hook(answer), decode_rule(answer));
            for set in layout::sets(table) {
                let _ = decode_elements(table, &set, answer);
            }
        }
    }
}

/// Some chains of this table that exist only while they are needed.
fn variable_chains(table: Table) -> Vec<ChainName> {
    let link = LinkName::new("eth0.7").expect("a name");
    if table == Table::Link {
        return vec![ChainName::Ingress(link)];
    }
    let mark = Mask::default().mark(5);
    let dispatches = [
        Dispatch { pick: Pick { from: 0, count: 1 }, ..Dispatch::default() },
        Dispatch { pick: Pick { from: 3, count: 7 }, restricted: true, affinity: Some(1), backend: Backend::Endpoints },
        Dispatch { backend: Backend::NodePort, ..Dispatch::default() },
        Dispatch { restricted: true, backend: Backend::ClusterIp, ..Dispatch::default() },
    ];
    let reply_path =
        [ChainName::MarkConnection(link, mark), ChainName::MarkForwardedReply(mark), ChainName::MarkLocalReply(mark)];
    let dispatches = dispatches.map(ChainName::Dispatch).into_iter();
    dispatches.chain(reply_path).chain([ChainName::Remember(10_800), ChainName::Tries(2)]).collect()
}

/// All fixed chains of all tables, and some chains that exist only while they are needed.
pub(super) fn all_chains() -> Vec<Chain> {
    let chains = |table: Table| {
        let variable = variable_chains(table).into_iter().filter_map(move |name| variable_chain(table, name));
        layout::chains(table).into_iter().chain(variable)
    };
    Table::ALL.into_iter().flat_map(chains).collect()
}

#[test]
fn many_elements_fill_several_messages() {
    let key = |n| KeyParts::Address(Ipv4Addr::from_bits(n).into());
    let element = |n| (ElementKey::In(Table::V4, SetId::Addresses, key(n)), ElementValue::Present);
    assert_eq!(round_trip(&(0..5_000).map(element).collect()).len(), 5_000);
}
