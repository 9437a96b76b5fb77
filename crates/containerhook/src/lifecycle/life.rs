//! What is kept of a container's life, and which processes it waits for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::lane::Turn;
use super::{Entry, Existing, HoldId, Key, LifeId, Refusal, Token, Verb};
use crate::cgroup::Cgroup;
use crate::event::{Answer, Container, ContainerEvent, EventKind, ExecProcess, ExitStatus};
use crate::exit::Process;

/// How far the container's `Created` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Not settled: a start waits.
    Shut,
    Open,
    /// Refused: the init is killed, and a start is denied once it has ended.
    Refused,
}

/// A `PreCreate` that was allowed, and whose answer waits for the entrypoint's mark.
pub(super) struct Finishing {
    pub(super) event: ContainerEvent,
    pub(super) answer: Answer,
    pub(super) since: Instant,
    /// Another configuration is being written.
    pub(super) changes: bool,
}

pub(super) struct Life {
    pub(super) key: Option<Key>,
    /// The life that had the key when this one began, and has it again if this one comes to nothing.
    pub(super) previous: Option<LifeId>,
    pub(super) container: Arc<Container>,
    pub(super) verb: Verb,
    pub(super) creator: Option<Process>,
    /// The create's exec, as long as it is held.
    pub(super) creator_hold: Option<HoldId>,
    pub(super) creator_ended: Option<ExitStatus>,
    /// The engine looks for the init.
    pub(super) finding: bool,
    pub(super) init: Option<Process>,
    pub(super) init_ended: bool,
    pub(super) gate: Gate,
    /// The init of a refused container cannot be ended.
    pub(super) unkillable: bool,
    /// How a start is denied, if it is.
    pub(super) refused: Refusal,
    /// The `start`s that wait for the gate, and since when.
    pub(super) starts: Vec<(HoldId, Instant)>,
    /// A `start` went on though the gate was shut: nothing is held any more.
    pub(super) start_passed: bool,
    /// Executions of the entrypoint's file that wait until it is known who the init is.
    pub(super) parked: Vec<Entry>,
    pub(super) marked: bool,
    pub(super) unmarked: Option<String>,
    /// `Started` has had its moment.
    pub(super) entered: bool,
    /// `Created` waits for the first program of an init that is known: since when, and until when.
    pub(super) awaiting: Option<(SystemTime, Instant)>,
    /// When a `start` was seen that has not been told of.
    pub(super) start_seen: Option<SystemTime>,
    pub(super) exec: Option<Arc<ExecProcess>>,
    /// When the init ran its first instruction.
    pub(super) started_at: Option<SystemTime>,
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) existing: bool,
    pub(super) lane: VecDeque<Turn>,
    pub(super) telling: Option<Token>,
    pub(super) finishing: Option<Box<Finishing>>,
    /// Its runtime has deleted it, and its end has not been seen: until when that is waited for.
    pub(super) deleting: Option<(SystemTime, Instant)>,
    /// A look at what runs has found a container of this id while this one was being created.
    pub(super) meanwhile: Option<Box<Existing>>,
    /// There is no container any more.
    pub(super) over: bool,
    pub(super) retired: bool,
}

impl Life {
    pub(super) fn new(container: Container, verb: Verb) -> Self {
        Life {
            key: None,
            previous: None,
            container: Arc::new(container),
            verb,
            creator: None,
            creator_hold: None,
            creator_ended: None,
            finding: false,
            init: None,
            init_ended: false,
            gate: Gate::Shut,
            unkillable: false,
            refused: Refusal::default(),
            starts: Vec::new(),
            start_passed: false,
            parked: Vec::new(),
            marked: false,
            unmarked: None,
            entered: false,
            awaiting: None,
            start_seen: None,
            exec: None,
            started_at: None,
            cgroup: None,
            existing: false,
            lane: VecDeque::new(),
            telling: None,
            finishing: None,
            deleting: None,
            meanwhile: None,
            over: false,
            retired: false,
        }
    }

    /// Will its init be process 1 of a pid namespace?
    pub(super) fn makes_pid_namespace(&self) -> bool {
        let Some(config) = &self.container.config else { return false };
        config
            .outline()
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.is_none())
    }

    /// There is no init yet, and one may come.
    pub(super) fn creating(&self) -> bool {
        self.creator.is_some() && self.init.is_none() && !self.init_ended && !self.over
    }

    /// The runtime that creates it has not ended.
    pub(super) fn creator_works(&self) -> bool {
        self.creating() && self.creator_ended.is_none()
    }

    /// The answer to a `start`, where it does not wait. Where the init cannot be ended but its first program can be refused,
    /// that is refused in place of the `start`: an engine whose `start` fails leaves the init behind.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let later = self.unkillable && self.marked && !self.init_ended;
        (self.gate == Gate::Refused && !later).then_some(self.refused)
    }

    /// Its first program is still to come.
    pub(super) fn may_enter(&self) -> bool {
        !self.entered && !self.over && !self.init_ended
    }

    /// Nothing of it is left to tell.
    pub(super) fn idle(&self) -> bool {
        self.telling.is_none() && self.lane.is_empty() && self.finishing.is_none()
    }
}

/// What a watched process is to a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Creator,
    Init,
    /// The runtime that executes a process.
    Exec {
        detach: bool,
    },
    /// A process that outlives the runtime that executed it.
    Executed,
    After(EventKind),
}

impl Role {
    pub(super) fn is_runtime(self) -> bool {
        !matches!(self, Role::Init | Role::Executed)
    }
}

/// The watched processes. One may be several things: a container's init may be a runtime that creates another.
#[derive(Default)]
pub(super) struct Processes(BTreeMap<Process, Vec<(LifeId, Role)>>);

impl Processes {
    /// Is it new?
    pub(super) fn add(&mut self, process: Process, life: LifeId, role: Role) -> bool {
        let roles = self.0.entry(process).or_default();
        if !roles.contains(&(life, role)) {
            roles.push((life, role));
        }
        roles.len() == 1
    }

    /// It has ended: what it was.
    pub(super) fn take(&mut self, process: Process) -> Vec<(LifeId, Role)> {
        self.0.remove(&process).unwrap_or_default()
    }

    /// It is this no more. Is it nothing any more?
    pub(super) fn drop_role(&mut self, process: Process, life: LifeId, role: Role) -> bool {
        let Some(roles) = self.0.get_mut(&process) else { return false };
        roles.retain(|known| *known != (life, role));
        let nothing = roles.is_empty();
        if nothing {
            self.0.remove(&process);
        }
        nothing
    }

    /// Whatever processes were to this life, they are no more. Those that are nothing any more are returned.
    pub(super) fn drop_life(&mut self, life: LifeId) -> Vec<Process> {
        let mut nothing = Vec::new();
        self.0.retain(|process, roles| {
            roles.retain(|(of, _)| *of != life);
            if roles.is_empty() {
                nothing.push(*process);
            }
            !roles.is_empty()
        });
        nothing
    }

    pub(super) fn contains(&self, process: Process) -> bool {
        self.0.contains_key(&process)
    }

    pub(super) fn roles(&self, process: Process) -> &[(LifeId, Role)] {
        self.0.get(&process).map_or(&[], Vec::as_slice)
    }

    /// Is it a runtime at work?
    pub(super) fn is_runtime(&self, process: Process) -> bool {
        self.roles(process).iter().any(|(_, role)| role.is_runtime())
    }

    /// The processes of this pid that have not been reported to have ended: more than one where a report is late.
    pub(super) fn of_pid(&self, pid: i32) -> impl Iterator<Item = (Process, &[(LifeId, Role)])> {
        let (first, last) = (Process { pid, start_time: 0 }, Process { pid, start_time: u64::MAX });
        self.0.range(first..=last).map(|(process, roles)| (*process, roles.as_slice()))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
