//! The one thread that owns all state: it reads events, keeps the lives, and answers. Nothing it does waits.
//!
//! Every turn of its loop: read what the kernel holds, *then* what has ended, and settle the ends first. So a pid that
//! is used again is never taken for the process that had it before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use fanotify::{Class, Event, Group, InodeId, Mark, PermissionEvent};

use crate::bpf::Loader;
use crate::dispatch::Dispatch;
use crate::error::{Error, ErrorKind};
use crate::event::{EventKind, ExitStatus};
use crate::exec_watch::{ExecWatch, Seen};
use crate::exit::{self, Ended, Exits, Process, WatchError};
use crate::handler::{Decision, Handler};
use crate::lifecycle::{
    Action, Existing, HoldId, Init, Input, LifeId, Lifecycle, Refusal, Rules, Token, Vanished, Verb,
};
use crate::marker::{self, Changes, Marker};
use crate::memory::{self, Known, Memory, Remembered};
use crate::notifier::{ExitBackend, MarkedRuntime, Settings, Status};
use crate::outlet::{Inlet, Level};
use crate::pool::Pool;
use crate::private_table;
use crate::proc;
use crate::runtime::{Binary, Search, Source};
use crate::sys::{Bell, Poll};
use crate::work::{Creation, Found, Job, MarkedEntry, Outcome, Ward, Worker, inode_of};

/// Workers at once: each waits for one disk or one caller's memory.
const WORKERS: usize = 64;

/// Workers at once for callers who are not the host's root.
const WORKERS_FOR_ANYBODY: usize = 16;

/// Names that conmon brought and no create took yet; an old one goes for a new one.
const MOST_NAMES: usize = 4096;

/// How soon what could not be watched is tried again.
const WATCH_AGAIN: Duration = Duration::from_millis(50);

/// How long a worker may take to read a held execution before it is let go, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an end waits for what its cgroup has counted.
const COUNTING: Duration = Duration::from_millis(100);

pub(crate) enum Command {
    WatchTermination { id: String, pid: u32, reply: SyncSender<Result<(), Error>> },
    Status { reply: SyncSender<Status> },
    Ping { reply: SyncSender<()> },
    Close,
}

enum Message {
    Command(Command),
    Replied(Token, Result<Decision, String>),
    Worked(Outcome),
}

/// How the other threads reach the engine: a message and a ring. There is one for each side of the descriptor tables.
pub(crate) struct Mailbox {
    sender: Sender<Message>,
    bell: Bell,
}

impl Mailbox {
    pub(crate) fn send(&self, command: Command) {
        self.post(Message::Command(command));
    }

    fn post(&self, message: Message) {
        // Where the engine has ended the message is dropped, and with it the channel that its answer would have come by.
        if self.sender.send(message).is_ok() {
            self.bell.ring();
        }
    }
}

/// What the notifier keeps of its engine. It is dropped after the engine has ended, on the user's side.
pub(crate) struct Handle {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) thread: Option<JoinHandle<()>>,
    /// The handler must be dropped where the user's descriptors are.
    _dispatch: Arc<Dispatch>,
}

/// Starts the engine, and returns when all runtimes found are marked.
pub(crate) fn start(settings: Settings, handler: Box<dyn Handler>, log: Inlet) -> Result<Handle, Error> {
    let (sender, inbox) = mpsc::channel();
    let bell = Bell::new().map_err(|e| Error::os("cannot create an eventfd", e))?;
    let number = bell.as_fd().as_raw_fd();
    let mailbox = Arc::new(Mailbox { sender: sender.clone(), bell });
    let replies = Arc::clone(&mailbox);
    let reply = move |token, decision| replies.post(Message::Replied(token, decision));
    let deadlines = settings.deadlines.values().copied();
    let patience = deadlines.fold(settings.deadline, Duration::max);
    let dispatch = Arc::new(Dispatch::new(handler, settings.max_handlers, patience, reply)?);
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
                Engine::new(settings, share, log, sender, inbox, bell)
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

const GROUP: u64 = 0;
const EXITS: u64 = 1;
const BELL: u64 = 2;
const EXECS: u64 = 3;

struct Engine {
    group: Arc<Group>,
    poll: Poll,
    bell: Arc<Mailbox>,
    inbox: Receiver<Message>,
    exits: Exits,
    exec_watch: Option<ExecWatch>,
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

/// A container, or a runtime, that waits for an answer.
enum Held {
    /// In its exec; dropped, it goes on.
    Exec(PermissionEvent),
    /// After its exec, by a signal.
    Stopped { init: Process, runtime: Process },
}

/// The end of an init of which it is not known yet whether the kernel killed it.
struct Doubt {
    until: Instant,
    process: Process,
    status: ExitStatus,
    time: SystemTime,
}

struct Marked {
    binary: Arc<Binary>,
    mark: Mark,
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
    fn new(
        settings: Settings,
        dispatch: Arc<Dispatch>,
        log: Inlet,
        sender: Sender<Message>,
        inbox: Receiver<Message>,
        bell: Bell,
    ) -> Result<Engine, Error> {
        // This class may choose the errno of a denial, from Linux 6.13; before that both do the same.
        let group = Group::builder().nonblocking(true).class(Class::PreContent).build();
        let group = group.map_err(|error| of_fanotify(&error))?;
        let group = Arc::new(group);
        let mut warnings = Vec::new();
        let mut loader = Loader::new();
        let (exits, said) = Exits::open(settings.exit_backend.into(), &mut loader)
            .map_err(|e| Error::new(ErrorKind::Unsupported, e.to_string()))?;
        warnings.extend(said);
        let exec_watch = if settings.exec_watch != Some(false) {
            ExecWatch::open(&mut loader)
                .map_err(|refused| {
                    warnings.push(format!("containers that no mark held will not be seen: {refused}"));
                })
                .ok()
        } else {
            None
        };
        drop(loader);
        let poll = Poll::new().map_err(|e| Error::os("cannot create an epoll instance", e))?;
        let watch = |fd: BorrowedFd<'_>, token| {
            poll.add(fd, token).map_err(|e| Error::os("cannot wait for the engine's descriptors", e))
        };
        watch(group.as_fd(), GROUP)?;
        watch(exits.fd(), EXITS)?;
        watch(bell.as_fd(), BELL)?;
        if let Some(exec_watch) = &exec_watch {
            watch(exec_watch.fd(), EXECS)?;
        }
        let user_ns = proc::namespace(1, "user")
            .or_else(|_| proc::namespace(std::process::id().cast_signed(), "user"))
            .map_err(|e| Error::os("cannot read the user namespace in /proc", e).remedy("mount /proc"))?;
        let mailbox = Arc::new(Mailbox { sender, bell });
        let pool = |name, ward, most| {
            let worker =
                Worker { group: Arc::downgrade(&group), user_ns, host_root: settings.host_root.clone() };
            let post = Arc::clone(&mailbox);
            let work = move |_, job| {
                if let Some(outcome) = worker.run(job, ward) {
                    post.post(Message::Worked(outcome));
                }
            };
            // A worker that waits for a dead disk must not take another's place for longer than what it reads is held.
            Pool::new(name, most, PATIENCE, work, |_| ())
                .map_err(|e| Error::os("cannot start a worker's thread", e))
        };
        let workers = Workers {
            trusted: pool("ch-worker", Ward::Trusted, WORKERS)?,
            anybody: pool("ch-worker-any", Ward::Anybody, WORKERS_FOR_ANYBODY)?,
        };
        let search = Search {
            host_root: settings.host_root.clone(),
            only: settings.only_runtime.clone(),
            extra: settings.runtimes.clone(),
            configs: settings.discover,
            engines: settings.discover,
        };
        let exit_backend = exits.backend().into();
        // What is held is read within its deadline, whatever it will turn out to be.
        let held = [EventKind::PreCreate, EventKind::Created, EventKind::Started, EventKind::Exec];
        let deadline = |kind| settings.deadlines.get(kind).copied().unwrap_or(settings.deadline);
        let patience = held.iter().map(deadline).fold(PATIENCE, Duration::min);
        let rules = Rules {
            told: settings.told,
            deadlines: settings.deadlines,
            deadline: settings.deadline,
            on_timeout: settings.on_timeout,
        };
        let mut engine = Engine {
            group,
            poll,
            bell: mailbox,
            inbox,
            exits,
            exec_watch,
            started: own_start_time(),
            exit_backend,
            lifecycle: Lifecycle::new(rules),
            workers,
            dispatch,
            log,
            holds: HashMap::new(),
            stops: HashMap::new(),
            killed: HashSet::new(),
            doubts: VecDeque::new(),
            memory: None,
            reading: VecDeque::new(),
            patience,
            runtimes: HashMap::new(),
            creations: HashMap::new(),
            execs: HashMap::new(),
            entries: HashMap::new(),
            entry_marks: HashMap::new(),
            unwatched: Vec::new(),
            watch_again_at: Instant::now(),
            names: VecDeque::new(),
            search,
            looks: 0,
            marker: None,
            tells_existing: settings.existing,
            tells_strangers: settings.exec_watch.unwrap_or(settings.discover),
            warnings: Vec::new(),
            actions: Vec::new(),
            closing: false,
        };
        for warning in warnings {
            engine.warn(warning);
        }
        engine.mark_at_start(settings.discover)?;
        if let Some(path) = settings.state_file {
            engine.recall(path)?;
        }
        if settings.existing {
            engine.look();
        }
        Ok(engine)
    }

    /// Tells what an earlier listener has left untold.
    fn recall(&mut self, path: PathBuf) -> Result<(), Error> {
        let remembered = memory::recall(&path).unwrap_or_else(|error| {
            self.warn(format!("what {} remembers is not read: {error}", path.display()));
            Remembered::default()
        });
        let memory = Memory::start(path, self.log.clone())
            .map_err(|e| Error::os("cannot start the thread that keeps the state file", e))?;
        self.memory = Some(memory);
        let time = SystemTime::now();
        for known in remembered.ended {
            let (key, container, _) = known.restore();
            self.apply(Input::Vanished(Box::new(Vanished { key, container, time })));
        }
        for known in remembered.running {
            let (key, container, process) = known.restore();
            self.apply(Input::Existing(Box::new(Existing { key, container, process, time })));
        }
        Ok(())
    }

    fn remember(&self, process: Process) {
        if let Some(memory) = &self.memory
            && let Some((key, container)) = self.lifecycle.container_of(process)
        {
            memory.runs(Known::new(process, key, container));
        }
    }

    fn forget(&mut self, process: Process) {
        self.execs.remove(&process);
        if let Some(memory) = &self.memory {
            memory.ended(process);
        }
    }

    /// Marks what is there, before anybody is told that the notifier listens: here, and here only, the engine waits.
    fn mark_at_start(&mut self, discover: bool) -> Result<(), Error> {
        let discovered = crate::runtime::discover(&self.search);
        for warning in &discovered.warnings {
            self.warn(warning.to_string());
        }
        let wanted = discovered.binaries.iter().filter(|binary| marker::is_wanted(binary, discover)).cloned();
        let group = Arc::downgrade(&self.group);
        let mut refused = None;
        for (binary, mark) in marker::mark_all(&group, wanted) {
            match mark {
                Ok(mark) => self.marked(binary, mark),
                Err(error) => {
                    self.warn(format!("{} is not marked: {error}", binary.host_path.display()));
                    refused = Some(error);
                }
            }
        }
        if !self.runtimes.is_empty() {
            let post = Arc::clone(&self.bell);
            let report = move |changes| post.post(Message::Worked(Outcome::Changed(changes)));
            match Marker::start(self.search.clone(), discover, discovered, group, report) {
                Ok(marker) => self.marker = Some(marker),
                Err(error) => self.warn(format!("runtimes that change will not be noticed: {error}")),
            }
            return Ok(());
        }
        match refused {
            Some(error) => Err(of_fanotify(&error)),
            None => Err(Error::new(
                ErrorKind::NoRuntime,
                format!("no container runtime was found under {}", self.search.host_root.display()),
            )
            .remedy("install one, or name its path: --runtime PATH, Builder::runtime; in a container set HOST_ROOT")),
        }
    }

    fn marked(&mut self, binary: Binary, mark: Mark) {
        let line = format!("{} is marked ({})", binary.host_path.display(), sources(&binary));
        if self.keep(binary, mark) {
            self.log.log(Level::Info, line);
        }
    }

    /// Is it a new one? The earlier mark of an inode goes when the new one is there: the kernel's stays all the time.
    fn keep(&mut self, binary: Binary, mark: Mark) -> bool {
        let identity = binary.identity();
        let new = Marked { binary: Arc::new(binary), mark };
        let old = self.runtimes.insert(inode_of(&new.binary), new);
        let same = old.as_ref().is_some_and(|old| old.binary.identity() == identity);
        if let Some(old) = old {
            self.workers.submit(Job::Unmark(old.mark));
        }
        !same
    }

    fn changed(&mut self, changes: Changes) {
        for warning in changes.warnings {
            // Each search finds what the one before it did.
            if !self.warnings.contains(&warning) {
                self.warn(warning);
            }
        }
        // What is gone goes first: its inode's number may be that of what has come.
        for binary in changes.gone {
            let inode = inode_of(&binary);
            if self.runtimes.get(&inode).is_some_and(|known| known.binary.identity() == binary.identity())
                && let Some(old) = self.runtimes.remove(&inode)
            {
                self.log.log(Level::Info, format!("{} is gone", binary.host_path.display()));
                self.workers.submit(Job::Unmark(old.mark));
            }
        }
        for (binary, mark) in changes.marked {
            match mark {
                Ok(mark) => self.marked(binary, mark),
                Err(error) => self.warn(format!("{} is not marked: {error}", binary.host_path.display())),
            }
        }
        for (binary, mark) in changes.likely {
            self.keep(binary, mark);
        }
    }

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
                self.reading.front().map(|(at, _)| *at),
                self.doubts.front().map(|doubt| doubt.until),
                self.unwatched.first().map(|_| self.watch_again_at),
            ];
            self.poll.wait(due.into_iter().flatten().min());
            if let Err(error) = self.group.read(&mut events) {
                self.log.log(Level::Warn, format!("reading events: {error}"));
            }
            let (at, time) = (Instant::now(), SystemTime::now());
            self.exits.drain(&mut ended);
            // After the ends are read, and before they are settled: a container that was seen to run is known when its end is.
            if let Some(exec_watch) = &mut self.exec_watch {
                exec_watch.drain(&mut seen);
                let missed = exec_watch.missed();
                if missed.untold > 0 {
                    self.apply(Input::Overflow { time });
                    self.look();
                }
            }
            for seen in seen.drain(..) {
                self.seen(&seen, at, time);
            }
            for Ended { process, status, oom_killed, at: when } in ended.drain(..) {
                let status = status.map_or(ExitStatus::UNKNOWN, ExitStatus::from);
                let status = ExitStatus { oom_killed, ..status };
                let time = time.checked_sub(at.saturating_duration_since(when)).unwrap_or(time);
                self.ended(process, status, time);
            }
            self.bell.bell.silence();
            while let Ok(message) = self.inbox.try_recv() {
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

    /// A process has ended. Where only its cgroup knows whether the kernel killed it, that is asked first.
    fn ended(&mut self, process: Process, status: ExitStatus, time: SystemTime) {
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

    fn counted(&mut self, process: Process, oom_killed: Option<bool>) {
        let at = self.doubts.iter().position(|doubt| doubt.process == process);
        if let Some(Doubt { status, time, .. }) = at.and_then(|at| self.doubts.remove(at)) {
            self.apply(Input::Ended { process, status: ExitStatus { oom_killed, ..status }, time });
            self.forget(process);
        }
    }

    fn apply(&mut self, input: Input) {
        self.lifecycle.apply(input, Instant::now(), &mut self.actions);
        self.act();
    }

    fn event(&mut self, event: Event, at: Instant, time: SystemTime) {
        match event {
            Event::Permission(event) => self.held(event, at, time),
            Event::Overflow => {
                self.apply(Input::Overflow { time });
                self.look();
            }
            Event::Passed(passed) => {
                let line = format!("task {} was not held: no descriptor was left (ulimit -n)", passed.task());
                self.log.log(Level::Warn, line);
                // It goes on by itself, and is told of what can still be seen of it.
                if let Some(marked) = passed.inode().and_then(|inode| self.runtimes.get(&inode)) {
                    let (tid, binary) = (passed.task(), Arc::clone(&marked.binary));
                    let life = self.lifecycle.new_id();
                    self.workers.submit(Job::Passed { life, tid, binary, at, time });
                }
            }
            Event::Refused(refused) => {
                self.log.log(Level::Warn, format!("the kernel denied an execution: {}", refused.reason()));
            }
            _ => {}
        }
    }

    fn held(&mut self, event: PermissionEvent, at: Instant, time: SystemTime) {
        // Answered by being dropped, wherever this returns without keeping it.
        let Ok(inode) = event.inode() else { return };
        let tid = event.task();
        if self.lifecycle.knows(tid).is_some_and(|process| self.exits.is_alive(process)) {
            // A runtime that executes itself again, or what it was asked to run.
            if !self.entries.contains_key(&inode) {
                return;
            }
        }
        let hold = self.lifecycle.new_id();
        let job = if let Some(lives) = self.entries.get(&inode) {
            let executable = lives
                .iter()
                .find_map(|life| self.entry_marks.get(life))
                .map(|(_, path)| path.display().to_string());
            Job::Entry { hold, tid, stopped: false, candidates: lives.clone(), executable, at, time }
        } else if let Some(marked) = self.runtimes.get(&inode) {
            Job::Command { hold, tid, binary: Arc::clone(&marked.binary), at, time }
        } else {
            return;
        };
        self.holds.insert(hold, Held::Exec(event));
        self.reading.push_back((at + self.patience, hold));
        self.workers.submit(job);
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
        let time = time.checked_sub(at.saturating_duration_since(seen.at)).unwrap_or(time);
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

    /// Lets go what a worker could not read in time.
    fn give_up(&mut self, now: Instant) {
        while let Some(&Doubt { until, process, .. }) = self.doubts.front()
            && until <= now
        {
            self.counted(process, None);
        }
        while let Some(&(at, hold)) = self.reading.front() {
            if at > now {
                return;
            }
            self.reading.pop_front();
            if let Some(held) = self.holds.remove(&hold) {
                self.let_go(held, None);
                self.log.log(Level::Warn, "an execution was let go: it could not be read in time");
            }
        }
    }

    fn read(&mut self, hold: HoldId) {
        if let Some(at) = self.reading.iter().position(|(_, reading)| *reading == hold) {
            self.reading.remove(at);
        }
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

    fn worked(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotTrusted(job) => {
                self.workers.anybody.submit(job);
            }
            Outcome::Lost { hold, why, time } => {
                self.read(hold);
                self.holds.remove(&hold);
                self.apply(Input::Lost { why, time });
            }
            Outcome::Passed { hold, why } => {
                self.read(hold);
                if let Some(held) = self.holds.remove(&hold) {
                    self.let_go(held, None);
                }
                if let Some((level, why)) = why {
                    self.log.log(level, why);
                }
            }
            Outcome::Monitor { hold, id, name } => {
                self.read(hold);
                self.names.retain(|(known, _)| *known != id);
                if self.names.len() >= MOST_NAMES {
                    self.names.pop_front();
                }
                self.names.push_back((id, name));
                self.holds.remove(&hold);
            }
            Outcome::Command { mut command, creation } => {
                let hold = command.hold;
                self.read(hold);
                let process = command.process;
                if let Some(creation) =
                    creation.as_ref().filter(|_| matches!(command.verb, Verb::Exec { .. }))
                {
                    self.execs.insert(process, Arc::clone(creation));
                } else if let Some(creation) = creation {
                    if let Some(at) = self.names.iter().position(|(id, _)| *id == command.key.id)
                        && let Some((_, name)) = self.names.remove(at)
                    {
                        // CRI-O's conmon is called by a mangled name that says less than the annotations.
                        if command.container.kubernetes.is_none() {
                            command.container.name.get_or_insert(name);
                        }
                    }
                    self.creations.insert(hold, creation);
                }
                command.held = self.holds.contains_key(&hold);
                if !command.held {
                    command.detail = Some("not held: it had gone on before it was read".into());
                }
                self.apply(Input::Command(command));
                if !self.lifecycle.is_life(hold) {
                    self.creations.remove(&hold);
                }
                if !self.lifecycle.executes(process) {
                    self.execs.remove(&process);
                }
            }
            Outcome::Entry(entry) => {
                self.read(entry.hold);
                if self.holds.contains_key(&entry.hold) {
                    self.apply(Input::Entry(entry));
                }
            }
            Outcome::Finished { life, outcome, entry } => {
                self.entry_marked(life, entry);
                let mut outcome = outcome;
                if let Some(why) = outcome.unmarked.take() {
                    match self.stop_at_exec(life) {
                        Ok(()) => outcome.marked = true,
                        Err(also) => outcome.unmarked = Some(format!("{why}; {also}")),
                    }
                }
                self.apply(Input::Finished { life, outcome });
            }
            Outcome::Init { life, found, entry, time } => {
                let marked = entry.is_some();
                self.entry_marked(life, entry);
                let init = match found {
                    Err(why) => Init::Unknown(why),
                    Ok(process) => self.watch_found(process),
                };
                self.apply(Input::InitFound { life, init, marked, time });
            }
            Outcome::Changed(changes) => self.changed(changes),
            Outcome::Untold { untold, learned } => {
                self.looks -= usize::from(untold.existing);
                for (binary, mark) in learned {
                    if !self.runtimes.contains_key(&inode_of(&binary)) {
                        let line = format!(
                            "{} is a container runtime that nothing named",
                            binary.host_path.display()
                        );
                        self.log.log(Level::Warn, line);
                    }
                    self.marked(binary, mark);
                }
                self.apply(Input::Untold(untold));
            }
            Outcome::Exec { life, runtime, found, time } => {
                let found = match found {
                    Found::Unknown(why) => Init::Unknown(why),
                    Found::Gone(pid) => Init::Ended(Process { pid, start_time: 0 }, ExitStatus::UNKNOWN),
                    Found::Process(process) => self.watch_found(process),
                };
                self.apply(Input::ExecFound { life, runtime, found, time });
            }
            Outcome::Cgroup { process, cgroup } => self.apply(Input::Cgroup { process, cgroup }),
            Outcome::Counted { process, oom_killed } => self.counted(process, oom_killed),
            Outcome::Ended { process, status, time } => {
                self.apply(Input::Ended { process, status, time });
                self.forget(process);
            }
            Outcome::Existing { found, strangers } => {
                self.looks -= 1;
                for (key, container, process) in found {
                    let time = SystemTime::now();
                    self.apply(Input::Existing(Box::new(Existing { key, container, process, time })));
                }
                for init in strangers {
                    let (search, time) = (self.search.clone(), SystemTime::now());
                    let ancestors = proc::ancestors(init.pid);
                    if !self.lifecycle.tells_of(init, &ancestors) {
                        self.looks += 1;
                        self.workers.submit(Job::Stranger { init, ancestors, search, existing: true, time });
                    }
                }
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
                        self.bell.post(Message::Worked(outcome));
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
                    if let Err(error) = self.exits.kill(process, libc::SIGKILL) {
                        self.log.log(Level::Warn, format!("ending process {}: {error}", process.pid));
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

    /// Answers what is held.
    fn let_go(&mut self, held: Held, refusal: Option<Refusal>) {
        match held {
            Held::Exec(event) => {
                let answered = match refusal {
                    None => event.allow(),
                    Some(Refusal { error }) => match error.errno() {
                        None => event.deny(),
                        Some(errno) => event.deny_with_errno(errno).map(drop),
                    },
                };
                if let Err(error) = answered {
                    self.log.log(Level::Debug, format!("answering: {error}"));
                }
            }
            Held::Stopped { init, runtime } => {
                let signal = if refusal.is_some() { libc::SIGKILL } else { libc::SIGCONT };
                if let Err(error) = self.exits.kill(init, signal) {
                    self.log.log(Level::Debug, format!("continuing process {}: {error}", init.pid));
                }
                if let Some(exec_watch) = &mut self.exec_watch {
                    exec_watch.release(runtime);
                }
            }
        }
    }

    /// The entrypoint of what this runtime process runs could not be marked: the container is stopped after its exec.
    fn stop_at_exec(&mut self, life: LifeId) -> Result<(), String> {
        let runtime =
            self.creations.get(&life).and_then(|creation| creation.runs()).ok_or("it is not run")?;
        let exec_watch = self.exec_watch.as_mut().ok_or("BPF is refused or turned off")?;
        exec_watch.stop_under(runtime).map_err(|error| error.to_string())?;
        self.stops.insert(runtime, life);
        Ok(())
    }

    /// A container's first program was stopped for us.
    fn stopped(&mut self, init: Process, runtime: Process, filename: String, at: Instant, time: SystemTime) {
        let held = Held::Stopped { init, runtime };
        let Some(life) = self.stops.remove(&runtime) else {
            self.let_go(held, None);
            return;
        };
        let hold = self.lifecycle.new_id();
        self.holds.insert(hold, held);
        self.reading.push_back((at + self.patience, hold));
        let (candidates, executable) = (vec![life], Some(filename));
        self.workers.submit(Job::Entry {
            hold,
            tid: init.pid,
            stopped: true,
            candidates,
            executable,
            at,
            time,
        });
    }

    fn release(&mut self, life: LifeId) {
        let Some(creation) = self.creations.remove(&life) else { return };
        // It never came to the exec that was to be stopped.
        if let Some(runtime) = creation.runs()
            && self.stops.remove(&runtime).is_some()
            && let Some(exec_watch) = &mut self.exec_watch
        {
            exec_watch.release(runtime);
        }
    }

    fn entry_marked(&mut self, life: LifeId, entry: Option<MarkedEntry>) {
        if let Some(MarkedEntry { mark, path }) = entry {
            self.entries.entry(mark.inode()).or_default().push(life);
            self.entry_marks.insert(life, (mark, path));
        }
    }

    /// Watches a process that a file named.
    fn watch_found(&mut self, process: Process) -> Init {
        if self.watch_exit(process) {
            Init::Watched(process)
        } else {
            Init::Ended(process, ExitStatus::UNKNOWN)
        }
    }

    fn watch(&mut self, process: Process) {
        if !self.watch_exit(process) {
            self.ended_already(process);
        }
    }

    /// Is the process there, so that its end will be reported?
    fn watch_exit(&mut self, process: Process) -> bool {
        self.try_watch(process).unwrap_or_else(|error| {
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
    fn watch_again(&mut self, now: Instant) {
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
        self.bell.post(Message::Worked(Outcome::Ended { process, status, time }));
    }

    fn unmark(&mut self, life: LifeId, by: Option<HoldId>) {
        let Some((mark, _)) = self.entry_marks.remove(&life) else { return };
        let inode = mark.inode();
        if let Some(lives) = self.entries.get_mut(&inode) {
            lives.retain(|other| *other != life);
            if lives.is_empty() {
                self.entries.remove(&inode);
            }
        }
        match by.and_then(|hold| self.holds.get(&hold)) {
            Some(Held::Exec(event)) => {
                if let Err(error) = mark.remove_by(event.file()) {
                    self.log.log(Level::Debug, format!("removing a mark: {error}"));
                }
            }
            Some(Held::Stopped { .. }) | None => {
                self.workers.submit(Job::Unmark(mark));
            }
        }
    }

    fn watch_termination(&mut self, id: String, pid: u32) -> Result<(), Error> {
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

    fn status(&self) -> Status {
        let (containers, creating) = self.lifecycle.counts();
        let mut runtimes: Vec<MarkedRuntime> = self
            .runtimes
            .values()
            .map(|marked| MarkedRuntime {
                name: marked.binary.name.clone(),
                path: marked.binary.host_path.clone(),
                found_by: sources(&marked.binary),
            })
            .collect();
        runtimes.sort_by(|a, b| a.path.cmp(&b.path));
        Status {
            runtimes,
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

/// The moment now, in the unit of processes' start times.
fn own_start_time() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    // USER_HZ is 100 wherever there are containers.
    (seconds * 100.0) as u64
}

fn sources(binary: &Binary) -> String {
    let words: Vec<String> = binary
        .sources
        .iter()
        .map(|source| match source {
            Source::WellKnown => "a well-known place".to_owned(),
            Source::Option => "named by the caller".to_owned(),
            Source::Environment => "RUNTIME_PATH".to_owned(),
            Source::Config(path) => format!("configured in {}", path.display()),
            Source::Engine { pid, name } => format!("used by {name}, process {pid}"),
            Source::Learned => "seen at work".to_owned(),
        })
        .collect();
    words.join(", ")
}

fn of_fanotify(error: &fanotify::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::EPERM) => ErrorKind::Permission,
        Some(libc::ENOSYS | libc::EINVAL) => ErrorKind::Unsupported,
        _ => ErrorKind::Os,
    };
    // Its words name the operation, the path and the remedy.
    Error::new(kind, error.to_string())
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
