//! Who is executing, and with which arguments: a held exec → [`ExecRecord`].
//!
//! One backend so far, [`memory`]: the held task sleeps inside execve with its memory mapped and its registers saved.

mod memory;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;

use fanotify::InodeId;

use crate::proc::TaskFacts;

/// Everything that is known of a held execution, read while it is held.
#[derive(Debug)]
pub(crate) struct ExecRecord {
    /// The executing task and its process.
    pub(crate) task: TaskFacts,
    /// The path as it was given to execve; empty for `execveat(fd, "", …, AT_EMPTY_PATH)`.
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "the way of execution is told by debug logs and tests only")
    )]
    pub(crate) path: OsString,
    /// The arguments, with argument 0.
    pub(crate) argv: Vec<OsString>,
    /// The caller's root folder, `O_PATH`.
    pub(crate) root: OwnedFd,
    /// The caller's working directory, `O_PATH`.
    pub(crate) cwd: OwnedFd,
}

/// Why a held execution could not be read.
#[derive(Debug)]
pub(crate) enum CaptureError {
    /// The task is no longer in execve: it was killed while it was held.
    Gone,
    /// The system call's number is no execve.
    NotExec(i64),
    /// Reading failed.
    Io(&'static str, io::Error),
}

impl std::fmt::Display for CaptureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CaptureError::Gone => f.write_str("the task has gone"),
            CaptureError::NotExec(number) => {
                write!(f, "the task is in system call {number}, which is no execve")
            }
            CaptureError::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

/// Reads the execution that `tid` is held in. It may wait for the caller's pages to come from its disk.
pub(crate) fn capture(tid: i32) -> Result<ExecRecord, CaptureError> {
    memory::capture(tid)
}

/// Reads an execution that could not be held (no descriptor was left), from what the process has become.
///
/// It waits a moment for the exec to be done: until then the process is still its caller.
pub(crate) fn passed(tid: i32, inode: Option<InodeId>) -> Result<ExecRecord, CaptureError> {
    memory::passed(tid, inode)
}

/// Reads the arguments only.
pub(crate) fn arguments(tid: i32) -> Result<Vec<OsString>, CaptureError> {
    memory::arguments(tid).map(|(_, argv)| argv)
}

/// The arguments of a process after its exec, which are its own memory: its words, not its caller's any more.
pub(crate) fn command_line(tid: i32) -> Result<Vec<OsString>, CaptureError> {
    memory::command_line(tid)
}
