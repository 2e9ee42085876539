//! How the thread of the wire sleeps: until a socket has something, somebody rings, or the time has come.
//!
//! It has no async runtime. Sixty times a second it wakes for a packet or to send one, and what a runtime does around that
//! cost as much as the packets themselves.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::unistd::pipe2;

/// Why a descriptor is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Something may come in.
    Reading,
    /// Something may come in, and there may be room to send.
    Both,
}

/// Which of the descriptors that were waited for are ready, one bit each. None: the time has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u32);

impl Ready {
    /// Whether this one is.
    pub fn has(self, at: usize) -> bool {
        self.0 & 1 << at != 0
    }
}

/// Sleeps until one of these is ready, but no longer than `most`. An error of a descriptor counts as ready: whoever reads
/// it is told.
///
/// # Errors
/// If the kernel can't wait for these. A signal is none: then nothing is ready, and it isn't late either.
pub fn sleep<const N: usize>(fds: [(BorrowedFd<'_>, For); N], most: Option<Duration>) -> io::Result<Ready> {
    const { assert!(N <= u32::BITS as usize) };
    let mut asked = fds.map(|(fd, why)| {
        let both = PollFlags::POLLIN | PollFlags::POLLOUT;
        PollFd::new(fd, if why == For::Both { both } else { PollFlags::POLLIN })
    });
    match ppoll(&mut asked, most.map(Into::into), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let ready = asked.iter().enumerate().filter(|(_, fd)| fd.any().unwrap_or(true));
    Ok(Ready(ready.fold(0, |bits, (at, _)| bits | 1 << at)))
}

/// Wakes the thread that sleeps by it. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Bell(Arc<PipeWriter>);

/// What a [`Bell`] is heard by.
#[derive(Debug)]
pub struct Ear {
    reader: PipeReader,
    /// Without any bell left, the pipe would be ready for ever.
    _bell: Bell,
}

/// A bell, and who hears it.
///
/// # Errors
/// If there are no descriptors left.
pub fn bell() -> io::Result<(Bell, Ear)> {
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    let bell = Bell(Arc::new(writer.into()));
    Ok((bell.clone(), Ear { reader: reader.into(), _bell: bell }))
}

impl Bell {
    /// Rings. It is heard once, however often it rang since it was heard last.
    pub fn ring(&self) {
        // Where there is no room, it rings already; where nobody hears, nobody needs to.
        let _ = (&*self.0).write(&[1]);
    }
}

impl Ear {
    /// What to wait for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Hears it: it is quiet then until it rings again.
    pub fn hear(&mut self) {
        let mut rung = [0; 64];
        while self.reader.read(&mut rung).is_ok_and(|count| count == rung.len()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long anything may take that takes microseconds, on a machine that does something else.
    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn a_bell_wakes_who_sleeps_and_is_heard_once_however_often_it_rang() {
        let (bell, mut ear) = bell().expect("a bell");
        let wait = |ear: &Ear, most| sleep([(ear.as_fd(), For::Reading)], Some(most)).expect("sleep");
        assert!(!wait(&ear, Duration::from_millis(1)).has(0));
        let ringer = std::thread::spawn(move || (0..100_000).for_each(|_| bell.ring()));
        assert!(wait(&ear, SOON).has(0));
        ringer.join().expect("it rings");
        ear.hear();
        // Also when nobody is left who could ring.
        assert!(!wait(&ear, Duration::from_millis(1)).has(0));
    }
}
