//! What can go wrong, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An operation that failed: what was tried, on which path, why, and what helps.
///
/// The [`io::Error`] behind it is the [`source`](std::error::Error::source).
pub struct Error {
    operation: &'static str,
    path: Option<PathBuf>,
    kind: ErrorKind,
    source: io::Error,
}

/// Reasons that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller may not use permission events: no `CAP_SYS_ADMIN` in the initial user namespace, or a
    /// security policy forbids it.
    NotPermitted,
    /// The kernel was built without fanotify or without its permission events, or the file system (procfs) does not
    /// permit them.
    Unsupported,
    /// The path cannot be reached or its file not read. A FUSE file system that was mounted without `allow_root`
    /// refuses even root.
    AccessDenied,
    /// The user has as many groups, or as many marks, as the kernel's settings allow.
    LimitReached,
    /// There is no descriptor left. Nothing was taken from the queue.
    OutOfDescriptors,
    /// The path does not exist.
    NotFound,
    /// Only regular files can be marked.
    NotAFile,
    /// The path or descriptor no longer leads to the inode that was marked.
    Stale,
    /// An `O_PATH` descriptor can only be marked through `/proc`, which is not there.
    NoProc,
    /// The group was closed before; the kernel allowed everything that was waiting.
    GroupClosed,
    /// The kernel speaks a version of the event structure that this crate does not know.
    UnknownVersion,
    /// Anything else: see the source.
    Other,
}

impl Error {
    pub(crate) fn new(operation: &'static str, kind: ErrorKind, source: impl Into<io::Error>) -> Self {
        Self { operation, path: None, kind, source: source.into() }
    }

    pub(crate) fn closed(operation: &'static str) -> Self {
        Self::new(operation, ErrorKind::GroupClosed, io::Error::from_raw_os_error(libc::EBADF))
    }

    pub(crate) fn at(mut self, path: Option<&Path>) -> Self {
        self.path = path.map(Path::to_owned);
        self
    }

    /// Why.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The path that was worked on, where there was one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The system call's own error number, where one failed.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// What would help, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self.kind {
            ErrorKind::NotPermitted => {
                "run as root with CAP_SYS_ADMIN, in the initial user namespace and without a seccomp or LSM policy against fanotify"
            }
            ErrorKind::Unsupported => {
                "needs Linux 5.10 with CONFIG_FANOTIFY and CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and a file system that permits permission events"
            }
            ErrorKind::LimitReached => "raise /proc/sys/fs/fanotify/max_user_groups or max_user_marks",
            ErrorKind::OutOfDescriptors => {
                "raise the limit of open files (ulimit -n), or answer events sooner"
            }
            ErrorKind::NoProc => "mount /proc",
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " {path:?}")?;
        }
        match self.kind {
            ErrorKind::GroupClosed => f.write_str(": the group is closed")?,
            ErrorKind::NotAFile => f.write_str(": not a regular file")?,
            ErrorKind::Stale => f.write_str(": it no longer leads to the inode that was marked")?,
            _ => write!(f, ": {}", self.source)?,
        }
        if let Some(remedy) = self.remedy() {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("operation", &self.operation)
            .field("path", &self.path)
            .field("kind", &self.kind)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: ErrorKind, errno: i32) -> String {
        Error::new("mark", kind, io::Error::from_raw_os_error(errno))
            .at(Some(Path::new("/bin/sh")))
            .to_string()
    }

    #[test]
    fn an_error_names_the_operation_the_path_and_the_remedy() {
        let denied = text(ErrorKind::NotPermitted, libc::EPERM);
        assert!(denied.starts_with("mark \"/bin/sh\": Operation not permitted"), "{denied}");
        assert!(denied.contains("CAP_SYS_ADMIN"), "{denied}");
        assert!(text(ErrorKind::Unsupported, libc::EINVAL).contains("CONFIG_FANOTIFY_ACCESS_PERMISSIONS"));
        assert!(text(ErrorKind::LimitReached, libc::ENOSPC).contains("max_user_marks"));
        assert!(text(ErrorKind::OutOfDescriptors, libc::EMFILE).contains("ulimit -n"));
        assert_eq!(text(ErrorKind::GroupClosed, libc::EBADF), "mark \"/bin/sh\": the group is closed");
    }

    #[test]
    fn an_error_keeps_its_source() {
        let error = Error::new("mark", ErrorKind::Other, io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(std::error::Error::source(&error).is_some());
        assert!(io::Error::from(error).to_string().starts_with("mark: "));
    }
}
