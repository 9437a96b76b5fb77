//! The first program of containers, as the kernel sees it: for those that no mark held.
//!
//! A BPF program on the kernel's exec tracepoint speaks only where the task is the init of a pid namespace below the host's
//! (or its child, where the init itself never executes anything, as bubblewrap's) and lives in another mount namespace than
//! the host's. Every later exec of an init is told again: who listens knows which containers are known.
//!
//! It can also *stop* a container at that exec ([`ExecWatch::stop_under`]), for the entrypoints that cannot be marked. The
//! init then gets a SIGSTOP, which takes effect before its first instruction, and runs on with a SIGCONT.
//!
//! # Known problems
//!
//! - A stop outlives its listener; the listener's [`Guardian`] then ends it. Every [`Seen`] with `stopped_for` has to be
//!   continued, also one that comes after its [`release`](ExecWatch::release).
//! - A hook that runs inside a container whose init has not executed anything yet looks like bubblewrap's first program (crun's
//!   `createContainer` hooks): it is told, with the container's own init as `init` and the runtime among its ancestors.
//! - A container that shares its pid namespace with its runtime and whose entrypoint has the name of a re-execution
//!   (`/proc/self/exe`, `/dev/fd/N`) is not stopped.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use aya::Pod;
use aya::maps::{Array, HashMap as BpfMap, MapData, RingBuf};

use crate::bpf::{Attached, Clock, Loader, Refused, Twins};
use crate::capability::{Privilege, Privileges};
use crate::exit::Process;
use crate::guardian::Guardian;
use crate::proc::HostProc;

const ANCESTORS: usize = 6;

/// `struct under`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Under {
    start: u64,
    origin: u32,
    mount_namespace: u32,
}

// SAFETY: plain integers, without padding.
unsafe impl Pod for Under {}

/// An exec of a container's init.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "the record as the program writes it; the engine needs a part of it")
)]
pub(crate) struct Seen {
    /// Who executes.
    pub(crate) process: Process,
    /// The init of its pid namespace: itself, or its parent. Where it was stopped in its runtime's pid namespace: itself.
    pub(crate) init: Process,
    /// When.
    pub(crate) at: Instant,
    /// Of the cgroup v2 hierarchy; 1 (the root) where that is not used.
    pub(crate) cgroup_id: u64,
    /// Its inode number.
    pub(crate) mount_namespace: u32,
    /// Its inode number.
    pub(crate) pid_namespace: u32,
    /// The runtime's process that [`ExecWatch::stop_under`] was told of, where this exec was stopped for it.
    pub(crate) stopped_for: Option<Process>,
    /// The new name of the task, at most 15 bytes.
    pub(crate) comm: OsString,
    /// The path as given to execve (a script's, not its interpreter's), at most 255 bytes.
    pub(crate) filename: OsString,
    /// Parent, its parent and so on, at most six, as they were.
    pub(crate) ancestors: Vec<Ancestor>,
}

/// A process above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ancestor {
    /// Which one.
    pub(crate) process: Process,
    /// Its name, at most 15 bytes.
    pub(crate) comm: OsString,
}

/// What did not come through since this was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Missed {
    /// Execs that were not told: look at what is running.
    pub(crate) untold: u64,
    /// Stops that did not happen.
    pub(crate) unstopped: u64,
}

/// Why nothing can be stopped under a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    /// It has ended.
    #[error("mount namespace of process {pid}: {source}")]
    Process {
        /// Which.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// The listener is in another pid namespace.
    #[error("from another pid namespace than the host's no process can be let go on")]
    Unreachable,
    /// The listener has no right to signal other users' processes.
    #[error("without CAP_KILL no other user's process can be let go on")]
    Unsignalled,
    /// BPF.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The table is full.
    #[error("stop under a process: {0}")]
    Map(#[from] aya::maps::MapError),
    /// Nobody would let it go on if this process died.
    #[error("start the guardian of what is stopped: {0}")]
    Guardian(#[source] io::Error),
}

/// The attached programs. Has one owner, on the engine's side.
pub(crate) struct ExecWatch {
    program: Twins,
    _attached: [Attached; 2],
    ring: RingBuf<MapData>,
    untold: Array<MapData, u64>,
    missed: Missed,
    unders: BpfMap<MapData, u32, Under>,
    /// Refused where stops cannot be had.
    fork: Result<Twins, Refused>,
    fork_attached: Option<[Attached; 2]>,
    /// The runtime's processes under which something is to be stopped, by tgid.
    origins: HashMap<u32, Process>,
    /// For the guardian.
    stops: OwnedFd,
    /// Only once there is something to stop.
    guardian: Option<Guardian>,
    proc: HostProc,
    clock: Clock,
    /// What is stopped can be let go on, whoever's it is.
    may_signal: bool,
}

impl ExecWatch {
    /// Attaches to the exec tracepoint, where pids are our own.
    #[cfg(test)]
    pub(crate) fn open(bpf: &mut Loader) -> Result<ExecWatch, Refused> {
        ExecWatch::open_for(bpf, &HostProc::default())
    }

    /// Attaches to the exec tracepoint.
    pub(crate) fn open_for(bpf: &mut Loader, proc: &HostProc) -> Result<ExecWatch, Refused> {
        let (program, attached) = bpf.attached_twins(c"sched_process_exec", "exec")?;
        Ok(ExecWatch {
            ring: bpf.ring("execs")?,
            untold: bpf.array("untold")?,
            missed: Missed::default(),
            stops: bpf.descriptor("unders")?,
            guardian: None,
            unders: bpf.hash("unders")?,
            fork: bpf.twins(c"sched_process_fork", "fork"),
            fork_attached: None,
            origins: HashMap::new(),
            proc: proc.clone(),
            clock: Clock::new(),
            may_signal: Privileges::effective().is_ok_and(|effective| effective.has(Privilege::CapKill)),
            _attached: attached,
            program,
        })
    }

    /// Readable when there is something to [`drain`](Self::drain).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Appends what was seen since the last call.
    pub(crate) fn drain(&mut self, out: &mut Vec<Seen>) {
        while let Some(item) = self.ring.next() {
            out.extend(parse(&item, &self.clock, &self.origins));
        }
    }

    /// What was lost since the last call. Ask after each [`drain`](Self::drain).
    pub(crate) fn missed(&mut self) -> Missed {
        let now = Missed {
            untold: self.untold.get(&0, 0).unwrap_or(self.missed.untold),
            unstopped: self.untold.get(&1, 0).unwrap_or(self.missed.unstopped),
        };
        let before = std::mem::replace(&mut self.missed, now);
        let skipped = u64::from(self.program.both_missed());
        Missed {
            untold: now.untold.wrapping_sub(before.untold) + skipped,
            unstopped: now.unstopped.wrapping_sub(before.unstopped),
        }
    }

    /// The container that this runtime process makes is to be stopped at the exec of its entrypoint, once. Call it before the
    /// process forks, best while its own exec is held. Follow with [`release`](Self::release) *after* the container was told
    /// to go on: until then its guardian does so if this process dies.
    pub(crate) fn stop_under(&mut self, runtime: Process) -> Result<(), StopError> {
        // What is stopped must be let go on, by us or by the guardian.
        if self.proc.is_foreign() {
            return Err(StopError::Unreachable);
        }
        if !self.may_signal {
            return Err(StopError::Unsignalled);
        }
        let mount_namespace =
            self.proc
                .namespace(runtime.pid, "mnt")
                .map_err(|source| StopError::Process { pid: runtime.pid, source })? as u32;
        if !self.guardian.as_ref().is_some_and(Guardian::is_alive) {
            self.guardian = Some(Guardian::start(self.stops.as_fd()).map_err(StopError::Guardian)?);
        }
        if self.fork_attached.is_none() {
            // Only now: it costs every fork of the host a look-up.
            self.fork_attached = Some(self.fork.as_ref().map_err(Clone::clone)?.attach()?);
        }
        let origin = runtime.pid as u32;
        self.origins.insert(origin, runtime);
        let value = Under { start: runtime.start_time, origin, mount_namespace };
        if let Err(error) = self.unders.insert(origin, value, 0) {
            self.release(runtime);
            return Err(error.into());
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn guardian(&self) -> Option<&Guardian> {
        self.guardian.as_ref()
    }

    /// Nothing more is stopped under this process. What is stopped already stays so, and is nobody's business from now on.
    pub(crate) fn release(&mut self, runtime: Process) {
        let origin = runtime.pid as u32;
        if self.origins.get(&origin) != Some(&runtime) {
            return;
        }
        self.origins.remove(&origin);
        let last = self.origins.is_empty();
        if last {
            self.fork_attached = None;
        }
        let stale: Vec<u32> = self
            .unders
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, under)| last || under.origin == origin)
            .map(|(tgid, _)| tgid)
            .collect();
        for tgid in stale {
            let _ = self.unders.remove(&tgid);
        }
    }
}

/// `struct seen`; `None` for a record of another shape, which is none of ours.
fn parse(record: &[u8], clock: &Clock, origins: &HashMap<u32, Process>) -> Option<Seen> {
    let mut rest = record;
    let at = rest.u64()?;
    let start = rest.u64()?;
    let init_start = rest.u64()?;
    let cgroup_id = rest.u64()?;
    let tgid = rest.u32()?;
    let init = rest.u32()?;
    let mount_namespace = rest.u32()?;
    let pid_namespace = rest.u32()?;
    let stopped_for = rest.u32()?;
    rest.u32()?;
    let comm = rest.text(16)?;
    let mut ancestors = Vec::new();
    for _ in 0..ANCESTORS {
        let start_time = rest.u64()?;
        let pid = rest.u32()? as i32;
        let comm = rest.text(16)?;
        rest.u32()?;
        // Above pid 1 is the idle task, again and again.
        if pid > 0 {
            ancestors.push(Ancestor { process: Process { pid, start_time }, comm });
        }
    }
    let filename = rest.text(256)?;
    Some(Seen {
        process: Process { pid: tgid as i32, start_time: start },
        init: Process { pid: init as i32, start_time: init_start },
        at: clock.instant(at),
        cgroup_id,
        mount_namespace,
        pid_namespace,
        // Released meanwhile: it is stopped nevertheless, and somebody has to let it go on.
        stopped_for: (stopped_for != 0).then(|| {
            origins.get(&stopped_for).copied().unwrap_or(Process { pid: stopped_for as i32, start_time: 0 })
        }),
        comm,
        filename,
        ancestors,
    })
}

/// Takes fields off the front of a record.
trait Fields {
    fn u64(&mut self) -> Option<u64>;
    fn u32(&mut self) -> Option<u32>;
    fn text(&mut self, size: usize) -> Option<OsString>;
}

impl Fields for &[u8] {
    fn u64(&mut self) -> Option<u64> {
        let (head, tail) = self.split_first_chunk()?;
        *self = tail;
        Some(u64::from_ne_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.split_first_chunk()?;
        *self = tail;
        Some(u32::from_ne_bytes(*head))
    }

    fn text(&mut self, size: usize) -> Option<OsString> {
        let (head, tail) = self.split_at_checked(size)?;
        *self = tail;
        let len = head.iter().position(|&b| b == 0).unwrap_or(size);
        Some(OsStr::from_bytes(&head[..len]).to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests;
