//! The backend that has a BPF program note the arguments of every execve of the host as it begins: for a listener that may
//! not read another process's memory. The other half is `bpf/tracepoint.h`.
//!
//! It costs every execve of the host a copy of its arguments, and every *system call* of the host some 50 ns as long as it
//! is attached, for the kernel then takes its slow path into each. It is never the first choice.
//!
//! # Known problems
//!
//! - Arguments in a page that is not there are not copied, for nothing that runs there may wait for it: a forked process's
//!   string literals are so since Linux 6.8. Up to 64 KiB of arguments are copied, and up to about 30,000 of them.
//! - Executions by 32-bit system calls are not seen by the tracepoint.
//!
//! Such a one is never told with a part of its arguments: it is read from memory where that is permitted, else let go and read
//! from its command line after it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, MapData};

use crate::bpf::{Attached, Loader, Refused, Tracefs};
use crate::lookup::Found;
use crate::proc::HostProc;

/// Executions that may be between their begin and their event at once, by the last bits of their tid: 4 MiB of the kernel's
/// memory; and those with more than 3 KiB of arguments among them, another 4 MiB.
const PLACES: u32 = 1024;
const MORE_PLACES: u32 = 64;

const CHUNK: usize = 1024;
const TEXT: usize = 3072 + CHUNK;
const MORE_TEXT: usize = 65_536 + CHUNK;

const WHOLE: u32 = 1;
const MISSING: u32 = 2;

/// `struct words`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Words {
    tid: u32,
    outcome: u32,
    start: u64,
    exec_id: u64,
    argv: u64,
    at: u64,
    argc: u32,
    len: u32,
}

/// `struct traced`, `struct traced_more`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place<const N: usize> {
    words: Words,
    text: [u8; N],
    tid_again: u32,
    more: u32,
}

// SAFETY: plain integers, without padding: the text is a multiple of eight bytes long.
unsafe impl<const N: usize> Pod for Place<N> {}

/// Why the arguments are not there, or not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Nothing was noted of this execution, or it was written over.
    Unseen,
    /// A page of them was not there.
    Missing,
    /// There are too many.
    TooLong,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gap::Unseen => "its arguments were not seen by the tracepoint",
            Gap::Missing => "a page of its arguments was not in memory",
            Gap::TooLong => "its arguments are more than 64 KiB",
        })
    }
}

/// The attached programs and what they write to.
pub(crate) struct Tracer {
    traced: Array<MapData, Place<TEXT>>,
    more: Array<MapData, Place<MORE_TEXT>>,
    _stages: OwnedFd,
    _attached: [Attached; 2],
}

impl Tracer {
    /// By a loader of its own: the places are large.
    pub(crate) fn open(proc: &HostProc, host_root: &Path) -> Result<Tracer, Refused> {
        let mut bpf = Loader::for_pids_of(proc).with_places("traced", "traced_places", PLACES).with_places(
            "traced_more",
            "traced_more_places",
            MORE_PLACES,
        );
        let tracefs = Tracefs::open(host_root).map_err(|error| Refused::new("tracefs", &error))?;
        let stages = bpf.stages("stages", &["traced_begin", "traced_go_on"])?;
        Ok(Tracer {
            _attached: [
                bpf.attached(&tracefs, "syscalls/sys_enter_execve", "traced_execve")?,
                bpf.attached(&tracefs, "syscalls/sys_enter_execveat", "traced_execveat")?,
            ],
            traced: bpf.array("traced")?,
            more: bpf.array("traced_more")?,
            _stages: stages,
        })
    }

    /// The arguments of the execution that this task is in.
    pub(crate) fn arguments(&self, task: &Found) -> Result<Vec<OsString>, Gap> {
        let tid = task.tid.cast_unsigned();
        let place = self.traced.get(&(tid % PLACES), 0).map_err(|_| Gap::Unseen)?;
        if place.more == 0 {
            return place.arguments(task);
        }
        // It is this task's, or nobody's.
        place.check(task)?;
        self.more.get(&(tid % MORE_PLACES), 0).map_err(|_| Gap::Unseen)?.arguments(task)
    }
}

impl<const N: usize> Place<N> {
    fn check(&self, task: &Found) -> Result<(), Gap> {
        let Words { tid, start, exec_id, .. } = self.words;
        let seen = (tid, self.tid_again, start, exec_id);
        let tid = task.tid.cast_unsigned();
        if seen == (tid, tid, task.thread_start_time, task.exec_id) { Ok(()) } else { Err(Gap::Unseen) }
    }

    fn arguments(&self, task: &Found) -> Result<Vec<OsString>, Gap> {
        self.check(task)?;
        let Words { outcome, argc, len, .. } = self.words;
        match outcome {
            WHOLE => {}
            MISSING => return Err(Gap::Missing),
            _ => return Err(Gap::TooLong),
        }
        let text = self.text.get(..len as usize).ok_or(Gap::Unseen)?;
        let argv: Vec<OsString> = text
            .split_inclusive(|byte| *byte == 0)
            .map(|word| OsStr::from_bytes(&word[..word.len() - 1]).to_owned())
            .collect();
        // Where they do not agree, another has written meanwhile.
        if argv.len() == argc as usize { Ok(argv) } else { Err(Gap::Unseen) }
    }
}
