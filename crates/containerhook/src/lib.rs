//! Hold and tell containers the moment they are created, start and end.
//!
//! A [`ContainerNotifier`] tells a program on a Linux host that a container is being created, exists, runs its first
//! instruction and has ended, and **holds** the container at each of the first three until the program has answered. No
//! setting in a container runtime, no daemon's socket and no Kubernetes API is needed: the listener marks the binaries
//! of the runtimes with fanotify, and so sees every execution of them before its first instruction.
//!
//! ```no_run
//! use containerhook::{ContainerEvent, ContainerNotifier, Decision, EventKind};
//!
//! fn main() -> Result<(), containerhook::Error> {
//!     let notifier = ContainerNotifier::new(|event: &ContainerEvent| match event.kind() {
//!         EventKind::PreCreate if event.image() == Some("docker.io/evil:latest") => Decision::deny("a bad image"),
//!         kind => {
//!             println!("{kind} {} pid {:?}", event.id(), event.pid());
//!             Decision::allow()
//!         }
//!     })?;
//!     std::thread::sleep(std::time::Duration::from_secs(60));
//!     notifier.close();
//!     Ok(())
//! }
//! ```
//!
//! # Known problems
//!
//! - Permission events need `CAP_SYS_ADMIN` in the initial user namespace, and a kernel with
//!   `CONFIG_FANOTIFY_ACCESS_PERMISSIONS` (Linux 5.10 or later); see [`supported`].
//! - A process that is stopped (`SIGSTOP`, a debugger, a frozen cgroup) while it listens holds every execution of a
//!   runtime on the host until it goes on or ends. When it ends, however it ends, the kernel lets everything go. See
//!   [`Builder::watchdog`] for what can be done.
//! - A handler runs while a container waits. It has a deadline ([`Builder::deadline`]), after which the container goes
//!   on without it, or is refused ([`Builder::on_timeout`]).
//! - What is held takes descriptors, of a table beside that of the program: one for each execution, three more for each
//!   container from [`PreCreate`](EventKind::PreCreate) until its init is known, and where BPF is refused one for each
//!   container that runs. An execution is held as long as 257 are free (a little more than half of `RLIMIT_NOFILE`, where
//!   that is below 512); else it goes by, is told as not held, and as [`Lost`](EventKind::Lost) where it was over before it
//!   could be read. Where many come at once, raise the soft limit; `containerhook watch` does so by itself.
//! - A handler that wants to keep a program of its own from being held need do nothing: executions of a runtime by a
//!   handler are events like others, and are answered while the handler runs.
//!
//! # Coming from the Go package
//!
//! | Inspektor Gadget's `containerhook` | here |
//! | --- | --- |
//! | `Supported()` | [`supported`], [`Support::is_supported`] |
//! | `NewContainerNotifier(callback)` | [`ContainerNotifier::new`], [`ContainerNotifier::builder`] |
//! | `ContainerEvent.Type` | [`ContainerEvent::kind`] |
//! | `EventTypePreCreateContainer` | [`EventKind::PreCreate`] |
//! | `EventTypeAddContainer` | [`EventKind::Created`] |
//! | `EventTypeRemoveContainer` | [`EventKind::Stopped`] |
//! | `ContainerID`, `ContainerName`, `ContainerPID` | [`Container::id`], [`Container::name`], [`Container::pid`] |
//! | `ContainerConfig`, `Bundle` | [`Container::config`], [`Container::bundle`] |
//! | `AddWatchContainerTermination(id, pid)` | [`ContainerNotifier::watch_termination`] |
//! | `Close()` | [`ContainerNotifier::close`], or dropping it |
//! | `RUNTIME_PATH`, `HOST_ROOT` | the same, or [`Builder::runtime`], which adds, and [`Builder::host_root`] |
//!
//! # How it works
//!
//! One thread, the engine, owns all state. It reads what the kernel holds, keeps each container's life, and answers;
//! it never waits for a disk, another process or a handler. What may wait is done by *workers*: reading the arguments
//! of a held execution from its caller's memory (`capture`), the bundle (`bundle`), the entrypoint (`entrypoint`).
//! What is told is told on *handler* threads (`dispatch`), with a deadline. Records and log lines leave by a thread of
//! their own (`outlet`). The lives themselves (`lifecycle`) are pure: inputs and moments in, actions out.
//!
//! The engine and its workers have a descriptor table of their own (`private_table`), so that no child of a handler
//! ever has a copy of the fanotify group: it could keep it open, and a held execution with it, beyond the listener's end.

mod bpf;
mod bundle;
mod capability;
mod capture;
mod cgroup;
mod change;
mod cmdline;
mod config;
mod dispatch;
mod engine;
mod entrypoint;
mod errand;
mod error;
mod event;
mod events;
mod exec_watch;
mod exit;
mod guardian;
mod handler;
mod lifecycle;
mod linger;
mod lookup;
mod mailbox;
mod marker;
mod memory;
mod metadata;
mod notifier;
mod outlet;
mod pool;
mod private_table;
mod proc;
mod runtime;
mod seldom;
mod stranger;
mod sys;
pub mod verify;
mod watchdog;
mod work;

pub use capability::{Area, Available, Capability, Privilege, Privileges, Support, supported, supported_at};
pub use change::{ChangeError, ConfigChange, Device, HookKind};
pub use config::{Config, ConfigError};
pub use error::{Error, ErrorKind};
pub use event::{
    Answer, Container, ContainerEvent, EventKind, ExecProcess, ExitStatus, Namespaces, Record, Resources,
    Runtime, UnknownEventKind, Verdict,
};
pub use events::{EventTurn, Events};
pub use handler::{Decision, DenyError, Handler};
pub use metadata::{Engine, Kubernetes};
pub use notifier::{
    Builder, CaptureBackend, ContainerNotifier, DEFAULT_DEADLINE, ExitBackend, MAX_DEADLINE, MarkedRuntime,
    OnTimeout, Status,
};
pub use watchdog::Heartbeat;
pub use work::existing;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
