//! What is told: events, the containers they are about, answers and records.
//!
//! The JSON form of a [`Record`] (it implements [`serde::Serialize`]) is a contract: one object a line, the fields
//! and words of `docs/events.md`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::metadata::{Engine, Kubernetes};
use crate::proc::HostProc;

/// What happened to a container.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// A runtime is about to create the container: it has been executed and is held, and has not read the
    /// container's `config.json` yet. The Go package calls it `EventTypePreCreateContainer`.
    #[doc(alias = "EventTypePreCreateContainer")]
    PreCreate,
    /// The container exists: its init process has a pid, and runs nothing of the container yet.
    #[doc(alias = "EventTypeAddContainer")]
    Created,
    /// The container's init is about to run its first instruction: it is held inside the execve of the entrypoint.
    Started,
    /// The container's init has ended.
    #[doc(alias = "EventTypeRemoveContainer")]
    Stopped,
    /// The container is no more, or never came to be: its runtime deleted it, or failed to create it.
    Deleted,
    /// A process is about to be executed in a running container by its runtime (`runc exec`).
    Exec,
    /// A process that [`Exec`](EventKind::Exec) told of has ended.
    ExecStopped,
    /// The container's processes were frozen.
    Paused,
    /// The container's processes were thawed.
    Resumed,
    /// The container's resources were changed.
    Updated,
    /// The runtime was asked to send the container a signal.
    Killed,
    /// The container was written to a checkpoint.
    Checkpointed,
    /// A runtime that was to do one of the six before, or to delete the container, has failed:
    /// [`verb`](ContainerEvent::verb) says what, [`exit`](ContainerEvent::exit) how the runtime ended. It is told only
    /// where it is asked for: engines fail every day, such as to kill what has just ended.
    Failed,
    /// The kernel's queue of events ran over: containers may have come unseen.
    Overflow,
    /// Something about a container is known to have been missed.
    Lost,
}

impl EventKind {
    /// Every kind, in the order of a container's life.
    pub const ALL: [EventKind; 15] = [
        EventKind::PreCreate,
        EventKind::Created,
        EventKind::Started,
        EventKind::Stopped,
        EventKind::Deleted,
        EventKind::Exec,
        EventKind::ExecStopped,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Updated,
        EventKind::Killed,
        EventKind::Checkpointed,
        EventKind::Failed,
        EventKind::Overflow,
        EventKind::Lost,
    ];

    /// Those that are told where nothing else is asked for: all but [`Failed`](EventKind::Failed).
    pub fn by_default() -> impl Iterator<Item = EventKind> {
        EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::Failed)
    }

    /// The word of the JSON contract, such as `pre-create`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::PreCreate => "pre-create",
            EventKind::Created => "created",
            EventKind::Started => "started",
            EventKind::Stopped => "stopped",
            EventKind::Deleted => "deleted",
            EventKind::Exec => "exec",
            EventKind::ExecStopped => "exec-stopped",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::Updated => "updated",
            EventKind::Killed => "killed",
            EventKind::Checkpointed => "checkpointed",
            EventKind::Failed => "failed",
            EventKind::Overflow => "overflow",
            EventKind::Lost => "lost",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = UnknownEventKind;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        EventKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| UnknownEventKind(s.chars().take(64).collect()))
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The word given is no [`EventKind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownEventKind(String);

impl fmt::Display for UnknownEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no kind of event; the kinds are", self.0)?;
        for (i, kind) in EventKind::ALL.iter().enumerate() {
            write!(f, "{}{kind}", if i == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownEventKind {}

/// The runtime that a container was created with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Runtime {
    /// Its name, which is its file's name: `runc`, `crun`.
    pub name: String,
    /// The path of its binary on the host.
    pub path: PathBuf,
}

impl Runtime {
    /// A runtime by name and path.
    #[must_use]
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Runtime { name: name.into(), path: path.into() }
    }
}

/// How a process ended. What is not known is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitStatus {
    /// The code it exited with, 0 to 255; `None` where it died of a signal, or where the code is not known.
    pub code: Option<i32>,
    /// The signal that ended it; `None` where it exited, or where it is not known.
    pub signal: Option<i32>,
    /// Of a process that ended by SIGKILL: whether the kernel killed it for want of memory; `None` where it ended otherwise,
    /// or where that is not known.
    pub oom_killed: Option<bool>,
    /// Of a process that a signal ended: whether it dumped its core; `None` where it exited, or where that is not known.
    pub core_dumped: Option<bool>,
}

impl ExitStatus {
    /// An ending of which nothing is known but that it happened.
    pub const UNKNOWN: ExitStatus =
        ExitStatus { code: None, signal: None, oom_killed: None, core_dumped: None };

    /// The process exited with this code.
    #[must_use]
    pub fn exited(code: i32) -> Self {
        ExitStatus { code: Some(code), ..Self::UNKNOWN }
    }

    /// The process was ended by this signal.
    #[must_use]
    pub fn signaled(signal: i32) -> Self {
        ExitStatus { signal: Some(signal), ..Self::UNKNOWN }
    }

    /// Did it exit with code 0? `None` where that is not known.
    #[must_use]
    pub fn success(&self) -> Option<bool> {
        match (self.code, self.signal) {
            (Some(code), _) => Some(code == 0),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => f.write_str("ended, how is not known")?,
        }
        if self.oom_killed == Some(true) {
            f.write_str(", out of memory")?;
        }
        if self.core_dumped == Some(true) {
            f.write_str(", core dumped")?;
        }
        Ok(())
    }
}

/// What a container used until it ended, as its cgroup counted it. What is not known is `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Resources {
    /// The processors' time in microseconds.
    pub cpu_usec: Option<u64>,
    /// The most memory at a time in bytes; a kernel before 5.19 does not tell it for cgroup version 2.
    pub memory_peak: Option<u64>,
}

/// What a runtime was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Told where it came to nothing.
    pub(crate) failed: Option<EventKind>,
    pub(crate) signal: Option<i32>,
    pub(crate) limits: Option<serde_json::Value>,
}

/// What is told with an end besides its status.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub(crate) started_at: Option<SystemTime>,
    pub(crate) finished_at: Option<SystemTime>,
    pub(crate) cgroup: Option<Arc<Cgroup>>,
    /// Read at most once, by whoever asks first: that keeps no end from being told.
    pub(crate) resources: OnceLock<Option<Resources>>,
}

/// A process that a runtime executes in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExecProcess {
    /// Its arguments.
    pub args: Vec<String>,
    /// The user as it was asked for (`uid[:gid]` or a name); `None` where the container's own is used.
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Its working directory; `None` where the container's own is used.
    pub cwd: Option<String>,
    /// The capabilities that were asked for by name: those of its effective set where the runtime was given a process file,
    /// those that are added to the container's where it was given options; `None` where nothing was said.
    pub capabilities: Option<Vec<String>>,
    /// Its pid, as the listener's pid namespace numbers it; known at its end, and only of one that outlives its runtime.
    pub pid: Option<u32>,
}

/// The inode numbers of a process's namespaces in the kernel's namespace file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the namespace of its name, see namespaces(7)")]
pub struct Namespaces {
    pub cgroup: u64,
    pub ipc: u64,
    pub mnt: u64,
    pub net: u64,
    pub pid: u64,
    pub user: u64,
    pub uts: u64,
}

/// What is known of a container at the time of an event. It does not change afterwards.
#[derive(Clone, Debug, Default)]
pub struct Container {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) runtime: Option<Runtime>,
    pub(crate) state_root: Option<PathBuf>,
    pub(crate) engine: Option<Engine>,
    pub(crate) rootless: bool,
    pub(crate) owner_uid: u32,
    pub(crate) config: Option<Config>,
    pub(crate) config_error: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) kubernetes: Option<Kubernetes>,
    pub(crate) cgroup: Option<String>,
    pub(crate) proc: HostProc,
}

impl Container {
    /// The id the engine gave it. It is the engine's word: it may hold anything that a command line may.
    #[doc(alias = "ContainerID")]
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name, where one is known without asking an engine: conmon, Docker and Kubernetes leave it where it can be read.
    #[doc(alias = "ContainerName")]
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The pid of its init, as the listener's pid namespace numbers it; `None` before it exists.
    #[doc(alias = "ContainerPID")]
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Its OCI configuration (`config.json`); `None` where it could not be read, see [`config_error`](Self::config_error).
    #[doc(alias = "ContainerConfig")]
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// Why there is no [`config`](Self::config).
    #[must_use]
    pub fn config_error(&self) -> Option<&str> {
        self.config_error.as_deref()
    }

    /// The bundle's folder, by its path on the host. A listener in a container finds it below its `HOST_ROOT`.
    #[doc(alias = "Bundle")]
    #[must_use]
    pub fn bundle(&self) -> Option<&Path> {
        self.bundle.as_deref()
    }

    /// The runtime that creates it.
    #[must_use]
    pub fn runtime(&self) -> Option<&Runtime> {
        self.runtime.as_ref()
    }

    /// The folder in which the runtime keeps its state (`runc --root`), where the runtime was given one.
    #[must_use]
    pub fn state_root(&self) -> Option<&Path> {
        self.state_root.as_deref()
    }

    /// The engine that asked the runtime for it, where it can be told.
    #[must_use]
    pub fn engine(&self) -> Option<Engine> {
        self.engine
    }

    /// Whether the runtime was executed without the rights of the host's root. What a rootless caller said about its
    /// container was read with that caller's rights, and is only its own word.
    #[must_use]
    pub fn rootless(&self) -> bool {
        self.rootless
    }

    /// The effective uid that the runtime was executed with, as the listener's user namespace numbers it.
    #[must_use]
    pub fn owner_uid(&self) -> u32 {
        self.owner_uid
    }

    /// The path of its cgroup below the root of the cgroup hierarchy, where its configuration names one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&str> {
        self.cgroup.as_deref()
    }

    /// The inode numbers of its namespaces, which name them; read from the host's `/proc` now, while its init is there.
    ///
    /// # Errors
    ///
    /// `NotFound` before its init exists and after it has ended; `PermissionDenied` without the right to look.
    pub fn namespaces(&self) -> std::io::Result<Namespaces> {
        let pid = self.pid.ok_or(std::io::ErrorKind::NotFound)?;
        let inode = |name: &str| self.proc.namespace(pid.cast_signed(), name);
        Ok(Namespaces {
            cgroup: inode("cgroup")?,
            ipc: inode("ipc")?,
            mnt: inode("mnt")?,
            net: inode("net")?,
            pid: inode("pid")?,
            user: inode("user")?,
            uts: inode("uts")?,
        })
    }

    /// The name of its image, where the engine wrote it into the configuration.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// Its pod, where Kubernetes' words were found in the configuration.
    #[must_use]
    pub fn kubernetes(&self) -> Option<&Kubernetes> {
        self.kubernetes.as_ref()
    }
}

/// Something that happened to a container, as a [`Handler`](crate::Handler) gets it.
///
/// It dereferences to its [`Container`].
#[derive(Clone, Debug)]
pub struct ContainerEvent {
    pub(crate) kind: EventKind,
    pub(crate) time: SystemTime,
    pub(crate) container: Arc<Container>,
    pub(crate) held: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) existing: bool,
    pub(crate) caller: Option<u32>,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) exec: Option<Arc<ExecProcess>>,
    pub(crate) detail: Option<String>,
    pub(crate) ending: Option<Arc<Ending>>,
    pub(crate) asked: Option<Arc<Asked>>,
}

impl ContainerEvent {
    pub(crate) fn existing_now(container: Container) -> Self {
        ContainerEvent {
            kind: EventKind::Created,
            time: SystemTime::now(),
            container: Arc::new(container),
            held: false,
            deadline: None,
            existing: true,
            caller: None,
            exit: None,
            exec: None,
            detail: None,
            ending: None,
            asked: None,
        }
    }

    /// What happened.
    #[doc(alias = "Type")]
    #[must_use]
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// When it happened: when the kernel reported it, before anything was read or held for it.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// The container it happened to.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Is the container held while handlers run? Where it is not, an answer has no effect.
    #[must_use]
    pub fn held(&self) -> bool {
        self.held
    }

    /// Until when a handler may answer; later than that the container goes on (or is refused, by choice) without it.
    /// `None` where nothing is held.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Was the container there before the listener? Then this event is a reminder.
    #[must_use]
    pub fn existing(&self) -> bool {
        self.existing
    }

    /// The pid of the runtime's process that the event was seen by, while it is held; `/proc/<pid>/root` is where its
    /// paths are to be resolved.
    #[must_use]
    pub fn caller_pid(&self) -> Option<u32> {
        self.caller
    }

    /// How the process ended: for [`Stopped`](EventKind::Stopped) and [`ExecStopped`](EventKind::ExecStopped).
    #[must_use]
    pub fn exit(&self) -> Option<&ExitStatus> {
        self.exit.as_ref()
    }

    /// When the process that has ended ran its first instruction, for [`Stopped`](EventKind::Stopped) and
    /// [`ExecStopped`](EventKind::ExecStopped); `None` where that was not seen.
    #[must_use]
    pub fn started_at(&self) -> Option<SystemTime> {
        self.ending.as_ref()?.started_at
    }

    /// When the process ended, for [`Stopped`](EventKind::Stopped) and [`ExecStopped`](EventKind::ExecStopped); `None` where
    /// that was not seen.
    #[must_use]
    pub fn finished_at(&self) -> Option<SystemTime> {
        self.ending.as_ref()?.finished_at
    }

    /// What the container used, for [`Stopped`](EventKind::Stopped). It is read from the container's cgroup at the first
    /// call, or for the record, whichever comes first; `None` where the runtime had removed the cgroup by then.
    #[must_use]
    pub fn resources(&self) -> Option<Resources> {
        let Ending { cgroup, resources, .. } = &**self.ending.as_ref()?;
        *resources.get_or_init(|| cgroup.as_ref()?.resources())
    }

    /// What a runtime failed to do, by the kind of event that had told of it: for [`Failed`](EventKind::Failed).
    #[must_use]
    pub fn verb(&self) -> Option<EventKind> {
        self.asked.as_ref()?.failed
    }

    /// The signal that was asked for, by its number: for [`Killed`](EventKind::Killed).
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.asked.as_ref()?.signal
    }

    /// The limits that were asked for: for [`Updated`](EventKind::Updated). It is the `LinuxResources` object of the OCI
    /// runtime specification where the runtime was given one in a file, else its options by name with the words they had.
    #[must_use]
    pub fn limits(&self) -> Option<&serde_json::Value> {
        self.asked.as_ref()?.limits.as_ref()
    }

    /// What is executed: for [`Exec`](EventKind::Exec); what has ended: for [`ExecStopped`](EventKind::ExecStopped).
    #[must_use]
    pub fn exec(&self) -> Option<&ExecProcess> {
        self.exec.as_deref()
    }

    /// A word on the event where there is more to say, such as why a container could not be held.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

/// For a program that is to be asked: what a handler is told, in the words of the contract.
impl ContainerEvent {
    /// The event as one line of JSON, as its [`Record`] will have it but for `seq` and `answer`, which are null.
    #[must_use]
    pub fn to_json(&self) -> String {
        Line { event: self, seq: None, answer: None, with_config: false }.json()
    }

    /// The same with the container's configuration in `config`.
    #[must_use]
    pub fn to_json_with_config(&self) -> String {
        Line { event: self, seq: None, answer: None, with_config: true }.json()
    }
}

impl std::ops::Deref for ContainerEvent {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// What a held event was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// What was decided, by the handler or in its place.
    pub decision: Verdict,
    /// Why, where there is a reason: the handler's, or what went wrong.
    pub reason: Option<String>,
    /// Whether the handler had not answered by the deadline (or panicked), so that the choice made beforehand counted.
    pub timed_out: bool,
    /// How long the container was held, from the kernel's report to the answer.
    pub held_for: Duration,
}

/// The three ways a hold ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// The container goes on.
    Allow,
    /// It is refused.
    Deny,
    /// It goes on with another configuration.
    Change,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Change => "change",
        })
    }
}

/// An event that is complete: where it was held, it has been answered.
///
/// Records come one after the other, each with the number after the last one's: a gap is a loss. It happens only where
/// 65,536 of them wait for a receiver that takes none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Record {
    /// The record's number, from 1.
    pub seq: u64,
    /// What happened.
    pub event: ContainerEvent,
    /// How it was answered; `None` where nothing was held.
    pub answer: Option<Answer>,
}

impl Record {
    /// The record as one line of JSON, without the configuration and without a line's end.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.json(false)
    }

    /// The record as one line of JSON with the container's configuration in `config`.
    #[must_use]
    pub fn to_json_with_config(&self) -> String {
        self.json(true)
    }

    fn json(&self, with_config: bool) -> String {
        let Record { seq, event, answer } = self;
        Line { event, seq: Some(*seq), answer: answer.as_ref(), with_config }.json()
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Record { seq, event, answer } = self;
        Line { event, seq: Some(*seq), answer: answer.as_ref(), with_config: false }.serialize(serializer)
    }
}

struct Line<'a> {
    event: &'a ContainerEvent,
    /// `None` before it is a record.
    seq: Option<u64>,
    answer: Option<&'a Answer>,
    with_config: bool,
}

impl Line<'_> {
    fn json(&self) -> String {
        // Strings, numbers and maps with string keys only: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Line { event, seq, answer, with_config } = *self;
        let container = &*event.container;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("event", &event.kind)?;
        map.serialize_entry("seq", &seq)?;
        map.serialize_entry("time", &rfc3339(event.time))?;
        map.serialize_entry("id", &container.id)?;
        map.serialize_entry("name", &container.name)?;
        map.serialize_entry("pid", &container.pid)?;
        map.serialize_entry("bundle", &container.bundle.as_ref().map(|p| p.to_string_lossy()))?;
        match &container.runtime {
            Some(runtime) => {
                map.serialize_entry(
                    "runtime",
                    &RuntimeLine { name: &runtime.name, path: &runtime.path.to_string_lossy() },
                )?;
            }
            None => map.serialize_entry("runtime", &())?,
        }
        map.serialize_entry("engine", &container.engine)?;
        map.serialize_entry("held", &event.held)?;
        map.serialize_entry("existing", &event.existing)?;
        map.serialize_entry(
            "answer",
            &answer.map(|answer| AnswerLine {
                decision: answer.decision,
                reason: answer.reason.as_deref(),
                timed_out: answer.timed_out,
                held_us: u64::try_from(answer.held_for.as_micros()).unwrap_or(u64::MAX),
            }),
        )?;
        map.serialize_entry("rootless", &container.rootless)?;
        map.serialize_entry("owner_uid", &container.owner_uid)?;
        if with_config {
            map.serialize_entry("config", &container.config.as_ref().and_then(Config::value))?;
        }
        map.serialize_entry("image", &container.image)?;
        map.serialize_entry("kubernetes", &container.kubernetes)?;
        map.serialize_entry("exec", &event.exec.as_deref())?;
        map.serialize_entry(
            "exit",
            &event.exit.map(|exit| ExitLine {
                code: exit.code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
                core_dumped: exit.core_dumped,
            }),
        )?;
        if let Some(verb) = event.verb() {
            map.serialize_entry("verb", &verb)?;
        }
        if let Some(signal) = event.signal() {
            map.serialize_entry("signal", &signal)?;
        }
        if let Some(limits) = event.limits() {
            map.serialize_entry("limits", limits)?;
        }
        if let Some(at) = event.started_at() {
            map.serialize_entry("started_at", &rfc3339(at))?;
        }
        if let Some(at) = event.finished_at() {
            map.serialize_entry("finished_at", &rfc3339(at))?;
        }
        if let Some(resources) = event.resources() {
            map.serialize_entry("resources", &resources)?;
        }
        if let Some(cgroup) = &container.cgroup {
            map.serialize_entry("cgroup", cgroup)?;
        }
        if let Some(detail) = &event.detail {
            map.serialize_entry("detail", detail)?;
        }
        if let Some(error) = &container.config_error {
            map.serialize_entry("config_error", error)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct RuntimeLine<'a> {
    name: &'a str,
    path: &'a str,
}

#[derive(Serialize)]
struct AnswerLine<'a> {
    decision: Verdict,
    reason: Option<&'a str>,
    timed_out: bool,
    held_us: u64,
}

#[derive(Serialize)]
struct ExitLine {
    code: Option<i32>,
    signal: Option<i32>,
    oom_killed: Option<bool>,
    core_dumped: Option<bool>,
}

/// RFC 3339 in UTC with nanoseconds.
fn rfc3339(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(timestamp) => format!("{timestamp:.9}"),
        Err(_) => String::from("1970-01-01T00:00:00.000000000Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_from_its_word() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse::<EventKind>(), Ok(kind));
        }
        let error = "creatd".parse::<EventKind>().unwrap_err().to_string();
        assert!(error.contains("pre-create, created, started"), "{error}");
    }

    #[test]
    fn a_record_is_the_json_of_the_contract() {
        let container = Container {
            id: "c1".into(),
            pid: Some(42),
            bundle: Some("/b".into()),
            runtime: Some(Runtime::new("runc", "/usr/sbin/runc")),
            ..Container::default()
        };
        let event = ContainerEvent {
            kind: EventKind::Stopped,
            time: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 120),
            container: Arc::new(container),
            held: false,
            deadline: None,
            existing: false,
            caller: None,
            exit: Some(ExitStatus::exited(3)),
            exec: None,
            detail: None,
            ending: None,
            asked: None,
        };
        assert!(
            event.to_json().starts_with(r#"{"event":"stopped","seq":null,"time":"#),
            "{}",
            event.to_json()
        );
        let record = Record { seq: 7, event, answer: None };
        assert_eq!(
            record.to_json(),
            r#"{"event":"stopped","seq":7,"time":"2023-11-14T22:13:20.000000120Z","id":"c1","name":null,"pid":42,"#
                .to_owned()
                + r#""bundle":"/b","runtime":{"name":"runc","path":"/usr/sbin/runc"},"engine":null,"held":false,"#
                + r#""existing":false,"answer":null,"rootless":false,"owner_uid":0,"image":null,"kubernetes":null,"#
                + r#""exec":null,"exit":{"code":3,"signal":null,"oom_killed":null,"core_dumped":null}}"#
        );
    }
}
