//! Whether this kernel and this process can hold an exec.

use crate::error::ErrorKind;
use crate::group::Group;
use crate::sys;
use std::fmt;

/// The answer of [`supported`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// A group was opened and a file marked.
    Yes,
    /// It cannot work here, and trying again will not help.
    No {
        /// What is missing, and what would help.
        reason: String,
    },
    /// The attempt failed for a reason that says nothing about the kernel or the caller's rights.
    Unknown {
        /// What went wrong, and what would help.
        reason: String,
    },
}

impl Support {
    /// True for [`Support::Yes`] only.
    #[must_use]
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No { reason } => write!(f, "no: {reason}"),
            Self::Unknown { reason } => write!(f, "unknown: {reason}"),
        }
    }
}

/// Tries it: opens a group and marks a file without a name (a memfd) that nobody else can see.
///
/// - no `CAP_SYS_ADMIN` in the initial user namespace, or a seccomp or LSM policy: [`Support::No`] (`EPERM`)
/// - no `CONFIG_FANOTIFY`: [`Support::No`] (`ENOSYS`)
/// - no `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`: [`Support::No`] (`EINVAL` from the mark)
/// - too many groups, descriptors or too little memory at the moment: [`Support::Unknown`]
///
/// It costs a few system calls; the answer can only change with the caller's rights.
#[must_use]
pub fn supported() -> Support {
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => return judge(&error),
    };
    let file = match sys::memfd(c"fanotify-probe") {
        Ok(file) => file,
        Err(error) => return Support::Unknown { reason: format!("create a file to try a mark on: {error}") },
    };
    match group.mark_fd(&file) {
        // Removed with the group, so that the answer does not hang on how well it can be removed.
        Ok(mark) => {
            drop(group);
            drop(mark);
            Support::Yes
        }
        Err(error) => judge(&error),
    }
}

fn judge(error: &crate::Error) -> Support {
    let reason = error.to_string();
    match error.kind() {
        ErrorKind::NotPermitted | ErrorKind::Unsupported => Support::No { reason },
        _ => Support::Unknown { reason },
    }
}
