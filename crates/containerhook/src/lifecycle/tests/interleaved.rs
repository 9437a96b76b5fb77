//! Several containers at once, in any order of what can happen: a small world in which runtimes do as runtimes do, and a
//! handler does as it likes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::*;
use super::rig::*;

/// How far a runtime's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Not executed yet.
    No,
    /// Its exec is held, as far as it knows.
    Held(HoldId),
    /// It works.
    Works,
    Ended,
}

/// One container of the world: a creator, an init, a starter, an exec and a deleter, each a process.
struct Case {
    id: String,
    base: i32,
    verb: Verb,
    creator: Step,
    /// The init exists: its creator has come so far.
    init: Step,
    entered: bool,
    starter: Step,
    execer: Step,
    /// The process that a detached exec left behind.
    executed: Step,
    deleter: Step,
    /// The life that its creation began.
    life: LifeId,
    found: bool,
}

impl Case {
    fn pid(&self, n: i32) -> i32 {
        self.base + n
    }

    fn over(&self) -> bool {
        self.creator == Step::Ended && matches!(self.init, Step::No | Step::Ended)
    }
}

struct World {
    rig: Rig,
    cases: Vec<Case>,
    /// Holds, with the longest time each may last.
    bounds: BTreeMap<HoldId, Duration>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Move {
    Create(usize),
    CreatorMakesInit(usize),
    CreatorEnds(usize),
    CreatorFails(usize),
    CreatorIsKilled(usize),
    Start(usize),
    StarterEnds(usize),
    FirstProgram(usize),
    InitEnds(usize),
    Exec(usize),
    ExecEnds(usize),
    ExecutedEnds(usize),
    FindExec(usize),
    Delete(usize),
    DeleterEnds(usize),
    Finish(usize),
    Find(usize),
    Reply(usize),
    Pass,
}

impl World {
    fn new(kinds: Vec<EventKind>, on_timeout: OnTimeout, cases: &[(u8, bool)]) -> World {
        // Two may have one id, one after the other or at the same time. Among three a deletion could mean any.
        let shares = |n: usize| cases[n].1 && cases[..n].iter().filter(|(_, same)| *same).count() < 2;
        let cases = cases.iter().enumerate().map(|(n, (verb, _))| Case {
            id: if shares(n) { "same".into() } else { format!("c{n}") },
            base: 100 * (n as i32 + 1),
            verb: match verb % 4 {
                0 => Verb::Run { detach: false, keep: false },
                1 => Verb::Run { detach: true, keep: false },
                _ => Verb::Create,
            },
            creator: Step::No,
            init: Step::No,
            entered: false,
            starter: Step::No,
            execer: Step::No,
            executed: Step::No,
            deleter: Step::No,
            life: 0,
            found: false,
        });
        World { rig: Rig::with(kinds, on_timeout), cases: cases.collect(), bounds: BTreeMap::new() }
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (n, case) in self.cases.iter().enumerate() {
            // An id is free again when its container is gone: a second create of it before fails early.
            match case.creator {
                Step::No => moves.push(Move::Create(n)),
                Step::Held(_) => moves.push(Move::CreatorIsKilled(n)),
                Step::Works if case.init == Step::No => {
                    if !self.taken(n) {
                        moves.push(Move::CreatorMakesInit(n));
                    }
                    moves.extend([Move::CreatorFails(n), Move::CreatorIsKilled(n)]);
                }
                Step::Works => {
                    let in_foreground = matches!(case.verb, Verb::Run { detach: false, .. });
                    if !in_foreground || case.init == Step::Ended {
                        moves.push(Move::CreatorEnds(n));
                    }
                }
                Step::Ended => {}
            }
            let runs = matches!(case.verb, Verb::Run { .. }) || case.starter == Step::Works;
            let runs = runs || (case.starter == Step::Ended && case.verb == Verb::Create);
            if case.init == Step::Works {
                moves.push(Move::InitEnds(n));
                if case.verb == Verb::Create && case.starter == Step::No {
                    moves.push(Move::Start(n));
                }
                if runs && !case.entered {
                    moves.push(Move::FirstProgram(n));
                }
                if case.execer == Step::No {
                    moves.push(Move::Exec(n));
                }
            }
            if case.starter == Step::Works {
                moves.push(Move::StarterEnds(n));
            }
            if case.execer == Step::Works {
                moves.push(Move::ExecEnds(n));
            }
            if case.executed == Step::Works {
                moves.push(Move::ExecutedEnds(n));
            }
            let deletes = !matches!(case.verb, Verb::Run { detach: false, .. });
            if case.init == Step::Ended && case.creator == Step::Ended && case.deleter == Step::No && deletes
            {
                moves.push(Move::Delete(n));
            }
            if case.deleter == Step::Works {
                moves.push(Move::DeleterEnds(n));
            }
        }
        moves.extend((0..self.rig.finishing.len()).map(Move::Finish));
        moves.extend((0..self.rig.finding.len()).map(Move::Find));
        moves.extend((0..self.rig.execs.len()).map(Move::FindExec));
        moves.extend((0..self.rig.open.len()).map(Move::Reply));
        moves
    }

    /// Another container has this one's id.
    fn taken(&self, n: usize) -> bool {
        self.cases.iter().enumerate().any(|(other, case)| {
            let gone = case.init == Step::No
                || (case.init == Step::Ended
                    && (case.deleter == Step::Ended
                        || (case.creator == Step::Ended
                            && matches!(case.verb, Verb::Run { detach: false, .. }))));
            other != n && case.id == self.cases[n].id && !gone
        })
    }

    fn make(&mut self, next: Move, dice: u16) {
        match next {
            Move::Create(n) => {
                let hold = self.command(n, 0, self.cases[n].verb.clone());
                self.cases[n].life = hold;
                self.cases[n].creator = Step::Held(hold);
            }
            Move::CreatorMakesInit(n) => self.cases[n].init = Step::Works,
            Move::CreatorEnds(n) => self.end(n, 0, if dice % 8 == 0 { ExitStatus::UNKNOWN } else { EXITED }),
            Move::CreatorFails(n) => self.end(n, 0, FAILED),
            Move::CreatorIsKilled(n) => self.end(n, 0, KILLED),
            Move::Start(n) => {
                let hold = self.command(n, 2, Verb::Start);
                self.cases[n].starter = Step::Held(hold);
            }
            Move::StarterEnds(n) => self.cases[n].starter = Step::Ended,
            Move::FirstProgram(n) => {
                self.cases[n].entered = true;
                let parent = if self.cases[n].creator == Step::Works { self.cases[n].pid(0) } else { 1 };
                let marked = !self.rig.marks.is_empty();
                if marked {
                    let hold = self.rig.entry(self.cases[n].pid(1), &[parent, 1]);
                    self.bounds.insert(hold, DEADLINE + GRACE);
                }
            }
            Move::InitEnds(n) => {
                self.cases[n].init = Step::Ended;
                let pid = self.cases[n].pid(1);
                self.rig.end(pid, if dice % 2 == 0 { EXITED } else { KILLED });
            }
            Move::Exec(n) => {
                let verb = Verb::Exec { process: Arc::default(), detach: dice % 2 == 0 };
                let hold = self.command(n, 3, verb);
                self.cases[n].execer = Step::Held(hold);
            }
            Move::ExecEnds(n) => {
                self.cases[n].execer = Step::Ended;
                let pid = self.cases[n].pid(3);
                self.rig.end(pid, EXITED);
            }
            Move::FindExec(at) => {
                let runtime = self.rig.execs[at];
                let case = self.cases.iter_mut().find(|case| case.base + 3 == runtime.pid).unwrap();
                let executed = process(case.base + 5);
                let found = match dice % 3 {
                    0 => Init::Unknown("it is gone".into()),
                    1 => Init::Ended(executed, EXITED),
                    _ => {
                        case.executed = Step::Works;
                        Init::Watched(executed)
                    }
                };
                let life = case.life;
                self.rig.exec_found(life, runtime, found);
            }
            Move::ExecutedEnds(n) => {
                self.cases[n].executed = Step::Ended;
                let pid = self.cases[n].pid(5);
                self.rig.end(pid, EXITED);
            }
            Move::Delete(n) => {
                self.command(n, 4, Verb::After(EventKind::Deleted));
                self.cases[n].deleter = Step::Works;
            }
            Move::DeleterEnds(n) => {
                self.cases[n].deleter = Step::Ended;
                let pid = self.cases[n].pid(4);
                self.rig.end(pid, EXITED);
            }
            Move::Finish(at) => {
                let (life, _, mark) = self.rig.finishing[at].clone();
                let marked = mark && dice % 3 != 0;
                self.rig.finish(life, Finished { marked, ..Finished::default() });
            }
            Move::Find(at) => {
                let life = self.rig.finding[at];
                let case = self.cases.iter_mut().find(|case| case.life == life).unwrap();
                case.found = true;
                let init = process(case.base + 1);
                let init = match case.init {
                    Step::Works => Init::Watched(init),
                    Step::Ended if dice % 2 == 0 => Init::Ended(init, EXITED),
                    _ => Init::Unknown("it is gone".into()),
                };
                self.rig.init_found(life, init);
            }
            Move::Reply(at) => {
                let token = self.rig.open[at].1;
                let decision = match dice % 8 {
                    0 => Ok(Decision::deny("no")),
                    1 => Err("oh".into()),
                    _ => Ok(Decision::allow()),
                };
                self.rig.reply_to(token, decision);
            }
            Move::Pass => self.rig.pass(Duration::from_millis(u64::from(dice % 4096) * 4)),
        }
        self.kernel();
    }

    fn command(&mut self, n: usize, pid: i32, verb: Verb) -> HoldId {
        let (id, pid) = (self.cases[n].id.clone(), self.cases[n].pid(pid));
        let hold = self.rig.command(&id, pid, verb);
        self.bounds.insert(hold, DEADLINE + GRACE);
        hold
    }

    fn end(&mut self, n: usize, pid: i32, status: ExitStatus) {
        self.cases[n].creator = Step::Ended;
        let pid = self.cases[n].pid(pid);
        self.rig.end(pid, status);
    }

    /// What answers bring about, and signals.
    fn kernel(&mut self) {
        for case in &mut self.cases {
            for (step, pid) in [(&mut case.creator, 0), (&mut case.starter, 2), (&mut case.execer, 3)] {
                if let Step::Held(hold) = *step {
                    match self.rig.allowed(hold) {
                        Some(true) => *step = Step::Works,
                        // The exec fails, and its caller ends in its own way.
                        Some(false) => {
                            *step = Step::Ended;
                            assert!(
                                pid == 2 || !self.rig.watched.contains(&process(case.base + pid)),
                                "a process that was refused is watched"
                            );
                        }
                        None => {}
                    }
                }
            }
        }
        for killed in std::mem::take(&mut self.rig.killed) {
            if let Some(case) = self.cases.iter_mut().find(|case| case.base + 1 == killed.pid)
                && case.init == Step::Works
            {
                case.init = Step::Ended;
                self.rig.end(killed.pid, KILLED);
            }
        }
    }

    /// Lets everything come to its end.
    fn drain(&mut self) {
        for round in 0..10_000 {
            let moves = self.moves();
            let next = moves.into_iter().find(|next| {
                !matches!(
                    next,
                    Move::Create(_) | Move::CreatorIsKilled(_) | Move::CreatorFails(_) | Move::Exec(_)
                ) || matches!(next, Move::CreatorFails(n) if self.taken(*n))
            });
            match next {
                Some(next) => self.make(next, 7),
                None => {
                    let Some(due) = self.rig.lifecycle.next_due() else { return };
                    let wait = due.saturating_duration_since(self.rig.now);
                    self.rig.pass(wait);
                    self.kernel();
                }
            }
            assert!(round < 9_999, "it does not come to an end");
        }
    }

    fn check_holds(&self) {
        for (hold, bound) in &self.bounds {
            assert!(self.rig.allowed(*hold).is_some(), "hold {hold} is not answered");
            let held = self.rig.held_for(*hold);
            assert!(held <= *bound, "hold {hold} lasted {held:?}");
        }
    }

    /// Each kind once in a life, in order, and none that cannot be.
    fn check_lives(&self, kinds: &[EventKind]) {
        const ORDER: [EventKind; 5] = [
            EventKind::PreCreate,
            EventKind::Created,
            EventKind::Started,
            EventKind::Stopped,
            EventKind::Deleted,
        ];
        for case in self.cases.iter().filter(|case| case.life != 0) {
            let told: Vec<&Record> = self.records_of(case).collect();
            let places: Vec<usize> = told
                .iter()
                .filter_map(|record| ORDER.iter().position(|kind| *kind == record.event.kind))
                .collect();
            assert!(places.is_sorted_by(|a, b| a < b), "{}: {:?}", case.id, self.rig.told_of(&case.id));
            let count = |kind| told.iter().filter(|record| record.event.kind == kind).count();
            let tells = |kind| usize::from(kinds.contains(&kind));
            assert_eq!(count(EventKind::PreCreate), tells(EventKind::PreCreate));
            if case.found && case.init == Step::Ended && count(EventKind::Created) == 1 {
                assert_eq!(
                    count(EventKind::Stopped),
                    tells(EventKind::Stopped),
                    "{:?}",
                    self.rig.told_of(&case.id)
                );
            }
            for record in told {
                let Some(answer) = &record.answer else { continue };
                if record.event.kind == EventKind::PreCreate && self.rig.allowed(case.life) == Some(false) {
                    assert_eq!(answer.decision, Verdict::Deny);
                }
                if answer.timed_out {
                    assert!(answer.held_for <= DEADLINE + GRACE, "{record:?}");
                }
            }
        }
    }

    fn records_of(&self, case: &Case) -> impl Iterator<Item = &Record> {
        let lives: Vec<Arc<ContainerEvent>> = self
            .rig
            .told
            .iter()
            .filter(|(life, _)| *life == case.life)
            .map(|(_, event)| Arc::clone(event))
            .collect();
        self.rig.records.iter().filter(move |record| {
            lives.iter().any(|event| {
                event.kind == record.event.kind
                    && event.time == record.event.time
                    && event.id == record.event.id
            })
        })
    }
}

fn kinds() -> impl Strategy<Value = Vec<EventKind>> {
    prop_oneof![
        3 => Just(EventKind::ALL.to_vec()),
        1 => proptest::sample::subsequence(EventKind::ALL.to_vec(), 0..=EventKind::ALL.len()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_in_whatever_order(
        kinds in kinds(),
        deny in any::<bool>(),
        cases in proptest::collection::vec((any::<u8>(), proptest::bool::weighted(0.3)), 1..5),
        dice in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..200),
    ) {
        let on_timeout = if deny { OnTimeout::Deny } else { OnTimeout::Allow };
        let mut world = World::new(kinds.clone(), on_timeout, &cases);
        for (which, dice) in dice {
            let mut moves = world.moves();
            moves.push(Move::Pass);
            let next = moves[usize::from(which) % moves.len()];
            world.make(next, dice);
        }
        world.drain();
        world.check_holds();
        let begun = |case: &&Case| case.creator != Step::No;
        prop_assert!(world.cases.iter().filter(begun).all(Case::over), "something never ended");
        // What nobody deletes is remembered: it is deleted now.
        for n in 0..world.cases.len() {
            let (id, base) = (world.cases[n].id.clone(), world.cases[n].base);
            for pid in 50..54 {
                world.rig.delete(&id, base + pid);
            }
        }
        world.drain();
        world.check_holds();
        let same = cases.iter().filter(|(_, same)| *same).count();
        if same <= 1 {
            world.check_lives(&kinds);
        }
        world.rig.assert_quiet();
    }
}
