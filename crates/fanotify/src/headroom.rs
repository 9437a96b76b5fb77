//! Whether the descriptor table has so much room that other threads cannot fill it between this look and a read.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::sys;

/// How much room is wanted, and where it was seen last.
pub(crate) struct Headroom {
    wanted: usize,
    /// A number above which as many as are wanted were free, and that was free itself.
    ///
    /// The kernel gives the lowest free number. As long as this one is free nothing above it can have been given away, but
    /// for what was and has come back.
    clear: Option<RawFd>,
}

impl Headroom {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { wanted, clear: None }
    }

    /// Whether there is that much room in this thread's table now. `any` is anything that is open in it.
    ///
    /// In a limit that is too low for it half of the limit is asked for.
    pub(crate) fn is_there(&mut self, any: BorrowedFd<'_>) -> bool {
        if let Some(clear) = self.clear
            && is_free(any, clear)
        {
            return true;
        }
        let limit = sys::descriptor_limit();
        // And one for the event.
        let wanted = self.wanted.min(limit / 2) + 1;
        // All below this one are in use.
        let Ok(lowest) = sys::duplicate_from(any, 0) else {
            self.clear = None;
            return false;
        };
        let lowest = lowest.as_raw_fd() as usize;
        let room = survey(lowest..limit, wanted, |number| number != lowest && sys::is_open(number as RawFd));
        self.clear = room.clear.map(|number| number as RawFd);
        room.enough
    }
}

/// Whether this number is free. An error is a limit that has been lowered.
fn is_free(any: BorrowedFd<'_>, number: RawFd) -> bool {
    sys::duplicate_from(any, number).is_ok_and(|taken| taken.as_raw_fd() == number)
}

#[derive(Debug, PartialEq, Eq)]
struct Room {
    enough: bool,
    /// Half-way in a row of twice as many free numbers as are wanted: some may be taken before it is.
    clear: Option<usize>,
}

/// Looks no further than it takes to know.
fn survey(numbers: Range<usize>, wanted: usize, is_open: impl Fn(usize) -> bool) -> Room {
    let (mut free, mut row) = (0, 0);
    for number in numbers {
        if is_open(number) {
            row = 0;
            continue;
        }
        free += 1;
        row += 1;
        if row == 2 * wanted {
            return Room { enough: true, clear: Some(number + 1 - wanted) };
        }
        // No row that long is near.
        if free >= 4 * wanted {
            break;
        }
    }
    Room { enough: free >= wanted, clear: None }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_a_table_has_room_for() {
        let room = |enough, clear| Room { enough, clear };
        for (open, limit, found) in [
            // Nothing is open: 0 to 3 may be taken, 4 to 7 are what is wanted.
            (&[][..], 100, room(true, Some(4))),
            (&[0, 1, 2, 5], 100, room(true, Some(10))),
            // A row of eight is not there, and four are free all the same.
            (&[0, 1, 2, 5], 10, room(true, None)),
            (&[0, 1, 2, 5, 7], 9, room(true, None)),
            (&[0, 1, 2, 5, 7], 8, room(false, None)),
            (&[0, 1, 2, 3], 4, room(false, None)),
            // Every other number: it is not looked for a row to the end.
            (&[0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32], 100, room(true, None)),
        ] {
            assert_eq!(survey(0..limit, 4, |number| open.contains(&number)), found, "{open:?} of {limit}");
        }
    }

    #[test]
    fn of_a_real_table() {
        let any = sys::placeholder().expect("an eventfd");
        let mut headroom = Headroom::new(8);
        assert!(headroom.is_there(any.as_fd()));
        let clear = headroom.clear.expect("a row of sixteen numbers");
        assert!(headroom.is_there(any.as_fd()));
        assert_eq!(headroom.clear, Some(clear), "it is not looked for again");
        // What is taken is seen, and another place is found.
        let taken = sys::duplicate_from(any.as_fd(), clear).expect("a descriptor");
        assert!(headroom.is_there(any.as_fd()));
        assert_ne!(headroom.clear, Some(clear));
        drop(taken);
        assert!(headroom.is_there(any.as_fd()));
    }
}
