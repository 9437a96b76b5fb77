//! bpf(2), for what aya does only for a program that it keeps.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;

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

/// # Safety
///
/// `attr` is what the kernel expects for `command`, and the pointers in it are good for the length of the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: as promised by the caller; the size is that of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
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
