//! Who waits for the answer to a permission event, in the host's terms.
//!
//! A listener in another pid namespace than the task's reads an event with pid 0. The kernel knows better: a BPF program
//! that is never attached, and only run by the reader in its own context after it has read the event, walks the group's list
//! of unanswered events to the one with this descriptor. Linux 5.10.
//!
//! # Which thread
//!
//! [`find`](Lookup::find) belongs on a thread whose descriptor table holds the group and the event. Nobody may answer the
//! event that is looked for meanwhile; other events may be answered by other threads. The walk takes no lock, notices that
//! the list changed under it, and begins again.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use aya::Pod;
use aya::maps::{Array, MapData};

use crate::bpf::{Loader, Program, Refused};

/// How often the walk begins again. Each takes microseconds, and what disturbs it is a system call of another thread.
const ATTEMPTS: u32 = 64;

/// `struct found`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Record {
    start: u64,
    thread_start: u64,
    exec_id: u64,
    tid: u32,
    tgid: u32,
    ppid: u32,
    mount_namespace: u32,
    user_namespace: u32,
    in_host_root: u32,
}

// SAFETY: plain integers, without padding.
unsafe impl Pod for Record {}

/// The task behind an event. All pids are the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// The thread that waits; its process's pid where the group does not report threads.
    pub(crate) tid: i32,
    /// The start time of that thread, in clock ticks after boot.
    pub(crate) thread_start_time: u64,
    /// Its process.
    pub(crate) process: crate::exit::Process,
    /// The process's parent.
    pub(crate) parent: i32,
    /// The inode number of its mount namespace.
    pub(crate) mount_namespace: u32,
    /// That of its user namespace.
    pub(crate) user_namespace: u32,
    /// How often it has executed a program so far.
    pub(crate) exec_id: u64,
    /// Its mount namespace and its root are those of the host's first process.
    pub(crate) in_host_root: bool,
}

/// The program, for one group.
pub(crate) struct Lookup {
    program: Program,
    found: Array<MapData, Record>,
    group: RawFd,
}

impl Lookup {
    /// For the events of this group. The number is kept, not the descriptor: ask only as long as the group is open.
    pub(crate) fn open(bpf: &mut Loader, group: BorrowedFd<'_>) -> Result<Lookup, Refused> {
        let program = bpf.runnable("lookup")?;
        Ok(Lookup { program, found: bpf.array("found")?, group: group.as_raw_fd() })
    }

    /// For the events of another group, from now on.
    pub(crate) fn retarget(&mut self, group: BorrowedFd<'_>) {
        self.group = group.as_raw_fd();
    }

    /// The task that waits for the answer to the event with this descriptor; `None` where it has gone: killed while it
    /// waited. ENOENT where the event is answered already, or is none of the group's.
    pub(crate) fn find(&mut self, event: BorrowedFd<'_>) -> io::Result<Option<Found>> {
        let arguments = [self.group as u64, event.as_raw_fd() as u64];
        for _ in 0..ATTEMPTS {
            match self.program.run(&arguments)? {
                1 => {
                    let r = self.found.get(&0, 0).map_err(io::Error::other)?;
                    return Ok(Some(Found {
                        tid: r.tid as i32,
                        thread_start_time: r.thread_start,
                        process: crate::exit::Process { pid: r.tgid as i32, start_time: r.start },
                        parent: r.ppid as i32,
                        mount_namespace: r.mount_namespace,
                        user_namespace: r.user_namespace,
                        exec_id: r.exec_id,
                        in_host_root: r.in_host_root != 0,
                    }));
                }
                0 => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
                2 => {}
                4 => return Err(io::Error::from_raw_os_error(libc::EBADF)),
                _ => return Ok(None),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

#[cfg(test)]
mod tests;
