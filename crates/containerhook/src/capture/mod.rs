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
mod traced;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fanotify::InodeId;

pub(crate) use self::choice::{Capture, Unplaced, name};
use self::traced::Gap;
use crate::bpf::Refused;
use crate::lookup::Found;
use crate::proc::{HostProc, TaskFacts};

/// Tries what the tracepoint backend is made of.
pub(crate) fn tracepoint(proc: &HostProc, host_root: &Path) -> Result<(), Refused> {
    traced::Tracer::open(proc, host_root).map(drop)
}

/// Everything that is known of a held execution, read while it is held.
#[derive(Debug)]
pub(crate) struct ExecRecord {
    /// The executing task and its process.
    pub(crate) task: TaskFacts,
    /// The arguments, with argument 0.
    pub(crate) argv: Vec<OsString>,
    /// The caller's root folder, `O_PATH`.
    pub(crate) root: OwnedFd,
    /// The caller's working directory, `O_PATH`; a file where it may not be opened.
    pub(crate) cwd: OwnedFd,
    pub(crate) knows_cwd: bool,
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
    /// Not all of it was noted, and reading the rest failed.
    Gap(Gap, Box<CaptureError>),
}

impl CaptureError {
    /// The way of reading is not permitted, or not any more: the next execution will fare no better.
    pub(crate) fn is_refusal(&self) -> bool {
        let refusals = [libc::EPERM, libc::EACCES, libc::ENOSYS];
        matches!(self, CaptureError::Io(_, error) if error.raw_os_error().is_some_and(|e| refusals.contains(&e)))
    }
}

impl std::fmt::Display for CaptureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CaptureError::Gone => f.write_str("the task has gone"),
            CaptureError::NotExec(number) => {
                write!(f, "the task is in system call {number}, which is no execve")
            }
            CaptureError::Io(what, error) => write!(f, "{what}: {error}"),
            CaptureError::Gap(gap, error) => write!(f, "{gap}; {error}"),
        }
    }
}

/// A task that executes something, as the engine's thread has made it out.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    /// As the host numbers it.
    pub(crate) tid: i32,
    /// What was noted of it when its execve began, where that is how it is read.
    pub(crate) traced: Option<Box<Traced>>,
}

/// What BPF programs say of a task and its execution.
#[derive(Clone, Debug)]
pub(crate) struct Traced {
    pub(crate) found: Found,
    pub(crate) argv: Result<Vec<OsString>, Gap>,
}

impl From<i32> for Sighting {
    fn from(tid: i32) -> Self {
        Sighting { tid, traced: None }
    }
}

/// Where tasks are read, and the host's root, for what may not be read through a task.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) proc: HostProc,
    pub(crate) host_root: PathBuf,
}

impl Reader {
    /// Reads an execution that is held. It may wait for the caller's pages to come from its disk.
    pub(crate) fn capture(&self, sighting: &Sighting, task: &TaskFacts) -> Result<ExecRecord, CaptureError> {
        let argv = self.arguments(sighting)?;
        self.rest(sighting, task, argv)
    }

    /// The rest of an execution, of which the [`arguments`](Self::arguments) are read: the caller's own root and working
    /// directory.
    ///
    /// Of one that is read by what was noted of it, not more is asked than is permitted: the host's root, where that is the
    /// caller's, and no working directory.
    pub(crate) fn rest(
        &self,
        sighting: &Sighting,
        task: &TaskFacts,
        argv: Vec<OsString>,
    ) -> Result<ExecRecord, CaptureError> {
        let (tid, traced) = (task.tid, sighting.traced.as_deref());
        let root = memory::open_link(&self.proc, tid, "root").or_else(|error| {
            if !traced.is_some_and(|traced| traced.found.in_host_root) {
                return Err(error);
            }
            let root = open_path(&self.host_root, libc::O_DIRECTORY);
            root.map_err(|error| CaptureError::Io("cannot open the host's root", error))
        })?;
        let (cwd, knows_cwd) = match memory::open_link(&self.proc, tid, "cwd") {
            Ok(cwd) => (cwd, true),
            Err(error) if traced.is_none() => return Err(error),
            // No path leads anywhere from a file: a wrong one would be worse than none.
            Err(_) => {
                let file = open_path(&self.proc.path(tid, "status"), 0);
                (file.map_err(|e| memory::gone_or("cannot read the caller's status", e))?, false)
            }
        };
        Ok(ExecRecord { task: task.clone(), argv, root, cwd, knows_cwd })
    }

    /// Reads an execution that was not held (no descriptor was left), from what the process has become.
    ///
    /// It waits a moment for the exec to be done: until then the process is still its caller.
    pub(crate) fn passed(&self, tid: i32, inode: InodeId) -> Result<ExecRecord, CaptureError> {
        let (task, argv) = memory::passed(&self.proc, tid, inode)?;
        self.rest(&tid.into(), &task, argv)
    }

    /// Reads an execution that has been let go on, from the command line that comes in place of the one `before`.
    pub(crate) fn after(
        &self,
        sighting: &Sighting,
        task: &TaskFacts,
        before: &[OsString],
    ) -> Result<ExecRecord, CaptureError> {
        if sighting.traced.is_none() {
            return Err(CaptureError::Gone);
        }
        let started = Instant::now();
        loop {
            let argv = memory::command_line(&self.proc, sighting.tid)?;
            if argv != before && !argv.iter().all(|word| word.is_empty()) {
                return self.rest(sighting, task, argv);
            }
            if started.elapsed() > Duration::from_millis(500) {
                return Err(CaptureError::Gone);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Reads the arguments only.
    pub(crate) fn arguments(&self, sighting: &Sighting) -> Result<Vec<OsString>, CaptureError> {
        match &sighting.traced {
            None => memory::arguments(&self.proc, sighting.tid),
            Some(traced) => self.traced_arguments(sighting.tid, traced),
        }
    }

    /// Who the task is. It waits for nothing but the kernel.
    pub(crate) fn facts(&self, sighting: &Sighting) -> Result<TaskFacts, CaptureError> {
        let Some(Traced { found, .. }) = sighting.traced.as_deref() else {
            return memory::task(&self.proc, sighting.tid);
        };
        let facts = self.proc.plain_facts(sighting.tid);
        let facts = facts.map_err(|e| memory::gone_or("cannot read the caller's status", e))?;
        Ok(TaskFacts { user_ns: found.user_namespace.into(), ..facts })
    }

    /// The arguments of a process after its exec, which are its own memory: its words, not its caller's any more.
    pub(crate) fn command_line(&self, tid: i32) -> Result<Vec<OsString>, CaptureError> {
        memory::command_line(&self.proc, tid)
    }

    fn traced_arguments(&self, tid: i32, traced: &Traced) -> Result<Vec<OsString>, CaptureError> {
        traced.argv.clone().or_else(|gap| {
            memory::arguments(&self.proc, tid).map_err(|error| match error {
                CaptureError::Gone => CaptureError::Gone,
                error => CaptureError::Gap(gap, Box::new(error)),
            })
        })
    }
}

fn open_path(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    File::options().read(true).custom_flags(libc::O_PATH | flags).open(path).map(OwnedFd::from)
}
