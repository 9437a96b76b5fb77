//! Who is executing, and with which arguments: a held exec → [`ExecRecord`].
//!
//! The held task sleeps inside execve with its memory mapped and its registers saved, so [`memory`] reads them there. Who
//! the task is the kernel's event says, or where that number is another pid namespace's, the BPF look-up
//! ([`crate::lookup`]). [`Capture`] chooses, by trial.

mod choice;
mod memory;
mod probe;
#[cfg(test)]
mod tests;

pub(crate) use self::choice::Capture;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;

use fanotify::InodeId;

use crate::proc::{HostProc, TaskFacts};

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

/// Who is held. It waits for nothing but the kernel.
pub(crate) fn task(proc: &HostProc, tid: i32) -> Result<TaskFacts, CaptureError> {
    memory::task(proc, tid)
}

/// Reads the execution that this task is held in. It may wait for the caller's pages to come from its disk.
pub(crate) fn capture(proc: &HostProc, task: &TaskFacts) -> Result<ExecRecord, CaptureError> {
    memory::capture(proc, task)
}

/// Reads an execution that could not be held (no descriptor was left), from what the process has become.
///
/// It waits a moment for the exec to be done: until then the process is still its caller.
pub(crate) fn passed(proc: &HostProc, tid: i32, inode: Option<InodeId>) -> Result<ExecRecord, CaptureError> {
    memory::passed(proc, tid, inode)
}

/// Reads the arguments only.
pub(crate) fn arguments(proc: &HostProc, tid: i32) -> Result<Vec<OsString>, CaptureError> {
    memory::arguments(proc, tid).map(|(_, argv)| argv)
}

/// The arguments of a process after its exec, which are its own memory: its words, not its caller's any more.
pub(crate) fn command_line(proc: &HostProc, tid: i32) -> Result<Vec<OsString>, CaptureError> {
    memory::command_line(proc, tid)
}
