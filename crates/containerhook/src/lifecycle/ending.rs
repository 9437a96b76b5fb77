//! How lives end, and how they are forgotten.

use super::lane::{Effect, Turn};
use super::life::Role;
use super::*;
use crate::event::Ending;

/// Ended lives that no runtime has deleted are remembered, so that a late `delete` is told with what is known; no more
/// than this many.
pub(super) const MOST_ENDED: usize = 1024;

/// How long something may be on its way that must come, if it was not missed: the end of a container that its runtime has
/// deleted (without BPF it waits for its status), and the first program of one that is started.
pub(super) const UNSEEN: Duration = Duration::from_secs(1);

impl Lifecycle {
    /// A watched process has ended.
    pub(super) fn process_ended(
        &mut self,
        process: Process,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        for (id, role) in self.processes.take(process) {
            match role {
                Role::Creator => self.creator_ended(id, status, time, now, out),
                Role::Init => self.init_ended(id, status, time, now, out),
                Role::Exec { detach } => self.exec_ended(id, process, detach, status, time, now, out),
                Role::Executed => {
                    self.exec_stopped(id, process, Some(process), status, None, time, now, out);
                }
                Role::After(kind) => self.done(id, process, kind, status, time, now, out),
            }
        }
    }

    pub(super) fn init_ended(
        &mut self,
        id: LifeId,
        status: ExitStatus,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.init_ended {
            return;
        }
        life.init_ended = true;
        let ending = Ending {
            started_at: life.started_at,
            // Of an end that nobody saw only the news has a time.
            finished_at: (status != ExitStatus::UNKNOWN).then_some(time),
            cgroup: life.cgroup.take(),
            ..Ending::default()
        };
        if std::mem::take(&mut life.marked) {
            out.push(Action::Unmark { life: id, by: None });
        }
        let deleting = life.deleting.take();
        if let Some(refusal) = life.refusal() {
            for (hold, _) in std::mem::take(&mut life.starts) {
                self.answer(hold, Some(refusal), out);
            }
        }
        let turn = Turn {
            exit: Some(status),
            ending: Some(Arc::new(ending)),
            ..Turn::new(EventKind::Stopped, time, Effect::None)
        };
        self.push(id, turn, now, out);
        if let Some((time, at)) = deleting {
            self.due.remove(&(at, Due::Deleted(id)));
            self.deleted_now(id, time, now, out);
        }
        self.retire(id, out);
    }

    /// Its runtime has deleted it.
    pub(super) fn deleted(&mut self, id: LifeId, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.over || life.deleting.is_some() {
            return;
        }
        if life.finding || (life.init.is_some() && !life.init_ended) {
            // No runtime deletes what lives: its end is about to be told.
            let until = now + UNSEEN;
            life.deleting = Some((time, until));
            self.due.insert((until, Due::Deleted(id)));
            return;
        }
        if !life.init_ended {
            // Its init's pid was never known: this is its end as well.
            self.init_ended(id, ExitStatus::UNKNOWN, time, now, out);
        }
        self.deleted_now(id, time, now, out);
    }

    /// The end of a container that has been deleted was not seen.
    pub(super) fn end_unseen(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Some((time, _)) = life.deleting.take() else { return };
        let created = !std::mem::take(&mut life.finding);
        if let Some(init) = life.init {
            let line = format!(
                "container {:?} was deleted, and the end of process {} was not seen",
                life.container.id, init.pid
            );
            out.push(Action::Log(Level::Warn, line));
            self.drop_role(init, id, Role::Init, out);
        }
        if created {
            self.init_ended(id, ExitStatus::UNKNOWN, time, now, out);
        }
        self.deleted_now(id, time, now, out);
    }

    fn deleted_now(&mut self, id: LifeId, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        self.set_over(id, now, out);
        self.push(id, Turn::new(EventKind::Deleted, time, Effect::None), now, out);
        self.retire(id, out);
    }

    /// There is no container any more, or there will be none: nothing waits for it.
    pub(super) fn set_over(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.over {
            return;
        }
        life.over = true;
        life.marked = false;
        out.push(Action::Unmark { life: id, by: None });
        out.push(Action::Release { life: id });
        let starts = std::mem::take(&mut life.starts);
        let parked = std::mem::take(&mut life.parked);
        let (key, previous) = (life.key.take(), life.previous.take());
        if let Some((_, at)) = life.deleting.take() {
            self.due.remove(&(at, Due::Deleted(id)));
        }
        if let Some((_, at)) = life.awaiting.take() {
            self.due.remove(&(at, Due::Entry(id)));
        }
        let never = life.init.is_none();
        let meanwhile = life.meanwhile.take().filter(|_| never);
        for hold in starts.into_iter().map(|(hold, _)| hold).chain(parked.into_iter().map(|entry| entry.hold))
        {
            self.answer(hold, None, out);
        }
        if let Some(key) = key {
            self.give_key_back(&key, id, previous);
        }
        if let Some(existing) = meanwhile {
            self.existing(*existing, now, out);
        }
    }

    /// The key is the earlier life's again, if there is one.
    fn give_key_back(&mut self, key: &Key, id: LifeId, previous: Option<LifeId>) {
        let Some(&newest) = self.keys.get(key) else { return };
        if newest != id {
            // Lives of one key are a chain, out of which this one goes.
            let mut next = Some(newest);
            while let Some(life) = next.and_then(|newer| self.lives.get_mut(&newer)) {
                if life.previous == Some(id) {
                    life.previous = previous;
                }
                next = life.previous;
            }
            return;
        }
        match previous.filter(|old| self.lives.get(old).is_some_and(|old| !old.over)) {
            Some(old) => self.keys.insert(key.clone(), old),
            None => self.keys.remove(key),
        };
    }

    /// Forgets the life if it is over, or some day if only its deletion is missing.
    pub(super) fn retire(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.over && life.idle() {
            self.forget(id, out);
            return;
        }
        // Without an init that is watched, nothing but its deletion will tell more of it.
        let unwatched = life.creator_ended.is_some() && life.init.is_none() && !life.finding;
        if (life.init_ended || unwatched) && !life.over && !life.retired {
            life.retired = true;
            self.ended.push_back(id);
        }
        while self.ended.len() > MOST_ENDED {
            let idle =
                |id: &LifeId| self.lives.get(id).is_none_or(|life| life.idle() && life.deleting.is_none());
            let Some(at) = self.ended.iter().position(idle) else { return };
            if let Some(oldest) = self.ended.remove(at) {
                self.forget(oldest, out);
            }
        }
    }

    fn forget(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.remove(&id) else { return };
        if life.retired {
            self.ended.retain(|ended| *ended != id);
        }
        if let Some(key) = &life.key {
            self.give_key_back(key, id, life.previous);
        }
        for (hold, _) in life.starts {
            self.answer(hold, None, out);
        }
        if life.marked {
            out.push(Action::Unmark { life: id, by: None });
        }
        for process in self.processes.drop_life(id) {
            self.errands.remove(&process);
            out.push(Action::Unwatch(process));
        }
    }

    /// The cgroup of a container's init.
    pub(crate) fn cgroup(&self, init: Process) -> Option<&Arc<Cgroup>> {
        self.init_of(init).and_then(|id| self.lives.get(&id)?.cgroup.as_ref())
    }

    pub(super) fn set_cgroup(&mut self, init: Process, cgroup: &Arc<Cgroup>) {
        if let Some(life) = self.init_of(init).and_then(|id| self.lives.get_mut(&id)) {
            life.cgroup = Some(Arc::clone(cgroup));
        }
    }

    pub(super) fn init_of(&self, init: Process) -> Option<LifeId> {
        let role = self.processes.roles(init).iter().find(|(_, role)| *role == Role::Init);
        role.map(|(id, _)| *id)
    }

    pub(super) fn watch(&mut self, process: Process, id: LifeId, role: Role, out: &mut Vec<Action>) {
        if self.processes.add(process, id, role) {
            out.push(Action::Watch(process));
        }
    }

    pub(super) fn drop_role(&mut self, process: Process, id: LifeId, role: Role, out: &mut Vec<Action>) {
        if self.processes.drop_role(process, id, role) {
            self.errands.remove(&process);
            out.push(Action::Unwatch(process));
        }
    }
}
