//! Whether the engine still turns, and an end of the process when it does not.
//!
//! What a listener holds waits for its engine. One that is stuck (a defect, a page that cannot be read back from swap, a
//! debugger) would freeze every execution of a runtime on the host; when its process ends, the kernel lets everything go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};

use crate::engine::{Command, Message};
use crate::error::{Error, ErrorKind};
use crate::mailbox::Mailbox;

/// Patience is counted in this many parts, each of which counts once however long it took: where the whole process was
/// stopped or the host slept, the engine had no more time than who waits for it.
const PARTS: u32 = 8;

/// Asks a notifier's engine whether it still turns: [`ContainerNotifier::heartbeat`](crate::ContainerNotifier::heartbeat).
///
/// It can be moved to another thread, and does not keep the notifier alive.
#[derive(Clone)]
pub struct Heartbeat {
    mailbox: Arc<Mailbox<Message>>,
}

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeat").finish_non_exhaustive()
    }
}

impl Heartbeat {
    pub(crate) fn of(mailbox: &Arc<Mailbox<Message>>) -> Heartbeat {
        Heartbeat { mailbox: Arc::clone(mailbox) }
    }

    /// Returns when the engine has come round to answering, in the loop in which it reads and answers the kernel's events.
    /// That takes less than a millisecond on a host that is not overloaded. Handlers and what they wait for have no part
    /// in it.
    ///
    /// Time in which this process was stopped counts little.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stuck`] after `patience`, [`ErrorKind::Closed`] after the engine's end.
    pub fn beat(&self, patience: Duration) -> Result<(), Error> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.mailbox.send(Command::Ping { reply });
        for _ in 0..PARTS {
            match answer.recv_timeout(patience / PARTS) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Closed, "the notifier's engine has ended"));
                }
            }
        }
        Err(Error::new(ErrorKind::Stuck, format!("the notifier's engine has not answered for {patience:?}")))
    }
}

/// A thread that ends the process when the engine does not turn. Drop it after the engine has ended.
pub(crate) struct Watchdog {
    closing: Arc<AtomicBool>,
    // Dropping it wakes the thread.
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn start(heartbeat: Heartbeat, limit: Duration) -> Result<Watchdog, Error> {
        let (alive, dropped) = mpsc::channel::<()>();
        let closing = Arc::new(AtomicBool::new(false));
        let is_closing = Arc::clone(&closing);
        thread::Builder::new()
            .name("ch-watchdog".into())
            .spawn(move || {
                while dropped.recv_timeout(limit / 4) == Err(RecvTimeoutError::Timeout) {
                    match heartbeat.beat(limit * 3 / 4) {
                        Ok(()) => {}
                        Err(error)
                            if error.kind() == ErrorKind::Closed && is_closing.load(Ordering::Acquire) =>
                        {
                            return;
                        }
                        Err(error) => end(&error),
                    }
                }
            })
            .map_err(|e| Error::os("cannot start the watchdog's thread", e))?;
        Ok(Watchdog { closing, _alive: alive })
    }

    /// From now on the engine may end.
    pub(crate) fn closing(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

/// Ends this process. By SIGKILL: before an abort closes anything it may write a core, with everything held.
fn end(error: &Error) -> ! {
    let words =
        format!("containerhook: watchdog: {error}: ending this process, so that what it holds goes on\n");
    // Neither a lock that somebody has nor a pipe that nobody reads may delay this.
    let stderr = std::io::stderr();
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&at_once)).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(&stderr, words.as_bytes());
    }
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}
