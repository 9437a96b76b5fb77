//! The system calls that the standard library has no safe face for.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        // 0 and -1 would mean "my process group" and "everything".
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill takes two integers and touches no memory.
    check(unsafe { libc::kill(pid, signal) })
}

pub(crate) fn unmount_lazily(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the pointer is a NUL-terminated string that outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Ends this process by SIGALRM after `seconds`, whatever its threads are doing.
pub(crate) fn die_in(seconds: u32) {
    // SAFETY: takes an integer; nothing in a test process handles SIGALRM.
    unsafe { libc::alarm(seconds) };
}

/// What `nohup` has this process ignore its containers would ignore too, and not end by it.
pub(crate) fn hear_hangups() {
    // SAFETY: no handler is set; nothing in a test process has one for SIGHUP.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
}

/// Hides the empty cgroup2 tree of a hybrid layout from `command`, in a mount namespace of its own.
///
/// crun refuses the hybrid layout when it runs as root. Done between fork and exec rather than by a shell, so that the
/// file that is executed, the one a test has marked, stays the runtime itself.
pub(crate) fn without_unified_cgroup(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on constant strings, and the error
    // constructor does not allocate.
    unsafe {
        command.pre_exec(|| {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            check(libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ))?;
            check(libc::umount2(c"/sys/fs/cgroup/unified".as_ptr(), libc::MNT_DETACH))
        });
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
