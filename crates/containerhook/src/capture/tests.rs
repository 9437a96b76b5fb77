//! Executions of every kind, held by the kernel and read while they are held.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fanotify::{Event, Group};
use testkit::{Scratch, need, watchdog};

use super::traced::{Gap, Tracer};
use super::{Capture, CaptureError, ExecRecord, Reader};
use crate::bpf::Loader;
use crate::lookup::{Found, Lookup};
use crate::notifier::CaptureBackend;
use crate::proc::HostProc;

const LIMIT: Duration = Duration::from_secs(60);

/// A copy of busybox: the file that is marked.
struct Program {
    scratch: Scratch,
    path: PathBuf,
}

impl Program {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = scratch.join("true");
        // Not by fs::copy: a child that another test forks just now would have it open for writing, and the kernel
        // executes no such file.
        assert!(Command::new("cp").arg("/bin/busybox").arg(&path).status().unwrap().success());
        Program { scratch, path }
    }

    fn c_path(&self) -> CString {
        CString::new(self.path.as_os_str().as_bytes()).unwrap()
    }
}

type Check = dyn FnMut(i32, Result<ExecRecord, CaptureError>) + Send;

/// Marks the program, lets `call` execute it, and gives what was captured of each of `count` executions to `check`.
///
/// The group lives in a table of descriptors that no child of this process gets a copy of, as the engine's does; so
/// `check` runs on that table's thread, where the record's descriptors are what they seem.
fn while_held<T>(program: &Program, count: usize, mut check: Box<Check>, call: impl FnOnce() -> T) -> T {
    let (ready, listens) = mpsc::channel();
    let path = program.path.clone();
    let listener = thread::spawn(move || {
        // SAFETY: takes no pointers; from here on this thread's descriptors are its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let group = Group::new().unwrap();
        let _mark = group.mark(path).unwrap();
        ready.send(()).unwrap();
        let mut events = Vec::new();
        let mut seen = 0;
        while seen < count {
            assert!(group.wait(Some(LIMIT)).unwrap(), "{seen} of {count} executions");
            group.read(&mut events).unwrap();
            for event in events.drain(..) {
                let Event::Permission(event) = event else { panic!("{event:?}") };
                seen += 1;
                check(event.task(), captured(event.task()));
                // Gone already where the test has killed it.
                let _ = event.allow();
            }
        }
    });
    listens.recv().unwrap();
    let result = call();
    if let Err(panic) = listener.join() {
        std::panic::resume_unwind(panic);
    }
    result
}

/// One execution with these words.
fn expect(argv: &[Vec<u8>]) -> Box<Check> {
    let argv: Vec<OsString> = argv.iter().cloned().map(OsString::from_vec).collect();
    Box::new(move |_, record| {
        let record = record.unwrap();
        // Not by assert_eq: it would print megabytes.
        assert!(record.argv == argv, "{} words instead of {}", record.argv.len(), argv.len());
    })
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// A null-terminated array of pointers to strings, and the strings.
struct Argv {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Argv {
    fn new(argv: &[Vec<u8>]) -> Self {
        let strings: Vec<CString> = argv.iter().map(|word| CString::new(word.clone()).unwrap()).collect();
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([null()]).collect();
        Argv { _strings: strings, pointers }
    }

    fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

const NO_ENVIRONMENT: [*const libc::c_char; 1] = [null()];

/// Forks; the child calls `exec`, which does nothing but system calls, and exits with the errno.
fn fork(exec: impl FnOnce()) -> i32 {
    // SAFETY: the child makes system calls only, on memory that was prepared before.
    match unsafe { libc::fork() } {
        0 => {
            exec();
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(99);
            // SAFETY: ends the child.
            unsafe { libc::_exit(errno) }
        }
        pid => {
            assert!(pid > 0, "{}", io::Error::last_os_error());
            pid
        }
    }
}

/// The exit code of a child.
fn wait(pid: i32) -> Result<i32, i32> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
}

/// Whether this kernel opens the file, and so holds, before it reads the arguments: Linux 6.8 and newer do. Older ones
/// refuse arguments that cannot be read or are too long before anything is held.
fn opens_before_it_reads_arguments(program: &Program) -> bool {
    let group = Group::new().unwrap();
    let _mark = group.mark(&program.path).unwrap();
    let path = program.c_path();
    let child = fork(|| execve(&path, std::ptr::without_provenance(8)));
    let (mut events, mut status) = (Vec::new(), 0);
    loop {
        if group.wait(Some(Duration::from_millis(5))).unwrap() {
            group.read(&mut events).unwrap();
            // Allows it.
            events.clear();
            assert_eq!(wait(child), Ok(libc::EFAULT));
            return true;
        }
        // SAFETY: `status` is writable.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
            return false;
        }
    }
}

/// What `call` came to where the kernel refuses it before anything is held, or after.
fn refused(
    program: &Program,
    check: Box<Check>,
    call: impl FnOnce() -> Result<i32, i32>,
) -> Result<i32, i32> {
    if opens_before_it_reads_arguments(program) { while_held(program, 1, check, call) } else { call() }
}

fn execve(path: &CStr, argv: *const *const libc::c_char) {
    // SAFETY: the kernel checks every pointer.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv, NO_ENVIRONMENT.as_ptr()) };
}

fn execveat(dir: RawFd, path: &CStr, argv: *const *const libc::c_char, flags: libc::c_int) {
    // SAFETY: the kernel checks every pointer.
    unsafe {
        libc::syscall(libc::SYS_execveat, dir, path.as_ptr(), argv, NO_ENVIRONMENT.as_ptr(), flags);
    }
}

/// Forks, executes, and checks what was captured; the exit code of the program.
fn forked(program: &Program, argv: &[Vec<u8>]) -> Result<i32, i32> {
    let (path, given) = (program.c_path(), Argv::new(argv));
    while_held(program, 1, expect(argv), || wait(fork(|| execve(&path, given.as_ptr()))))
}

fn captured(tid: i32) -> Result<ExecRecord, CaptureError> {
    let reader = Reader { proc: HostProc::default(), host_root: "/".into() };
    let sighting = tid.into();
    reader.facts(&sighting).and_then(|task| reader.capture(&sighting, &task))
}

#[test]
fn who_executes_and_from_where() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let (path, argv) = (program.c_path(), Argv::new(&words(&["true", "-x"])));
    let (say, said) = mpsc::channel();
    let check = Box::new(move |tid, record: Result<ExecRecord, CaptureError>| {
        let record = record.unwrap();
        let task = record.task;
        assert_eq!(record.argv.len(), 2);
        assert_eq!((task.tid, task.tgid, task.ppid), (tid, tid, std::process::id().cast_signed()));
        assert_eq!((task.uid, task.euid, task.fsuid, task.own_pid), (0, 0, 0, tid));
        let own = HostProc::default().task_facts(std::process::id().cast_signed()).unwrap();
        assert_eq!(task.user_ns, own.user_ns);
        assert!(task.start_time > own.start_time);
        let inode = |file: File| file.metadata().map(|m| (m.dev(), m.ino())).unwrap();
        let of = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
        assert_eq!((inode(record.root.into()), inode(record.cwd.into())), (of("/"), of("/sys")));
        say.send(tid).unwrap();
    });
    while_held(&program, 1, check, || {
        let pid = fork(|| {
            // SAFETY: a constant string.
            unsafe { libc::chdir(c"/sys".as_ptr()) };
            execve(&path, argv.as_ptr());
        });
        assert_eq!((wait(pid), said.recv().unwrap()), (Ok(0), pid));
    });
}

#[test]
fn a_caller_without_rights_in_another_root() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let root = CString::new(program.scratch.path().as_os_str().as_bytes()).unwrap();
    let argv = Argv::new(&words(&["true"]));
    let of = fs::metadata(program.scratch.path()).map(|m| (m.dev(), m.ino())).unwrap();
    let check = Box::new(move |_, record: Result<ExecRecord, CaptureError>| {
        let record = record.unwrap();
        let task = record.task;
        assert_eq!((task.uid, task.euid, task.fsuid, task.fsgid), (65_533, 65_534, 65_534, 65_532));
        assert_eq!(task.groups, [4, 27]);
        let inode = |file: File| file.metadata().map(|m| (m.dev(), m.ino())).unwrap();
        assert_eq!((inode(record.root.into()), inode(record.cwd.into())), (of, of));
    });
    let code = while_held(&program, 1, check, || {
        wait(fork(|| {
            // SAFETY: system calls on constants and on strings that were made before.
            unsafe {
                libc::chroot(root.as_ptr());
                libc::chdir(c"/".as_ptr());
                libc::syscall(libc::SYS_setgroups, 2, [4u32, 27].as_ptr());
                libc::syscall(libc::SYS_setresgid, 65_532, 65_532, 65_532);
                libc::syscall(libc::SYS_setresuid, 65_533, 65_534, 65_534);
            }
            execve(c"/true", argv.as_ptr());
        }))
    });
    assert_eq!(code, Ok(0));
}

#[test]
fn fork_and_execve() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    assert_eq!(forked(&Program::new(), &words(&["true", "--flag=value", "-"])), Ok(0));
}

#[test]
fn posix_spawn() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let given = words(&["true", "spawned"]);
    let (path, argv) = (program.c_path(), Argv::new(&given));
    while_held(&program, 1, expect(&given), || {
        let mut pid = 0;
        // SAFETY: strings and arrays that end as they must.
        let result = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                null(),
                null(),
                argv.as_ptr().cast(),
                NO_ENVIRONMENT.as_ptr().cast(),
            )
        };
        assert_eq!((result, wait(pid)), (0, Ok(0)));
    });
}

struct ClonedCall<'a> {
    path: &'a CStr,
    argv: &'a Argv,
}

extern "C" fn cloned(call: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what `by_clone` passes; the parent sleeps until this child has executed or ended.
    let call = unsafe { &*call.cast::<ClonedCall<'_>>() };
    execve(call.path, call.argv.as_ptr());
    99
}

/// A child in this process's own memory.
fn by_clone(flags: libc::c_int) {
    let program = Program::new();
    let given = words(&["true", "cloned"]);
    let (path, argv) = (program.c_path(), Argv::new(&given));
    while_held(&program, 1, expect(&given), || {
        let mut stack = vec![0u128; 4096];
        let mut call = ClonedCall { path: &path, argv: &argv };
        // SAFETY: the stack's end is aligned, and the stack and the call live until the child is waited for.
        let pid = unsafe {
            let end = stack.as_mut_ptr().add(stack.len());
            libc::clone(cloned, end.cast(), flags | libc::SIGCHLD, (&raw mut call).cast())
        };
        assert!(pid > 0, "{}", io::Error::last_os_error());
        assert_eq!(wait(pid), Ok(0));
    });
}

#[test]
fn vfork() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    // What vfork(2) is; the C library's function returns twice, which Rust has no word for.
    by_clone(libc::CLONE_VM | libc::CLONE_VFORK);
}

#[test]
fn clone_with_shared_memory() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    by_clone(libc::CLONE_VM);
}

#[test]
fn execveat_by_path() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let given = words(&["true", "at"]);
    let argv = Argv::new(&given);
    let dir = File::open(program.scratch.path()).unwrap();
    let check = expect(&given);
    let number = dir.as_raw_fd();
    let code = while_held(&program, 1, check, || wait(fork(|| execveat(number, c"true", argv.as_ptr(), 0))));
    assert_eq!(code, Ok(0));
}

#[test]
fn execveat_of_a_descriptor() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let given = words(&["true", "by", "descriptor"]);
    let argv = Argv::new(&given);
    let file = File::open(&program.path).unwrap();
    let check = expect(&given);
    let number = file.as_raw_fd();
    let code = while_held(&program, 1, check, || {
        wait(fork(|| execveat(number, c"", argv.as_ptr(), libc::AT_EMPTY_PATH)))
    });
    assert_eq!(code, Ok(0));
}

#[test]
fn a_thousand_arguments() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let argv: Vec<_> = std::iter::once("true".to_owned()).chain((1..1000).map(|i| i.to_string())).collect();
    let argv: Vec<_> = argv.into_iter().map(String::into_bytes).collect();
    let code = forked(&Program::new(), &argv);
    assert_eq!(code, Ok(0));
}

#[test]
fn arguments_as_large_as_execve_takes() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    for length in [100_000, 128 * 1024 - 1] {
        assert_eq!(forked(&program, &[b"true".to_vec(), vec![b'x'; length]]), Ok(0), "{length}");
    }
    // Two megabytes, less a little, which is the limit with a stack of eight.
    let argv = [vec![b"true".to_vec()], vec![vec![b'y'; 128 * 1024 - 1]; 15]].concat();
    assert_eq!(forked(&program, &argv), Ok(0));
    // Longer ones execve refuses.
    let (path, given) = (program.c_path(), Argv::new(&[b"true".to_vec(), vec![b'x'; 256 * 1024]]));
    let check = Box::new(|_, record: Result<ExecRecord, CaptureError>| {
        let error = record.unwrap_err().to_string();
        assert!(error.contains("longer than execve takes"), "{error}");
    });
    let code = refused(&program, check, || wait(fork(|| execve(&path, given.as_ptr()))));
    assert_eq!(code, Ok(libc::E2BIG));
}

#[test]
fn empty_arguments() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    assert_eq!(forked(&Program::new(), &words(&["true", "", "", "x", ""])), Ok(0));
}

/// Of neither can a runtime make a container: what the kernel makes of it is not told.
#[test]
fn no_arguments_at_all() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let path = program.c_path();
    for argv in [null(), NO_ENVIRONMENT.as_ptr()] {
        let address = argv as usize;
        while_held(&program, 1, expect(&[]), || {
            let _ = wait(fork(|| {
                // busybox would say that it does not know what it is.
                // SAFETY: takes no pointers.
                unsafe { libc::close(2) };
                execve(&path, address as *const *const libc::c_char);
            }));
        });
    }
}

#[test]
fn arguments_that_are_not_utf_8() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let argv = [b"true".to_vec(), vec![0xff, 0xfe], (1..=255).collect()];
    assert_eq!(forked(&Program::new(), &argv), Ok(0));
}

/// Memory that is where a test says, and ends where it says.
struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which overlaps nothing.
        let at = unsafe { libc::mmap(null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapping { at: at.cast(), length }
    }

    /// Puts the file's content in the place of this mapping's own.
    fn map(&self, file: &File) {
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: it replaces this mapping and nothing else, and there are no references into it.
        let at =
            unsafe { libc::mmap(self.at.cast(), self.length, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        assert_eq!(at, self.at.cast());
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        // SAFETY: within the mapping, which nobody else has.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) };
    }

    fn advise(&self, advice: libc::c_int) -> libc::c_int {
        // SAFETY: of this mapping, to which there are no references.
        unsafe { libc::madvise(self.at.cast(), self.length, advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: of this mapping, to which there are no references.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

const PAGE: usize = 4096;

/// Strings a page apart from each other, the last one's end at the end of `length`; and the array of pointers to them
/// before. The content of a mapping that begins at `base`.
fn pages_of_arguments(base: usize, argv: &[Vec<u8>], length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    let mut pointers = Vec::new();
    for (i, word) in argv.iter().enumerate() {
        let at = if i + 1 == argv.len() { length - word.len() - 1 } else { (i + 1) * PAGE };
        content[at..at + word.len()].copy_from_slice(word);
        pointers.extend_from_slice(&(base + at).to_ne_bytes());
    }
    content[..pointers.len()].copy_from_slice(&pointers);
    content
}

/// The strings lie in a file that is mapped and not in memory, as a program's own literals may after a fork: the kernel
/// reads them after the open that is held.
#[test]
fn arguments_in_pages_that_are_not_there_yet() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let argv = words(&["true", "not", "there", "yet"]);
    let mapping = Mapping::new(8 * PAGE);
    let content = pages_of_arguments(mapping.at as usize, &argv, mapping.length);
    let file = File::create_new(program.scratch.join("pages")).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    let file = File::open(program.scratch.join("pages")).unwrap();
    mapping.map(&file);
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    let (path, array) = (program.c_path(), mapping.at as usize);
    let code = while_held(&program, 1, expect(&argv), || {
        wait(fork(|| execve(&path, array as *const *const libc::c_char)))
    });
    assert_eq!(code, Ok(0));
}

/// Swapped out, where there is swap; the last string ends with its mapping.
#[test]
fn arguments_in_pages_that_were_taken_away() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let argv = words(&["true", "swapped", "out"]);
    let mapping = Mapping::new(8 * PAGE);
    mapping.write(0, &pages_of_arguments(mapping.at as usize, &argv, 7 * PAGE));
    // SAFETY: the last page of the mapping, to which there are no references.
    unsafe { libc::munmap(mapping.at.add(7 * PAGE).cast(), PAGE) };
    let (path, array) = (program.c_path(), mapping.at as usize);
    let check = expect(&argv);
    let code = while_held(&program, 1, check, || {
        wait(fork(|| {
            // In the child, whose copy of the page table is its own.
            mapping.advise(libc::MADV_PAGEOUT);
            execve(&path, array as *const *const libc::c_char);
        }))
    });
    assert_eq!(code, Ok(0));
}

/// What execve would fail for fails here too, and in bounded time and memory.
#[test]
fn arguments_that_lead_nowhere() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let path = program.c_path();
    let endless = Mapping::new(16 << 20);
    for at in (0..endless.length).step_by(8) {
        // An array without an end, of pointers to itself: every string is some bytes of a pointer.
        endless.write(at, &(endless.at as usize).to_ne_bytes());
    }
    let bad_string = [8 as *const libc::c_char, null()];
    let arrays = [8usize, usize::MAX & !7, bad_string.as_ptr() as usize, endless.at as usize];
    for array in arrays {
        let check = Box::new(|_, record: Result<ExecRecord, CaptureError>| {
            assert!(matches!(record, Err(CaptureError::Io(..))), "{record:?}");
        });
        let code =
            refused(&program, check, || wait(fork(|| execve(&path, array as *const *const libc::c_char))));
        // Of the one without an end, what lies behind it decides which.
        assert!(matches!(code, Ok(libc::EFAULT | libc::E2BIG)), "{array:#x}: {code:?}");
    }
}

#[test]
fn a_caller_that_is_killed_while_it_is_held() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let (path, argv) = (program.c_path(), Argv::new(&words(&["true"])));
    let (ready, listens) = mpsc::channel();
    let marked = program.path.clone();
    let listener = thread::spawn(move || {
        // SAFETY: takes no pointers; from here on this thread's descriptors are its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let group = Group::new().unwrap();
        let _mark = group.mark(marked).unwrap();
        ready.send(0).unwrap();
        let mut events = Vec::new();
        assert!(group.wait(Some(LIMIT)).unwrap());
        group.read(&mut events).unwrap();
        let Some(Event::Permission(event)) = events.pop() else { panic!("{events:?}") };
        let tid = event.task();
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::kill(tid, libc::SIGKILL) }, 0);
        ready.send(tid).unwrap();
        // Held or dying or awaited: whatever it is, an answer comes, and where it is an error it says so.
        for _ in 0..100 {
            match captured(tid) {
                Ok(record) => assert_eq!(record.argv, ["true"]),
                Err(CaptureError::Gone) => return,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        panic!("it has gone, and is still read");
    });
    assert_eq!(listens.recv().unwrap(), 0);
    let pid = fork(|| execve(&path, argv.as_ptr()));
    assert_eq!(listens.recv().unwrap(), pid);
    assert_eq!(wait(pid), Err(libc::SIGKILL));
    listener.join().unwrap();
}

/// Not a test: what the one below runs as a process with threads.
#[test]
fn as_a_process_with_threads() {
    let Some(path) = std::env::var_os("CONTAINERHOOK_TEST_EXECUTES") else { return };
    let thread = thread::spawn(move || Command::new(path).args(["from", "a thread"]).arg0("true").exec());
    panic!("{}", thread.join().unwrap());
}

#[test]
fn a_thread_that_is_not_the_first() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let program = Program::new();
    let (say, said) = mpsc::channel();
    let check = Box::new(move |tid, record: Result<ExecRecord, CaptureError>| {
        let record = record.unwrap();
        assert_eq!(record.argv, ["true", "from", "a thread"]);
        assert_eq!(record.task.tid, tid);
        assert_ne!(record.task.tgid, tid);
        say.send(record.task.tgid).unwrap();
    });
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "capture::tests::as_a_process_with_threads"]);
    command.env("CONTAINERHOOK_TEST_EXECUTES", &program.path).stdout(std::process::Stdio::null());
    while_held(&program, 1, check, || {
        let mut child = command.spawn().unwrap();
        assert_eq!(said.recv().unwrap(), child.id().cast_signed());
        assert!(child.wait().unwrap().success());
    });
}

/// Many at once: every one has its own words.
#[test]
fn many_at_once() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    const CALLERS: usize = 16;
    const EACH: usize = 25;
    let program = Program::new();
    let (say, said) = mpsc::channel();
    let check = Box::new(move |tid, record: Result<ExecRecord, CaptureError>| {
        let record = record.unwrap();
        assert_eq!((record.task.tid, record.argv.len()), (tid, 2));
        say.send((tid, record.argv[1].clone())).unwrap();
    });
    let spawned = while_held(&program, CALLERS * EACH, check, || {
        thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    let path: &Path = &program.path;
                    scope.spawn(move || {
                        let mut spawned = Vec::new();
                        for i in 0..EACH {
                            let word = OsString::from(format!("{caller}.{i}"));
                            let mut child = Command::new(path).arg0("true").arg(&word).spawn().unwrap();
                            assert!(child.wait().unwrap().success());
                            spawned.push((child.id().cast_signed(), word));
                        }
                        spawned
                    })
                })
                .collect();
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
        })
    });
    let mut captured: HashMap<OsString, i32> = said.try_iter().map(|(tid, word)| (word, tid)).collect();
    for (pid, word) in spawned {
        assert_eq!(captured.remove(&word), Some(pid), "{word:?}");
    }
    assert!(captured.is_empty());
}

/// What the tracepoint's programs noted of each execution, beside what its memory holds.
#[test]
fn the_tracepoint_notes_what_memory_holds() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let test = "the_tracepoint_notes_what_memory_holds";
    let long = |length| vec![b"true".to_vec(), vec![b'x'; length], b"end".to_vec()];
    let many =
        |count: usize| (0..count).map(|i| if i == 0 { b"true".to_vec() } else { i.to_string().into_bytes() });
    let lists: Vec<(Vec<Vec<u8>>, Option<Gap>)> = vec![
        (words(&["true"]), None),
        (words(&["true", "", "", "x", ""]), None),
        // Around the ends of chunks and of places.
        (long(1022), None),
        (long(1023), None),
        (long(1024), None),
        (long(3070), None),
        (long(4095), None),
        (long(32_768), None),
        (vec![b"true".to_vec(), vec![b'y'; 30_000], vec![b'z'; 30_000]], None),
        (many(255).collect(), None),
        (many(256).collect(), None),
        (many(5000).collect(), None),
        (long(70_000), Some(Gap::TooLong)),
    ];
    let program = Program::new();
    let (path, marked) = (program.c_path(), program.path.clone());
    let (ready, listens) = mpsc::channel();
    let expected = lists.clone();
    let listener = thread::spawn(move || {
        // SAFETY: takes no pointers; from here on this thread's descriptors are its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let group = Group::new().unwrap();
        let proc = HostProc::default();
        let opened = Lookup::open(&mut Loader::for_pids_of(&proc), group.as_fd())
            .and_then(|lookup| Ok((lookup, Tracer::open(&proc, Path::new("/"))?)));
        let (mut lookup, tracer) = match opened {
            Ok(opened) => opened,
            Err(refused) => {
                crate::bpf::testing::skip(test, &refused.to_string());
                ready.send(false).unwrap();
                return;
            }
        };
        let _mark = group.mark(marked).unwrap();
        ready.send(true).unwrap();
        let mut events = Vec::new();
        for (argv, gap) in expected {
            assert!(group.wait(Some(LIMIT)).unwrap());
            group.read(&mut events).unwrap();
            let Some(Event::Permission(event)) = events.pop() else { panic!("no event") };
            let found = lookup.find(event.file()).unwrap().unwrap();
            let traced = tracer.arguments(&found);
            // Of one that has executed something since, or of another that began at another time, it is nothing.
            let other = Found { exec_id: found.exec_id + 1, ..found };
            let stranger = Found { thread_start_time: found.thread_start_time + 1, ..found };
            let strangers = [tracer.arguments(&other), tracer.arguments(&stranger)];
            event.allow().unwrap();
            let argv: Vec<OsString> = argv.into_iter().map(OsString::from_vec).collect();
            let what =
                format!("{} words, the second of {} bytes", argv.len(), argv.get(1).map_or(0, |w| w.len()));
            match (traced, gap) {
                (Ok(traced), None) => assert!(traced == argv, "{what}: {} words", traced.len()),
                (traced, gap) => assert_eq!(traced.err(), gap, "{what}"),
            }
            assert_eq!(strangers, [Err(Gap::Unseen), Err(Gap::Unseen)]);
        }
    });
    if listens.recv().unwrap() {
        for (argv, _) in &lists {
            let argv = Argv::new(argv);
            assert_eq!(wait(fork(|| execve(&path, argv.as_ptr()))), Ok(0));
        }
    }
    if let Err(panic) = listener.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Nothing that runs at a tracepoint may wait for a page: that is noted, and no part is taken for the whole.
#[test]
fn a_page_that_is_not_there_is_noted_as_a_gap() {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let test = "a_page_that_is_not_there_is_noted_as_a_gap";
    let program = Program::new();
    let argv = words(&["true", "not", "there"]);
    let mapping = Mapping::new(8 * PAGE);
    mapping.write(0, &pages_of_arguments(mapping.at as usize, &argv, 7 * PAGE));
    let file = File::create_new(program.scratch.join("pages")).unwrap();
    file.write_all_at(&pages_of_arguments(mapping.at as usize, &argv, mapping.length), 0).unwrap();
    let file = File::open(program.scratch.join("pages")).unwrap();
    mapping.map(&file);
    let (path, array, marked) = (program.c_path(), mapping.at as usize, program.path.clone());
    let (ready, listens) = mpsc::channel();
    let listener = thread::spawn(move || {
        // SAFETY: takes no pointers; from here on this thread's descriptors are its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let group = Arc::new(Group::new().unwrap());
        let reader = Reader { proc: HostProc::default(), host_root: "/".into() };
        let mut loader = Loader::for_pids_of(&reader.proc);
        let opened = Capture::open(CaptureBackend::Tracepoint, &group, &reader, &mut loader);
        let mut capture = match opened {
            Ok((capture, said)) => {
                assert_eq!(said, Vec::<String>::new());
                capture
            }
            Err(error) => {
                crate::bpf::testing::skip(test, &error.to_string());
                ready.send(false).unwrap();
                return;
            }
        };
        let _mark = group.mark(marked).unwrap();
        ready.send(true).unwrap();
        let mut events = Vec::new();
        assert!(group.wait(Some(LIMIT)).unwrap());
        group.read(&mut events).unwrap();
        let Some(Event::Permission(event)) = events.pop() else { panic!("no event") };
        let sighting = capture.who(&event).ok().flatten().unwrap();
        let traced = sighting.traced.clone().unwrap();
        let record = reader.facts(&sighting).and_then(|task| reader.capture(&sighting, &task));
        event.allow().unwrap();
        assert_eq!(traced.argv, Err(Gap::Missing));
        // Where memory may be read, it completes what is missing.
        assert_eq!(record.unwrap().argv, ["true", "not", "there"]);
    });
    if listens.recv().unwrap() {
        assert_eq!(wait(fork(|| execve(&path, array as *const *const libc::c_char))), Ok(0));
    }
    if let Err(panic) = listener.join() {
        std::panic::resume_unwind(panic);
    }
}
