//! Containers that no mark held: the kernel has shown their first program, or that of one that is being run.

use super::lane::{Effect, Turn};
use super::life::{Gate, Role};
use super::*;

/// A container that was seen when its init executed its first program, or a later one.
#[derive(Debug)]
pub(crate) struct Untold {
    pub(crate) key: Key,
    pub(crate) container: Container,
    pub(crate) init: Process,
    /// The pids above, nearest first.
    pub(crate) ancestors: Vec<i32>,
    /// It was there before the listener.
    pub(crate) existing: bool,
    pub(crate) time: SystemTime,
}

impl Lifecycle {
    /// Is this the init of a container that is known, or of one whose creation is on its way?
    pub(crate) fn tells_of(&self, init: Process, ancestors: &[i32]) -> bool {
        self.processes.contains(init)
            || self
                .created_under(ancestors)
                .and_then(|id| self.lives.get(&id))
                .is_some_and(|life| !matches!(life.verb, Verb::Run { .. }) || life.marked)
    }

    /// Is one of these processes a `run` that is waited for, and whose entrypoint is not marked?
    pub(crate) fn is_run(&self, init: Process, ancestors: &[i32]) -> bool {
        !self.tells_of(init, ancestors) && self.created_under(ancestors).is_some()
    }

    /// The life that one of these processes is creating.
    fn created_under(&self, ancestors: &[i32]) -> Option<LifeId> {
        let creates = |(id, role): &&(LifeId, Role)| {
            *role == Role::Creator && self.lives.get(id).is_some_and(|life| life.creating())
        };
        ancestors.iter().find_map(|pid| {
            self.processes.of_pid(*pid).find_map(|(_, roles)| roles.iter().find(creates).map(|(id, _)| *id))
        })
    }

    /// The init of a `run` whose entrypoint is not marked has executed its first program.
    pub(super) fn ran(
        &mut self,
        init: Process,
        ancestors: &[i32],
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.tells_of(init, ancestors) {
            return;
        }
        let Some(id) = self.created_under(ancestors) else { return };
        self.set_init(id, init);
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.gate = Gate::Open;
        let why = life.unmarked.get_or_insert_with(|| "its entrypoint was not marked".into()).clone();
        out.push(Action::Release { life: id });
        self.watch(init, id, Role::Init, out);
        out.push(Action::Learn(init));
        self.tell_untold(id, false, why, time, now, out);
    }

    pub(super) fn untold(&mut self, untold: Untold, now: Instant, out: &mut Vec<Action>) {
        let Untold { key, container, init, ancestors, existing, time } = untold;
        if self.is_run(init, &ancestors) {
            self.ran(init, &ancestors, time, now, out);
            return;
        }
        if self.tells_of(init, &ancestors) {
            return;
        }
        let id = self.adopt(Some(key), container, init);
        out.push(Action::Watch(init));
        out.push(Action::Learn(init));
        self.tell_untold(id, existing, "its runtime is not marked".into(), time, now, out);
    }

    fn tell_untold(
        &mut self,
        id: LifeId,
        existing: bool,
        why: String,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let created = Turn {
            existing,
            detail: (!existing).then(|| format!("not held: {why}")),
            ..Turn::new(EventKind::Created, time, Effect::None)
        };
        self.push(id, created, now, out);
        if let Some(life) = self.lives.get_mut(&id) {
            life.unmarked = Some(why);
        }
        if !existing {
            self.tell_started_unheld(id, time, now, out);
        }
    }
}
