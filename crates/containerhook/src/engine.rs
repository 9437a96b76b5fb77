//! The one thread that owns all state: it reads events, keeps the lives, and answers. Nothing it does waits.
//!
//! Every turn of its loop: read what the kernel holds, *then* what has ended, and settle the ends first. So a pid that
//! is used again is never taken for the process that had it before.

mod ends;
mod holds;
mod marks;
mod outcomes;
mod setup;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use fanotify::{Group, InodeId, Mark};

use self::ends::Doubt;
use self::holds::Held;
use self::marks::{Marked, sources};
use crate::bundle::host_path::on_host;
use crate::capture::Capture;
use crate::dispatch::Dispatch;
use crate::error::{Error, ErrorKind};
use crate::event::ExitStatus;
use crate::exec_watch::{ExecWatch, Seen};
use crate::exit::{self, Ended, Exits, Process};
use crate::handler::{Decision, Handler};
use crate::lifecycle::{Action, HoldId, Input, LifeId, Lifecycle, Token};
use crate::linger::Linger;
use crate::mailbox::{Address, BELL, Inbox, Mailbox};
use crate::marker::Marker;
use crate::memory::Memory;
use crate::notifier::{ExitBackend, MarkedRuntime, Settings, Status};
use crate::outlet::{Inlet, Level};
use crate::pool::Pool;
use crate::private_table;
use crate::proc::HostProc;
use crate::runtime::Search;
use crate::seldom::Seldom;
use crate::sys::{Bell, Ready};
use crate::work::{Creation, Job, Outcome, Ward};

/// Workers at once: each waits for one disk or one caller's memory.
const WORKERS: usize = 64;

/// Workers at once for callers who are not the host's root.
const WORKERS_FOR_ANYBODY: usize = 16;

/// Names that conmon brought and no create took yet; an old one goes for a new one.
const MOST_NAMES: usize = 4096;

/// How long a worker may take to read a held execution before it is let go, at most.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) enum Command {
    WatchTermination { id: String, pid: u32, reply: SyncSender<Result<(), Error>> },
    Status { reply: SyncSender<Status> },
    Ping { reply: SyncSender<()> },
    Close,
}

pub(crate) enum Message {
    Command(Command),
    Replied(Token, Result<Decision, String>),
    Worked(Outcome),
}

impl Mailbox<Message> {
    pub(crate) fn send(&self, command: Command) {
        self.post(Message::Command(command));
    }
}

/// What the notifier keeps of its engine. It is dropped after the engine has ended, on the user's side.
pub(crate) struct Handle {
    pub(crate) mailbox: Arc<Mailbox<Message>>,
    pub(crate) thread: Option<JoinHandle<()>>,
    /// The handler must be dropped where the user's descriptors are.
    _dispatch: Arc<Dispatch>,
}

/// Starts the engine, and returns when all runtimes found are marked.
pub(crate) fn start(settings: Settings, handler: Box<dyn Handler>, log: Inlet) -> Result<Handle, Error> {
    let (address, messages) = Address::new();
    let bell = Bell::new().map_err(|e| Error::os("cannot create an eventfd", e))?;
    let number = bell.as_fd().as_raw_fd();
    let mailbox = Arc::new(address.mailbox(bell));
    let replies = Arc::clone(&mailbox);
    let reply = move |token, decision| replies.post(Message::Replied(token, decision));
    let deadlines = settings.deadlines.values().copied();
    let patience = deadlines.fold(settings.deadline, Duration::max);
    let dispatch =
        Arc::new(Dispatch::new(handler, settings.max_handlers, patience, linger_of(&settings), reply)?);
    let (ready, started) = mpsc::sync_channel(1);
    let share = Arc::clone(&dispatch);
    let thread = thread::Builder::new()
        .name("ch-engine".into())
        .spawn(move || {
            // The share of the dispatcher goes before this thread ends; the last one is the notifier's.
            let run = || -> Result<Engine, Error> {
                private_table::enter(number)
                    .map_err(|e| Error::os("cannot give the engine a descriptor table of its own", e))?;
                let bell = Bell::adopt(private_table::adopt(number));
                Engine::new(settings, share, log, address.mailbox(bell), messages)
            };
            match run() {
                Ok(mut engine) => {
                    if ready.send(Ok(())).is_ok() {
                        engine.run();
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })
        .map_err(|e| Error::os("cannot start the engine's thread", e))?;
    let handle = Handle { mailbox, thread: Some(thread), _dispatch: dispatch };
    match started.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(error)) => {
            handle.join();
            Err(error)
        }
        Err(_) => {
            handle.join();
            Err(Error::new(ErrorKind::Closed, "the engine's thread panicked while it was starting"))
        }
    }
}

impl Handle {
    fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The time of a moment, where it was `time` at `at`. While much is read, some of it happens after the reading has begun.
fn time_of(moment: Instant, at: Instant, time: SystemTime) -> SystemTime {
    let of = match moment.checked_duration_since(at) {
        Some(later) => time.checked_add(later),
        None => time.checked_sub(at - moment),
    };
    of.unwrap_or(time)
}

/// Awake waits take the processor from nobody only where there is another.
fn linger_of(settings: &Settings) -> Linger {
    let several = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    Linger::new(if several { settings.busy_wait } else { Duration::ZERO })
}

const GROUP: u64 = 0;
const EXITS: u64 = 1;
const EXECS: u64 = 2;

struct Engine {
    group: Arc<Group>,
    inbox: Inbox<Message>,
    /// Where the host's processes are seen.
    proc: HostProc,
    capture: Capture,
    /// It was not asked for, and has not been replaced.
    may_replace_capture: bool,
    exits: Exits,
    exec_watch: Option<ExecWatch>,
    /// Whether that has missed something.
    misses: Seldom,
    /// When this began to listen, in clock ticks since boot: what was there before is no news.
    started: u64,
    exit_backend: ExitBackend,
    lifecycle: Lifecycle,
    workers: Workers,
    dispatch: Arc<Dispatch>,
    log: Inlet,
    holds: HashMap<HoldId, Held>,
    /// Runtimes under which a container's first program is to be stopped, as its file could not be marked.
    stops: HashMap<Process, LifeId>,
    /// Inits that were ended as their container was refused.
    killed: HashSet<Process>,
    /// Ends by SIGKILL whose reason is being asked for, oldest first.
    doubts: VecDeque<Doubt>,
    memory: Option<Memory>,
    /// Held executions that a worker reads, oldest first, with when to give up.
    reading: VecDeque<(Instant, HoldId)>,
    /// How long reading one may take.
    patience: Duration,
    runtimes: HashMap<InodeId, Marked>,
    creations: HashMap<LifeId, Arc<Creation>>,
    /// What is kept of a detached `exec` until its process's pid is known, by the runtime's process.
    execs: HashMap<Process, Arc<Creation>>,
    entries: HashMap<InodeId, Vec<LifeId>>,
    entry_marks: HashMap<LifeId, (Mark, PathBuf)>,
    /// Processes whose end is to be reported and that could not be watched: no descriptor was left.
    unwatched: Vec<Process>,
    watch_again_at: Instant,
    /// What conmon was told of containers that are not created yet.
    names: VecDeque<(std::ffi::OsString, String)>,
    search: Search,
    /// Looks for existing containers whose outcome has not come yet.
    looks: usize,
    marker: Option<Marker>,
    tells_existing: bool,
    tells_strangers: bool,
    warnings: Vec<String>,
    actions: Vec<Action>,
    closing: bool,
}

/// Those who do what may wait.
struct Workers {
    trusted: Pool<Job>,
    anybody: Pool<Job>,
}

impl Workers {
    fn submit(&self, job: Job) {
        match job.ward() {
            Ward::Trusted => self.trusted.submit(job),
            Ward::Anybody => self.anybody.submit(job),
        };
    }
}

impl Drop for Engine {
    /// What the kernel holds for the group it frees by itself; what was stopped goes on by this, or by the guardian.
    fn drop(&mut self) {
        for (_, held) in std::mem::take(&mut self.holds) {
            self.let_go(held, None);
        }
    }
}

impl Engine {
    fn warn(&mut self, warning: String) {
        self.log.log(Level::Warn, warning.clone());
        self.warnings.push(warning);
    }

    fn run(&mut self) {
        let mut events = Vec::new();
        let mut ended = Vec::new();
        let mut seen = Vec::new();
        while !self.closing {
            let due = [
                self.lifecycle.next_due(),
                self.exits.next_deadline(),
                self.misses.due(),
                self.reading.front().map(|(at, _)| *at),
                self.doubts.front().map(|doubt| doubt.until),
                self.unwatched.first().map(|_| self.watch_again_at),
            ];
            let due = due.into_iter().flatten().min();
            // What is held should go on soon.
            let only_rung = self.inbox.wait(due, !self.holds.is_empty()) == Ready::Only(BELL);
            let (mut at, mut time) = (Instant::now(), SystemTime::now());
            // Where only the bell is rung, there was no event and no end when this thread woke.
            if !only_rung || due.is_some_and(|due| due <= at) {
                if let Err(error) = self.group.read(&mut events) {
                    self.log.log(Level::Warn, format!("reading events: {error}"));
                }
                (at, time) = (Instant::now(), SystemTime::now());
                // Whoever is held comes first: what may be put off is done in a turn of its own, right after this.
                let held = !events.is_empty();
                self.exits.drain(&mut ended, held);
                // After the ends are read, and before they are settled: a container that was seen to run is known when its
                // end is.
                if let Some(exec_watch) = &mut self.exec_watch {
                    exec_watch.drain(&mut seen);
                    let asks = self.misses.is_time(seen.len() >= 16, held, at);
                    if asks && exec_watch.missed().untold > 0 {
                        self.apply(Input::Overflow { time });
                        self.look();
                    }
                }
            }
            for seen in seen.drain(..) {
                self.seen(&seen, at, time);
            }
            for Ended { process, status, oom_killed, at: when } in ended.drain(..) {
                let status = status.map_or(ExitStatus::UNKNOWN, ExitStatus::from);
                let status = ExitStatus { oom_killed, ..status };
                let time = time_of(when, at, time);
                self.ended(process, status, time);
            }
            while let Some(message) = self.inbox.next() {
                self.message(message);
            }
            for event in events.drain(..) {
                self.event(event, at, time);
            }
            let now = Instant::now();
            self.give_up(now);
            self.watch_again(now);
            self.lifecycle.tick(now, &mut self.actions);
            self.act();
        }
    }

    fn apply(&mut self, input: Input) {
        self.lifecycle.apply(input, Instant::now(), &mut self.actions);
        self.act();
    }

    /// The init of some pid namespace has executed a program.
    fn seen(&mut self, seen: &Seen, at: Instant, time: SystemTime) {
        if let Some(runtime) = seen.stopped_for {
            let filename = seen.filename.to_string_lossy().into_owned();
            self.stopped(seen.process, runtime, filename, at, time);
            return;
        }
        let ancestors: Vec<i32> = seen.ancestors.iter().map(|ancestor| ancestor.process.pid).collect();
        if self.lifecycle.tells_of(seen.init, &ancestors) {
            return;
        }
        let existing = seen.init.start_time < self.started;
        if !self.tells_strangers || existing && !self.tells_existing {
            return;
        }
        let time = time_of(seen.at, at, time);
        if self.lifecycle.is_run(seen.init, &ancestors) {
            self.apply(Input::Ran { init: seen.init, ancestors, time });
            return;
        }
        let (init, search) = (seen.init, self.search.clone());
        self.looks += usize::from(existing);
        self.workers.submit(Job::Stranger { init, ancestors, search, existing, time });
    }

    /// Looks for containers that run already.
    fn look(&mut self) {
        self.looks += 1;
        self.workers.submit(Job::Existing { search: self.search.clone() });
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Replied(token, decision) => {
                self.dispatch.replied(token);
                self.apply(Input::Replied { token, decision });
            }
            Message::Worked(outcome) => self.worked(outcome),
            Message::Command(Command::Close) => self.closing = true,
            Message::Command(Command::Ping { reply }) => {
                let _ = reply.try_send(());
            }
            Message::Command(Command::Status { reply }) => {
                let _ = reply.send(self.status());
            }
            Message::Command(Command::WatchTermination { id, pid, reply }) => {
                let _ = reply.send(self.watch_termination(id, pid));
            }
        }
    }

    /// Carries out what the lifecycle wants.
    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Answer { hold, refusal } => {
                    // A hold that is gone was let go by `give_up`.
                    if let Some(held) = self.holds.remove(&hold) {
                        self.let_go(held, refusal);
                    }
                }
                Action::Tell { life, token, event } => self.dispatch.tell(life, token, event),
                Action::Overdue { token } => {
                    if !self.dispatch.overdue(token) {
                        let line = "too many handlers are late: one event will not be told to the handler";
                        self.log.log(Level::Warn, line);
                    }
                }
                Action::Finish { life, change, mark } => match self.creations.get(&life) {
                    Some(creation) if mark || change.is_some() => {
                        let config = self.lifecycle.container(life).and_then(|c| c.config.clone());
                        let creation = Arc::clone(creation);
                        self.workers.submit(Job::Finish { life, creation, change, config, mark });
                    }
                    _ => {
                        // Nothing is to be done for it: it comes back by the same way, so that it is applied after this.
                        let outcome = Outcome::Finished { life, outcome: Default::default(), entry: None };
                        self.inbox.mailbox().post(Message::Worked(outcome));
                    }
                },
                Action::FindInit { life } => {
                    if let Some(creation) = self.creations.get(&life) {
                        let creation = Arc::clone(creation);
                        let mark = self.lifecycle.wants_mark(life);
                        self.workers.submit(Job::FindInit { life, creation, mark });
                    }
                }
                Action::Learn(process) => {
                    self.remember(process);
                    self.workers.submit(Job::Cgroup { process });
                }
                Action::Watch(process) => self.watch(process),
                Action::FindExec { life, runtime } => {
                    if let Some(creation) = self.execs.remove(&runtime) {
                        self.workers.submit(Job::FindExec { life, runtime, creation });
                    }
                }
                Action::Unwatch(process) => {
                    self.forget(process);
                    self.killed.remove(&process);
                    self.exits.unwatch(process);
                }
                Action::Kill(process) => {
                    self.killed.insert(process);
                    match self.exits.kill(process, libc::SIGKILL) {
                        // No signal reaches another pid namespace.
                        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                            self.workers.submit(Job::KillCgroup { process });
                        }
                        Err(error) => {
                            self.log.log(Level::Warn, format!("ending process {}: {error}", process.pid));
                        }
                        Ok(()) => {}
                    }
                }
                Action::Unmark { life, by } => self.unmark(life, by),
                Action::Release { life } => self.release(life),
                Action::Record(record) => self.log.record(*record),
                Action::Log(level, line) => self.log.log(level, line),
            }
        }
        // Nothing above makes new actions: what follows from one comes by the inbox.
        self.actions = actions;
    }

    fn status(&self) -> Status {
        let (containers, creating) = self.lifecycle.counts();
        let mut runtimes: Vec<MarkedRuntime> = self
            .runtimes
            .values()
            .map(|marked| MarkedRuntime {
                name: marked.binary.name.clone(),
                path: on_host(&self.search.host_root, &marked.binary.host_path),
                found_by: sources(&marked.binary),
            })
            .collect();
        runtimes.sort_by(|a, b| a.path.cmp(&b.path));
        Status {
            runtimes,
            capture_backend: self.capture.backend(),
            exit_backend: self.exit_backend,
            containers,
            creating,
            held: self.holds.len(),
            looking: self.looks > 0,
            timed_out: self.lifecycle.timed_out,
            warnings: self.warnings.clone(),
        }
    }
}

impl From<ExitBackend> for exit::Choice {
    fn from(backend: ExitBackend) -> Self {
        match backend {
            ExitBackend::Auto => exit::Choice::Auto,
            ExitBackend::Bpf => exit::Choice::Bpf,
            ExitBackend::PidfdInfo => exit::Choice::PidfdInfo,
            ExitBackend::Pidfd => exit::Choice::Pidfd,
        }
    }
}

impl From<exit::Backend> for ExitBackend {
    fn from(backend: exit::Backend) -> Self {
        match backend {
            exit::Backend::Bpf => ExitBackend::Bpf,
            exit::Backend::PidfdInfo => ExitBackend::PidfdInfo,
            exit::Backend::Pidfd => ExitBackend::Pidfd,
        }
    }
}

impl From<std::process::ExitStatus> for ExitStatus {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        // A status of neither form is none that ends a process.
        let core_dumped = status.signal().map(|_| status.core_dumped());
        ExitStatus { code: status.code(), signal: status.signal(), oom_killed: None, core_dumped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_while_it_is_read_has_a_time_of_its_own() {
        let (at, time) = (Instant::now(), SystemTime::now());
        let second = Duration::from_secs(1);
        assert_eq!(time_of(at - second, at, time), time - second);
        assert_eq!(time_of(at, at, time), time);
        assert_eq!(time_of(at + second, at, time), time + second);
    }
}
