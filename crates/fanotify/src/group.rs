//! A group: one queue of events and the marks that feed it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::event::Event;
use crate::mark::{Counts, Mark};
use crate::reader::Reader;
use crate::sys;

/// In which order the kernel asks groups, and what they may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Class {
    /// `FAN_CLASS_CONTENT`: asked after the groups of the other class.
    #[default]
    Content,
    /// `FAN_CLASS_PRE_CONTENT`: asked first, and from Linux 6.13 may choose the errno of a denial
    /// ([`PermissionEvent::deny_with_errno`](crate::PermissionEvent::deny_with_errno)).
    PreContent,
}

/// Settings of a [`Group`] to be: see [`Group::builder`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct GroupBuilder {
    class: Class,
    nonblocking: bool,
    report_tid: bool,
    unlimited_queue: bool,
    unlimited_marks: bool,
    batch: usize,
    headroom: usize,
}

impl Default for GroupBuilder {
    fn default() -> Self {
        Self {
            class: Class::default(),
            nonblocking: false,
            report_tid: true,
            unlimited_queue: true,
            unlimited_marks: true,
            batch: 8,
            headroom: 0,
        }
    }
}

impl GroupBuilder {
    /// The class of the group. Default: [`Class::Content`].
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// With true, [`Group::read`] returns at once where there is nothing to read. Default: false, it waits.
    ///
    /// The descriptor itself is non-blocking in either case.
    pub fn nonblocking(mut self, nonblocking: bool) -> Self {
        self.nonblocking = nonblocking;
        self
    }

    /// Whether events name the thread that executes (`FAN_REPORT_TID`) or its process. Default: true, the thread.
    pub fn report_tid(mut self, report_tid: bool) -> Self {
        self.report_tid = report_tid;
        self
    }

    /// With false the queue holds as many events as `/proc/sys/fs/fanotify/max_queued_events` says when the group is
    /// built (16,384, fixed before Linux 5.13). Further execs are allowed and [`Event::Overflow`] tells. Default: true.
    pub fn unlimited_queue(mut self, unlimited: bool) -> Self {
        self.unlimited_queue = unlimited;
        self
    }

    /// With false the kernel's limit on marks applies. Default: true.
    pub fn unlimited_marks(mut self, unlimited: bool) -> Self {
        self.unlimited_marks = unlimited;
        self
    }

    /// How many events one [`Group::read`] takes at most; at least 1. Default: 8.
    ///
    /// Each takes up a descriptor until it is answered.
    pub fn batch(mut self, events: usize) -> Self {
        self.batch = events.max(1);
        self
    }

    /// How many descriptors other threads of the table may open between two instructions of the one that reads (it can be
    /// interrupted there). Default: 0, the table is the reader's alone.
    ///
    /// As long as that many numbers are free in the table an exec is held; else it goes by and is told as
    /// [`Event::Passed`]. Without that the kernel would deny the exec whose number another thread took: see
    /// [when descriptors run out](crate#when-descriptors-run-out). Where `RLIMIT_NOFILE` is less than twice as many, half of
    /// the limit is kept free.
    pub fn headroom(mut self, descriptors: usize) -> Self {
        self.headroom = descriptors;
        self
    }

    /// Opens the group in the descriptor table of the calling thread.
    ///
    /// # Errors
    /// [`NotPermitted`](ErrorKind::NotPermitted), [`Unsupported`](ErrorKind::Unsupported),
    /// [`LimitReached`](ErrorKind::LimitReached) where the user has 128 groups (`max_user_groups`),
    /// [`OutOfDescriptors`](ErrorKind::OutOfDescriptors).
    pub fn build(self) -> Result<Group, Error> {
        const OPERATION: &str = "open a fanotify group";
        let reader = Reader::new(self.headroom)
            .map_err(|error| Error::new(OPERATION, ErrorKind::OutOfDescriptors, error))?;
        let mut flags = libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        flags |= match self.class {
            Class::Content => libc::FAN_CLASS_CONTENT,
            Class::PreContent => libc::FAN_CLASS_PRE_CONTENT,
        };
        for (wanted, flag) in [
            (self.report_tid, libc::FAN_REPORT_TID),
            (self.unlimited_queue, libc::FAN_UNLIMITED_QUEUE),
            (self.unlimited_marks, libc::FAN_UNLIMITED_MARKS),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        // From Linux 6.13 an event can say itself that its file could not be opened, and whose exec it was.
        let fd = match sys::init(flags | sys::FAN_REPORT_FD_ERROR) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => sys::init(flags),
            other => other,
        }
        .map_err(|error| {
            let kind = match error.raw_os_error() {
                Some(libc::EPERM) => ErrorKind::NotPermitted,
                Some(libc::ENOSYS | libc::EINVAL) => ErrorKind::Unsupported,
                // Too many groups, or no descriptor for this one.
                Some(libc::EMFILE) if reader.has_room() => ErrorKind::LimitReached,
                Some(libc::EMFILE | libc::ENFILE) => ErrorKind::OutOfDescriptors,
                _ => ErrorKind::Other,
            };
            Error::new(OPERATION, kind, error)
        })?;
        Ok(Group {
            shared: Arc::new(Shared { fd, counts: Mutex::default() }),
            reader: Mutex::new(reader),
            nonblocking: self.nonblocking,
            batch: self.batch,
        })
    }
}

/// What events and marks hold on to, weakly.
pub(crate) struct Shared {
    fd: OwnedFd,
    counts: Mutex<Counts>,
}

impl Shared {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        // A panic elsewhere cannot leave a count half changed.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fanotify group: a queue of events, and the marks that say of which files.
///
/// When it is dropped (or closed, or its process dies) the kernel removes the marks and allows every exec that waits
/// for an answer, provided that no other process has a copy of the descriptor: see
/// [the crate's known problems](crate#known-problems).
///
/// It may be used from several threads at once, as long as they share one descriptor table: marks are set and removed
/// and events answered while another thread reads. Readers take turns.
pub struct Group {
    shared: Arc<Shared>,
    reader: Mutex<Reader>,
    nonblocking: bool,
    batch: usize,
}

impl Group {
    /// Settings with their defaults.
    pub fn builder() -> GroupBuilder {
        GroupBuilder::default()
    }

    /// A group with the default settings.
    ///
    /// # Errors
    /// As [`GroupBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Appends what is in the queue to `events`, one [batch](GroupBuilder::batch) at most, and says how many.
    ///
    /// Waits for the first one, unless the group is [non-blocking](GroupBuilder::nonblocking): then 0 means that the
    /// queue is empty. After a full batch there may be more.
    ///
    /// Known problem: the kernel opens each executed file on the reader's behalf. Where that file is on a network
    /// server or FUSE daemon that does not answer, this call waits for it.
    ///
    /// # Errors
    /// [`OutOfDescriptors`](ErrorKind::OutOfDescriptors) where execs wait, no descriptor is left and the private table
    /// that [gets by without](crate#when-descriptors-run-out) could not be made either: nothing was taken from the
    /// queue, try again. [`UnknownVersion`](ErrorKind::UnknownVersion) on a kernel of the far future.
    pub fn read(&self, events: &mut Vec<Event>) -> Result<usize, Error> {
        const OPERATION: &str = "read events";
        loop {
            let count = {
                let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
                reader.read(&self.shared, self.batch, events)?
            };
            if count > 0 || self.nonblocking {
                return Ok(count);
            }
            sys::wait_readable(self.shared.fd(), None)
                .map_err(|error| Error::new(OPERATION, ErrorKind::Other, error))?;
        }
    }

    /// Waits until there is something to read; false when `timeout` is over. `None` waits for ever.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        sys::wait_readable(self.shared.fd(), timeout)
    }

    /// Asks to be told of each exec of the file at `path` (symbolic links are followed), for as long as the mark lives.
    ///
    /// The mark is on the inode: it holds for every name and mount of the file, not for a new file that takes its
    /// place. The mark remembers `path` and keeps no descriptor.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`NotAFile`](ErrorKind::NotAFile), [`LimitReached`](ErrorKind::LimitReached),
    /// [`Unsupported`](ErrorKind::Unsupported) on a kernel without permission events or a file system that does not
    /// permit them, [`NoProc`](ErrorKind::NoProc).
    pub fn mark(&self, path: impl AsRef<Path>) -> Result<Mark, Error> {
        Mark::at_path(&self.shared, path.as_ref())
    }

    /// As [`mark`](Self::mark), of what `fd` is open on. `O_PATH` descriptors will do. `fd` may be closed afterwards.
    ///
    /// The mark remembers the path that the kernel gives for `fd`. Where that is a path in another mount namespace, say
    /// [`Mark::with_path`] how to come there again.
    ///
    /// # Errors
    /// As [`mark`](Self::mark).
    pub fn mark_fd(&self, fd: impl AsFd) -> Result<Mark, Error> {
        Mark::at_fd(&self.shared, fd.as_fd())
    }

    /// Closes the group: the kernel removes its marks and allows every exec that waits. Dropping does the same.
    pub fn close(self) {}
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.fd()
    }
}

impl AsRawFd for Group {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.fd().as_raw_fd()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("fd", &self.as_raw_fd())
            .field("nonblocking", &self.nonblocking)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
