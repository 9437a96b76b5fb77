//! A trial of what reads held executions: a child of ours executes a file of ours, and is read and answered.
//!
//! The file is empty, so no answer makes a program of it. The child says that it is not to be dumped, so that it is as far
//! from our reach as a process with more rights than ours; and it keeps no descriptor but the file, for it is held itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanotify::{Event, Group, InodeId, PermissionEvent};

use crate::guardian::sys as child;

/// What the child executes the file with. The empty word is one that some kernels' helpers get wrong.
pub(super) const ARGUMENTS: [&str; 4] = ["containerhook-probe", "create", "", "a container's id"];

/// How long the child may take to come to its exec.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long its event is waited for before it is asked whether the child is there still.
const SLICE: Duration = Duration::from_millis(20);

pub(super) enum Probed {
    Works,
    Fails(String),
    /// There was no trial.
    Unknown(String),
}

/// Waits for the child's event: for a thread that may wait.
pub(super) fn run(group: &Arc<Group>, read: impl FnOnce(&PermissionEvent) -> Result<(), String>) -> Probed {
    match attempt(group, read) {
        Ok(Ok(())) => Probed::Works,
        Ok(Err(why)) => Probed::Fails(why),
        Err(error) => Probed::Unknown(error.to_string()),
    }
}

fn attempt<T>(group: &Arc<Group>, read: impl FnOnce(&PermissionEvent) -> T) -> io::Result<T> {
    let file = file()?;
    let inode = InodeId::of(&file)?;
    let mark = group.mark_fd(&file).map_err(io::Error::other)?;
    // In memory that the child has a copy of, as a forked program's own words are.
    let words = ARGUMENTS.map(|word| CString::new(word).unwrap_or_default());
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let empty = CString::default();
    let pidfd = child::fork(|| execute(file.as_raw_fd(), empty.as_ptr(), argv.as_ptr()))?;
    let end = Instant::now() + PATIENCE;
    let mut read = Some(read);
    let mut outcome = None;
    let mut ended = false;
    while outcome.is_none() && !ended && Instant::now() < end {
        // A child that may not execute anything (seccomp) has ended, and what it had to say is there by then.
        ended = child::readable(pidfd.as_fd(), Duration::ZERO)?;
        group.wait(Some(if ended { Duration::ZERO } else { SLICE }))?;
        let mut events = Vec::new();
        group.read(&mut events).map_err(io::Error::other)?;
        for event in events {
            // Another's is let go by being dropped.
            let Event::Permission(event) = event else { continue };
            if event.inode().ok() == Some(inode)
                && let Some(read) = read.take()
            {
                outcome = Some(read(&event));
                let _ = event.deny();
            }
        }
    }
    let _ = mark.remove();
    child::kill(pidfd.as_fd());
    let _ = child::readable(pidfd.as_fd(), PATIENCE);
    child::reap(pidfd.as_fd());
    outcome.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no event of a child's execveat came"))
}

/// An executable file that is in no file system that anybody sees.
fn file() -> io::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let name = c"containerhook-probe";
    let create = |flags| {
        // SAFETY: the name is a C string; a descriptor that is returned is new, and ours.
        unsafe {
            let fd = libc::memfd_create(name.as_ptr(), flags);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
        }
    };
    // Linux 6.3; older ones refuse the flag, and make every such file executable.
    create(libc::MFD_CLOEXEC | MFD_EXEC).or_else(|_| create(libc::MFD_CLOEXEC))
}

/// The child: system calls only, on memory that was there before the fork.
fn execute(
    file: i32,
    path: *const libc::c_char,
    argv: *const *const libc::c_char,
) -> std::convert::Infallible {
    // SAFETY: takes no pointers but those to memory that this copy of the process has.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        // Of the group nothing may be left here: a listener that died meanwhile would leave it open, and us held in it.
        let (file, last) = (file as libc::c_uint, libc::c_uint::MAX);
        let below = file == 0 || libc::syscall(libc::SYS_close_range, 0, file - 1, 0) == 0;
        if below && libc::syscall(libc::SYS_close_range, file + 1, last, 0) == 0 {
            let no_environment = std::ptr::null::<*const libc::c_char>();
            libc::syscall(libc::SYS_execveat, file, path, argv, no_environment, libc::AT_EMPTY_PATH);
        }
        loop {
            libc::syscall(libc::SYS_exit_group, 0);
        }
    }
}
