//! What plays the engine. It carries out actions as the engine would, and fails where one makes no sense.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::*;

pub(super) const DEADLINE: Duration = Duration::from_secs(10);
pub(super) const EXITED: ExitStatus = ExitStatus { code: Some(0), ..ExitStatus::UNKNOWN };
pub(super) const FAILED: ExitStatus = ExitStatus { code: Some(1), ..ExitStatus::UNKNOWN };
pub(super) const KILLED: ExitStatus = ExitStatus { signal: Some(9), ..ExitStatus::UNKNOWN };

/// When, and by which denial.
type Answered = (Instant, Option<Refusal>);

pub(super) struct Rig {
    pub(super) lifecycle: Lifecycle,
    pub(super) now: Instant,
    begun: Instant,
    /// Holds, with when they began and how they were answered.
    holds: HashMap<HoldId, (Instant, Option<Answered>)>,
    /// What handlers have been given and has not been settled.
    pub(super) open: Vec<(LifeId, Token, Arc<ContainerEvent>)>,
    /// All that handlers have been given.
    pub(super) told: Vec<(LifeId, Arc<ContainerEvent>)>,
    pub(super) records: Vec<Record>,
    pub(super) watched: BTreeSet<Process>,
    pub(super) killed: Vec<Process>,
    pub(super) finishing: Vec<(LifeId, Option<Config>, bool)>,
    pub(super) finding: Vec<LifeId>,
    /// Runtimes whose detached processes are looked for.
    pub(super) execs: Vec<Process>,
    pub(super) marks: HashSet<LifeId>,
    pub(super) creations: HashSet<LifeId>,
    pub(super) logs: Vec<String>,
    /// The pid of what executes entrypoints, in its own namespace.
    pub(super) own_pid: i32,
}

pub(super) fn process(pid: i32) -> Process {
    Process { pid, start_time: 1000 }
}

pub(super) fn key(id: &str) -> Key {
    Key::new("/run/runc".into(), id.into(), 0)
}

pub(super) fn config(json: &[u8]) -> Config {
    Config::from_bytes(json).expect("JSON")
}

pub(super) fn change(json: &[u8]) -> Decision {
    Decision(Choice::Change(config(json)))
}

pub(super) fn create() -> Verb {
    Verb::Create
}

pub(super) fn run() -> Verb {
    Verb::Run { detach: false, keep: false }
}

pub(super) fn exec() -> Verb {
    Verb::Exec { process: Arc::default(), detach: false }
}

impl Rig {
    pub(super) fn new() -> Rig {
        Rig::with(EventKind::by_default().collect(), OnTimeout::Allow)
    }

    pub(super) fn denying() -> Rig {
        Rig::with(EventKind::by_default().collect(), OnTimeout::Deny)
    }

    pub(super) fn with(told: Vec<EventKind>, on_timeout: OnTimeout) -> Rig {
        let now = Instant::now();
        let rules = Rules {
            told,
            deadlines: HashMap::new(),
            deadline: DEADLINE,
            on_timeout,
            proc: HostProc::default(),
        };
        Rig {
            lifecycle: Lifecycle::new(rules),
            now,
            begun: now,
            holds: HashMap::new(),
            open: Vec::new(),
            told: Vec::new(),
            records: Vec::new(),
            watched: BTreeSet::new(),
            killed: Vec::new(),
            finishing: Vec::new(),
            finding: Vec::new(),
            execs: Vec::new(),
            marks: HashSet::new(),
            creations: HashSet::new(),
            logs: Vec::new(),
            own_pid: 1,
        }
    }

    pub(super) fn deadline_for(mut self, kind: EventKind, deadline: Duration) -> Rig {
        self.lifecycle.rules.deadlines.insert(kind, deadline);
        self
    }

    /// The wall clock, which runs with the other.
    pub(super) fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + (self.now - self.begun)
    }

    pub(super) fn apply(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.lifecycle.apply(input, self.now, &mut actions);
        self.carry_out(actions);
        self.tick();
    }

    fn tick(&mut self) {
        let mut actions = Vec::new();
        self.lifecycle.tick(self.now, &mut actions);
        self.carry_out(actions);
    }

    /// Time passes; what is due on the way is settled when it is due.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.lifecycle.next_due().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.tick();
        }
        self.now = until;
        self.tick();
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Answer { hold, refusal } => {
                    let (_, answer) = self.holds.get_mut(&hold).expect("an answer to nothing");
                    assert!(answer.is_none(), "hold {hold} is answered twice");
                    *answer = Some((self.now, refusal));
                }
                Action::Tell { life, token, event } => {
                    let other = self.open.iter().any(|(other, ..)| *other == life && life != NO_LIFE);
                    assert!(!other, "two events of one life at a time");
                    self.told.push((life, Arc::clone(&event)));
                    self.open.push((life, token, event));
                }
                Action::Overdue { token } => self.settled(token),
                Action::Finish { life, change, mark } => self.finishing.push((life, change, mark)),
                Action::FindInit { life } => {
                    assert!(self.creations.contains(&life), "what is needed to find the init was released");
                    self.finding.push(life);
                }
                Action::Watch(process) => {
                    self.watched.insert(process);
                }
                Action::Unwatch(process) => {
                    assert!(self.watched.remove(&process), "{process:?} was not watched");
                }
                Action::Learn(_) => {}
                Action::FindExec { runtime, .. } => self.execs.push(runtime),
                Action::Kill(process) => self.killed.push(process),
                Action::Unmark { life, .. } => {
                    self.marks.remove(&life);
                }
                Action::Release { life } => {
                    self.creations.remove(&life);
                }
                Action::Record(record) => {
                    assert_eq!(record.seq, self.records.len() as u64 + 1, "a gap in the records");
                    assert_eq!(record.event.held, record.answer.is_some(), "{record:?}");
                    self.records.push(*record);
                }
                Action::Log(_, line) => self.logs.push(line),
            }
        }
    }

    fn settled(&mut self, token: Token) {
        let at = self.open.iter().position(|(_, open, _)| *open == token).expect("a token that is open");
        self.open.remove(at);
    }

    /// A runtime is executed; the number of its hold, which is also its life's, where it creates one.
    pub(super) fn command(&mut self, id: &str, pid: i32, verb: Verb) -> HoldId {
        self.command_by(id, pid, 1, verb, true)
    }

    pub(super) fn command_by(&mut self, id: &str, pid: i32, parent: i32, verb: Verb, held: bool) -> HoldId {
        let hold = self.lifecycle.new_id();
        self.holds.insert(hold, (self.now, None));
        let creates = matches!(verb, Verb::Create | Verb::Run { .. } | Verb::Restore);
        if creates {
            self.creations.insert(hold);
        }
        let command = Command {
            hold,
            at: self.now,
            time: self.time(),
            process: process(pid),
            parent,
            verb,
            key: key(id),
            container: Container { id: id.into(), ..Container::default() },
            asked: None,
            detail: None,
            held,
        };
        self.apply(Input::Command(Box::new(command)));
        if !self.lifecycle.is_life(hold) {
            self.creations.remove(&hold);
        }
        if !held {
            self.holds.remove(&hold);
        }
        hold
    }

    /// The last work between decision and answer is done.
    pub(super) fn finish(&mut self, life: LifeId, outcome: Finished) {
        let at =
            self.finishing.iter().position(|(finishing, ..)| *finishing == life).expect("to be finished");
        let (_, _, mark) = self.finishing.remove(at);
        assert!(!outcome.marked || mark, "no mark was wanted");
        if outcome.marked {
            self.marks.insert(life);
        }
        self.apply(Input::Finished { life, outcome });
    }

    pub(super) fn finish_marked(&mut self, life: LifeId) {
        self.finish(life, Finished { marked: true, ..Finished::default() });
    }

    pub(super) fn finish_unmarked(&mut self, life: LifeId) {
        self.finish(life, Finished { unmarked: Some("/bin is a tmpfs".into()), ..Finished::default() });
    }

    pub(super) fn entry(&mut self, pid: i32, ancestors: &[i32]) -> HoldId {
        self.entry_of(pid, ancestors, &[])
    }

    /// By a process that was executed with these words `before`.
    pub(super) fn entry_of(&mut self, pid: i32, ancestors: &[i32], before: &[&str]) -> HoldId {
        let hold = self.lifecycle.new_id();
        self.holds.insert(hold, (self.now, None));
        let mut candidates: Vec<LifeId> = self.marks.iter().copied().collect();
        candidates.sort_unstable();
        self.apply(Input::Entry(Box::new(Entry {
            hold,
            at: self.now,
            time: self.time(),
            process: process(pid),
            own_pid: self.own_pid,
            before: before.iter().map(|word| (*word).into()).collect(),
            ancestors: ancestors.to_vec(),
            candidates,
            args: vec!["sh".into()],
            executable: Some("/bin/sh".into()),
        })));
        hold
    }

    /// A process ends; where it is watched, that is reported.
    pub(super) fn end(&mut self, pid: i32, status: ExitStatus) {
        if self.watched.remove(&process(pid)) {
            let time = self.time();
            self.apply(Input::Ended { process: process(pid), status, time });
        }
    }

    pub(super) fn init_found(&mut self, life: LifeId, init: Init) {
        let at = self.finding.iter().position(|finding| *finding == life).expect("it is looked for");
        self.finding.remove(at);
        if let Init::Watched(process) = init {
            self.watched.insert(process);
        }
        let time = self.time();
        self.apply(Input::InitFound { life, init, marked: false, time });
    }

    /// The pid file of a detached exec is read.
    pub(super) fn exec_found(&mut self, life: LifeId, runtime: Process, found: Init) {
        self.execs.retain(|other| *other != runtime);
        if let Init::Watched(process) = found {
            self.watched.insert(process);
        }
        let time = self.time();
        self.apply(Input::ExecFound { life, runtime, found, time });
    }

    pub(super) fn reply_to(&mut self, token: Token, decision: Result<Decision, String>) {
        self.settled(token);
        self.apply(Input::Replied { token, decision });
    }

    /// The handler that has this life's event answers.
    pub(super) fn reply(&mut self, life: LifeId, decision: Decision) {
        let token = self.token(life);
        self.reply_to(token, Ok(decision));
    }

    pub(super) fn token(&self, life: LifeId) -> Token {
        let found = self.open.iter().find(|(open, ..)| *open == life);
        found.map(|(_, token, _)| *token).unwrap_or_else(|| panic!("life {life} has told nothing"))
    }

    pub(super) fn allow(&mut self, life: LifeId) {
        self.reply(life, Decision::allow());
    }

    /// Everything that has been told, and will be, is allowed.
    pub(super) fn allow_all(&mut self) {
        while let Some((_, token, _)) = self.open.first() {
            let token = *token;
            self.reply_to(token, Ok(Decision::allow()));
        }
    }

    /// `None`: it is held still; else whether it was allowed.
    pub(super) fn allowed(&self, hold: HoldId) -> Option<bool> {
        self.holds[&hold].1.map(|(_, refusal)| refusal.is_none())
    }

    pub(super) fn error(&self, hold: HoldId) -> Option<DenyError> {
        self.holds[&hold].1.and_then(|(_, refusal)| refusal).map(|refusal| refusal.error)
    }

    /// How long it was held.
    pub(super) fn held_for(&self, hold: HoldId) -> Duration {
        let (since, answer) = self.holds[&hold];
        answer.map_or(self.now, |(at, _)| at) - since
    }

    /// The records of an id, in a few words each.
    pub(super) fn told_of(&self, id: &str) -> Vec<String> {
        self.records.iter().filter(|record| record.event.id == id).map(words).collect()
    }

    /// What the handler was given of a life: `!` where it was held.
    pub(super) fn given(&self, life: LifeId) -> Vec<String> {
        let of_life = self.told.iter().filter(|(of, _)| *of == life);
        of_life.map(|(_, e)| format!("{}{}", e.kind, if e.held { "!" } else { "" })).collect()
    }

    /// A container that has been created, as far as its `Created` being told: its creator has `pid`, its init `pid + 1`.
    pub(super) fn created(&mut self, id: &str, pid: i32, marked: bool) -> LifeId {
        let life = self.command(id, pid, create());
        self.allow_all();
        if marked {
            self.finish_marked(life);
        } else {
            self.finish_unmarked(life);
        }
        self.end(pid, EXITED);
        self.init_found(life, Init::Watched(process(pid + 1)));
        life
    }

    /// One that runs; the handler has nothing.
    pub(super) fn running(&mut self, id: &str, pid: i32) -> LifeId {
        let life = self.created(id, pid, false);
        self.allow_all();
        self.command(id, pid + 2, Verb::Start);
        self.allow_all();
        life
    }

    /// Its init ends, and it is deleted by process `pid`.
    pub(super) fn delete(&mut self, id: &str, pid: i32) {
        self.command(id, pid, Verb::After(EventKind::Deleted));
        self.end(pid, EXITED);
        self.allow_all();
    }

    /// Nothing is kept of anything, by the lifecycle or for it by the engine.
    pub(super) fn assert_quiet(&self) {
        let of = &self.lifecycle;
        assert!(of.lives.is_empty(), "lives are left: {:?}", of.lives.keys());
        assert!(of.keys.is_empty(), "keys are left: {:?}", of.keys);
        assert!(of.processes.is_empty() && self.watched.is_empty(), "watched still: {:?}", self.watched);
        assert!(of.errands.is_empty() && self.execs.is_empty(), "errands are left: {:?}", of.errands);
        assert!(of.told.is_empty() && of.holds.is_empty() && of.due.is_empty() && of.ended.is_empty());
        assert!(self.open.is_empty() && self.finding.is_empty() && self.finishing.is_empty());
        assert!(self.marks.is_empty() && self.creations.is_empty(), "{:?} {:?}", self.marks, self.creations);
        let held: Vec<_> = self.holds.iter().filter(|(_, (_, answer))| answer.is_none()).collect();
        assert!(held.is_empty(), "held still: {held:?}");
    }
}

/// `created allow`, `stopped 0`, `exec deny late`.
fn words(record: &Record) -> String {
    let mut words = record.event.kind.to_string();
    if let Some(answer) = &record.answer {
        words += &format!(" {}", answer.decision);
        if answer.timed_out {
            words += " late";
        }
    }
    match record.event.exit {
        Some(ExitStatus { code: Some(code), .. }) => words += &format!(" {code}"),
        Some(ExitStatus { signal: Some(signal), .. }) => words += &format!(" signal {signal}"),
        Some(_) => words += " ?",
        None => {}
    }
    if record.event.existing {
        words += " existing";
    }
    words
}
