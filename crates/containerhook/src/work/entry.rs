//! A container's first program: its file is marked, and its execution held.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Instant, SystemTime};

use super::{Creation, MarkedEntry, Outcome, Worker};
use crate::bundle;
use crate::capture::{Reader, Sighting};
use crate::cmdline::Family;
use crate::config::Config;
use crate::entrypoint;
use crate::exit::Process;
use crate::lifecycle::{self, Finished, HoldId, LifeId};
use crate::proc::TaskFacts;

#[allow(clippy::too_many_arguments, reason = "the facts of one execution")]
pub(super) fn entry(
    reader: &Reader,
    hold: HoldId,
    sighting: &Sighting,
    task: &TaskFacts,
    stopped: bool,
    candidates: Vec<LifeId>,
    executable: Option<String>,
    at: Instant,
    time: SystemTime,
) -> Outcome {
    let command_line = || reader.command_line(task.tid);
    let before = if stopped { Vec::new() } else { command_line().unwrap_or_default() };
    let args = if stopped { command_line() } else { reader.arguments(sighting) }.unwrap_or_default();
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let process = Process { pid: task.tgid, start_time: task.start_time };
    let ancestors = reader.proc.ancestors(task.tgid);
    Outcome::Entry(Box::new(lifecycle::Entry {
        hold,
        at,
        time,
        process,
        own_pid: task.own_pid,
        before,
        ancestors,
        candidates,
        args,
        executable,
    }))
}

impl Worker {
    pub(super) fn finish(
        &self,
        life: LifeId,
        creation: &Creation,
        change: Option<Config>,
        config: Option<Config>,
        mark: bool,
    ) -> Outcome {
        let mut outcome = Finished::default();
        let mut config = config;
        if let Some(change) = change {
            let written = match &creation.bundle {
                // crun's --config names a file anywhere: what it is to others is not known.
                _ if creation.invocation.config_file.is_some() => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "the runtime was given another file (--config)",
                )),
                Some(dir) => bundle::write::write(&creation.caller(), dir.as_fd(), change.raw()),
                None => {
                    Err(io::Error::new(io::ErrorKind::NotFound, "the bundle's folder could not be opened"))
                }
            };
            match written {
                Ok(()) => {
                    outcome.config = Some(change.clone());
                    config = Some(change);
                }
                Err(error) => outcome.change_failed = Some(error.to_string()),
            }
        }
        let mut entry = None;
        if mark {
            // A handler may have written the file itself: what counts is what the runtime will read.
            if outcome.config.is_none()
                && let Some(found) = creation.changed_config(config.as_ref())
            {
                outcome.config = Some(found.clone());
                config = Some(found);
            }
            match self.mark_entry(creation, config.as_ref()) {
                Ok(marked) => {
                    outcome.marked = true;
                    entry = Some(marked);
                }
                Err(why) => outcome.unmarked = Some(why),
            }
        }
        Outcome::Finished { life, outcome, entry }
    }

    fn mark_entry(&self, creation: &Creation, config: Option<&Config>) -> Result<MarkedEntry, String> {
        if creation.invocation.family == Family::Runsc {
            return Err("gVisor has the container's programs executed by no kernel but its own".to_owned());
        }
        let config = config.ok_or("its configuration could not be read")?;
        let bundle = creation.bundle.as_ref().ok_or("its bundle could not be opened")?;
        let entry = entrypoint::resolve(&creation.caller(), bundle.as_fd(), config.outline())
            .map_err(|why| format!("its entrypoint could not be resolved: {why}"))?;
        self.mark_file(entry)
    }

    pub(super) fn mark_entry_of(
        &self,
        init: Process,
        creation: &Creation,
        config: &Config,
    ) -> Result<MarkedEntry, String> {
        if creation.invocation.family == Family::Runsc {
            return Err("gVisor executes nothing of it here".to_owned());
        }
        let _rights = creation.caller().rights().map_err(|e| e.to_string())?;
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(self.reader.proc.path(init.pid, "root"))
            .map_err(|e| e.to_string())?;
        let entry =
            entrypoint::resolve_in_root(root.as_fd(), config.outline()).map_err(|why| why.to_string())?;
        self.mark_file(entry)
    }

    fn mark_file(&self, entry: entrypoint::Entrypoint) -> Result<MarkedEntry, String> {
        let group = self.group.upgrade().ok_or("the listener is closing")?;
        let mark =
            group.mark_fd(&entry.file).map_err(|e| format!("its entrypoint could not be marked: {e}"))?;
        Ok(MarkedEntry { mark, path: entry.path })
    }
}
