//! How the wire thread sleeps: until a socket is ready, the waker is used, or a deadline passes.
//!
//! The thread has no async runtime. On a link with few speakers it wakes twenty times per second to send a Hello, and
//! also for each frame that cannot wait. The measured overhead of a runtime was as large as the cost of the packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Waits until one of the descriptors is ready, for at most `timeout`. Returns for each descriptor whether it is ready.
/// A descriptor with an error counts as ready, and the next read returns the error.
///
/// # Errors
/// If the kernel cannot wait for the descriptors. A signal is not an error: it returns early, and no descriptor is
/// ready.
pub fn wait<'a>(fds: impl IntoIterator<Item = PollFd<'a>>, timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = fds.into_iter().collect();
    match ppoll(&mut fds, timeout.map(Into::into), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(error) => Err(error.into()),
    }
}

/// Wakes the thread that waits for it. All clones are the same waker.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A waker without a pending wake-up.
    ///
    /// # Errors
    /// If the process may open no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)))
    }

    /// Wakes the thread. Several calls before it clears the wake-up count as one.
    pub fn wake(&self) {
        // The write fails only if more wake-ups are pending than fit a u64.
        let _ = self.0.write(1);
    }

    /// Clears the pending wake-up.
    pub fn clear(&self) {
        // The read fails if no wake-up is pending.
        let _ = self.0.read();
    }

    /// The descriptor to wait for. It is readable while a wake-up is pending.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::PollFlags;

    use super::*;

    /// A generous bound for an operation that takes microseconds on an idle machine.
    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn wakeups_before_a_clear_count_as_one() {
        let waker = Waker::new().expect("a waker");
        let is_woken = |timeout| {
            let fds = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
            wait(fds, Some(timeout)).expect("poll")[0]
        };
        assert!(!is_woken(Duration::from_millis(1)));
        let other = waker.clone();
        let thread = std::thread::spawn(move || (0..100_000).for_each(|_| other.wake()));
        assert!(is_woken(BOUND));
        thread.join().expect("the waking thread ends");
        waker.clear();
        // The drop of the other waker is no wake-up.
        assert!(!is_woken(Duration::from_millis(1)));
    }
}
