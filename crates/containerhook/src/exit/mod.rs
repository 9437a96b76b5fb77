//! How watched processes end.
//!
//! A process is named by pid and start time, never by the pid alone. Each watched process is reported exactly once, as soon
//! as its last thread leaves, with the status that its parent will get where that can be known:
//!
//! 1. [`Backend::Bpf`]: a program on the kernel's exit tracepoint, filtered in the kernel to what is watched. No
//!    descriptor for a process, status always known.
//! 2. [`Backend::PidfdInfo`] (Linux 6.15): a pidfd for each. The status is read from the zombie, or asked of the pidfd once
//!    the parent has reaped it.
//! 3. [`Backend::Pidfd`] (Linux 5.3): a pidfd for each. The status is read from the zombie; a parent that reaps sooner
//!    leaves it unknown.
//!
//! A program cannot see a process that is past its tracepoint, and a table can be full: such a process gets a pidfd, and
//! whichever comes first counts. `/proc/PID/stat` is read once when a watch begins and at most twice when it ends, never polled.
//!
//! Where the pids are those of another pid namespace, the host's, no pidfd can be had: only BPF will do. A process that may be
//! past the tracepoint is about to be gone, and is looked at again, ever later, until it is; a full table refuses the watch.

mod record;
mod stat;
mod sys;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use self::record::{Record, Records};
use self::stat::{Proc, Stat};
use self::sys::{Bell, Epoll, Interest, Ready};
use crate::bpf::{Loader, Refused};
use crate::proc::HostProc;
use crate::seldom::Seldom;

/// How long an end waits for its status where the parent has not reaped yet and the kernel shows it only then.
const REAP_GRACE: Duration = Duration::from_millis(100);

/// How soon a process without a pidfd that is exiting is looked at again, the first time and at last.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(2), Duration::from_secs(1)];

/// So many ends at once are a burst.
const MANY: usize = 16;

/// Tokens above any pid.
const BELL: u64 = u64::MAX;
const RING: u64 = u64::MAX - 1;

/// Which process: the pid can be used again, the two together are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Process {
    /// In the pid namespace of the `/proc` that the watcher reads.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub(crate) start_time: u64,
}

/// The end of a watched process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Which one.
    pub(crate) process: Process,
    /// As `wait(2)` tells it; `None` where it could not be known.
    pub(crate) status: Option<ExitStatus>,
    /// Of one that ended by SIGKILL: whether the kernel killed it for want of memory. Only BPF tells.
    pub(crate) oom_killed: Option<bool>,
    /// When; without BPF, when it was noticed.
    pub(crate) at: Instant,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Choice {
    /// The best that works.
    #[default]
    Auto,
    /// [`Backend::Bpf`] or nothing.
    Bpf,
    /// [`Backend::PidfdInfo`] or nothing.
    PidfdInfo,
    /// [`Backend::Pidfd`].
    Pidfd,
}

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Recorded by a BPF program.
    Bpf,
    /// A pidfd that tells the status of the reaped.
    PidfdInfo,
    /// A pidfd.
    Pidfd,
}

/// Why there are no [`Exits`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// BPF was asked for.
    #[error("exits by BPF: {0}")]
    Bpf(#[from] Refused),
    /// PIDFD_GET_INFO was asked for.
    #[error("exits by PIDFD_GET_INFO: this kernel does not tell exit codes so (Linux 6.15 does)")]
    PidfdInfo,
    /// The listener is in another pid namespace.
    #[error(
        "the ends of processes of another pid namespace are learned by BPF only{}",
        .0.as_ref().map(|refused| format!(": {refused}")).unwrap_or_default()
    )]
    Foreign(Option<Refused>),
    /// Not even pidfds.
    #[error("exits by pidfd: {0}")]
    Pidfd(#[source] io::Error),
}

/// Why a process is not watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// There is no such process, not even a zombie.
    #[error("no such process")]
    Gone,
    /// The kernel refused, most often a descriptor too many.
    #[error("watch a process: {0}")]
    Refused(#[source] io::Error),
}

/// All watched processes. Has one owner, on the engine's side.
pub(crate) struct Exits {
    epoll: Epoll,
    bell: Bell,
    proc: Proc,
    records: Option<Records>,
    losses: Seldom,
    /// Runtimes that make a process whose pid will be known late: since when, and which.
    makers: BTreeSet<(u64, i32)>,
    /// Whether to wait for the parent to reap.
    status_by_pidfd: bool,
    /// By pid: the process that has it now is watched, any other has ended.
    watched: HashMap<i32, Watched>,
    /// Dead, and their status is waited for until then.
    unreaped: BTreeSet<(Instant, i32)>,
    ended: Vec<Ended>,
    ready: Vec<Ready>,
}

struct Watched {
    start_time: u64,
    /// `None` where a BPF record is sure to come.
    pidfd: Option<OwnedFd>,
    /// It is dead, and until then its status is waited for; or it is exiting, and looked at again then.
    deadline: Option<Instant>,
    /// How long the next look will wait.
    pause: Duration,
}

impl Exits {
    /// For the processes of our own pid namespace.
    #[cfg(test)]
    pub(crate) fn open(choice: Choice, bpf: &mut Loader) -> Result<(Exits, Vec<String>), OpenError> {
        Exits::open_for(choice, bpf, &HostProc::default())
    }

    /// The backend that was asked for, or with [`Choice::Auto`] the best that works and a warning for each that does not.
    /// Where pids are those of another pid namespace, the host's, only BPF can watch them.
    pub(crate) fn open_for(
        choice: Choice,
        bpf: &mut Loader,
        proc: &HostProc,
    ) -> Result<(Exits, Vec<String>), OpenError> {
        let mut warnings = Vec::new();
        let mut exits = Exits {
            epoll: Epoll::new().map_err(OpenError::Pidfd)?,
            bell: Bell::new().map_err(OpenError::Pidfd)?,
            proc: Proc::new(proc),
            records: None,
            losses: Seldom::default(),
            makers: BTreeSet::new(),
            status_by_pidfd: false,
            watched: HashMap::new(),
            unreaped: BTreeSet::new(),
            ended: Vec::new(),
            ready: Vec::new(),
        };
        exits.epoll.add(exits.bell.as_fd(), BELL).map_err(OpenError::Pidfd)?;

        if matches!(choice, Choice::Auto | Choice::Bpf) {
            match Records::open(bpf) {
                Ok((records, warning)) => {
                    warnings.extend(warning);
                    exits.epoll.add(records.fd(), RING).map_err(OpenError::Pidfd)?;
                    exits.records = Some(records);
                    return Ok((exits, warnings));
                }
                Err(refused) if proc.is_foreign() => return Err(OpenError::Foreign(Some(refused))),
                Err(refused) if choice == Choice::Bpf => return Err(refused.into()),
                Err(refused) => {
                    warnings
                        .push(format!("exits are not recorded by BPF, pidfds are used instead: {refused}"));
                }
            }
        }
        if proc.is_foreign() {
            return Err(OpenError::Foreign(None));
        }
        if choice != Choice::Pidfd {
            exits.status_by_pidfd = sys::pidfd_tells_exit_status().map_err(OpenError::Pidfd)?;
            if !exits.status_by_pidfd {
                if choice == Choice::PidfdInfo {
                    return Err(OpenError::PidfdInfo);
                }
                warnings.push(
                    "this kernel does not tell exit codes by pidfd (Linux 6.15 does): those of processes \
                     that their parent reaps at once stay unknown"
                        .to_owned(),
                );
            }
        }
        // One for all: whether this kernel, and what confines us, has pidfds.
        sys::pidfd_open(std::process::id() as i32).map_err(OpenError::Pidfd)?;
        Ok((exits, warnings))
    }

    /// What is used.
    pub(crate) fn backend(&self) -> Backend {
        match (&self.records, self.status_by_pidfd) {
            (Some(_), _) => Backend::Bpf,
            (None, true) => Backend::PidfdInfo,
            (None, false) => Backend::Pidfd,
        }
    }

    /// Readable as long as [`drain`](Self::drain) has something to tell.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When to call [`drain`](Self::drain) even if [`fd`](Self::fd) is not readable.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.unreaped.first().map(|(at, _)| *at).into_iter().chain(self.losses.due()).min()
    }

    /// How many are watched.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.watched.len()
    }

    /// Watches the process that has this pid now. A second time is the same watch. One that is dead but not reaped is
    /// reported with the next [`drain`](Self::drain).
    pub(crate) fn watch(&mut self, pid: i32) -> Result<Process, WatchError> {
        let stat = self.proc.look(pid).map_err(WatchError::Refused)?.ok_or(WatchError::Gone)?;
        let process = Process { pid, start_time: stat.start_time };
        if let Some(earlier) = self.watched.get(&pid) {
            if earlier.start_time == process.start_time {
                return Ok(process);
            }
            self.give_up_on(Process { pid, start_time: earlier.start_time });
        }
        if self.ended.iter().any(|ended| ended.process == process) {
            return Ok(process);
        }
        if stat.is_dead() {
            self.tell(process, self.proc.exit_status(process));
            return Ok(process);
        }

        self.watch_this(process)
    }

    /// Watches this very process, which was there a moment ago: one look less than [`watch`](Self::watch) takes. One that is
    /// gone by now is reported with the next [`drain`](Self::drain).
    pub(crate) fn watch_known(&mut self, process: Process) -> Result<(), WatchError> {
        match self.watched.get(&process.pid) {
            Some(earlier) if earlier.start_time == process.start_time => return Ok(()),
            Some(earlier) => self.give_up_on(Process { pid: process.pid, start_time: earlier.start_time }),
            None => {}
        }
        if self.ended.iter().any(|ended| ended.process == process) {
            return Ok(());
        }
        self.watch_this(process).map(drop)
    }

    fn watch_this(&mut self, process: Process) -> Result<Process, WatchError> {
        let recorded = self.records.as_mut().is_some_and(|records| records.insert(process).is_ok());
        let watched =
            Watched { start_time: process.start_time, pidfd: None, deadline: None, pause: LOOK_AGAIN[0] };
        self.watched.insert(process.pid, watched);
        // The table is written before this look, and a process is marked as exiting before it reaches the tracepoint: one
        // that is not marked now will find itself in the table.
        match self.proc.look(process.pid) {
            Ok(Some(now)) if now.start_time == process.start_time && recorded && !now.is_exiting() => {
                Ok(process)
            }
            Ok(Some(now)) if now.start_time == process.start_time => {
                self.watch_otherwise(process, &now).inspect_err(|_| self.forget(process))
            }
            Ok(_) => {
                self.give_up_on(process);
                Ok(process)
            }
            Err(error) => {
                self.forget(process);
                Err(WatchError::Refused(error))
            }
        }
    }

    /// Watches one that its record may have missed, or that has no place in the table.
    fn watch_otherwise(&mut self, process: Process, now: &Stat) -> Result<Process, WatchError> {
        if !self.proc.is_foreign() {
            return self.watch_by_pidfd(process);
        }
        if !now.is_exiting() {
            return Err(WatchError::Refused(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        self.look_later(process.pid);
        Ok(process)
    }

    /// Looks again at one that is exiting and has no pidfd.
    fn look_later(&mut self, pid: i32) {
        let Some(watched) = self.watched.get_mut(&pid) else { return };
        let deadline = Instant::now() + watched.pause;
        watched.pause = (watched.pause * 2).min(LOOK_AGAIN[1]);
        watched.deadline = Some(deadline);
        self.unreaped.insert((deadline, pid));
    }

    /// Watches by a pidfd, besides or in place of the table.
    fn watch_by_pidfd(&mut self, process: Process) -> Result<Process, WatchError> {
        let opened = sys::pidfd_open(process.pid).and_then(|pidfd| {
            self.epoll.add(pidfd.as_fd(), process.pid as u64)?;
            Ok(pidfd)
        });
        match opened {
            // The pid may have been used again since we looked.
            Ok(pidfd) => match self.proc.look(process.pid) {
                Ok(Some(now)) if now.start_time == process.start_time => {
                    if let Some(watched) = self.watched.get_mut(&process.pid) {
                        watched.pidfd = Some(pidfd);
                    }
                    Ok(process)
                }
                Ok(_) => {
                    self.give_up_on(process);
                    Ok(process)
                }
                Err(error) => {
                    self.epoll.remove(pidfd.as_fd());
                    Err(WatchError::Refused(error))
                }
            },
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.give_up_on(process);
                Ok(process)
            }
            Err(error) => Err(WatchError::Refused(error)),
        }
    }

    /// This runtime makes a process whose pid will be known only later, when it may have ended: until
    /// [`has_made`](Self::has_made) the ends of processes younger than the runtime are kept for [`recall`](Self::recall).
    /// Only with BPF; meanwhile the end of each such process costs a write to a table in the kernel.
    pub(crate) fn makes(&mut self, runtime: Process) {
        if self.records.is_some() && self.makers.insert((runtime.start_time, runtime.pid)) {
            self.keep_young();
        }
    }

    /// The runtime has made what it makes, and its pid is known, or will not be.
    pub(crate) fn has_made(&mut self, runtime: Process) {
        if self.makers.remove(&(runtime.start_time, runtime.pid)) {
            self.keep_young();
        }
    }

    fn keep_young(&mut self) {
        if let Some(records) = &mut self.records {
            records.keep_young(self.makers.first().map(|(since, _)| (*since).max(1)));
        }
    }

    /// The end of the process that had this pid last and was not watched, if it began when this runtime did or later and its
    /// end was kept.
    pub(crate) fn recall(&self, pid: i32, runtime: Process) -> Option<Ended> {
        let records = self.records.as_ref()?;
        let record = records.young(pid).filter(|young| young.process.start_time >= runtime.start_time)?;
        let status = Some(ExitStatus::from_raw(record.status));
        Some(Ended { process: record.process, status, oom_killed: None, at: records.instant(&record) })
    }

    /// Ends a watch without a report.
    pub(crate) fn unwatch(&mut self, process: Process) {
        self.forget(process);
        self.ended.retain(|ended| ended.process != process);
    }

    /// Whether this very process lives.
    pub(crate) fn is_alive(&self, process: Process) -> bool {
        self.proc.stat(process.pid).is_some_and(|now| now.start_time == process.start_time && !now.is_dead())
    }

    /// Sends a signal to this very process; ESRCH where it is gone, whoever has its pid now.
    /// Without a pidfd, as in another pid namespace than the process's: EXDEV.
    pub(crate) fn kill(&self, process: Process, signal: i32) -> io::Result<()> {
        if self.proc.is_foreign() {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let pidfd = sys::pidfd_open(process.pid)?;
        // In this order: the pidfd holds on to a process, and this says whether it is the one.
        match self.proc.look(process.pid)? {
            Some(now) if now.start_time == process.start_time => {
                sys::pidfd_send_signal(pidfd.as_fd(), signal)
            }
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Appends what has ended since the last call. Takes a bounded number at a time; [`fd`](Self::fd) stays readable while
    /// there are more.
    ///
    /// With `later` whether records were lost is asked in the next call, which [`next_deadline`](Self::next_deadline) then
    /// wants at once.
    pub(crate) fn drain(&mut self, out: &mut Vec<Ended>, later: bool) {
        // The pidfds are asked before the ring is read: a process passes the tracepoint before its pidfd is told, so what
        // the ring has to say of it is there by then.
        let mut ready = std::mem::take(&mut self.ready);
        self.epoll.ready(&mut ready);
        self.read_records(later);
        for Ready { token, hung_up } in ready.drain(..) {
            if let Ok(pid) = i32::try_from(token) {
                self.pidfd_is_ready(pid, hung_up);
            }
        }
        self.ready = ready;
        self.pass_deadlines();
        self.bell.silence();
        out.append(&mut self.ended);
    }

    fn read_records(&mut self, later: bool) {
        let Some(mut records) = self.records.take() else { return };
        let mut read = 0;
        while let Some(record) = records.next() {
            self.recorded(&mut records, &record);
            read += 1;
        }
        let mut in_doubt = Vec::new();
        // Many at once may have been more than the ring has room for.
        if self.losses.is_time(read >= MANY, later, Instant::now()) && records.has_lost() {
            let all: Vec<Process> =
                self.watched.iter().map(|(&pid, w)| Process { pid, start_time: w.start_time }).collect();
            for process in all {
                match records.left_behind(process) {
                    Some(record) => self.recorded(&mut records, &record),
                    None => in_doubt.push(process),
                }
            }
        }
        self.records = Some(records);
        for process in in_doubt {
            // Its record may be on its way still, or it may be alive, as most are.
            self.look_again(process);
        }
    }

    fn recorded(&mut self, records: &mut Records, record: &Record) {
        // Two threads that leave at the same time both record the end, and a watch may have ended meanwhile.
        if self.take(record.process) {
            let status = ExitStatus::from_raw(record.status);
            let killed = status.signal() == Some(libc::SIGKILL);
            let oom_killed = if killed { records.was_victim(record) } else { None };
            records.remove(record.process.pid);
            let at = records.instant(record);
            self.ended.push(Ended { process: record.process, status: Some(status), oom_killed, at });
        }
    }

    /// After records were lost: one that is about to end, or has, gets a pidfd.
    fn look_again(&mut self, process: Process) {
        let looked_for = |watched: &Watched| watched.pidfd.is_some() || watched.deadline.is_some();
        if self.watched.get(&process.pid).is_none_or(looked_for) {
            return;
        }
        match self.proc.look(process.pid) {
            Ok(Some(now)) if now.start_time == process.start_time && !now.is_exiting() => {}
            // It is more likely to live than not.
            Err(_) => {}
            Ok(Some(now)) if now.start_time == process.start_time => {
                if self.watch_otherwise(process, &now).is_err() {
                    let status = now.is_dead().then(|| self.proc.exit_status(process)).flatten();
                    self.end(process, status);
                }
            }
            _ => self.end(process, None),
        }
    }

    fn pidfd_is_ready(&mut self, pid: i32, hung_up: bool) {
        let Some(watched) = self.watched.get(&pid) else { return };
        let Some(pidfd) = &watched.pidfd else { return };
        let process = Process { pid, start_time: watched.start_time };
        // A pidfd is told after the state has become that of a zombie.
        let status = self.proc.exit_status(process).or_else(|| sys::pidfd_exit_status(pidfd.as_fd()));
        if status.is_none() && self.status_by_pidfd && !hung_up && watched.deadline.is_none() {
            // Not reaped yet, and we may not read the zombie's code: the hang-up says when to ask again.
            if self.epoll.change(pidfd.as_fd(), pid as u64, Interest::HungUp).is_ok() {
                let deadline = Instant::now() + REAP_GRACE;
                self.unreaped.insert((deadline, pid));
                if let Some(watched) = self.watched.get_mut(&pid) {
                    watched.deadline = Some(deadline);
                }
                return;
            }
        }
        self.end(process, status);
    }

    fn pass_deadlines(&mut self) {
        while let Some(&(deadline, pid)) = self.unreaped.first() {
            if deadline > Instant::now() {
                return;
            }
            self.unreaped.pop_first();
            let Some(watched) = self.watched.get(&pid) else { continue };
            let process = Process { pid, start_time: watched.start_time };
            match &watched.pidfd {
                Some(pidfd) => self.end(process, sys::pidfd_exit_status(pidfd.as_fd())),
                None => self.look_once_more(process),
            }
        }
    }

    fn look_once_more(&mut self, process: Process) {
        match self.proc.look(process.pid) {
            Ok(Some(now)) if now.start_time == process.start_time && !now.is_dead() => {
                self.look_later(process.pid);
            }
            Ok(Some(now)) if now.start_time == process.start_time => {
                self.read_records(false);
                self.end(process, self.proc.exit_status(process));
            }
            Ok(_) => self.give_up_on(process),
            Err(_) => self.look_later(process.pid),
        }
    }

    /// The process is gone without its pidfd having told us: only a record that has not been read may know how.
    fn give_up_on(&mut self, process: Process) {
        self.read_records(false);
        self.end(process, None);
        self.bell.ring();
    }

    fn end(&mut self, process: Process, status: Option<i32>) {
        if self.take(process) {
            if let Some(records) = &mut self.records {
                records.remove(process.pid);
            }
            self.tell(process, status);
        }
    }

    fn tell(&mut self, process: Process, status: Option<i32>) {
        let status = status.map(ExitStatus::from_raw);
        let now = Ended { process, status, oom_killed: None, at: Instant::now() };
        let kept = || self.recall(process.pid, process).filter(|kept| kept.process == process);
        let ended = if status.is_none() { kept().unwrap_or(now) } else { now };
        self.ended.push(ended);
        self.bell.ring();
    }

    fn forget(&mut self, process: Process) {
        if self.take(process)
            && let Some(records) = &mut self.records
        {
            records.remove(process.pid);
        }
    }

    /// Takes a process off the list; false where it is not on it.
    fn take(&mut self, process: Process) -> bool {
        match self.watched.get(&process.pid) {
            Some(watched) if watched.start_time == process.start_time => {
                if let Some(deadline) = watched.deadline {
                    self.unreaped.remove(&(deadline, process.pid));
                }
                if let Some(pidfd) = self.watched.remove(&process.pid).and_then(|watched| watched.pidfd) {
                    // Closing it would not do where a forked process holds a copy of it.
                    self.epoll.remove(pidfd.as_fd());
                }
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
