//! A stand-in for a container runtime: static, without libc, done in microseconds, so that what a listener adds is seen.
//!
//! It is compiled by `cargo xtask bench` with rustc alone, as cargo has no panic strategy for one package.
//!
//! ```text
//! standin                      succeeds
//! standin wait                 waits to be killed
//! standin hook                 reads its input to the end: crun dies of SIGPIPE of a hook that does not
//! standin herd N               N processes that wait; a line on stdout when they are there
//! standin --root R create --bundle B --pid-file P ID
//! standin --root R start|run|delete … ID
//! standin WORDS                succeeds
//! ```
//!
//! The id says how much is done. `x…`: create writes its own pid, and that is all. `t…`: create forks an init, which
//! `start` lets execute `B/rootfs/entry wait`. A `t…` stamps descriptor 3 with the monotonic clock (eight bytes) just
//! before create ends, and just before the init executes its entrypoint.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    main = sym main,
);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {main}", main = sym main);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

#[cfg(target_arch = "x86_64")]
mod nr {
    pub(crate) const WRITE: usize = 1;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const KILL: usize = 62;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const READ: usize = 0;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const UNLINKAT: usize = 263;
    pub(crate) const PPOLL: usize = 271;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub(crate) const UNLINKAT: usize = 35;
    pub(crate) const OPENAT: usize = 56;
    pub(crate) const CLOSE: usize = 57;
    pub(crate) const READ: usize = 63;
    pub(crate) const WRITE: usize = 64;
    pub(crate) const PPOLL: usize = 73;
    pub(crate) const EXIT_GROUP: usize = 94;
    pub(crate) const CLOCK_GETTIME: usize = 113;
    pub(crate) const KILL: usize = 129;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const GETPID: usize = 172;
    pub(crate) const CLONE: usize = 220;
    pub(crate) const EXECVE: usize = 221;
    pub(crate) const WAIT4: usize = 260;
}

/// What the compiler calls for arrays of zeros. Volatile, or it would be compiled to a call of itself.
#[unsafe(no_mangle)]
extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller owns `count` bytes at `to`.
        unsafe { to.add(at).write_volatile(byte as u8) };
        at += 1;
    }
    to
}

/// The core library that comes with rustc names it; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

fn call(number: usize, a: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel checks what it is given; every pointer below is to memory that lives through the call.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2],
             in("x3") a[3], in("x4") a[4]);
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        call(nr::EXIT_GROUP, [code, 0, 0, 0, 0]);
    }
}

fn wait_for_ever() -> ! {
    loop {
        call(nr::PPOLL, [0; 5]);
    }
}

fn fork() -> isize {
    const SIGCHLD: usize = 17;
    call(nr::CLONE, [SIGCHLD, 0, 0, 0, 0])
}

const AT_FDCWD: usize = -100isize as usize;
const STAMPS: usize = 3;
const SIGUSR1: usize = 10;

fn stamp() {
    let mut now = [0u64; 2];
    call(nr::CLOCK_GETTIME, [1, now.as_mut_ptr() as usize, 0, 0, 0]);
    let nanos = now[0] * 1_000_000_000 + now[1];
    call(nr::WRITE, [STAMPS, &raw const nanos as usize, 8, 0, 0]);
}

/// A word of the command line; it ends with a zero byte.
type Word = *const u8;

fn byte(word: Word, at: usize) -> u8 {
    // SAFETY: the kernel ends each argument with a zero byte, and no caller asks beyond it.
    unsafe { *word.add(at) }
}

fn is(word: Word, text: &[u8]) -> bool {
    let mut at = 0;
    while at < text.len() {
        if byte(word, at) != text[at] {
            return false;
        }
        at += 1;
    }
    byte(word, at) == 0
}

struct Path {
    bytes: [u8; 1024],
    length: usize,
}

impl Path {
    fn of(folder: Word) -> Path {
        let mut path = Path { bytes: [0; 1024], length: 0 };
        path.push(folder);
        path
    }

    fn push(&mut self, word: Word) {
        let mut at = 0;
        while byte(word, at) != 0 && self.length < 1022 {
            self.bytes[self.length] = byte(word, at);
            self.length += 1;
            at += 1;
        }
    }
}

fn write_number(path: Word, number: isize) {
    const CREATE: usize = 0o1 | 0o100 | 0o1000;
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    while at == digits.len() || rest > 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let fd = call(nr::OPENAT, [AT_FDCWD, path as usize, CREATE, 0o644, 0]);
    if fd < 0 {
        exit(3);
    }
    call(nr::WRITE, [fd as usize, &raw const digits[at] as usize, digits.len() - at, 0, 0]);
    call(nr::CLOSE, [fd as usize, 0, 0, 0, 0]);
}

fn read_number(path: Word) -> usize {
    let mut digits = [0u8; 20];
    let fd = call(nr::OPENAT, [AT_FDCWD, path as usize, 0, 0, 0]);
    if fd < 0 {
        exit(4);
    }
    let got = call(nr::READ, [fd as usize, digits.as_mut_ptr() as usize, digits.len(), 0, 0]);
    let (mut at, mut number) = (0, 0);
    while (at as isize) < got {
        number = number * 10 + usize::from(digits[at] - b'0');
        at += 1;
    }
    number
}

fn entrypoint(bundle: Word) -> ! {
    let mut path = Path::of(bundle);
    path.push(c"/rootfs/entry".as_ptr().cast());
    let argv = [path.bytes.as_ptr(), c"wait".as_ptr().cast(), core::ptr::null()];
    let none: [Word; 1] = [core::ptr::null()];
    stamp();
    call(nr::EXECVE, [path.bytes.as_ptr() as usize, argv.as_ptr() as usize, none.as_ptr() as usize, 0, 0]);
    exit(5)
}

/// What `create` leaves behind: it waits for `start`, and becomes the entrypoint.
fn init(bundle: Word) -> ! {
    let set: u64 = 1 << (SIGUSR1 - 1);
    while call(nr::RT_SIGTIMEDWAIT, [&raw const set as usize, 0, 0, 8, 0]) != SIGUSR1 as isize {}
    entrypoint(bundle)
}

fn herd(count: Word) -> ! {
    let (mut left, mut at) = (0usize, 0);
    while byte(count, at) != 0 {
        left = left * 10 + usize::from(byte(count, at) - b'0');
        at += 1;
    }
    while left > 0 {
        match fork() {
            0 => {
                // PR_SET_PDEATHSIG: the herd goes with its shepherd.
                call(nr::PRCTL, [1, 9, 0, 0, 0]);
                wait_for_ever()
            }
            error if error < 0 => exit(6),
            _ => left -= 1,
        }
    }
    call(nr::WRITE, [1, c"ready\n".as_ptr() as usize, 6, 0, 0]);
    wait_for_ever()
}

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: the kernel puts the number of arguments on the stack, and the arguments behind it.
    let argc = unsafe { *stack };
    // SAFETY: as above; no caller asks for one beyond the number.
    let argument = |at: usize| -> Word { unsafe { *stack.add(1 + at) as Word } };
    if argc < 2 {
        exit(0);
    }
    if is(argument(1), b"wait") {
        wait_for_ever();
    }
    if is(argument(1), b"hook") {
        let mut bytes = [0u8; 512];
        while call(nr::READ, [0, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0]) > 0 {}
        exit(0);
    }
    if is(argument(1), b"herd") && argc == 3 {
        herd(argument(2));
    }
    let null: Word = core::ptr::null();
    let (mut root, mut bundle, mut pid_file, mut verb, mut id) = (null, null, null, null, null);
    let mut at = 1;
    while at < argc {
        let word = argument(at);
        let value = if at + 1 < argc { argument(at + 1) } else { null };
        if is(word, b"--root") {
            root = value;
            at += 1;
        } else if is(word, b"--bundle") {
            bundle = value;
            at += 1;
        } else if is(word, b"--pid-file") {
            pid_file = value;
            at += 1;
        } else if verb.is_null() {
            verb = word;
        } else {
            id = word;
        }
        at += 1;
    }
    if verb.is_null() || id.is_null() || root.is_null() {
        exit(0);
    }
    let timed = byte(id, 0) == b't';
    let mut state = Path::of(root);
    state.push(c"/".as_ptr().cast());
    state.push(id);
    let state = state.bytes.as_ptr();
    if is(verb, b"create") && !timed {
        write_number(pid_file, call(nr::GETPID, [0; 5]));
    } else if is(verb, b"create") {
        let set: u64 = 1 << (SIGUSR1 - 1);
        call(nr::RT_SIGPROCMASK, [0, &raw const set as usize, 0, 8, 0]);
        let child = fork();
        if child == 0 {
            init(bundle);
        }
        write_number(pid_file, child);
        write_number(state, child);
        stamp();
    } else if is(verb, b"start") && timed {
        call(nr::KILL, [read_number(state), SIGUSR1, 0, 0, 0]);
    } else if is(verb, b"run") {
        let child = fork();
        if child == 0 {
            entrypoint(bundle);
        }
        call(nr::WAIT4, [child as usize, 0, 0, 0, 0]);
    } else if is(verb, b"delete") {
        call(nr::UNLINKAT, [AT_FDCWD, state as usize, 0, 0, 0]);
    }
    exit(0)
}
