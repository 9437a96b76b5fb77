//! Who is told, and what may be answered.

use crate::change::ConfigChange;
use crate::config::Config;
use crate::event::{ContainerEvent, Record};

/// What a handler answers to a held event.
///
/// `()` is an allowance, so a closure that returns nothing watches. Where nothing is held a decision has no effect.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Decision(pub(crate) Choice);

#[derive(Clone, Debug, Default)]
pub(crate) enum Choice {
    #[default]
    Allow,
    Deny(String),
    Change(Config),
}

impl Decision {
    /// The container goes on.
    pub fn allow() -> Self {
        Decision(Choice::Allow)
    }

    /// The container is refused. The reason is logged and recorded; what the engine shows its user is in
    /// `docs/answers.md`.
    pub fn deny(reason: impl Into<String>) -> Self {
        Decision(Choice::Deny(reason.into()))
    }

    /// The container goes on with another configuration, which is written before the runtime reads it.
    ///
    /// It counts at [`PreCreate`](crate::EventKind::PreCreate) only; elsewhere it allows, and the record says so. Where it
    /// cannot be written (a full disk) the container goes on unchanged, or is refused, as
    /// [`Builder::on_timeout`](crate::Builder::on_timeout) says, and the record says why. A value that is no JSON object
    /// refuses: no runtime would take it.
    ///
    /// ```
    /// use containerhook::{ConfigChange, ContainerEvent, Decision, EventKind};
    ///
    /// fn handler(event: &ContainerEvent) -> Decision {
    ///     let Some(config) = event.config().filter(|_| event.kind() == EventKind::PreCreate) else {
    ///         return Decision::allow();
    ///     };
    ///     match ConfigChange::of(config) {
    ///         Ok(mut change) => {
    ///             change.add_env("TRACE", "1");
    ///             Decision::change(&change)
    ///         }
    ///         Err(error) => Decision::deny(error.to_string()),
    ///     }
    /// }
    /// ```
    pub fn change(change: &ConfigChange) -> Self {
        match Config::from_bytes(change.to_bytes()) {
            Ok(config) => Decision(Choice::Change(config)),
            Err(error) => Decision::deny(format!("the changed configuration: {error}")),
        }
    }
}

impl From<()> for Decision {
    fn from((): ()) -> Self {
        Decision::allow()
    }
}

/// Who is told of containers, and answers.
///
/// Implemented for closures `Fn(&ContainerEvent) -> impl Into<Decision>`. It is called on threads of the notifier's
/// own, for different containers at the same time, for one container one event after the other. It may take its time
/// until the event's [`deadline`](ContainerEvent::deadline), may run container runtimes and engines itself, and may
/// panic: that counts as no answer.
pub trait Handler: Send + Sync + 'static {
    /// An event has happened; where it is held, the container waits for what this returns.
    fn on_event(&self, event: &ContainerEvent) -> Decision;
}

impl<F, D> Handler for F
where
    F: Fn(&ContainerEvent) -> D + Send + Sync + 'static,
    D: Into<Decision>,
{
    fn on_event(&self, event: &ContainerEvent) -> Decision {
        self(event).into()
    }
}

/// Who gets the records: events that are complete, numbered, one after the other on one thread.
pub(crate) type RecordFn = Box<dyn Fn(&Record) + Send + 'static>;
