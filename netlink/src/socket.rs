//! The socket to netfilter or routing: transactions, commands and dumps. It belongs to the network namespace in which
//! it was opened.
//!
//! Everything here blocks, but briefly. The kernel executes a transaction within the call that sends it. A call waits
//! at most [`READ_TIMEOUT`] for an answer. An answer to an abandoned request is skipped by its sequence number.

use std::io::{self, ErrorKind};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::attribute::Attributes;
use crate::message::{ACK, Body, DUMP, Message, replies};

/// The longest wait for an answer. The kernel answers before the sending call returns, so this time should never
/// elapse.
const READ_TIMEOUT: TimeVal = TimeVal::new(5, 0);
/// The maximum number of dumps for one list. A dump is repeated if concurrent changes made it inconsistent.
const MAX_DUMPS: usize = 8;
/// The size of the buffer for one datagram. A datagram of a dump has at most 32 KiB.
const DATAGRAM: usize = 1 << 16;
/// The size of the receive buffer: a transaction can get one error for each message.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The assumed initial size of the send buffer. The default of Linux is larger (net.core.wmem_default).
const SEND_BUFFER: usize = 1 << 17;

/// Why communication with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket cannot be opened.
    #[error("opening a netlink socket failed, nothing changed")]
    Open(#[source] io::Error),
    /// The kernel did not accept the datagram. EMSGSIZE: the process lacks CAP_NET_ADMIN on the host, so it cannot
    /// enlarge the send buffer.
    #[error("sending {size} bytes to the kernel failed, nothing changed")]
    Send {
        size: usize,
        #[source]
        source: io::Error,
    },
    /// There is no answer, so it is unknown whether the kernel executed the request.
    #[error("no answer from the kernel, its state is unknown")]
    Receive(#[source] io::Error),
    #[error("the kernel refused{}, nothing changed", in_parentheses(.text))]
    Refused {
        /// The index of the refused message in the transaction; `None` for the transaction as a whole.
        message: Option<usize>,
        /// The offset of the offending attribute in that message, in bytes.
        offset: Option<u32>,
        /// The kernel's explanation.
        text: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// Changes interrupted each of [`MAX_DUMPS`] dumps.
    #[error("other programs changed the kernel's tables during each of {MAX_DUMPS} reads; Landfall changed nothing")]
    KeepsChanging,
}

fn in_parentheses(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

impl NetlinkError {
    /// The errno; `None` if the error has no errno.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Receive(source) => source.raw_os_error(),
            Self::Send { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::KeepsChanging => None,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket to netfilter, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::open_protocol(NETLINK_NETFILTER).map_err(NetlinkError::Open)
    }

    /// A socket to routing, in the network namespace of the calling thread. Its dumps apply filters.
    ///
    /// # Errors
    /// If the socket cannot be opened, or if the kernel cannot filter dumps (before 4.20).
    pub fn open_routing() -> Result<Self, NetlinkError> {
        let open = || {
            let socket = Self::open_protocol(NETLINK_ROUTE)?;
            socket.socket.set_netlink_get_strict_chk(true)?;
            io::Result::Ok(socket)
        };
        open().map_err(NetlinkError::Open)
    }

    fn open_protocol(protocol: isize) -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &READ_TIMEOUT)?;
        // With these options, an error from the kernel has an explanation and no copy of the request. They only improve
        // messages, so a failure to set them is ignored.
        let _ = (socket.set_cap_ack(true), socket.set_ext_ack(true));
        // The first option exceeds the limit of the system, but needs CAP_NET_ADMIN. The second one stays below the
        // limit.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER));
        Ok(Self { socket, sequence: 0, send_buffer: SEND_BUFFER, buffer: vec![0; DATAGRAM] })
    }

    /// Executes `messages` as one transaction of nf_tables. With a `generation`, the kernel refuses with ERESTART if
    /// nf_tables has changed since that generation.
    ///
    /// # Errors
    /// If the kernel refuses, or if there is no answer.
    pub fn transact(&mut self, messages: &[Message], generation: Option<u32>) -> Result<(), NetlinkError> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.next_sequence(messages.len() + 2);
        let number = |index: usize| first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
        let last = number(messages.len());
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::size).sum::<usize>() + 64);
        Message::begin(generation).encode(first, &mut bytes);
        for (index, message) in messages.iter().enumerate() {
            // The kernel answers each failed message. Because of the flag, it also answers the last message, after the
            // commit.
            let is_last = index + 1 == messages.len();
            let sequence = number(index + 1);
            if is_last {
                message.clone().with_flags(ACK).encode(sequence, &mut bytes)
            } else {
                message.encode(sequence, &mut bytes)
            }
        }
        Message::end().encode(last.wrapping_add(1), &mut bytes);
        self.send(&bytes)?;

        let mut refusal = None;
        self.receive(|sequence, _, body| {
            let index = sequence.wrapping_sub(first);
            if index > last.wrapping_sub(first) {
                return Ok(Next::Wait);
            }
            if let Body::Failed { code, text, offset } = body
                && refusal.is_none()
            {
                let message = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
                refusal = Some(refused_error(message, code, text, offset));
            }
            // An answer to *batch begin* is about the whole transaction, and no other answer follows it.
            Ok(if index == 0 || sequence == last { Next::Stop } else { Next::Wait })
        })?;
        refusal.map_or(Ok(()), Err)
    }

    /// Executes one request.
    ///
    /// # Errors
    /// If the kernel refuses, or if there is no answer.
    pub fn command(&mut self, message: Message) -> Result<(), NetlinkError> {
        self.exchange(&message.with_flags(ACK), |_| ()).map(|_| ())
    }

    /// Sends a query to netfilter, and decodes the attributes of the object in the answer. Returns `None` if the answer
    /// has no object.
    ///
    /// # Errors
    /// If the kernel refuses, or if there is no answer.
    pub fn query<T>(
        &mut self,
        message: Message,
        mut decode: impl FnMut(Attributes<'_>) -> T,
    ) -> Result<Option<T>, NetlinkError> {
        let mut answer = None;
        self.exchange(&message, |body| answer = Some(decode(body.attributes())))?;
        Ok(answer)
    }

    /// Lists objects, and decodes each. Starts over if the objects change meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses, if there is no answer, or if the objects keep changing.
    pub fn dump<T: IntoIterator>(
        &mut self,
        message: Message,
        mut decode: impl FnMut(Body<'_>) -> T,
    ) -> Result<Vec<T::Item>, NetlinkError> {
        let message = message.with_flags(DUMP);
        for _ in 0..MAX_DUMPS {
            let mut all = Vec::new();
            if !self.exchange(&message, |body| all.extend(decode(body)))? {
                return Ok(all);
            }
        }
        Err(NetlinkError::KeepsChanging)
    }

    /// Sends a request, and passes each object of the answer to `collect`. Returns whether the objects changed
    /// meanwhile, so that the answer is inconsistent.
    fn exchange(&mut self, message: &Message, mut collect: impl FnMut(Body<'_>)) -> Result<bool, NetlinkError> {
        let own = self.next_sequence(1);
        let mut bytes = Vec::with_capacity(message.size());
        message.encode(own, &mut bytes);
        self.send(&bytes)?;
        let mut changed = false;
        self.receive(|sequence, interrupted, body| {
            if sequence != own {
                return Ok(Next::Wait);
            }
            changed |= interrupted;
            match body {
                Body::Object { more, .. } => {
                    collect(body);
                    Ok(if more { Next::Wait } else { Next::Stop })
                }
                Body::Done | Body::End(0) => Ok(Next::Stop),
                Body::End(libc::EINTR) => {
                    changed = true;
                    Ok(Next::Stop)
                }
                Body::End(code) => Err(refused_error(Some(0), code, None, None)),
                Body::Failed { code, text, offset } => Err(refused_error(Some(0), code, text, offset)),
            }
        })?;
        Ok(changed)
    }

    /// Reserves this many sequence numbers and returns the first.
    fn next_sequence(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        // The kernel accepts a datagram only if the datagram leaves some room in the buffer.
        let wanted = bytes.len() + 4096;
        if wanted > self.send_buffer {
            // If this fails, sending reports that the buffer is too small.
            let _ = setsockopt(&self.socket, sockopt::SndBufForce, &wanted)
                .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &wanted));
            self.send_buffer = wanted;
        }
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Send { size: bytes.len(), source }),
            }
        }
    }

    /// Calls `each` with every reply (sequence number, whether a dump was interrupted, body) until it returns
    /// [`Next::Stop`].
    fn receive(
        &mut self,
        mut each: impl FnMut(u32, bool, Body<'_>) -> Result<Next, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        loop {
            let length = match self.socket.recv(&mut self.buffer.as_mut_slice(), 0) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // ENOBUFS: answers were lost. Timeout: no answer came. Either way the result is unknown.
                Err(error) => return Err(NetlinkError::Receive(error)),
            };
            for reply in replies(&self.buffer[..length]) {
                if let Next::Stop = each(reply.sequence, reply.interrupted, reply.body)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether more replies are needed.
enum Next {
    Wait,
    Stop,
}

fn refused_error(message: Option<usize>, code: i32, text: Option<&str>, offset: Option<u32>) -> NetlinkError {
    NetlinkError::Refused { message, offset, text: text.map(str::to_owned), source: io::Error::from_raw_os_error(code) }
}
