//! The state of every container: `(Input, Instant) → Actions`, pure.
//!
//! It knows neither files nor clocks nor descriptors. The engine turns what the kernel says into [`Input`]s and carries
//! out the [`Action`]s. A *life* is one container from the exec of the runtime that creates it to its deletion; an id
//! that is used again is another life. Each life has a *lane*: its events are told one after the other.

mod lane;
#[cfg(test)]
mod tests;
mod untold;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;
use crate::event::{Answer, Container, ContainerEvent, EventKind, ExecProcess, ExitStatus, Record, Verdict};
use crate::exit::Process;
use crate::handler::{Choice, Decision};
use crate::notifier::OnTimeout;
use crate::outlet::Level;

use lane::{Effect, Telling, Turn};
pub(crate) use untold::Untold;

/// A container's life.
pub(crate) type LifeId = u64;
/// An execution that the kernel holds for us.
pub(crate) type HoldId = u64;
/// An event that has been given to a handler.
pub(crate) type Token = u64;

/// Ended lives that no runtime has deleted are remembered, so that a late `delete` is told with what is known; no more
/// than this many.
const MOST_ENDED: usize = 1024;

/// What an answer may take after the deadline: to write the mark, to end an init that was refused.
const GRACE: Duration = Duration::from_millis(500);

/// What names a container for its runtime: two runtimes, or two state folders, may use one id at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The runtime's state folder, as it was given or as its family has it by default.
    pub(crate) root: PathBuf,
    pub(crate) id: std::ffi::OsString,
    /// Whose: an unprivileged caller shares no state with anybody else.
    pub(crate) uid: u32,
}

impl Key {
    pub(crate) fn new(root: PathBuf, id: std::ffi::OsString, uid: u32) -> Self {
        // Engines say /var/run, which is a link to /run on every system of this decade; who looks finds /run.
        let root = match root.strip_prefix("/var/run") {
            Ok(inside) => std::path::Path::new("/run").join(inside),
            Err(_) => root,
        };
        Key { root, id, uid }
    }
}

/// What a runtime was executed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    /// Creates and starts in one process; `detach`: which ends before the container does; `keep`: which does not delete it.
    Run {
        detach: bool,
        keep: bool,
    },
    Restore,
    Start,
    Exec {
        process: Arc<ExecProcess>,
        detach: bool,
    },
    /// Something that is told once it has succeeded.
    After(EventKind),
}

/// A runtime has been executed, and is held.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) hold: HoldId,
    pub(crate) at: Instant,
    pub(crate) time: SystemTime,
    pub(crate) process: Process,
    pub(crate) parent: i32,
    pub(crate) verb: Verb,
    pub(crate) key: Key,
    /// What the command line and the bundle say.
    pub(crate) container: Container,
    pub(crate) detail: Option<String>,
    /// It is held still: reading it did not take too long.
    pub(crate) held: bool,
}

/// A file that is some container's entrypoint has been executed, and is held.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) hold: HoldId,
    pub(crate) at: Instant,
    pub(crate) time: SystemTime,
    pub(crate) process: Process,
    /// Its ancestors' pids, nearest first.
    pub(crate) ancestors: Vec<i32>,
    /// The lives whose entrypoint this file is.
    pub(crate) candidates: Vec<LifeId>,
    pub(crate) args: Vec<String>,
    pub(crate) executable: Option<String>,
}

/// How the work between a `PreCreate`'s decision and the answer went.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// The entrypoint is marked.
    pub(crate) marked: bool,
    /// Why it is not.
    pub(crate) unmarked: Option<String>,
    /// A changed configuration could not be written.
    pub(crate) change_failed: Option<String>,
    /// The configuration as the runtime will read it, where it is another than was told.
    pub(crate) config: Option<Config>,
}

/// What the engine found out about a container's init.
#[derive(Debug)]
pub(crate) enum Init {
    /// It is watched.
    Watched(Process),
    /// It has ended already.
    Ended(Process, ExitStatus),
    /// Its pid could not be learned.
    Unknown(String),
}

#[derive(Debug)]
pub(crate) enum Input {
    Command(Box<Command>),
    Entry(Box<Entry>),
    Finished {
        life: LifeId,
        outcome: Finished,
    },
    InitFound {
        life: LifeId,
        init: Init,
        marked: bool,
        time: SystemTime,
    },
    Ended {
        process: Process,
        status: ExitStatus,
        time: SystemTime,
    },
    Replied {
        token: Token,
        decision: Result<Decision, String>,
    },
    WatchTermination {
        id: String,
        process: Process,
        ended: bool,
        time: SystemTime,
    },
    Existing {
        key: Key,
        container: Container,
        process: Process,
        time: SystemTime,
    },
    /// The kernel has shown the first program of a container that nothing held.
    Untold(Box<Untold>),
    Overflow {
        time: SystemTime,
    },
}

#[derive(Debug)]
pub(crate) enum Action {
    /// Answer the kernel.
    Answer {
        hold: HoldId,
        allow: bool,
    },
    /// Give the event to a handler.
    Tell {
        token: Token,
        event: Arc<ContainerEvent>,
    },
    /// The event's handler did not answer in time; nobody waits for it any more.
    Overdue {
        token: Token,
    },
    /// Write the changed configuration, resolve and mark the entrypoint; then `Finished`.
    Finish {
        life: LifeId,
        change: Option<Config>,
        mark: bool,
    },
    /// The create process has ended: learn the init's pid, watch it; then `InitFound`.
    FindInit {
        life: LifeId,
    },
    /// Report this process's end.
    Watch(Process),
    Unwatch(Process),
    /// End this process (SIGKILL).
    Kill(Process),
    /// The entrypoint's mark is no longer needed; `by`: the hold whose file it is.
    Unmark {
        life: LifeId,
        by: Option<HoldId>,
    },
    /// Nothing the engine keeps for the life's creation is needed any more.
    Release {
        life: LifeId,
    },
    Record(Box<Record>),
    Log(Level, String),
}

/// What was set beforehand.
pub(crate) struct Rules {
    pub(crate) told: Vec<EventKind>,
    pub(crate) deadlines: HashMap<EventKind, Duration>,
    pub(crate) deadline: Duration,
    pub(crate) on_timeout: OnTimeout,
}

impl Rules {
    fn tells(&self, kind: EventKind) -> bool {
        self.told.contains(&kind)
    }

    fn deadline(&self, kind: EventKind) -> Duration {
        self.deadlines.get(&kind).copied().unwrap_or(self.deadline)
    }
}

/// How far the container's `Created` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Not settled: a start waits.
    Shut,
    Open,
    /// Refused: the init is killed, and a start is denied once it has ended.
    Refused,
}

struct Life {
    key: Option<Key>,
    previous: Option<LifeId>,
    container: Arc<Container>,
    verb: Verb,
    creator: Option<Process>,
    creator_hold: Option<HoldId>,
    creator_ended: Option<ExitStatus>,
    /// PreCreate was answered with a denial.
    denied: bool,
    init: Option<Process>,
    init_ended: bool,
    gate: Gate,
    /// The holds of `start`s that wait for the gate.
    starts: Vec<HoldId>,
    marked: bool,
    unmarked: Option<String>,
    entered: bool,
    /// When a `start` was seen that has not been told of.
    start_seen: Option<SystemTime>,
    exec: Option<Arc<ExecProcess>>,
    existing: bool,
    lane: VecDeque<Turn>,
    telling: Option<Token>,
    /// PreCreate is settled, and the answer waits for `Finished`.
    finishing: Option<Box<(ContainerEvent, Answer, Instant)>>,
    over: bool,
    retired: bool,
}

impl Life {
    fn new(container: Container, verb: Verb) -> Self {
        Life {
            key: None,
            previous: None,
            container: Arc::new(container),
            verb,
            creator: None,
            creator_hold: None,
            creator_ended: None,
            denied: false,
            init: None,
            init_ended: false,
            gate: Gate::Shut,
            starts: Vec::new(),
            marked: false,
            unmarked: None,
            entered: false,
            start_seen: None,
            exec: None,
            existing: false,
            lane: VecDeque::new(),
            telling: None,
            finishing: None,
            over: false,
            retired: false,
        }
    }

    fn creating(&self) -> bool {
        self.creator.is_some() && self.init.is_none() && !self.over
    }
}

/// What a watched process is.
#[derive(Clone, Debug)]
enum Role {
    Creator(LifeId),
    Init(LifeId),
    Exec { life: LifeId, detach: bool },
    After { life: LifeId, kind: EventKind },
}

/// What is due when a moment passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Told(Token),
    Hold(HoldId),
}

pub(crate) struct Lifecycle {
    rules: Rules,
    lives: HashMap<LifeId, Life>,
    keys: HashMap<Key, LifeId>,
    processes: HashMap<i32, (Process, Role)>,
    told: HashMap<Token, Telling>,
    /// Holds that are not answered yet, with their last moment.
    holds: HashMap<HoldId, Instant>,
    due: BTreeSet<(Instant, Due)>,
    ended: VecDeque<LifeId>,
    last_id: LifeId,
    last_token: Token,
    last_seq: u64,
    pub(crate) timed_out: u64,
}

impl Lifecycle {
    pub(crate) fn new(rules: Rules) -> Self {
        Lifecycle {
            rules,
            lives: HashMap::new(),
            keys: HashMap::new(),
            processes: HashMap::new(),
            told: HashMap::new(),
            holds: HashMap::new(),
            due: BTreeSet::new(),
            ended: VecDeque::new(),
            last_id: 0,
            last_token: 0,
            last_seq: 0,
            timed_out: 0,
        }
    }

    /// When [`tick`](Self::tick) is to be called at the latest.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A number for a hold or a life: a life that begins with a held exec has that hold's.
    pub(crate) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn is_life(&self, id: LifeId) -> bool {
        self.lives.contains_key(&id)
    }

    /// Containers that have not ended, and how many of them are being created.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let alive = self.lives.values().filter(|life| !life.init_ended && !life.over);
        alive.fold((0, 0), |(all, creating), life| (all + 1, creating + usize::from(life.creating())))
    }

    /// Is this process known, and has not been reported as ended? Then its exec is a runtime executing itself again.
    pub(crate) fn knows(&self, pid: i32) -> Option<Process> {
        match self.processes.get(&pid) {
            Some((_, Role::Init(_))) | None => None,
            Some((process, _)) => Some(*process),
        }
    }

    /// The configuration by which the entrypoint of a created container is to be marked, if it is not.
    pub(crate) fn wants_mark(&self, life: LifeId) -> Option<Config> {
        let life = self.lives.get(&life).filter(|life| !life.marked && life.verb == Verb::Create)?;
        life.container.config.clone().filter(|_| self.rules.tells(EventKind::Started))
    }

    /// The container of a life, for the engine's work on it.
    pub(crate) fn container(&self, life: LifeId) -> Option<&Arc<Container>> {
        self.lives.get(&life).map(|life| &life.container)
    }

    pub(crate) fn apply(&mut self, input: Input, now: Instant, out: &mut Vec<Action>) {
        match input {
            Input::Command(command) => self.command(*command, now, out),
            Input::Entry(entry) => self.entry(*entry, now, out),
            Input::Finished { life, outcome } => self.finished(life, outcome, now, out),
            Input::InitFound { life: id, init, marked, time } => {
                if let Some(life) = self.lives.get_mut(&id) {
                    life.marked |= marked;
                } else if marked {
                    out.push(Action::Unmark { life: id, by: None });
                }
                self.init_found(id, init, time, now, out);
            }
            Input::Ended { process, status, time } => self.process_ended(process, status, time, now, out),
            Input::Replied { token, decision } => self.replied(token, decision, now, out),
            Input::WatchTermination { id, process, ended, time } => {
                let pid = u32::try_from(process.pid).ok();
                let life = self.adopt(Container { id, pid, ..Container::default() }, process);
                if ended {
                    self.init_ended(life, ExitStatus::UNKNOWN, time, now, out);
                } else {
                    out.push(Action::Watch(process));
                }
            }
            Input::Existing { key, container, process, time } => {
                self.existing(key, container, process, time, now, out);
            }
            Input::Untold(untold) => self.untold(*untold, now, out),
            Input::Overflow { time } => {
                let event = ContainerEvent {
                    existing: false,
                    ..self.event(EventKind::Overflow, time, Arc::default(), None, None)
                };
                self.record(event, None, out);
                out.push(Action::Log(
                    Level::Warn,
                    "the kernel's event queue ran over: containers may have come unseen".into(),
                ));
            }
        }
    }

    /// Settles what is due at `now`.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        while let Some(&(at, due)) = self.due.first() {
            if at > now {
                return;
            }
            self.due.pop_first();
            match due {
                Due::Told(token) => self.overdue(token, now, out),
                Due::Hold(hold) => self.hold_expired(hold, out),
            }
        }
    }

    /// A hold exists from now on, and will be answered at the latest a grace after `deadline`.
    fn keep(&mut self, hold: HoldId, deadline: Instant) {
        let last = deadline + GRACE;
        self.holds.insert(hold, last);
        self.due.insert((last, Due::Hold(hold)));
    }

    /// Answers the kernel, once: later answers to the same hold are nothing.
    fn answer(&mut self, hold: HoldId, allow: bool, out: &mut Vec<Action>) {
        if let Some(last) = self.holds.remove(&hold) {
            self.due.remove(&(last, Due::Hold(hold)));
            out.push(Action::Answer { hold, allow });
        }
    }

    fn hold_expired(&mut self, hold: HoldId, out: &mut Vec<Action>) {
        if self.holds.remove(&hold).is_none() {
            return;
        }
        let refused =
            self.lives.values().any(|life| life.starts.contains(&hold) && life.gate == Gate::Refused);
        out.push(Action::Answer { hold, allow: !refused });
        out.push(Action::Log(
            Level::Warn,
            "an execution was let go at its last moment: what it waited for had not come".into(),
        ));
        for life in self.lives.values_mut() {
            life.starts.retain(|start| *start != hold);
        }
    }

    fn command(&mut self, command: Command, now: Instant, out: &mut Vec<Action>) {
        let hold = command.hold;
        // crun executes every verb twice, a wrapper executes the real runtime: one process, told once.
        let again =
            self.processes.get(&command.process.pid).is_some_and(|(known, _)| *known == command.process);
        if again {
            out.push(Action::Answer { hold, allow: true });
            return;
        }
        let known = self.keys.get(&command.key).copied();
        match command.verb {
            Verb::Create | Verb::Run { .. } | Verb::Restore => {
                // A wrapper that is marked too and runs the real runtime as its child.
                let inner = known.and_then(|id| self.lives.get(&id)).is_some_and(|life| {
                    life.creating() && life.creator.is_some_and(|creator| creator.pid == command.parent)
                });
                if inner {
                    out.push(Action::Answer { hold, allow: true });
                } else {
                    self.begin(command, known, now, out);
                }
            }
            Verb::Start => match known {
                Some(id) => self.start(id, command, now, out),
                None => out.push(Action::Answer { hold, allow: true }),
            },
            Verb::Exec { ref process, detach } => {
                if !self.rules.tells(EventKind::Exec) && !self.rules.tells(EventKind::ExecStopped) {
                    out.push(Action::Answer { hold, allow: true });
                    return;
                }
                let process = Arc::clone(process);
                let id = known.unwrap_or_else(|| self.stranger(command.key.clone(), command.container));
                self.watch(command.process, Role::Exec { life: id, detach }, out);
                if !self.rules.tells(EventKind::Exec) {
                    out.push(Action::Answer { hold, allow: true });
                    return;
                }
                let deadline = command.at + self.rules.deadline(EventKind::Exec);
                self.keep(hold, deadline);
                let turn = Turn {
                    kind: EventKind::Exec,
                    time: command.time,
                    held: Some((command.at, deadline)),
                    caller: Some(command.process.pid),
                    exec: Some(process),
                    ..Turn::new(EventKind::Exec, command.time, Effect::Hold(hold))
                };
                self.push(id, turn, now, out);
            }
            Verb::After(kind) => {
                out.push(Action::Answer { hold, allow: true });
                if let Some(id) = known
                    && (self.rules.tells(kind) || kind == EventKind::Deleted)
                {
                    self.watch(command.process, Role::After { life: id, kind }, out);
                }
            }
        }
    }

    /// A runtime is about to create a container.
    fn begin(&mut self, command: Command, known: Option<LifeId>, now: Instant, out: &mut Vec<Action>) {
        let id = command.hold;
        let mut life = Life::new(command.container, command.verb);
        life.creator = Some(command.process);
        life.creator_hold = Some(command.hold);
        life.previous = known.filter(|old| self.lives.get(old).is_some_and(|old| !old.init_ended));
        life.key = Some(command.key.clone());
        self.lives.insert(id, life);
        self.keys.insert(command.key, id);
        self.watch(command.process, Role::Creator(id), out);
        let deadline = command.at + self.rules.deadline(EventKind::PreCreate);
        self.keep(command.hold, deadline);
        if self.rules.tells(EventKind::PreCreate) {
            let turn = Turn {
                held: command.held.then_some((command.at, deadline)),
                caller: Some(command.process.pid),
                detail: command.detail,
                ..Turn::new(EventKind::PreCreate, command.time, Effect::PreCreate)
            };
            self.push(id, turn, now, out);
        } else {
            self.finish(id, None, out);
        }
    }

    fn watch(&mut self, process: Process, role: Role, out: &mut Vec<Action>) {
        self.processes.insert(process.pid, (process, role));
        out.push(Action::Watch(process));
    }

    fn unwatch(&mut self, process: Process, out: &mut Vec<Action>) {
        if self.processes.get(&process.pid).is_some_and(|(known, _)| *known == process) {
            self.processes.remove(&process.pid);
            out.push(Action::Unwatch(process));
        }
    }

    fn finish(&mut self, id: LifeId, change: Option<Config>, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get(&id) else { return };
        // `run` needs the mark for Created, which is told at the entrypoint's exec; and for the end, which a watch that
        // comes later could miss.
        let mark = self.rules.tells(EventKind::Started)
            || (matches!(life.verb, Verb::Run { .. })
                && (self.rules.tells(EventKind::Created) || self.rules.tells(EventKind::Stopped)));
        out.push(Action::Finish { life: id, change, mark });
    }

    fn finished(&mut self, id: LifeId, outcome: Finished, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else {
            // The create process was killed while it was held, and is forgotten: so be its mark.
            out.push(Action::Unmark { life: id, by: None });
            out.push(Action::Release { life: id });
            return;
        };
        life.marked = outcome.marked;
        life.unmarked = outcome.unmarked;
        if let Some(config) = outcome.config {
            Arc::make_mut(&mut life.container).config = Some(config);
        }
        let hold = life.creator_hold.take();
        let mut allow = true;
        if let Some(finishing) = life.finishing.take() {
            let (event, mut answer, at) = *finishing;
            if let Some(error) = outcome.change_failed {
                answer.reason = Some(format!("the changed configuration could not be written: {error}"));
                answer.decision = match self.rules.on_timeout {
                    OnTimeout::Allow => Verdict::Allow,
                    OnTimeout::Deny => Verdict::Deny,
                };
                allow = answer.decision != Verdict::Deny;
            }
            answer.held_for = now.saturating_duration_since(at);
            if let Some(hold) = hold {
                self.answer(hold, allow, out);
            }
            self.record(event, Some(answer), out);
        } else if let Some(hold) = hold {
            self.answer(hold, allow, out);
        }
        if !allow {
            self.refuse_creation(id, out);
        }
        if self.lives.get(&id).is_some_and(|life| life.over) {
            // The create process was killed while it was held.
            out.push(Action::Unmark { life: id, by: None });
            out.push(Action::Release { life: id });
        }
        self.turn_over(id, now, out);
    }

    /// The exec of the runtime is denied: there will be no container.
    fn refuse_creation(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.denied = true;
        life.over = true;
        let creator = life.creator;
        out.push(Action::Unmark { life: id, by: None });
        out.push(Action::Release { life: id });
        // The process lives on as whatever it was before the exec that failed.
        if let Some(creator) = creator {
            self.unwatch(creator, out);
        }
    }

    /// A runtime is about to start the container's process.
    fn start(&mut self, id: LifeId, command: Command, now: Instant, out: &mut Vec<Action>) {
        let hold = command.hold;
        let deadline = command.at + self.rules.deadline(EventKind::Created);
        let Some(life) = self.lives.get_mut(&id) else {
            out.push(Action::Answer { hold, allow: true });
            return;
        };
        let wait = match life.gate {
            Gate::Shut => life.verb == Verb::Create && !life.over && !life.existing,
            Gate::Refused => !life.init_ended,
            Gate::Open => false,
        };
        let refused = life.gate == Gate::Refused;
        life.start_seen = Some(command.time);
        if wait {
            life.starts.push(hold);
            self.keep(hold, deadline);
        } else {
            out.push(Action::Answer { hold, allow: !refused });
            self.started_unheld(id, now, out);
        }
    }

    /// The container's `start` goes on, and its entrypoint will not be held: this is all there is to tell of it.
    fn started_unheld(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.marked || life.entered || life.gate != Gate::Open || life.init_ended || life.existing {
            return;
        }
        let Some(time) = life.start_seen.take() else { return };
        life.entered = true;
        let why = life.unmarked.clone().unwrap_or_else(|| "its entrypoint is not marked".into());
        let turn = Turn {
            detail: Some(format!("not held: {why}")),
            ..Turn::new(EventKind::Started, time, Effect::None)
        };
        self.push(id, turn, now, out);
    }

    /// Opens or refuses the gate before `start`.
    fn settle_gate(&mut self, id: LifeId, gate: Gate, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.gate = gate;
        if gate == Gate::Open || life.init_ended || life.init.is_none() {
            let starts = std::mem::take(&mut life.starts);
            if !starts.is_empty() {
                for hold in starts {
                    self.answer(hold, gate == Gate::Open, out);
                }
                self.started_unheld(id, now, out);
            }
        } else if let Some(init) = life.init {
            // Denying the start alone makes Docker 20.10 and ctr leak the task: the init goes first.
            out.push(Action::Kill(init));
        }
    }

    fn entry(&mut self, entry: Entry, now: Instant, out: &mut Vec<Action>) {
        let Entry { hold, at, time, process, ancestors, candidates, args, executable } = entry;
        let is_init = |life: &Life| life.init == Some(process);
        let runs_it = |life: &Life| {
            life.init.is_none()
                && life.verb != Verb::Create
                && life.creator.is_some_and(|creator| ancestors.contains(&creator.pid))
        };
        let pick = |fits: &dyn Fn(&Life) -> bool| {
            candidates
                .iter()
                .copied()
                .find(|id| self.lives.get(id).is_some_and(|life| !life.entered && !life.over && fits(life)))
        };
        // A file is executed by whomever: only a container's init at its first exec of it is of interest.
        let Some(id) = pick(&is_init).or_else(|| pick(&runs_it)) else {
            out.push(Action::Answer { hold, allow: true });
            return;
        };
        out.push(Action::Unmark { life: id, by: Some(hold) });
        let created = self.lives.get(&id).is_some_and(|life| life.init.is_some());
        let kind = if created { EventKind::Started } else { EventKind::Created };
        let deadline = at + self.rules.deadline(kind);
        self.keep(hold, deadline);
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.entered = true;
        life.exec = Some(Arc::new(ExecProcess { args, cwd: None, user: None, tty: false }));
        if !created {
            life.init = Some(process);
            Arc::make_mut(&mut life.container).pid = u32::try_from(process.pid).ok();
            self.watch(process, Role::Init(id), out);
            out.push(Action::Release { life: id });
            if self.rules.tells(EventKind::Created) {
                let effect = Effect::EntryCreated { hold, at, executable };
                let turn = Turn {
                    held: Some((at, deadline)),
                    caller: Some(process.pid),
                    ..Turn::new(EventKind::Created, time, effect)
                };
                self.push(id, turn, now, out);
                return;
            }
            life_open(&mut self.lives, id);
        }
        self.entered(id, hold, at, time, executable, now, out);
    }

    /// The init is held at its entrypoint, and `Created` is behind it.
    #[allow(clippy::too_many_arguments, reason = "the facts of one event")]
    fn entered(
        &mut self,
        id: LifeId,
        hold: HoldId,
        at: Instant,
        time: SystemTime,
        executable: Option<String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if !self.rules.tells(EventKind::Started) {
            self.answer(hold, true, out);
            return;
        }
        let Some(life) = self.lives.get(&id) else {
            self.answer(hold, true, out);
            return;
        };
        let deadline = at + self.rules.deadline(EventKind::Started);
        let turn = Turn {
            held: Some((at, deadline)),
            caller: life.init.map(|init| init.pid),
            exec: life.exec.clone(),
            detail: executable.map(|path| format!("executes {path}")),
            ..Turn::new(EventKind::Started, time, Effect::Hold(hold))
        };
        // The hold's last moment was set for Created: Started has its own deadline, from the same exec.
        if let Some(last) = self.holds.get_mut(&hold) {
            self.due.remove(&(*last, Due::Hold(hold)));
            *last = (*last).max(deadline + GRACE);
            self.due.insert((*last, Due::Hold(hold)));
        }
        self.push(id, turn, now, out);
    }

    fn process_ended(
        &mut self,
        process: Process,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let known = self.processes.get(&process.pid).is_some_and(|(known, _)| *known == process);
        let Some((_, role)) = known.then(|| self.processes.remove(&process.pid)).flatten() else { return };
        match role {
            Role::Creator(id) => self.creator_ended(id, status, time, now, out),
            Role::Init(id) => self.init_ended(id, status, time, now, out),
            Role::Exec { life, detach } => {
                // A detached exec's runtime ends before the process it executed.
                if !detach && self.rules.tells(EventKind::ExecStopped) {
                    let turn =
                        Turn { exit: Some(status), ..Turn::new(EventKind::ExecStopped, time, Effect::None) };
                    self.push(life, turn, now, out);
                }
                self.retire(life, out);
            }
            Role::After { life, kind } => {
                if status.success() == Some(false) {
                    return;
                }
                if kind == EventKind::Deleted {
                    self.deleted(life, time, now, out);
                } else {
                    self.push(life, Turn::new(kind, time, Effect::None), now, out);
                }
            }
        }
    }

    fn creator_ended(
        &mut self,
        id: LifeId,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.creator_ended = Some(status);
        if let Some(hold) = life.creator_hold.take() {
            // It was killed while it was held.
            self.answer(hold, true, out);
        }
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.init.is_some() {
            // A `run` in the foreground outlives its container, and deletes it.
            if life.init_ended && matches!(life.verb, Verb::Run { detach: false, keep: false }) {
                self.deleted(id, time, now, out);
            }
            return;
        }
        let failed = status.success() == Some(false);
        match life.verb {
            Verb::Run { detach: false, .. } if !failed => {
                // It created, ran and ended a container whose entrypoint was not marked. Its exit is the container's.
                let why = life.unmarked.clone().unwrap_or_else(|| "its entrypoint was not seen".into());
                let created = Turn {
                    detail: Some(format!("not held: {why}")),
                    ..Turn::new(EventKind::Created, time, Effect::Opened)
                };
                self.push(id, created, now, out);
                self.init_ended(id, status, time, now, out);
            }
            _ if failed => self.failed(id, time, now, out),
            _ => out.push(Action::FindInit { life: id }),
        }
    }

    /// There is no container, though its creation was let go on.
    fn failed(&mut self, id: LifeId, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.over = true;
        let starts = std::mem::take(&mut life.starts);
        let told = self.rules.tells(EventKind::PreCreate);
        out.push(Action::Unmark { life: id, by: None });
        out.push(Action::Release { life: id });
        for hold in starts {
            self.answer(hold, true, out);
        }
        if told {
            let turn = Turn {
                detail: Some("its creation failed".into()),
                ..Turn::new(EventKind::Deleted, time, Effect::None)
            };
            self.push(id, turn, now, out);
        }
        self.retire(id, out);
    }

    fn init_found(&mut self, id: LifeId, init: Init, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        out.push(Action::Release { life: id });
        let Some(life) = self.lives.get_mut(&id) else {
            if let Init::Watched(process) = init {
                out.push(Action::Unwatch(process));
            }
            return;
        };
        if life.init.is_some() {
            return;
        }
        // `restore` and a detached `run` have started it already.
        let held = life.verb == Verb::Create;
        let mut detail = (!held).then(|| "not held: it runs already".to_owned());
        let mut ended = None;
        match init {
            Init::Watched(process) => {
                life.init = Some(process);
                self.processes.insert(process.pid, (process, Role::Init(id)));
            }
            Init::Ended(process, status) => {
                life.init = Some(process);
                ended = Some(status);
            }
            Init::Unknown(why) => {
                // Without the create's status, no init means that it failed.
                if life.creator_ended.and_then(|status| status.success()) != Some(true) {
                    self.failed(id, time, now, out);
                    return;
                }
                detail = Some(format!("its init's pid is not known: {why}"));
                out.push(Action::Log(
                    Level::Warn,
                    format!("container {:?} was created, but {why}", life.container.id),
                ));
            }
        }
        let Some(life) = self.lives.get_mut(&id) else { return };
        Arc::make_mut(&mut life.container).pid = life.init.and_then(|init| u32::try_from(init.pid).ok());
        if self.rules.tells(EventKind::Created) {
            let deadline = now + self.rules.deadline(EventKind::Created);
            let turn = Turn {
                held: held.then_some((now, deadline)),
                detail,
                ..Turn::new(EventKind::Created, time, if held { Effect::Gate } else { Effect::Opened })
            };
            self.push(id, turn, now, out);
        } else {
            self.settle_gate(id, Gate::Open, now, out);
        }
        if let Some(status) = ended {
            self.init_ended(id, status, time, now, out);
        }
    }

    fn init_ended(
        &mut self,
        id: LifeId,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.init_ended = true;
        let starts = if life.gate == Gate::Refused { std::mem::take(&mut life.starts) } else { Vec::new() };
        if life.marked && !life.entered {
            out.push(Action::Unmark { life: id, by: None });
        }
        for hold in starts {
            self.answer(hold, false, out);
        }
        let turn = Turn { exit: Some(status), ..Turn::new(EventKind::Stopped, time, Effect::None) };
        self.push(id, turn, now, out);
        self.retire(id, out);
    }

    fn deleted(&mut self, id: LifeId, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.over {
            return;
        }
        life.over = true;
        self.push(id, Turn::new(EventKind::Deleted, time, Effect::None), now, out);
        self.retire(id, out);
    }

    /// A container that runs and whose creation was not seen.
    fn adopt(&mut self, container: Container, process: Process) -> LifeId {
        let id = self.new_id();
        let mut life = Life::new(container, Verb::Create);
        life.existing = true;
        life.gate = Gate::Open;
        life.init = Some(process);
        self.lives.insert(id, life);
        self.processes.insert(process.pid, (process, Role::Init(id)));
        id
    }

    fn existing(
        &mut self,
        key: Key,
        container: Container,
        process: Process,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let known = self.keys.get(&key).and_then(|id| self.lives.get(id));
        let watched = self.processes.get(&process.pid).is_some_and(|(known, _)| *known == process);
        // It was created between the marks and this look, or is being created now: it is told by its creation.
        let being_created =
            || self.lives.values().any(|life| life.creating() && life.container.id == container.id);
        if watched || known.is_some_and(|life| !life.init_ended && !life.over) || being_created() {
            return;
        }
        let id = self.adopt(container, process);
        if let Some(life) = self.lives.get_mut(&id) {
            life.key = Some(key.clone());
        }
        self.keys.insert(key, id);
        out.push(Action::Watch(process));
        if self.rules.tells(EventKind::Created) {
            let turn = Turn { existing: true, ..Turn::new(EventKind::Created, time, Effect::Opened) };
            self.push(id, turn, now, out);
        }
    }

    /// A container that a runtime speaks of and whose creation was not seen.
    fn stranger(&mut self, key: Key, container: Container) -> LifeId {
        let id = self.new_id();
        let mut life = Life::new(container, Verb::Create);
        life.existing = true;
        life.gate = Gate::Open;
        life.key = Some(key.clone());
        // Nothing will tell its end: it is among those that are forgotten first.
        life.init_ended = true;
        self.lives.insert(id, life);
        self.keys.insert(key, id);
        id
    }

    /// Forgets the life if it is over, or some day if only its deletion is missing.
    fn retire(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let idle = life.telling.is_none() && life.lane.is_empty() && life.finishing.is_none();
        if life.over && idle {
            self.forget(id, out);
        } else if life.init_ended && !life.retired {
            life.retired = true;
            self.ended.push_back(id);
            if self.ended.len() > MOST_ENDED
                && let Some(oldest) = self.ended.pop_front()
            {
                self.forget(oldest, out);
            }
        }
    }

    fn forget(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.remove(&id) else { return };
        if life.retired {
            self.ended.retain(|ended| *ended != id);
        }
        if let Some(key) = life.key
            && self.keys.get(&key) == Some(&id)
        {
            match life.previous.filter(|old| self.lives.contains_key(old)) {
                Some(old) => self.keys.insert(key, old),
                None => self.keys.remove(&key),
            };
        }
        for hold in life.starts {
            self.answer(hold, true, out);
        }
    }

    fn event(
        &self,
        kind: EventKind,
        time: SystemTime,
        container: Arc<Container>,
        held: Option<(Instant, Instant)>,
        caller: Option<i32>,
    ) -> ContainerEvent {
        ContainerEvent {
            kind,
            time,
            container,
            held: held.is_some(),
            deadline: held.map(|(_, deadline)| deadline),
            existing: false,
            caller: caller.and_then(|pid| u32::try_from(pid).ok()),
            exit: None,
            exec: None,
            detail: None,
        }
    }

    fn record(&mut self, event: ContainerEvent, answer: Option<Answer>, out: &mut Vec<Action>) {
        self.last_seq += 1;
        out.push(Action::Record(Box::new(Record { seq: self.last_seq, event, answer })));
    }
}

fn life_open(lives: &mut HashMap<LifeId, Life>, id: LifeId) {
    if let Some(life) = lives.get_mut(&id) {
        life.gate = Gate::Open;
    }
}
