//! The wire format of relays: the requests in the trailer of a packet, and forwarded packets. See [`super`].

use super::{DecodeError, FLAGS_AT, Input, MAGIC, MAX_PAYLOAD, ROUTINE, VERSION, read_cluster, size};
use crate::wire::hello::{Message, Packet, RelayRequest, RelayedPacket};
use crds::MacAddr;

/// The kind of a forwarded packet.
const RELAYED: u8 = 3;

/// The size of the header of a relay, before the forwarded packet.
pub const RELAY_OVERHEAD: usize = FLAGS_AT as usize + 1;

/// The addition of the trailer with the requests for relays.
const RELAY_REQUESTS: u8 = 1;

/// At most this number of relays is requested with a packet: as many as fit the trailer.
pub const MAX_RELAY_REQUESTS: usize = (u8::MAX as usize - 2) / size::RELAY_REQUEST;

impl RelayedPacket {
    pub fn encode(&self) -> Vec<u8> {
        let Self { incarnation, sequence, mac, packet } = self;
        let mut out = Vec::with_capacity(MAX_PAYLOAD);
        out.extend(MAGIC);
        out.extend([VERSION, RELAYED]);
        out.extend(packet.cluster.to_be_bytes());
        out.extend(incarnation.to_be_bytes());
        out.extend(sequence.to_be_bytes());
        // The fields of a Hello that a relay does not need: part and interval.
        out.extend([0; 4]);
        out.extend(mac.octets());
        out.push(if packet.routine { ROUTINE } else { 0 });
        debug_assert_eq!(out.len(), RELAY_OVERHEAD);
        out.extend(packet.encode());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cluster = read_cluster(bytes)?;
        let (header, forwarded) = bytes.split_at_checked(RELAY_OVERHEAD).ok_or(DecodeError::Short)?;
        let mut input = Input(&header[12..]);
        let (incarnation, sequence) = (input.u64()?, input.u64()?);
        input.slice(4)?;
        let mac = MacAddr::from(input.take()?);
        let packet = Packet::decode(forwarded)?;
        if packet.cluster != cluster {
            return Err(DecodeError::Invalid("cluster of the forwarded packet"));
        }
        Ok(Self { incarnation, sequence, mac, packet })
    }
}

impl Message {
    /// Decodes the content of a datagram.
    ///
    /// # Errors
    /// If the bytes are neither a packet nor a forwarded one. See [`Packet::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.get(3) == Some(&RELAYED) {
            return RelayedPacket::decode(bytes).map(Self::Relayed);
        }
        Packet::decode(bytes).map(Self::Packet)
    }
}

/// The size of a trailer with this number of relay requests, except for its length.
pub fn trailer_size(relay_requests: usize) -> usize {
    if relay_requests == 0 { 0 } else { 2 + relay_requests * size::RELAY_REQUEST }
}

pub(super) fn encode_trailer(relay_requests: &[RelayRequest], out: &mut Vec<u8>) {
    if relay_requests.is_empty() {
        return out.push(0);
    }
    let requests = &relay_requests[..relay_requests.len().min(MAX_RELAY_REQUESTS)];
    let length = (requests.len() * size::RELAY_REQUEST) as u8;
    out.extend([length + 2, RELAY_REQUESTS, length]);
    for request in requests {
        out.extend(request.relay.to_be_bytes());
        out.extend(request.id.to_be_bytes());
        out.push(request.is_served.into());
    }
}

/// Reads the known additions of a trailer. An addition that is cut short ends the trailer.
pub(super) fn decode_trailer(trailer: &[u8]) -> Vec<RelayRequest> {
    let (mut input, mut relay_requests) = (Input(trailer), Vec::new());
    while let Ok([kind, length]) = input.take() {
        let Ok(content) = input.slice(length.into()) else { break };
        if kind == RELAY_REQUESTS {
            let mut content = Input(content);
            while let (Ok(relay), Ok(id), Ok([served])) = (content.u32(), content.u32(), content.take()) {
                relay_requests.push(RelayRequest { relay, id, is_served: served != 0 });
            }
        }
    }
    relay_requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::is_routine;
    use crate::wire::codec::tests::example;

    #[test]
    fn relay_request_and_relayed_packet_have_the_golden_bytes() {
        let request = RelayRequest { relay: 16, id: 17, is_served: true };
        let packet = Packet { relay_requests: vec![request], ..example() };
        let trailer = [11, 1, 9, 0, 0, 0, 16, 0, 0, 0, 17, 1];
        let bytes = packet.encode();
        assert_eq!(bytes[bytes.len() - trailer.len()..], trailer);
        let mac = MacAddr(2, 0, 0, 0, 0, 9);
        let relayed = RelayedPacket { incarnation: 18, sequence: 19, mac, packet };
        #[rustfmt::skip]
        let header = [
            b'L', b'F', 2, 3,
            1, 2, 3, 4, 5, 6, 7, 8,
            0, 0, 0, 0, 0, 0, 0, 18,
            0, 0, 0, 0, 0, 0, 0, 19,
            0, 0, 0, 0, 2, 0, 0, 0, 0, 9, 4,
        ];
        assert_eq!(relayed.encode(), [&header[..], &bytes].concat());
        assert_eq!(Message::decode(&relayed.encode()), Ok(Message::Relayed(relayed.clone())));
        assert!(is_routine(&relayed.encode()), "as the forwarded packet");
        let twice = [&header[..], &relayed.encode()].concat();
        assert_eq!(Message::decode(&twice), Err(DecodeError::Invalid("kind")), "a relay forwards what it hears itself");
    }
}
