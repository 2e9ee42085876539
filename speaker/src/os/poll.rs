//! How the wire thread sleeps: until a socket is ready, the waker is used, or a deadline passes.
//!
//! The thread has no async runtime. It wakes sixty times per second to receive or send a packet, and the overhead of a
//! runtime was as large as the cost of the packets.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::unistd::pipe2;

/// The events of a descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Readable.
    Read,
    /// Readable or writable.
    ReadWrite,
}

/// The ready descriptors, one bit each. Empty after a timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u32);

impl Ready {
    /// Whether the descriptor at this index is ready.
    pub fn contains(self, at: usize) -> bool {
        self.0 & 1 << at != 0
    }
}

/// Waits until a descriptor is ready, for at most `timeout`. A descriptor with an error counts as ready, and reading it
/// returns the error.
///
/// # Errors
/// If the kernel cannot wait for the descriptors. A signal is not an error: it returns early, and no descriptor is
/// ready.
pub fn wait<const N: usize>(fds: [(BorrowedFd<'_>, Interest); N], timeout: Option<Duration>) -> io::Result<Ready> {
    const { assert!(N <= u32::BITS as usize) };
    let mut poll_fds = fds.map(|(fd, interest)| {
        let both = PollFlags::POLLIN | PollFlags::POLLOUT;
        PollFd::new(fd, if interest == Interest::ReadWrite { both } else { PollFlags::POLLIN })
    });
    match ppoll(&mut poll_fds, timeout.map(Into::into), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let ready = poll_fds.iter().enumerate().filter(|(_, fd)| fd.any().unwrap_or(true));
    Ok(Ready(ready.fold(0, |bits, (at, _)| bits | 1 << at)))
}

/// Wakes the thread that waits for its [`WakeReceiver`]. Clones wake the same thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<PipeWriter>);

/// The receiving end of a [`Waker`].
#[derive(Debug)]
pub struct WakeReceiver {
    reader: PipeReader,
    /// Without any waker left, the pipe would be readable forever.
    _waker: Waker,
}

/// A waker and its receiver.
///
/// # Errors
/// If there are no descriptors left.
pub fn waker() -> io::Result<(Waker, WakeReceiver)> {
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    let waker = Waker(Arc::new(writer.into()));
    Ok((waker.clone(), WakeReceiver { reader: reader.into(), _waker: waker }))
}

impl Waker {
    /// Wakes the receiver. Several calls before it clears the wake-up count as one.
    pub fn wake(&self) {
        // A full pipe has a pending wake-up, and a closed one has no receiver.
        let _ = (&*self.0).write(&[1]);
    }
}

impl WakeReceiver {
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Clears the pending wake-up.
    pub fn clear(&mut self) {
        let mut bytes = [0; 64];
        while self.reader.read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generous bound for an operation that takes microseconds on an idle machine.
    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn wakeups_before_a_clear_count_as_one() {
        let (waker, mut receiver) = waker().expect("a waker");
        let is_woken =
            |receiver: &WakeReceiver, timeout| wait([(receiver.as_fd(), Interest::Read)], Some(timeout)).expect("poll");
        assert!(!is_woken(&receiver, Duration::from_millis(1)).contains(0));
        let thread = std::thread::spawn(move || (0..100_000).for_each(|_| waker.wake()));
        assert!(is_woken(&receiver, BOUND).contains(0));
        thread.join().expect("the waking thread ends");
        receiver.clear();
        // Also after the last other waker is gone.
        assert!(!is_woken(&receiver, Duration::from_millis(1)).contains(0));
    }
}
