//! The supervisor: a small process that starts the listener, watches it, and kills one that would freeze the host.
//!
//! What a listener holds waits until it answers or ends. One that is stopped (SIGSTOP, a debugger), stuck, spinning or
//! swapped out does neither, and every execution of a container runtime on the host waits with it. So commands that hold
//! are run by a child: this program again, with an option that says who its parent is. The parent has no thread and
//! nothing to do with fanotify. The child writes a byte to a pipe each time its engine has come round; where none comes
//! for too long, or where the kernel says that the child was stopped, it is killed, and the kernel lets everything go that
//! it held. Then another one is started, which tells the containers that came meanwhile as those that were there before.
//!
//! The child dies with its parent, so that nobody is left who is not watched.
//!
//! Time is counted in slices of the limit, each of which counts once however long it took: where the supervisor itself
//! was stopped together with its listener, or the host slept, the listener gets its whole time again.

use std::fmt;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, kill_process, waitid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGKILL, SIGTERM, SIGTSTP};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::args::duration;
use crate::failure::FAILED;
use crate::hooks::Channel;
use crate::listener::{ALIVE, ENDS, PANICKED, Supervised};
use crate::signals;
use crate::systemd::{self, Systemd};

/// The limit's slices.
const SLICES: u32 = 8;

/// How long a listener may take until all runtimes are marked: the kernel's types are read, and every engine's settings.
const START: Duration = Duration::from_secs(30);

/// How long it may take to end, once it was asked to: whoever reads its output may be slow.
const END: Duration = Duration::from_secs(10);

/// Between a listener's death and the next one, the first time; doubled each time that the next one dies soon.
const BACK_OFF: Duration = Duration::from_millis(100);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// A listener that lived this long has not died soon.
const SOUND: Duration = Duration::from_secs(60);

/// So many that were killed before they listened, and no next one is tried.
const HOPELESS: u32 = 5;

/// The option of commands that hold.
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchdogArgs {
    /// Kill and restart the listener when it is stopped, or stuck for this long; off: run without a supervisor
    ///
    /// A listener that is stopped or stuck would freeze every execution of a container runtime on the host. So a small
    /// process watches it. Containers that came while nobody listened are told as `existing`.
    #[arg(long, value_name = "DURATION|off", default_value = "2s", help_heading = "Running")]
    watchdog: Limit,
}

impl WatchdogArgs {
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.watchdog.0
    }
}

/// `None`: off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<Duration>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        if words == "off" {
            return Ok(Limit(None));
        }
        let limit = duration(words).map_err(|hint| format!("{hint}, or off"))?;
        // A process that is not stuck may be late by this much where the processors are busy.
        if !(Duration::from_millis(200)..=Duration::from_secs(3600)).contains(&limit) {
            return Err("give 200ms to 1h, or off".into());
        }
        Ok(Limit(Some(limit)))
    }
}

/// How a listener's life ended.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// By itself, with this code.
    Left(i32),
    /// By a signal of somebody else.
    Died(i32),
    /// It was killed here.
    Killed(Why),
}

#[derive(Debug, PartialEq, Eq)]
enum Why {
    Stopped,
    Silent(Duration),
    NeverReady,
    /// It was asked to end, and did not.
    Lingered,
    /// The user asked twice.
    AskedAgain,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Left(code) => write!(f, "the listener ended with exit code {code}"),
            Fate::Died(signal) => write!(f, "the listener was killed by signal {signal}"),
            Fate::Killed(Why::Stopped) => {
                f.write_str("the listener was stopped, and so killed: what it held goes on")
            }
            Fate::Killed(Why::Silent(limit)) => {
                write!(f, "the listener was stuck for {limit:?}, and so killed: what it held goes on")
            }
            Fate::Killed(Why::NeverReady) => {
                write!(f, "the listener was not ready after {START:?}, and so killed")
            }
            Fate::Killed(Why::Lingered) => {
                write!(f, "the listener did not end within {END:?}, and so was killed")
            }
            Fate::Killed(Why::AskedAgain) => {
                f.write_str("the listener was killed, as it was asked to end again")
            }
        }
    }
}

/// Runs this program's command by a child, and by others after it. The result is the exit code.
///
/// # Errors
///
/// When a child cannot be started, or none comes to listen.
pub(crate) fn run(limit: Duration, hooks: Option<&Channel>) -> anyhow::Result<ExitCode> {
    let mut supervisor = Supervisor::new(limit)?;
    let terminal = Terminal::save();
    let (mut restarts, mut in_a_row, mut hopeless) = (0, 0, 0);
    loop {
        let born = Instant::now();
        let mut listener = supervisor.start(restarts, hooks).context("cannot start the listener")?;
        let fate = supervisor.watch(&mut listener).context("cannot watch the listener")?;
        if let Fate::Left(code) = fate
            && code != PANICKED
        {
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED)));
        }
        terminal.restore();
        if let Some(asked) = supervisor.asked {
            return Ok(match fate {
                Fate::Died(signal) if signal == asked => ended_by(signal),
                Fate::Killed(Why::AskedAgain) => ended_by(asked),
                fate => {
                    tracing::warn!("{fate}");
                    ExitCode::from(FAILED)
                }
            });
        }
        in_a_row = if born.elapsed() < SOUND { in_a_row + 1 } else { 1 };
        hopeless = if listener.ready { 0 } else { hopeless + 1 };
        if hopeless >= HOPELESS {
            anyhow::bail!("{fate}; {HOPELESS} in a row have not come to listen");
        }
        let pause = back_off(in_a_row);
        tracing::warn!("{fate}; the next one is started in {pause:?}");
        if let Some(systemd) = &supervisor.systemd {
            systemd.status(&fate.to_string());
        }
        if supervisor.is_asked_within(pause)? {
            return Ok(ExitCode::SUCCESS);
        }
        restarts += 1;
    }
}

fn back_off(in_a_row: u32) -> Duration {
    BACK_OFF.saturating_mul(1 << in_a_row.saturating_sub(1).min(16)).min(LONGEST_BACK_OFF)
}

/// As a shell says it.
fn ended_by(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(FAILED))
}

struct Supervisor {
    limit: Duration,
    born: Instant,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    systemd: Option<Systemd>,
    /// The first signal that asked for the end.
    asked: Option<i32>,
    /// There was another one.
    asked_again: bool,
}

struct Listener {
    pid: Pid,
    /// `None` once the other end is closed.
    pipe: Option<PipeReader>,
    /// Its engine has come round.
    ready: bool,
    /// It is ending, and its engine will not come round any more.
    ends: bool,
}

/// What came of sleeping.
enum Woken {
    /// The listener gave a sign of life.
    Heard,
    /// Something else happened, perhaps.
    Early,
    /// Nothing happened.
    Late,
}

impl Supervisor {
    fn new(limit: Duration) -> anyhow::Result<Supervisor> {
        let (read, write) = UnixStream::pair().context("cannot make a socket for signals")?;
        // All are caught: one that is ignored would be ignored in the child too.
        let which = [SIGINT, SIGTERM, SIGTSTP, SIGCHLD];
        let signals =
            SignalDelivery::with_pipe(read, write, SignalOnly, which).context("cannot listen for signals")?;
        let systemd = Systemd::of_environment().context("cannot reach systemd by NOTIFY_SOCKET")?;
        Ok(Supervisor { limit, born: Instant::now(), signals, systemd, asked: None, asked_again: false })
    }

    fn start(&self, restarts: u32, hooks: Option<&Channel>) -> io::Result<Listener> {
        let (pipe, theirs) = io::pipe()?;
        // There is no other thread, whose child could inherit it too.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let told = Supervised {
            pipe: theirs.as_raw_fd(),
            supervisor: std::process::id().cast_signed(),
            restarts,
            since: self.born.elapsed(),
        };
        let mut words = std::env::args_os();
        // This very program, even where its file has been replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.arg(format!("--supervised={told}"));
        if let Some(hooks) = hooks {
            command.arg(format!("--hooks={}", hooks.to_inherit()?));
        }
        command.args(words);
        for name in systemd::VARIABLES {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        // Waited for below, by its pid: `Child` cannot tell that it was stopped.
        let pid = Pid::from_child(&child);
        Ok(Listener { pid, pipe: Some(pipe), ready: false, ends: false })
    }

    /// Until it has ended, one way or another.
    fn watch(&mut self, listener: &mut Listener) -> io::Result<Fate> {
        let slice = self.limit / SLICES;
        let slices =
            |time: Duration| u32::try_from(time.as_nanos() / slice.as_nanos().max(1)).unwrap_or(u32::MAX);
        let (mut silent, mut passed_on) = (0, false);
        let mut killed = None;
        loop {
            let change = listener.change()?;
            // Whoever ended it by a key has ended it before it died of that.
            self.hear_signals();
            if let Some(Change::Ended(fate)) = change {
                return Ok(match (fate, killed) {
                    (Fate::Died(SIGKILL), Some(why)) => Fate::Killed(why),
                    (fate, _) => fate,
                });
            }
            if let Some(signal) = self.asked
                && !passed_on
            {
                passed_on = true;
                if let Some(systemd) = &self.systemd {
                    systemd.stopping();
                }
                // From a terminal it has got it too; it takes two for one.
                listener.kill(signal);
            }
            let (most, why) = match (listener.ready, listener.ends) {
                (_, true) => (slices(END), Why::Lingered),
                (false, _) => (slices(START.max(self.limit)), Why::NeverReady),
                (true, _) => (SLICES, Why::Silent(self.limit)),
            };
            let why = match change {
                Some(Change::Stopped) => Some(Why::Stopped),
                _ if self.asked_again => Some(Why::AskedAgain),
                _ => (silent >= most).then_some(why),
            };
            if let Some(why) = why
                && killed.is_none()
            {
                listener.kill(SIGKILL);
                killed = Some(why);
                silent = 0;
            } else if killed.is_some() && silent == slices(END) {
                tracing::warn!(
                    "the listener was killed, and has not ended: is its cgroup frozen, or a disk stuck?"
                );
            }
            match self.sleep(slice, Some(listener))? {
                Woken::Heard => {
                    silent = 0;
                    if let Some(systemd) = self.systemd.as_mut().filter(|_| listener.ready && !listener.ends)
                    {
                        systemd.beat();
                    }
                }
                Woken::Early => {}
                Woken::Late => silent = silent.saturating_add(1),
            }
        }
    }

    fn is_asked_within(&mut self, pause: Duration) -> io::Result<bool> {
        let until = Instant::now() + pause;
        while self.asked.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.sleep(left, None)?;
            self.hear_signals();
        }
        Ok(true)
    }

    fn sleep(&self, time: Duration, listener: Option<&mut Listener>) -> io::Result<Woken> {
        let timeout = Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pipe = listener.as_ref().and_then(|listener| listener.pipe.as_ref());
        let mut fds = vec![PollFd::new(self.signals.get_read(), PollFlags::IN)];
        fds.extend(pipe.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(Woken::Late),
            Err(rustix::io::Errno::INTR) => return Ok(Woken::Early),
            ready => ready?,
        };
        let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let heard = match listener {
            Some(listener) if readable => listener.listen()?,
            _ => false,
        };
        Ok(if heard { Woken::Heard } else { Woken::Early })
    }

    fn hear_signals(&mut self) {
        for signal in self.signals.pending() {
            match signal {
                SIGINT | SIGTERM if self.asked.is_some() => self.asked_again = true,
                SIGINT | SIGTERM => self.asked = Some(signal),
                SIGTSTP => signals::refuse_to_stop(),
                _ => {}
            }
        }
    }
}

enum Change {
    Stopped,
    Ended(Fate),
}

impl Listener {
    /// What the kernel says of it that it has not said yet.
    fn change(&self) -> io::Result<Option<Change>> {
        let which = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let Some(status) = waitid(WaitId::Pid(self.pid), which)? else { return Ok(None) };
        Ok(if status.stopped() {
            Some(Change::Stopped)
        } else if let Some(code) = status.exit_status() {
            Some(Change::Ended(Fate::Left(code)))
        } else {
            status.terminating_signal().map(|signal| Change::Ended(Fate::Died(signal)))
        })
    }

    fn kill(&self, signal: i32) {
        // Nobody else waits for it, so the pid is its own. It fails only where this process may not: nothing would help.
        if let Some(signal) = Signal::from_named_raw(signal)
            && let Err(error) = kill_process(self.pid, signal)
        {
            tracing::warn!("cannot send signal {signal:?} to the listener: {error}");
        }
    }

    /// Reads its signs of life; `false` when there is none.
    fn listen(&mut self) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else { return Ok(false) };
        let mut signs = [0; 64];
        let signs = match pipe.read(&mut signs) {
            // It is about to end, and waitid will say how.
            Ok(0) => {
                self.pipe = None;
                return Ok(false);
            }
            Ok(count) => signs.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        self.ready |= signs.contains(&ALIVE);
        self.ends |= signs.contains(&ENDS);
        Ok(true)
    }
}

/// The terminal as it was: a listener that shows a screen and is killed leaves it in a state that nobody can use.
struct Terminal(Option<Termios>);

impl Terminal {
    fn save() -> Terminal {
        Terminal(tcgetattr(io::stdin()).ok())
    }

    fn restore(&self) {
        let Some(before) = &self.0 else { return };
        // To change a terminal from its background would stop this process.
        if tcgetpgrp(io::stdin()).ok() != Some(getpgrp()) {
            return;
        }
        let Ok(now) = tcgetattr(io::stdin()) else { return };
        if now.local_modes != before.local_modes
            && tcsetattr(io::stdin(), OptionalActions::Now, before).is_ok()
        {
            // Back from the second screen, with a cursor.
            let _ = io::stdout().write_all(b"\x1b[?1049l\x1b[?25h");
            let _ = io::stdout().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_bounds_or_is_off() {
        assert_eq!("off".parse(), Ok(Limit(None)));
        assert_eq!("2s".parse(), Ok(Limit(Some(Duration::from_secs(2)))));
        assert_eq!("200ms".parse(), Ok(Limit(Some(Duration::from_millis(200)))));
        for words in ["0s", "199ms", "61m", "2", "on", ""] {
            let error = words.parse::<Limit>().unwrap_err();
            assert!(error.ends_with("or off"), "{words:?}: {error}");
        }
    }

    #[test]
    fn each_death_makes_the_next_pause_longer_up_to_a_bound() {
        let pauses: Vec<u128> = [1, 2, 3, 7, 8, 9, 100, u32::MAX].map(|n| back_off(n).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 6400, 10_000, 10_000, 10_000, 10_000]);
    }
}
