//! The trailer of a packet: additions that older speakers ignore. See [`super`].

use super::input::Input;
use crate::wire::hello::RelayRequest;

/// The size of a request for a relay.
const RELAY_REQUEST_SIZE: usize = 4 + 4 + 1;

/// The addition of the trailer with the requests for relays.
const RELAY_REQUESTS: u8 = 1;

/// At most this number of relays is requested with a packet: as many as fit the trailer.
pub const MAX_RELAY_REQUESTS: usize = (u8::MAX as usize - 2) / RELAY_REQUEST_SIZE;

/// The size of a trailer with this number of relay requests, except for its length.
pub fn encoded_size(relay_requests: usize) -> usize {
    if relay_requests == 0 { 0 } else { 2 + relay_requests * RELAY_REQUEST_SIZE }
}

pub(super) fn encode(relay_requests: &[RelayRequest], out: &mut Vec<u8>) {
    if relay_requests.is_empty() {
        return out.push(0);
    }
    let requests = &relay_requests[..relay_requests.len().min(MAX_RELAY_REQUESTS)];
    let length = (requests.len() * RELAY_REQUEST_SIZE) as u8;
    out.extend([length + 2, RELAY_REQUESTS, length]);
    for request in requests {
        out.extend(request.relay.to_be_bytes());
        out.extend(request.id.to_be_bytes());
        out.push(request.is_served.into());
    }
}

/// Reads the known additions of a trailer. An addition that is cut short ends the trailer.
pub(super) fn decode(trailer: &[u8]) -> Vec<RelayRequest> {
    let (mut input, mut relay_requests) = (Input::new(trailer), Vec::new());
    while let Ok([kind, length]) = input.take() {
        let Ok(content) = input.slice(length.into()) else { break };
        if kind == RELAY_REQUESTS {
            let mut content = Input::new(content);
            while let (Ok(relay), Ok(id), Ok([served])) = (content.u32(), content.u32(), content.take()) {
                relay_requests.push(RelayRequest { relay, id, is_served: served != 0 });
            }
        }
    }
    relay_requests
}
