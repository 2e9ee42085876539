//! Tracked flows in the language of ctnetlink: a question for those of UDP, the answers, and how to forget one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::attribute::{Attributes, Writer};
use super::message::{CTNETLINK, Message};
use crate::stale::Flow;

const IPV4: u8 = 2;
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

/// Asks for all flows of UDP over IPv4, or only those to one lb_ip; a dump. Kernels before 5.8 don't know the filter and
/// list everything, so the answers still have to be looked at.
pub fn get(to: Option<IpAddr>) -> Message {
    let destination = match to {
        Some(IpAddr::V4(v4)) => Some(v4),
        _ => None,
    };
    Message::new(CTNETLINK, GET, 0, IPV4, |w| {
        w.nested(TUPLE_ORIG, |tuple| {
            if let Some(destination) = destination {
                tuple.nested(TUPLE_IP, |ip| {
                    ip.bytes(IP_V4_DST, &destination.octets());
                });
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

/// The flow in an answer; `None` if it is not one of UDP over IPv4.
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
    Message::new(CTNETLINK, DELETE, 0, IPV4, |w| {
        w.nested(TUPLE_ORIG, |tuple| {
            tuple.nested(TUPLE_IP, |ip| {
                address(ip, IP_V4_SRC, client);
                address(ip, IP_V4_DST, destination);
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

fn address(into: &mut Writer, kind: u16, address: SocketAddr) {
    if let IpAddr::V4(v4) = address.ip() {
        into.bytes(kind, &v4.octets());
    }
}

/// Source and destination.
fn tuple(attributes: Attributes<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, proto) = (attributes.find(TUPLE_IP)?.inner(), attributes.find(TUPLE_PROTO)?.inner());
    (proto.find(PROTO_NUM)?.u8()? == UDP).then_some(())?;
    let end = |address: u16, port: u16| {
        let octets: [u8; 4] = ip.find(address)?.value.try_into().ok()?;
        Some(SocketAddr::from((Ipv4Addr::from_octets(octets), proto.find(port)?.u16()?)))
    };
    Some((end(IP_V4_SRC, PROTO_SRC_PORT)?, end(IP_V4_DST, PROTO_DST_PORT)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::attributes;
    use proptest::prelude::*;

    fn v4() -> impl Strategy<Value = SocketAddr> {
        any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from)
    }

    proptest! {
        #[test]
        fn what_is_forgotten_is_the_flow_that_was_read(client in v4(), destination in v4(), answers in v4(), id: u32) {
            let tracked = Tracked { flow: Flow { client, destination, answers }, id, zone: Some(3) };
            // A deletion names a flow as an answer does, but for who answers.
            let mut bytes = Vec::new();
            delete(&tracked).encode(1, &mut bytes);
            let mut answer = Writer::after(bytes.split_off(Message::HEADERS));
            answer.nested(TUPLE_REPLY, |tuple| {
                tuple.nested(TUPLE_IP, |ip| {
                    address(ip, IP_V4_SRC, answers);
                    address(ip, IP_V4_DST, client);
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
