//! Which file: a device and a number.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// Identity of an inode: the device number as `stat` gives it (`st_dev`), and the inode's number.
///
/// It names a file for as long as its file system is mounted and the file exists. After that the kernel may
/// give the same pair to another one. btrfs and overlayfs give each subvolume or mount a device of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId {
    /// The device (`st_dev`).
    pub dev: u64,
    /// The inode's number on it (`st_ino`).
    pub ino: u64,
}

impl InodeId {
    /// Identity of what `fd` is open on. `O_PATH` descriptors will do.
    ///
    /// Asks with `AT_STATX_DONT_SYNC`: the answer comes from the kernel's memory and does not wait for a
    /// network file system.
    ///
    /// # Errors
    /// Those of `statx(2)`; `EBADF` where `fd` is not of the calling thread's descriptor table.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        sys::identify(fd.as_fd()).map(|(id, _)| id)
    }
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", libc::major(self.dev), libc::minor(self.dev), self.ino)
    }
}
