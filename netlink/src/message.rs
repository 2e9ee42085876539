//! Netlink messages. Each has a header with length, type and sequence number, then the header of its subsystem, then
//! attributes. The subsystem is either netfilter or routing (links, addresses, routes and rules). Pure.
//!
//! A transaction is a sequence of messages between *batch begin* and *batch end*. The kernel executes all of them or
//! none.

use crds::service::Family;
use netlink_packet_core::{
    Emitable, NLM_F_ACK_TLVS as ACK_TLVS, NLM_F_CAPPED as CAPPED, NLM_F_DUMP_INTR as INTERRUPTED,
    NLM_F_MULTIPART as MULTI, NLM_F_REQUEST as REQUEST, NLMSG_DONE, NLMSG_ERROR, ParseableParametrized,
};
pub use netlink_packet_core::{
    NLM_F_ACK as ACK, NLM_F_APPEND as APPEND, NLM_F_CREATE as CREATE, NLM_F_DUMP as DUMP, NLM_F_EXCL as EXCLUSIVE,
    NLM_F_REPLACE as REPLACE,
};
use netlink_packet_route::RouteNetlinkMessage;

use crate::attribute::{Attributes, Writer, attributes};

/// The nfnetlink subsystem nf_tables.
pub const NFTABLES: u8 = 10;
/// The nfnetlink subsystem of connection tracking.
pub const CTNETLINK: u8 = 1;

/// The length of a netlink header in bytes.
const HEADER: usize = 16;
/// The length of the netfilter header after it (struct nfgenmsg).
const FAMILY_HEADER: usize = 4;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENID: u16 = 1;
const ERROR_MESSAGE: u16 = 1;
const ERROR_OFFSET: u16 = 2;

/// A message without a sequence number. [`Message::encode`] adds the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: u16,
    flags: u16,
    /// The header of the subsystem, which begins with the family, and then the attributes.
    body: Vec<u8>,
}

impl Message {
    /// The length of all headers in a message to netfilter, in bytes.
    pub const HEADERS: usize = HEADER + FAMILY_HEADER;

    /// A message to an nfnetlink subsystem, about objects of a family (NFPROTO_*).
    pub fn new(subsystem: u8, kind: u8, flags: u16, family: u8, fill: impl FnOnce(&mut Writer)) -> Self {
        Self::with_header(u16::from_be_bytes([subsystem, kind]), flags, [family, 0, 0, 0], fill)
    }

    /// A message with this netfilter header, which begins with the family.
    fn with_header(kind: u16, flags: u16, header: [u8; FAMILY_HEADER], fill: impl FnOnce(&mut Writer)) -> Self {
        let mut writer = Writer::append_to(header.to_vec());
        fill(&mut writer);
        Self { kind, flags: flags | REQUEST, body: writer.finish() }
    }

    /// A message about links, addresses, routes or rules.
    pub fn routing(message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        Self { kind: message.message_type(), flags: flags | REQUEST, body }
    }

    /// A message that begins or ends a batch. The field `res_id` of its netfilter header is the subsystem.
    fn batch(kind: u16, fill: impl FnOnce(&mut Writer)) -> Self {
        let [high, low] = u16::from(NFTABLES).to_be_bytes();
        Self::with_header(kind, 0, [0, 0, high, low], fill)
    }

    /// Begins a transaction of nf_tables. With a generation, the kernel refuses the transaction (ERESTART) if nf_tables
    /// has changed since that generation.
    pub fn begin(generation: Option<u32>) -> Self {
        Self::batch(BATCH_BEGIN, |w| {
            if let Some(generation) = generation {
                w.u32(BATCH_GENID, generation);
            }
        })
    }

    /// Ends a transaction.
    pub fn end() -> Self {
        Self::batch(BATCH_END, |_| ())
    }

    /// The same message with these flags added.
    pub fn with_flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// The attributes of a message to netfilter.
    pub fn attributes(&self) -> Attributes<'_> {
        attributes(self.body.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// Whether the message has this type within its nfnetlink subsystem.
    pub fn is_of_kind(&self, kind: u8) -> bool {
        self.kind.to_be_bytes()[1] == kind
    }

    pub fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The length in bytes.
    pub fn size(&self) -> usize {
        HEADER + self.body.len()
    }

    /// Appends the encoded message.
    pub fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let length = u32::try_from(self.size()).expect("invariant: a message has less than 4 GiB");
        into.extend_from_slice(&length.to_ne_bytes());
        into.extend_from_slice(&self.kind.to_ne_bytes());
        into.extend_from_slice(&self.flags.to_ne_bytes());
        into.extend_from_slice(&sequence.to_ne_bytes());
        into.extend_from_slice(&0u32.to_ne_bytes());
        into.extend_from_slice(&self.body);
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The sequence number of the request.
    pub sequence: u32,
    /// Whether objects changed during the dump, so that the dump is inconsistent.
    pub interrupted: bool,
    pub body: Body<'a>,
}

/// The body of a [`Reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// An object.
    Object {
        /// The type of the message without the subsystem. In a dump it is the type that creates such an object. In a
        /// notification it can also be the type that deletes it.
        kind: u8,
        /// Whether more objects follow, up to a [`Body::End`].
        more: bool,
        /// The header of the subsystem, and then the attributes.
        payload: &'a [u8],
    },
    /// The request succeeded.
    Done,
    /// The request failed.
    Failed {
        /// The errno.
        code: i32,
        /// The kernel's explanation; `None` if it sent none.
        text: Option<&'a str>,
        /// The offset of the offending attribute in the request, in bytes.
        offset: Option<u32>,
    },
    /// The dump has ended, with this errno if it failed.
    End(i32),
}

impl<'a> Body<'a> {
    /// The attributes of an object of netfilter; none for any other reply.
    pub fn attributes(&self) -> Attributes<'a> {
        match self {
            Self::Object { payload, .. } => attributes(payload.get(FAMILY_HEADER..).unwrap_or_default()),
            _ => attributes(&[]),
        }
    }

    /// A link, address, route or rule; `None` for any other reply, and for one that cannot be decoded.
    pub fn routing(&self) -> Option<RouteNetlinkMessage> {
        let Self::Object { kind, payload, .. } = self else { return None };
        RouteNetlinkMessage::parse_with_param(payload, u16::from(*kind)).ok()
    }
}

/// AF_INET or AF_INET6.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The replies in one datagram; ends at the first truncated one.
pub fn replies(datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(u32_at(rest, 0)?).ok()?;
            let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Some(reply) = reply(message) {
                return Some(reply);
            }
        }
    })
}

/// One reply; `None` if it is empty (NLMSG_NOOP) or malformed.
fn reply(message: &[u8]) -> Option<Reply<'_>> {
    let (kind, flags) = (u16_at(message, 4)?, u16_at(message, 6)?);
    let payload = message.get(HEADER..)?;
    let body = match kind {
        NLMSG_ERROR => match i32_at(payload, 0)? {
            0 => Body::Done,
            code => {
                let extended = extended_attributes(payload, flags);
                Body::Failed {
                    code: code.saturating_neg(),
                    text: extended.find(ERROR_MESSAGE).and_then(|text| text.text()),
                    offset: extended.find(ERROR_OFFSET).and_then(|at| u32_at(at.value, 0)),
                }
            }
        },
        NLMSG_DONE => Body::End(i32_at(payload, 0).unwrap_or(0).saturating_neg()),
        // NLMSG_NOOP and NLMSG_OVERRUN, which the kernel does not send.
        kind if kind < 0x10 => return None,
        kind => {
            let [_, kind] = kind.to_be_bytes();
            Body::Object { kind, more: flags & MULTI != 0, payload }
        }
    };
    Some(Reply { sequence: u32_at(message, 8)?, interrupted: flags & INTERRUPTED != 0, body })
}

/// The extended attributes of an error. They follow a copy of the failed request: only its header, or all of it if the
/// kernel did not cap the copy.
fn extended_attributes(payload: &[u8], flags: u16) -> Attributes<'_> {
    let request = match u32_at(payload, 4).map(usize::try_from) {
        Some(Ok(length)) if flags & CAPPED == 0 => length.next_multiple_of(4),
        _ => HEADER,
    };
    let found = if flags & ACK_TLVS == 0 { None } else { payload.get(4..).and_then(|rest| rest.get(request..)) };
    attributes(found.unwrap_or_default())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_object_is_decoded_as_it_was_encoded() {
        let mut bytes = Vec::new();
        let message = Message::new(NFTABLES, 3, 0, 2, |w| {
            w.u32(1, 5);
        });
        message.encode(9, &mut bytes);
        assert_eq!(bytes.len(), message.size());
        let all: Vec<_> = replies(&bytes).collect();
        let payload = &bytes[16..];
        let body = Body::Object { kind: 3, more: false, payload };
        assert_eq!(all, vec![Reply { sequence: 9, interrupted: false, body }]);
    }

    #[test]
    fn an_error_has_the_kernel_text_and_offset() {
        let mut tlvs = Writer::default();
        tlvs.text(ERROR_MESSAGE, "no").bytes(ERROR_OFFSET, &84u32.to_ne_bytes());
        let tlvs = tlvs.finish();
        let mut bytes = Vec::new();
        let length = u32::try_from(HEADER + 4 + HEADER + tlvs.len()).expect("short");
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes.extend_from_slice(&(CAPPED | ACK_TLVS).to_ne_bytes());
        bytes.extend_from_slice(&7u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(-17i32).to_ne_bytes());
        bytes.extend_from_slice(&[0; HEADER]);
        bytes.extend_from_slice(&tlvs);
        let body = Body::Failed { code: 17, text: Some("no"), offset: Some(84) };
        assert_eq!(replies(&bytes).next(), Some(Reply { sequence: 7, interrupted: false, body }));
    }

    proptest! {
        #[test]
        fn reading_any_datagram_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for reply in replies(&bytes) {
                let _ = reply.body.attributes().count();
            }
        }
    }
}
