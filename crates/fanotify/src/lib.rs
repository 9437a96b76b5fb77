//! Hold the execution of a file until you have decided about it: a safe wrapper of fanotify's
//! `FAN_OPEN_EXEC_PERM` permission events.
mod error;
mod event;
mod group;
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
