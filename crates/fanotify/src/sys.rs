//! The system calls, and nothing else: all of the crate's `unsafe` is here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::inode::InodeId;

/// Report a file that could not be opened inside the event, instead of failing the read (Linux 6.13).
pub(crate) const FAN_REPORT_FD_ERROR: libc::c_uint = 0x2000;
/// Where the errno of a denial stands in a response (Linux 6.13).
pub(crate) const FAN_ERRNO_SHIFT: u32 = 24;

/// One event as the kernel wrote it.
#[derive(Debug)]
pub(crate) struct RawEvent {
    pub(crate) version: u8,
    pub(crate) mask: u64,
    /// What the event is about; with `FAN_REPORT_FD_ERROR`, why it could not be opened.
    pub(crate) file: io::Result<OwnedFd>,
    pub(crate) task: i32,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn init(flags: libc::c_uint) -> io::Result<OwnedFd> {
    let event_flags = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as libc::c_uint;
    // SAFETY: the call takes two integers.
    let fd = check(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// With `path` None the mark goes to what `dir` itself is open on, which must not be `O_PATH`.
pub(crate) fn mark(
    group: BorrowedFd<'_>,
    flags: libc::c_uint,
    mask: u64,
    dir: RawFd,
    path: Option<&CStr>,
) -> io::Result<()> {
    let path = path.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: `path` is null or a string that ends with NUL and outlives the call.
    check(unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, dir, path) }).map(drop)
}

/// Reads exactly one event: the buffer has no room for a second one.
pub(crate) fn read_event(group: BorrowedFd<'_>) -> io::Result<RawEvent> {
    // SAFETY: the structure is made of integers, for which all zeroes is a value.
    let mut meta: libc::fanotify_event_metadata = unsafe { std::mem::zeroed() };
    let size = size_of_val(&meta);
    // SAFETY: the buffer is `size` bytes long and ours.
    let got = unsafe { libc::read(group.as_raw_fd(), (&raw mut meta).cast(), size) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    if got as usize != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let file = if meta.fd >= 0 {
        // SAFETY: the kernel installed this descriptor while it wrote the event, for the reader to own.
        Ok(unsafe { OwnedFd::from_raw_fd(meta.fd) })
    } else {
        Err(io::Error::from_raw_os_error(meta.fd.saturating_neg()))
    };
    Ok(RawEvent { version: meta.vers, mask: meta.mask, file, task: meta.pid })
}

pub(crate) fn respond(group: BorrowedFd<'_>, event: BorrowedFd<'_>, response: u32) -> io::Result<()> {
    let answer = libc::fanotify_response { fd: event.as_raw_fd(), response };
    let size = size_of_val(&answer);
    // SAFETY: the buffer is a structure of `size` bytes that outlives the call.
    let put = unsafe { libc::write(group.as_raw_fd(), (&raw const answer).cast(), size) };
    if put < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Identity and file type, from what the kernel has cached: a dead network server cannot delay it.
pub(crate) fn identify(fd: BorrowedFd<'_>) -> io::Result<(InodeId, u32)> {
    // SAFETY: the structure is made of integers, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let want = libc::STATX_INO | libc::STATX_TYPE;
    // SAFETY: the path is a literal that ends with NUL, the buffer is a `statx` of ours.
    check(unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, want, &raw mut stat) })?;
    let id = InodeId { dev: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino };
    Ok((id, u32::from(stat.stx_mode) & libc::S_IFMT))
}

/// A file of our own without a name, to try a mark on.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL and outlives the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that only takes up a number.
pub(crate) fn placeholder() -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of `fd` with the lowest free number from `lowest` on.
pub(crate) fn duplicate_from(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers.
    let fd = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this number is in use in the table of this thread.
pub(crate) fn is_open(number: RawFd) -> bool {
    // SAFETY: the call takes two integers, and changes nothing.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_ok()
}

/// How many descriptors a table of this process may have (`RLIMIT_NOFILE`).
pub(crate) fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a structure of ours. It cannot fail: both arguments are valid.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(RawFd::MAX as usize)
}

/// Waits until `fd` can be read. False when the time is over.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
    loop {
        let left = match deadline {
            // Rounded up, so that a wait of less than a millisecond does not spin.
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                left.min(i32::MAX as u128) as i32
            }
            None => -1,
        };
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd of ours, and the count says one.
        match check(unsafe { libc::poll(&raw mut poll, 1, left) }) {
            Ok(0) if left == i32::MAX => {}
            Ok(ready) => return Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A copy of the descriptor table that only the thread which made it can see.
///
/// It cannot leave that thread, and everything in it goes when the thread ends.
pub(crate) struct PrivateTable {
    not_send: std::marker::PhantomData<*const ()>,
}

impl PrivateTable {
    pub(crate) fn unshare() -> io::Result<Self> {
        // SAFETY: the call takes an integer, and from here on this thread has descriptors of its own.
        // Only short-lived threads of ours come here, which own nothing that others expect in theirs.
        check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
        Ok(Self { not_send: std::marker::PhantomData })
    }

    /// Frees a number in this copy; in the table that was copied it stays open.
    pub(crate) fn free(&self, number_of: BorrowedFd<'_>) {
        let _only_in_this_thread = self.not_send;
        // SAFETY: closes the copy, which nothing owns: the owner is a thread of the other table.
        unsafe { libc::close(number_of.as_raw_fd()) };
    }
}
