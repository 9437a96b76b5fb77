//! Events one by one, for programs that would rather pull than be called.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use crate::event::ContainerEvent;
use crate::handler::{Decision, Handler};

/// How long an event whose answer has no effect is offered before the next of its container may come.
const UNHELD: Duration = Duration::from_secs(10);

/// The events of a notifier, one by one: an iterator that blocks for the next and ends with the notifier.
///
/// Each is an [`EventTurn`]: the container is held until it is answered, dropped, or its deadline has passed.
///
/// ```no_run
/// use containerhook::{ContainerNotifier, Decision};
///
/// let (notifier, events) = ContainerNotifier::builder().start_iter()?;
/// for turn in events {
///     println!("{} {}", turn.kind(), turn.id());
///     turn.answer(Decision::allow());
/// }
/// # drop(notifier);
/// # Ok::<(), containerhook::Error>(())
/// ```
#[derive(Debug)]
pub struct Events(Receiver<EventTurn>);

impl Events {
    pub(crate) fn pair() -> (impl Handler, Events) {
        let (sender, receiver) = mpsc::channel();
        (Queue(sender), Events(receiver))
    }

    /// The next event, if one comes in time.
    #[must_use]
    pub fn next_timeout(&self, timeout: Duration) -> Option<EventTurn> {
        self.0.recv_timeout(timeout).ok()
    }

    /// The next event, if one is there.
    #[must_use]
    pub fn try_next(&self) -> Option<EventTurn> {
        self.0.try_recv().ok()
    }
}

impl Iterator for Events {
    type Item = EventTurn;

    fn next(&mut self) -> Option<EventTurn> {
        self.0.recv().ok()
    }
}

/// An event and the right to answer it. Dropped, it allows. It dereferences to its [`ContainerEvent`].
#[derive(Debug)]
#[must_use = "dropped, it allows"]
pub struct EventTurn {
    event: ContainerEvent,
    answer: SyncSender<Decision>,
}

impl EventTurn {
    /// Answers, and lets the container go on where it was held.
    pub fn answer(self, decision: impl Into<Decision>) {
        // The other side is gone once the deadline has passed: the answer is late, and has no effect.
        let _ = self.answer.send(decision.into());
    }
}

impl std::ops::Deref for EventTurn {
    type Target = ContainerEvent;

    fn deref(&self) -> &ContainerEvent {
        &self.event
    }
}

struct Queue(mpsc::Sender<EventTurn>);

impl Handler for Queue {
    fn on_event(&self, event: &ContainerEvent) -> Decision {
        let (answer, answered) = mpsc::sync_channel(1);
        let turn = EventTurn { event: event.clone(), answer };
        if self.0.send(turn).is_err() {
            return Decision::allow();
        }
        let patience = event.deadline().map_or(UNHELD, |at| at.saturating_duration_since(Instant::now()));
        // A turn that is dropped closes the channel, which allows. Past the deadline the engine has answered already.
        answered.recv_timeout(patience).unwrap_or_default()
    }
}
