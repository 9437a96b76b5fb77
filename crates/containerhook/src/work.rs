//! What the engine has done on workers: everything that may wait for a disk, for another process's memory, or for a
//! path look-up. Each job's outcome goes back to the engine.

mod command;
mod describe;
mod entry;
mod existing;
mod init;
mod stranger;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use fanotify::{Group, InodeId, Mark};

use self::command::with_descriptors;
use self::entry::entry;
use self::existing::existing_container;
use self::init::{find_exec, find_init, until_reaped};
use crate::bundle::{self, Caller};
use crate::capture::{Capture, CaptureError, Reader, Sighting};
use crate::cgroup::{self, Cgroup};
use crate::cmdline::{Invocation, Verb};
use crate::config::Config;
use crate::event::{Container, ExitStatus};
use crate::exit::Process;
use crate::lifecycle::{self, Finished, HoldId, Key, LifeId, Untold};
use crate::marker::Changes;
use crate::notifier::CaptureBackend;
use crate::outlet::Level;
use crate::proc::TaskFacts;
use crate::runtime::{self, Binary, Search};

pub use self::existing::existing;

pub(crate) enum Job {
    /// A marked runtime is held at its exec.
    Command { hold: HoldId, sighting: Sighting, binary: Arc<Binary>, at: Instant, time: SystemTime },
    /// A marked runtime was let go on, as not all of its arguments could be read: they are its command line now.
    After {
        life: LifeId,
        sighting: Sighting,
        before: Vec<OsString>,
        binary: Arc<Binary>,
        at: Instant,
        time: SystemTime,
    },
    /// A marked runtime was executed that could not be held.
    Passed { life: LifeId, tid: i32, binary: Arc<Binary>, at: Instant, time: SystemTime },
    /// A file that is a container's entrypoint is held at its exec.
    Entry {
        hold: HoldId,
        sighting: Sighting,
        /// It was stopped after its exec, not held in it.
        stopped: bool,
        candidates: Vec<LifeId>,
        executable: Option<String>,
        at: Instant,
        time: SystemTime,
    },
    /// `PreCreate` is answered: see to the configuration and the entrypoint's mark.
    Finish {
        life: LifeId,
        creation: Arc<Creation>,
        change: Option<Config>,
        config: Option<Config>,
        mark: bool,
    },
    /// The create process has ended: where is init?
    FindInit { life: LifeId, creation: Arc<Creation>, mark: Option<Config> },
    /// Look for containers that run already.
    Existing { search: Search },
    /// The kernel has shown the first program of a container that nothing held.
    Stranger { init: Process, ancestors: Vec<i32>, search: Search, existing: bool, time: SystemTime },
    /// The init of a refused container has ended: its `start` is denied when its parent knows that.
    UntilReaped { process: Process, status: ExitStatus, time: SystemTime },
    /// The runtime of a detached `exec` has ended: what did it execute?
    FindExec { life: LifeId, runtime: Process, creation: Arc<Creation> },
    /// Which cgroup is this init in?
    Cgroup { process: Process },
    /// What reads held executions has stopped working: try the others.
    ReplaceCapture { failed: CaptureBackend },
    /// End the only process of a cgroup, which no signal reaches.
    KillCgroup { process: Process },
    /// Has the kernel killed in it?
    Count { process: Process, cgroup: Arc<Cgroup> },
    /// Remove a mark whose file must be looked up.
    Unmark(Mark),
}

pub(crate) enum Outcome {
    /// It is for the pool that serves anybody.
    NotTrusted(Job),
    /// It is nothing to hold or tell.
    Passed {
        hold: HoldId,
        why: Option<(Level, String)>,
    },
    /// It may be something to tell, and what is not known.
    Lost {
        hold: HoldId,
        why: String,
        /// It was not permitted to read it.
        refused: bool,
        time: SystemTime,
    },
    /// Not all of its arguments can be read while it is held.
    Unread {
        hold: HoldId,
        why: String,
        sighting: Sighting,
        /// Its command line until now.
        before: Vec<OsString>,
        binary: Arc<Binary>,
        at: Instant,
        time: SystemTime,
    },
    /// conmon is about to run a runtime for this container.
    Monitor {
        hold: HoldId,
        id: std::ffi::OsString,
        name: String,
    },
    Command {
        command: Box<lifecycle::Command>,
        creation: Option<Arc<Creation>>,
    },
    Entry(Box<lifecycle::Entry>),
    Finished {
        life: LifeId,
        outcome: Finished,
        entry: Option<MarkedEntry>,
    },
    Init {
        life: LifeId,
        found: Result<Process, String>,
        entry: Option<MarkedEntry>,
        time: SystemTime,
    },
    Changed(Changes),
    /// `strangers`: inits of pid namespaces that no state tells of.
    Existing {
        found: Vec<(Key, Container, Process)>,
        strangers: Vec<Process>,
    },
    Untold {
        untold: Box<Untold>,
        /// Its runtime, where that can be told.
        learned: Vec<(Binary, Mark)>,
    },
    Exec {
        life: LifeId,
        runtime: Process,
        found: Found,
        time: SystemTime,
    },
    Cgroup {
        process: Process,
        cgroup: Arc<Cgroup>,
    },
    Counted {
        process: Process,
        oom_killed: Option<bool>,
    },
    /// What is to read held executions from now on.
    CaptureReplaced(Result<Box<Capture>, String>),
    /// A process that is to be ended is out of reach.
    Unkillable {
        process: Process,
        why: String,
    },
    /// A process has ended: one that was to be watched and was gone already, or one that has been reaped now.
    Ended {
        process: Process,
        status: ExitStatus,
        time: SystemTime,
    },
}

/// What a pid file names.
pub(crate) enum Found {
    Process(Process),
    /// It has ended already.
    Gone(i32),
    Unknown(String),
}

/// The entrypoint of a container, marked.
pub(crate) struct MarkedEntry {
    pub(crate) mark: Mark,
    /// Its path in the container.
    pub(crate) path: PathBuf,
}

/// What is kept of a creation until init's pid is known: the caller's view of the file system.
///
/// No descriptor lies inside the container's root.
pub(crate) struct Creation {
    task: TaskFacts,
    root: OwnedFd,
    cwd: OwnedFd,
    trusted: bool,
    bundle: Option<OwnedFd>,
    invocation: Invocation,
}

impl Creation {
    /// The runtime's process.
    pub(crate) fn runtime(&self) -> Process {
        Process { pid: self.task.tgid, start_time: self.task.start_time }
    }

    /// The runtime's process, where it starts the container too.
    pub(crate) fn runs(&self) -> Option<Process> {
        matches!(self.invocation.verb, Verb::Run | Verb::Restore).then(|| self.runtime())
    }

    fn open_bundle(&self) -> bundle::Opened {
        let Invocation { bundle, config_file, .. } = &self.invocation;
        bundle::open_with_config(&self.caller(), bundle.as_deref(), config_file.as_deref())
    }

    /// The configuration as it is now, if it is another than `known`.
    fn changed_config(&self, known: Option<&Config>) -> Option<Config> {
        if let (Some(known), Some(dir), None) = (known, &self.bundle, &self.invocation.config_file)
            && bundle::is_still(&self.caller(), dir, known)
        {
            return None;
        }
        let found = self.open_bundle().config.ok()?;
        known.is_none_or(|known| known.raw() != found.raw()).then_some(found)
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            root: self.root.as_fd(),
            cwd: self.cwd.as_fd(),
            fsuid: self.task.fsuid,
            fsgid: self.task.fsgid,
            groups: &self.task.groups,
            trusted: self.trusted,
        }
    }
}

/// What every worker needs.
pub(crate) struct Worker {
    pub(crate) group: Weak<Group>,
    /// The user namespace whose root is the host's.
    pub(crate) user_ns: u64,
    pub(crate) reader: Reader,
}

/// Which of the pools of workers a job runs in.
///
/// Whoever is not the host's root can make its own memory and files answer never (userfaultfd, FUSE): what is to be read
/// of such callers has workers of its own, so that it keeps nobody else waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ward {
    Trusted,
    Anybody,
}

impl Job {
    /// The pool for a job of which it is known already.
    pub(crate) fn ward(&self) -> Ward {
        match self {
            Job::Finish { creation, .. }
            | Job::FindInit { creation, .. }
            | Job::FindExec { creation, .. }
                if !creation.trusted =>
            {
                Ward::Anybody
            }
            _ => Ward::Trusted,
        }
    }
}

impl Worker {
    /// Is this to be done by the other pool?
    fn is_others(&self, task: &Result<TaskFacts, CaptureError>, ward: Ward) -> bool {
        ward == Ward::Trusted && task.as_ref().is_ok_and(|task| !self.trusts(task))
    }

    pub(crate) fn run(&self, job: Job, ward: Ward) -> Option<Outcome> {
        // Only what the kernel itself answers is looked at to know whose it is.
        let task = match &job {
            Job::Command { sighting, .. } | Job::After { sighting, .. } | Job::Entry { sighting, .. } => {
                with_descriptors(|| self.reader.facts(sighting))
            }
            Job::Passed { tid, .. } => with_descriptors(|| self.reader.facts(&(*tid).into())),
            _ => Err(CaptureError::Gone),
        };
        if self.is_others(&task, ward) {
            return Some(Outcome::NotTrusted(job));
        }
        match job {
            Job::Command { hold, sighting, binary, at, time } => {
                // Asked before it may have gone on.
                let traced = sighting.traced.is_some();
                let before = traced.then(|| self.reader.command_line(sighting.tid).unwrap_or_default());
                // Most are no container's business, and are let go on by their arguments alone.
                let record = task.and_then(|task| {
                    let argv = with_descriptors(|| self.reader.arguments(&sighting))?;
                    if let Err(passed) = command::about(hold, &binary, &argv) {
                        return Ok(Err(passed));
                    }
                    with_descriptors(|| self.reader.rest(&sighting, &task, argv.clone())).map(Ok)
                });
                let record = match record {
                    Ok(Err(passed)) => return Some(*passed),
                    Ok(Ok(record)) => Ok(record),
                    Err(error) => Err(error),
                };
                if let (Err(error @ CaptureError::Gap(..)), Some(before)) = (&record, before) {
                    let why = error.to_string();
                    return Some(Outcome::Unread { hold, why, sighting, before, binary, at, time });
                }
                Some(self.command(hold, sighting.tid, record, &binary, at, time))
            }
            Job::After { life, sighting, before, binary, at, time } => {
                let record =
                    task.and_then(|task| with_descriptors(|| self.reader.after(&sighting, &task, &before)));
                Some(self.command(life, sighting.tid, record, &binary, at, time))
            }
            Job::Passed { life, tid, binary, at, time } => {
                let record = with_descriptors(|| self.reader.passed(tid, inode_of(&binary)));
                // Nothing held it: that it is gone does not say that nothing came of it.
                if matches!(record, Err(CaptureError::Gone)) {
                    let path = binary.path.display();
                    let why =
                        format!("{path}, executed by task {tid} and not held, was over before it was read");
                    return Some(Outcome::Lost { hold: life, why, refused: false, time });
                }
                Some(self.command(life, tid, record, &binary, at, time))
            }
            Job::Entry { hold, sighting, stopped, candidates, executable, at, time } => Some(match task {
                Ok(task) => {
                    entry(&self.reader, hold, &sighting, &task, stopped, candidates, executable, at, time)
                }
                Err(CaptureError::Gone) => Outcome::Passed { hold, why: None },
                Err(error) => {
                    let file = executable.unwrap_or_else(|| "a container's entrypoint".into());
                    let why =
                        format!("an execution of {file} by task {} could not be read: {error}", sighting.tid);
                    Outcome::Lost { hold, why, refused: error.is_refusal(), time }
                }
            }),
            Job::Finish { life, creation, change, config, mark } => {
                Some(self.finish(life, &creation, change, config, mark))
            }
            Job::FindInit { life, creation, mark } => {
                let found = find_init(&self.reader.proc, &creation);
                // What could not be resolved before the root was put together can be now, in the root itself.
                let entry = match (&found, mark) {
                    (Ok(init), Some(config)) => self.mark_entry_of(*init, &creation, &config).ok(),
                    _ => None,
                };
                Some(Outcome::Init { life, found, entry, time: SystemTime::now() })
            }
            Job::Existing { search } => {
                let known = runtime::existing::existing(&search);
                let strangers = runtime::existing::strangers(&search, &known);
                let strangers = strangers
                    .into_iter()
                    .filter_map(|(pid, start_time)| {
                        Some(Process { pid: i32::try_from(pid).ok()?, start_time })
                    })
                    .collect();
                let found = known
                    .into_iter()
                    .filter_map(|found| existing_container(&self.reader.proc, &search, found))
                    .collect();
                Some(Outcome::Existing { found, strangers })
            }
            Job::Stranger { init, ancestors, search, existing, time } => {
                Some(self.stranger(init, ancestors, &search, existing, time))
            }
            Job::UntilReaped { process, status, time } => {
                until_reaped(&self.reader.proc, process);
                Some(Outcome::Ended { process, status, time })
            }
            Job::FindExec { life, runtime, creation } => {
                let found = find_exec(&self.reader.proc, &creation);
                Some(Outcome::Exec { life, runtime, found, time: SystemTime::now() })
            }
            Job::Cgroup { process } => {
                let cgroup = Arc::new(Cgroup::of(&self.reader.proc, process.pid, &self.reader.host_root)?);
                // The pid is asked after: what was read is this very process's.
                let same =
                    self.reader.proc.stat(process.pid).is_ok_and(|now| now.start_time == process.start_time);
                same.then_some(Outcome::Cgroup { process, cgroup })
            }
            Job::ReplaceCapture { failed } => {
                let group = self.group.upgrade()?;
                let replaced = Capture::instead_of(failed, &group, &self.reader);
                Some(Outcome::CaptureReplaced(replaced.map(Box::new)))
            }
            Job::KillCgroup { process } => {
                let why = cgroup::kill(&self.reader.proc, process, &self.reader.host_root).err()?;
                Some(Outcome::Unkillable { process, why })
            }
            Job::Count { process, cgroup } => {
                Some(Outcome::Counted { process, oom_killed: cgroup.has_killed() })
            }
            Job::Unmark(mark) => {
                // A mark whose file has gone went with it.
                let _ = mark.remove();
                None
            }
        }
    }

    /// Only the host's root is believed without more.
    fn trusts(&self, task: &TaskFacts) -> bool {
        task.euid == 0 && task.user_ns == self.user_ns
    }
}

pub(crate) fn inode_of(binary: &Binary) -> InodeId {
    InodeId { dev: binary.inode.dev, ino: binary.inode.ino }
}
