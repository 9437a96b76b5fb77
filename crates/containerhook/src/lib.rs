//! Hold and tell containers the moment they are created, start and end.

mod capability;
mod config;
mod engine;
mod error;
mod event;
mod events;
mod handler;
mod metadata;
mod notifier;
mod outlet;

pub use capability::{Available, Capability, Support};
pub use config::Config;
pub use engine::supported;
pub use error::{Error, ErrorKind};
pub use event::{
    Answer, Container, ContainerEvent, EventKind, ExecProcess, ExitStatus, Record, Runtime, UnknownEventKind,
    Verdict,
};
pub use events::{EventTurn, Events};
pub use handler::{Decision, Handler};
pub use metadata::{Engine, Kubernetes};
pub use notifier::{
    Builder, ContainerNotifier, DEFAULT_DEADLINE, ExitBackend, MAX_DEADLINE, MarkedRuntime, OnTimeout, Status,
};
