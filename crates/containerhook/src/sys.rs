//! The engine's waiting: epoll, and a bell that other threads ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A descriptor that is readable once it was rung.
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        // SAFETY: eventfd takes no pointers; a descriptor that it returns is new, and ours.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Bell(fd))
    }

    /// A copy of a bell in another descriptor table.
    pub(crate) fn adopt(fd: OwnedFd) -> Bell {
        Bell(fd)
    }

    pub(crate) fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is read for its eight bytes. A full counter (EAGAIN) is readable already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Was it rung since the last time?
    pub(crate) fn silence(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is writable for its eight bytes. One that was not rung says EAGAIN.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) > 0 }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Nothing,
    /// By its token.
    Only(u64),
    Several,
}

/// An epoll instance that only wakes: whoever wakes looks at everything.
pub(crate) struct Poll(OwnedFd);

impl Poll {
    pub(crate) fn new() -> io::Result<Poll> {
        // SAFETY: epoll_create1 takes no pointers; a descriptor that it returns is new, and ours.
        let fd = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Poll(fd))
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the event lives through the call.
        let done = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until something is readable, or until `due`. Without a moment that is due no timer runs.
    pub(crate) fn wait(&self, due: Option<Instant>) -> Ready {
        let timeout = due.map_or(-1, |due| {
            let left = due.saturating_duration_since(Instant::now());
            // Rounded up: waking a moment early would be a turn for nothing.
            i32::try_from((left + Duration::from_micros(999)).as_millis()).unwrap_or(i32::MAX)
        });
        self.ready(timeout)
    }

    /// What is readable now.
    pub(crate) fn look(&self) -> Ready {
        self.ready(0)
    }

    fn ready(&self, timeout: i32) -> Ready {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        // SAFETY: the array is writable for the count that is given. An interruption is a turn for nothing.
        let count = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, timeout)
        };
        let first = events[0];
        match count {
            1 => Ready::Only(first.u64),
            2.. => Ready::Several,
            _ => Ready::Nothing,
        }
    }
}
