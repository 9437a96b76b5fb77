//! An elastic pool of threads: as many as there is work for, up to a bound, and back to one when it is quiet.
//!
//! One thread more than the bound waits: a thread must be there to take a job when another is found to be stuck, for
//! whoever finds it may not start one.
//!
//! Both kinds of threads beside the engine's are pools: *workers*, which do for the engine what may wait for a disk or
//! for another process's memory, and *handlers*, which run the user's code. A new thread is started by a thread of the
//! same pool (the first by the pool's maker), and so shares its descriptor table: see `private_table.rs`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread that is not the last idle one waits for work before it ends.
const LINGER: Duration = Duration::from_secs(5);

/// Jobs that are stuck are not counted towards a pool's bound, up to this many in all.
const MOST_JOBS: usize = 1024;

pub(crate) struct Pool<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    name: &'static str,
    bound: usize,
    run: Box<dyn Fn(J) + Send + Sync>,
    state: Mutex<State<J>>,
    work: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    idle: usize,
    running: usize,
    stuck: usize,
    closed: bool,
}

impl<J> Shared<J> {
    fn room(&self, state: &State<J>) -> bool {
        state.running < (self.bound + state.stuck).min(MOST_JOBS)
    }
}

impl<J: Send + 'static> Pool<J> {
    pub(crate) fn new(
        name: &'static str,
        bound: usize,
        run: impl Fn(J) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let state = State { jobs: VecDeque::new(), idle: 0, running: 0, stuck: 0, closed: false };
        let shared = Arc::new(Shared {
            name,
            bound: bound.max(1),
            run: Box::new(run),
            state: Mutex::new(state),
            work: Condvar::new(),
        });
        Shared::spawn(&shared)?;
        Ok(Pool { shared })
    }

    /// Puts a job at the queue's end. It never waits.
    pub(crate) fn submit(&self, job: J) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        drop(state);
        self.shared.work.notify_one();
    }

    /// One job more is known to be stuck: another may run in its place.
    pub(crate) fn stuck(&self) {
        let mut state = self.shared.lock();
        state.stuck += 1;
        drop(state);
        self.shared.work.notify_one();
    }

    /// A job that was said to be stuck has ended after all.
    pub(crate) fn unstuck(&self) {
        let mut state = self.shared.lock();
        state.stuck = state.stuck.saturating_sub(1);
    }
}

impl<J> Drop for Pool<J> {
    /// Jobs that no thread has taken are dropped; those that run are left to end by themselves.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.jobs);
        drop(state);
        self.shared.work.notify_all();
        drop(dropped);
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Send + 'static> Shared<J> {
    fn spawn(shared: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(shared);
        thread::Builder::new().name(shared.name.into()).spawn(move || Self::work(&pool)).map(drop)
    }

    fn work(shared: &Arc<Self>) {
        let mut state = shared.lock();
        loop {
            if !state.closed
                && shared.room(&state)
                && let Some(job) = state.jobs.pop_front()
            {
                state.running += 1;
                // Before this thread is away at its job, see that another waits.
                let alone = state.idle == 0;
                drop(state);
                if alone {
                    // Where the limit of threads is reached, the next job waits for one of those that are there.
                    let _ = Self::spawn(shared);
                }
                (shared.run)(job);
                state = shared.lock();
                state.running -= 1;
                continue;
            }
            if state.closed {
                return;
            }
            let last = state.idle == 0;
            state.idle += 1;
            if last {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                let (guard, waited) =
                    shared.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
                state = guard;
                state.idle -= 1;
                if waited.timed_out() && state.idle > 0 && state.jobs.is_empty() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_beside_each_other_up_to_the_bound() {
        let (at, arrived) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = Pool::new("test", 3, move |n: u32| {
            at.send(n).unwrap();
            let _ = gate.lock().unwrap().recv();
        })
        .unwrap();
        for n in 0..5 {
            pool.submit(n);
        }
        let first: Vec<u32> =
            (0..3).map(|_| arrived.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        assert_eq!(first.len(), 3);
        assert!(
            arrived.recv_timeout(Duration::from_millis(100)).is_err(),
            "a fourth job ran past the bound of three"
        );
        // A thread that is stuck makes room for another.
        pool.stuck();
        assert!(arrived.recv_timeout(Duration::from_secs(10)).is_ok());
        for _ in 0..5 {
            open.send(()).unwrap();
        }
        assert!(arrived.recv_timeout(Duration::from_secs(10)).is_ok());
    }

    #[test]
    fn a_pool_that_is_dropped_drops_the_jobs_that_wait() {
        struct Told(mpsc::Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (dropped, drops) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = Pool::new("test", 1, move |_: Told| {
            let _ = gate.lock().unwrap().recv();
        })
        .unwrap();
        pool.submit(Told(dropped.clone()));
        pool.submit(Told(dropped));
        drop(pool);
        assert!(drops.recv_timeout(Duration::from_secs(10)).is_ok());
        drop(open);
        assert!(drops.recv_timeout(Duration::from_secs(10)).is_ok());
    }
}
