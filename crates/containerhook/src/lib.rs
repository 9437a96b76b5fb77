//! Hold and tell containers the moment they are created, start and end.

mod bpf;
mod bundle;
mod capability;
mod capture;
mod change;
mod cmdline;
mod config;
mod dispatch;
mod engine;
mod entrypoint;
mod error;
mod event;
mod events;
mod exit;
mod handler;
mod lifecycle;
mod metadata;
mod notifier;
mod outlet;
mod pool;
mod private_table;
mod proc;
mod runtime;
mod sys;
mod work;

pub use capability::{Available, Capability, Support, supported};
pub use config::{Config, ConfigError};
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
