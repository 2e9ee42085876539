//! Frames, and the channels to send them on.

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The index of the link.
    pub link: u32,
    pub channel: Channel,
    /// The whole frame, with the Ethernet header.
    pub bytes: Vec<u8>,
}

/// A kind of frame. Each has its own sockets, so that Hellos do not wait behind thousands of gratuitous ARP frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Hellos over IPv4.
    Hello,
    /// Hellos over IPv6.
    HelloV6,
    Arp,
    Ndp,
}

/// The frames of a channel that a socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameClass {
    /// All frames.
    All,
    /// Routine Hellos ([`crate::wire::codec::is_routine`]), which need not wake the receiver. The socket reports their
    /// time of arrival.
    Routine,
    /// All frames of the channel that are not routine Hellos.
    Prompt,
}
