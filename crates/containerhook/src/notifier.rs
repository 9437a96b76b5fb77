//! The face of the library: a notifier, and how one is built.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::engine::{self, Command};
use crate::error::{Error, ErrorKind};
use crate::event::{ContainerEvent, EventKind, Record};
use crate::events::Events;
use crate::handler::{Handler, RecordFn};
use crate::outlet::Outlet;
use crate::runtime::Search;
use crate::watchdog::{Heartbeat, Watchdog};

/// The longest deadline that can be set: engines give up later than this (Podman at 240 s, the kubelet at 120 s to
/// 240 s), and nothing may hold a container for ever.
pub const MAX_DEADLINE: Duration = Duration::from_secs(120);

/// The deadline of an event that none is set for.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a thread waits awake by default: see [`Builder::busy_wait`].
const DEFAULT_BUSY_WAIT: Duration = Duration::from_micros(50);

/// The processor is taken for this long at the most, whatever is asked for.
const MAX_BUSY_WAIT: Duration = Duration::from_millis(1);

/// What becomes of a held container whose handler has not answered by the deadline, or has panicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnTimeout {
    /// It goes on. The default: a slow handler costs time, never a container.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// How the ends of processes are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ExitBackend {
    /// The best that works.
    #[default]
    Auto,
    /// A BPF program on the scheduler's exit tracepoint, which speaks for watched processes only: with exit codes, at once.
    Bpf,
    /// A pidfd for each process, and `PIDFD_GET_INFO` (Linux 6.15) for the exit code.
    PidfdInfo,
    /// A pidfd for each process, without exit codes.
    Pidfd,
}

/// How a held execution is read: who executes, and with which arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CaptureBackend {
    /// The cheapest that works, which is tried at the start on a file of our own.
    #[default]
    Auto,
    /// The kernel's event names the task, and `/proc` shows its memory. Needs the host's pid namespace, and
    /// `CAP_SYS_PTRACE`.
    Memory,
    /// A BPF program, run when an event was read and at no other time, names the task as the host does; the host's procfs
    /// at `HOST_ROOT/proc` shows its memory. For a listener in another pid namespace. Needs `CAP_BPF`, `CAP_PERFMON` and
    /// `CAP_SYS_PTRACE`.
    Lookup,
    /// BPF programs note the arguments of every execve of the host. For a listener that may not read another process's
    /// memory. Needs `CAP_BPF` and `CAP_PERFMON`, and costs every system call of the host some 50 ns while it is used. An
    /// execution of which a page is not in memory is let go on, and told with `held` false.
    Tracepoint,
}

/// The shortest limit of a watchdog: an engine is late by more than this now and then where the processors are busy.
const SHORTEST_WATCHDOG: Duration = Duration::from_millis(100);

pub(crate) struct Settings {
    pub(crate) host_root: PathBuf,
    pub(crate) only_runtime: Option<PathBuf>,
    pub(crate) runtimes: Vec<PathBuf>,
    pub(crate) discover: bool,
    pub(crate) told: Vec<EventKind>,
    pub(crate) deadlines: HashMap<EventKind, Duration>,
    pub(crate) deadline: Duration,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) max_handlers: usize,
    pub(crate) busy_wait: Duration,
    pub(crate) capture_backend: CaptureBackend,
    pub(crate) exit_backend: ExitBackend,
    pub(crate) existing: bool,
    pub(crate) state_file: Option<PathBuf>,
    /// `None`: as `discover`.
    pub(crate) exec_watch: Option<bool>,
}

/// Sets up a [`ContainerNotifier`].
///
/// ```no_run
/// use std::time::Duration;
/// use containerhook::{ContainerEvent, ContainerNotifier, Decision, EventKind};
///
/// let notifier = ContainerNotifier::builder()
///     .events([EventKind::PreCreate, EventKind::Stopped])
///     .deadline(Duration::from_secs(2))
///     .start(|event: &ContainerEvent| {
///         if event.id().starts_with("bad-") { Decision::deny("a bad name") } else { Decision::allow() }
///     })?;
/// # notifier.close();
/// # Ok::<(), containerhook::Error>(())
/// ```
#[must_use]
pub struct Builder {
    settings: Settings,
    on_record: Option<RecordFn>,
    watchdog: Option<Duration>,
}

impl Default for Builder {
    fn default() -> Self {
        let search = Search::from_env();
        Builder {
            settings: Settings {
                host_root: search.host_root,
                only_runtime: search.only,
                runtimes: Vec::new(),
                discover: true,
                told: EventKind::by_default().collect(),
                deadlines: HashMap::new(),
                deadline: DEFAULT_DEADLINE,
                on_timeout: OnTimeout::Allow,
                max_handlers: 64,
                busy_wait: DEFAULT_BUSY_WAIT,
                capture_backend: CaptureBackend::Auto,
                exit_backend: ExitBackend::Auto,
                existing: false,
                state_file: None,
                exec_watch: None,
            },
            on_record: None,
            watchdog: None,
        }
    }
}

impl Builder {
    /// The folder where the host's file system is seen, for a listener in a container. The default is the environment's
    /// `HOST_ROOT`, else `/`.
    pub fn host_root(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.host_root = path.into();
        self
    }

    /// One more runtime to mark, by its path on the host. It adds to those that are found.
    #[doc(alias = "RUNTIME_PATH")]
    pub fn runtime(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.runtimes.push(path.into());
        self
    }

    /// Whether runtimes are looked for besides those given by [`runtime`](Self::runtime). The default is yes.
    pub fn discover(mut self, yes: bool) -> Self {
        self.settings.discover = yes;
        self
    }

    /// The kinds of events that are told; the others are neither held nor told. The default is all but
    /// [`Failed`](EventKind::Failed).
    pub fn events(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.settings.told = kinds.into_iter().collect();
        self
    }

    /// How long a handler may take for each event, from when the kernel reported it. The default is 10 s, the most is
    /// 120 s ([`MAX_DEADLINE`]).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// The deadline of one kind of event.
    pub fn deadline_for(mut self, kind: EventKind, deadline: Duration) -> Self {
        self.settings.deadlines.insert(kind, deadline);
        self
    }

    /// What becomes of a held container whose handler did not answer in time.
    ///
    /// An execution of a runtime that cannot be read (in time) goes on whatever is chosen, and is told as
    /// [`Lost`](EventKind::Lost): nobody knows then whether it is about a container at all.
    pub fn on_timeout(mut self, choice: OnTimeout) -> Self {
        self.settings.on_timeout = choice;
        self
    }

    /// How many handlers may run at once. The default is 64. What waits for a free one is under its deadline already.
    /// Of four, one is never at a rootless container: who is not root cannot keep root's containers waiting.
    pub fn max_handlers(mut self, count: usize) -> Self {
        self.settings.max_handlers = count;
        self
    }

    /// How long a thread that a held container needs next may wait awake before it sleeps, which saves the time that being
    /// woken takes. The default is 50 µs, the most 1 ms (a longer one is taken for that); zero is never, and it is never where
    /// there is one processor only. After a few waits in a row that took longer none is awake until one is shorter, and none
    /// is where nothing goes on: a slow handler costs a few such waits in all, a quiet host nothing.
    pub fn busy_wait(mut self, most: Duration) -> Self {
        self.settings.busy_wait = most.min(MAX_BUSY_WAIT);
        self
    }

    /// How a held execution is read; for tests and for hosts with a reason. What is asked for is tried at the start, and
    /// where it does not work [`start`](Self::start) fails.
    pub fn capture(mut self, backend: CaptureBackend) -> Self {
        self.settings.capture_backend = backend;
        self
    }

    /// How the ends of processes are learned; for tests and for hosts with a reason.
    pub fn exit_backend(mut self, backend: ExitBackend) -> Self {
        self.settings.exit_backend = backend;
        self
    }

    /// Whether containers that run already are told first, as [`Created`](EventKind::Created) with
    /// [`existing`](ContainerEvent::existing), and watched for their end. The default is no.
    pub fn existing(mut self, yes: bool) -> Self {
        self.settings.existing = yes;
        self
    }

    /// A file in which the containers that run are remembered, so that a listener which is stopped, or killed, and started
    /// again with the same file loses no end. What ended meanwhile is told first, as [`Stopped`](EventKind::Stopped)
    /// without an [`exit`](ContainerEvent::exit); what still runs is told as [`Created`](EventKind::Created), and watched
    /// again. Both are [`existing`](ContainerEvent::existing). The default is no file.
    ///
    /// One listener at a time may use a file. Its folder must exist, and nobody else may write in it. It is written by a
    /// thread of its own, which no container waits for: what happened in the last 50 ms before the listener was killed may
    /// be missing.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.state_file = Some(path.into());
        self
    }

    /// Whether a BPF program on the scheduler's exec tracepoint, which speaks when the init of a pid namespace below the
    /// host's executes a program, is used: to tell containers that no mark held, and to stop those whose entrypoint cannot
    /// be marked. By default it is used, and where BPF is refused it is a warning in [`Status::warnings`]; containers that
    /// no mark held are told where [`discover`](Self::discover) is on.
    pub fn exec_watch(mut self, yes: bool) -> Self {
        self.settings.exec_watch = Some(yes);
        self
    }

    /// Gets each [`Record`]: an event that is complete, with its number and its answer. It is called on one thread,
    /// one record after the other, and holds up nothing but the records after it.
    pub fn on_record(mut self, f: impl Fn(&Record) + Send + 'static) -> Self {
        self.on_record = Some(Box::new(f));
        self
    }

    /// Ends this process, by SIGKILL, when the engine has not come round for this long: with it ends whatever is held, and
    /// the host goes on. 2 s is a good limit, 100 ms the least. The default is none.
    ///
    /// It guards against an engine that is stuck, whatever the reason. Handlers have no part in it: they have their
    /// [`deadline`](Self::deadline). It costs the engine four turns in each `limit`.
    ///
    /// # Known problems
    ///
    /// A thread cannot guard its own process against what stops all of its threads: SIGSTOP, a debugger, a frozen cgroup, a
    /// host that swaps. Only another process can: start the listener as a child, let it write to a pipe after each
    /// [`Heartbeat::beat`], and kill it when `waitid` (with `WSTOPPED`) says that it was stopped or when nothing has come for too
    /// long. The command-line tool's supervisor is made so; under systemd `WatchdogSec=` with `WatchdogSignal=SIGKILL` does the same.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    /// Starts to listen. When this returns every runtime found is marked: no container created from now on is missed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Permission`] without `CAP_SYS_ADMIN`, [`ErrorKind::Unsupported`] on a kernel without
    /// `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`, [`ErrorKind::NoRuntime`] where there is no runtime to mark,
    /// [`ErrorKind::InvalidInput`] for a deadline above [`MAX_DEADLINE`] or of zero, and for a [`watchdog`](Self::watchdog)
    /// below 100 ms.
    pub fn start(self, handler: impl Handler) -> Result<ContainerNotifier, Error> {
        ContainerNotifier::start(self, Box::new(handler))
    }

    /// Starts to listen, and gives the events one by one instead of calling a handler: see [`Events`].
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_iter(self) -> Result<(ContainerNotifier, Events), Error> {
        let (handler, events) = Events::pair();
        Ok((self.start(handler)?, events))
    }

    fn check(&self) -> Result<(), Error> {
        let Settings { deadline, deadlines, max_handlers, .. } = &self.settings;
        for deadline in deadlines.values().chain([deadline]) {
            if deadline.is_zero() || *deadline > MAX_DEADLINE {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "a deadline of {deadline:?} cannot be set: it must be above zero and at most {MAX_DEADLINE:?}"
                    ),
                ));
            }
        }
        if self.watchdog.is_some_and(|limit| limit < SHORTEST_WATCHDOG) {
            let words = format!("a watchdog's limit must be at least {SHORTEST_WATCHDOG:?}");
            return Err(Error::new(ErrorKind::InvalidInput, words));
        }
        if *max_handlers == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "at least one handler must be able to run"));
        }
        Ok(())
    }
}

/// A binary whose executions are seen.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MarkedRuntime {
    /// Its name: `runc`, `crun`, `conmon`.
    pub name: String,
    /// Its path on the host, whatever `HOST_ROOT` is.
    pub path: PathBuf,
    /// Where the path was learned.
    pub found_by: String,
}

/// What a notifier does at the moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The binaries that are marked.
    pub runtimes: Vec<MarkedRuntime>,
    /// How held executions are read.
    pub capture_backend: CaptureBackend,
    /// How the ends of processes are learned.
    pub exit_backend: ExitBackend,
    /// How many containers are known that have not ended.
    pub containers: usize,
    /// How many of them are still being created.
    pub creating: usize,
    /// How many executions are held at this moment.
    pub held: usize,
    /// Whether containers that run already are being looked for at this moment ([`Builder::existing`]).
    pub looking: bool,
    /// How many held events were answered because their deadline passed.
    pub timed_out: u64,
    /// What went less well than it could, such as a capability that is missing.
    pub warnings: Vec<String>,
}

/// Tells of containers, and holds them, until it is closed or dropped.
///
/// It can be shared between threads.
#[doc(alias = "NewContainerNotifier")]
pub struct ContainerNotifier {
    engine: engine::Handle,
    outlet: Option<Outlet>,
    watchdog: Option<Watchdog>,
}

impl std::fmt::Debug for ContainerNotifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerNotifier").finish_non_exhaustive()
    }
}

impl ContainerNotifier {
    /// Starts to listen with the default settings; the handler is called for every event.
    ///
    /// ```no_run
    /// use containerhook::{ContainerEvent, ContainerNotifier};
    ///
    /// let notifier = ContainerNotifier::new(|event: &ContainerEvent| {
    ///     println!("{} {} pid {:?}", event.kind(), event.id(), event.pid());
    /// })?;
    /// # drop(notifier);
    /// # Ok::<(), containerhook::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Builder::start`].
    pub fn new(handler: impl Handler) -> Result<Self, Error> {
        Self::builder().start(handler)
    }

    /// Sets up a notifier otherwise than by default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(builder: Builder, handler: Box<dyn Handler>) -> Result<Self, Error> {
        builder.check()?;
        let outlet = Outlet::start(builder.on_record)?;
        let engine = match engine::start(builder.settings, handler, outlet.inlet()) {
            Ok(engine) => engine,
            Err(error) => {
                outlet.finish();
                return Err(error);
            }
        };
        let mut notifier = ContainerNotifier { engine, outlet: Some(outlet), watchdog: None };
        if let Some(limit) = builder.watchdog {
            notifier.watchdog = Some(Watchdog::start(notifier.heartbeat(), limit)?);
        }
        Ok(notifier)
    }

    /// Watches a container that was found by others for its end: its init's pid, and the id it is to be told by.
    /// [`Stopped`](EventKind::Stopped) is told once; at once where the process has ended already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] where no such process exists, [`ErrorKind::Closed`] after the engine's end.
    #[doc(alias = "AddWatchContainerTermination")]
    pub fn watch_termination(&self, id: &str, pid: u32) -> Result<(), Error> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.engine.mailbox.send(Command::WatchTermination { id: id.to_owned(), pid, reply });
        answer.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// What the notifier does at the moment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] after the engine's end.
    pub fn status(&self) -> Result<Status, Error> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.engine.mailbox.send(Command::Status { reply });
        answer.recv().map_err(|_| closed())
    }

    /// Asks, as often as you like and from any thread, whether the engine still turns: for a watchdog of your own.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat::of(&self.engine.mailbox)
    }

    /// Stops listening. Whatever is held goes on; marks and programs are removed; records that are complete are
    /// delivered before this returns. Handlers that still run are not waited for.
    #[doc(alias = "Close")]
    pub fn close(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(engine) = self.engine.thread.take() else { return };
        if let Some(watchdog) = &self.watchdog {
            watchdog.closing();
        }
        self.engine.mailbox.send(Command::Close);
        // A handler may own the last handle to its notifier: a thread cannot join itself, nor one that waits for it.
        let _ = engine.join();
        self.watchdog = None;
        if let Some(outlet) = self.outlet.take() {
            outlet.finish();
        }
    }
}

impl Drop for ContainerNotifier {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the notifier's engine has ended")
}

const _: fn() = || {
    fn shareable<T: Send + Sync>() {}
    shareable::<ContainerNotifier>();
    shareable::<ContainerEvent>();
    shareable::<Record>();
};
