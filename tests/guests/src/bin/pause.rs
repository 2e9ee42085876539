//! Holds a pod's namespaces open and reaps orphaned processes in them, until SIGTERM or SIGINT.
//!
//! It is also process 1 of each node of the lab, for the same purpose.
#![allow(unsafe_code)]

fn main() {
    // SAFETY: the set is initialised by sigemptyset before use, and the other calls take only plain integers and
    // pointers to locals that outlive them. The signals are blocked first, so none can be lost between two waits.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
            libc::sigaddset(&mut signals, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        loop {
            // Includes children that ended before the signals were blocked.
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            let mut signal = 0;
            libc::sigwait(&signals, &mut signal);
            if signal != libc::SIGCHLD {
                return;
            }
        }
    }
}
