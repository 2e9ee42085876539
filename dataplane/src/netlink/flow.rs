//! Tracked flows in the language of ctnetlink: a question for those of UDP, the answers, and how to forget one.

use std::net::{IpAddr, SocketAddr};

use crds::service::Family;

use super::attribute::{Attributes, Writer};
use super::message::{CTNETLINK, Message};
use crate::flows::stale::Flow;

/// AF_INET and AF_INET6.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const UDP: u8 = 17;
const GET: u8 = 1;
const DELETE: u8 = 2;

// From linux/netfilter/nfnetlink_conntrack.h.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const FILTER_ORIG_FLAGS: u16 = 1;
/// The parts of a tuple that a filter looks at.
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;

/// A flow as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The flow.
    pub flow: Flow,
    /// Which one it is, of all that ever were between the same ends.
    id: u32,
    zone: Option<u16>,
}

/// Asks for all flows of UDP of this family; a dump. In IPv4 only for those to one lb_ip, if one is given: in IPv6, Linux
/// (up to 6.18 at least) takes the filter for its opposite and would list all others. Kernels before 5.8 don't know the
/// filter and list everything, so the answers have to be looked at in any case.
pub fn get(of: Family, to: Option<IpAddr>) -> Message {
    let destination = to.filter(IpAddr::is_ipv4);
    Message::new(CTNETLINK, GET, 0, family(of), |w| {
        w.nested(TUPLE_ORIG, |tuple| {
            if let Some(destination) = destination {
                tuple.nested(TUPLE_IP, |ip| address(ip, DESTINATION, destination));
            }
            tuple.nested(TUPLE_PROTO, |proto| {
                proto.u8(PROTO_NUM, UDP);
            });
        });
        let flags = if destination.is_some() { BY_PROTOCOL | BY_DESTINATION } else { BY_PROTOCOL };
        // Unlike all others, a number of the machine's own order.
        w.nested(FILTER, |filter| {
            filter.bytes(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        });
    })
}

fn family(of: Family) -> u8 {
    match of {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// The flow in an answer; `None` if it is not one of UDP.
pub fn read(answer: Attributes<'_>) -> Option<Tracked> {
    let (client, destination) = tuple(answer.find(TUPLE_ORIG)?.inner())?;
    let (answers, _) = tuple(answer.find(TUPLE_REPLY)?.inner())?;
    let id = answer.find(ID)?.u32()?;
    let zone = answer.find(ZONE).and_then(|zone| zone.u16());
    Some(Tracked { flow: Flow { client, destination, answers }, id, zone })
}

/// Makes the kernel forget a flow: exactly this one, not another that took its place.
pub fn delete(tracked: &Tracked) -> Message {
    let Flow { client, destination, .. } = tracked.flow;
    Message::new(CTNETLINK, DELETE, 0, family(Family::from(client.ip())), |w| {
        w.nested(TUPLE_ORIG, |tuple| {
            tuple.nested(TUPLE_IP, |ip| {
                address(ip, SOURCE, client.ip());
                address(ip, DESTINATION, destination.ip());
            });
            tuple.nested(TUPLE_PROTO, |proto| {
                proto.u8(PROTO_NUM, UDP).u16(PROTO_SRC_PORT, client.port()).u16(PROTO_DST_PORT, destination.port());
            });
        });
        w.u32(ID, tracked.id);
        if let Some(zone) = tracked.zone {
            w.u16(ZONE, zone);
        }
    })
}

/// The attribute of an address, in IPv4 and in IPv6.
const SOURCE: (u16, u16) = (IP_V4_SRC, IP_V6_SRC);
const DESTINATION: (u16, u16) = (IP_V4_DST, IP_V6_DST);

fn address(into: &mut Writer, (v4, v6): (u16, u16), address: IpAddr) {
    match address {
        IpAddr::V4(address) => into.bytes(v4, &address.octets()),
        IpAddr::V6(address) => into.bytes(v6, &address.octets()),
    };
}

/// Source and destination.
fn tuple(attributes: Attributes<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, proto) = (attributes.find(TUPLE_IP)?.inner(), attributes.find(TUPLE_PROTO)?.inner());
    (proto.find(PROTO_NUM)?.u8()? == UDP).then_some(())?;
    let end = |(v4, v6): (u16, u16), port: u16| {
        let address = match (ip.find(v4), ip.find(v6)) {
            (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4.value).ok()?),
            (None, v6) => IpAddr::from(<[u8; 16]>::try_from(v6?.value).ok()?),
        };
        Some(SocketAddr::new(address, proto.find(port)?.u16()?))
    };
    Some((end(SOURCE, PROTO_SRC_PORT)?, end(DESTINATION, PROTO_DST_PORT)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::attributes;
    use proptest::prelude::*;

    /// Three ends of one family.
    fn ends() -> impl Strategy<Value = [SocketAddr; 3]> {
        let v4 = any::<[([u8; 4], u16); 3]>().prop_map(|ends| ends.map(SocketAddr::from));
        let v6 = any::<[([u8; 16], u16); 3]>().prop_map(|ends| ends.map(SocketAddr::from));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_forgotten_is_the_flow_that_was_read([client, destination, answers] in ends(), id: u32) {
            let tracked = Tracked { flow: Flow { client, destination, answers }, id, zone: Some(3) };
            // A deletion names a flow as an answer does, but for who answers.
            let mut bytes = Vec::new();
            delete(&tracked).encode(1, &mut bytes);
            let mut answer = Writer::after(bytes.split_off(Message::HEADERS));
            answer.nested(TUPLE_REPLY, |tuple| {
                tuple.nested(TUPLE_IP, |ip| {
                    address(ip, SOURCE, answers.ip());
                    address(ip, DESTINATION, client.ip());
                });
                tuple.nested(TUPLE_PROTO, |proto| {
                    proto.u8(PROTO_NUM, UDP).u16(PROTO_SRC_PORT, answers.port()).u16(PROTO_DST_PORT, client.port());
                });
            });
            prop_assert_eq!(read(attributes(&answer.finish())), Some(tracked));
        }

        #[test]
        fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(attributes(&bytes));
        }
    }
}
