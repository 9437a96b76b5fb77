//! The system calls of a listener, and the filter that lets no others through.
//!
//! The list is generous with what a process does to itself (memory, threads, its own descriptors and files), so that no
//! version of the C library is surprised, and names one by one what reaches beyond. What is not on it fails with EPERM and
//! is logged by the kernel (`journalctl -k`, or the audit log); it kills nothing, for a listener that is killed by surprise
//! is worse for the host than one that is told no. Above all it is: executing a program (so what reads held executions
//! is replaced without the trial of a start), any socket but a local one,
//! mounting, entering a namespace, tracing, writing another process's memory, loading a module, io_uring.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What is allowed whatever its arguments are.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    // What is open, and files: rights are asked where they are opened.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2,
    libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_lseek,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_getcwd,
    libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_dup, libc::SYS_dup3, libc::SYS_ioctl,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_mkdirat, libc::SYS_linkat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_utimensat,
    libc::SYS_ftruncate, libc::SYS_truncate, libc::SYS_fallocate, libc::SYS_fadvise64,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_syncfs,
    libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_flistxattr, libc::SYS_setxattr, libc::SYS_fsetxattr, libc::SYS_copy_file_range, libc::SYS_sendfile,
    libc::SYS_splice, libc::SYS_memfd_create, libc::SYS_umask,
    // Waiting.
    libc::SYS_pipe2, libc::SYS_eventfd2, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_signalfd4, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_restart_syscall, libc::SYS_sched_yield, libc::SYS_membarrier,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_times,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk,
    libc::SYS_mincore, libc::SYS_msync, libc::SYS_mlock, libc::SYS_munlock, libc::SYS_getrandom,
    // Threads, and the child that guards what is stopped.
    libc::SYS_clone, libc::SYS_clone3, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_set_robust_list,
    libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_prctl, libc::SYS_setsid,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getscheduler, libc::SYS_sched_getparam,
    libc::SYS_getpriority, libc::SYS_setpriority, libc::SYS_getcpu, libc::SYS_wait4, libc::SYS_waitid,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sigaltstack, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill,
    // Who and where it is.
    libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_getuid,
    libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid,
    libc::SYS_getgroups, libc::SYS_capget, libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrusage, libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    // Taking on a rootless user's rights, and giving them back.
    libc::SYS_setgroups, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_capset,
    // A socket that is there: systemd's.
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_connect,
    libc::SYS_shutdown, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
    // What it is for.
    libc::SYS_fanotify_init, libc::SYS_fanotify_mark, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch, libc::SYS_bpf, libc::SYS_process_vm_readv, libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal, libc::SYS_perf_event_open,
    // The kernel's list of events in a mount of its own that is put nowhere, where none is mounted (`bpf/sys.rs`).
    libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount,
];

/// Older spellings, which only this architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALSO_ALLOWED: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_getdents, libc::SYS_rename, libc::SYS_unlink, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_link,
    libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_dup2, libc::SYS_pipe, libc::SYS_eventfd,
    libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_select, libc::SYS_signalfd, libc::SYS_time,
    libc::SYS_arch_prctl, libc::SYS_getpgrp, libc::SYS_inotify_init,
];
#[cfg(not(target_arch = "x86_64"))]
const ALSO_ALLOWED: &[libc::c_long] = &[];

/// The call with this argument only.
fn with(argument: u8, value: libc::c_int) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let same = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64)?;
    Ok(vec![SeccompRule::new(vec![same])?])
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = ALLOWED.iter().chain(ALSO_ALLOWED);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, with(0, libc::AF_UNIX)?);
    rules.insert(libc::SYS_socketpair, with(0, libc::AF_UNIX)?);
    // The engine's own table of descriptors; no namespace.
    rules.insert(libc::SYS_unshare, with(0, libc::CLONE_FILES)?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Sets the filter for every thread there is, and so for every one to come.
pub(super) fn allow_what_is_used() -> io::Result<()> {
    let mut program = program().map_err(io::Error::other)?;
    rustix::thread::set_no_new_privs(true)?;
    set(&mut program)
}

fn set(program: &mut BpfProgram) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr().cast(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG;
    // SAFETY: `filter` names `len` instructions of the kernel's own layout (as libc has it too), which the kernel copies.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match result {
        0 => Ok(()),
        thread if thread > 0 => Err(io::Error::other(format!("thread {thread} has a filter of its own"))),
        _ => Err(io::Error::last_os_error()),
    }
}

const _: () = assert!(size_of::<seccompiler::sock_filter>() == size_of::<libc::sock_filter>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_one_that_the_kernel_takes() {
        let mut program = program().unwrap();
        // BPF_MAXINSNS
        assert!(program.len() < 4096, "{}", program.len());
        // On a thread of its own: without the flag for all of them it is this thread's alone.
        std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            seccompiler::apply_filter(&program).unwrap();
            let refused = |result: libc::c_long| {
                assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
            };
            // SAFETY: none of these takes a pointer, and none succeeds.
            unsafe {
                refused(libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0));
                refused(libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS));
                refused(libc::syscall(libc::SYS_setns, -1, 0));
                refused(libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, 0, 0, 0));
                refused(libc::syscall(libc::SYS_io_uring_setup, 0, 0));
            }
            assert_eq!(
                std::process::Command::new("/bin/true").status().unwrap_err().raw_os_error(),
                Some(libc::EPERM)
            );
            assert!(std::os::unix::net::UnixDatagram::unbound().is_ok());
            assert!(std::fs::read("/proc/self/status").is_ok());
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            program.clear();
        })
        .join()
        .unwrap();
    }
}
