//! Handlers: the user's code, on threads of its own, each event with a state that says whether anybody still waits.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;
use crate::event::ContainerEvent;
use crate::handler::{Decision, Handler};
use crate::lifecycle::Token;
use crate::pool::Pool;

const WAITS: u8 = 0;
const RUNS: u8 = 1;
/// Nobody waits for the answer any more, and no thread had taken it when that came about.
const LATE: u8 = 2;
/// Nobody waits for the answer any more, and a thread is at it.
const STUCK: u8 = 3;
const DONE: u8 = 4;

struct Job {
    token: Token,
    event: Arc<ContainerEvent>,
    state: Arc<AtomicU8>,
}

/// Gives events to the handler. Made and dropped on the user's side; the engine has a share of it.
pub(crate) struct Dispatch {
    pool: Arc<Pool<Job>>,
    jobs: Mutex<HashMap<Token, Arc<AtomicU8>>>,
}

impl Dispatch {
    /// `reply` is called on the handler's thread with what it decided, or with the words of its panic.
    pub(crate) fn new(
        handler: Box<dyn Handler>,
        most: usize,
        reply: impl Fn(Token, Result<Decision, String>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let unstick: Arc<Mutex<Option<std::sync::Weak<Pool<Job>>>>> = Arc::default();
        let pool_of_this = Arc::clone(&unstick);
        let run = move |job: Job| {
            let mut event = job.event;
            if job.state.compare_exchange(WAITS, RUNS, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // It was answered in the handler's place while it waited for a thread: it is told, and is not held.
                let late = Arc::make_mut(&mut event);
                late.held = false;
                late.deadline = None;
            }
            let decision = catch_unwind(AssertUnwindSafe(|| handler.on_event(&event)));
            let before = job.state.swap(DONE, Ordering::AcqRel);
            if before == STUCK {
                let pool = pool_of_this.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pool) = pool.as_ref().and_then(std::sync::Weak::upgrade) {
                    pool.unstuck();
                }
            }
            reply(job.token, decision.map_err(|panic| panic_words(&*panic)));
        };
        let pool = Pool::new("ch-handler", most, run)
            .map_err(|e| Error::os("cannot start a thread for handlers", e))?;
        let pool = Arc::new(pool);
        *unstick.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(&pool));
        Ok(Dispatch { pool, jobs: Mutex::default() })
    }

    pub(crate) fn tell(&self, token: Token, event: Arc<ContainerEvent>) {
        let state = Arc::new(AtomicU8::new(WAITS));
        self.jobs().insert(token, Arc::clone(&state));
        self.pool.submit(Job { token, event, state });
    }

    /// The handler has answered.
    pub(crate) fn replied(&self, token: Token) {
        self.jobs().remove(&token);
    }

    /// Nobody waits for this answer any more. A thread that is at it is stuck, and another may take its place.
    pub(crate) fn overdue(&self, token: Token) {
        let Some(state) = self.jobs().remove(&token) else { return };
        if state.compare_exchange(WAITS, LATE, Ordering::AcqRel, Ordering::Acquire).is_err()
            && state.compare_exchange(RUNS, STUCK, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.pool.stuck();
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Arc<AtomicU8>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().copied();
    words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
