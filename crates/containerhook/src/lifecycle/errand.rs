//! What a runtime is executed for in a container that is there: another process, a signal, other limits, its deletion.
//!
//! Each is told when the runtime's process has ended, and so is a process that was executed in the foreground: the
//! runtime lives as long, and ends as it did. A detached one outlives its runtime, which has written down its pid.

use super::lane::{Effect, Turn};
use super::life::Role;
use super::*;
use crate::event::{Asked, Ending};

/// What is told at the end of a process besides the end.
#[derive(Debug, Default)]
pub(super) struct Errand {
    exec: Option<Arc<ExecProcess>>,
    asked: Option<Arc<Asked>>,
    began: Option<SystemTime>,
}

impl Lifecycle {
    /// A runtime is about to execute a process in a container.
    pub(super) fn exec(
        &mut self,
        command: Command,
        process: Arc<ExecProcess>,
        detach: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Command { hold, at, held, .. } = command;
        if !self.rules.tells(EventKind::Exec) && !self.rules.tells(EventKind::ExecStopped) {
            self.let_go(hold, out);
            return;
        }
        let known = self.addressed(&command.key, false);
        let id = known.unwrap_or_else(|| self.stranger(command.key, command.container));
        self.watch(command.process, id, Role::Exec { detach }, out);
        let errand =
            Errand { exec: Some(Arc::clone(&process)), began: Some(command.time), ..Errand::default() };
        self.errands.insert(command.process, errand);
        if !self.rules.tells(EventKind::Exec) {
            self.let_go(hold, out);
            return;
        }
        let deadline = at + self.rules.deadline(EventKind::Exec);
        if held {
            self.keep(hold, id, HoldOf::Exec, deadline);
        }
        let turn = Turn {
            held: held.then_some((at, deadline)),
            caller: Some(command.process.pid),
            exec: Some(process),
            detail: command.detail,
            ..Turn::new(EventKind::Exec, command.time, Effect::Exec { hold, process: command.process })
        };
        self.push(id, turn, now, out);
    }

    /// A runtime is about to do something that is told when it has.
    pub(super) fn after(&mut self, command: Command, kind: EventKind, out: &mut Vec<Action>) {
        self.let_go(command.hold, out);
        if let Some(id) = self.addressed(&command.key, false)
            && (self.rules.tells(kind) || self.rules.tells(EventKind::Failed) || kind == EventKind::Deleted)
        {
            self.watch(command.process, id, Role::After(kind), out);
            if command.asked.is_some() {
                let errand = Errand { asked: command.asked, ..Errand::default() };
                self.errands.insert(command.process, errand);
            }
        }
    }

    /// Is this a runtime whose detached process is to be found by the pid file?
    pub(crate) fn executes(&self, runtime: Process) -> bool {
        self.processes.roles(runtime).iter().any(|(_, role)| *role == Role::Exec { detach: true })
    }

    /// The runtime of an `exec` has ended.
    #[allow(clippy::too_many_arguments, reason = "the facts of one end")]
    pub(super) fn exec_ended(
        &mut self,
        id: LifeId,
        runtime: Process,
        detach: bool,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if !detach {
            self.exec_stopped(id, runtime, None, status, None, time, now, out);
        } else if status.code.is_some_and(|code| code != 0) {
            let why = format!("nothing was executed: its runtime ended with {status}");
            self.exec_stopped(id, runtime, None, ExitStatus::UNKNOWN, Some(why), time, now, out);
        } else {
            // It may be there though its runtime was killed.
            out.push(Action::FindExec { life: id, runtime });
        }
    }

    /// The pid file of a detached `exec` has been read.
    pub(super) fn exec_found(
        &mut self,
        id: LifeId,
        runtime: Process,
        found: Init,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        match found {
            Init::Watched(process) if self.lives.contains_key(&id) => {
                let errand = self.errands.remove(&runtime).unwrap_or_default();
                self.processes.add(process, id, Role::Executed);
                self.errands.insert(process, errand);
            }
            Init::Watched(process) => {
                self.errands.remove(&runtime);
                if !self.processes.contains(process) {
                    out.push(Action::Unwatch(process));
                }
            }
            Init::Ended(process, status) => {
                let unknown = status == ExitStatus::UNKNOWN;
                let why = unknown.then(|| "it had ended before its pid was known".to_owned());
                self.exec_stopped(id, runtime, Some(process), status, why, time, now, out);
            }
            Init::Unknown(why) => {
                self.errands.remove(&runtime);
                let id = self.lives.get(&id).map_or("", |life| life.container.id.as_str());
                let line = format!("the end of a process in container {id:?} will not be told: {why}");
                out.push(Action::Log(Level::Info, line));
            }
        }
    }

    /// A process in a container has ended; `runtime`: what its errand is known by.
    #[allow(clippy::too_many_arguments, reason = "the facts of one event")]
    pub(super) fn exec_stopped(
        &mut self,
        id: LifeId,
        runtime: Process,
        process: Option<Process>,
        status: ExitStatus,
        detail: Option<String>,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Errand { exec, began, .. } = self.errands.remove(&runtime).unwrap_or_default();
        let exec = exec.map(|mut exec| {
            if let Some(process) = process {
                Arc::make_mut(&mut exec).pid = u32::try_from(process.pid).ok();
            }
            exec
        });
        let finished_at = (status != ExitStatus::UNKNOWN).then_some(time);
        let ending = Ending { started_at: began, finished_at, ..Ending::default() };
        let turn = Turn {
            exit: Some(status),
            exec,
            detail,
            ending: Some(Arc::new(ending)),
            ..Turn::new(EventKind::ExecStopped, time, Effect::None)
        };
        self.push(id, turn, now, out);
        self.retire(id, out);
    }

    /// The runtime that was to do something to a container has ended.
    #[allow(clippy::too_many_arguments, reason = "the facts of one event")]
    pub(super) fn done(
        &mut self,
        id: LifeId,
        runtime: Process,
        kind: EventKind,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Errand { asked, .. } = self.errands.remove(&runtime).unwrap_or_default();
        if status.success() == Some(false) {
            let container = self.lives.get(&id).map_or("", |life| life.container.id.as_str());
            let line = format!("{kind} is not told of container {container:?}: its runtime failed, {status}");
            out.push(Action::Log(Level::Debug, line));
            let asked = asked.as_deref().cloned().unwrap_or_default();
            let asked = Some(Arc::new(Asked { failed: Some(kind), ..asked }));
            let turn = Turn { asked, exit: Some(status), ..Turn::new(EventKind::Failed, time, Effect::None) };
            self.push(id, turn, now, out);
            return;
        }
        // `delete --force` of a container that is still being created finds nothing, and succeeds.
        if self.lives.get(&id).is_none_or(|life| life.creator_works()) {
            return;
        }
        if kind == EventKind::Deleted {
            self.deleted(id, time, now, out);
        } else {
            self.push(id, Turn { asked, ..Turn::new(kind, time, Effect::None) }, now, out);
        }
    }
}
