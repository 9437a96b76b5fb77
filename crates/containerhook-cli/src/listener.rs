//! The listener's side of its supervision: what its supervisor told it, and the signs of life that it gives.

use std::fmt;
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process;
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use containerhook::{ContainerNotifier, ErrorKind, Heartbeat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

use crate::failure::Usage;
use crate::systemd::Systemd;

/// Written by the listener for each time that its engine has come round.
pub(crate) const ALIVE: u8 = b'.';
/// It ends, and its engine will not come round any more.
pub(crate) const ENDS: u8 = b'E';

/// The exit code of a listener that has lost its engine: that of a panic.
pub(crate) const PANICKED: i32 = 101;

/// What a supervisor tells the listener that it starts, as the value of an option that people do not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Supervised {
    /// The pipe that signs of life are written to.
    pub(crate) pipe: RawFd,
    /// Its pid.
    pub(crate) supervisor: i32,
    /// How many listeners were there before this one.
    pub(crate) restarts: u32,
    /// How long ago the first one was started.
    pub(crate) since: Duration,
}

impl fmt::Display for Supervised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Supervised { pipe, supervisor, restarts, since } = self;
        write!(f, "{pipe}:{supervisor}:{restarts}:{}", since.as_millis())
    }
}

impl FromStr for Supervised {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let parse = || {
            let mut words = words.split(':');
            let told = Supervised {
                pipe: words.next()?.parse().ok()?,
                supervisor: words.next()?.parse().ok()?,
                restarts: words.next()?.parse().ok()?,
                since: Duration::from_millis(words.next()?.parse().ok()?),
            };
            words.next().is_none().then_some(told)
        };
        parse().ok_or_else(|| "this option is the supervisor's own".to_owned())
    }
}

impl Supervised {
    /// Ties this process to its supervisor: it dies with it. Call it first, and once.
    pub(crate) fn enter(self) -> anyhow::Result<Supervisor> {
        set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
        // It may have died before that; and nobody else gives this option rightly.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(self.supervisor) {
            return Err(Usage(
                "--supervised is the supervisor's own option, or the supervisor is gone".into(),
            )
            .into());
        }
        Ok(Supervisor { pipe: take(self.pipe)?.into(), restarts: self.restarts, since: self.since })
    }
}

/// A descriptor that whoever started this process has left open for it, by an option that people do not give. Each is taken
/// once, before anything else is opened.
pub(crate) fn take(number: RawFd) -> anyhow::Result<OwnedFd> {
    if number <= 2 {
        return Err(Usage("this option is the supervisor's own".into()).into());
    }
    // A descriptor that is not there is noticed here, before anything owns it.
    // SAFETY: it was opened for this process, which has opened nothing of that number and takes it once.
    unsafe {
        let fd = BorrowedFd::borrow_raw(number);
        fcntl_setfd(fd, FdFlags::CLOEXEC).context("what the supervisor has left open")?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Lets this process open as many descriptors as it is permitted. Each execution that is held takes some, and one that finds
/// none goes by unheld; 1,024, the usual limit, is meant for programs that call `select`.
///
/// Whoever runs hooks has been started before, and keeps the limit that it came with.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// Who watches this listener.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pipe: PipeWriter,
    restarts: u32,
    since: Duration,
}

/// Whoever is to hear that the engine comes round.
#[derive(Debug, Default)]
pub(crate) enum Watcher {
    Supervisor(Supervisor),
    Systemd(Systemd),
    #[default]
    Nobody,
}

impl Watcher {
    /// Without a supervisor.
    pub(crate) fn of_environment() -> anyhow::Result<Watcher> {
        let systemd = Systemd::of_environment().context("cannot reach systemd by NOTIFY_SOCKET")?;
        Ok(systemd.map_or(Watcher::Nobody, Watcher::Systemd))
    }

    /// Has another listener been here before? Then containers may have come that nobody told of.
    pub(crate) fn has_restarted(&self) -> bool {
        matches!(self, Watcher::Supervisor(supervisor) if supervisor.restarts > 0)
    }

    /// How long listeners before this one have been here.
    pub(crate) fn before(&self) -> Duration {
        match self {
            Watcher::Supervisor(supervisor) => supervisor.since,
            Watcher::Systemd(_) | Watcher::Nobody => Duration::ZERO,
        }
    }

    /// Is it the supervisor's part to end this process when it is asked a second time?
    pub(crate) fn is_supervisor(&self) -> bool {
        matches!(self, Watcher::Supervisor(_))
    }

    fn hear(&mut self, sign: u8) -> io::Result<()> {
        match (self, sign) {
            (Watcher::Supervisor(supervisor), sign) => supervisor.pipe.write_all(&[sign]),
            (Watcher::Systemd(systemd), ENDS) => {
                systemd.stopping();
                Ok(())
            }
            (Watcher::Systemd(systemd), _) => {
                systemd.beat();
                Ok(())
            }
            (Watcher::Nobody, _) => Ok(()),
        }
    }
}

/// Signs of life, from a thread of its own, each after the engine has come round. Drop it before the notifier.
#[derive(Debug)]
pub(crate) struct Beats {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Beats {
    /// `limit` is the supervisor's.
    pub(crate) fn start(
        notifier: &ContainerNotifier,
        watcher: Watcher,
        limit: Option<Duration>,
    ) -> anyhow::Result<Beats> {
        let limit = match &watcher {
            Watcher::Supervisor(_) => limit,
            Watcher::Systemd(systemd) => systemd.watchdog(),
            Watcher::Nobody => return Ok(Beats { end: None, thread: None }),
        };
        let heartbeat = notifier.heartbeat();
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("beats".into())
            .spawn(move || beat(&heartbeat, watcher, limit, &ended))
            .context("cannot start the thread that tells that the engine is alive")?;
        Ok(Beats { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(heartbeat: &Heartbeat, mut watcher: Watcher, limit: Option<Duration>, ended: &mpsc::Receiver<()>) {
    // Systemd may want to know no more than that it is ready.
    let (pause, patience) = match limit {
        Some(limit) => (limit / 4, limit),
        None => (Duration::MAX, Duration::from_secs(60)),
    };
    loop {
        match heartbeat.beat(patience) {
            // Of a supervisor that is gone this process dies.
            Ok(()) => drop(watcher.hear(ALIVE)),
            Err(error) if error.kind() == ErrorKind::Closed => {
                if ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    eprintln!("containerhook: {error}");
                    process::exit(PANICKED);
                }
                return;
            }
            // Who hears nothing knows what to do.
            Err(error) => tracing::warn!("{error}"),
        }
        if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            let _ = watcher.hear(ENDS);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_supervisor_tells_is_understood() {
        let told = Supervised { pipe: 5, supervisor: 77, restarts: 2, since: Duration::from_millis(1500) };
        assert_eq!(told.to_string(), "5:77:2:1500");
        assert_eq!("5:77:2:1500".parse(), Ok(told));
        for words in ["", "5", "5:77:2", "5:77:2:1500:9", "a:77:2:1500", "5:77:-2:1500"] {
            assert!(words.parse::<Supervised>().is_err(), "{words:?}");
        }
    }

    #[test]
    fn nobody_takes_a_descriptor_that_is_not_there() {
        assert!(take(1).is_err());
        assert!(take(987_654).is_err());
    }

    #[test]
    fn nobody_else_supervises() {
        let told = Supervised { pipe: 1, supervisor: i32::MAX, restarts: 0, since: Duration::ZERO };
        let error = told.enter().unwrap_err();
        // The test process asked to die with its parent; it takes that back.
        set_parent_process_death_signal(None).unwrap();
        assert!(error.is::<Usage>(), "{error:?}");
    }
}
