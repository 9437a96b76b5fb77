//! The few system calls of this module that the standard library does not have: pidfds, epoll, an eventfd.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// `struct pidfd_info` in its first published size (include/uapi/linux/pidfd.h, Linux 6.13).
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(mem::size_of::<PidfdInfo>() == 64);

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = ((3 << 30) | (64 << 16) | (0xFF << 8) | 11u32) as libc::Ioctl;
/// Linux 6.15: "the exit code, if the task has been reaped".
const PIDFD_INFO_EXIT: u64 = 1 << 3;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor for the process that has this pid now. Linux 5.3.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes no pointers and returns a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        check(fd as libc::c_int).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// Sends a signal to the process of the pidfd, and to no other that may have its pid by now.
pub(super) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and asks for the one that kill(2) sends.
    let result = unsafe {
        let no_info = std::ptr::null_mut::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0)
    };
    check(result as libc::c_int).map(drop)
}

/// The wait status of a process that has been reaped. Linux 6.15; `None` before that, and before it was reaped.
pub(super) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, cgroup_id: 0, ids: [0; 11], exit_code: 0 };
    // SAFETY: the request's size is that of `info`, which is writable and outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

/// Whether the kernel tells exit codes by pidfd, found by asking for that of a child.
pub(super) fn pidfd_tells_exit_status() -> io::Result<bool> {
    const CODE: i32 = 42;
    // No exit signal: the child is invisible to the program's own wait(2) and its SIGCHLD handler, and a bare clone
    // runs none of its fork handlers.
    // SAFETY: without CLONE_VM the child has its own copy of everything, and all it does is leave.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } as i32;
    if pid == 0 {
        // SAFETY: never returns, runs nothing of this process.
        unsafe {
            loop {
                libc::syscall(libc::SYS_exit_group, CODE);
            }
        }
    }
    check(pid)?;
    let pidfd = pidfd_open(pid);
    let mut status = 0;
    // SAFETY: `status` is writable; the child is ours and ends by itself.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(pidfd_exit_status(pidfd?.as_fd()) == Some(CODE << 8))
}

/// A level-triggered epoll.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

/// What to wake up for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Interest {
    /// Readable, or hung up.
    Readable,
    /// Hung up only. The kernel always tells that.
    HungUp,
}

/// One descriptor that has something to tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) token: u64,
    pub(super) hung_up: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Epoll> {
        // SAFETY: returns a new descriptor, which nobody else owns.
        unsafe { check(libc::epoll_create1(libc::EPOLL_CLOEXEC)).map(|fd| Epoll(OwnedFd::from_raw_fd(fd))) }
    }

    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, Interest::Readable)
    }

    pub(super) fn change(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        // It fails only for one that is not in it.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest::HungUp);
    }

    fn control(&self, op: i32, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Readable => libc::EPOLLIN as u32,
            Interest::HungUp => 0,
        };
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: both descriptors are open, `event` outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd.as_raw_fd(), &raw mut event) }).map(drop)
    }

    /// What is ready now, without waiting: at most 256, and the others keep the epoll itself readable.
    pub(super) fn ready(&self, out: &mut Vec<Ready>) {
        const BATCH: usize = 256;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: `events` is writable and has room for BATCH.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH as i32, 0) };
        let count = usize::try_from(count).unwrap_or(0);
        out.extend(
            events[..count]
                .iter()
                .map(|event| Ready { token: event.u64, hung_up: event.events & libc::EPOLLHUP as u32 != 0 }),
        );
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An eventfd that makes the owner look.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        // SAFETY: returns a new descriptor, which nobody else owns.
        unsafe {
            check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))
                .map(|fd| Bell(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub(super) fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. It fails only when 2^64 - 2 rings are unheard.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(super) fn silence(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes; non-blocking, so an unrung bell is EAGAIN.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
