//! Frames to send, and the sockets they are sent by.

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// On which link, by its index.
    pub link: u32,
    /// By which of the sockets.
    pub channel: Channel,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

/// Hellos must not wait behind thousands of gratuitous ARPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// For packets to peers over IPv4.
    Hello,
    /// For packets to peers over IPv6.
    HelloV6,
    /// For ARP.
    Arp,
    /// For IPv6 neighbour discovery.
    Ndp,
}

impl Channel {
    /// All of them, those first whose frames must not wait.
    pub const ALL: [Self; 4] = [Self::Hello, Self::HelloV6, Self::Arp, Self::Ndp];
}
