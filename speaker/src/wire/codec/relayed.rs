//! The wire format of packets that a relay forwards. See [`super`].

use super::input::{DecodeError, Input};
use super::{FLAGS_AT, MAGIC, MAX_PAYLOAD, ROUTINE, VERSION, read_cluster};
use crate::wire::hello::{DatagramContent, Packet, RelayedPacket};
use crds::MacAddr;

/// The kind of a forwarded packet.
const RELAYED: u8 = 3;

/// The size of the header of a relay, before the forwarded packet.
pub const RELAY_OVERHEAD: usize = FLAGS_AT as usize + 1;

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
        let mut input = Input::new(&header[12..]);
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

impl DatagramContent {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::is_routine;
    use crate::wire::codec::tests::example;
    use crate::wire::hello::RelayRequest;

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
        assert_eq!(DatagramContent::decode(&relayed.encode()), Ok(DatagramContent::Relayed(relayed.clone())));
        assert!(is_routine(&relayed.encode()), "as the forwarded packet");
        let twice = [&header[..], &relayed.encode()].concat();
        assert_eq!(DatagramContent::decode(&twice), Err(DecodeError::Invalid("kind")), "relays form no chain");
    }
}
