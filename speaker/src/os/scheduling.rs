//! Scheduling of the wire thread: short time slices, so that it runs soon after it wakes.
//!
//! This needs no privilege and takes no time from other threads: since Linux 6.12 a thread can request shorter slices
//! and gets them sooner (`sched_setattr(2)`, EEVDF). While thousands of addresses move, other threads of this process
//! and of the node are busy, and the wire thread should not wait for them. Older kernels ignore the request.
#![allow(unsafe_code)]

use std::time::Duration;

/// The shortest slice that the kernel grants (`sched_setattr(2)`). One packet takes a tenth of it.
const SLICE: Duration = Duration::from_micros(100);

/// `struct sched_attr` in its first version (linux/sched/types.h), which the libc crate lacks for some targets.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Requests short slices for this thread. If the kernel refuses, the thread runs like any other.
pub fn request_short_slices() {
    const SIZE: u32 = size_of::<Attributes>() as u32;
    const { assert!(SIZE == 48) }; // SCHED_ATTR_SIZE_VER0
    let mut own = Attributes::default();
    // SAFETY: the kernel writes at most `SIZE` bytes, which is the size of `own`, and any bytes are valid there.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut own, SIZE, 0) };
    if known != 0 || own.policy != libc::SCHED_OTHER as u32 {
        return;
    }
    own.runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    own.size = SIZE;
    // SAFETY: the kernel reads `size` bytes, which `own` has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const own, 0) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "cannot request short time slices for the wire thread");
    }
}
