//! Handlers: the user's code, on threads of its own. The events of one life are given to it one after the other.
//!
//! An event that nobody waits for any more is *late*. One that a handler is at makes way: the life's next event is told
//! beside it, or a handler that never returns would silence its container. One that no thread had taken yet keeps its
//! place, and is told as not held.
//!
//! Anybody may execute a runtime and so make an event. Those of rootless containers, *guests*, are given no more than
//! three quarters of the threads: nobody but root can keep root's containers waiting.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::error::Error;
use crate::event::ContainerEvent;
use crate::handler::{Decision, Handler};
use crate::lifecycle::{LifeId, Token};
use crate::linger::Linger;
use crate::pool::{Fate, JobNo, Pool};

/// Late events of one life that wait; of more the oldest is dropped.
const MOST_LATE: usize = 64;

struct Job {
    life: LifeId,
    token: Token,
    event: Arc<ContainerEvent>,
    late: bool,
}

/// Guests that wait for a thread to be free; events that come late to one beyond these are dropped.
const MOST_GUESTS: usize = 4096;

/// What is told of one life.
#[derive(Default)]
struct Lane {
    /// What the pool has.
    busy: Option<(JobNo, Token)>,
    /// What comes after it.
    queue: VecDeque<Job>,
    guest: bool,
    /// It is among the guests that wait.
    waits: bool,
}

#[derive(Default)]
struct Lanes {
    of: HashMap<LifeId, Lane>,
    /// How many guests' events the pool has.
    guests: usize,
    /// The guests whose turn is to come.
    waiting: VecDeque<LifeId>,
    /// The pool was given something and has not been woken for it.
    put: bool,
}

struct Shared {
    pool: OnceLock<Pool<Job>>,
    most_guests: usize,
    lanes: Mutex<Lanes>,
}

/// Gives events to the handler. Made and dropped on the user's side; the engine has a share of it.
pub(crate) struct Dispatch {
    shared: Arc<Shared>,
    /// Which lives the events belong to that are waited for.
    told: Mutex<HashMap<Token, LifeId>>,
}

impl Dispatch {
    /// At most `most` handlers run at once, not counting those that take longer than `patience`. `reply` is called on
    /// the handler's thread with what it decided, or with the words of its panic.
    pub(crate) fn new(
        handler: Box<dyn Handler>,
        most: usize,
        patience: Duration,
        linger: Linger,
        reply: impl Fn(Token, Result<Decision, String>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let most_guests = (most - most / 4).min(most.saturating_sub(1)).max(1);
        let shared = Arc::new(Shared { pool: OnceLock::new(), most_guests, lanes: Mutex::default() });
        // The pool is the dispatcher's: what its threads hold of it must not keep it.
        let (done, stuck): (Weak<Shared>, _) = (Arc::downgrade(&shared), Arc::downgrade(&shared));
        let run = move |no, job: Job| {
            let Job { life, token, mut event, late } = job;
            if late {
                let event = Arc::make_mut(&mut event);
                event.held = false;
                event.deadline = None;
            }
            let decision = catch_unwind(AssertUnwindSafe(|| handler.on_event(&event)));
            if let Some(shared) = done.upgrade() {
                shared.free(life, no);
            }
            reply(token, decision.map_err(panic_words));
        };
        let stuck = move |no| {
            if let Some(shared) = stuck.upgrade() {
                shared.stuck(no);
            }
        };
        let pool = Pool::new("ch-handler", most, patience, linger, run, stuck)
            .map_err(|e| Error::os("cannot start a thread for handlers", e))?;
        let _ = shared.pool.set(pool);
        Ok(Dispatch { shared, told: Mutex::default() })
    }

    /// Gives the event to the handler, after those of the same life that were told before.
    pub(crate) fn tell(&self, life: LifeId, token: Token, event: Arc<ContainerEvent>) {
        lock(&self.told).insert(token, life);
        let mut lanes = lock(&self.shared.lanes);
        let guest = event.rootless;
        let lane = lanes.of.entry(life).or_insert_with(|| Lane { guest, ..Lane::default() });
        lane.queue.push_back(Job { life, token, event, late: false });
        self.shared.next(&mut lanes, life);
        self.shared.unlock(lanes);
    }

    /// The handler has answered.
    pub(crate) fn replied(&self, token: Token) {
        lock(&self.told).remove(&token);
    }

    /// Nobody waits for this answer any more. False where the handler will not be told of the event at all, because too
    /// many are late.
    pub(crate) fn overdue(&self, token: Token) -> bool {
        let Some(life) = lock(&self.told).remove(&token) else { return true };
        let mut lanes = lock(&self.shared.lanes);
        let many = lanes.waiting.len() > MOST_GUESTS;
        let Some(lane) = lanes.of.get_mut(&life) else { return true };
        if let Some((no, _)) = lane.busy.filter(|(_, busy)| *busy == token) {
            let fate =
                self.shared.pool.get().map_or(Fate::Gone, |pool| pool.give_up(no, |job| job.late = true));
            if matches!(fate, Fate::Stuck | Fate::Dropped) {
                self.shared.vacate(&mut lanes, life);
            }
            self.shared.unlock(lanes);
            return fate != Fate::Dropped;
        }
        if let Some(job) = lane.queue.iter_mut().find(|job| job.token == token) {
            job.late = true;
        }
        let most = if many && lane.waits { 0 } else { MOST_LATE };
        if lane.queue.iter().filter(|job| job.late).count() > most
            && let Some(oldest) = lane.queue.iter().position(|job| job.late)
        {
            let dropped = lane.queue.remove(oldest);
            if lane.queue.is_empty() && lane.waits {
                lanes.of.remove(&life);
                lanes.waiting.retain(|waiting| *waiting != life);
            }
            drop(lanes);
            drop(dropped);
            return false;
        }
        true
    }

    #[cfg(test)]
    fn is_quiet(&self) -> bool {
        let lanes = lock(&self.shared.lanes);
        lock(&self.told).is_empty() && lanes.of.is_empty() && lanes.waiting.is_empty() && lanes.guests == 0
    }
}

impl Shared {
    /// Gives the lane's next event to the pool, if it may go.
    fn next(&self, lanes: &mut Lanes, life: LifeId) {
        let Some(lane) = lanes.of.get_mut(&life) else { return };
        if lane.busy.is_some() || lane.waits {
            return;
        }
        if lane.guest && lanes.guests >= self.most_guests && !lane.queue.is_empty() {
            lane.waits = true;
            lanes.waiting.push_back(life);
            return;
        }
        match (lane.queue.pop_front(), self.pool.get()) {
            (Some(job), Some(pool)) => {
                let token = job.token;
                lanes.guests += usize::from(lane.guest);
                lane.busy = Some((pool.put(job), token));
                lanes.put = true;
            }
            _ => {
                lanes.of.remove(&life);
            }
        }
    }

    /// The pool has nothing of this lane any more: its next event may go, after the guests that wait.
    fn vacate(&self, lanes: &mut Lanes, life: LifeId) {
        let Some(lane) = lanes.of.get_mut(&life) else { return };
        lane.busy = None;
        if lane.guest {
            lanes.guests -= 1;
            if let Some(first) = lanes.waiting.pop_front() {
                if let Some(lane) = lanes.of.get_mut(&first) {
                    lane.waits = false;
                }
                self.next(lanes, first);
            }
        }
        self.next(lanes, life);
    }

    /// The job has ended, or is stuck: the lane goes on, if it still waits for it.
    fn free(&self, life: LifeId, no: JobNo) {
        let mut lanes = lock(&self.lanes);
        if lanes.of.get(&life).is_some_and(|lane| lane.busy.is_some_and(|(busy, _)| busy == no)) {
            self.vacate(&mut lanes, life);
        }
        self.unlock(lanes);
    }

    /// Wakes the pool only when the lock is free that a handler's end takes: one that returns at once would wait for it.
    fn unlock(&self, mut lanes: MutexGuard<'_, Lanes>) {
        let put = std::mem::take(&mut lanes.put);
        drop(lanes);
        if let Some(pool) = self.pool.get().filter(|_| put) {
            pool.wake();
        }
    }

    fn stuck(&self, no: JobNo) {
        let found = |(_, lane): &(&LifeId, &Lane)| lane.busy.is_some_and(|(busy, _)| busy == no);
        let life = lock(&self.lanes).of.iter().find(found).map(|(life, _)| *life);
        if let Some(life) = life {
            self.free(life, no);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No user's code runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_words(panic: Box<dyn std::any::Any + Send>) -> String {
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
    let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
    // What was thrown is the user's, and may panic once more when it is dropped.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
    // A record carries it.
    words.map_or_else(|| "no message".to_owned(), |words| words.chars().take(1024).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::{Instant, SystemTime};

    use super::*;
    use crate::event::{Container, EventKind};
    use crate::handler::Choice;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);

    type Reply = (Token, Result<Decision, String>);

    /// Events are told apart by their caller's pid, which is their token; the handler does as it is told for each.
    struct Rig {
        dispatch: Dispatch,
        begun: Receiver<(Token, bool)>,
        replies: Receiver<Reply>,
        end: BTreeMap<Token, Sender<()>>,
    }

    /// Handlers of the events up to `count` wait until they are let; later ones return at once.
    fn rig(most: usize, patience: Duration, count: Token) -> Rig {
        let (at, begun) = mpsc::channel();
        let (reply, replies) = mpsc::channel();
        let mut end = BTreeMap::new();
        let mut gates = HashMap::new();
        for token in 1..=count {
            let (open, gate) = mpsc::channel::<()>();
            end.insert(token, open);
            gates.insert(token, Mutex::new(gate));
        }
        let handler = move |event: &ContainerEvent| {
            let token = Token::from(event.caller_pid().unwrap());
            at.send((token, event.held())).unwrap();
            if let Some(gate) = gates.get(&token) {
                let _ = lock(gate).recv();
            }
        };
        let reply = move |token, decision| reply.send((token, decision)).unwrap();
        let linger = Linger::new(SHORT / 1000);
        Rig {
            dispatch: Dispatch::new(Box::new(handler), most, patience, linger, reply).unwrap(),
            begun,
            replies,
            end,
        }
    }

    fn event(token: Token) -> Arc<ContainerEvent> {
        event_of(token, Container::default())
    }

    fn event_of(token: Token, container: Container) -> Arc<ContainerEvent> {
        Arc::new(ContainerEvent {
            kind: EventKind::PreCreate,
            time: SystemTime::UNIX_EPOCH,
            container: Arc::new(container),
            held: true,
            deadline: Some(Instant::now()),
            existing: false,
            caller: u32::try_from(token).ok(),
            exit: None,
            ending: None,
            asked: None,
            exec: None,
            detail: None,
        })
    }

    impl Rig {
        fn tell(&self, life: LifeId, token: Token) {
            self.dispatch.tell(life, token, event(token));
        }

        fn begins(&self) -> (Token, bool) {
            self.begun.recv_timeout(LONG).unwrap()
        }

        fn none_begins(&self) {
            assert!(self.begun.recv_timeout(SHORT).is_err(), "a handler ran that had to wait");
        }

        fn ends(&self, token: Token) {
            self.end[&token].send(()).unwrap();
            let (replied, decision) = self.replies.recv_timeout(LONG).unwrap();
            assert_eq!(replied, token);
            assert!(matches!(decision, Ok(Decision(Choice::Allow))));
            self.dispatch.replied(token);
        }
    }

    #[test]
    fn lives_are_told_beside_each_other_and_one_life_event_by_event() {
        let rig = rig(8, LONG, 3);
        rig.tell(1, 1);
        rig.tell(1, 2);
        rig.tell(2, 3);
        let mut first = [rig.begins(), rig.begins()];
        first.sort_unstable();
        assert_eq!(first, [(1, true), (3, true)]);
        rig.none_begins();
        rig.ends(1);
        assert_eq!(rig.begins(), (2, true));
        rig.ends(2);
        rig.ends(3);
        assert!(rig.dispatch.is_quiet());
    }

    #[test]
    fn a_handler_that_is_late_makes_way_for_its_lifes_next_event() {
        let rig = rig(1, LONG, 1);
        rig.tell(1, 1);
        assert_eq!(rig.begins(), (1, true));
        assert!(rig.dispatch.overdue(1));
        rig.tell(1, 2);
        assert_eq!(rig.begins(), (2, true));
        rig.dispatch.replied(2);
        assert_eq!(rig.replies.recv_timeout(LONG).unwrap().0, 2);
        // It answers after all.
        rig.ends(1);
        assert!(rig.dispatch.is_quiet());
    }

    #[test]
    fn what_is_late_before_a_thread_took_it_is_told_in_its_turn_and_not_as_held() {
        let rig = rig(1, LONG, 4);
        rig.tell(9, 1);
        assert_eq!(rig.begins(), (1, true));
        rig.tell(1, 2);
        rig.tell(1, 3);
        rig.tell(1, 4);
        assert!(rig.dispatch.overdue(2) && rig.dispatch.overdue(3));
        rig.ends(1);
        assert_eq!(rig.begins(), (2, false));
        rig.none_begins();
        rig.ends(2);
        assert_eq!(rig.begins(), (3, false));
        rig.ends(3);
        assert_eq!(rig.begins(), (4, true));
        rig.ends(4);
        assert!(rig.dispatch.is_quiet());
    }

    #[test]
    fn what_began_late_and_does_not_return_silences_nobody() {
        let rig = rig(1, SHORT, 2);
        rig.tell(9, 1);
        assert_eq!(rig.begins(), (1, true));
        rig.tell(1, 2);
        assert!(rig.dispatch.overdue(2));
        rig.tell(1, 3);
        // 1 outlasts the pool's patience, then 2 does; neither is given up by the engine any more.
        assert_eq!(rig.begins(), (2, false));
        assert_eq!(rig.begins(), (3, true));
    }

    #[test]
    fn handlers_that_never_return_cost_their_own_lives_only() {
        let rig = rig(2, LONG, 40);
        for token in 1..=40 {
            rig.tell(token, token);
        }
        let mut stuck = Vec::new();
        for _ in 0..20 {
            for _ in 0..2 {
                stuck.push(rig.begins().0);
            }
            rig.none_begins();
            for token in stuck.drain(..) {
                assert!(rig.dispatch.overdue(token));
            }
        }
        rig.tell(50, 50);
        assert_eq!(rig.begins(), (50, true));
    }

    #[test]
    fn late_events_of_one_life_do_not_fill_the_memory() {
        let rig = rig(1, LONG, 2);
        rig.tell(9, 1);
        assert_eq!(rig.begins(), (1, true));
        let count = MOST_LATE as Token + 3;
        for token in 2..2 + count {
            rig.tell(1, token);
        }
        let told = (2..2 + count).filter(|token| rig.dispatch.overdue(*token)).count();
        // One of them waits in the pool.
        assert_eq!(told, MOST_LATE + 1);
    }

    #[test]
    fn guests_leave_threads_to_root() {
        let rig = rig(4, LONG, 7);
        let guest = |token| {
            let container = Container { rootless: true, ..Container::default() };
            rig.dispatch.tell(token, token, event_of(token, container));
        };
        (1..=5).for_each(guest);
        let mut begun = vec![rig.begins().0, rig.begins().0, rig.begins().0];
        begun.sort_unstable();
        assert_eq!(begun, [1, 2, 3]);
        rig.none_begins();
        rig.tell(6, 6);
        assert_eq!(rig.begins(), (6, true));
        // One that has not been told is late; those that wait come in their turn.
        assert!(rig.dispatch.overdue(4));
        rig.ends(1);
        assert_eq!(rig.begins(), (4, false));
        assert!(rig.dispatch.overdue(2));
        assert_eq!(rig.begins(), (5, true));
        for token in [2, 3, 4, 5, 6] {
            rig.ends(token);
        }
        assert!(rig.dispatch.is_quiet());
    }

    #[test]
    fn a_guest_is_told_where_one_handler_may_run() {
        let rig = rig(1, LONG, 2);
        for token in [1, 2] {
            let container = Container { rootless: true, ..Container::default() };
            rig.dispatch.tell(token, token, event_of(token, container));
        }
        for token in [1, 2] {
            assert_eq!(rig.begins(), (token, true));
            rig.none_begins();
            rig.ends(token);
        }
        assert!(rig.dispatch.is_quiet());
    }

    #[test]
    fn a_panic_is_told_in_its_words() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("once more");
            }
        }
        let (reply, replies) = mpsc::channel::<Reply>();
        let handler = |event: &ContainerEvent| match event.caller_pid() {
            Some(1) => panic!("a constant"),
            Some(2) => panic!("a {}", "format"),
            Some(3) => std::panic::panic_any(7),
            Some(4) => std::panic::panic_any(Bomb),
            _ => (),
        };
        let reply = move |token, decision| reply.send((token, decision)).unwrap();
        let dispatch = Dispatch::new(Box::new(handler), 1, LONG, Linger::new(SHORT / 1000), reply).unwrap();
        for (token, words) in [
            (1, Some("a constant")),
            (2, Some("a format")),
            (3, Some("no message")),
            (4, Some("no message")),
            (5, None),
        ] {
            dispatch.tell(1, token, event(token));
            let (replied, decision) = replies.recv_timeout(LONG).unwrap();
            assert_eq!((replied, decision.err().as_deref()), (token, words));
        }
    }
}
