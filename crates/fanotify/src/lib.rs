//! Hold the execution of a file until you have decided about it.
//!
//! Linux can ask a privileged program before a file is executed: fanotify's `FAN_OPEN_EXEC_PERM` permission events. The
//! task that called `execve` sleeps until the program has answered. This crate is a small safe wrapper of that one
//! mechanism, over `libc` and the standard library:
//!
//! - a [`Group`] is a queue of events; closing it lets everything go that waits;
//! - a [`Mark`] is a guard that keeps one inode marked. Marks are counted per inode and hold no descriptor;
//! - a [`PermissionEvent`] is answered exactly once. **Dropping it allows**;
//! - running out of descriptors neither denies an exec nor leaves it waiting;
//! - [`supported`] tells whether it works here, and what is missing.
//!
//! ```no_run
//! use fanotify::{Event, Group};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let group = Group::new()?;
//! let _mark = group.mark("/usr/local/bin/tool")?;
//! let mut events = Vec::new();
//! loop {
//!     group.read(&mut events)?;
//!     for event in events.drain(..) {
//!         match event {
//!             Event::Permission(event) if event.task() == 1 => event.deny()?,
//!             Event::Permission(event) => event.allow()?,
//!             other => eprintln!("not asked: {other:?}"),
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! # Requirements
//!
//! Linux 5.10 with `CONFIG_FANOTIFY` and `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`, `CAP_SYS_ADMIN` in the initial user
//! namespace, and `/proc` for marks. It runs in a container that has the capability; tasks of other pid namespaces are
//! then told as number 0. An errno of one's own in a denial needs Linux 6.13.
//!
//! # When descriptors run out
//!
//! With each event the kernel installs a descriptor of the executed file. Where the reader's table is full (`EMFILE`) it
//! has already taken the event from the queue, and *denies* the exec by itself (Linux 5.10 to 6.18, and no sign of
//! change). A [`Group`] therefore keeps two descriptors in reserve. One is released for each read and taken again
//! after it. While it cannot be taken again, the queue is read by a short-lived thread with a private copy of the
//! descriptor table, in which the other one is free: there each exec is allowed at once, and told as
//! [`Event::Passed`]. As soon as an event is answered or anything else is closed, execs are held again.
//!
//! What remains: if another thread takes the last descriptor of the table in the moment between the release and the
//! read, that one exec is denied, and told as [`Event::Refused`]. Where other threads share the table, say with
//! [`GroupBuilder::headroom`] how many descriptors they may open in a moment: execs are held only as long as that many
//! numbers are free, and go by, told as [`Event::Passed`], before it can come to a denial.
//!
//! The limit of the whole system (`ENFILE`, `fs.file-max`) does not bind a reader with `CAP_SYS_ADMIN`. One that has
//! given the capability up after opening the group gets [`Event::Refused`] there: the kernel has denied.
//!
//! # Known problems
//!
//! - **A listener that does not answer freezes** every task that executes a marked file (they can be killed). Answer
//!   within a time limit, and do not wait in the reader for anything that may itself execute a marked file.
//! - Hence: the thread that reads must not start a marked program and wait for it. [`std::process::Command::spawn`]
//!   waits until the `execve` of the child is through.
//! - **Copies of the group's descriptor.** The kernel lets go when the *last* copy closes. Between fork and exec a child
//!   has a copy of every descriptor of the forking thread's table; where that child is itself held when the listener
//!   dies, it holds the group open and waits for ever. A program that starts what it marks should give the threads
//!   that have the group a descriptor table of their own (`close_range` with `CLOSE_RANGE_UNSHARE`, before the group
//!   is opened), and fork elsewhere.
//! - **Descriptor tables.** Everything here belongs to the table of the thread that opened the group. Threads that share it
//!   may use groups, marks and events; a thread with another one must not, as numbers mean other files there.
//! - The kernel opens the executed file for the reader. On a network or FUSE file system whose server hangs, the read
//!   hangs too; where opening fails, the exec is denied and told as [`Event::Refused`].
//! - A mark is on an inode. A file that is replaced (package upgrades do that) has to be marked again.
//! - Asked is who opens the file *to execute it*: also the kernel for an interpreter (`#!` or the dynamic loader), but not
//!   a loader that is told to run a file (`ld.so FILE`, `sh FILE`).
//! - Killing the task that waits removes neither its event nor the duty to answer it, which frees the descriptor.

mod error;
mod event;
mod group;
mod headroom;
mod inode;
mod mark;
mod reader;
mod support;
mod sys;

pub use error::{Error, ErrorKind};
pub use event::{Denied, Event, Passed, PermissionEvent, Refused};
pub use group::{Class, Group, GroupBuilder};
pub use inode::InodeId;
pub use mark::Mark;
pub use support::{Support, supported};
