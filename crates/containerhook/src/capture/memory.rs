//! The backend that reads the held task's memory, where the arguments of its execve still lie.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use fanotify::InodeId;

use super::CaptureError;
use crate::proc::{HostProc, TaskFacts, read_small};

/// What the kernel takes at the most for arguments and environment together: three quarters of `_STK_LIM`
/// (`bprm_stack_limits` in fs/exec.c), and for one string: `MAX_ARG_STRLEN`, 32 pages.
const MOST_BYTES: usize = 6 << 20;
const MOST_STRING: usize = 32 * PAGE;
const PAGE: usize = 4096;

/// How long the task may take from the event to sleep. The event can be read before the task has left its processor; a
/// host under load may take its time.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn task(proc: &HostProc, tid: i32) -> Result<TaskFacts, CaptureError> {
    proc.task_facts(tid).map_err(|e| gone_or("cannot read the caller's status", e))
}

/// Who a task is and what it was given, from what its process has become.
///
/// # Errors
/// [`CaptureError::Gone`] where it has become nothing that executes `inode`, after a moment.
pub(super) fn passed(
    proc: &HostProc,
    tid: i32,
    inode: InodeId,
) -> Result<(TaskFacts, Vec<OsString>), CaptureError> {
    let started = Instant::now();
    // /proc/<pid>/exe is another file once the exec is done; of a process that has become something else since, the
    // arguments are another's.
    let is_it = || {
        let exe = File::options().read(true).custom_flags(libc::O_PATH).open(proc.path(tid, "exe"));
        exe.and_then(|exe| InodeId::of(&exe)).map(|found| found == inode)
    };
    while !is_it().map_err(|e| gone_or("cannot read which file the task executes", e))? {
        if started.elapsed() > Duration::from_millis(200) {
            return Err(CaptureError::Gone);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let argv = command_line(proc, tid)?;
    Ok((task(proc, tid)?, argv))
}

pub(super) fn command_line(proc: &HostProc, tid: i32) -> Result<Vec<OsString>, CaptureError> {
    let line = std::fs::read(proc.path(tid, "cmdline"));
    let line = line.map_err(|e| gone_or("cannot read the command line", e))?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    Ok(line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
}

pub(super) fn arguments(proc: &HostProc, tid: i32) -> Result<Vec<OsString>, CaptureError> {
    let call = held_call(proc, tid)?;
    let Some(layout) = layout(call.number) else { return Err(CaptureError::NotExec(call.number)) };
    let mut memory = Memory::open(proc, tid)?;
    let mut argv = Vec::new();
    let mut left = MOST_BYTES;
    let mut pointers = [0u8; 64 * 8];
    let mut at = call.arguments[layout.argv];
    // A null argv is an empty one: Linux 5.18 and later then make it [""].
    'array: while at != 0 {
        let got = memory.read(at, &mut pointers)?;
        let (words, _) = pointers[..got].as_chunks::<8>();
        let halves;
        let pointers: &mut dyn Iterator<Item = u64> = if layout.pointer == 8 {
            &mut words.iter().map(|word| u64::from_ne_bytes(*word))
        } else {
            halves = pointers[..got].as_chunks::<4>().0;
            &mut halves.iter().map(|half| u64::from(u32::from_ne_bytes(*half)))
        };
        for pointer in pointers {
            if pointer == 0 {
                break 'array;
            }
            let argument = memory.string(pointer)?;
            left = left
                .checked_sub(argument.len() + 1 + layout.pointer)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))
                .map_err(|e| CaptureError::Io("the arguments are more than execve takes", e))?;
            argv.push(argument);
        }
        at = at.wrapping_add((got - got % layout.pointer) as u64);
    }
    Ok(argv)
}

/// Where a system call of the execve kind has its arguments, and how wide its pointers are.
struct Layout {
    argv: usize,
    pointer: usize,
}

const fn execve(pointer: usize) -> Option<Layout> {
    Some(Layout { argv: 1, pointer })
}

const fn execveat(pointer: usize) -> Option<Layout> {
    Some(Layout { argv: 2, pointer })
}

/// A task held at an exec is in execve or execveat: the number says which, and of which word size, without a doubt.
#[cfg(target_arch = "x86_64")]
fn layout(number: i64) -> Option<Layout> {
    const X32: i64 = 0x4000_0000;
    match number {
        59 => execve(8),
        322 => execveat(8),
        // i386
        11 => execve(4),
        358 => execveat(4),
        n if n == X32 | 520 => execve(4),
        n if n == X32 | 545 => execveat(4),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn layout(number: i64) -> Option<Layout> {
    match number {
        221 => execve(8),
        281 => execveat(8),
        // 32-bit Arm
        11 => execve(4),
        387 => execveat(4),
        _ => None,
    }
}

struct Call {
    number: i64,
    arguments: [u64; 6],
}

/// The system call that the task is held in, from `/proc/<tid>/syscall`: "running" until the task sleeps.
fn held_call(proc: &HostProc, tid: i32) -> Result<Call, CaptureError> {
    let path = proc.path(tid, "syscall");
    let started = Instant::now();
    let mut turns = 0u32;
    loop {
        let text = read_small(&path).map_err(|e| gone_or("cannot read the caller's system call", e))?;
        if let Some(call) = parse_call(&text) {
            return Ok(call);
        }
        if started.elapsed() > PATIENCE {
            let error = io::Error::new(io::ErrorKind::TimedOut, format!("it says {:?}", text.trim_end()));
            return Err(CaptureError::Io("the caller does not sleep in its system call", error));
        }
        turns += 1;
        if turns < 64 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// `59 0x… 0x… 0x… 0x… 0x… 0x… sp pc`; `running`, or `-1 sp pc` outside of a system call.
fn parse_call(text: &str) -> Option<Call> {
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    (number >= 0).then_some(Call { number, arguments })
}

/// What a task has mapped, as `/proc/<tid>/mem` shows it: by the pids of that procfs, which `process_vm_readv` would not
/// take from another pid namespace.
struct Memory {
    file: File,
    /// What was read last, and where: most arguments are short, and lie one behind the other.
    near: Vec<u8>,
    near_at: u64,
}

impl Memory {
    fn open(proc: &HostProc, tid: i32) -> Result<Memory, CaptureError> {
        let file = File::open(proc.path(tid, "mem")).map_err(|e| gone_or(READ, e))?;
        Ok(Memory { file, near: Vec::new(), near_at: 0 })
    }

    /// Reads up to `into.len()` bytes; fewer where the mapping ends, for the kernel reads page by page. At least one byte,
    /// or an error.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<usize, CaptureError> {
        match self.file.read_at(into, at) {
            // Of a task whose memory has gone.
            Ok(0) => Err(CaptureError::Gone),
            Ok(n) => Ok(n),
            Err(e) => Err(gone_or(READ, e)),
        }
    }

    /// What lies from here to the end of its page, or less. At least one byte, or an error.
    fn rest_of_page(&mut self, at: u64) -> Result<&[u8], CaptureError> {
        let known = at.checked_sub(self.near_at).and_then(|skip| usize::try_from(skip).ok());
        let skip = match known.filter(|skip| *skip < self.near.len()) {
            Some(skip) => skip,
            None => {
                let mut page = [0u8; PAGE];
                let got = self.read(at, &mut page[..PAGE - (at as usize % PAGE)])?;
                self.near.clear();
                self.near.extend_from_slice(&page[..got]);
                self.near_at = at;
                0
            }
        };
        Ok(&self.near[skip..])
    }

    /// A string, which ends at its first zero byte.
    fn string(&mut self, pointer: u64) -> Result<OsString, CaptureError> {
        let mut string = Vec::new();
        let mut at = pointer;
        while string.len() <= MOST_STRING {
            let page = self.rest_of_page(at)?;
            if let Some(end) = page.iter().position(|byte| *byte == 0) {
                string.extend_from_slice(&page[..end]);
                return Ok(OsString::from_vec(string));
            }
            string.extend_from_slice(page);
            at = at.wrapping_add(page.len() as u64);
        }
        Err(CaptureError::Io(
            "an argument is longer than execve takes",
            io::Error::from_raw_os_error(libc::E2BIG),
        ))
    }
}

const READ: &str = "cannot read the caller's memory";

pub(super) fn open_link(proc: &HostProc, tid: i32, name: &str) -> Result<OwnedFd, CaptureError> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(proc.path(tid, name))
        .map(OwnedFd::from)
        .map_err(|e| gone_or("cannot open the caller's root or working directory", e))
}

pub(super) fn gone_or(what: &'static str, error: io::Error) -> CaptureError {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => CaptureError::Gone,
        _ => CaptureError::Io(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_call_is_read_from_proc() {
        let call = parse_call("59 0x7ffd1 0x55 0x0 0x8 0xffffffffffffffff 0x1 0x7ffe 0x7f00\n").unwrap();
        assert_eq!(call.number, 59);
        assert_eq!(call.arguments, [0x7ffd1, 0x55, 0, 8, u64::MAX, 1]);
        for text in ["running\n", "-1 0x7ffe 0x7f00\n", "", "59", "59 0x1 0x2\n", "59 1 2 3 4 5 6\n"] {
            assert!(parse_call(text).is_none(), "{text:?}");
        }
    }
}
