//! Containers whose creation was not seen: they ran before the listener, were found by others, or are spoken of by a
//! runtime.

use super::lane::{Effect, Turn};
use super::life::{Gate, Life, Role};
use super::*;

/// A container that a look at what runs has found.
#[derive(Debug)]
pub(crate) struct Existing {
    pub(crate) key: Key,
    pub(crate) container: Container,
    pub(crate) process: Process,
    pub(crate) time: SystemTime,
}

/// A container that an earlier listener has told of, and that has ended since.
#[derive(Debug)]
pub(crate) struct Vanished {
    pub(crate) key: Key,
    pub(crate) container: Container,
    pub(crate) time: SystemTime,
}

impl Lifecycle {
    /// Its end is told, as far as it is known: a deletion may come.
    pub(super) fn vanished(&mut self, vanished: Vanished, now: Instant, out: &mut Vec<Action>) {
        let Vanished { key, container, time } = vanished;
        let id = self.stranger(key, container);
        let turn = Turn {
            existing: true,
            detail: Some("it ended while nobody listened".into()),
            ..Turn::new(EventKind::Stopped, time, Effect::None)
        };
        self.push(id, turn, now, out);
        self.retire(id, out);
    }

    /// A container that runs.
    pub(super) fn adopt(&mut self, key: Option<Key>, container: Container, process: Process) -> LifeId {
        let id = self.new_id();
        let mut life = Life::new(container, Verb::Create);
        life.existing = true;
        life.gate = Gate::Open;
        life.init = Some(process);
        if let Some(key) = &key {
            self.keys.insert(key.clone(), id);
        }
        life.key = key;
        self.lives.insert(id, Box::new(life));
        self.processes.add(process, id, Role::Init);
        id
    }

    pub(super) fn existing(&mut self, existing: Existing, now: Instant, out: &mut Vec<Action>) {
        if self.processes.roles(existing.process).iter().any(|(_, role)| *role == Role::Init) {
            return;
        }
        // It may be the very one that is being created: then it is told by its creation.
        let same = |life: &&mut Box<Life>| life.creating() && life.container.id == existing.container.id;
        if let Some(life) = self.lives.values_mut().find(same) {
            life.meanwhile = Some(Box::new(existing));
            return;
        }
        let known = self.keys.get(&existing.key).and_then(|id| self.lives.get(id));
        if known.is_some_and(|life| !life.init_ended && !life.over) {
            return;
        }
        let Existing { key, container, process, time } = existing;
        let id = self.adopt(Some(key), container, process);
        out.push(Action::Watch(process));
        out.push(Action::Learn(process));
        if self.rules.tells(EventKind::Created) {
            let turn = Turn { existing: true, ..Turn::new(EventKind::Created, time, Effect::None) };
            self.push(id, turn, now, out);
        }
    }

    /// Somebody else has found a container, and wants to be told of its end.
    pub(super) fn watch_termination(&mut self, id: String, process: Process, out: &mut Vec<Action>) {
        let told = |(life, role): &(LifeId, Role)| {
            *role == Role::Init && self.lives.get(life).is_some_and(|life| life.container.id == id)
        };
        if self.processes.roles(process).iter().any(told) {
            return;
        }
        let pid = u32::try_from(process.pid).ok();
        self.adopt(
            None,
            Container { id, pid, proc: self.rules.proc.clone(), ..Container::default() },
            process,
        );
        out.push(Action::Watch(process));
        out.push(Action::Learn(process));
    }

    /// A container that a runtime speaks of.
    pub(super) fn stranger(&mut self, key: Key, container: Container) -> LifeId {
        let id = self.new_id();
        let mut life = Life::new(container, Verb::Create);
        life.existing = true;
        life.gate = Gate::Open;
        life.key = Some(key.clone());
        // Nothing will tell its end: it is among those that are forgotten first.
        life.init_ended = true;
        self.lives.insert(id, Box::new(life));
        self.keys.insert(key, id);
        id
    }
}
