//! The kernel's clocks, as BPF programs see them, and ours.

use std::fs;
use std::time::{Duration, Instant};

/// What a time namespace adds to the kernel's clocks, in nanoseconds. BPF programs see them without.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    monotonic: i64,
    pub(super) boottime: i64,
}

impl Clock {
    /// That of this process.
    pub(crate) fn new() -> Clock {
        // Not there before Linux 5.6 and without CONFIG_TIME_NS: then nothing is added.
        Clock::parse(&fs::read_to_string("/proc/thread-self/timens_offsets").unwrap_or_default())
    }

    fn parse(text: &str) -> Clock {
        let mut clock = Clock::default();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next();
            let mut number = || fields.next().and_then(|f| f.parse::<i64>().ok()).unwrap_or(0);
            let ns = number().saturating_mul(1_000_000_000).saturating_add(number());
            match name {
                Some("monotonic") => clock.monotonic = ns,
                Some("boottime") => clock.boottime = ns,
                _ => {}
            }
        }
        clock
    }

    /// What `bpf_ktime_get_ns` returned, on this process's clock; never later than now.
    pub(crate) fn instant(&self, ktime: u64) -> Instant {
        let now = Instant::now();
        let ago = monotonic_ns().saturating_sub(ktime.saturating_add_signed(self.monotonic));
        now.checked_sub(Duration::from_nanos(ago)).unwrap_or(now)
    }
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = "monotonic           5         7\nboottime      -864000 999999999\n";
        let clock = Clock { monotonic: 5_000_000_007, boottime: -863_999_000_000_001 };
        assert_eq!(Clock::parse(text), clock);
        assert_eq!(Clock::parse(""), Clock::default());
        assert_eq!(Clock::parse("boottime x y\n\nfoo"), Clock::default());
    }

    #[test]
    fn the_present_is_the_present() {
        let clock = Clock::default();
        let before = Instant::now();
        let instant = clock.instant(monotonic_ns());
        assert!(instant <= Instant::now() && before.duration_since(instant) < Duration::from_secs(1));
        assert!(clock.instant(u64::MAX) <= Instant::now());
    }
}
