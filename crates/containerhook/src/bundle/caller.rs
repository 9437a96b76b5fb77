//! Whose words they are, and what they name: every path of a command line or a config is resolved as the
//! process that uses it would.

use super::rights::Rights;
use super::sys;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The process that executes a runtime, as far as files are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    /// `/proc/<tid>/root`, opened with `O_PATH`.
    pub(crate) root: BorrowedFd<'a>,
    /// `/proc/<tid>/cwd`, opened with `O_PATH`.
    pub(crate) cwd: BorrowedFd<'a>,
    pub(crate) fsuid: u32,
    pub(crate) fsgid: u32,
    pub(crate) groups: &'a [u32],
    /// Effective uid 0 in the initial user namespace: nothing it names is out of its own reach.
    pub(crate) trusted: bool,
}

/// No path leaves the caller's root, and none goes through `/proc/<pid>/fd` and its like: those would be the
/// listener's own.
const RESOLVE: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;

impl Caller<'_> {
    /// Takes the caller's rights on for this thread, where it is not trusted with the listener's.
    pub(crate) fn rights(&self) -> io::Result<Option<Rights>> {
        if self.trusted { Ok(None) } else { Rights::take(self.fsuid, self.fsgid, self.groups).map(Some) }
    }

    /// Opens `path` with `O_PATH` as the caller's own look-up would find it: an absolute path from its root, a
    /// relative one from its working directory, `..` and links out of the latter included, never out of the root.
    ///
    /// `flags` may add `O_DIRECTORY` and `O_NOFOLLOW`. Call it with [`Caller::rights`] taken.
    pub(crate) fn look_up(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        let flags = flags | libc::O_PATH;
        if path.is_absolute() {
            return sys::openat2(self.root, path, flags, RESOLVE);
        }
        match self.cwd_in_root() {
            Some(cwd) => sys::openat2(self.root, &cwd.join(path), flags, RESOLVE),
            // A working directory that was removed, covered by a mount, or lies outside of the root: what is
            // below it is all that can be told apart from the listener's own files.
            None => {
                let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
                sys::openat2(self.cwd, path, flags, resolve)
            }
        }
    }

    /// The working directory's path from the caller's root, if a look-up of it leads back there.
    ///
    /// `openat2` takes either the root or the working directory, so a relative path has to be made one from the
    /// root. Both names come from the kernel in the same way, also in another mount namespace.
    fn cwd_in_root(&self) -> Option<PathBuf> {
        let root = sys::path_of(self.root).ok()?;
        let cwd = sys::path_of(self.cwd).ok()?;
        let inside = Path::new("/").join(cwd.strip_prefix(root).ok()?);
        let again = sys::openat2(self.root, &inside, libc::O_PATH | libc::O_DIRECTORY, RESOLVE).ok()?;
        sys::same_file(&again, self.cwd).then_some(inside)
    }
}
