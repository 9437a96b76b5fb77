//! How other threads reach the engine: by messages, and a bell that is rung only where it sleeps.
//!
//! A message whose bell is not rung would lie there until something else wakes the engine, and with it what it answers
//! for. So the engine says that it is about to sleep *before* it looks for messages a last time, and whoever posts one
//! looks whether it sleeps *after* that: of two that meet, one sees the other.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::linger::{self, Linger};
use crate::sys::{Bell, Poll, Ready};

/// Where messages are posted. There is one for each side of the descriptor tables, each with its own copy of the bell.
pub(crate) struct Mailbox<M> {
    sender: Sender<M>,
    bell: Bell,
    /// The engine does not look for messages until the bell is rung.
    sleeps: Arc<AtomicBool>,
}

/// What all mailboxes of an engine share; no descriptor is among it.
pub(crate) struct Address<M> {
    sender: Sender<M>,
    sleeps: Arc<AtomicBool>,
}

impl<M> Address<M> {
    pub(crate) fn new() -> (Address<M>, Receiver<M>) {
        let (sender, receiver) = mpsc::channel();
        (Address { sender, sleeps: Arc::new(AtomicBool::new(true)) }, receiver)
    }

    /// The mailbox of the side that this copy of the bell belongs to.
    pub(crate) fn mailbox(&self, bell: Bell) -> Mailbox<M> {
        Mailbox { sender: self.sender.clone(), bell, sleeps: Arc::clone(&self.sleeps) }
    }
}

impl<M> Mailbox<M> {
    pub(crate) fn post(&self, message: M) {
        // Where the engine has ended the message is dropped, and with it the channel that its answer would have come by.
        if self.sender.send(message).is_ok() {
            // Either this sees that the engine is about to sleep, or the engine sees the message before it does.
            fence(Ordering::SeqCst);
            if self.sleeps.load(Ordering::Relaxed) {
                self.bell.ring();
            }
        }
    }
}

/// The engine's end: messages, and what else it waits for.
pub(crate) struct Inbox<M> {
    receiver: Receiver<M>,
    own: Arc<Mailbox<M>>,
    poll: Poll,
    /// A message that was found before the engine slept.
    found: Option<M>,
    linger: Linger,
}

/// What an [`Inbox`] calls its bell among what can be read.
pub(crate) const BELL: u64 = u64::MAX;

impl<M> Inbox<M> {
    /// `own` is the mailbox of the engine's own side.
    pub(crate) fn new(receiver: Receiver<M>, own: Arc<Mailbox<M>>, linger: Linger) -> io::Result<Inbox<M>> {
        let poll = Poll::new()?;
        poll.add(own.bell.as_fd(), BELL)?;
        Ok(Inbox { receiver, own, poll, found: None, linger })
    }

    /// Waits for this too from now on.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.poll.add(fd, token)
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox<M>> {
        &self.own
    }

    /// The next message that is there.
    pub(crate) fn next(&mut self) -> Option<M> {
        self.found.take().or_else(|| self.receiver.try_recv().ok())
    }

    /// Waits for a message, for what was [added](Self::add), or until `due`: awake at first, where something should come
    /// `soon`. A message that is there by then is told as a bell that was rung.
    pub(crate) fn wait(&mut self, due: Option<Instant>, soon: bool) -> Ready {
        let begin = Instant::now();
        let awake = if soon { self.linger.awake() } else { Duration::ZERO };
        let look = || match self.poll.look() {
            Ready::Nothing => {
                self.found = self.receiver.try_recv().ok();
                self.found.as_ref().map(|_| Ready::Only(BELL))
            }
            ready => Some(ready),
        };
        let ready = linger::look(awake, look).unwrap_or_else(|| self.sleep(due));
        if soon {
            self.linger.came_after(begin.elapsed());
        }
        if matches!(ready, Ready::Only(BELL) | Ready::Several) && self.found.is_none() {
            self.own.bell.silence();
        }
        ready
    }

    fn sleep(&mut self, due: Option<Instant>) -> Ready {
        self.own.sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.found = self.receiver.try_recv().ok();
        let ready = match self.found {
            None => self.poll.wait(due),
            // However many messages there are, what the kernel holds has its turn.
            Some(_) => match self.poll.look() {
                Ready::Nothing => Ready::Only(BELL),
                ready => ready,
            },
        };
        self.own.sleeps.store(false, Ordering::Relaxed);
        ready
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    fn inbox(most: Duration) -> Inbox<u32> {
        let (address, receiver) = Address::new();
        let own = Arc::new(address.mailbox(Bell::new().unwrap()));
        Inbox::new(receiver, own, Linger::new(most)).unwrap()
    }

    /// One message at a time, so that no later one wakes whoever sleeps over an earlier one, at every moment of going to
    /// sleep.
    #[test]
    fn each_message_is_found_whether_it_is_waited_for_awake_or_asleep() {
        const EACH: u32 = 10_000;
        for most in [Duration::ZERO, Duration::from_micros(5), Duration::from_micros(50)] {
            let mut inbox = inbox(most);
            let mailbox = Arc::clone(inbox.mailbox());
            let (taken, over) = (AtomicU32::new(0), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..EACH {
                        mailbox.post(n);
                        // Awake itself: it is to post within the few instructions in which the other falls asleep.
                        let mut spun = 0;
                        while taken.load(Ordering::Acquire) <= n && !over.load(Ordering::Relaxed) {
                            spun += 1;
                            // But for a machine with one processor.
                            if spun % 10_000 == 0 { thread::yield_now() } else { std::hint::spin_loop() }
                        }
                        let pause = if n % 2 == 0 { n % 400 } else { n % 20_000 };
                        for _ in 0..pause {
                            std::hint::black_box(n);
                        }
                    }
                });
                let mut next = 0;
                let ready = loop {
                    // Some waits are not awake at all, whatever is permitted.
                    let ready = inbox.wait(Some(Instant::now() + LONG), next % 3 > 0);
                    while let Some(n) = inbox.next() {
                        assert_eq!(n, next);
                        next += 1;
                        taken.store(next, Ordering::Release);
                    }
                    if next == EACH || ready == Ready::Nothing {
                        break ready;
                    }
                };
                over.store(true, Ordering::Relaxed);
                assert_ne!(ready, Ready::Nothing, "message {next} lay there and nobody was woken");
            });
        }
    }

    #[test]
    fn a_stream_of_messages_hides_nothing_else_that_can_be_read() {
        let mut inbox = inbox(Duration::from_micros(50));
        let other = Bell::new().unwrap();
        inbox.add(other.as_fd(), 7).unwrap();
        for soon in [true, false] {
            // There are always more messages than are taken.
            inbox.mailbox().post(1);
            inbox.mailbox().post(2);
            other.ring();
            let ready = inbox.wait(Some(Instant::now() + LONG), soon);
            assert!(matches!(ready, Ready::Only(7) | Ready::Several), "{ready:?}");
            assert!(inbox.next().is_some());
            assert!(other.silence());
            let ready = inbox.wait(Some(Instant::now() + LONG), soon);
            assert_eq!(ready, Ready::Only(BELL));
            while inbox.next().is_some() {}
        }
        // With nothing there it waits. A bell whose message was found without it wakes it, once.
        let mut wait = || inbox.wait(Some(Instant::now() + Duration::from_millis(20)), true);
        assert!(matches!(wait(), Ready::Nothing | Ready::Only(BELL)));
        assert_eq!(wait(), Ready::Nothing);
    }
}
