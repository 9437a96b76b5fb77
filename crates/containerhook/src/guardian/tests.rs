//! Listeners that are killed while a container is stopped: each is this test's program once more.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::bpf::Loader;
use crate::bpf::testing::{skip, skipped};
use crate::exec_watch::ExecWatch;
use crate::exec_watch::tests::{Container, kill};
use crate::exit::Process;
use crate::proc::HostProc;

const LIMIT: Duration = Duration::from_secs(20);

fn wait_until(what: &str, mut yes: impl FnMut() -> bool) {
    let start = Instant::now();
    while !yes() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stops what is made under the process that the environment names, and never looks at it.
#[test]
fn a_listener_of_another_test() {
    let Ok(words) = std::env::var("CONTAINERHOOK_TEST_STOP_UNDER") else { return };
    let mut watch = match ExecWatch::open(&mut Loader::new()) {
        Ok(watch) => watch,
        Err(refused) => return println!("refused: {refused}"),
    };
    let (pid, start_time) = words.split_once(':').unwrap();
    watch.stop_under(Process { pid: pid.parse().unwrap(), start_time: start_time.parse().unwrap() }).unwrap();
    // The program's own wait(2) has nothing to see.
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    assert_eq!((waited, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ECHILD)));
    println!("ready");
    std::thread::sleep(LIMIT);
}

struct Listener {
    child: Child,
    guardian: Process,
}

impl Listener {
    /// `None` where the kernel has no such BPF program.
    fn start(test: &str, container: &Container) -> Option<Listener> {
        let Process { pid, start_time } = container.process;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "guardian::tests::a_listener_of_another_test"])
            .env("CONTAINERHOOK_TEST_STOP_UNDER", format!("{pid}:{start_time}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some((_, reason)) = line.split_once("refused: ") {
                skip(test, reason);
                child.wait().unwrap();
                return None;
            }
            // The harness has begun this line.
            if line.ends_with("ready") {
                let guardian = guardian_of(child.id() as i32);
                return Some(Listener { child, guardian });
            }
        }
        panic!("the listener failed: {:?}", child.wait());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of this name that has this parent.
fn guardian_of(parent: i32) -> Process {
    let pid = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            HostProc::default().stat(*pid).is_ok_and(|stat| stat.ppid == parent)
                && HostProc::default().comm(*pid).is_ok_and(|name| name == "ch-guardian")
        });
    let pid = pid.expect("a guardian");
    Process { pid, start_time: HostProc::default().stat(pid).unwrap().start_time }
}

fn is_there(process: Process) -> bool {
    HostProc::default()
        .stat(process.pid)
        .is_ok_and(|stat| stat.start_time == process.start_time && stat.state != b'Z')
}

/// The stopped process of this container: its bundle is its root's parent.
fn stopped(container: &Container) -> Option<i32> {
    let root = container.root();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            HostProc::default().stat(*pid).is_ok_and(|stat| stat.state == b'T')
                && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("bin/busybox"))
                && fs::metadata(format!("/proc/{pid}/root/marker"))
                    .is_ok_and(|m| is_same(&m, &root.join("marker")))
        })
}

fn is_same(file: &fs::Metadata, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
}

#[test]
fn a_stopped_container_goes_on_when_its_listener_is_killed() {
    let test = "a_stopped_container_goes_on_when_its_listener_is_killed";
    for runtime in ["runc", "crun"] {
        for change in ["", "host pid", "detach"] {
            let Some(mut container) = Container::new(test, runtime, change) else { continue };
            let Some(mut listener) = Listener::start(test, &container) else { return };
            // It never learns of the stop, as one that is stopped itself.
            kill(Process { pid: listener.child.id() as i32, start_time: start_of(&listener) }, libc::SIGSTOP);
            container.go();
            wait_until("the container is stopped", || stopped(&container).is_some());
            if change == "detach" {
                assert!(container.end().success(), "{runtime}: it leaves its container behind");
            }
            std::thread::sleep(Duration::from_millis(50));
            assert!(!container.has_run(), "{runtime} {change}");
            listener.kill();
            wait_until("the container goes on", || container.has_run());
            if change != "detach" {
                assert!(container.end().success(), "{runtime} {change}");
            }
            wait_until("the guardian leaves", || !is_there(listener.guardian));
        }
    }
}

fn start_of(listener: &Listener) -> u64 {
    HostProc::default().stat(listener.child.id() as i32).unwrap().start_time
}

#[test]
fn a_container_that_starts_after_its_listener_was_killed_is_not_stopped() {
    let test = "a_container_that_starts_after_its_listener_was_killed_is_not_stopped";
    let Some(mut container) = Container::new(test, "runc", "") else { return };
    let Some(mut listener) = Listener::start(test, &container) else { return };
    listener.kill();
    container.go();
    wait_until("the container runs", || container.has_run());
    assert!(container.end().success());
    wait_until("the guardian leaves", || !is_there(listener.guardian));
}

#[test]
fn a_guardian_is_small_and_dies_of_nothing() {
    let test = "a_guardian_is_small_and_dies_of_nothing";
    let Some(container) = Container::new(test, "runc", "") else { return };
    let Some(mut listener) = Listener::start(test, &container) else { return };
    let guardian = listener.guardian;
    let open: Vec<String> = fs::read_dir(format!("/proc/{}/fd", guardian.pid))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    assert_eq!(open.len(), 2, "{open:?}");
    assert!(open.iter().any(|name| name.starts_with("socket:")), "{open:?}");
    assert!(open.iter().any(|name| name.contains("bpf-map")), "{open:?}");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGALRM, libc::SIGPIPE] {
        kill(guardian, signal);
    }
    // Of its own: what it shares with the listener costs nothing.
    let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", guardian.pid)).unwrap();
    let anonymous = |text: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let parents = fs::read_to_string(format!("/proc/{}/smaps_rollup", listener.child.id())).unwrap();
    let (kib, of_parent) = (anonymous(&smaps), anonymous(&parents));
    eprintln!("the guardian keeps {kib} KiB of the {of_parent} KiB of its parent");
    assert!(kib < 1024 && kib < of_parent, "{kib} KiB of {of_parent} KiB");
    assert!(is_there(guardian));
    listener.kill();
    wait_until("the guardian leaves", || !is_there(guardian));
}

#[test]
fn what_is_stopped_goes_on_when_its_watch_is_dropped_and_a_killed_guardian_is_replaced() {
    let test = "what_is_stopped_goes_on_when_its_watch_is_dropped_and_a_killed_guardian_is_replaced";
    let mut loader = Loader::new();
    let opened = ExecWatch::open(&mut loader);
    let Ok(mut watch) = opened.inspect_err(|refused| skip(test, &refused.to_string())) else { return };
    let Some(other) = Container::new(test, "runc", "") else { return skipped(test, "see above") };
    let Some(mut container) = Container::new(test, "runc", "") else { return };
    watch.stop_under(other.process).unwrap();
    let first = watch.guardian().unwrap().pidfd.as_fd().try_clone_to_owned().unwrap();
    sys::kill(first.as_fd());
    assert!(sys::readable(first.as_fd(), LIMIT).unwrap());
    assert!(!watch.guardian().unwrap().is_alive());
    watch.stop_under(container.process).unwrap();
    assert!(watch.guardian().unwrap().is_alive());
    container.go();
    wait_until("the container is stopped", || stopped(&container).is_some());
    drop(watch);
    wait_until("the container goes on", || container.has_run());
    assert!(container.end().success());
}
