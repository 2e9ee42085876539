//! All packet sockets of the speaker.

use std::collections::BTreeSet;
use std::io;

use crate::os::socket::PacketSocket;
use crate::wire::frame::{Channel, Frame, FrameClass};

/// One socket for each of [`Sockets::CLASSES`].
pub struct Sockets(Vec<PacketSocket>);

impl Sockets {
    /// The frames that each socket receives. The sockets are read in this order. Hellos come first, so that a flood of
    /// other frames makes no peer look dead.
    const CLASSES: [(Channel, FrameClass); 6] = [
        (Channel::Hello, FrameClass::Routine),
        (Channel::HelloV6, FrameClass::Routine),
        (Channel::Hello, FrameClass::Prompt),
        (Channel::HelloV6, FrameClass::Prompt),
        (Channel::Arp, FrameClass::All),
        (Channel::Ndp, FrameClass::All),
    ];

    pub const COUNT: usize = Self::CLASSES.len();

    pub fn open() -> io::Result<Self> {
        let sockets = Self::CLASSES.into_iter().map(|(channel, class)| PacketSocket::open(channel, class));
        sockets.collect::<io::Result<_>>().map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PacketSocket> {
        self.0.iter()
    }

    /// Listens on exactly these links, by index.
    pub fn listen_on(&mut self, links: &BTreeSet<u32>) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|socket| socket.listen_on(links.clone()))
    }

    /// Sends frames of one channel, as many as one system call takes. Returns the number of frames sent.
    pub fn send<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> io::Result<usize> {
        let mut frames = frames.peekable();
        let Some(channel) = frames.peek().map(|frame| frame.channel) else { return Ok(0) };
        let socket = self.0.iter().find(|socket| socket.channel == channel && !socket.is_routine());
        let socket = socket.expect("invariant: each channel has such a socket");
        socket.send(frames.map(|frame| (frame.link, frame.bytes.as_slice())))
    }
}
