//! A life's lane: its events one after the other, each with its turn at the handler, and what an answer brings about.

use super::*;

/// What happens when an event is settled.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    /// The create's exec is answered, after the entrypoint was marked.
    PreCreate,
    /// A `start` may go, or the init is killed.
    Gate,
    /// `Created` was not held: a `start` may go.
    Opened,
    /// `Created` of a `run`, whose init is held at its entrypoint: `Started` comes next.
    EntryCreated {
        hold: HoldId,
        at: Instant,
        executable: Option<String>,
    },
    /// This execution goes on, or is denied.
    Hold(HoldId),
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
    pub(super) effect: Effect,
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
            effect,
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
    pub(super) fn push(&mut self, id: LifeId, turn: Turn, now: Instant, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.lane.push_back(turn);
        self.next_turn(id, now, out);
    }

    fn next_turn(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
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
                self.settle(id, turn.effect, turn.time, now, out);
                continue;
            }
            let container = Arc::clone(&life.container);
            let event = ContainerEvent {
                existing: turn.existing,
                exit: turn.exit,
                exec: turn.exec,
                detail: turn.detail,
                ..self.event(turn.kind, turn.time, container, turn.held, turn.caller)
            };
            let (since, due) = turn.held.unwrap_or_else(|| (now, now + self.rules.deadline(turn.kind)));
            self.last_token += 1;
            let token = self.last_token;
            if turn.held.is_none() {
                // Nobody waits for the answer: the record is complete.
                self.record(event.clone(), None, out);
            }
            let event = Arc::new(event);
            out.push(Action::Tell { token, event: Arc::clone(&event) });
            self.told.insert(token, Telling { life: id, event, since, effect: turn.effect, due });
            self.due.insert((due, Due::Told(token)));
            if let Some(life) = self.lives.get_mut(&id) {
                life.telling = Some(token);
            }
            return;
        }
    }

    pub(super) fn turn_over(&mut self, id: LifeId, now: Instant, out: &mut Vec<Action>) {
        self.next_turn(id, now, out);
    }

    /// The effect of an event that no handler has a say in.
    fn settle(&mut self, id: LifeId, effect: Effect, time: SystemTime, now: Instant, out: &mut Vec<Action>) {
        match effect {
            Effect::None => {}
            Effect::PreCreate => self.finish(id, None, out),
            Effect::Gate | Effect::Opened => self.settle_gate(id, Gate::Open, now, out),
            Effect::EntryCreated { hold, at, executable } => {
                self.settle_gate(id, Gate::Open, now, out);
                self.entered(id, hold, at, time, executable, now, out);
            }
            Effect::Hold(hold) => self.answer(hold, true, out),
        }
    }

    pub(super) fn replied(
        &mut self,
        token: Token,
        decision: Result<Decision, String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(telling) = self.told.remove(&token) else { return };
        self.due.remove(&(telling.due, Due::Told(token)));
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

    pub(super) fn overdue(&mut self, token: Token, now: Instant, out: &mut Vec<Action>) {
        let Some(telling) = self.told.remove(&token) else { return };
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

    fn by_default(&self, reason: &str) -> Choice {
        match self.rules.on_timeout {
            OnTimeout::Allow => Choice::Allow,
            OnTimeout::Deny => Choice::Deny(reason.to_owned()),
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
        let timed_out = unanswered.is_some();
        let mut reason = unanswered;
        let mut verdict = match &choice {
            Choice::Allow => Verdict::Allow,
            Choice::Deny(why) => {
                reason = Some(why.clone());
                Verdict::Deny
            }
            Choice::Change(_) => Verdict::Change,
        };
        if verdict == Verdict::Change && event.kind != EventKind::PreCreate {
            verdict = Verdict::Allow;
            reason = Some("a configuration can be changed at pre-create only".into());
        }
        let mut held = event.held;
        let time = event.time;
        if verdict == Verdict::Deny && held {
            let why = reason.as_deref().unwrap_or_default();
            out.push(Action::Log(
                Level::Info,
                format!("{} of container {:?} is denied: {why}", event.kind, event.id),
            ));
        }
        if let Some(life) = self.lives.get_mut(&id) {
            life.telling = None;
        }
        let allow = verdict != Verdict::Deny || !held;
        let held_for = now.saturating_duration_since(since);
        let answer = Answer { decision: verdict, reason, timed_out, held_for };
        match effect {
            Effect::None => {}
            Effect::PreCreate if allow => {
                // The answer waits until the entrypoint is marked, and so does the record.
                let alive = self.lives.get_mut(&id).filter(|life| life.creator_ended.is_none());
                if let Some(life) = alive {
                    life.finishing = Some(Box::new(((*event).clone(), answer, since)));
                    let change = if let Choice::Change(config) = choice { Some(config) } else { None };
                    self.finish(id, change, out);
                    return;
                }
            }
            Effect::PreCreate => {
                if let Some(hold) = self.lives.get_mut(&id).and_then(|life| life.creator_hold.take()) {
                    self.answer(hold, false, out);
                }
                self.refuse_creation(id, out);
            }
            Effect::Gate | Effect::Opened => {
                self.settle_gate(id, if allow { Gate::Open } else { Gate::Refused }, now, out);
            }
            Effect::EntryCreated { hold, at, executable } => {
                let gate = if allow { Gate::Open } else { Gate::Refused };
                if let Some(life) = self.lives.get_mut(&id) {
                    life.gate = gate;
                }
                if allow {
                    if held {
                        self.record((*event).clone(), Some(answer), out);
                        held = false;
                    }
                    self.entered(id, hold, at, time, executable, now, out);
                    self.turn_over(id, now, out);
                    return;
                }
                self.answer(hold, false, out);
            }
            Effect::Hold(hold) => self.answer(hold, allow, out),
        }
        if held {
            self.record((*event).clone(), Some(answer), out);
        }
        self.turn_over(id, now, out);
    }
}
