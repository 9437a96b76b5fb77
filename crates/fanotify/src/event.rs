//! What a group tells: execs that wait for an answer, and what could not be asked.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Weak;

use crate::error::{Error, ErrorKind};
use crate::group::Shared;
use crate::inode::InodeId;
use crate::sys;

/// Something read from a [`Group`](crate::Group).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// An exec of a marked file, which waits for the answer.
    Permission(PermissionEvent),
    /// The queue was full and execs went by, allowed. Cannot happen with an
    /// [unlimited queue](crate::GroupBuilder::unlimited_queue), which is the default.
    Overflow,
    /// An exec that was allowed at once because there was no descriptor left to hold it with.
    Passed(Passed),
    /// An exec that the kernel denied by itself, because it could not open the file for the reader.
    Refused(Refused),
}

/// An exec that went by unheld: the descriptor table was full, so the group allowed it instead of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    pub(crate) task: i32,
    pub(crate) inode: Option<InodeId>,
}

impl Passed {
    /// As [`PermissionEvent::task`]. The task was not waiting any more when this was read.
    #[must_use]
    pub fn task(&self) -> i32 {
        self.task
    }

    /// The file that was executed, where it could be told.
    #[must_use]
    pub fn inode(&self) -> Option<InodeId> {
        self.inode
    }
}

/// An exec that the kernel denied (`EPERM`) without asking.
///
/// The kernel opens the executed file on the reader's behalf. Where that fails (the file is on a network server
/// that has lost it, a FUSE daemon or an LSM refuses, no memory) it denies the exec.
#[derive(Debug)]
pub struct Refused {
    pub(crate) task: Option<i32>,
    pub(crate) reason: io::Error,
}

impl Refused {
    /// As [`PermissionEvent::task`]; known from Linux 6.13.
    #[must_use]
    pub fn task(&self) -> Option<i32> {
        self.task
    }

    /// Why the file could not be opened.
    #[must_use]
    pub fn reason(&self) -> &io::Error {
        &self.reason
    }
}

/// How an exec was denied by [`PermissionEvent::deny_with_errno`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The caller's `execve` fails with the errno that was asked for.
    WithErrno,
    /// The kernel does not take that errno: the caller's `execve` fails with `EPERM`.
    Plain,
}

/// An exec of a marked file. The task that called `execve` sleeps, killable, until this is answered.
///
/// It is answered exactly once: [`allow`](Self::allow), [`deny`](Self::deny) and
/// [`deny_with_errno`](Self::deny_with_errno) take it by value, and **dropping it allows**.
/// It does not keep the group open: when the [`Group`](crate::Group) goes, the kernel allows the exec, and answering
/// afterwards is an error of the kind [`GroupClosed`](ErrorKind::GroupClosed).
///
/// It may be answered and dropped on any thread that shares the descriptor table of the one that read it. A thread
/// with a table of its own (`unshare(CLONE_FILES)`) must not have it: there its descriptor is another file's number.
#[must_use = "dropping a permission event allows the exec"]
pub struct PermissionEvent {
    group: Weak<Shared>,
    file: OwnedFd,
    task: i32,
    answered: bool,
}

impl PermissionEvent {
    pub(crate) fn new(group: Weak<Shared>, file: OwnedFd, task: i32) -> Self {
        Self { group, file, task, answered: false }
    }

    /// The file that is being executed, open for reading.
    ///
    /// The kernel knows the event by the number of this descriptor, so it lives as long as the event. Reading it
    /// raises no events in this or any other group.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The thread in `execve`, as the pid namespace of the *reader* numbers it; 0 when it has no number there.
    ///
    /// With [`report_tid(false)`](crate::GroupBuilder::report_tid) the process (thread group) instead.
    #[must_use]
    pub fn task(&self) -> i32 {
        self.task
    }

    /// Which file. Does not wait for a disk or a network.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn inode(&self) -> io::Result<InodeId> {
        InodeId::of(self.file.as_fd())
    }

    /// Lets the exec go on.
    ///
    /// # Errors
    /// [`GroupClosed`](ErrorKind::GroupClosed): the kernel has allowed it already.
    pub fn allow(mut self) -> Result<(), Error> {
        self.respond(libc::FAN_ALLOW)
    }

    /// Makes the exec fail with `EPERM`.
    ///
    /// # Errors
    /// [`GroupClosed`](ErrorKind::GroupClosed): the kernel has **allowed** it already.
    pub fn deny(mut self) -> Result<(), Error> {
        self.respond(libc::FAN_DENY)
    }

    /// Makes the exec fail with `errno` where the kernel can do that, else with `EPERM`; the result says which.
    ///
    /// Needs Linux 6.13 and [`Class::PreContent`](crate::Class::PreContent). The kernel takes `EIO`, `EPERM`, `EBUSY`,
    /// `ETXTBSY`, `EAGAIN`, `ENOSPC` and `EDQUOT`.
    ///
    /// # Errors
    /// [`GroupClosed`](ErrorKind::GroupClosed): the kernel has **allowed** it already.
    pub fn deny_with_errno(mut self, errno: i32) -> Result<Denied, Error> {
        // Zero in the errno's place means a plain denial, and it has eight bits.
        if let Ok(number @ 1..) = u8::try_from(errno) {
            let response = libc::FAN_DENY | u32::from(number) << sys::FAN_ERRNO_SHIFT;
            match self.respond(response) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other.map(|()| Denied::WithErrno),
            }
        }
        self.respond(libc::FAN_DENY).map(|()| Denied::Plain)
    }

    fn respond(&mut self, response: u32) -> Result<(), Error> {
        const OPERATION: &str = "answer a permission event";
        let Some(group) = self.group.upgrade() else {
            self.answered = true;
            return Err(Error::closed(OPERATION));
        };
        sys::respond(group.fd(), self.file.as_fd(), response)
            .map(|()| self.answered = true)
            .map_err(|error| Error::new(OPERATION, ErrorKind::Other, error))
    }
}

impl Drop for PermissionEvent {
    fn drop(&mut self) {
        // The descriptor is closed after this: the kernel finds the event by its number, which must not have
        // been given to another one by then.
        if !self.answered {
            let _ = self.respond(libc::FAN_ALLOW);
        }
    }
}

impl AsFd for PermissionEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for PermissionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PermissionEvent")
            .field("task", &self.task)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
