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
    Deny(String, DenyError),
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
        Decision(Choice::Deny(reason.into(), DenyError::default()))
    }

    /// As [`deny`](Self::deny), and the engine is told this error instead of "operation not permitted", where the kernel
    /// can do that (Linux 6.13).
    pub fn deny_with(reason: impl Into<String>, error: DenyError) -> Self {
        Decision(Choice::Deny(reason.into(), error))
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

/// The error by which a refused execution fails: what the engine sees, and mostly shows its user.
///
/// It says to programs what the reason says to people: an engine may try again later, or clean up.
/// Before Linux 6.13 it is always [`NotPermitted`](DenyError::NotPermitted), and so it is for a container that was stopped
/// after its exec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenyError {
    /// `EPERM`, operation not permitted.
    #[default]
    NotPermitted,
    /// `EAGAIN`, resource temporarily unavailable.
    TryAgain,
    /// `EBUSY`, device or resource busy.
    Busy,
    /// `ENOSPC`, no space left on device.
    NoSpace,
    /// `EDQUOT`, disk quota exceeded.
    QuotaExceeded,
    /// `EIO`, input/output error.
    InputOutput,
}

impl DenyError {
    /// The number, where it is another than that of a plain denial.
    pub(crate) fn errno(self) -> Option<i32> {
        Some(match self {
            DenyError::NotPermitted => return None,
            DenyError::TryAgain => libc::EAGAIN,
            DenyError::Busy => libc::EBUSY,
            DenyError::NoSpace => libc::ENOSPC,
            DenyError::QuotaExceeded => libc::EDQUOT,
            DenyError::InputOutput => libc::EIO,
        })
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
///
/// A call that has not returned by its event's deadline (without one: by the time that is set for its kind) makes way: the
/// container's next event is told on another thread, beside it. So a call that never returns costs a thread and its own
/// container's time, up to a thousand of them. An event whose deadline passed before a thread was free is told all the
/// same, in its turn, and not as held.
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
