//! The state of every container: `(Input, Instant) → Actions`, pure.
//!
//! It knows neither files nor clocks nor descriptors. The engine turns what the kernel says into [`Input`]s and carries
//! out the [`Action`]s. A *life* is one container from the exec of the runtime that creates it to its deletion; an id
//! that is used again is another life. Each life has a *lane*: its events are told one after the other.

mod creation;
mod ending;
mod errand;
mod found;
mod lane;
mod life;
#[cfg(test)]
mod tests;
mod untold;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::event::{
    Answer, Asked, Container, ContainerEvent, EventKind, ExecProcess, ExitStatus, Record, Verdict,
};
use crate::exit::Process;
use crate::handler::{Choice, Decision, DenyError};
use crate::notifier::OnTimeout;
use crate::outlet::Level;
use crate::proc::HostProc;

use errand::Errand;
use lane::Telling;
use life::{Life, Processes, Role};

pub(crate) use found::{Existing, Vanished};
pub(crate) use untold::Untold;

/// A container's life.
pub(crate) type LifeId = u64;
/// An execution that the kernel holds for us.
pub(crate) type HoldId = u64;
/// An event that has been given to a handler.
pub(crate) type Token = u64;

/// What events of the host belong to.
const NO_LIFE: LifeId = 0;

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
    /// What is asked of it, where that is told.
    pub(crate) asked: Option<Arc<Asked>>,
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
    /// Its pid in its own pid namespace.
    pub(crate) own_pid: i32,
    /// Its command line until this exec, which is its runtime's.
    pub(crate) before: Vec<std::ffi::OsString>,
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
    /// The pid file of a detached `exec` was read.
    ExecFound {
        life: LifeId,
        runtime: Process,
        found: Init,
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
    },
    /// Which cgroup this init is in.
    Cgroup {
        process: Process,
        cgroup: Arc<Cgroup>,
    },
    Existing(Box<Existing>),
    Vanished(Box<Vanished>),
    /// The kernel has shown the first program of a `run` that nothing held.
    Ran {
        init: Process,
        ancestors: Vec<i32>,
        time: SystemTime,
    },
    /// The kernel has shown the first program of a container that nothing held.
    Untold(Box<Untold>),
    Overflow {
        time: SystemTime,
    },
    /// The init of a refused container cannot be ended from here.
    Unkillable {
        process: Process,
        why: String,
    },
    /// A runtime's execution could not be read, and whatever it was for will not be told.
    Lost {
        why: String,
        time: SystemTime,
    },
}

/// An execution is to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: DenyError,
}

#[derive(Debug)]
pub(crate) enum Action {
    /// Answer the kernel.
    Answer {
        hold: HoldId,
        refusal: Option<Refusal>,
    },
    /// Give the event to a handler, after those of the same life that were given before.
    Tell {
        life: LifeId,
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
    /// The runtime of a detached `exec` has ended: learn the process's pid, watch it; then `ExecFound`.
    FindExec {
        life: LifeId,
        runtime: Process,
    },
    /// Learn the cgroup of this init; then `Cgroup`, if there is one.
    Learn(Process),
    /// Report this process's end.
    Watch(Process),
    Unwatch(Process),
    /// End this process (SIGKILL); where that cannot be, then `Unkillable`.
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
    /// Where the processes of containers are seen.
    pub(crate) proc: HostProc,
}

impl Rules {
    fn tells(&self, kind: EventKind) -> bool {
        self.told.contains(&kind)
    }

    fn deadline(&self, kind: EventKind) -> Duration {
        self.deadlines.get(&kind).copied().unwrap_or(self.deadline)
    }
}

/// What is due when a moment passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// An event's deadline.
    Turn(LifeId, Token),
    /// A hold's last moment.
    Hold(HoldId),
    /// The first program of a container that runs has not come.
    Entry(LifeId),
    /// The end of a container that is deleted was not seen.
    Deleted(LifeId),
}

/// An execution that waits for an answer of ours.
#[derive(Debug)]
struct Hold {
    last: Instant,
    life: LifeId,
    of: HoldOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldOf {
    /// The runtime that creates the container.
    Create,
    Start,
    /// The container's first program.
    Entry,
    /// What may be a container's first program.
    Parked,
    Exec,
}

pub(crate) struct Lifecycle {
    rules: Rules,
    /// Boxed: a table has up to twice the room that it needs.
    lives: HashMap<LifeId, Box<Life>>,
    /// The lives that are not over, by what runtimes call them.
    keys: HashMap<Key, LifeId>,
    processes: Processes,
    /// What processes are at work for, by the runtime's, or by the one it executed.
    errands: HashMap<Process, Errand>,
    told: HashMap<Token, Telling>,
    /// Executions that are not answered yet.
    holds: HashMap<HoldId, Hold>,
    due: BTreeSet<(Instant, Due)>,
    /// Lives that only a deletion can end, oldest first.
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
            processes: Processes::default(),
            errands: HashMap::new(),
            told: HashMap::new(),
            holds: HashMap::new(),
            due: BTreeSet::new(),
            ended: VecDeque::new(),
            last_id: NO_LIFE,
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
        // Nobody will tell the end of what has been retired.
        let alive = self.lives.values().filter(|life| !life.init_ended && !life.over && !life.retired);
        alive.fold((0, 0), |(all, creating), life| (all + 1, creating + usize::from(life.creating())))
    }

    /// Is a runtime at work known to have this pid? Then its exec is a runtime executing itself again.
    pub(crate) fn knows(&self, pid: i32) -> Option<Process> {
        let runtime = |roles: &[(LifeId, Role)]| roles.iter().any(|(_, role)| role.is_runtime());
        self.processes.of_pid(pid).filter(|(_, roles)| runtime(roles)).last().map(|(process, _)| process)
    }

    /// Is its end waited for?
    pub(crate) fn watches(&self, process: Process) -> bool {
        self.processes.contains(process)
    }

    /// The configuration by which the entrypoint of a created container is to be marked, if it is not.
    pub(crate) fn wants_mark(&self, life: LifeId) -> Option<Config> {
        let life = self.lives.get(&life).filter(|life| !life.marked && life.verb == Verb::Create)?;
        life.container.config.clone().filter(|_| self.rules.tells(EventKind::Started))
    }

    /// The container of this init.
    pub(crate) fn container_of(&self, init: Process) -> Option<(Option<&Key>, &Container)> {
        let life = self.lives.get(&self.init_of(init)?)?;
        Some((life.key.as_ref(), &*life.container))
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
                match self.lives.get_mut(&id).filter(|life| !life.over && !life.entered && !life.init_ended) {
                    Some(life) => life.marked |= marked,
                    None if marked => out.push(Action::Unmark { life: id, by: None }),
                    None => {}
                }
                self.init_found(id, init, time, now, out);
            }
            Input::ExecFound { life, runtime, found, time } => {
                self.exec_found(life, runtime, found, time, now, out);
            }
            Input::Ended { process, status, time } => self.process_ended(process, status, time, now, out),
            Input::Replied { token, decision } => self.replied(token, decision, now, out),
            Input::Cgroup { process, cgroup } => self.set_cgroup(process, &cgroup),
            Input::WatchTermination { id, process } => self.watch_termination(id, process, out),
            Input::Vanished(vanished) => self.vanished(*vanished, now, out),
            Input::Existing(existing) => self.existing(*existing, now, out),
            Input::Ran { init, ancestors, time } => self.ran(init, &ancestors, time, now, out),
            Input::Untold(untold) => self.untold(*untold, now, out),
            Input::Unkillable { process, why } => self.unkillable(process, &why, out),
            Input::Lost { why, time } => {
                out.push(Action::Log(Level::Warn, why.clone()));
                let event = new_event(EventKind::Lost, time, Arc::default(), None, None);
                self.announce(ContainerEvent { detail: Some(why), ..event }, now, out);
            }
            Input::Overflow { time } => {
                out.push(Action::Log(
                    Level::Warn,
                    "the kernel's event queue ran over: containers may have come unseen".into(),
                ));
                let event = new_event(EventKind::Overflow, time, Arc::default(), None, None);
                self.announce(event, now, out);
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
                Due::Turn(life, token) => self.turn_due(life, token, now, out),
                Due::Hold(hold) => self.hold_expired(hold, now, out),
                Due::Entry(life) => self.created_unheld(life, now, out),
                Due::Deleted(life) => self.end_unseen(life, now, out),
            }
        }
    }

    /// A hold exists from now on, or for other reasons than before, and will be answered at the latest a grace after
    /// `deadline`.
    fn keep(&mut self, hold: HoldId, life: LifeId, of: HoldOf, deadline: Instant) {
        let mut last = deadline + GRACE;
        if let Some(before) = self.holds.remove(&hold) {
            self.due.remove(&(before.last, Due::Hold(hold)));
            last = last.max(before.last);
        }
        self.holds.insert(hold, Hold { last, life, of });
        self.due.insert((last, Due::Hold(hold)));
    }

    /// Answers the kernel, once: later answers to the same hold are nothing.
    fn answer(&mut self, hold: HoldId, refusal: Option<Refusal>, out: &mut Vec<Action>) {
        if let Some(Hold { last, .. }) = self.holds.remove(&hold) {
            self.due.remove(&(last, Due::Hold(hold)));
            out.push(Action::Answer { hold, refusal });
        }
    }

    /// Lets an execution go that is of no interest, or not any more.
    fn let_go(&mut self, hold: HoldId, out: &mut Vec<Action>) {
        self.settle(hold, None, out);
    }

    /// Answers one that may have had no place among the holds yet.
    fn settle(&mut self, hold: HoldId, refusal: Option<Refusal>, out: &mut Vec<Action>) {
        if self.holds.contains_key(&hold) {
            self.answer(hold, refusal, out);
        } else {
            out.push(Action::Answer { hold, refusal });
        }
    }

    fn hold_expired(&mut self, hold: HoldId, now: Instant, out: &mut Vec<Action>) {
        let Some(Hold { life: id, of, .. }) = self.holds.remove(&hold) else { return };
        out.push(Action::Log(
            Level::Warn,
            "an execution was let go at its last moment: what it waited for had not come".into(),
        ));
        let refusal = match of {
            HoldOf::Create => self.finish_expired(id, now, out),
            HoldOf::Start => self.start_expired(id, hold),
            HoldOf::Parked => {
                if let Some(life) = self.lives.get_mut(&id) {
                    life.parked.retain(|entry| entry.hold != hold);
                }
                None
            }
            // These have deadlines of their own, which come first.
            HoldOf::Entry | HoldOf::Exec => None,
        };
        out.push(Action::Answer { hold, refusal });
        if of == HoldOf::Create && refusal.is_some() {
            self.refuse_creation(id, now, out);
        }
        self.next_turn(id, now, out);
    }

    fn record(&mut self, event: ContainerEvent, answer: Option<Answer>, out: &mut Vec<Action>) {
        self.last_seq += 1;
        out.push(Action::Record(Box::new(Record { seq: self.last_seq, event, answer })));
    }
}

fn new_event(
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
        ending: None,
        asked: None,
    }
}
