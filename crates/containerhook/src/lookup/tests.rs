//! Real permission events on a copy of a tiny program. The kernel's own word, `event.pid`, is what each is compared with.
//!
//! The listener has a descriptor table of its own, as the engine has: a child that waits in execve must not hold the group
//! open.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use super::*;
use crate::bpf::testing::skip;

struct Group(OwnedFd);

struct Event {
    fd: OwnedFd,
    pid: i32,
}

impl Group {
    fn new(path: &Path, flags: u32) -> io::Result<Group> {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: `path` is a C string; the descriptor is new.
        unsafe {
            let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | flags;
            let fd = libc::fanotify_init(flags, libc::O_RDONLY as u32 | libc::O_CLOEXEC as u32);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let group = Group(OwnedFd::from_raw_fd(fd));
            let mask = libc::FAN_OPEN_EXEC_PERM;
            if libc::fanotify_mark(fd, libc::FAN_MARK_ADD, mask, libc::AT_FDCWD, path.as_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(group)
        }
    }

    fn read(&self, timeout: Duration) -> Vec<Event> {
        let mut buffer = [0u8; 24 * 16];
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the buffer is writable; each event's descriptor is new and ours.
        unsafe {
            libc::poll(&raw mut poll, 1, timeout.as_millis() as i32);
            let len =
                libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()).max(0) as usize;
            buffer[..len]
                .chunks(24)
                .map(|event| {
                    let metadata = event.as_ptr().cast::<libc::fanotify_event_metadata>().read_unaligned();
                    Event { fd: OwnedFd::from_raw_fd(metadata.fd), pid: metadata.pid }
                })
                .collect()
        }
    }

    fn allow(&self, event: &Event) {
        allow(self.0.as_raw_fd(), event);
    }
}

fn allow(group: RawFd, event: &Event) {
    let response = libc::fanotify_response { fd: event.fd.as_raw_fd(), response: libc::FAN_ALLOW };
    // SAFETY: `response` is readable.
    unsafe { libc::write(group, (&raw const response).cast(), size_of_val(&response)) };
}

/// On a thread with its own descriptor table.
fn listener<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: this thread uses none of the descriptors that it had in common with the others.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
                work()
            })
            .join()
            .unwrap()
    })
}

fn program(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("true");
    // Not fs::copy: a child that another test forks meanwhile would hold the file open for writing (ETXTBSY).
    assert!(Command::new("cp").arg("/bin/true").arg(&path).status().unwrap().success());
    path
}

/// The group and its look-up; a test lets its other threads go on before it unwraps.
fn prepare(test: &str, path: &Path, flags: u32) -> std::thread::Result<Option<(Group, Lookup)>> {
    std::panic::catch_unwind(|| {
        let group =
            Group::new(path, flags).map_err(|error| skip(test, &format!("fanotify: {error}"))).ok()?;
        let lookup = Lookup::open(&mut Loader::new(), group.0.as_fd());
        Some((group, lookup.map_err(|error| skip(test, &error.to_string())).ok()?))
    })
}

#[test]
fn the_task_behind_an_event_is_found() {
    let test = "the_task_behind_an_event_is_found";
    let dir = tempfile::tempdir().unwrap();
    let path = program(&dir);
    for flags in [0, libc::FAN_REPORT_TID] {
        let ready = Arc::new(Barrier::new(2));
        let (path, runner_ready) = (&path, ready.clone());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                runner_ready.wait();
                assert!(Command::new(path).status().unwrap().success());
            });
            listener(|| {
                let opened = prepare(test, path, flags);
                ready.wait();
                let Some((group, mut lookup)) = opened.unwrap() else { return };
                let event = loop {
                    if let Some(event) = group.read(Duration::from_secs(10)).pop() {
                        break event;
                    }
                };
                let found = lookup.find(event.fd.as_fd());
                let stat = fs::read_to_string(format!("/proc/{}/stat", event.pid)).unwrap();
                let mnt = fs::metadata(format!("/proc/{}/ns/mnt", event.pid)).unwrap().ino();
                group.allow(&event);
                let found = found.unwrap().unwrap();
                assert_eq!((found.tid, found.process.pid), (event.pid, event.pid));
                assert_eq!(found.parent, std::process::id() as i32);
                assert_eq!(u64::from(found.mount_namespace), mnt);
                let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
                assert_eq!(found.process.start_time.to_string(), fields[22 - 3]);
                assert_eq!(found.thread_start_time, found.process.start_time);

                // Answered, it is no longer there; nor are descriptors that are no event's, or not open.
                assert_eq!(lookup.find(event.fd.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOENT));
                let file = fs::File::open("/dev/null").unwrap();
                assert_eq!(lookup.find(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOENT));
                // SAFETY: not open, and only its number is used.
                let closed = unsafe { BorrowedFd::borrow_raw(60_000) };
                assert_eq!(lookup.find(closed).unwrap_err().raw_os_error(), Some(libc::EBADF));
            });
        });
    }
}

/// `threads` execute a marked program at once, `answerers` answer, one reads and looks up.
fn storm(test: &str, threads: usize, answerers: usize, execs: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = program(&dir);
    let left = AtomicUsize::new(execs);
    let running = AtomicUsize::new(threads);
    let start = Barrier::new(threads + 1);
    let unavailable = AtomicBool::new(false);
    let own = std::process::id() as i32;
    let (left, running, start, unavailable, path) = (&left, &running, &start, &unavailable, &path);
    let (right, disturbed) = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                start.wait();
                while !unavailable.load(Ordering::Relaxed)
                    && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
                {
                    assert!(Command::new(path).status().unwrap().success());
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        listener(|| {
            let opened = prepare(test, path, libc::FAN_REPORT_TID);
            unavailable.store(!matches!(opened, Ok(Some(_))), Ordering::Relaxed);
            start.wait();
            let Some((group, mut lookup)) = opened.unwrap() else { return (execs, 0) };
            let group = &group;
            let (mut right, mut failed) = (0, Vec::new());
            std::thread::scope(|scope| {
                let answer: Vec<mpsc::Sender<Event>> = (0..answerers)
                    .map(|_| {
                        let (sender, receiver) = mpsc::channel::<Event>();
                        scope.spawn(move || receiver.iter().for_each(|event| group.allow(&event)));
                        sender
                    })
                    .collect();
                let deadline = Instant::now() + Duration::from_secs(600);
                let mut turn = 0;
                while running.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
                    for event in group.read(Duration::from_millis(100)) {
                        match lookup.find(event.fd.as_fd()) {
                            Ok(Some(found)) if found.tid == event.pid && found.parent == own => right += 1,
                            other => failed.push(format!("{}: {other:?}", event.pid)),
                        }
                        turn += 1;
                        answer[turn % answerers].send(event).unwrap();
                    }
                }
            });
            assert_eq!(failed, Vec::<String>::new());
            (right, failed.len())
        })
    });
    assert_eq!((right, disturbed), (execs, 0));
}

#[test]
fn each_of_many_is_found_while_others_are_answered() {
    storm("each_of_many_is_found_while_others_are_answered", 16, 4, 3000);
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_thousand_are_found_while_others_are_answered() {
    storm("a_hundred_thousand_are_found_while_others_are_answered", 16, 4, 100_000);
}

#[test]
fn the_newest_is_found_behind_many_that_wait() {
    let test = "the_newest_is_found_behind_many_that_wait";
    let dir = tempfile::tempdir().unwrap();
    let path = &program(&dir);
    let start = &Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            start.wait();
            // spawn would wait for the exec.
            let runners: Vec<_> = (0..60)
                .map(|_| {
                    std::thread::spawn({
                        let path = path.clone();
                        move || Command::new(path).status().unwrap().success()
                    })
                })
                .collect();
            assert!(runners.into_iter().all(|runner| runner.join().unwrap()));
        });
        listener(|| {
            let opened = prepare(test, path, 0);
            start.wait();
            let Some((group, mut lookup)) = opened.unwrap() else { return };
            let mut held = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(20);
            while held.len() < 60 && Instant::now() < deadline {
                held.extend(group.read(Duration::from_millis(100)));
            }
            let found: Vec<_> = held.iter().map(|event| lookup.find(event.fd.as_fd())).collect();
            held.iter().for_each(|event| group.allow(event));
            assert_eq!(held.len(), 60);
            let mut pids = HashSet::new();
            for (event, found) in held.iter().zip(found) {
                assert_eq!(found.unwrap().unwrap().tid, event.pid);
                assert!(pids.insert(event.pid));
            }
        });
    });
}
