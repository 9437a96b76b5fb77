//! bpf(2): programs, and what aya does with a map only for itself.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_insn;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_MAP_FREEZE: libc::c_int = 22;

const BPF_PROG_TYPE_TRACEPOINT: u32 = 5;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_RAW_TP: u32 = 23;

/// Where `recursion_misses` is in `struct bpf_prog_info`, in words of eight bytes.
const RECURSION_MISSES: usize = 208 / 8;

/// The part of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

/// The part of `union bpf_attr` for BPF_RAW_TRACEPOINT_OPEN.
#[repr(C)]
struct RawTracepoint {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

/// The part of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    type_fd: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_type_id: u32,
    attach_fd: u32,
    pad: u32,
}

/// The part of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct MapElement {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// What a program is for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// `tp_btf`: the tracepoint of which the kernel's types have this number.
    Tracepoint(u32),
    /// `raw_tp`: any, or none.
    RawTracepoint,
    /// An event of tracefs.
    Event,
}

/// # Safety
///
/// `attr` is what the kernel expects for `command`, and the pointers in it are good for the length of the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: as promised by the caller; the size is that of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Has the kernel verify and take a program. With room for a log the verifier says there what it did. Linux 5.5 for
/// [`Purpose::Tracepoint`].
pub(super) fn load(
    purpose: Purpose,
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let (kind, attach_type, attach_type_id) = match purpose {
        Purpose::Tracepoint(id) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP, id),
        Purpose::RawTracepoint => (BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
        Purpose::Event => (BPF_PROG_TYPE_TRACEPOINT, 0, 0),
    };
    let mut attr = ProgramLoad {
        kind,
        attach_type,
        attach_type_id,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..ProgramLoad::default()
    };
    // The last byte stays zero.
    attr.name.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
    if !log.is_empty() {
        (attr.log_level, attr.log_size, attr.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
    }
    // SAFETY: instructions, licence and log are good for the lengths that are given and outlive the call; the descriptor
    // is new, and nobody else owns it.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Puts a program into an array of programs.
pub(super) fn put(map: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    write_at(map, index, &program.as_raw_fd().to_ne_bytes())
}

/// Writes the one element of an array.
pub(super) fn write(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    write_at(map, 0, value)
}

fn write_at(map: BorrowedFd<'_>, key: u32, value: &[u8]) -> io::Result<()> {
    let mut attr = MapElement {
        fd: map.as_raw_fd() as u32,
        pad: 0,
        key: &raw const key as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key of four bytes, and as much of the value as the map was made for: the caller's length.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop) }
}

/// Nobody writes to the map any more, by a system call: the verifier knows its contents. Linux 5.2.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = map.as_raw_fd() as u32;
    // SAFETY: the attribute is one number.
    unsafe { bpf(BPF_MAP_FREEZE, &mut fd).map(drop) }
}

/// Attaches a program to a raw tracepoint; without a name to the one that it was loaded for (`tp_btf`). It is attached as
/// long as the descriptor is open.
pub(super) fn attach(program: BorrowedFd<'_>, tracepoint: Option<&CStr>) -> io::Result<OwnedFd> {
    let mut attr = RawTracepoint {
        name: tracepoint.map_or(0, |name| name.as_ptr() as u64),
        prog_fd: program.as_raw_fd() as u32,
        pad: 0,
    };
    // SAFETY: `name` is a C string that outlives the call; the descriptor is new, and nobody else owns it.
    unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// The kernel's list of events, which is not mounted everywhere.
pub(crate) struct Tracefs(OwnedFd);

impl Tracefs {
    /// Where it is mounted; else a mount of our own, that nobody sees and that goes with this.
    pub(crate) fn open(host_root: &Path) -> io::Result<Tracefs> {
        for place in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
            for root in [Path::new("/"), host_root] {
                let path = root.join(&place[1..]);
                if path.join("events/syscalls").is_dir() {
                    return File::open(path).map(|dir| Tracefs(dir.into()));
                }
            }
        }
        const FSOPEN_CLOEXEC: libc::c_uint = 1;
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        const FSMOUNT_CLOEXEC: libc::c_uint = 1;
        let owned = |fd: libc::c_long| {
            let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0);
            // SAFETY: a descriptor that was returned is new, and ours.
            fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).ok_or_else(io::Error::last_os_error)
        };
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the name is a C string, and the other pointers are null, as this command wants them.
        unsafe {
            let fs = owned(libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC))?;
            if libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            owned(libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0)).map(Tracefs)
        }
    }

    /// The number of an event, such as `syscalls/sys_enter_execve`.
    pub(super) fn id(&self, event: &str) -> io::Result<u64> {
        let path = CString::new(format!("events/{event}/id"))?;
        // SAFETY: the path is a C string; a descriptor that is returned is new, and ours.
        let mut file = unsafe {
            let fd = libc::openat(self.0.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// `struct perf_event_attr` in its first published size.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    more: u64,
}

/// Attaches a tracepoint program to an event: it then runs on every processor, as long as the descriptor is open.
pub(super) fn attach_to_event(program: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
    const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
    let event = PerfEvent {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<PerfEvent>() as u32,
        config: id,
        sample_period: 1,
        ..PerfEvent::default()
    };
    // The processor is that of the event's own records, of which there are none.
    let (everybody, processor, no_group) = (-1, 0, -1);
    // SAFETY: `event` is readable for the size that it says; the descriptor is new and ours; the programs' is open.
    unsafe {
        let number = libc::SYS_perf_event_open;
        let fd =
            libc::syscall(number, &raw const event, everybody, processor, no_group, PERF_FLAG_FD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let link = OwnedFd::from_raw_fd(fd as libc::c_int);
        let set = libc::ioctl(link.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd());
        if set < 0 || libc::ioctl(link.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(link)
    }
}

/// Runs a raw tracepoint program once, here and now, and returns what it returned. Linux 5.10.
pub(super) fn run(program: BorrowedFd<'_>, context: &[u64]) -> io::Result<u32> {
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        ctx_in: context.as_ptr() as u64,
        ctx_size_in: size_of_val(context) as u32,
        ..TestRun::default()
    };
    // SAFETY: `context` is readable for the length that is given and outlives the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr)? };
    Ok(attr.retval)
}

/// How often the kernel skipped a program because a run of it was under way. Linux 5.12.
pub(super) fn misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = [0u64; RECURSION_MISSES + 1];
    let mut attr = InfoByFd {
        fd: program.as_raw_fd() as u32,
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `info` is writable for the length that is given and outlives the call. The kernel takes its zeros for "no
    // room": it fills in none of the arrays that the structure can point to.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info[RECURSION_MISSES])
}

/// The kernel counts and times all programs' runs while the descriptor is open. Linux 5.8.
#[cfg(test)]
pub(super) fn count_runs() -> io::Result<OwnedFd> {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    let mut run_time = 0u32;
    // SAFETY: the attribute is one number; the descriptor is new, and nobody else owns it.
    unsafe { bpf(BPF_ENABLE_STATS, &mut run_time).map(|fd| OwnedFd::from_raw_fd(fd)) }
}
