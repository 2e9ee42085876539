//! What a process costs: its CPU time, and that of one of its threads. Reads `/proc`.
//!
//! The kernel counts in nanoseconds in `schedstat` (Documentation/scheduler/sched-stats: the first number is the time spent
//! on a processor). `stat` counts in hundredths of a second, which is a third of what an idle agent takes in a second.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// The CPU time of a process so far: all of it, and that of the threads of this name.
///
/// # Errors
/// If it has ended.
pub fn cpu(pid: i32, thread: &str) -> Result<(Duration, Duration)> {
    let (mut all, mut named) = (Duration::ZERO, Duration::ZERO);
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?;
    for task in tasks {
        let task = task?.path();
        // A thread may end while one looks; what it cost is lost.
        let Ok(spent) = spent(&task) else { continue };
        all += spent;
        if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread) {
            named += spent;
        }
    }
    Ok((all, named))
}

fn spent(task: &Path) -> Result<Duration> {
    let text = fs::read_to_string(task.join("schedstat"))?;
    on_processor(&text).with_context(|| format!("{text:?} in schedstat"))
}

/// The time on a processor, of the three numbers in `schedstat`.
fn on_processor(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

/// The share of a core that this is in so much time, in percent.
pub fn percent(spent: Duration, within: Duration) -> f64 {
    spent.as_secs_f64() / within.as_secs_f64() * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_processor_is_the_first_number_and_a_share_is_of_one_core() {
        assert_eq!(on_processor("90000000 56104 1\n"), Some(Duration::from_millis(90)));
        assert_eq!(on_processor(""), None);
        assert_eq!(percent(Duration::from_millis(90), Duration::from_secs(30)), 0.3);
    }

    #[test]
    fn a_process_costs_what_its_threads_cost() {
        let (_over, wait) = std::sync::mpsc::channel::<()>();
        let spin = move || {
            let begun = std::time::Instant::now();
            let mut n = 0u64;
            while begun.elapsed() < Duration::from_millis(20) {
                n = std::hint::black_box(n.wrapping_add(1));
            }
            // Its time is gone when it is.
            let _ = wait.recv();
        };
        std::thread::Builder::new().name("spinner".into()).spawn(spin).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let (all, named) = cpu(std::process::id() as i32, "spinner").unwrap();
            assert!(all >= named, "{all:?} for all, {named:?} for one");
            if named > Duration::ZERO {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "a thread that computes costs nothing");
            std::thread::yield_now();
        }
    }
}
