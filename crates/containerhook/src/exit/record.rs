//! Exits as the kernel's exit tracepoint records them. The other half is `bpf/exit.h`.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError, RingBuf};
use aya::programs::links::FdLink;

use super::{Process, sys};
use crate::bpf::{Loader, Refused};

/// `struct watched`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Watched {
    start: u64,
    at: u64,
    status: i32,
    dead: u32,
}

// SAFETY: plain integers, without padding.
unsafe impl Pod for Watched {}

/// One exit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) process: Process,
    pub(super) status: i32,
    /// Nanoseconds of the kernel's monotonic clock.
    at: u64,
}

/// The attached program, its table of watched processes, and the ring it writes to.
pub(super) struct Records {
    _attached: FdLink,
    watched: HashMap<MapData, u32, Watched>,
    ring: RingBuf<MapData>,
    unsent: Array<MapData, u64>,
    unsent_seen: u64,
    clocks: Offsets,
}

impl Records {
    pub(super) fn open(bpf: &mut Loader) -> Result<Records, Refused> {
        let clocks = Offsets::of_this_process();
        bpf.set_global("boottime_offset", clocks.boottime);
        let attached = bpf.attach("sched_process_exit", "exit_btf", "exit_raw")?;
        Ok(Records {
            _attached: attached,
            watched: bpf.hash("watched")?,
            ring: bpf.ring("exits")?,
            unsent: bpf.array("unsent")?,
            unsent_seen: 0,
            clocks,
        })
    }

    /// Readable when there is a record.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// From now on the end of this process is recorded, unless it is past the tracepoint. Refused when the table is full.
    pub(super) fn insert(&mut self, process: Process) -> Result<(), MapError> {
        let value = Watched { start: process.start_time, at: 0, status: 0, dead: 0 };
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
            at: word(8),
        })
    }

    /// Whether records did not fit into the ring since this was last asked.
    pub(super) fn has_overflowed(&mut self) -> bool {
        // Where even this cannot be read, look.
        let count = self.unsent.get(&0, 0).unwrap_or(self.unsent_seen.wrapping_add(1));
        std::mem::replace(&mut self.unsent_seen, count) != count
    }

    /// The record of a process that ended while the ring was full.
    pub(super) fn left_behind(&self, process: Process) -> Option<Record> {
        let value = self.watched.get(&(process.pid as u32), 0).ok()?;
        (value.dead != 0 && value.start == process.start_time).then_some(Record {
            process,
            status: value.status,
            at: value.at,
        })
    }

    /// When it was, on this process's clock.
    pub(super) fn instant(&self, record: &Record) -> Instant {
        let now = Instant::now();
        let then = record.at.saturating_add_signed(self.clocks.monotonic);
        now.checked_sub(Duration::from_nanos(sys::monotonic_ns().saturating_sub(then))).unwrap_or(now)
    }
}

/// What a time namespace adds to the kernel's clocks, in nanoseconds. BPF programs see them without.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Offsets {
    monotonic: i64,
    boottime: i64,
}

impl Offsets {
    fn of_this_process() -> Offsets {
        // Not there before Linux 5.6 and without CONFIG_TIME_NS: then nothing is added.
        Offsets::parse(&fs::read_to_string("/proc/thread-self/timens_offsets").unwrap_or_default())
    }

    fn parse(text: &str) -> Offsets {
        let mut offsets = Offsets::default();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next();
            let mut number = || fields.next().and_then(|f| f.parse::<i64>().ok()).unwrap_or(0);
            let ns = number().saturating_mul(1_000_000_000).saturating_add(number());
            match name {
                Some("monotonic") => offsets.monotonic = ns,
                Some("boottime") => offsets.boottime = ns,
                _ => {}
            }
        }
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = "monotonic           5         7\nboottime      -864000 999999999\n";
        let offsets = Offsets { monotonic: 5_000_000_007, boottime: -863_999_000_000_001 };
        assert_eq!(Offsets::parse(text), offsets);
        assert_eq!(Offsets::parse(""), Offsets::default());
        assert_eq!(Offsets::parse("boottime x y\n\nfoo"), Offsets::default());
    }
}
