//! What the thread of the wire asks of the scheduler: to have its turn soon when it wakes, and not for long.
//!
//! It needs no right for that, and takes nothing from others: since Linux 6.12 a thread may ask for shorter slices, and gets
//! them sooner for it (`sched_setattr(2)`, EEVDF). Where thousands of addresses change hands, the rest of this process and its
//! neighbours have much to compute, and the wire should not wait behind them. Older kernels ignore the wish.
#![allow(unsafe_code)]

use std::time::Duration;

/// The shortest slice that the kernel gives (`sched_setattr(2)`); one packet takes a tenth of it.
const SLICE: Duration = Duration::from_micros(100);

/// `struct sched_attr` in its first version (linux/sched/types.h), which the libc crate doesn't have for every target.
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

/// Asks that for this thread. What is refused is no harm: it goes on as any other.
pub fn ask() {
    const SIZE: u32 = size_of::<Attributes>() as u32;
    const { assert!(SIZE == 48) }; // SCHED_ATTR_SIZE_VER0
    let mut own = Attributes::default();
    // SAFETY: the kernel writes no more than `SIZE` bytes, which `own` has; any bytes are valid there.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut own, SIZE, 0) };
    if known != 0 || own.policy != libc::SCHED_OTHER as u32 {
        return;
    }
    own.runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    own.size = SIZE;
    // SAFETY: the kernel reads as many bytes as `size` says, which `own` has.
    let asked = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const own, 0) };
    if asked != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the scheduler doesn't let the wire go first");
    }
}
