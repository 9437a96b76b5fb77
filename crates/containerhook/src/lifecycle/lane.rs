//! A life's lane: its events one after the other, each with its turn at the handler, and what an answer brings about.

use super::life::{Finishing, Gate};
use super::*;
use crate::event::Ending;

/// What happens when an event is settled.
#[derive(Debug, Default)]
pub(super) enum Effect {
    #[default]
    None,
    /// The create's exec is answered, after the entrypoint was marked.
    PreCreate,
    /// A `start` may go, or the init is killed.
    Gate,
    /// `Created` was not held: a `start` may go.
    Opened,
    /// `Created` of a `run`, whose init is held at its entrypoint: `Started` comes next.
    EntryCreated { hold: HoldId, at: Instant, time: SystemTime, executable: Option<String> },
    /// The init's first program goes on, or is denied.
    Entered(HoldId),
    /// The runtime's `exec` goes on, or is denied.
    Exec { hold: HoldId, process: Process },
}

/// An event that waits for its turn.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) kind: EventKind,
    pub(super) time: SystemTime,
    /// Since when and until when the container is held.
    pub(super) held: Option<(Instant, Instant)>,
    pub(super) existing: bool,
    pub(super) caller: Option<i32>,
    pub(super) exit: Option<ExitStatus>,
    pub(super) exec: Option<Arc<ExecProcess>>,
    pub(super) detail: Option<String>,
    pub(super) ending: Option<Arc<Ending>>,
    pub(super) asked: Option<Arc<Asked>>,
    pub(super) effect: Effect,
    pub(super) token: Token,
    /// Its deadline passed before its turn came, and this is what was done.
    pub(super) answered: Option<Answer>,
}

impl Turn {
    pub(super) fn new(kind: EventKind, time: SystemTime, effect: Effect) -> Self {
        Turn {
            kind,
            time,
            held: None,
            existing: false,
            caller: None,
            exit: None,
            exec: None,
            detail: None,
            ending: None,
            asked: None,
            effect,
            token: 0,
            answered: None,
        }
    }
}

/// An event that a handler has.
pub(super) struct Telling {
    life: LifeId,
    event: Arc<ContainerEvent>,
    since: Instant,
    effect: Effect,
    due: Instant,
}

impl Lifecycle {
    pub(super) fn push(&mut self, id: LifeId, mut turn: Turn, now: Instant, out: &mut Vec<Action>) {
        let gone = self.lives.get(&id).is_none_or(|life| life.over && turn.kind != EventKind::Deleted);
        if gone {
            // Nothing is told of a container that is no more, but nothing stays held for it either.
            let effect = turn.effect;
            self.carry_out(id, effect, None, now, out);
            return;
        }
        if turn.kind != EventKind::Created {
            // Whatever it is, it comes after that.
            self.created_unheld(id, now, out);
        }
        turn.token = self.new_token();
        if let Some((_, deadline)) = turn.held {
            // It runs from the kernel's report on, whenever the event's turn comes.
            self.due.insert((deadline, Due::Turn(id, turn.token)));
        }
        if let Some(life) = self.lives.get_mut(&id) {
            life.lane.push_back(turn);
        }
        self.next_turn(id, now, out);
    }

    /// Gives the lane's next event to a handler, unless one has its predecessor.
    pub(super) fn next_turn(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        loop {
            let Some(life) = self.lives.get_mut(&id) else { return };
            if life.telling.is_some() || life.finishing.is_some() {
                return;
            }
            let Some(turn) = life.lane.pop_front() else {
                self.retire(id, out);
                return;
            };
            if !self.rules.tells(turn.kind) {
                self.carry_out(id, turn.effect, None, now, out);
                continue;
            }
            let (token, deadline) = (turn.token, self.rules.deadline(turn.kind));
            let container = Arc::clone(&life.container);
            let event = ContainerEvent {
                existing: turn.existing,
                exit: turn.exit,
                exec: turn.exec,
                detail: turn.detail,
                ending: turn.ending,
                asked: turn.asked,
                ..new_event(turn.kind, turn.time, container, turn.held, turn.caller)
            };
            let (event, since, due) = match (turn.held, turn.answered) {
                (Some((since, deadline)), None) => (event, since, deadline),
                (held, answered) => {
                    // Nobody waits for the answer: the record is complete.
                    self.record(event.clone(), answered, out);
                    let due = now + deadline;
                    self.due.insert((due, Due::Turn(id, token)));
                    let since = held.map_or(now, |(since, _)| since);
                    (ContainerEvent { held: false, deadline: None, ..event }, since, due)
                }
            };
            let event = Arc::new(event);
            out.push(Action::Tell { life: id, token, event: Arc::clone(&event) });
            self.told.insert(token, Telling { life: id, event, since, effect: turn.effect, due });
            if let Some(life) = self.lives.get_mut(&id) {
                life.telling = Some(token);
            }
            return;
        }
    }

    /// Tells of something that happened to no container.
    pub(super) fn announce(&mut self, event: ContainerEvent, now: Instant, out: &mut Vec<Action>) {
        if !self.rules.tells(event.kind) {
            return;
        }
        self.record(event.clone(), None, out);
        let (token, event) = (self.new_token(), Arc::new(event));
        let due = now + self.rules.deadline(event.kind);
        self.due.insert((due, Due::Turn(NO_LIFE, token)));
        out.push(Action::Tell { life: NO_LIFE, token, event: Arc::clone(&event) });
        self.told.insert(token, Telling { life: NO_LIFE, event, since: now, effect: Effect::None, due });
    }

    fn new_token(&mut self) -> Token {
        self.last_token += 1;
        self.last_token
    }

    pub(super) fn replied(
        &mut self,
        token: Token,
        decision: Result<Decision, String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        // An answer that is late is none.
        let Some(telling) = self.told.remove(&token) else { return };
        self.due.remove(&(telling.due, Due::Turn(telling.life, token)));
        match decision {
            Ok(Decision(choice)) => self.decided(telling, choice, None, now, out),
            Err(panic) => {
                let reason = format!("the handler panicked: {panic}");
                out.push(Action::Log(
                    Level::Warn,
                    format!("{} of container {:?}: {reason}", telling.event.kind, telling.event.id),
                ));
                let choice = self.by_default(&reason);
                self.decided(telling, choice, Some(reason), now, out);
            }
        }
    }

    /// The deadline of an event has passed.
    pub(super) fn turn_due(&mut self, id: LifeId, token: Token, now: Instant, out: &mut Vec<Action>) {
        let Some(telling) = self.told.remove(&token) else {
            self.waited_too_long(id, token, now, out);
            return;
        };
        out.push(Action::Overdue { token });
        let waited = telling.due.saturating_duration_since(telling.since);
        let reason = format!("the handler had not answered after {waited:?}");
        if telling.event.held {
            self.timed_out += 1;
        }
        out.push(Action::Log(
            Level::Warn,
            format!("{} of container {:?}: {reason}", telling.event.kind, telling.event.id),
        ));
        let choice = self.by_default(&reason);
        self.decided(telling, choice, Some(reason), now, out);
    }

    /// The handler was at an earlier event of the same container all the time. This one is settled now, and keeps its
    /// place in the lane: it is told when its turn comes.
    fn waited_too_long(&mut self, id: LifeId, token: Token, now: Instant, out: &mut Vec<Action>) {
        let choice = self.by_default("");
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Some(turn) = life.lane.iter_mut().find(|turn| turn.token == token) else { return };
        let Some((since, deadline)) = turn.held else { return };
        let waited = deadline.saturating_duration_since(since);
        let reason = format!("the handler had not come to it after {waited:?}");
        out.push(Action::Log(
            Level::Warn,
            format!("{} of container {:?}: {reason}", turn.kind, life.container.id),
        ));
        let (decision, refusal) = match choice {
            Choice::Deny(..) => (Verdict::Deny, Some(Refusal::default())),
            _ => (Verdict::Allow, None),
        };
        let held_for = now.saturating_duration_since(since);
        turn.answered = Some(Answer { decision, reason: Some(reason), timed_out: true, held_for });
        let effect = std::mem::take(&mut turn.effect);
        self.timed_out += 1;
        self.carry_out(id, effect, refusal, now, out);
    }

    fn by_default(&self, reason: &str) -> Choice {
        match self.rules.on_timeout {
            OnTimeout::Allow => Choice::Allow,
            OnTimeout::Deny => Choice::Deny(reason.to_owned(), DenyError::default()),
        }
    }

    /// `unanswered`: why the choice is not the handler's.
    fn decided(
        &mut self,
        telling: Telling,
        choice: Choice,
        unanswered: Option<String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Telling { life: id, event, since, effect, due: _ } = telling;
        if let Some(life) = self.lives.get_mut(&id) {
            life.telling = None;
        }
        if !event.held {
            // A decision has no effect, and the record is made.
            self.carry_out(id, effect, None, now, out);
            self.next_turn(id, now, out);
            return;
        }
        let timed_out = unanswered.is_some();
        let mut reason = unanswered;
        let mut refusal = None;
        let mut change = None;
        let mut decision = Verdict::Allow;
        match choice {
            Choice::Allow => {}
            Choice::Deny(why, error) => {
                out.push(Action::Log(
                    Level::Info,
                    format!("{} of container {:?} is denied: {why}", event.kind, event.id),
                ));
                decision = Verdict::Deny;
                reason = Some(why);
                refusal = Some(Refusal { error });
            }
            Choice::Change(config) if event.kind == EventKind::PreCreate => {
                decision = Verdict::Change;
                change = Some(config);
            }
            Choice::Change(_) => reason = Some("a configuration can be changed at pre-create only".into()),
        }
        let held_for = now.saturating_duration_since(since);
        let answer = Answer { decision, reason, timed_out, held_for };
        let event = Arc::unwrap_or_clone(event);
        if matches!(effect, Effect::PreCreate)
            && refusal.is_none()
            && let Some(life) = self.lives.get_mut(&id)
            && life.creator_hold.is_some()
        {
            // The answer waits until the entrypoint is marked, and so does the record.
            let changes = change.is_some();
            life.finishing = Some(Box::new(Finishing { event, answer, since, changes }));
            self.finish(id, change, out);
            return;
        }
        // First: what the answer brings about is told after it.
        self.record(event, Some(answer), out);
        self.carry_out(id, effect, refusal, now, out);
        self.next_turn(id, now, out);
    }

    /// Does what was decided.
    pub(super) fn carry_out(
        &mut self,
        id: LifeId,
        effect: Effect,
        refusal: Option<Refusal>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        match (effect, refusal) {
            (Effect::None, _) => {}
            (Effect::PreCreate, None) => {
                if self.lives.get(&id).is_some_and(|life| life.creator_works()) {
                    self.finish(id, None, out);
                }
            }
            (Effect::PreCreate, Some(refusal)) => {
                if let Some(hold) = self.lives.get_mut(&id).and_then(|life| life.creator_hold.take()) {
                    self.answer(hold, Some(refusal), out);
                    self.refuse_creation(id, now, out);
                }
            }
            (Effect::Gate | Effect::Opened, None) => self.settle_gate(id, Gate::Open, now, out),
            (Effect::Gate | Effect::Opened, Some(refusal)) => {
                if let Some(life) = self.lives.get_mut(&id) {
                    life.refused = refusal;
                }
                self.settle_gate(id, Gate::Refused, now, out);
            }
            (Effect::EntryCreated { hold, at, time, executable }, None) => {
                self.settle_gate(id, Gate::Open, now, out);
                self.entered(id, hold, at, time, executable, now, out);
            }
            (Effect::EntryCreated { hold, .. }, refusal) => {
                if let Some(life) = self.lives.get_mut(&id) {
                    life.gate = Gate::Refused;
                }
                self.answer(hold, refusal, out);
            }
            (Effect::Entered(hold), refusal) => self.answer(hold, refusal, out),
            (Effect::Exec { hold, process }, refusal) => {
                if refusal.is_some() {
                    // The process lives on as whatever it was before the exec that failed.
                    self.drop_role(process, id, Role::Exec { detach: false }, out);
                    self.drop_role(process, id, Role::Exec { detach: true }, out);
                }
                self.answer(hold, refusal, out);
            }
        }
    }
}
