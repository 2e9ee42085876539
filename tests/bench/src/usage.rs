//! The CPU time of a process and of one of its threads, from `/proc`.
//!
//! For the process, `stat` counts hundredths of a second, ended threads included. For a living thread, `schedstat`
//! counts nanoseconds (Documentation/scheduler/sched-stats: the first number is the time spent on a processor).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks in a second, as `/proc` counts CPU time (USER_HZ, which is 100 on every architecture we run on).
const TICKS: u64 = 100;

/// The CPU time of a process so far, and that of its threads of this name.
///
/// # Errors
/// If it has ended.
pub fn cpu(pid: i32, thread: &str) -> Result<(Duration, Duration)> {
    let gone = || format!("process {pid} has ended");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(gone)?;
    let all = of_process(&stat).with_context(|| format!("{stat:?} in stat"))?;
    let mut named = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(gone)? {
        let task = task?.path();
        // A thread may end meanwhile.
        if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread) {
            named += thread_time(&task)?;
        }
    }
    Ok((all, named))
}

/// The CPU time of the calling thread.
///
/// # Errors
/// If the kernel does not report it.
pub fn of_this_thread() -> Result<Duration> {
    thread_time(Path::new("/proc/thread-self"))
}

fn thread_time(task: &Path) -> Result<Duration> {
    let text = fs::read_to_string(task.join("schedstat"))?;
    of_thread(&text).with_context(|| format!("{text:?} in schedstat"))
}

/// User and system time in `stat` (proc(5): fields 14 and 15; the name in field 2 may have spaces).
fn of_process(text: &str) -> Option<Duration> {
    let (_, fields) = text.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = times.sum::<Result<_, _>>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The time on a processor, of the three numbers in `schedstat`.
fn of_thread(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

/// The share of one core in percent, for `spent` CPU time within `within`.
pub fn percent(spent: Duration, within: Duration) -> f64 {
    spent.as_secs_f64() / within.as_secs_f64() * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_times_are_read_in_their_units() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194560 100 0 0 0 7 2 0 0 20 0 3 0 100 1 1";
        for (what, found, expected) in [
            ("a process", of_process(stat), Some(Duration::from_millis(90))),
            ("cut off", of_process("12 (a"), None),
            ("a thread", of_thread("90000000 56104 1\n"), Some(Duration::from_millis(90))),
            ("nothing", of_thread(""), None),
        ] {
            assert_eq!(found, expected, "{what}");
        }
        assert_eq!(percent(Duration::from_millis(90), Duration::from_secs(30)), 0.3);
    }

    #[test]
    fn computing_costs_the_thread_and_its_process() {
        let (_over, wait) = std::sync::mpsc::channel::<()>();
        let spin = move || {
            let begun = std::time::Instant::now();
            let mut n = 0u64;
            while begun.elapsed() < Duration::from_millis(100) {
                n = std::hint::black_box(n.wrapping_add(1));
            }
            // The time of an ended thread is no longer reported.
            let _ = wait.recv();
        };
        std::thread::Builder::new().name("spinner".into()).spawn(spin).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let (all, named) = cpu(std::process::id() as i32, "spinner").unwrap();
            if named > Duration::ZERO && all > Duration::ZERO {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "a computing thread costs nothing: {named:?} of {all:?}");
            std::thread::yield_now();
        }
    }
}
