//! All packet sockets of the speaker.

use std::collections::BTreeSet;
use std::io;

use crate::os::socket::PacketSocket;
use crate::wire::frame::{Channel, Frame, FrameClass};

/// The sockets of all channels.
pub struct Sockets {
    /// One for each channel, in the order of [`Channel::ALL`].
    pub prompt: [PacketSocket; Self::PROMPT],
    /// For routine Hellos over IPv4 and IPv6.
    pub routine: [PacketSocket; 2],
}

impl Sockets {
    /// The number of prompt sockets.
    pub const PROMPT: usize = Channel::ALL.len();

    pub fn open() -> io::Result<Self> {
        let [hello, hello_v6, arp, ndp] = Channel::ALL;
        let prompt = |channel| PacketSocket::open_for(channel, FrameClass::Prompt);
        let routine = |channel| PacketSocket::open_for(channel, FrameClass::Routine);
        Ok(Self {
            prompt: [prompt(hello)?, prompt(hello_v6)?, PacketSocket::open(arp)?, PacketSocket::open(ndp)?],
            routine: [routine(hello)?, routine(hello_v6)?],
        })
    }

    pub fn all(&self) -> impl Iterator<Item = &PacketSocket> {
        self.routine.iter().chain(&self.prompt)
    }

    /// Listens on exactly these links, by index.
    pub fn listen_on(&mut self, links: &BTreeSet<u32>) -> io::Result<()> {
        self.prompt.iter_mut().chain(&mut self.routine).try_for_each(|socket| socket.listen_on(links.clone()))
    }

    /// Sends frames of one channel, as many as one system call takes. Returns the number of frames sent.
    pub fn send<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<usize> {
        let mut frames = frames.peekable();
        let Some(channel) = frames.peek().map(|frame| frame.channel) else { return Ok(0) };
        let socket = self.prompt.iter().find(|socket| socket.channel() == channel);
        let socket = socket.expect("invariant: each channel has a prompt socket");
        socket.send(frames.map(|frame| (frame.link, frame.bytes.as_slice())))
    }
}
