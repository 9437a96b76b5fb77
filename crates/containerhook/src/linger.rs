//! How long a thread waits awake before it sleeps.
//!
//! What a held execution waits for goes through several threads, and being woken is a part of what each takes: see
//! `docs/benchmarks.md` for how large. So a thread that is likely to be needed at once looks again for a moment before it
//! sleeps, and lets whoever is runnable on its processor go first each time.
//!
//! Whether it is likely is learned from the last times, much as the kernel's haltpoll does: after a few waits in a row
//! that took longer than the limit none is awake any more, until one was shorter. So a handler that takes long costs a few
//! limits of processor time in all, not one for each container.

use std::time::{Duration, Instant};

/// Of the waits for one container some are long in any case: the one for the next container, and the handler's.
const MISSES: u8 = 4;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Linger {
    most: Duration,
    /// Waits in a row that took longer.
    missed: u8,
}

impl Linger {
    /// Zero is never.
    pub(crate) fn new(most: Duration) -> Linger {
        Linger { most, missed: 0 }
    }

    /// How long the next wait may be awake.
    pub(crate) fn awake(&self) -> Duration {
        if self.missed < MISSES { self.most } else { Duration::ZERO }
    }

    /// What was waited for came after this long.
    pub(crate) fn came_after(&mut self, waited: Duration) {
        self.missed = if waited <= self.most { 0 } else { self.missed.saturating_add(1) };
    }
}

/// Looks until it is there, or for as long as `awake`. Whatever else is runnable on this processor goes first.
pub(crate) fn look<T>(awake: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    if awake.is_zero() {
        return None;
    }
    let until = Instant::now() + awake;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn what_always_comes_late_is_not_waited_for_awake() {
        let mut linger = Linger::new(us(50));
        let mut awake_after = |waits: &[u64]| {
            waits.iter().for_each(|wait| linger.came_after(us(*wait)));
            linger.awake() == us(50)
        };
        assert!(awake_after(&[]));
        assert!(awake_after(&[10_000, 51, 10_000]));
        assert!(!awake_after(&[51]));
        assert!(!awake_after(&[10_000; 1000]));
        assert!(awake_after(&[50]));
        assert!(awake_after(&[10_000, 10_000, 10_000, 0, 10_000, 10_000, 10_000]));
    }

    #[test]
    fn never_stays_never() {
        let mut linger = Linger::new(Duration::ZERO);
        linger.came_after(Duration::ZERO);
        assert_eq!(linger.awake(), Duration::ZERO);
        assert_eq!(look(linger.awake(), || Some(())), None);
    }

    #[test]
    fn a_look_ends() {
        let mut count = 0;
        let third = || {
            count += 1;
            (count == 3).then_some(count)
        };
        assert_eq!(look(Duration::from_secs(10), third), Some(3));
        assert_eq!(look(us(10), || None::<()>), None);
    }
}
