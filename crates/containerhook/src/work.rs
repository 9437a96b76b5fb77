//! What the engine has done on workers: everything that may wait for a disk, for another process's memory, or for a
//! path look-up. Each job's outcome goes back to the engine.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use fanotify::{Group, InodeId, Mark};

use crate::bundle::{self, Caller, state_file};
use crate::capture::{self, CaptureError, ExecRecord};
use crate::cgroup::Cgroup;
use crate::cmdline::{self, Family, Invocation, StateName, Verb};
use crate::config::Config;
use crate::entrypoint;
use crate::errand;
use crate::event::{Container, ContainerEvent, EventKind, ExecProcess, ExitStatus, Record, Runtime};
use crate::exit::Process;
use crate::lifecycle::{self, Finished, HoldId, Key, LifeId, Untold};
use crate::marker::{self, Changes};
use crate::metadata;
use crate::outlet::Level;
use crate::proc::{self, TaskFacts};
use crate::runtime::existing::Existing;
use crate::runtime::{self, Binary, Role, Search, Source};
use crate::stranger;

/// Words of a command line that are told are cut here.
const MOST_ID: usize = 1024;

pub(crate) enum Job {
    /// A marked runtime is held at its exec.
    Command { hold: HoldId, tid: i32, binary: Arc<Binary>, at: Instant, time: SystemTime },
    /// A marked runtime was executed that could not be held.
    Passed { life: LifeId, tid: i32, binary: Arc<Binary>, at: Instant, time: SystemTime },
    /// A file that is a container's entrypoint is held at its exec.
    Entry {
        hold: HoldId,
        tid: i32,
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
    /// The runtime's process, where it starts the container too.
    pub(crate) fn runs(&self) -> Option<Process> {
        let process = Process { pid: self.task.tgid, start_time: self.task.start_time };
        matches!(self.invocation.verb, Verb::Run | Verb::Restore).then_some(process)
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
    pub(crate) host_root: PathBuf,
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
    /// Is this to be done by the other pool? Only what the kernel itself answers is looked at to know.
    fn is_others(&self, tid: i32, ward: Ward) -> bool {
        ward == Ward::Trusted && proc::task_facts(tid).is_ok_and(|task| !self.trusts(&task))
    }

    pub(crate) fn run(&self, job: Job, ward: Ward) -> Option<Outcome> {
        match job {
            Job::Command { tid, .. } | Job::Passed { tid, .. } | Job::Entry { tid, .. }
                if self.is_others(tid, ward) =>
            {
                Some(Outcome::NotTrusted(job))
            }
            Job::Command { hold, tid, binary, at, time } => {
                let record = with_descriptors(|| capture::capture(tid));
                Some(self.command(hold, tid, record, &binary, at, time))
            }
            Job::Passed { life, tid, binary, at, time } => {
                let record = with_descriptors(|| capture::passed(tid, Some(inode_of(&binary))));
                Some(self.command(life, tid, record, &binary, at, time))
            }
            Job::Entry { hold, tid, stopped, candidates, executable, at, time } => {
                Some(entry(hold, tid, stopped, candidates, executable, at, time))
            }
            Job::Finish { life, creation, change, config, mark } => {
                Some(self.finish(life, &creation, change, config, mark))
            }
            Job::FindInit { life, creation, mark } => {
                let found = find_init(&creation);
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
                let found =
                    known.into_iter().filter_map(|found| existing_container(&search, found)).collect();
                Some(Outcome::Existing { found, strangers })
            }
            Job::Stranger { init, ancestors, search, existing, time } => {
                Some(self.stranger(init, ancestors, &search, existing, time))
            }
            Job::UntilReaped { process, status, time } => {
                until_reaped(process);
                Some(Outcome::Ended { process, status, time })
            }
            Job::FindExec { life, runtime, creation } => {
                let found = find_exec(&creation);
                Some(Outcome::Exec { life, runtime, found, time: SystemTime::now() })
            }
            Job::Cgroup { process } => {
                let cgroup = Arc::new(Cgroup::of(process.pid, &self.host_root)?);
                // The pid is asked after: what was read is this very process's.
                let same = proc::stat(process.pid).is_ok_and(|now| now.start_time == process.start_time);
                same.then_some(Outcome::Cgroup { process, cgroup })
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

    fn command(
        &self,
        hold: HoldId,
        tid: i32,
        record: Result<ExecRecord, CaptureError>,
        binary: &Binary,
        at: Instant,
        time: SystemTime,
    ) -> Outcome {
        let record = match record {
            Ok(record) => record,
            Err(CaptureError::Gone) => return Outcome::Passed { hold, why: None },
            Err(error) => {
                let path = binary.path.display();
                let why = format!("an execution of {path} by task {tid} could not be read: {error}");
                return Outcome::Lost { hold, why, time };
            }
        };
        let family = match binary.role {
            Role::Monitor => Family::Conmon,
            Role::Runtime => Family::guess(OsStr::new(&binary.name)),
        };
        let invocation = cmdline::parse(family, &record.argv);
        if invocation.verb == Verb::Monitor {
            return monitor(hold, invocation);
        }
        if let Verb::Other(word) = &invocation.verb {
            let word: String = word.to_string_lossy().chars().take(MOST_ID).collect();
            let why = format!("command: {} was executed for {word:?}", binary.path.display());
            return Outcome::Passed { hold, why: Some((Level::Debug, why)) };
        }
        let Some(id) =
            invocation.id.clone().filter(|_| invocation.verb.names_container() && !invocation.regex)
        else {
            return Outcome::Passed { hold, why: None };
        };
        if let Some(why) = unfit(&id) {
            let why = format!("{} was executed for {id:?}: {why}", binary.path.display());
            return Outcome::Passed { hold, why: Some((Level::Info, why)) };
        }
        let caller = Caller {
            root: record.root.as_fd(),
            cwd: record.cwd.as_fd(),
            fsuid: record.task.fsuid,
            fsgid: record.task.fsgid,
            groups: &record.task.groups,
            trusted: self.trusts(&record.task),
        };
        let Some(verb) = verb_of(&invocation, &caller) else { return Outcome::Passed { hold, why: None } };
        self.known_command(hold, &id, verb, invocation, record, binary, at, time)
    }

    /// Only the host's root is believed without more.
    fn trusts(&self, task: &TaskFacts) -> bool {
        task.euid == 0 && task.user_ns == self.user_ns
    }

    #[allow(clippy::too_many_arguments, reason = "the facts of one execution")]
    fn known_command(
        &self,
        hold: HoldId,
        id: &OsStr,
        verb: lifecycle::Verb,
        invocation: Invocation,
        record: ExecRecord,
        binary: &Binary,
        at: Instant,
        time: SystemTime,
    ) -> Outcome {
        let ExecRecord { task, root, cwd, .. } = record;
        let trusted = self.trusts(&task);
        let state_root = invocation
            .state_root(&cmdline::Caller { uid: task.euid, xdg_runtime_dir: None })
            .unwrap_or_else(|| PathBuf::from(&binary.name));
        let key = Key::new(state_root.clone(), id.to_owned(), task.euid);
        let mut container = Container {
            id: id.to_string_lossy().into_owned(),
            runtime: Some(Runtime::new(&binary.name, &binary.host_path)),
            state_root: Some(state_root),
            rootless: !trusted,
            owner_uid: task.euid,
            ..Container::default()
        };
        let (process, parent) = (Process { pid: task.tgid, start_time: task.start_time }, task.ppid);
        let creates =
            matches!(verb, lifecycle::Verb::Create | lifecycle::Verb::Run { .. } | lifecycle::Verb::Restore);
        let creation;
        let mut asked = None;
        if creates {
            let mut made = Creation { task, root, cwd, trusted, bundle: None, invocation };
            let opened = made.open_bundle();
            // As the caller sees it, for what the engine's habits say; and where the listener finds it.
            let theirs = made.invocation.bundle.clone().filter(|path| path.is_absolute());
            container.bundle = theirs.clone().or_else(|| opened.host_path.clone());
            match opened.config {
                Ok(config) => container.config = Some(config),
                Err(error) => container.config_error = Some(error.to_string()),
            }
            made.bundle = opened.dir;
            describe(&mut container, parent, Some(&made.caller()));
            let nested = || bundle::host_path::host_path(made.bundle.as_ref()?.as_fd(), made.task.tgid);
            let through = || {
                let inside = theirs.as_ref().filter(|_| made.bundle.is_some())?.strip_prefix("/").ok()?;
                // The shim or conmon outlives the runtime.
                let lasting = proc::namespace(parent, "mnt").is_ok_and(|ns| ns == made.task.mnt_ns);
                let pid = if lasting { parent } else { made.task.tgid };
                Some(Path::new("/proc").join(pid.to_string()).join("root").join(inside))
            };
            container.bundle = opened.host_path.or_else(nested).or_else(through).or(theirs.clone());
            creation = Some(Arc::new(made));
        } else {
            let made = Creation { task, root, cwd, trusted, bundle: None, invocation };
            asked = errand::asked(&made.invocation, &made.caller()).map(Arc::new);
            let detached = made.invocation.verb == Verb::Exec && made.invocation.detach;
            creation = detached.then(|| Arc::new(made));
        }
        let command = lifecycle::Command {
            hold,
            at,
            time,
            process,
            parent,
            verb,
            key,
            container,
            asked,
            detail: None,
            held: true,
        };
        Outcome::Command { command: Box::new(command), creation }
    }

    fn finish(
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

    fn mark_entry_of(
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
            .open(format!("/proc/{}/root", init.pid))
            .map_err(|e| e.to_string())?;
        let entry =
            entrypoint::resolve_in_root(root.as_fd(), config.outline()).map_err(|why| why.to_string())?;
        self.mark_file(entry)
    }

    /// What can be said of a container that nothing held; its runtime is marked, so that the next one is.
    fn stranger(
        &self,
        init: Process,
        ancestors: Vec<i32>,
        search: &Search,
        existing: bool,
        time: SystemTime,
    ) -> Outcome {
        let said = stranger::look(init.pid, &ancestors);
        if said.runtime.is_none() {
            // Its runtime has ended, and left its state where runtimes do.
            let found = runtime::existing::existing(search).into_iter();
            let ours = found.filter_map(|found| existing_container(search, found));
            if let Some((key, container, init)) = ours.into_iter().find(|(_, _, process)| *process == init) {
                let learned = self.learn_of_engines(&ancestors, search);
                let untold = Untold { key, container, init, ancestors: Vec::new(), existing, time };
                return Outcome::Untold { untold: Box::new(untold), learned };
            }
        }
        let facts = proc::task_facts(init.pid);
        // Whose it is: who runs the processes above it, which are not in its namespaces.
        let owner = ancestors.iter().find_map(|pid| proc::task_facts(*pid).ok()).or(facts.ok());
        let trusted = owner.as_ref().is_some_and(|owner| self.trusts(owner));
        let owner_uid = owner.map_or(0, |owner| owner.euid);
        let runtime = said.runtime.clone().map(|name| Runtime::new(name, ""));
        let mut container = Container {
            id: said.id.clone(),
            pid: u32::try_from(init.pid).ok(),
            runtime,
            rootless: !trusted,
            owner_uid,
            state_root: said.state_root.clone(),
            ..Container::default()
        };
        let mut learned = Vec::new();
        if let Some(pid) = said.learned.filter(|_| trusted) {
            let links = ["root", "cwd"].map(|name| {
                let flags = libc::O_PATH | libc::O_DIRECTORY;
                File::options().read(true).custom_flags(flags).open(format!("/proc/{pid}/{name}"))
            });
            if let [Ok(root), Ok(cwd)] = links {
                let (root, cwd) = (root.as_fd(), cwd.as_fd());
                let caller = Caller { root, cwd, fsuid: 0, fsgid: 0, groups: &[], trusted };
                let state = said.state.as_ref().and_then(|path| state_file::read_state(&caller, path).ok());
                let bundle = said.bundle.clone().or_else(|| state?.bundle);
                let opened = bundle::open(&caller, bundle.as_deref());
                container.bundle = opened.host_path.or(said.bundle);
                match opened.config {
                    Ok(config) => container.config = Some(config),
                    Err(error) => container.config_error = Some(error.to_string()),
                }
            }
            // `make start x` reads like a runtime's command line too: a bundle is what makes the difference.
            learned =
                if container.config.is_some() { self.learn(pid).into_iter().collect() } else { Vec::new() };
            if let Some((binary, _)) = learned.first() {
                container.runtime = Some(Runtime::new(&binary.name, &binary.host_path));
            }
        }
        if learned.is_empty() {
            learned = self.learn_of_engines(&ancestors, search);
        }
        container.name = said.name;
        describe(&mut container, ancestors.first().copied().unwrap_or_default(), None);
        let state_root = said.state_root.or(said.runtime.map(PathBuf::from)).unwrap_or_default();
        let key = Key::new(state_root, said.id.into(), owner_uid);
        let untold = Untold { key, container, init, ancestors, existing, time };
        Outcome::Untold { untold: Box::new(untold), learned }
    }

    /// Marks the executable of a process that turned out to be a runtime.
    fn learn(&self, pid: i32) -> Option<(Binary, Mark)> {
        let (binary, mark) = marker::mark_all(&self.group, Binary::of_process(pid)).pop()?;
        Some((binary, mark.ok()?))
    }

    /// Marks the runtimes that the container's shim or conmon was told of: the runtime itself has ended.
    fn learn_of_engines(&self, ancestors: &[i32], search: &Search) -> Vec<(Binary, Mark)> {
        let monitors = |source: &Source| match source {
            Source::Engine { pid, name } if name == "conmon" || name.starts_with("containerd-shim") => {
                ancestors.iter().any(|above| u32::try_from(*above) == Ok(*pid))
            }
            _ => false,
        };
        let search =
            Search { only: None, extra: Vec::new(), configs: false, engines: true, ..search.clone() };
        let found = runtime::discover(&search).binaries.into_iter();
        let theirs = found.filter(|it| it.role == Role::Runtime && it.sources.iter().any(monitors));
        // Such a place is searched in the root of every engine.
        let theirs = theirs.filter(|it| !it.sources.contains(&Source::WellKnown));
        // An engine in a mount namespace of its own may execute a file of the host's.
        let theirs = theirs.map(|theirs| {
            let host = runtime::rediscover_one(&search.host_root, &theirs.path, Source::Learned);
            host.filter(|host| host.identity() == theirs.identity()).unwrap_or(theirs)
        });
        let marked = marker::mark_all(&self.group, theirs);
        marked.into_iter().filter_map(|(binary, mark)| Some((binary, mark.ok()?))).collect()
    }

    fn mark_file(&self, entry: entrypoint::Entrypoint) -> Result<MarkedEntry, String> {
        let group = self.group.upgrade().ok_or("the listener is closing")?;
        let mark =
            group.mark_fd(&entry.file).map_err(|e| format!("its entrypoint could not be marked: {e}"))?;
        Ok(MarkedEntry { mark, path: entry.path })
    }
}

pub(crate) fn inode_of(binary: &Binary) -> InodeId {
    InodeId { dev: binary.inode.dev, ino: binary.inode.ino }
}

/// How long the parent of an init may take to reap it; there are some that never do.
const UNTIL_REAPED: Duration = Duration::from_secs(1);

/// How long a parent may take to note what it has reaped.
const UNTIL_NOTED: Duration = Duration::from_millis(100);

/// Waits until the parent of a process that has ended knows of it.
///
/// A process's end is known here before its parent is told. Where `start` fails before containerd's shim has noted the end of
/// the init, `ctr run` asks the shim, hears that the task still is "created", and leaves it there for good. The shim
/// notes it on another thread than the one that reaps, a moment later, and gives no sign of it: on a loaded host one refusal in
/// fifty came too early. So a refusal takes its time.
fn until_reaped(process: Process) {
    let end = Instant::now() + UNTIL_REAPED;
    // A pidfd tells of this since Linux 6.9 only (by POLLHUP).
    while proc::stat(process.pid).is_ok_and(|stat| stat.start_time == process.start_time) {
        if Instant::now() >= end {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(UNTIL_NOTED);
}

/// Tries for a while to get the descriptors that reading takes: what else is held gives some back.
fn with_descriptors<T>(mut read: impl FnMut() -> Result<T, CaptureError>) -> Result<T, CaptureError> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match read() {
            Err(CaptureError::Io(_, error))
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            read => return read,
        }
    }
}

fn monitor(hold: HoldId, invocation: Invocation) -> Outcome {
    let name = invocation.conmon.as_ref().filter(|facts| !facts.exec).and_then(|facts| facts.name.clone());
    match (invocation.id, name) {
        (Some(id), Some(name)) if unfit(&id).is_none() => {
            let name = name.to_string_lossy().chars().take(MOST_ID).collect();
            Outcome::Monitor { hold, id, name }
        }
        _ => Outcome::Passed { hold, why: None },
    }
}

fn verb_of(invocation: &Invocation, caller: &Caller<'_>) -> Option<lifecycle::Verb> {
    use lifecycle::Verb as Told;
    Some(match &invocation.verb {
        Verb::Create => Told::Create,
        Verb::Run => Told::Run { detach: invocation.detach, keep: invocation.keep },
        Verb::Restore => Told::Restore,
        Verb::Start => Told::Start,
        Verb::Exec => {
            Told::Exec { process: Arc::new(exec_process(invocation, caller)), detach: invocation.detach }
        }
        Verb::Kill => Told::After(EventKind::Killed),
        Verb::Delete => Told::After(EventKind::Deleted),
        Verb::Pause => Told::After(EventKind::Paused),
        Verb::Resume => Told::After(EventKind::Resumed),
        Verb::Update => Told::After(EventKind::Updated),
        Verb::Checkpoint => Told::After(EventKind::Checkpointed),
        _ => return None,
    })
}

/// A process file is read up to this size; the kubelet's have some KiB.
const MOST_PROCESS: u64 = 1 << 20;

/// What is to be executed, by the process file that engines write, else by the command line.
fn exec_process(invocation: &Invocation, caller: &Caller<'_>) -> ExecProcess {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct OciProcess {
        args: Vec<String>,
        cwd: Option<String>,
        terminal: bool,
        user: Option<OciUser>,
        capabilities: Option<OciCapabilities>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct OciCapabilities {
        effective: Vec<String>,
    }
    #[derive(serde::Deserialize)]
    struct OciUser {
        uid: u32,
        #[serde(default)]
        gid: u32,
    }
    let Some(request) = &invocation.exec else { return ExecProcess::default() };
    if let Some(path) = &request.process_file {
        let read = || -> io::Result<OciProcess> {
            let _rights = caller.rights()?;
            let bytes = bundle::read_bounded(&caller.look_up(path, 0)?, MOST_PROCESS)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let process = read().unwrap_or_default();
        let user = process.user.map(|user| format!("{}:{}", user.uid, user.gid));
        let capabilities = process.capabilities.map(|sets| bounded(sets.effective));
        let OciProcess { args, terminal: tty, cwd, .. } = process;
        return ExecProcess { args, user, tty, cwd, capabilities, pid: None };
    }
    let word = |word: &OsStr| word.to_string_lossy().into_owned();
    ExecProcess {
        args: request.args.iter().map(|arg| word(arg)).collect(),
        user: request.user.as_deref().map(word),
        tty: request.tty,
        cwd: request.cwd.as_ref().map(|cwd| word(cwd.as_os_str())),
        capabilities: (!request.caps.is_empty())
            .then(|| bounded(request.caps.iter().map(|cap| word(cap)).collect())),
        pid: None,
    }
}

/// There are fewer capabilities than this, with shorter names.
fn bounded(mut capabilities: Vec<String>) -> Vec<String> {
    capabilities.retain(|name| name.len() <= 64);
    capabilities.truncate(128);
    capabilities
}

/// Why no runtime takes this id; every runtime refuses these, and such words are not passed on.
fn unfit(id: &OsStr) -> Option<&'static str> {
    let bytes = id.as_bytes();
    if bytes.is_empty() || bytes.len() > MOST_ID {
        Some("no runtime takes an id that is empty or longer than 1,024 bytes")
    } else if bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        Some("no runtime takes an id that is a path")
    } else if bytes.iter().any(u8::is_ascii_control) {
        Some("no runtime takes an id with control characters")
    } else {
        None
    }
}

/// Adds what the configuration, the engine's own files and the caller's parent tell of the container.
fn describe(container: &mut Container, parent: i32, caller: Option<&Caller<'_>>) {
    let parent = proc::program(parent);
    let config = container.config.clone();
    let evidence = metadata::Evidence {
        id: &container.id,
        outline: config.as_ref().map(Config::outline),
        bundle: container.bundle.as_deref(),
        state_root: container.state_root.as_deref(),
        parent: parent.as_deref(),
        monitor_name: container.name.as_deref(),
    };
    let mut said = metadata::of(&evidence);
    if let Some(state) = caller.and_then(|caller| metadata::engine_state(caller, &evidence, &said)) {
        state.complete(&mut said);
    }
    container.cgroup = config.as_ref().and_then(|config| metadata::cgroup_path(config.outline()));
    container.engine = said.engine;
    container.name = said.name;
    container.image = said.image;
    container.kubernetes = said.kubernetes;
}

fn entry(
    hold: HoldId,
    tid: i32,
    stopped: bool,
    candidates: Vec<LifeId>,
    executable: Option<String>,
    at: Instant,
    time: SystemTime,
) -> Outcome {
    let task = match proc::task_facts(tid) {
        Ok(task) => task,
        Err(_) => return Outcome::Passed { hold, why: None },
    };
    let before = if stopped { Vec::new() } else { capture::command_line(tid).unwrap_or_default() };
    let args = if stopped { capture::command_line(tid) } else { capture::arguments(tid) }.unwrap_or_default();
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let process = Process { pid: task.tgid, start_time: task.start_time };
    let ancestors = proc::ancestors(task.tgid);
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

/// Init's pid, by the pid file that the runtime was told to write, else by the runtime's own state.
fn find_init(creation: &Creation) -> Result<Process, String> {
    let caller = creation.caller();
    let pid = match &creation.invocation.pid_file {
        Some(path) => state_file::read_pid_file(&caller, path).map_err(|e| e.to_string()),
        None => Err("it was given no pid file".to_owned()),
    };
    // Its init has ended already, and was reaped: of this name it was, of what time nobody knows.
    if let Ok(pid) = pid
        && proc::stat(pid).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        return Ok(Process { pid, start_time: 0 });
    }
    let pid = pid.or_else(|first| pid_by_state(creation).map_err(|second| format!("{first}; {second}")))?;
    identify(creation, pid)
}

/// What a detached `exec` has executed, by the pid file that the runtime was told to write.
fn find_exec(creation: &Creation) -> Found {
    let Some(path) = &creation.invocation.pid_file else {
        return Found::Unknown("its runtime was not told to write down its pid".into());
    };
    match state_file::read_pid_file(&creation.caller(), path) {
        Err(error) => Found::Unknown(error.to_string()),
        Ok(pid) if proc::stat(pid).is_err() => Found::Gone(pid),
        Ok(pid) => identify(creation, pid).map_or_else(Found::Unknown, Found::Process),
    }
}

/// The process that a runtime's file names, if it can be what the runtime has made.
fn identify(creation: &Creation, pid: i32) -> Result<Process, String> {
    let stat = proc::stat(pid).map_err(|e| format!("process {pid} cannot be read: {e}"))?;
    // A file that was left there by an earlier container, or is a lie, names a process that was there before.
    if stat.start_time < creation.task.start_time {
        return Err(format!("process {pid}, which it names, was there before the container"));
    }
    if !creation.trusted {
        let facts = proc::task_facts(pid).map_err(|e| format!("process {pid} cannot be read: {e}"))?;
        // Whoever has no rights over a process cannot make it a container of its own.
        let own = facts.user_ns == creation.task.user_ns
            || facts.uid == creation.task.uid
            || facts.ppid == creation.task.tgid;
        if !own || (facts.uid == 0 && creation.task.euid != 0) {
            return Err(format!("process {pid}, which it names, is not of uid {}", creation.task.euid));
        }
    }
    Ok(Process { pid, start_time: stat.start_time })
}

/// What the runtime has written, in its own family's file, else in that of any: a wrapper may have the name of one
/// family and execute another, and a runtime's file may be called anything.
fn pid_by_state(creation: &Creation) -> Result<i32, String> {
    let Creation { invocation, task, .. } = creation;
    let id = invocation.id.as_deref().ok_or("it has no id")?;
    let mut families = vec![invocation.family, Family::Runc, Family::Crun, Family::Youki];
    families.dedup();
    let mut first_error = None;
    for family in families {
        let Some(StateName::InDirectory(name)) = family.state_file().map(|file| file.name) else { continue };
        let caller = cmdline::Caller { uid: task.euid, xdg_runtime_dir: None };
        let Some(root) = invocation.root.clone().or_else(|| family.default_state_root(&caller)) else {
            continue;
        };
        let path = root.join(id).join(name);
        let pid = match state_file::read_state(&creation.caller(), &path) {
            Ok(state) => state.pid.ok_or_else(|| format!("{} has no pid", path.display())),
            Err(error) => Err(error.to_string()),
        };
        // In another runtime's folder a container of this id may be an older one.
        let is_news = |pid: i32| proc::stat(pid).is_ok_and(|stat| stat.start_time >= task.start_time);
        match pid {
            Ok(pid) if family == invocation.family || is_news(pid) => return Ok(pid),
            Ok(_) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| "where this runtime keeps its state is not known".to_owned()))
}

/// The containers that run at this moment, without a listener.
///
/// They are found as [`Builder::existing`](crate::Builder::existing) finds them: by the state that runtimes and shims
/// leave, and by `/proc`; no engine is asked. Each is a [`Created`](EventKind::Created) record with
/// [`existing`](crate::ContainerEvent::existing) set, oldest first, numbered from 1. It takes no privilege but to read
/// what it looks at: what it may not read it does not find.
#[must_use]
pub fn existing(host_root: &Path) -> Vec<Record> {
    let search = Search { host_root: host_root.to_owned(), ..Search::default() };
    let known = runtime::existing::existing(&search);
    let strangers = runtime::existing::strangers(&search, &known);
    let mut found: Vec<(Process, Container)> = known
        .into_iter()
        .filter_map(|found| existing_container(&search, found))
        .map(|(_, container, process)| (process, container))
        .collect();
    let user_ns = proc::namespace(std::process::id().cast_signed(), "user").unwrap_or_default();
    let worker = Worker { group: Weak::new(), user_ns, host_root: host_root.to_owned() };
    for (pid, start_time) in strangers {
        let Ok(pid) = i32::try_from(pid) else { continue };
        let init = Process { pid, start_time };
        let ancestors = proc::ancestors(pid);
        if let Outcome::Untold { untold, .. } =
            worker.stranger(init, ancestors, &search, true, SystemTime::now())
        {
            found.push((untold.init, untold.container));
        }
    }
    found.sort_by_key(|(process, _)| (process.start_time, process.pid));
    let number = |(at, (_, container)): (usize, (Process, Container))| Record {
        seq: at as u64 + 1,
        event: ContainerEvent::existing_now(container),
        answer: None,
    };
    found.into_iter().enumerate().map(number).collect()
}

/// A container that runs already, with what its bundle says.
fn existing_container(search: &Search, found: Existing) -> Option<(Key, Container, Process)> {
    let process = Process { pid: i32::try_from(found.pid).ok()?, start_time: found.start_time };
    let state_root = found.state_root.clone().unwrap_or_else(|| PathBuf::from(&found.runtime));
    let mut container = Container {
        pid: Some(found.pid),
        runtime: Some(Runtime::new(found.runtime, "")),
        state_root: found.state_root,
        rootless: found.owner_uid != 0,
        owner_uid: found.owner_uid,
        ..Container::default()
    };
    if let Some(bundle) = &found.bundle {
        match existing_config(search, bundle, found.owner_uid) {
            Ok(config) => container.config = Some(config),
            Err(error) => container.config_error = Some(error),
        }
    }
    container.bundle = found.bundle;
    container.id = found.id;
    container.name = found.name;
    let parent = proc::stat(process.pid).map_or(0, |stat| stat.ppid);
    let root = File::options().read(true).custom_flags(libc::O_PATH).open(&search.host_root).ok();
    let caller = root.as_ref().map(|root| host_caller(root.as_fd(), found.owner_uid));
    describe(&mut container, parent, caller.as_ref());
    let key = Key::new(state_root, container.id.clone().into(), found.owner_uid);
    Some((key, container, process))
}

/// The configuration in a bundle that the listener has found by itself.
fn existing_config(search: &Search, bundle: &Path, owner: u32) -> Result<Config, String> {
    let (root, inside) = split_root(&search.host_root, bundle);
    let root = File::options().read(true).custom_flags(libc::O_PATH).open(&root);
    let root = root.map_err(|e| format!("{}: {e}", bundle.display()))?;
    bundle::open(&host_caller(root.as_fd(), owner), Some(&inside)).config.map_err(|e| e.to_string())
}

/// Whoever owns a state wrote the bundle's name into it: it is read with that one's rights.
fn host_caller(root: BorrowedFd<'_>, owner: u32) -> Caller<'_> {
    Caller { root, cwd: root, fsuid: owner, fsgid: owner, groups: &[], trusted: owner == 0 }
}

/// `HOST_ROOT/proc/PID/root/PATH`, or `HOST_ROOT/PATH`, as a root and a path in it.
fn split_root(host_root: &Path, path: &Path) -> (PathBuf, PathBuf) {
    let in_host = path.strip_prefix(host_root).unwrap_or(path);
    let mut parts = in_host.components();
    if in_host.has_root() {
        parts.next();
    }
    let (proc, pid, root) = (parts.next(), parts.next(), parts.next());
    match (proc, pid, root) {
        (Some(proc), Some(pid), Some(root)) if proc.as_os_str() == "proc" && root.as_os_str() == "root" => {
            (host_root.join("proc").join(pid).join("root"), Path::new("/").join(parts.as_path()))
        }
        _ => (host_root.to_owned(), Path::new("/").join(in_host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_in_another_mount_namespace_is_opened_in_that_root() {
        let table = [
            ("/", "/run/b", "/", "/run/b"),
            ("/host", "/host/run/b", "/host", "/run/b"),
            ("/", "/proc/12/root/run/b", "/proc/12/root", "/run/b"),
            ("/host", "/host/proc/12/root/run/b", "/host/proc/12/root", "/run/b"),
        ];
        for (host_root, path, root, inside) in table {
            let split = split_root(Path::new(host_root), Path::new(path));
            assert_eq!(split, (PathBuf::from(root), PathBuf::from(inside)), "{path}");
        }
    }

    #[test]
    fn ids_that_no_runtime_takes_are_passed_by() {
        for id in ["", ".", "..", "../x", "a/b", "a\nb", "a\x1bb"] {
            assert!(unfit(OsStr::new(id)).is_some(), "{id:?}");
        }
        assert!(unfit(OsStr::from_bytes(&[b'a'; 1025])).is_some());
        for id in ["c1", "a.b-c_d+e", "\u{e9}"] {
            assert_eq!(unfit(OsStr::new(id)), None, "{id:?}");
        }
    }
}
