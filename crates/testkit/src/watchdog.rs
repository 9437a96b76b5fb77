//! A limit on how long a test runs.
//!
//! A test that holds executions and gets stuck would freeze every execution of what it marked, on the whole machine.
//! Ending the process closes the fanotify group, and the kernel lets everything go on.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::proc::Process;
use crate::scratch::{self, Scratch};

/// Ends the whole test process when it is not dropped in time. Made by [`watchdog()`].
#[must_use = "a watchdog watches until it is dropped"]
#[derive(Debug)]
pub struct Watchdog {
    // Dropping it wakes the thread.
    _alive: Sender<()>,
}

/// How many times slower than a machine of its own this one is, at most: what emulates it says so.
const SLOWNESS: &str = "CONTAINERHOOK_TEST_SLOWNESS";

/// Watches a test: when the guard is not dropped within `limit`, says what every process around is doing, cleans up
/// and aborts.
pub fn watchdog(limit: Duration) -> Watchdog {
    crate::sys::hear_hangups();
    let slowness = std::env::var(SLOWNESS).ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let limit = limit * slowness;
    let (alive, dropped) = channel::<()>();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            if dropped.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                bite(&test, limit);
            }
        })
        .expect("the watchdog's thread starts");
    Watchdog { _alive: alive }
}

fn bite(test: &str, limit: Duration) -> ! {
    // Whatever below gets stuck itself: the process ends.
    crate::sys::die_in(20);
    let mut text = format!("\nwatchdog: {test} runs longer than {limit:?}; threads of this process:\n");
    for entry in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (comm, place, call) = (read("comm"), read("wchan"), read("syscall"));
        text.push_str(&format!("  {} in {place}, system call {}\n", comm.trim(), call.trim()));
    }
    text.push_str("and processes around it:\n");
    let mut around = Process::me().descendants();
    for path in Scratch::all_in_use() {
        around.extend(scratch::Leftovers::of(&path).processes);
    }
    around.sort_unstable();
    around.dedup();
    for process in around {
        let place = process.waits_in().unwrap_or_default();
        let state = process.state().unwrap_or('?');
        text.push_str(&format!("  {} {state} in {place}: {}\n", process.0, process.args().join(" ")));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    for path in Scratch::all_in_use() {
        if let Err(error) = scratch::sweep(&path) {
            let _ = writeln!(std::io::stderr(), "watchdog: {}: {error:#}", path.display());
        }
    }
    std::process::abort();
}
