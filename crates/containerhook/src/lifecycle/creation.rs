//! How a container comes to be: from the exec of its runtime to its first program.

use super::ending::UNSEEN;
use super::lane::{Effect, Turn};
use super::life::{Finishing, Gate, Life, Role};
use super::*;

impl Lifecycle {
    /// A runtime has been executed.
    pub(super) fn command(&mut self, command: Command, now: Instant, out: &mut Vec<Action>) {
        let hold = command.hold;
        // crun executes every verb twice, a wrapper executes the real runtime: one process, told once.
        if self.processes.is_runtime(command.process) {
            self.let_go(hold, out);
            return;
        }
        match command.verb {
            Verb::Create | Verb::Run { .. } | Verb::Restore => {
                if self.is_inner(&command) {
                    self.let_go(hold, out);
                } else {
                    self.begin(command, now, out);
                }
            }
            Verb::Start => match self.addressed(&command.key, true) {
                Some(id) => self.start(id, &command, now, out),
                None => self.let_go(hold, out),
            },
            Verb::Exec { ref process, detach } => {
                let process = Arc::clone(process);
                self.exec(command, process, detach, now, out);
            }
            Verb::After(kind) => self.after(command, kind, out),
        }
    }

    /// Is this the real runtime, which a wrapper that is marked too runs as its child?
    fn is_inner(&self, command: &Command) -> bool {
        self.processes.of_pid(command.parent).any(|(_, roles)| {
            roles.iter().any(|(id, role)| {
                *role == Role::Creator
                    && self
                        .lives
                        .get(id)
                        .is_some_and(|life| life.creator_works() && life.container.id == command.container.id)
            })
        })
    }

    /// The life that a runtime means by this key.
    pub(super) fn addressed(&self, key: &Key, start: bool) -> Option<LifeId> {
        let newest = *self.keys.get(key)?;
        // As long as an id is in use, another create of it does not get far: the state is still that of the earlier life.
        let mut next = Some(newest);
        while let Some((id, life)) = next.and_then(|id| Some((id, self.lives.get(&id)?))) {
            let may_start = life.init.is_some() && life.may_enter();
            let has_state = !life.creator_works() && !life.over && life.deleting.is_none();
            if has_state && (id == newest || !start || may_start) {
                return Some(id);
            }
            next = life.previous;
        }
        Some(newest)
    }

    /// A runtime is about to create a container.
    fn begin(&mut self, command: Command, now: Instant, out: &mut Vec<Action>) {
        let id = command.hold;
        let mut life = Life::new(command.container, command.verb);
        life.creator = Some(command.process);
        life.creator_hold = command.held.then_some(command.hold);
        life.previous = self.keys.get(&command.key).copied();
        life.key = Some(command.key.clone());
        self.lives.insert(id, Box::new(life));
        self.keys.insert(command.key, id);
        let creator = command.process;
        let deadline = command.at + self.rules.deadline(EventKind::PreCreate);
        if command.held {
            self.keep(command.hold, id, HoldOf::Create, deadline);
        }
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
        // Last: the engine looks at the process, which is held, while a handler or a worker is at it already.
        self.watch(creator, id, Role::Creator, out);
    }

    pub(super) fn finish(&mut self, id: LifeId, change: Option<Config>, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get(&id) else { return };
        // `run` needs the mark for Created, which is told at the entrypoint's exec; and for the end, which a watch that
        // comes later could miss, and whose status is else taken for that of a creation that failed.
        let by_run = [EventKind::Created, EventKind::Stopped, EventKind::Deleted];
        let mark = self.rules.tells(EventKind::Started)
            || (matches!(life.verb, Verb::Run { .. }) && by_run.iter().any(|kind| self.rules.tells(*kind)));
        out.push(Action::Finish { life: id, change, mark });
    }

    pub(super) fn finished(&mut self, id: LifeId, outcome: Finished, now: Instant, out: &mut Vec<Action>) {
        let useless = self.lives.get(&id).is_none_or(|life| life.over || life.entered || life.init_ended);
        if useless {
            // The create process was killed while it was held, or did not wait.
            out.push(Action::Unmark { life: id, by: None });
        }
        let Some(life) = self.lives.get_mut(&id) else {
            out.push(Action::Release { life: id });
            return;
        };
        life.marked = outcome.marked && !useless;
        life.unmarked = outcome.unmarked;
        if let Some(config) = outcome.config.filter(|_| life.creator_hold.is_some()) {
            Arc::make_mut(&mut life.container).config = Some(config);
        }
        if life.over {
            out.push(Action::Release { life: id });
        }
        let hold = life.creator_hold.take();
        let mut refusal = None;
        if let Some(finishing) = life.finishing.take() {
            let Finishing { event, mut answer, since, changes: _ } = *finishing;
            if let Some(error) = outcome.change_failed {
                let why = format!("the changed configuration could not be written: {error}");
                refusal = self.without_change(&mut answer, why);
            }
            answer.held_for = now.saturating_duration_since(since);
            self.record(event, Some(answer), out);
        }
        if let Some(hold) = hold {
            self.answer(hold, refusal, out);
        }
        if refusal.is_some() {
            self.refuse_creation(id, now, out);
        }
        self.next_turn(id, now, out);
    }

    /// What the choice beforehand makes of an answer whose change did not come about.
    fn without_change(&self, answer: &mut Answer, why: String) -> Option<Refusal> {
        answer.reason = Some(why);
        match self.rules.on_timeout {
            OnTimeout::Allow => {
                answer.decision = Verdict::Allow;
                None
            }
            OnTimeout::Deny => {
                answer.decision = Verdict::Deny;
                Some(Refusal::default())
            }
        }
    }

    /// The entrypoint's mark, or the changed configuration, is not there at the last moment.
    pub(super) fn finish_expired(
        &mut self,
        id: LifeId,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Option<Refusal> {
        let life = self.lives.get_mut(&id)?;
        life.creator_hold = None;
        let Finishing { event, mut answer, since, changes } = *life.finishing.take()?;
        let mut refusal = None;
        if changes {
            let why = "the changed configuration could not be written in time".to_owned();
            refusal = self.without_change(&mut answer, why);
        }
        answer.held_for = now.saturating_duration_since(since);
        self.record(event, Some(answer), out);
        refusal
    }

    /// The exec of the runtime is denied: there will be no container.
    pub(super) fn refuse_creation(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        // The process lives on as whatever it was before the exec that failed.
        if let Some(creator) = self.lives.get(&id).and_then(|life| life.creator) {
            self.drop_role(creator, id, Role::Creator, out);
        }
        self.set_over(id, now, out);
    }

    /// A runtime is about to start the container's process.
    fn start(&mut self, id: LifeId, command: &Command, now: Instant, out: &mut Vec<Action>) {
        let hold = command.hold;
        let deadline = command.at + self.rules.deadline(EventKind::Created);
        let Some(life) = self.lives.get_mut(&id) else { return self.let_go(hold, out) };
        life.start_seen = Some(command.time);
        let wait = match life.gate {
            Gate::Shut => life.verb == Verb::Create && !life.start_passed,
            Gate::Refused => !life.init_ended && !life.unkillable,
            Gate::Open => false,
        };
        if wait && command.held {
            life.starts.push((hold, command.at));
            self.keep(hold, id, HoldOf::Start, deadline);
            return;
        }
        life.start_passed = true;
        let refusal = life.refusal();
        out.push(Action::Answer { hold, refusal });
        self.started_unheld(id, now, out);
    }

    /// A `start` has waited until its last moment.
    pub(super) fn start_expired(&mut self, id: LifeId, hold: HoldId) -> Option<Refusal> {
        let life = self.lives.get_mut(&id)?;
        life.starts.retain(|(start, _)| *start != hold);
        // crun executes itself again, and must not wait again.
        life.start_passed = true;
        life.refusal()
    }

    /// The container's `start` goes on, and its entrypoint will not be held: this is all there is to tell of it.
    fn started_unheld(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if life.marked || life.entered || life.gate != Gate::Open || life.init_ended || life.existing {
            return;
        }
        let Some(time) = life.start_seen.take() else { return };
        self.tell_started_unheld(id, time, now, out);
    }

    pub(super) fn tell_started_unheld(
        &mut self,
        id: LifeId,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.entered = true;
        life.started_at = Some(time);
        let why = life.unmarked.clone().unwrap_or_else(|| "its entrypoint is not marked".into());
        let turn = Turn {
            detail: Some(format!("not held: {why}")),
            ..Turn::new(EventKind::Started, time, Effect::None)
        };
        self.push(id, turn, now, out);
    }

    /// Opens or refuses the gate before `start`.
    pub(super) fn settle_gate(&mut self, id: LifeId, gate: Gate, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.gate = gate;
        if gate == Gate::Open || life.init_ended || life.init.is_none() {
            let starts = std::mem::take(&mut life.starts);
            let refusal = life.refusal();
            for (hold, _) in starts {
                self.answer(hold, refusal, out);
            }
            self.started_unheld(id, now, out);
        } else if let Some(init) = life.init {
            // Denying the start alone makes Docker 20.10 and ctr leak the task: the init goes first.
            out.push(Action::Kill(init));
        }
    }

    /// The init of a refused container stays: what waits for its end is answered now.
    pub(super) fn unkillable(&mut self, process: Process, why: &str, out: &mut Vec<Action>) {
        let Some(id) = self.init_of(process) else { return };
        let Some(life) = self.lives.get_mut(&id).filter(|life| life.gate == Gate::Refused) else { return };
        life.unkillable = true;
        let refusal = life.refusal();
        let starts = std::mem::take(&mut life.starts);
        let instead = if refusal.is_none() {
            "its first program will be refused in place of its start"
        } else {
            "its start will be refused, and its init stays until its engine deletes it"
        };
        let line = format!(
            "container {:?} was refused, and its init, process {}, could not be ended: {why}; {instead}",
            life.container.id, process.pid
        );
        out.push(Action::Log(Level::Warn, line));
        for (hold, _) in starts {
            self.answer(hold, refusal, out);
        }
    }

    /// A file that is some container's entrypoint has been executed.
    pub(super) fn entry(&mut self, entry: Entry, now: Instant, out: &mut Vec<Action>) {
        let is_init = |life: &Life| life.init == Some(entry.process);
        let descends = |life: &Life| {
            let Some(creator) = life.creator else { return false };
            // `crun run --detach` forks twice, and its parent waits for a child that is not below it any more: but that
            // child is the runtime still, by its command line.
            let detached = || {
                matches!(life.verb, Verb::Run { detach: true, .. })
                    && entry.process.start_time >= creator.start_time
                    && life.key.as_ref().is_some_and(|key| entry.before.contains(&key.id))
            };
            entry.ancestors.contains(&creator.pid) || detached()
        };
        let runs_it = |life: &Life| {
            life.creating()
                && life.verb != Verb::Create
                && descends(life)
                // A hook that runs in the container may execute the same file, and is not its first process.
                && (entry.own_pid == 1 || !life.makes_pid_namespace())
        };
        let pick =
            |fits: &dyn Fn(&Life) -> bool| {
                entry.candidates.iter().copied().find(|id| {
                    self.lives.get(id).is_some_and(|life| !life.entered && !life.over && fits(life))
                })
            };
        if let Some(id) = pick(&is_init).or_else(|| pick(&runs_it)) {
            let created = |life: &Life| life.init.is_some() && life.awaiting.is_none();
            let created = self.lives.get(&id).is_some_and(|life| created(life));
            self.first_program(id, entry, created, now, out);
        } else if let Some(id) = pick(&|life| life.finding) {
            // Whether this is the init will be known in a moment.
            let deadline = entry.at + self.rules.deadline(EventKind::Started);
            self.keep(entry.hold, id, HoldOf::Parked, deadline);
            if let Some(life) = self.lives.get_mut(&id) {
                life.parked.push(entry);
            }
        } else {
            // A file is executed by whomever: only a container's init at its first exec of it is of interest.
            self.let_go(entry.hold, out);
        }
    }

    /// A container's init is held at its first program; `created`: and `Created` is told, or on its way.
    fn first_program(
        &mut self,
        id: LifeId,
        entry: Entry,
        created: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Entry { hold, at, time, process, args, executable, .. } = entry;
        out.push(Action::Unmark { life: id, by: Some(hold) });
        let Some(life) = self.lives.get_mut(&id) else { return self.let_go(hold, out) };
        life.marked = false;
        if life.unkillable {
            // It was refused before, and this is the first moment at which that can be done.
            let refusal = life.refusal();
            life.entered = true;
            return self.settle(hold, refusal, out);
        }
        life.entered = true;
        life.started_at = Some(time);
        if let Some((_, at)) = life.awaiting.take() {
            self.due.remove(&(at, Due::Entry(id)));
        }
        life.exec = Some(Arc::new(ExecProcess { args, ..ExecProcess::default() }));
        let kind = if created { EventKind::Started } else { EventKind::Created };
        let deadline = at + self.rules.deadline(kind);
        self.keep(hold, id, HoldOf::Entry, deadline);
        if created {
            self.entered(id, hold, at, time, executable, now, out);
            return;
        }
        self.set_init(id, process);
        self.watch(process, id, Role::Init, out);
        out.push(Action::Learn(process));
        out.push(Action::Release { life: id });
        let effect = Effect::EntryCreated { hold, at, time, executable };
        if self.rules.tells(EventKind::Created) {
            let turn = Turn {
                held: Some((at, deadline)),
                caller: Some(process.pid),
                ..Turn::new(EventKind::Created, time, effect)
            };
            self.push(id, turn, now, out);
        } else {
            self.carry_out(id, effect, None, now, out);
        }
    }

    /// The init is held at its entrypoint, and `Created` is behind it.
    #[allow(clippy::too_many_arguments, reason = "the facts of one event")]
    pub(super) fn entered(
        &mut self,
        id: LifeId,
        hold: HoldId,
        at: Instant,
        time: SystemTime,
        executable: Option<String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        // An init that was killed while it was held at its first program has never run it.
        let tells = self.rules.tells(EventKind::Started);
        let Some(life) = self.lives.get(&id).filter(|life| tells && !life.init_ended) else {
            self.answer(hold, None, out);
            return;
        };
        let deadline = at + self.rules.deadline(EventKind::Started);
        let turn = Turn {
            held: Some((at, deadline)),
            caller: life.init.map(|init| init.pid),
            exec: life.exec.clone(),
            detail: executable.map(|path| format!("executes {path}")),
            ..Turn::new(EventKind::Started, time, Effect::Entered(hold))
        };
        // The hold's last moment may have been set for Created: Started has its own deadline, from the same exec.
        if self.holds.contains_key(&hold) {
            self.keep(hold, id, HoldOf::Entry, deadline);
        }
        self.push(id, turn, now, out);
    }

    /// The runtime that creates the container has ended.
    pub(super) fn creator_ended(
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
            // It was killed while it was held: it has created nothing.
            let finishing = life.finishing.take();
            self.answer(hold, None, out);
            if let Some(finishing) = finishing {
                let Finishing { event, mut answer, since, changes: _ } = *finishing;
                answer.held_for = now.saturating_duration_since(since);
                self.record(event, Some(answer), out);
            }
            self.failed(id, "its runtime was killed", time, now, out);
            return;
        }
        if life.over {
            return;
        }
        let failed = status.success() == Some(false);
        let in_foreground = matches!(life.verb, Verb::Run { detach: false, .. });
        let deletes = matches!(life.verb, Verb::Run { detach: false, keep: false });
        if life.init.is_some() {
            // A `run` in the foreground outlives its container, and deletes it; unless it was killed.
            let lived = status.code.is_some() || (life.init_ended && status.signal.is_none());
            if deletes && lived {
                self.deleted(id, time, now, out);
            }
            return;
        }
        let marked = life.marked;
        if in_foreground && !failed && !(marked && status.success().is_none()) {
            // It created, ran and ended a container whose entrypoint was not marked. Its exit is the container's.
            life.unmarked.get_or_insert_with(|| "its entrypoint was not seen".into());
            let why = life.unmarked.clone().unwrap_or_default();
            let created = Turn {
                detail: Some(format!("not held: {why}")),
                ..Turn::new(EventKind::Created, time, Effect::Opened)
            };
            self.push(id, created, now, out);
            self.tell_started_unheld(id, time, now, out);
            self.init_ended(id, status, time, now, out);
            if deletes {
                self.deleted(id, time, now, out);
            }
        } else if failed && status.signal.is_none() {
            let why = if in_foreground && !marked {
                "it failed before it was seen, or its creation did"
            } else {
                "its creation failed"
            };
            self.failed(id, why, time, now, out);
        } else {
            // A runtime that was killed may have come as far as to an init.
            life.finding = true;
            out.push(Action::FindInit { life: id });
        }
    }

    /// There is no container, though its creation was let go on.
    pub(super) fn failed(
        &mut self,
        id: LifeId,
        why: &str,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.set_over(id, now, out);
        if self.rules.tells(EventKind::PreCreate) {
            let turn = Turn { detail: Some(why.into()), ..Turn::new(EventKind::Deleted, time, Effect::None) };
            self.push(id, turn, now, out);
        }
        self.retire(id, out);
    }

    pub(super) fn init_found(
        &mut self,
        id: LifeId,
        init: Init,
        time: SystemTime,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::Release { life: id });
        let known = self.lives.get_mut(&id).filter(|life| {
            // It may have shown itself meanwhile, or be deleted.
            life.init.is_none() && !life.over && !life.init_ended
        });
        let Some(life) = known else {
            if let Init::Watched(process) = init
                && !self.processes.contains(process)
            {
                out.push(Action::Unwatch(process));
            }
            self.unpark(id, now, out);
            return;
        };
        life.finding = false;
        let created = life.creator_ended.and_then(|status| status.success()) == Some(true);
        let init = match init {
            // A pid file that an earlier container left names such a process too.
            Init::Ended(Process { pid, start_time: 0 }, _) if !created => {
                Init::Unknown(format!("process {pid}, which it names, is not there"))
            }
            init => init,
        };
        let mut detail = None;
        let mut ended = None;
        match init {
            Init::Watched(process) => {
                self.set_init(id, process);
                self.processes.add(process, id, Role::Init);
                out.push(Action::Learn(process));
            }
            Init::Ended(process, status) => {
                self.set_init(id, process);
                ended = Some(status);
            }
            Init::Unknown(why) => {
                // Without the create's status, no init means that it failed.
                if life.creator_ended.and_then(|status| status.success()) != Some(true) {
                    self.failed(id, "its creation failed", time, now, out);
                    return;
                }
                out.push(Action::Log(
                    Level::Warn,
                    format!("container {:?} was created, but {why}", life.container.id),
                ));
                detail = Some(format!("its init's pid is not known: {why}"));
            }
        }
        self.replaces(id, out);
        let Some(life) = self.lives.get_mut(&id) else { return };
        let creates = life.verb == Verb::Create;
        // A detached `run` whose init is held at its first program already.
        let at_entry = life.parked.iter().position(|entry| !creates && life.init == Some(entry.process));
        if let Some(at) = at_entry
            && ended.is_none()
        {
            let entry = life.parked.remove(at);
            self.first_program(id, entry, false, now, out);
        } else if ended.is_none() && !creates && life.marked && self.rules.tells(EventKind::Created) {
            // Its first program comes in a moment, and is held.
            let until = now + UNSEEN;
            life.awaiting = Some((time, until));
            self.due.insert((until, Due::Entry(id)));
        } else {
            // What waits is its `start`, which may have come before this.
            let held = creates && !life.start_passed && ended.is_none();
            let since = life.starts.iter().map(|(_, at)| *at).min().map_or(now, |at| at.min(now));
            let deadline = since + self.rules.deadline(EventKind::Created);
            if !held {
                let why = match (ended, creates) {
                    (Some(_), _) => "not held: it had ended already",
                    (None, true) => "not held: it had been started already",
                    (None, false) => "not held: it runs already",
                };
                detail.get_or_insert_with(|| why.to_owned());
            }
            let turn = Turn {
                held: held.then_some((since, deadline)),
                detail,
                ..Turn::new(EventKind::Created, time, if held { Effect::Gate } else { Effect::Opened })
            };
            if self.rules.tells(EventKind::Created) {
                self.push(id, turn, now, out);
            } else {
                self.settle_gate(id, Gate::Open, now, out);
            }
        }
        let unheld = self.lives.get(&id).is_some_and(|life| {
            matches!(life.verb, Verb::Run { detach: true, .. }) && !life.marked && !life.entered
        });
        if unheld {
            self.tell_started_unheld(id, time, now, out);
        }
        self.unpark(id, now, out);
        if let Some(status) = ended {
            self.init_ended(id, status, time, now, out);
        } else if self.lives.get(&id).is_some_and(|life| life.init.is_none()) {
            self.retire(id, out);
        }
    }

    /// The first program of a container that runs was not seen, though it was waited for.
    pub(super) fn created_unheld(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Some((time, at)) = life.awaiting.take() else { return };
        self.due.remove(&(at, Due::Entry(id)));
        let turn = Turn {
            detail: Some("not held: it runs already".into()),
            ..Turn::new(EventKind::Created, time, Effect::Opened)
        };
        self.push(id, turn, now, out);
    }

    /// Those that waited for the init to be known.
    fn unpark(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        let parked = self.lives.get_mut(&id).map(|life| std::mem::take(&mut life.parked));
        for entry in parked.unwrap_or_default() {
            self.entry(entry, now, out);
        }
    }

    /// The container exists: the one that had its key does not, though its deletion was not seen.
    fn replaces(&mut self, id: LifeId, out: &mut Vec<Action>) {
        let Some(old) = self.lives.get(&id).and_then(|life| life.previous) else { return };
        let Some(life) = self.lives.get_mut(&old).filter(|life| life.init_ended) else { return };
        life.over = true;
        life.key = None;
        let earlier = life.previous.take();
        self.retire(old, out);
        if let Some(life) = self.lives.get_mut(&id) {
            life.previous = earlier;
        }
    }

    pub(super) fn set_init(&mut self, id: LifeId, init: Process) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.init = Some(init);
            life.finding = false;
            Arc::make_mut(&mut life.container).pid = u32::try_from(init.pid).ok();
        }
    }
}
