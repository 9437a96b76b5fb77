//! What the tests have in common: a program to hold, a way to execute it, and a watchdog.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use fanotify::{Event, Group, PermissionEvent, Support};
use tempfile::TempDir;

/// Far longer than anything here takes, and shorter than the watchdog.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A child between fork and exec has copies of every descriptor, and an executable that some process has open for
/// writing cannot be executed. So nothing forks while a program is being written.
static FORK: RwLock<()> = RwLock::new(());

pub(crate) fn while_nothing_is_written<T>(fork: impl FnOnce() -> T) -> T {
    let _reading = FORK.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    fork()
}

/// True where permission events can be had; else says that `test` is skipped, and why.
pub(crate) fn can_run(test: &str) -> bool {
    match fanotify::supported() {
        Support::Yes => true,
        other => {
            skip(test, &format!("permission events: {other}"));
            false
        }
    }
}

pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("CONTAINERHOOK_SKIPS") {
        let mut file =
            File::options().create(true).append(true).open(path).expect("open CONTAINERHOOK_SKIPS");
        file.write_all(line.as_bytes()).expect("write CONTAINERHOOK_SKIPS");
    }
}

/// Ends the process, and with it every group that it has, when a test takes too long: a listener that is stuck would
/// block programs of the whole machine.
pub(crate) struct Watchdog(#[expect(dead_code, reason = "dropping it is the message")] Sender<()>);

impl Watchdog {
    pub(crate) fn new() -> Self {
        let (alive, ended) = mpsc::channel();
        thread::spawn(move || {
            if ended.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test is stuck: ending the process");
                // SAFETY: ends the process, at once and on purpose.
                unsafe { libc::_exit(99) };
            }
        });
        Self(alive)
    }
}

/// A small program of our own that ends with 0, in a folder of its own.
pub(crate) struct Program {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Program {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("true");
        Self::write(&path);
        Self { folder, path }
    }

    pub(crate) fn write(path: &Path) {
        let _writing = FORK.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let busybox = Path::new("/bin/busybox");
        let source = if busybox.exists() { busybox } else { Path::new("/bin/true") };
        fs::copy(source, path).expect("copy a program");
    }

    pub(crate) fn write_text(path: &Path, text: &str) {
        let _writing = FORK.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        fs::write(path, text).expect("write a script");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    pub(crate) fn start(&self) -> Running {
        Running::exec(&self.path)
    }

    /// Executes it and waits. Only where nothing holds it.
    pub(crate) fn run(&self) -> i32 {
        self.start().end()
    }
}

/// A child that executes a program.
pub(crate) struct Running {
    pub(crate) pid: i32,
    ended: bool,
}

impl Running {
    pub(crate) fn exec(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
        let name: &CStr = c"true";
        let argv = [name.as_ptr(), std::ptr::null()];
        let envp = [std::ptr::null()];
        let pid = while_nothing_is_written(|| {
            // SAFETY: the child calls nothing but async-signal-safe functions.
            unsafe { libc::fork() }
        });
        if pid == 0 {
            // A held child with a copy of the group would keep it open.
            // SAFETY: system calls with strings and arrays made before the fork; the child then ends.
            unsafe {
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
                libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
                libc::_exit(*libc::__errno_location());
            }
        }
        assert!(pid > 0, "fork");
        Self { pid, ended: false }
    }

    /// The exit code, or the errno of `execve`; None while it runs or waits.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: waits for a child of ours that has not been waited for; `status` is ours.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
        if pid == 0 {
            return None;
        }
        assert_eq!(pid, self.pid, "waitpid");
        self.ended = true;
        Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
    }

    pub(crate) fn end(mut self) -> i32 {
        eventually("the program ends", || self.ended())
    }

    /// Asleep in `execve`. An event may be read a moment before its task sleeps.
    pub(crate) fn until_held(&self) {
        eventually("the exec is held", || self.is_held().then_some(()));
    }

    pub(crate) fn is_held(&self) -> bool {
        let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap_or_default();
        call.split(' ').next() == Some(&libc::SYS_execve.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: a child of ours that has not been waited for, so the number is still its own.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The next event of a group, which must be a permission event.
pub(crate) fn held(group: &Group) -> PermissionEvent {
    let mut events = Vec::new();
    assert!(group.wait(Some(PATIENCE)).expect("poll"), "an event comes");
    assert_eq!(group.read(&mut events).expect("read"), 1, "one event");
    match events.remove(0) {
        Event::Permission(event) => event,
        other => panic!("{other:?}"),
    }
}

/// Asserts that the program runs without anybody being asked.
pub(crate) fn assert_unheld(group: &Group, program: &Path) {
    assert_eq!(Running::exec(program).end(), 0, "the program runs");
    assert!(!group.wait(Some(Duration::ZERO)).expect("poll"), "nobody was asked");
}
