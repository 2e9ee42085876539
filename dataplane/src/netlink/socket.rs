//! The socket to netfilter, or to routing: transactions, commands and dumps. Touches the kernel of the network namespace it was opened in.
//!
//! Everything here blocks, but not for long: the kernel does a transaction inside of the call that sends it, and no
//! answer is waited for longer than [`PATIENCE`]. An answer to an older question (one that was given up) is skipped by
//! its number.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Type};

use super::attribute::Attributes;
use super::message::{ACK, Body, DUMP, Message, replies};

/// How long to wait for an answer. The kernel answers before the sending call returns; this is for what can't be.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to repeat a dump that others' changes made worthless, before giving up for now.
const ATTEMPTS: usize = 8;
/// Room for one datagram from the kernel, which makes none above 32 KiB in a dump.
const DATAGRAM: usize = 1 << 16;
/// Room for answers in the kernel: a transaction that goes wrong all over gets one error for each message.
const RECEIVE_BUFFER: usize = 1 << 20;
/// What a socket can send at once when nobody asks for more.
const SEND_BUFFER: usize = 1 << 17;

/// Dumps heed their filters (NETLINK_GET_STRICT_CHK).
const STRICT_CHECK: i32 = 12;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("opening a netlink socket failed, nothing changed")]
    Open(#[source] io::Error),
    /// The kernel did not take it. EMSGSIZE: the process lacks CAP_NET_ADMIN over the host, without which no buffer
    /// may be large enough.
    #[error("sending {size} bytes to the kernel failed, nothing changed")]
    Send {
        /// How many bytes were to be sent at once.
        size: usize,
        /// Why it was not taken.
        #[source]
        source: io::Error,
    },
    /// No answer. Whatever was asked may have been done or not.
    #[error("no answer from the kernel, what it did is unknown")]
    Receive(#[source] io::Error),
    /// The kernel refuses, and changed nothing.
    #[error("the kernel refused{}, nothing changed", words(.said))]
    Refused {
        /// Which message of the transaction it refuses, counted from 0; `None` if it is the transaction as a whole.
        message: Option<usize>,
        /// Where in that message, in bytes from its beginning.
        offset: Option<u32>,
        /// What the kernel says.
        said: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// What was read changed again and again while being read.
    #[error("the kernel's tables changed {ATTEMPTS} times while being read, nothing changed")]
    Restless,
}

fn words(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

impl Error {
    /// The errno behind it.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Receive(source) => source.raw_os_error(),
            Self::Send { source, .. } | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Restless => None,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    socket: socket2::Socket,
    sequence: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket to netfilter in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel has none for us.
    pub fn open() -> Result<Self, Error> {
        Self::to(libc::NETLINK_NETFILTER)
    }

    /// A socket to routing in the network namespace of the calling thread. Dumps heed what they are asked for.
    ///
    /// # Errors
    /// If the kernel has none for us, or does not know filters of dumps (it has since 4.20).
    pub fn open_routing() -> Result<Self, Error> {
        let socket = Self::to(libc::NETLINK_ROUTE)?;
        set(&socket.socket, libc::SOL_NETLINK, STRICT_CHECK, 1).map_err(Error::Open)?;
        Ok(socket)
    }

    fn to(protocol: i32) -> Result<Self, Error> {
        let protocol = Some(Protocol::from(protocol));
        let socket = socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol).map_err(Error::Open)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(Error::Open)?;
        // An error should not carry the whole request back, but say what is wrong with it: both only help to explain.
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            let _ = set(&socket, libc::SOL_NETLINK, option, 1);
        }
        let _ = force(&socket, (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), RECEIVE_BUFFER);
        Ok(Self { socket, sequence: 0, send_buffer: SEND_BUFFER, buffer: vec![0; DATAGRAM] })
    }

    /// Does all of `messages` or nothing, as one transaction of nf_tables. With a `generation`, only if nothing in
    /// nf_tables has changed since; otherwise the errno is ERESTART.
    ///
    /// # Errors
    /// If the kernel refuses, which message it refuses; or if it can't be known what it did.
    pub fn transact(&mut self, messages: &[Message], generation: Option<u32>) -> Result<(), Error> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.next_sequence(messages.len() + 2);
        let number = |index: usize| first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
        let last = number(messages.len());
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::size).sum::<usize>() + 64);
        Message::begin(generation).encode(first, &mut bytes);
        for (index, message) in messages.iter().enumerate() {
            // The kernel answers to what goes wrong, and to the last message in any case, after it has committed.
            let is_last = index + 1 == messages.len();
            let sequence = number(index + 1);
            if is_last {
                message.clone().with(ACK).encode(sequence, &mut bytes)
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
            if let Body::Failed { code, said, offset } = body
                && refusal.is_none()
            {
                let message = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
                refusal = Some(refused(message, code, said, offset));
            }
            // An answer to the beginning is about the whole, and the last one.
            Ok(if index == 0 || sequence == last { Next::Stop } else { Next::Wait })
        })?;
        refusal.map_or(Ok(()), Err)
    }

    /// Sends one message and waits until it is done.
    ///
    /// # Errors
    /// If the kernel refuses, or if it can't be known what it did.
    pub fn command(&mut self, message: Message) -> Result<(), Error> {
        self.ask(message.with(ACK), |_| ()).map(|_| ())
    }

    /// Sends one question and returns what `read` makes of the object that answers, if one does.
    ///
    /// # Errors
    /// If the kernel refuses, or doesn't answer.
    pub fn ask<T>(&mut self, message: Message, mut read: impl FnMut(Attributes<'_>) -> T) -> Result<Option<T>, Error> {
        self.ask_for(message, |body| read(body.attributes()))
    }

    /// The same, with all that stands behind netlink's own header.
    ///
    /// # Errors
    /// As [`Socket::ask`].
    pub fn ask_routing<T>(&mut self, message: Message, read: impl Fn(&[u8]) -> T) -> Result<Option<T>, Error> {
        self.ask_for(message, |body| read(body.payload()))
    }

    fn ask_for<T>(&mut self, message: Message, mut read: impl FnMut(Body<'_>) -> T) -> Result<Option<T>, Error> {
        let own = self.next_sequence(1);
        let mut bytes = Vec::with_capacity(message.size());
        message.encode(own, &mut bytes);
        self.send(&bytes)?;
        let mut answer = None;
        self.receive(|sequence, _, body| match body {
            _ if sequence != own => Ok(Next::Wait),
            Body::Object { .. } => {
                answer = Some(read(body));
                Ok(Next::Stop)
            }
            Body::Failed { code, said, offset } => Err(refused(Some(0), code, said, offset)),
            Body::Done | Body::End(_) => Ok(Next::Stop),
        })?;
        Ok(answer)
    }

    /// Lists objects: what `read` makes of each. Begins again when the kernel says that they changed meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses, doesn't answer, or the objects don't come to rest.
    pub fn dump<T>(&mut self, message: Message, mut read: impl FnMut(Attributes<'_>) -> T) -> Result<Vec<T>, Error> {
        self.dump_all(message, |body| read(body.attributes()))
    }

    /// The same, with all that stands behind netlink's own header.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn dump_routing<T>(&mut self, message: Message, read: impl Fn(&[u8]) -> T) -> Result<Vec<T>, Error> {
        self.dump_all(message, |body| read(body.payload()))
    }

    fn dump_all<T>(&mut self, message: Message, mut read: impl FnMut(Body<'_>) -> T) -> Result<Vec<T>, Error> {
        let message = message.with(DUMP);
        for _ in 0..ATTEMPTS {
            let own = self.next_sequence(1);
            let mut bytes = Vec::with_capacity(message.size());
            message.encode(own, &mut bytes);
            self.send(&bytes)?;
            let (mut objects, mut changed) = (Vec::new(), false);
            self.receive(|sequence, interrupted, body| {
                if sequence != own {
                    return Ok(Next::Wait);
                }
                changed |= interrupted;
                match body {
                    Body::Object { more, .. } => {
                        objects.push(read(body));
                        Ok(if more { Next::Wait } else { Next::Stop })
                    }
                    Body::Done | Body::End(0) => Ok(Next::Stop),
                    Body::End(libc::EINTR) => {
                        changed = true;
                        Ok(Next::Stop)
                    }
                    Body::End(code) => Err(refused(Some(0), code, None, None)),
                    Body::Failed { code, said, offset } => Err(refused(Some(0), code, said, offset)),
                }
            })?;
            if !changed {
                return Ok(objects);
            }
        }
        Err(Error::Restless)
    }

    /// Sets aside this many sequence numbers and returns the first.
    fn next_sequence(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // The kernel takes a datagram if it fits the buffer with some room to spare.
        let wanted = bytes.len() + 4096;
        if wanted > self.send_buffer {
            // Not fatal by itself: if the buffer is too small, sending says so.
            let _ = force(&self.socket, (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), wanted);
            self.send_buffer = wanted;
        }
        loop {
            match self.socket.send(bytes) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Send { size: bytes.len(), source }),
            }
        }
    }

    /// Gives every reply to `each` (sequence number, whether a dump was interrupted, body) until it says to stop.
    fn receive(&mut self, mut each: impl FnMut(u32, bool, Body<'_>) -> Result<Next, Error>) -> Result<(), Error> {
        loop {
            let length = match (&self.socket).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // ENOBUFS: answers were lost. Timed out: there was none. Either way nobody knows.
                Err(error) => return Err(Error::Receive(error)),
            };
            for reply in replies(&self.buffer[..length]) {
                if let Next::Stop = each(reply.sequence, reply.interrupted, reply.body)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether there is more to come.
enum Next {
    Wait,
    Stop,
}

fn refused(message: Option<usize>, code: i32, said: Option<&str>, offset: Option<u32>) -> Error {
    Error::Refused { message, offset, said: said.map(str::to_owned), source: io::Error::from_raw_os_error(code) }
}

/// Sets the size of a buffer: beyond the system's limit if we may, else up to it.
fn force(socket: &socket2::Socket, (forced, plain): (i32, i32), size: usize) -> io::Result<()> {
    let size = i32::try_from(size).unwrap_or(i32::MAX);
    set(socket, libc::SOL_SOCKET, forced, size).or_else(|_| set(socket, libc::SOL_SOCKET, plain, size))
}

fn set(socket: &socket2::Socket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).expect("invariant: four bytes");
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the pointer leads to `length` readable
    // bytes, which the kernel copies before the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
