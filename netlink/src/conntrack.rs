//! ctnetlink messages about tracked UDP flows: queries, answers and deletions. Pure.

use std::net::{IpAddr, SocketAddr};

use crds::service::Family;

use super::attribute::{Attributes, Writer};
use super::message::{CTNETLINK, Message, family_number};

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
/// The parts of a tuple that a filter compares.
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;

/// One tracked UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub client: SocketAddr,
    /// The destination of the client's packets.
    pub destination: SocketAddr,
    /// The source of the replies: an endpoint if the flow is translated, otherwise `destination`.
    pub replies_from: SocketAddr,
}

/// A flow in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedFlow {
    pub flow: Flow,
    /// Distinguishes flows with the same ends.
    id: u32,
    zone: Option<u16>,
}

/// Queries all UDP flows of this family; a dump. In IPv4, a `destination` limits the dump to the flows to this address.
/// In IPv6, the request has no such filter: Linux (at least up to 6.18) inverts it and would list all other flows.
/// Kernels before 5.8 ignore the filter, so the caller must always check the answers.
pub fn get_udp_flows(family: Family, destination: Option<IpAddr>) -> Message {
    let destination = destination.filter(IpAddr::is_ipv4);
    Message::new(CTNETLINK, GET, 0, family_number(family), |w| {
        w.nest(TUPLE_ORIG, |tuple| {
            if let Some(destination) = destination {
                tuple.nest(TUPLE_IP, |ip| write_address(ip, DESTINATION, destination));
            }
            tuple.nest(TUPLE_PROTO, |proto| {
                proto.u8(PROTO_NUM, UDP);
            });
        });
        let flags = if destination.is_some() { BY_PROTOCOL | BY_DESTINATION } else { BY_PROTOCOL };
        // These flags are in host byte order, unlike all other numbers.
        w.nest(FILTER, |filter| {
            filter.bytes(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        });
    })
}

/// The flow in an answer; `None` if it is not a UDP flow.
pub fn decode_flow(answer: Attributes<'_>) -> Option<TrackedFlow> {
    let (client, destination) = tuple(answer.find(TUPLE_ORIG)?.inner())?;
    let (replies_from, _) = tuple(answer.find(TUPLE_REPLY)?.inner())?;
    let id = answer.find(ID)?.u32()?;
    let zone = answer.find(ZONE).and_then(|zone| zone.u16());
    Some(TrackedFlow { flow: Flow { client, destination, replies_from }, id, zone })
}

/// Deletes exactly this flow, not another one with the same ends.
pub fn delete_flow(tracked: &TrackedFlow) -> Message {
    let Flow { client, destination, .. } = tracked.flow;
    Message::new(CTNETLINK, DELETE, 0, family_number(Family::from(client.ip())), |w| {
        w.nest(TUPLE_ORIG, |tuple| {
            tuple.nest(TUPLE_IP, |ip| {
                write_address(ip, SOURCE, client.ip());
                write_address(ip, DESTINATION, destination.ip());
            });
            tuple.nest(TUPLE_PROTO, |proto| {
                proto.u8(PROTO_NUM, UDP).u16(PROTO_SRC_PORT, client.port()).u16(PROTO_DST_PORT, destination.port());
            });
        });
        w.u32(ID, tracked.id);
        if let Some(zone) = tracked.zone {
            w.u16(ZONE, zone);
        }
    })
}

/// The attributes of an address in IPv4 and IPv6.
const SOURCE: (u16, u16) = (IP_V4_SRC, IP_V6_SRC);
const DESTINATION: (u16, u16) = (IP_V4_DST, IP_V6_DST);

fn write_address(into: &mut Writer, (v4, v6): (u16, u16), address: IpAddr) {
    match address {
        IpAddr::V4(address) => into.bytes(v4, &address.octets()),
        IpAddr::V6(address) => into.bytes(v6, &address.octets()),
    };
}

/// The source and destination of a tuple.
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
    use crate::attribute::attributes;
    use proptest::prelude::*;

    /// Three addresses of one family, each with a port.
    fn ends() -> impl Strategy<Value = [SocketAddr; 3]> {
        let v4 = any::<[([u8; 4], u16); 3]>().prop_map(|ends| ends.map(SocketAddr::from));
        let v6 = any::<[([u8; 16], u16); 3]>().prop_map(|ends| ends.map(SocketAddr::from));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn a_deletion_identifies_the_decoded_flow([client, destination, replies_from] in ends(), id: u32) {
            let tracked = TrackedFlow { flow: Flow { client, destination, replies_from }, id, zone: Some(3) };
            // A deletion has the attributes of an answer, except the source of replies.
            let mut bytes = Vec::new();
            delete_flow(&tracked).encode(1, &mut bytes);
            let mut answer = Writer::append_to(bytes.split_off(Message::HEADERS));
            answer.nest(TUPLE_REPLY, |tuple| {
                tuple.nest(TUPLE_IP, |ip| {
                    write_address(ip, SOURCE, replies_from.ip());
                    write_address(ip, DESTINATION, client.ip());
                });
                tuple.nest(TUPLE_PROTO, |proto| {
                    proto.u8(PROTO_NUM, UDP);
                    proto.u16(PROTO_SRC_PORT, replies_from.port()).u16(PROTO_DST_PORT, client.port());
                });
            });
            prop_assert_eq!(decode_flow(attributes(&answer.finish())), Some(tracked));
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_flow(attributes(&bytes));
        }
    }
}
