//! Containers that no mark held: the kernel has shown their first program, or that of one that is being run.

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
        self.processes.get(&init.pid).is_some_and(|(known, _)| *known == init)
            || self
                .created_under(ancestors)
                .and_then(|id| self.lives.get(&id))
                .is_some_and(|life| !matches!(life.verb, Verb::Run { .. }) || life.marked)
    }

    /// The life that one of these processes is creating.
    fn created_under(&self, ancestors: &[i32]) -> Option<LifeId> {
        ancestors.iter().find_map(|pid| match self.processes.get(pid) {
            Some((_, Role::Creator(id))) if self.lives.get(id).is_some_and(Life::creating) => Some(*id),
            _ => None,
        })
    }

    pub(super) fn untold(&mut self, untold: Untold, now: Instant, out: &mut Vec<Action>) {
        let Untold { key, container, init, ancestors, existing, time } = untold;
        if self.tells_of(init, &ancestors) {
            return;
        }
        let (id, why) = match self.created_under(&ancestors) {
            Some(id) => {
                let Some(life) = self.lives.get_mut(&id) else { return };
                life.init = Some(init);
                life.entered = true;
                life.gate = Gate::Open;
                Arc::make_mut(&mut life.container).pid = u32::try_from(init.pid).ok();
                self.processes.insert(init.pid, (init, Role::Init(id)));
                out.push(Action::Release { life: id });
                let why = self.lives.get(&id).and_then(|life| life.unmarked.clone());
                (id, why.unwrap_or_else(|| "its entrypoint was not marked".into()))
            }
            None => {
                if self
                    .keys
                    .get(&key)
                    .and_then(|id| self.lives.get(id))
                    .is_some_and(|life| life.init == Some(init))
                {
                    return;
                }
                let id = self.adopt(container, init);
                if let Some(life) = self.lives.get_mut(&id) {
                    life.key = Some(key.clone());
                }
                self.keys.insert(key, id);
                (id, "its runtime is not marked".into())
            }
        };
        out.push(Action::Watch(init));
        let created = Turn {
            existing,
            detail: (!existing).then(|| format!("not held: {why}")),
            ..Turn::new(EventKind::Created, time, Effect::Opened)
        };
        self.push(id, created, now, out);
        if !existing {
            let started = Turn {
                detail: Some(format!("not held: {why}")),
                ..Turn::new(EventKind::Started, time, Effect::None)
            };
            self.push(id, started, now, out);
        }
    }
}
