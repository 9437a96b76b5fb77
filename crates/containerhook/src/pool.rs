//! An elastic pool of threads: as many as there is work for, up to a bound, and back to two when it is quiet.
//!
//! A job that takes longer than the pool's patience, or is [given up](Pool::give_up) while it runs, is *stuck*: it
//! is not counted towards the bound any more, and another may run in its place. So a job that never ends costs a thread,
//! and nobody's turn.
//!
//! One thread more than the bound waits: a thread must be there to take a job when another is found to be stuck, for
//! whoever finds it may not start one.
//!
//! A thread that has done its job waits awake for a moment before it sleeps, one at a time: see `linger.rs`.
//!
//! Both kinds of threads beside the engine's are pools: *workers*, which do for the engine what may wait for a disk or
//! for another process's memory, and *handlers*, which run the user's code. A new thread is started by a thread of the
//! same pool (the first by the pool's maker), and so shares its descriptor table: see `private_table.rs`.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::linger::{self, Linger};

/// How long a thread that is not the last idle one waits for work before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// How many threads stay when it is quiet: one to take a job, and one to wait in its place. With one, each job that comes
/// after a quiet time would wait until another thread has been started.
const SPARE: usize = 2;

/// Stuck jobs are not counted towards a pool's bound, up to this many jobs in all.
const MOST_JOBS: usize = 1024;

/// Jobs that nobody waits for and that no thread has taken; more than these are dropped.
const MOST_LATE: usize = 4096;

/// A job's number.
pub(crate) type JobNo = u64;

/// Where a job was when it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits for a thread, and will run.
    Waits,
    /// It waited for a thread, as too many others do that were given up: it will not run.
    Dropped,
    /// It runs, and is stuck.
    Stuck,
    /// It has run, or was known to be stuck.
    Gone,
}

pub(crate) struct Pool<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    name: &'static str,
    bound: usize,
    patience: Duration,
    run: Box<dyn Fn(JobNo, J) + Send + Sync>,
    /// Is told which job is stuck by the pool's patience.
    stuck: Box<dyn Fn(JobNo) + Send + Sync>,
    state: Mutex<State<J>>,
    /// Grows when the thread that waits awake is called.
    called: AtomicU64,
    /// Where idle threads wait for a job.
    work: Condvar,
    /// Where the idle thread waits that looks after the running jobs.
    look: Condvar,
}

struct State<J> {
    jobs: VecDeque<(JobNo, J)>,
    last: JobNo,
    /// Those of the jobs that were given up.
    late: HashSet<JobNo>,
    idle: usize,
    /// A thread waits awake.
    awake: bool,
    linger: Linger,
    /// When the last job ended, if none has come since.
    ended: Option<Instant>,
    /// One of the idle will look at the running jobs before the pool's patience is over.
    looking: bool,
    /// Jobs at which a thread is and that are not stuck, with when they began.
    running: BTreeMap<JobNo, Instant>,
    /// How many threads are at jobs that are stuck.
    stuck: usize,
    closed: bool,
}

impl<J> State<J> {
    fn room(&self, bound: usize) -> bool {
        self.running.len() < bound && self.running.len() + self.stuck < MOST_JOBS
    }
}

impl<J: Send + 'static> Pool<J> {
    /// At most `bound` jobs run at once, not counting those that have run for longer than `patience`.
    pub(crate) fn new(
        name: &'static str,
        bound: usize,
        patience: Duration,
        linger: Linger,
        run: impl Fn(JobNo, J) + Send + Sync + 'static,
        stuck: impl Fn(JobNo) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let state = State {
            jobs: VecDeque::new(),
            last: 0,
            late: HashSet::new(),
            idle: 0,
            awake: false,
            linger,
            ended: None,
            looking: false,
            running: BTreeMap::new(),
            stuck: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            name,
            bound: bound.max(1),
            patience,
            run: Box::new(run),
            stuck: Box::new(stuck),
            state: Mutex::new(state),
            called: AtomicU64::new(0),
            work: Condvar::new(),
            look: Condvar::new(),
        });
        Shared::spawn(&shared)?;
        Ok(Pool { shared })
    }

    /// Puts a job at the queue's end. It never waits.
    pub(crate) fn submit(&self, job: J) -> JobNo {
        let no = self.put(job);
        self.wake();
        no
    }

    /// As [`submit`](Self::submit), for who holds a lock that the job will want: [`wake`](Self::wake) is to follow.
    pub(crate) fn put(&self, job: J) -> JobNo {
        let mut state = self.shared.lock();
        state.last += 1;
        let no = state.last;
        state.jobs.push_back((no, job));
        if let Some(ended) = state.ended.take() {
            state.linger.came_after(ended.elapsed());
        }
        no
    }

    /// Has a thread take what was [`put`](Self::put).
    pub(crate) fn wake(&self) {
        let state = self.shared.lock();
        self.shared.wake(state);
    }

    /// Nobody waits for this job any more. One that still waits for a thread keeps its place, and `late` is done to it.
    pub(crate) fn give_up(&self, no: JobNo, late: impl FnOnce(&mut J)) -> Fate {
        let mut state = self.shared.lock();
        if state.running.remove(&no).is_some() {
            state.stuck += 1;
            self.shared.wake(state);
            return Fate::Stuck;
        }
        // Numbers in the queue grow.
        let Ok(at) = state.jobs.binary_search_by_key(&no, |(no, _)| *no) else { return Fate::Gone };
        if state.late.len() >= MOST_LATE {
            let dropped = state.jobs.remove(at);
            drop(state);
            drop(dropped);
            return Fate::Dropped;
        }
        state.late.insert(no);
        if let Some((_, job)) = state.jobs.get_mut(at) {
            late(job);
        }
        Fate::Waits
    }
}

impl<J> Drop for Pool<J> {
    /// Jobs that no thread has taken are dropped; those that run are left to end by themselves.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.jobs);
        drop(state);
        self.shared.called.fetch_add(1, Ordering::Relaxed);
        self.shared.work.notify_all();
        self.shared.look.notify_all();
        drop(dropped);
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing that can panic runs under the lock but what `give_up` does to a job, which cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the one that waits awake, or wakes one of the idle: the one that looks after the others' jobs only where there
    /// is no other.
    fn wake(&self, state: MutexGuard<'_, State<J>>) {
        let (awake, only_looks) = (state.awake, state.looking && state.idle == 1);
        drop(state);
        if awake {
            // It looks into the queue before it sleeps, whether it sees this or not.
            self.called.fetch_add(1, Ordering::Relaxed);
        } else if only_looks {
            self.look.notify_one();
        } else {
            self.work.notify_one();
        }
    }
}

impl<J: Send + 'static> Shared<J> {
    fn spawn(shared: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(shared);
        thread::Builder::new().name(shared.name.into()).spawn(move || Self::work(&pool)).map(drop)
    }

    fn work(shared: &Arc<Self>) {
        let mut state = shared.lock();
        let mut idle_since = None;
        let mut woken = false;
        loop {
            if state.closed {
                return;
            }
            if state.room(shared.bound)
                && let Some((no, job)) = state.jobs.pop_front()
            {
                state.late.remove(&no);
                state.running.insert(no, Instant::now());
                // Before this thread is away at its job, see that another waits.
                (idle_since, woken) = (None, false);
                if state.awake {
                    // It looks after what runs, and what waits, when it has been awake for long enough.
                    drop(state);
                } else if state.idle == 0 {
                    drop(state);
                    // Where the limit of threads is reached, the next job waits for one of those that are there.
                    let _ = Self::spawn(shared);
                } else if !state.looking || !state.jobs.is_empty() {
                    // One of those that wait must know when this job has taken too long, and goes on looking for a while
                    // after it: a wake-up for each job would take the processor from the job. And of two jobs that came
                    // at once, the second may have woken nobody else.
                    shared.wake(state);
                } else {
                    drop(state);
                }
                // A job that panics costs itself, not the thread and its place.
                let _ = catch_unwind(AssertUnwindSafe(|| (shared.run)(no, job)));
                state = shared.lock();
                if state.running.remove(&no).is_none() {
                    state.stuck -= 1;
                }
                if state.jobs.is_empty() && !state.awake && !state.closed {
                    state.awake = true;
                    state.ended = Some(Instant::now());
                    let (before, awake) = (shared.called.load(Ordering::Relaxed), state.linger.awake());
                    drop(state);
                    linger::look(awake, || (shared.called.load(Ordering::Relaxed) != before).then_some(()));
                    state = shared.lock();
                    state.awake = false;
                }
                continue;
            }
            let now = Instant::now();
            let mut next = None;
            let mut stuck = Vec::new();
            for (no, since) in &state.running {
                let until = *since + shared.patience;
                if until <= now {
                    stuck.push(*no);
                } else {
                    next = Some(next.map_or(until, |next: Instant| next.min(until)));
                }
            }
            if !stuck.is_empty() {
                for no in &stuck {
                    state.running.remove(no);
                    state.stuck += 1;
                }
                drop(state);
                for no in stuck {
                    (shared.stuck)(no);
                }
                state = shared.lock();
                continue;
            }
            // One of the idle looks after the jobs that run, and those that begin within the time that it waits.
            let looks = !state.looking && (next.is_some() || woken);
            let last = state.idle < SPARE;
            let wait = match next.map(|next| next.saturating_duration_since(now)) {
                Some(next) if looks => Some(next),
                None if looks => Some(IDLE.min(shared.patience)),
                _ if last => None,
                _ => Some(IDLE),
            };
            state.idle += 1;
            state.looking |= looks;
            let since = *idle_since.get_or_insert(now);
            let on = if looks { &shared.look } else { &shared.work };
            (state, woken) = match wait {
                None => (on.wait(state).unwrap_or_else(PoisonError::into_inner), true),
                Some(wait) => {
                    let (state, over) = on.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
                    (state, !over.timed_out())
                }
            };
            state.idle -= 1;
            if looks {
                state.looking = false;
            }
            if !last && state.idle >= SPARE && state.jobs.is_empty() && since.elapsed() >= IDLE {
                // The one that stays may have slept since before the jobs that run began.
                if looks && !state.running.is_empty() {
                    shared.wake(state);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);

    /// A pool whose jobs say that they have begun, and end when they are let.
    struct Rig {
        pool: Pool<u32>,
        begun: Receiver<u32>,
        end: Sender<()>,
        stuck: Receiver<JobNo>,
    }

    fn rig(bound: usize, patience: Duration) -> Rig {
        let (at, begun) = mpsc::channel();
        let (end, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (tell, stuck) = mpsc::channel();
        let pool = Pool::new(
            "test",
            bound,
            patience,
            Linger::new(SHORT / 1000),
            move |_, n: u32| {
                at.send(n).unwrap();
                let _ = gate.lock().unwrap().recv();
            },
            move |no| tell.send(no).unwrap(),
        )
        .unwrap();
        Rig { pool, begun, end, stuck }
    }

    impl Rig {
        fn begun(&self, count: usize) -> Vec<u32> {
            let mut begun: Vec<u32> = (0..count).map(|_| self.begun.recv_timeout(LONG).unwrap()).collect();
            begun.sort_unstable();
            begun
        }

        fn none_begins(&self) {
            assert!(self.begun.recv_timeout(SHORT).is_err(), "a job ran past the bound");
        }
    }

    #[test]
    fn jobs_run_beside_each_other_up_to_the_bound() {
        let rig = rig(3, LONG);
        for n in 0..5 {
            rig.pool.submit(n);
        }
        assert_eq!(rig.begun(3), [0, 1, 2]);
        rig.none_begins();
        rig.end.send(()).unwrap();
        assert_eq!(rig.begun(1), [3]);
        for _ in 0..4 {
            rig.end.send(()).unwrap();
        }
        assert_eq!(rig.begun(1), [4]);
    }

    #[test]
    fn a_stuck_job_makes_room_for_one_and_takes_none_when_it_ends() {
        let rig = rig(1, LONG);
        let first = rig.pool.submit(0);
        for n in 1..4 {
            rig.pool.submit(n);
        }
        assert_eq!(rig.begun(1), [0]);
        assert_eq!(rig.pool.give_up(first, |_| panic!("it does not wait")), Fate::Stuck);
        assert_eq!(rig.pool.give_up(first, |_| panic!("it does not wait")), Fate::Gone);
        assert_eq!(rig.begun(1), [1]);
        rig.none_begins();
        // Both end: two threads are free now, and one job may run.
        rig.end.send(()).unwrap();
        rig.end.send(()).unwrap();
        assert_eq!(rig.begun(1), [2]);
        rig.none_begins();
        rig.end.send(()).unwrap();
        assert_eq!(rig.begun(1), [3]);
    }

    #[test]
    fn a_job_that_outlasts_the_patience_is_stuck_though_nobody_says_so() {
        let rig = rig(1, SHORT);
        let first = rig.pool.submit(7);
        rig.pool.submit(8);
        assert_eq!(rig.begun(1), [7]);
        assert_eq!(rig.begun(1), [8]);
        assert_eq!(rig.stuck.recv_timeout(LONG).unwrap(), first);
        assert_eq!(rig.pool.give_up(first, |_| ()), Fate::Gone);
    }

    #[test]
    fn a_job_that_is_given_up_before_it_began_keeps_its_place() {
        let rig = rig(1, LONG);
        rig.pool.submit(0);
        let second = rig.pool.submit(1);
        rig.pool.submit(2);
        assert_eq!(rig.begun(1), [0]);
        assert_eq!(rig.pool.give_up(second, |n| *n = 10), Fate::Waits);
        rig.end.send(()).unwrap();
        assert_eq!(rig.begun(1), [10]);
        rig.none_begins();
        rig.end.send(()).unwrap();
        assert_eq!(rig.begun(1), [2]);
    }

    #[test]
    fn jobs_that_nobody_waits_for_do_not_fill_the_memory() {
        let rig = rig(1, LONG);
        rig.pool.submit(0);
        assert_eq!(rig.begun(1), [0]);
        let late: Vec<JobNo> = (0..MOST_LATE as u32 + 2).map(|n| rig.pool.submit(n)).collect();
        let fates: Vec<Fate> = late.iter().map(|no| rig.pool.give_up(*no, |_| ())).collect();
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Waits).count(), MOST_LATE);
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Dropped).count(), 2);
    }

    #[test]
    fn every_job_runs_whether_a_thread_waits_awake_for_it_or_asleep() {
        const EACH: u32 = 3000;
        for most in [Duration::ZERO, SHORT / 2000, SHORT / 100] {
            let (ran, all) = mpsc::channel();
            let pool =
                Pool::new("test", 4, LONG, Linger::new(most), move |_, n: u32| ran.send(n).unwrap(), |_| ());
            let pool = pool.unwrap();
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for n in 0..EACH {
                            pool.submit(n);
                            // From at once to longer than any wait is awake: a job comes at every moment of going to sleep.
                            if n % 7 == 0 {
                                thread::sleep(Duration::from_micros(u64::from(n % 130)));
                            }
                        }
                    });
                }
            });
            for _ in 0..3 * EACH {
                // Sooner than an idle thread looks by itself.
                all.recv_timeout(IDLE * 4 / 5).expect("a job waits and no thread comes");
            }
        }
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let (at, ran) = mpsc::channel();
        let pool = Pool::new(
            "test",
            1,
            LONG,
            Linger::new(SHORT / 1000),
            move |_, n: u32| {
                at.send(n).unwrap();
                assert_ne!(n, 0, "on purpose");
            },
            |_| (),
        )
        .unwrap();
        pool.submit(0);
        pool.submit(1);
        assert_eq!(ran.recv_timeout(LONG), Ok(0));
        assert_eq!(ran.recv_timeout(LONG), Ok(1));
    }

    #[test]
    fn a_pool_that_is_dropped_drops_the_jobs_that_wait() {
        struct Told(Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (dropped, drops) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let run = move |_, _: Told| {
            let _ = gate.lock().unwrap().recv();
        };
        let pool = Pool::new("test", 1, LONG, Linger::new(SHORT / 1000), run, |_| ()).unwrap();
        pool.submit(Told(dropped.clone()));
        pool.submit(Told(dropped));
        drop(pool);
        assert!(drops.recv_timeout(LONG).is_ok());
        drop(open);
        assert!(drops.recv_timeout(LONG).is_ok());
    }
}
