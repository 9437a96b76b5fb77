//! A descriptor table of the engine's own.
//!
//! A handler may execute a container runtime. Between its fork and its exec the child holds a copy of every descriptor
//! of the thread that forked: `O_CLOEXEC` acts at the exec only. Were the fanotify group among them, and the child held
//! at that exec while the listener is killed, the child would keep the group open, wait for an answer that nobody can
//! give, and freeze every execution of the runtime on the host. So the group, and with it everything the engine opens,
//! lives in a table that only the engine's thread and its workers share; threads started by them inherit it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Gives the calling thread a descriptor table of its own, with standard error, `keep`, and nothing else that is open now.
///
/// Standard input and output become `/dev/null`: a copy of a pipe's end would keep its reader from ever seeing the end.
pub(crate) fn enter(keep: RawFd) -> io::Result<()> {
    // SAFETY: unshare takes no pointers. From here on this thread's table is a copy that no other thread sees.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let keep = u32::try_from(keep).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    if keep > 3 {
        close_range(3, keep - 1)?;
    }
    close_range(keep.max(2) + 1, u32::MAX)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for number in 0..2 {
        // SAFETY: dup3 takes no pointers; in this private table no owned descriptor has these numbers.
        if unsafe { libc::dup3(null.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers. Every descriptor closed here is a copy in a table that was unshared a moment
    // ago: no owner on this thread has any of them. (A raw call: glibc's wrapper needs glibc 2.34.)
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
        return Err(error);
    }
    // A seccomp filter older than the call: close one by one what /proc names.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/thread-self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in open {
        if u32::try_from(number).is_ok_and(|n| (first..=last).contains(&n)) {
            // SAFETY: as above. The listing's own descriptor is closed already, which is an EBADF that is ignored.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Takes over, in the table of this thread, the copy of a descriptor that [`enter`] kept.
pub(crate) fn adopt(kept: RawFd) -> OwnedFd {
    // SAFETY: `enter(kept)` left this number open in this thread's table, and nothing on this side of the tables owns it.
    unsafe { OwnedFd::from_raw_fd(kept) }
}
