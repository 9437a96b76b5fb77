//! A listener in a process of its own: this test program, started again to do one thing.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use fanotify::{Event, Group, PermissionEvent};

use crate::harness::{PATIENCE, Watchdog, while_nothing_is_written};

const TASK: &str = "FANOTIFY_TEST_TASK";
const FILE: &str = "FANOTIFY_TEST_FILE";
/// Stands before what a listener says, to tell it from what the test harness prints.
const SAYS: &str = "listener says: ";

pub(crate) struct Listener {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Listener {
    pub(crate) fn start(task: &str, file: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--exact", "listener::listener", "--ignored", "--nocapture"]);
        command.env(TASK, task).env(FILE, file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = while_nothing_is_written(|| command.spawn()).expect("start a listener");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines }
    }

    /// The rest of the next line that starts with `word`. The listener's own watchdog ends the wait.
    pub(crate) fn expect(&mut self, word: &str) -> String {
        for line in self.lines.by_ref() {
            let line = line.expect("a line");
            if let Some((_, said)) = line.split_once(SAYS) {
                return said.strip_prefix(word).unwrap_or_else(|| panic!("{said}, not {word}")).trim().into();
            }
        }
        panic!("the listener ended without saying {word}");
    }

    pub(crate) fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"\n").expect("write");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(what: &str) {
    println!("{SAYS}{what}");
}

fn wait_for_go_on() {
    std::io::stdin().read_exact(&mut [0]).expect("a line");
}

#[test]
#[ignore = "started by other tests, in a process of its own"]
fn listener() {
    let _watchdog = Watchdog::new();
    let task = std::env::var(TASK).expect("a task");
    let file = std::env::var_os(FILE).expect("a file");
    let file = Path::new(&file);
    match task.as_str() {
        "hold" => hold(file),
        "full" => full(file),
        "crowd" => crowd(file),
        "kernel" => kernel(file),
        "enfile" => enfile(file),
        "unprivileged" => unprivileged(),
        other => panic!("{other}"),
    }
}

/// Holds one exec and never answers.
fn hold(file: &Path) {
    let group = Group::new().expect("group");
    let _mark = group.mark(file).expect("mark");
    say("ready");
    let mut events = Vec::new();
    group.read(&mut events).expect("read");
    say("held");
    wait_for_go_on();
}

/// A listener whose descriptor table is full.
fn full(file: &Path) {
    limit_descriptors();
    let group = Group::builder().nonblocking(true).build().expect("group");
    let _mark = group.mark(file).expect("mark");
    let full = fill_table(&group);
    say("ready");

    wait_for_go_on();
    let mut count = Count::default();
    let mut kept = count.read(&group);
    say(&format!("full {}", count.told()));

    // What is answered makes room again, and with room the next one is held as ever.
    wait_for_go_on();
    kept.drain(..).for_each(|event| event.allow().expect("allow"));
    let mut count = Count::default();
    kept = count.read(&group);
    say(&format!("room {}", count.told()));
    drop(kept);

    wait_for_go_on();
    drop(full);
    let mut count = Count::default();
    kept = count.read(&group);
    say(&format!("free {}", count.told()));
    kept.drain(..).for_each(|event| event.allow().expect("allow"));
    wait_for_go_on();
}

/// A listener beside threads that take what descriptors there are, give them back, and begin again.
fn crowd(file: &Path) {
    const EXECS: usize = 300;
    const FREE: usize = 16;
    limit_descriptors();
    let group = Group::builder().nonblocking(true).headroom(FREE + 1).build().expect("group");
    let _mark = group.mark(file).expect("mark");
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let mut rest = fill_table(&group);
    rest.truncate(rest.len() - FREE);
    let over = AtomicBool::new(false);
    let take = || {
        while !over.load(Ordering::Relaxed) {
            let taken: Vec<_> = (0..FREE).map_while(|_| null.try_clone().ok()).collect();
            drop(taken);
        }
    };
    let mut count = Count::default();
    std::thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(take)));
        say("ready");
        while count.held + count.passed + count.other < EXECS {
            // Allowed as they are dropped.
            drop(count.read(&group));
        }
        over.store(true, Ordering::Relaxed);
    });
    say(&format!("crowd {}", count.told()));
    drop(rest);
    let mut count = Count::default();
    drop(count.read(&group));
    say(&format!("alone {}", count.told()));
    wait_for_go_on();
}

#[derive(Default)]
struct Count {
    held: usize,
    passed: usize,
    other: usize,
}

impl Count {
    /// Reads the whole queue, which must not be empty.
    fn read(&mut self, group: &Group) -> Vec<PermissionEvent> {
        assert!(group.wait(Some(PATIENCE)).expect("poll"), "an event comes");
        let mut events = Vec::new();
        let mut kept = Vec::new();
        while group.read(&mut events).expect("read") > 0 {
            for event in events.drain(..) {
                match event {
                    Event::Permission(event) => {
                        self.held += 1;
                        kept.push(event);
                    }
                    Event::Passed(passed) => {
                        assert!(passed.task() > 0 && passed.inode().is_some(), "{passed:?}");
                        self.passed += 1;
                    }
                    _ => self.other += 1,
                }
            }
        }
        kept
    }

    fn told(&self) -> String {
        format!("held={} passed={} other={}", self.held, self.passed, self.other)
    }
}

/// What the kernel does with a reader that has no descriptor left.
fn kernel(file: &Path) {
    limit_descriptors();
    let group = Group::builder().nonblocking(true).build().expect("group");
    let _mark = group.mark(file).expect("mark");
    let _full = fill_table(&group);
    say("ready");
    assert!(group.wait(Some(PATIENCE)).expect("poll"), "an event comes");
    // SAFETY: the structure is made of integers, for which all zeroes is a value.
    let mut event: libc::fanotify_event_metadata = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is a structure of ours, and as long as the call says.
    let got = unsafe { libc::read(group.as_raw_fd(), (&raw mut event).cast(), size_of_val(&event)) };
    let errno = if got < 0 {
        std::io::Error::last_os_error().raw_os_error().expect("errno")
    } else {
        // FAN_REPORT_FD_ERROR, from Linux 6.13.
        -event.fd
    };
    say(&format!("errno {errno}"));
    wait_for_go_on();
}

/// With the system's limit of open files reached.
fn enfile(file: &Path) {
    let group = Group::builder().nonblocking(true).build().expect("group");
    let _mark = group.mark(file).expect("mark");
    say("ready");
    let mut count = Count::default();
    let kept = count.read(&group);
    say(&count.told());
    drop(kept);
    wait_for_go_on();
}

fn unprivileged() {
    // SAFETY: takes an integer. This process exists for this.
    assert_eq!(unsafe { libc::setuid(65534) }, 0);
    say(&format!("{}", fanotify::supported()));
}

fn limit_descriptors() {
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: reads a structure of ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn fill_table(group: &Group) -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let mut full = vec![OwnedFd::from(null)];
    loop {
        match full[0].try_clone() {
            Ok(fd) => full.push(fd),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                assert!(group.as_raw_fd() < 64);
                return full;
            }
        }
    }
}
