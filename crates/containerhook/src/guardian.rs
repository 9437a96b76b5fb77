//! Who lets stopped containers go on when the listener is gone.
//!
//! What a permission event holds goes on by itself when the listener dies. What a BPF program stopped with SIGSTOP does
//! not: its [`ExecWatch`](crate::exec_watch::ExecWatch) would have sent the SIGCONT. So before anything is stopped a tiny
//! child is forked, which waits for the end of its parent and then continues whatever was stopped. It needs no messages:
//! it keeps a descriptor of the BPF table that the stops are made by, where each process that may be stopped stands from
//! its fork on, and stays until the engine has released it. That is exact also where the listener had been stopped itself
//! and never learned of a stop, and where the runtime (`run --detach`) has ended and the container has other parents.
//!
//! The child is forked without exec, for there is no program to execute, from a process with many threads: it makes system
//! calls and nothing else, no allocation, no lock, no panic. It has no exit signal, so the program's SIGCHLD handler and
//! wait(2) never see it; a session of its own, no signal that it could die of except SIGKILL; two descriptors; and a few
//! pages, for it gives back its copy of the parent's heap.
//!
//! # Known problems
//!
//! Whoever kills the guardian together with the listener (SIGKILL to the whole cgroup) at the very moment at which a
//! container is stopped leaves that container stopped.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long the child may take to get ready. It is a millisecond where the machine is not busy.
const READY: Duration = Duration::from_secs(2);

/// How long a dropped guardian is waited for, where it has nothing left to do. It may go on for longer than that, unseen.
const LEAVE: Duration = Duration::from_millis(200);

/// The child. Dropped, or at the end of the process, whatever is still stopped goes on.
#[derive(Debug)]
pub(crate) struct Guardian {
    /// The child waits for this end to be closed: by `drop`, or by the kernel.
    channel: Option<OwnedFd>,
    pidfd: OwnedFd,
}

impl Guardian {
    /// Forks the child and waits until it is ready. `stops` is the BPF hash table `unders`: key `u32`, the tgid, value
    /// `struct under`, whose first field is the start time. Belongs on the engine's side, as every descriptor.
    pub(crate) fn start(stops: BorrowedFd<'_>) -> io::Result<Guardian> {
        let (ours, theirs) = sys::channel()?;
        let pidfd = sys::fork(|| child::main(theirs.as_raw_fd(), stops.as_raw_fd()))?;
        drop(theirs);
        let guardian = Guardian { channel: Some(ours), pidfd };
        if let Some(channel) = &guardian.channel
            && !(sys::readable(channel.as_fd(), READY)? && sys::read_one(channel.as_fd())?)
        {
            // Not ready, and it may hold copies of what must be closed.
            sys::kill(guardian.pidfd.as_fd());
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the guardian did not get ready"));
        }
        Ok(guardian)
    }

    /// Whether it still guards. Ask before each stop: somebody may have killed it.
    pub(crate) fn is_alive(&self) -> bool {
        // A pidfd is readable once its process has ended.
        !sys::readable(self.pidfd.as_fd(), Duration::ZERO).unwrap_or(true)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.channel = None;
        // One that has somebody to let go stays for a while. It is then reaped with this process.
        if sys::readable(self.pidfd.as_fd(), LEAVE).unwrap_or(false) {
            sys::reap(self.pidfd.as_fd());
        }
    }
}

/// The thin calls of the parent.
pub(crate) mod sys {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
    use std::time::{Duration, Instant};

    fn check(result: libc::c_long) -> io::Result<libc::c_long> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
        let mut ends = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the array is writable for the two descriptors, which are new and nobody else's.
        unsafe {
            check(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()).into())?;
            Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
        }
    }

    /// Forks, without an exit signal and with every signal blocked in the child. Returns the child's pidfd.
    ///
    /// `child` runs in the copy of a process with many threads: it must only make system calls.
    pub(crate) fn fork(child: impl FnOnce() -> std::convert::Infallible) -> io::Result<OwnedFd> {
        let mut pidfd: libc::c_int = -1;
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the sets are written before they are read. Signals are blocked around the fork so that no handler of the
        // program runs in the child. The clone is that of fork(2) with two differences, no exit signal and a pidfd, whose
        // pointer is the third argument on every architecture; it is writable. The new descriptor is ours alone.
        unsafe {
            let mut all = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            let flags = libc::CLONE_PIDFD as libc::c_ulong;
            let pid = libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize);
            let forked = check(pid);
            if pid == 0 {
                child();
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
            forked.map(|_| OwnedFd::from_raw_fd(pidfd))
        }
    }

    /// Waits until there is something to read, or nothing ever will be.
    pub(crate) fn readable(fd: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now()).as_millis() as libc::c_int;
            let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, writable.
            match check(unsafe { libc::poll(&raw mut poll, 1, left) }.into()) {
                Ok(count) => return Ok(count > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `false` at the end.
    pub(super) fn read_one(fd: BorrowedFd<'_>) -> io::Result<bool> {
        let mut byte = 0u8;
        // SAFETY: one writable byte.
        let count = unsafe { libc::read(fd.as_raw_fd(), (&raw mut byte).cast(), 1) };
        check(count as libc::c_long).map(|count| count == 1)
    }

    pub(crate) fn kill(pidfd: BorrowedFd<'_>) {
        let no_info = std::ptr::null_mut::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed. It fails only for a process that has ended.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, no_info, 0);
        }
    }

    /// Takes the zombie away, which only `__WALL` sees.
    pub(crate) fn reap(pidfd: BorrowedFd<'_>) {
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
        // SAFETY: `info` is writable and not read. Where somebody else has reaped it (ECHILD) there is nothing to do.
        unsafe {
            libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, info.as_mut_ptr(), options);
        }
    }
}

/// What the child does: system calls on memory of its own stack, and arithmetic that cannot panic.
mod child {
    use std::convert::Infallible;

    /// As many as the table has entries (`unders` in bpf/exec.h).
    const MOST: usize = 4096;

    /// The table's own descriptor, and the channel's, where they end up.
    const CHANNEL: i32 = 0;
    const STOPS: i32 = 1;

    const BPF_MAP_LOOKUP_ELEM: i32 = 1;
    const BPF_MAP_DELETE_ELEM: i32 = 3;
    const BPF_MAP_GET_NEXT_KEY: i32 = 4;

    /// The part of `union bpf_attr` for a map's elements; `value` is `next_key` as well.
    #[repr(C)]
    struct Element {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    /// `struct under` of bpf/exec.h.
    #[repr(C)]
    struct Under {
        start: u64,
        origin: u32,
        mount_namespace: u32,
    }

    #[derive(Clone, Copy)]
    struct Suspect {
        pid: u32,
        start: u64,
    }

    const NOBODY: Suspect = Suspect { pid: 0, start: 0 };

    pub(super) fn main(channel: i32, stops: i32) -> Infallible {
        if close_all_but(channel, stops) {
            // SAFETY: setsid and chdir take nothing but a constant string, prctl a constant one.
            unsafe {
                libc::syscall(libc::SYS_setsid);
                // A folder that the program sits in is none of the guardian's.
                libc::syscall(libc::SYS_chdir, c"/".as_ptr());
                libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"ch-guardian".as_ptr(), 0, 0, 0);
            }
            give_back();
            let ready = 1u8;
            // SAFETY: one readable byte.
            unsafe { libc::syscall(libc::SYS_write, CHANNEL, &raw const ready, 1) };
            wait_for_the_end();
            let_go();
        }
        exit()
    }

    fn exit() -> ! {
        loop {
            // SAFETY: it does not return.
            unsafe { libc::syscall(libc::SYS_exit_group, 0) };
        }
    }

    /// Above all the fanotify group: a copy of it would keep everything held that the listener's end is to let go.
    fn close_all_but(channel: i32, stops: i32) -> bool {
        // SAFETY: descriptors of this process, whose table is a copy that nobody else has; the owners of their numbers are
        // objects of the parent, which are never dropped here.
        unsafe {
            // Out of the way first: each may have the other's place.
            let channel = libc::syscall(libc::SYS_fcntl, channel, libc::F_DUPFD, 8);
            let stops = libc::syscall(libc::SYS_fcntl, stops, libc::F_DUPFD, 8);
            libc::syscall(libc::SYS_dup3, channel, CHANNEL, 0) >= 0
                && libc::syscall(libc::SYS_dup3, stops, STOPS, 0) >= 0
                && libc::syscall(libc::SYS_close_range, 2u32, u32::MAX, 0u32) == 0
        }
    }

    fn wait_for_the_end() {
        let mut byte = 0u8;
        loop {
            // SAFETY: one writable byte.
            let read = unsafe { libc::syscall(libc::SYS_read, CHANNEL, &raw mut byte, 1) };
            // Nobody writes. A debugger may interrupt.
            if read == 0 || (read < 0 && errno() != libc::EINTR) {
                return;
            }
        }
    }

    fn errno() -> i32 {
        // SAFETY: the thread's own errno, which is a copy as everything here.
        unsafe { *libc::__errno_location() }
    }

    /// Continues what was stopped, and what is going to be: the kernel closes the listener's descriptors in some order, and
    /// the programs may be attached for a moment longer than the channel was open.
    fn let_go() {
        let mut suspects = [NOBODY; MOST];
        let mut count = 0;
        // 0, 2, 4 … 1024 ms: two seconds in all. A process is stopped as soon as it runs again after its exec, which may
        // take that long where the machine is overloaded.
        let mut pause_ms = 0;
        while pause_ms <= 1024 {
            sleep(pause_ms);
            count = take(&mut suspects, count);
            let mut left = false;
            for suspect in suspects.iter_mut().take(count).filter(|suspect| suspect.pid != 0) {
                if settle(*suspect) {
                    *suspect = NOBODY;
                } else {
                    left = true;
                }
            }
            if pause_ms > 0 && !left {
                return;
            }
            pause_ms = if pause_ms == 0 { 2 } else { pause_ms << 1 };
        }
    }

    fn sleep(ms: i64) {
        let time = libc::timespec { tv_sec: (ms / 1000) as _, tv_nsec: (ms % 1000 * 1_000_000) as _ };
        // SAFETY: a readable timespec; what is left after an interruption is not asked for.
        unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0usize) };
    }

    /// Takes all entries out of the table: what is not in it is not stopped, nor are its children.
    fn take(suspects: &mut [Suspect; MOST], mut count: usize) -> usize {
        let mut key = 0u32;
        for _ in 0..MOST {
            // From the start each time, for the last one is gone.
            let mut request =
                Element { map: STOPS as u32, pad: 0, key: 0, value: (&raw mut key) as u64, flags: 0 };
            if !bpf(BPF_MAP_GET_NEXT_KEY, &mut request) {
                break;
            }
            let mut under = Under { start: 0, origin: 0, mount_namespace: 0 };
            let mut request = Element {
                map: STOPS as u32,
                pad: 0,
                key: (&raw const key) as u64,
                value: (&raw mut under) as u64,
                flags: 0,
            };
            if bpf(BPF_MAP_LOOKUP_ELEM, &mut request)
                && let Some(suspect) = suspects.get_mut(count)
            {
                *suspect = Suspect { pid: key, start: under.start };
                count += 1;
            }
            // The kernel wants to see nothing in the fields that a command does not use.
            request.value = 0;
            if !bpf(BPF_MAP_DELETE_ELEM, &mut request) {
                break;
            }
        }
        count
    }

    fn bpf(command: i32, request: &mut Element) -> bool {
        // SAFETY: `request` is what the kernel expects for these commands, its pointers are to live memory of the sizes that
        // the table was made with: a key of four bytes, a value of sixteen.
        unsafe {
            libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(request), size_of::<Element>()) == 0
        }
    }

    /// Continues a process if it is stopped. `true` when nothing is left to do for it.
    fn settle(suspect: Suspect) -> bool {
        // SAFETY: takes no pointers. The descriptor is closed below.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, suspect.pid, 0) };
        if pidfd < 0 {
            return true;
        }
        // What is read now is of the process of the pidfd, or of nobody: whoever has the pid has the start time too.
        let done = match stat(suspect.pid) {
            Some((_, start)) if start != suspect.start => true,
            Some((b'T', _)) => {
                // SAFETY: a null siginfo is allowed.
                unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGCONT, 0usize, 0) };
                true
            }
            Some((b'Z' | b'X', _)) | None => true,
            Some(_) => false,
        };
        // SAFETY: opened above, and nobody else's.
        unsafe { libc::syscall(libc::SYS_close, pidfd) };
        done
    }

    /// State and start time.
    fn stat(pid: u32) -> Option<(u8, u64)> {
        let mut path = [0u8; 24];
        let mut digits = [0u8; 10];
        let mut rest = pid;
        let mut at = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0'.wrapping_add((rest % 10) as u8);
            rest /= 10;
            at = at.wrapping_sub(1);
            if rest == 0 {
                break;
            }
        }
        let words = b"/proc/".iter().chain(digits.iter().skip(at)).chain(b"/stat\0");
        for (to, from) in path.iter_mut().zip(words) {
            *to = *from;
        }
        let mut text = [0u8; 512];
        let len = read_file(&path, &mut text)?;
        let text = text.get(..len)?;
        // The name may hold anything, a parenthesis too: the last one ends it.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let mut words = text.get(end.wrapping_add(2)..)?.split(|byte| *byte == b' ');
        let state = *words.next()?.first()?;
        // Field 22; the state is the third.
        let mut start = 0u64;
        for digit in words.nth(18)? {
            start = start.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')));
        }
        Some((state, start))
    }

    /// The beginning of a file. `path` ends with a zero.
    fn read_file(path: &[u8], into: &mut [u8]) -> Option<usize> {
        // SAFETY: a path that ends with a zero, a buffer that is writable for its length, a descriptor of our own.
        unsafe {
            let file = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY, 0);
            if file < 0 {
                return None;
            }
            let count = libc::syscall(libc::SYS_read, file, into.as_mut_ptr(), into.len());
            libc::syscall(libc::SYS_close, file);
            usize::try_from(count).ok()
        }
    }

    /// Gives back the copies of the parent's heap and of its other threads' stacks. The child would otherwise keep every page
    /// that the parent writes to, or frees, later.
    ///
    /// Kept are what comes from files (code, constants and their relocations), this stack, and where errno lies.
    fn give_back() {
        let mut chunk = [0u8; 1024];
        let here = chunk.as_ptr() as u64;
        // SAFETY: only its address is taken.
        let errno = unsafe { libc::__errno_location() } as u64;
        // SAFETY: a constant path.
        let file = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/maps".as_ptr(), libc::O_RDONLY, 0)
        };
        if file < 0 {
            return;
        }
        let mut line = [0u8; 128];
        let mut len = 0usize;
        loop {
            // SAFETY: the buffer is writable for its length.
            let count = unsafe { libc::syscall(libc::SYS_read, file, chunk.as_mut_ptr(), chunk.len()) };
            let Ok(count @ 1..) = usize::try_from(count) else { break };
            for byte in chunk.iter().take(count) {
                if *byte != b'\n' {
                    // A path that is longer than this is one all the same.
                    if let Some(to) = line.get_mut(len) {
                        *to = *byte;
                        len = len.wrapping_add(1);
                    }
                    continue;
                }
                if let Some((from, to)) = line.get(..len).and_then(of_nobody)
                    && ![here, errno].iter().any(|address| (from..to).contains(address))
                {
                    // SAFETY: private anonymous memory of this copy of the process. What lies in it (the allocator's heap,
                    // the stacks of threads that are not here) is never looked at again by this thread, whose own stack and
                    // errno lie elsewhere.
                    unsafe {
                        libc::syscall(libc::SYS_madvise, from, to.wrapping_sub(from), libc::MADV_DONTNEED)
                    };
                }
                len = 0;
            }
        }
        // SAFETY: opened above, and nobody else's.
        unsafe { libc::syscall(libc::SYS_close, file) };
    }

    /// The range of a line of `maps` that is private, writable and of no file: `from-to rw-p offset device inode [name]`.
    fn of_nobody(line: &[u8]) -> Option<(u64, u64)> {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let mut range = words.next()?.split(|byte| *byte == b'-');
        let (from, to) = (hexadecimal(range.next()?)?, hexadecimal(range.next()?)?);
        let private = words.next()? == b"rw-p";
        let no_file = words.nth(2)? == b"0";
        let name = words.next().unwrap_or_default();
        let plain = name.is_empty() || name == b"[heap]" || name.starts_with(b"[anon");
        (private && no_file && plain).then_some((from, to))
    }

    fn hexadecimal(word: &[u8]) -> Option<u64> {
        let mut number = 0u64;
        for byte in word {
            let digit = match byte {
                b'0'..=b'9' => byte.wrapping_sub(b'0'),
                b'a'..=b'f' => byte.wrapping_sub(b'a').wrapping_add(10),
                _ => return None,
            };
            number = number.wrapping_shl(4) | u64::from(digit);
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests;
