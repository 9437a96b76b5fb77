//! Marks: guards that keep an inode marked, counted per inode.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::error::{Error, ErrorKind};
use crate::group::Shared;
use crate::inode::InodeId;
use crate::sys;

/// How many guards each marked inode has.
pub(crate) type Counts = HashMap<InodeId, usize>;

const ADD: &str = "mark";
const REMOVE: &str = "remove the mark of";

/// A marked inode, for as long as this lives: each exec of it is an [`Event::Permission`](crate::Event::Permission).
///
/// Several marks of one inode in one group are counted, and the kernel's mark goes with the last of them.
///
/// A mark holds **no descriptor**: one inside a container's root file system would make the container engine's
/// `umount` fail. To remove the kernel's mark it therefore has to come to the inode again:
/// [`remove_by`](Self::remove_by) a descriptor at hand, such as an event's own; or by the path that it remembers, which
/// dropping does too. Where that path has gone or leads to another inode meanwhile, nothing is removed. That is no leak
/// where the file was deleted or its file system unmounted: the kernel has dropped the mark then. Otherwise (it was
/// renamed) the kernel's mark stays until the group is closed, and its events keep coming.
#[must_use = "dropping a mark removes it"]
pub struct Mark {
    group: Weak<Shared>,
    inode: InodeId,
    path: Option<PathBuf>,
    counted: bool,
}

impl Mark {
    pub(crate) fn at_path(group: &Arc<Shared>, path: &Path) -> Result<Self, Error> {
        let wrap = |error| wrap(ADD, error).at(Some(path));
        let file = open_path(path).map_err(wrap)?;
        Self::add(group, file.as_fd(), Some(path.to_owned()))
    }

    pub(crate) fn at_fd(group: &Arc<Shared>, fd: BorrowedFd<'_>) -> Result<Self, Error> {
        let path = std::fs::read_link(format!("{THREAD}{}", fd.as_raw_fd())).ok();
        Self::add(group, fd, path)
    }

    fn add(group: &Arc<Shared>, fd: BorrowedFd<'_>, path: Option<PathBuf>) -> Result<Self, Error> {
        let at = path.as_deref();
        let (inode, kind) = sys::identify(fd).map_err(|error| wrap(ADD, error).at(at))?;
        if kind != libc::S_IFREG {
            return Err(Error::new(ADD, ErrorKind::NotAFile, io::ErrorKind::InvalidInput).at(at));
        }
        let mut counts = group.counts();
        // Even where the count says that it is marked: unmounting a file system drops its marks without a word,
        // and the next one may get the same device number and the same inode numbers.
        change(group, libc::FAN_MARK_ADD, fd, inode).map_err(|error| wrap(ADD, error).at(at))?;
        *counts.entry(inode).or_insert(0) += 1;
        drop(counts);
        Ok(Self { group: Arc::downgrade(group), inode, path, counted: true })
    }

    /// Which inode is marked.
    #[must_use]
    pub fn inode(&self) -> InodeId {
        self.inode
    }

    /// The path by which the mark will be removed.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Has the mark removed by `path`: it must lead to the file from where this thread stands.
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Removes the mark by the path it remembers. Other marks of the same inode stay.
    ///
    /// # Errors
    /// [`Stale`](ErrorKind::Stale) or [`NotFound`](ErrorKind::NotFound) where the path no longer leads to the inode;
    /// the mark is no longer counted even so. Where the group is closed there is nothing to remove, and that is no error.
    pub fn remove(mut self) -> Result<(), Error> {
        self.release()
    }

    /// Removes the mark by a descriptor of the same file, such as [an event's own](crate::PermissionEvent::file).
    /// `O_PATH` descriptors will do. Other marks of the same inode stay.
    ///
    /// # Errors
    /// [`Stale`](ErrorKind::Stale) where `fd` is another file: then the mark is removed by its path, if that can be.
    pub fn remove_by(mut self, fd: impl AsFd) -> Result<(), Error> {
        let Some(group) = self.closed_or() else { return Ok(()) };
        let fd = fd.as_fd();
        // Until this is known it stays counted: dropping comes by with the path.
        self.check(fd)?;
        let mut counts = group.counts();
        self.counted = false;
        if others_left(&mut counts, self.inode) {
            return Ok(());
        }
        self.unmark(&group, fd)
    }

    fn release(&mut self) -> Result<(), Error> {
        let Some(group) = self.closed_or() else { return Ok(()) };
        self.counted = false;
        loop {
            // Opened before the lock is taken, because a path may be slow; and only by the last guard, because a
            // descriptor that is open for a moment can already get into the way of an `umount`.
            let last = group.counts().get(&self.inode).is_none_or(|count| *count <= 1);
            let file = last.then(|| self.reopen());
            let mut counts = group.counts();
            if others_left(&mut counts, self.inode) {
                return Ok(());
            }
            // It became the last one in between.
            let Some(file) = file else {
                counts.insert(self.inode, 1);
                continue;
            };
            return self.unmark(&group, file?.as_fd());
        }
    }

    fn closed_or(&mut self) -> Option<Arc<Shared>> {
        let group = self.group.upgrade();
        self.counted &= group.is_some();
        group
    }

    fn reopen(&self) -> Result<File, Error> {
        let path = self.path.as_deref().ok_or_else(|| self.stale())?;
        let file = open_path(path).map_err(|error| wrap(REMOVE, error).at(Some(path)))?;
        self.check(file.as_fd())?;
        Ok(file)
    }

    fn check(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        match InodeId::of(fd) {
            Ok(inode) if inode == self.inode => Ok(()),
            Ok(_) => Err(self.stale()),
            Err(error) => Err(wrap(REMOVE, error).at(self.path.as_deref())),
        }
    }

    fn unmark(&self, group: &Shared, fd: BorrowedFd<'_>) -> Result<(), Error> {
        match change(group, libc::FAN_MARK_REMOVE, fd, self.inode) {
            // The kernel dropped it before us.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|error| wrap(REMOVE, error).at(self.path.as_deref())),
        }
    }

    fn stale(&self) -> Error {
        Error::new(REMOVE, ErrorKind::Stale, io::ErrorKind::NotFound).at(self.path.as_deref())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.counted {
            let _ = self.release();
        }
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mark").field("inode", &self.inode).field("path", &self.path).finish_non_exhaustive()
    }
}

/// Takes one guard off the count. False when it was the last one.
fn others_left(counts: &mut Counts, inode: InodeId) -> bool {
    match counts.get_mut(&inode) {
        Some(count) if *count > 1 => {
            *count -= 1;
            true
        }
        _ => {
            counts.remove(&inode);
            false
        }
    }
}

/// Descriptors of the calling thread's own table, which need not be that of the process.
const THREAD: &str = "/proc/thread-self/fd/";
/// Those of the main thread's table.
const PROCESS: &str = "/proc/self/fd/";

fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Adds or removes the kernel's mark of what `fd` is open on, which is `inode`.
fn change(group: &Shared, action: libc::c_uint, fd: BorrowedFd<'_>, inode: InodeId) -> io::Result<()> {
    let flags = action | libc::FAN_MARK_INODE;
    let mark = |dir, path| sys::mark(group.fd(), flags, libc::FAN_OPEN_EXEC_PERM, dir, path);
    match mark(fd.as_raw_fd(), None) {
        // fanotify_mark does not take O_PATH descriptors; a path that leads through one it does.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
        other => return other,
    }
    let through = |folder: &str| -> io::Result<CString> {
        let path = format!("{folder}{}", fd.as_raw_fd());
        // The number may be another file's in that table, or /proc something else altogether.
        if InodeId::of(open_path(Path::new(&path))?)? != inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(CString::new(path)?)
    };
    let path = through(THREAD).or_else(|_| through(PROCESS)).map_err(|_| NoProc)?;
    mark(libc::AT_FDCWD, Some(&path))
}

/// Marks the one error that [`wrap`] cannot tell by its number.
#[derive(Debug)]
struct NoProc;

impl fmt::Display for NoProc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the descriptor is not to be found in /proc")
    }
}

impl std::error::Error for NoProc {}

impl From<NoProc> for io::Error {
    fn from(error: NoProc) -> Self {
        io::Error::new(io::ErrorKind::NotFound, error)
    }
}

fn wrap(operation: &'static str, error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::NotFound,
        Some(libc::EPERM | libc::EACCES) => ErrorKind::AccessDenied,
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS) => ErrorKind::Unsupported,
        Some(libc::ENOSPC) => ErrorKind::LimitReached,
        Some(libc::EMFILE | libc::ENFILE) => ErrorKind::OutOfDescriptors,
        None if error.get_ref().is_some_and(|inner| inner.is::<NoProc>()) => ErrorKind::NoProc,
        _ => ErrorKind::Other,
    };
    Error::new(operation, kind, error)
}
