//! Whose end is watched, and what is done when it comes.

use std::time::{Duration, Instant, SystemTime};

use super::{Engine, Message};
use crate::error::{Error, ErrorKind};
use crate::event::ExitStatus;
use crate::exit::{Ended, Process, WatchError};
use crate::lifecycle::{Init, Input};
use crate::memory::Known;
use crate::outlet::Level;
use crate::work::{Job, Outcome};

/// How soon what could not be watched is tried again.
const WATCH_AGAIN: Duration = Duration::from_millis(50);

/// How long an end waits for what its cgroup has counted.
const COUNTING: Duration = Duration::from_millis(100);

/// The end of an init of which it is not known yet whether the kernel killed it.
pub(super) struct Doubt {
    pub(super) until: Instant,
    pub(super) process: Process,
    status: ExitStatus,
    time: SystemTime,
}

impl Engine {
    /// A process has ended. Where only its cgroup knows whether the kernel killed it, that is asked first.
    pub(super) fn ended(&mut self, process: Process, status: ExitStatus, time: SystemTime) {
        if self.killed.remove(&process) {
            self.workers.submit(Job::UntilReaped { process, status, time });
            return;
        }
        if status.signal == Some(libc::SIGKILL)
            && status.oom_killed.is_none()
            && let Some(cgroup) = self.lifecycle.cgroup(process).cloned()
        {
            self.doubts.push_back(Doubt { until: Instant::now() + COUNTING, process, status, time });
            self.workers.submit(Job::Count { process, cgroup });
            return;
        }
        self.apply(Input::Ended { process, status, time });
        self.forget(process);
    }

    pub(super) fn counted(&mut self, process: Process, oom_killed: Option<bool>) {
        let at = self.doubts.iter().position(|doubt| doubt.process == process);
        if let Some(Doubt { status, time, .. }) = at.and_then(|at| self.doubts.remove(at)) {
            self.apply(Input::Ended { process, status: ExitStatus { oom_killed, ..status }, time });
            self.forget(process);
        }
    }

    pub(super) fn remember(&self, process: Process) {
        if let Some(memory) = &self.memory
            && let Some((key, container)) = self.lifecycle.container_of(process)
        {
            memory.runs(Known::new(process, key, container));
        }
    }

    pub(super) fn forget(&mut self, process: Process) {
        if self.execs.remove(&process).is_some() {
            self.exits.has_made(process);
        }
        if let Some(memory) = &self.memory {
            memory.ended(process);
        }
    }

    /// Watches a process that a file of this runtime's has named.
    pub(super) fn watch_found(&mut self, process: Process, runtime: Option<Process>) -> Init {
        if self.watch_exit(process) { Init::Watched(process) } else { self.ended_unwatched(process, runtime) }
    }

    /// It had ended before its pid was known. How, is known where that was kept for its runtime's sake.
    pub(super) fn ended_unwatched(&self, process: Process, runtime: Option<Process>) -> Init {
        let kept = runtime.and_then(|runtime| self.exits.recall(process.pid, runtime));
        // Of one that was gone when it was looked for nothing but the pid is known.
        let is_it = |kept: &Ended| process.start_time == 0 || kept.process == process;
        match kept.filter(is_it) {
            Some(Ended { process, status: Some(status), .. }) => Init::Ended(process, status.into()),
            _ => Init::Ended(process, ExitStatus::UNKNOWN),
        }
    }

    /// Watches one that was there when its held execution was read. If it has ended, that is reported as any end is.
    pub(super) fn watch(&mut self, process: Process) {
        let known = process.start_time != 0;
        let watched =
            if known { self.exits.watch_known(process).map(|()| true) } else { self.try_watch(process) };
        if !self.or_later(process, watched) {
            self.ended_already(process);
        }
    }

    /// Is the process there, so that its end will be reported?
    fn watch_exit(&mut self, process: Process) -> bool {
        let watched = self.try_watch(process);
        self.or_later(process, watched)
    }

    /// What could not be watched is tried again.
    fn or_later(&mut self, process: Process, watched: Result<bool, WatchError>) -> bool {
        watched.unwrap_or_else(|error| {
            let line = format!("the end of process {} cannot be watched yet: {error}", process.pid);
            self.log.log(Level::Warn, line);
            if self.unwatched.is_empty() {
                self.watch_again_at = Instant::now() + WATCH_AGAIN;
            }
            self.unwatched.push(process);
            true
        })
    }

    fn try_watch(&mut self, process: Process) -> Result<bool, WatchError> {
        match self.exits.watch(process.pid) {
            Ok(watched) if watched == process => Ok(true),
            Ok(other) => {
                // Its pid is another's by now, which may be watched for its own sake.
                if !self.lifecycle.watches(other) {
                    self.exits.unwatch(other);
                }
                Ok(false)
            }
            Err(WatchError::Gone) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tries again what the kernel refused.
    pub(super) fn watch_again(&mut self, now: Instant) {
        if self.unwatched.is_empty() || self.watch_again_at > now {
            return;
        }
        for process in std::mem::take(&mut self.unwatched) {
            if !self.lifecycle.watches(process) {
                continue;
            }
            match self.try_watch(process) {
                Ok(true) => {}
                Ok(false) => self.ended_already(process),
                Err(_) => self.unwatched.push(process),
            }
        }
        self.watch_again_at = now + WATCH_AGAIN;
    }

    fn ended_already(&mut self, process: Process) {
        let (status, time) = (ExitStatus::UNKNOWN, SystemTime::now());
        self.inbox.mailbox().post(Message::Worked(Outcome::Ended { process, status, time }));
    }

    pub(super) fn watch_termination(&mut self, id: String, pid: u32) -> Result<(), Error> {
        let no_process =
            || Error::new(ErrorKind::InvalidInput, format!("there is no process {pid} to watch"));
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(no_process)?;
        let process = match self.exits.watch(pid) {
            Ok(process) => process,
            Err(WatchError::Gone) => return Err(no_process()),
            Err(error) => return Err(Error::new(ErrorKind::Os, error.to_string())),
        };
        self.apply(Input::WatchTermination { id, process });
        Ok(())
    }
}
