//! Reading the queue so that a full descriptor table neither denies nor hangs an exec.
//!
//! The kernel installs a descriptor with each event that it hands out, after it has taken the event from the queue.
//! Where it cannot (`EMFILE`), it answers the event itself, with a *denial*, from 5.10 to 6.18 at least
//! (`fanotify_read`: `finish_permission_event(…, FAN_DENY)`), and where the buffer already holds an event it does not
//! even report the error. So:
//!
//! - each `read(2)` has room for one event, and nothing is denied in silence;
//! - a descriptor is kept in reserve, released just before the read and taken again after it;
//! - while it cannot be taken again, the table is full: the queue is read by a thread with a private copy of the table
//!   in which another reserved number is freed. There the execs are allowed at once, and told as `Passed`.
//!
//! Where other threads use the table, one descriptor in reserve is not enough: released, it can be theirs before the
//! kernel takes it. Then there must be headroom before a read, and nothing is released; without it the queue is read in
//! the private copy, which nobody else can fill.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::event::{Event, Passed, PermissionEvent, Refused};
use crate::group::Shared;
use crate::headroom::Headroom;
use crate::inode::InodeId;
use crate::sys::{self, PrivateTable};

const OPERATION: &str = "read events";

pub(crate) struct Reader {
    reserve: Reserve,
    /// Never released here; its number is what the private copy of the table has free. No event can have that number,
    /// which matters because the kernel finds the event to answer by the number alone.
    spare: OwnedFd,
}

/// What makes sure that the kernel finds a number for the next event.
enum Reserve {
    /// Released for each read. None when it could not be taken again.
    Slot(Option<OwnedFd>),
    /// For a table that other threads use.
    Headroom(Headroom),
}

impl Reader {
    pub(crate) fn new(headroom: usize) -> io::Result<Self> {
        let spare = sys::placeholder()?;
        let reserve = match headroom {
            0 => Reserve::Slot(Some(spare.try_clone()?)),
            wanted => Reserve::Headroom(Headroom::new(wanted)),
        };
        Ok(Self { reserve, spare })
    }

    /// Whether an event can be read into this table.
    fn can_hold(&mut self) -> bool {
        match &mut self.reserve {
            Reserve::Slot(slot) => {
                if slot.is_none() {
                    *slot = self.spare.try_clone().ok();
                }
                slot.is_some()
            }
            Reserve::Headroom(headroom) => headroom.is_there(self.spare.as_fd()),
        }
    }

    /// Whether the descriptor table has a number free.
    pub(crate) fn has_room(&self) -> bool {
        self.spare.try_clone().is_ok()
    }

    /// Appends up to `batch` events, and says how many; 0 where the queue is empty.
    pub(crate) fn read(
        &mut self,
        group: &Arc<Shared>,
        batch: usize,
        events: &mut Vec<Event>,
    ) -> Result<usize, Error> {
        let mut count = 0;
        while count < batch {
            let step = if self.can_hold() {
                self.read_one(group).map(|event| event.into_iter().collect())
            } else {
                self.pass(group, batch - count)
            };
            match step {
                Ok(step) if step.is_empty() => break,
                Ok(step) => {
                    count += step.len();
                    events.extend(step);
                }
                // An error that lasts comes again with the next call.
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    fn read_one(&mut self, group: &Arc<Shared>) -> Result<Option<Event>, Error> {
        if let Reserve::Slot(slot) = &mut self.reserve {
            *slot = None;
        }
        let next = Next::from(group);
        if let Reserve::Slot(slot) = &mut self.reserve {
            *slot = self.spare.try_clone().ok();
        }
        Ok(match next? {
            Next::Empty => None,
            Next::Held(file, task) => {
                Some(Event::Permission(PermissionEvent::new(Arc::downgrade(group), file, task)))
            }
            Next::Told(event) => Some(event),
        })
    }

    /// Reads without a free descriptor, and allows what it reads.
    fn pass(&self, group: &Arc<Shared>, wanted: usize) -> Result<Vec<Event>, Error> {
        let failed = |error| Error::new(OPERATION, ErrorKind::OutOfDescriptors, error);
        if !sys::wait_readable(group.fd(), Some(Duration::ZERO)).map_err(failed)? {
            return Ok(Vec::new());
        }
        let spare = self.spare.as_fd();
        let work = || {
            let table = PrivateTable::unshare().map_err(failed)?;
            table.free(spare);
            let mut events = Vec::new();
            while events.len() < wanted {
                match Next::from(group) {
                    Ok(Next::Empty) => break,
                    Ok(Next::Held(file, task)) => {
                        let inode = InodeId::of(&file).ok();
                        // It can only fail where the exec does not wait any more.
                        let _ = sys::respond(group.fd(), file.as_fd(), libc::FAN_ALLOW);
                        events.push(Event::Passed(Passed { task, inode }));
                    }
                    Ok(Next::Told(event)) => events.push(event),
                    Err(_) if !events.is_empty() => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(events)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("fanotify-pass".into());
            let thread = thread.spawn_scoped(scope, work).map_err(failed)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// What one `read(2)` came back with.
enum Next {
    Empty,
    /// An exec that waits, and its task.
    Held(OwnedFd, i32),
    /// Something that needs no answer.
    Told(Event),
}

impl Next {
    fn from(group: &Shared) -> Result<Self, Error> {
        let event = match sys::read_event(group.fd()) {
            Ok(event) => event,
            Err(reason) => return Self::from_error(reason),
        };
        if event.version != libc::FANOTIFY_METADATA_VERSION {
            let found = format!("fanotify metadata of version {}", event.version);
            return Err(Error::new(OPERATION, ErrorKind::UnknownVersion, io::Error::other(found)));
        }
        if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            return Ok(Self::Told(Event::Overflow));
        }
        Ok(match event.file {
            Ok(file) => Self::Held(file, event.task),
            Err(reason) => Self::Told(Event::Refused(Refused { task: Some(event.task), reason })),
        })
    }

    fn from_error(reason: io::Error) -> Result<Self, Error> {
        match reason.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Self::Empty),
            None | Some(libc::EBADF | libc::EFAULT | libc::EINVAL) => {
                Err(Error::new(OPERATION, ErrorKind::Other, reason))
            }
            // All others come from opening the file. EINTR too: a read that does not block has nothing else that a
            // signal could interrupt.
            Some(_) => Ok(Self::Told(Event::Refused(Refused { task: None, reason }))),
        }
    }
}
