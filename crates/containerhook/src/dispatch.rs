//! Handlers: the user's code, on threads of its own. The events of one life are given to it one after the other.
//!
//! An event that nobody waits for any more is *late*. One that a handler is at makes way: the life's next event is told
//! beside it, or a handler that never returns would silence its container. One that no thread had taken yet keeps its
//! place, and is told as not held.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::error::Error;
use crate::event::ContainerEvent;
use crate::handler::{Decision, Handler};
use crate::lifecycle::{LifeId, Token};
use crate::pool::{Fate, JobNo, Pool};

/// Late events of one life that wait; of more the oldest is dropped.
const MOST_LATE: usize = 64;

struct Job {
    life: LifeId,
    token: Token,
    event: Arc<ContainerEvent>,
    late: bool,
}

/// What is told of one life.
#[derive(Default)]
struct Lane {
    /// What the pool has.
    busy: Option<(JobNo, Token)>,
    /// What comes after it.
    queue: VecDeque<Job>,
}

type Lanes = HashMap<LifeId, Lane>;

struct Shared {
    pool: OnceLock<Pool<Job>>,
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
        reply: impl Fn(Token, Result<Decision, String>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared { pool: OnceLock::new(), lanes: Mutex::default() });
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
        let pool = Pool::new("ch-handler", most, patience, run, stuck)
            .map_err(|e| Error::os("cannot start a thread for handlers", e))?;
        let _ = shared.pool.set(pool);
        Ok(Dispatch { shared, told: Mutex::default() })
    }

    /// Gives the event to the handler, after those of the same life that were told before.
    pub(crate) fn tell(&self, life: LifeId, token: Token, event: Arc<ContainerEvent>) {
        lock(&self.told).insert(token, life);
        let mut lanes = lock(&self.shared.lanes);
        lanes.entry(life).or_default().queue.push_back(Job { life, token, event, late: false });
        self.shared.next(&mut lanes, life);
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
        let Some(lane) = lanes.get_mut(&life) else { return true };
        if let Some((no, _)) = lane.busy.filter(|(_, busy)| *busy == token) {
            let fate =
                self.shared.pool.get().map_or(Fate::Gone, |pool| pool.give_up(no, |job| job.late = true));
            if matches!(fate, Fate::Stuck | Fate::Dropped) {
                lane.busy = None;
                self.shared.next(&mut lanes, life);
            }
            return fate != Fate::Dropped;
        }
        if let Some(job) = lane.queue.iter_mut().find(|job| job.token == token) {
            job.late = true;
        }
        if lane.queue.iter().filter(|job| job.late).count() > MOST_LATE
            && let Some(oldest) = lane.queue.iter().position(|job| job.late)
        {
            let dropped = lane.queue.remove(oldest);
            drop(lanes);
            drop(dropped);
            return false;
        }
        true
    }

    #[cfg(test)]
    fn is_quiet(&self) -> bool {
        lock(&self.told).is_empty() && lock(&self.shared.lanes).is_empty()
    }
}

impl Shared {
    /// Gives the lane's next event to the pool, if it may go.
    fn next(&self, lanes: &mut Lanes, life: LifeId) {
        let Some(lane) = lanes.get_mut(&life) else { return };
        if lane.busy.is_some() {
            return;
        }
        match (lane.queue.pop_front(), self.pool.get()) {
            (Some(job), Some(pool)) => {
                let token = job.token;
                lane.busy = Some((pool.submit(job), token));
            }
            _ => {
                lanes.remove(&life);
            }
        }
    }

    /// The job has ended, or is stuck: the lane goes on, if it still waits for it.
    fn free(&self, life: LifeId, no: JobNo) {
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get_mut(&life)
            && lane.busy.is_some_and(|(busy, _)| busy == no)
        {
            lane.busy = None;
            self.next(&mut lanes, life);
        }
    }

    fn stuck(&self, no: JobNo) {
        let found = |(_, lane): &(&LifeId, &Lane)| lane.busy.is_some_and(|(busy, _)| busy == no);
        let life = lock(&self.lanes).iter().find(found).map(|(life, _)| *life);
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
