//! A question that is asked after each thing that happens, and not so often when much happens.
//!
//! Whether the kernel's programs have lost something takes a system call or three to find out. Nobody waits for the answer:
//! it is asked for once in a while, and once more after the last thing that happened. When nothing happens nothing is asked.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    due: Option<Instant>,
    /// It was time, and the answer was put off.
    put_off: bool,
}

impl Seldom {
    /// Is it time to ask? With `urgent` it is. With `later` it is at the next time, once, and at once.
    pub(crate) fn is_time(&mut self, urgent: bool, later: bool, now: Instant) -> bool {
        if let Some(next) = self.last.map(|last| last + EVERY).filter(|next| *next > now && !urgent) {
            self.due = Some(next);
            return false;
        }
        if later && !urgent && !self.put_off {
            (self.due, self.put_off) = (Some(now), true);
            return false;
        }
        (self.last, self.due, self.put_off) = (Some(now), None, false);
        true
    }

    /// When to come again, if this was asked for in vain.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_off_is_due_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut seldom = Seldom::default();
        assert_eq!((seldom.is_time(false, false, at(0)), seldom.due()), (true, None));
        assert_eq!((seldom.is_time(false, false, at(3)), seldom.due()), (false, Some(at(10))));
        assert_eq!((seldom.is_time(false, false, at(9)), seldom.due()), (false, Some(at(10))));
        assert_eq!((seldom.is_time(false, false, at(10)), seldom.due()), (true, None));
        assert_eq!((seldom.is_time(true, false, at(11)), seldom.due()), (true, None));
        assert_eq!((seldom.is_time(false, false, at(20)), seldom.due()), (false, Some(at(21))));
        assert_eq!((seldom.is_time(false, false, at(100)), seldom.due()), (true, None));
    }

    #[test]
    fn later_is_the_next_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut seldom = Seldom::default();
        assert_eq!((seldom.is_time(false, true, at(0)), seldom.due()), (false, Some(at(0))));
        assert_eq!((seldom.is_time(false, true, at(0)), seldom.due()), (true, None));
        assert_eq!((seldom.is_time(false, true, at(11)), seldom.due()), (false, Some(at(11))));
        assert_eq!((seldom.is_time(true, true, at(12)), seldom.due()), (true, None));
    }
}
