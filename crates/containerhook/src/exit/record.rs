//! Exits as the kernel's exit tracepoint records them. The other half is `bpf/exit.h`.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};

use super::Process;
use crate::bpf::{Attached, Clock, Loader, Refused, Twins};

/// `struct watched`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Watched {
    start: u64,
    at: u64,
    status: i32,
    dead: u32,
    oom: u32,
    unused: u32,
}

// SAFETY: plain integers, without padding.
unsafe impl Pod for Watched {}

/// `struct young`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Young {
    start: u64,
    at: u64,
    status: i32,
    unused: u32,
}

// SAFETY: plain integers, without padding.
unsafe impl Pod for Young {}

/// One exit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) process: Process,
    pub(super) status: i32,
    /// The kernel killed it for want of memory, as far as was known when it ended.
    oom: bool,
    /// Nanoseconds of the kernel's monotonic clock.
    at: u64,
}

/// The attached programs, their table of watched processes, and the ring they write to.
pub(super) struct Records {
    program: Twins,
    _attached: [Attached; 2],
    /// What tells whom the kernel killed for want of memory.
    victims: Option<[Attached; 2]>,
    watched: HashMap<MapData, u32, Watched>,
    ring: RingBuf<MapData>,
    unsent: Array<MapData, u64>,
    unsent_seen: u64,
    young_since: Array<MapData, u64>,
    young_ends: HashMap<MapData, u32, Young>,
    clock: Clock,
}

impl Records {
    /// With a warning where it will not be known whom the kernel killed for want of memory.
    pub(super) fn open(bpf: &mut Loader) -> Result<(Records, Option<String>), Refused> {
        let (program, attached) = bpf.attached_twins(c"sched_process_exit", "exit")?;
        let victims = bpf.attached_twins(c"mark_victim", "victim").map(|(_, attached)| attached);
        let (victims, warning) = match victims {
            Ok(victims) => (Some(victims), None),
            Err(refused) => {
                (None, Some(format!("whom the kernel kills for want of memory is not recorded: {refused}")))
            }
        };
        let records = Records {
            _attached: attached,
            program,
            victims,
            watched: bpf.hash("watched")?,
            ring: bpf.ring("exits")?,
            unsent: bpf.array("unsent")?,
            unsent_seen: 0,
            young_since: bpf.array("young_since")?,
            young_ends: bpf.hash("young_ends")?,
            clock: Clock::new(),
        };
        Ok((records, warning))
    }

    /// Readable when there is a record.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// From now on the end of this process is recorded, unless it is past the tracepoint. Refused when the table is full.
    pub(super) fn insert(&mut self, process: Process) -> Result<(), MapError> {
        let value = Watched { start: process.start_time, at: 0, status: 0, dead: 0, oom: 0, unused: 0 };
        self.watched.insert(process.pid as u32, value, 0)
    }

    pub(super) fn remove(&mut self, pid: i32) {
        // It is not there where the table was full.
        let _ = self.watched.remove(&(pid as u32));
    }

    /// The next record, if there is one.
    pub(super) fn next(&mut self) -> Option<Record> {
        let item = self.ring.next()?;
        // `struct ended`; a record of another length is none of ours.
        let word =
            |at: usize| item.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let half =
            |at: usize| item.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        Some(Record {
            process: Process { pid: half(16), start_time: word(0) },
            status: half(20),
            oom: half(24) != 0,
            at: word(8),
        })
    }

    /// Whether records may have been lost since this was last asked: the ring was full, or the program was skipped.
    pub(super) fn has_lost(&mut self) -> bool {
        // Where even this cannot be read, look.
        let count = self.unsent.get(&0, 0).unwrap_or(self.unsent_seen.wrapping_add(1));
        let overflowed = std::mem::replace(&mut self.unsent_seen, count) != count;
        self.program.both_missed() || overflowed
    }

    /// Everything there is to know of a process that is not reported.
    #[cfg(test)]
    pub(super) fn explain(&mut self, process: Process) -> String {
        let entry = self.watched.get(&(process.pid as u32), 0);
        let misses = (self.program.both_missed(), self.program.missed());
        format!("entry {entry:?}, unsent {:?}, skipped {misses:?}", self.unsent.get(&0, 0))
    }

    #[cfg(test)]
    pub(super) fn skipped_runs(&self) -> [u64; 2] {
        self.program.missed()
    }

    /// The record of a process that ended while the ring was full.
    pub(super) fn left_behind(&self, process: Process) -> Option<Record> {
        let value = self.watched.get(&(process.pid as u32), 0).ok()?;
        (value.dead != 0 && value.start == process.start_time).then_some(Record {
            process,
            status: value.status,
            oom: value.oom != 0,
            at: value.at,
        })
    }

    /// From now on the ends of processes that began at this time or later are kept for a moment; `None`: no more.
    pub(super) fn keep_young(&mut self, since: Option<u64>) {
        // Where it cannot be written some end will have no status, which is said then.
        let _ = self.young_since.set(0, since.unwrap_or(0), 0);
    }

    /// How a process that nobody watched has ended, if that was kept.
    pub(super) fn young(&self, pid: i32) -> Option<Record> {
        let Young { start, at, status, .. } = self.young_ends.get(&(pid as u32), 0).ok()?;
        Some(Record { process: Process { pid, start_time: start }, status, oom: false, at })
    }

    /// Whether the kernel killed the process for want of memory, of one that ended by SIGKILL and is in the table still;
    /// `None` where that is not recorded.
    pub(super) fn was_victim(&self, record: &Record) -> Option<bool> {
        self.victims.as_ref()?;
        // The mark can be later than the end: see `mark_victim`.
        let late = || self.watched.get(&(record.process.pid as u32), 0).ok();
        let marked = |value: Watched| value.start == record.process.start_time && value.oom != 0;
        Some(record.oom || late().is_some_and(marked))
    }

    /// When it was, on this process's clock.
    pub(super) fn instant(&self, record: &Record) -> Instant {
        self.clock.instant(record.at)
    }
}
