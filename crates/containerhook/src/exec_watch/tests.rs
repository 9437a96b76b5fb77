//! Containers of the simplest kind, and those of runc and crun. Others may be starting containers at the same time.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::*;
use crate::bpf::testing::{skip, skipped};
use crate::exit::{Choice, Exits};

/// For an emulated machine, too.
const LIMIT: Duration = Duration::from_secs(60);

fn open(test: &str) -> Option<ExecWatch> {
    open_with(test, Loader::new())
}

fn open_with(test: &str, mut loader: Loader) -> Option<ExecWatch> {
    ExecWatch::open(&mut loader).inspect_err(|error| skip(test, &error.to_string())).ok()
}

fn wait(watch: &ExecWatch, timeout: Duration) {
    let mut fd = libc::pollfd { fd: watch.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, writable.
    unsafe { libc::poll(&raw mut fd, 1, timeout.as_millis() as i32) };
}

/// What was seen below this process, until `enough`.
fn collect(watch: &mut ExecWatch, pid: u32, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
    let start = Instant::now();
    let mut all = Vec::new();
    let mut ours = Vec::new();
    while !enough(&ours) {
        assert!(start.elapsed() < LIMIT, "{ours:?} of {}", all.len());
        wait(watch, Duration::from_millis(500));
        let mut seen = Vec::new();
        watch.drain(&mut seen);
        ours.extend(seen.iter().filter(|s| is_below(s, pid)).cloned());
        all.append(&mut seen);
    }
    ours
}

fn is_below(seen: &Seen, pid: u32) -> bool {
    seen.process.pid == pid as i32 || seen.ancestors.iter().any(|a| a.process.pid == pid as i32)
}

/// All there is after the child has ended.
fn rest(watch: &mut ExecWatch, pid: u32) -> Vec<Seen> {
    let mut seen = Vec::new();
    watch.drain(&mut seen);
    seen.retain(|s| is_below(s, pid));
    seen
}

#[test]
fn the_first_program_of_a_container_is_seen() {
    let Some(mut watch) = open("the_first_program_of_a_container_is_seen") else { return };
    let before = Instant::now();
    let mut child = Command::new("unshare").args(["-p", "-f", "-m", "/bin/true"]).spawn().unwrap();
    let seen = collect(&mut watch, child.id(), |ours| !ours.is_empty());
    assert!(child.wait().unwrap().success());
    assert_eq!((seen.len(), rest(&mut watch, child.id()).len()), (1, 0), "once");
    let seen = &seen[0];
    assert_eq!(seen.filename, "/bin/true");
    assert_eq!(seen.comm, "true");
    assert_eq!(seen.init, seen.process);
    assert_eq!(seen.stopped_for, None);
    assert_eq!(seen.ancestors[0].process.pid, child.id() as i32);
    assert_eq!(seen.ancestors[0].comm, "unshare");
    assert_eq!(seen.ancestors[1].process.pid, std::process::id() as i32);
    assert!(seen.ancestors[1].process.start_time <= seen.process.start_time);
    let own = |ns| fs::metadata(format!("/proc/self/ns/{ns}")).unwrap().ino() as u32;
    assert!(seen.mount_namespace != own("mnt") && seen.pid_namespace != own("pid") && seen.cgroup_id > 0);
    assert!(seen.at >= before && seen.at <= Instant::now());
}

#[test]
fn what_is_no_container_is_not_told() {
    let Some(mut watch) = open("what_is_no_container_is_not_told") else { return };
    for arguments in [&["-m", "/bin/true"][..], &["-p", "-f", "/bin/true"], &["-u", "-n", "/bin/true"]] {
        let mut child = Command::new("unshare").args(arguments).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(rest(&mut watch, child.id()).is_empty(), "{arguments:?}");
    }
    // What an init starts that has itself executed something is no container's first program.
    let script = "/bin/true; /bin/true; exec /bin/true";
    let mut child =
        Command::new("unshare").args(["-p", "-f", "-m", "/bin/sh", "-c", script]).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let names: Vec<OsString> = rest(&mut watch, child.id()).into_iter().map(|s| s.filename).collect();
    assert_eq!(names, ["/bin/sh", "/bin/true"], "each exec of the init itself is told");
}

/// As bubblewrap does: the init only waits.
#[test]
fn the_program_of_an_init_that_executes_nothing_is_seen() {
    let Some(mut watch) = open("the_program_of_an_init_that_executes_nothing_is_seen") else { return };
    let mut command = Command::new("/bin/true");
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The outer process waits, the init waits, the init's child goes on to the exec.
            for _ in 0..2 {
                let pid = libc::fork();
                if pid != 0 {
                    let mut status = 0;
                    libc::waitpid(pid, &raw mut status, 0);
                    libc::_exit(libc::WEXITSTATUS(status));
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let seen = collect(&mut watch, child.id(), |ours| !ours.is_empty());
    assert!(child.wait().unwrap().success());
    assert_eq!(seen[0].filename, "/bin/true");
    assert_ne!(seen[0].init, seen[0].process);
    assert_eq!(seen[0].init, seen[0].ancestors[0].process);
}

#[test]
fn a_full_ring_is_noticed() {
    // 4096 bytes hold 7 records.
    let loader = Loader::new().with_size("execs", 4096);
    let Some(mut watch) = open_with("a_full_ring_is_noticed", loader) else { return };
    assert_eq!(watch.missed(), Missed::default());
    for _ in 0..20 {
        assert!(Command::new("unshare").args(["-p", "-f", "-m", "/bin/true"]).status().unwrap().success());
    }
    let mut seen = Vec::new();
    watch.drain(&mut seen);
    assert!(!seen.is_empty());
    assert!(watch.missed().untold >= 20 - 7);
    assert_eq!(watch.missed(), Missed::default(), "told once");
}

/// A container whose runtime waits for a line on its standard input before it starts.
pub(crate) struct Container {
    pub(crate) runtime: Child,
    pub(crate) process: Process,
    dir: tempfile::TempDir,
    delete: Command,
}

impl Drop for Container {
    fn drop(&mut self) {
        // A stopped init would wait for ever where a test has failed.
        let _ = self.runtime.kill();
        let _ = self.runtime.wait();
        let _ = self.delete.stderr(Stdio::null()).status();
    }
}

impl Container {
    /// `None`, said loudly, where the runtime is not installed.
    pub(crate) fn new(test: &str, runtime: &str, change: &str) -> Option<Container> {
        if Command::new(runtime).arg("--version").stdout(Stdio::null()).status().is_err() {
            skipped(test, &format!("{runtime} is not installed"));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for sub in ["bin", "proc", "dev", "out"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::write(root.join("marker"), "").unwrap();
        // Not fs::copy: a child that another test forks meanwhile would hold the file open for writing (ETXTBSY).
        if !Command::new("cp").arg("/bin/busybox").arg(root.join("bin")).status().unwrap().success() {
            skipped(test, "busybox-static is not installed");
            return None;
        }
        let namespace = |name: &&str| format!(r#"{{"type":"{name}"}}"#);
        let names: &[&str] = if change == "host pid" { &["mount"] } else { &["pid", "mount"] };
        let hooks = if change == "hooks" {
            let hook = r#"[{"path":"/bin/sh","args":["sh","-c","/bin/true; exit 0"]}]"#;
            format!(
                r#","hooks":{{"prestart":{hook},"createRuntime":{hook},"createContainer":{hook},"poststart":{hook}}}"#
            )
        } else {
            String::new()
        };
        let mounts = r#"{"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/dev","type":"tmpfs","source":"tmpfs"}"#;
        let config = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"terminal":false,"user":{{"uid":0,"gid":0}},"cwd":"/",
            "args":["/bin/busybox","touch","/out/ran"],"env":["PATH=/bin"]}},"root":{{"path":"rootfs"}},
            "mounts":[{}],"linux":{{"namespaces":[{}]}}{hooks}}}"#,
            mounts,
            names.iter().map(namespace).collect::<Vec<_>>().join(",")
        );
        fs::write(dir.path().join("config.json"), config).unwrap();
        let id = format!("chh3-{}-{}", std::process::id(), dir.path().file_name().unwrap().display())
            .replace('.', "");
        let detach = if change == "detach" { "--detach" } else { "" };
        // crun as root refuses a hybrid cgroup layout.
        let script = format!(
            "umount /sys/fs/cgroup/unified 2>/dev/null; read go; exec {runtime} --root {root} run {detach} --bundle {bundle} {id}",
            root = dir.path().join("state").display(),
            bundle = dir.path().display(),
        );
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while fs::read(format!("/proc/{}/comm", child.id())).unwrap() != b"sh\n" {
            assert!(start.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        let (mut exits, _) = Exits::open(Choice::Pidfd, &mut Loader::new()).unwrap();
        let process = exits.watch(child.id() as i32).unwrap();
        let mut delete = Command::new(runtime);
        delete.arg("--root").arg(dir.path().join("state")).args(["delete", "--force", &id]);
        Some(Container { runtime: child, process, dir, delete })
    }

    pub(crate) fn go(&mut self) {
        writeln!(self.runtime.stdin.as_mut().unwrap()).unwrap();
    }

    /// How its runtime ended. youki 0.7 blocks SIGCHLD only after it has started the container, and waits for ever where that
    /// has ended by then: it gets the signal again.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.runtime.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "the runtime does not end");
            kill(self.process, libc::SIGCHLD);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its root file system, in which a file named `marker` lies.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub(crate) fn has_run(&self) -> bool {
        self.dir.path().join("rootfs/out/ran").exists()
    }
}

pub(crate) fn kill(process: Process, signal: i32) {
    let (exits, _) = Exits::open(Choice::Pidfd, &mut Loader::new()).unwrap();
    exits.kill(process, signal).unwrap();
}

fn state(process: Process) -> String {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    stat[stat.rfind(')').unwrap() + 2..][..1].to_owned()
}

#[test]
fn a_container_is_stopped_before_its_first_instruction() {
    let test = "a_container_is_stopped_before_its_first_instruction";
    for runtime in ["runc", "crun", "youki"] {
        for change in ["", "host pid", "hooks"] {
            let Some(mut watch) = open(test) else { return };
            let Some(mut container) = Container::new(test, runtime, change) else { continue };
            watch.stop_under(container.process).unwrap();
            container.go();
            let pid = container.runtime.id();
            let seen = collect(&mut watch, pid, |ours| ours.iter().any(|s| s.stopped_for.is_some()));
            let init = seen.last().unwrap();
            assert_eq!(init.stopped_for, Some(container.process));
            assert_eq!(init.filename, "/bin/busybox", "{runtime} {change}: no hook and no re-execution");
            assert_eq!(init.init, init.process);
            let start = Instant::now();
            while state(init.process) != "T" {
                assert!(start.elapsed() < LIMIT);
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(30));
            assert!(!container.has_run());
            watch.release(container.process);
            assert!(watch.fork_attached.is_none() && watch.unders.iter().next().is_none());
            kill(init.process, libc::SIGCONT);
            assert!(container.end().success(), "{runtime} {change}");
            assert!(container.has_run());
            let later = rest(&mut watch, pid);
            assert!(later.iter().all(|s| s.stopped_for.is_none()), "{later:?}");
            assert_eq!(watch.missed(), Missed::default());
        }
    }
}

#[test]
fn without_being_asked_nothing_is_stopped() {
    let test = "without_being_asked_nothing_is_stopped";
    let Some(mut watch) = open(test) else { return };
    let Some(mut other) = Container::new(test, "runc", "") else { return };
    let Some(mut container) = Container::new(test, "runc", "") else { return };
    // Two are asked for: one is released before it starts.
    watch.stop_under(other.process).unwrap();
    watch.stop_under(container.process).unwrap();
    watch.release(container.process);
    assert!(watch.fork_attached.is_some());
    container.go();
    assert!(container.end().success());
    assert!(container.has_run());
    let seen = rest(&mut watch, container.runtime.id());
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].filename.clone(), seen[0].stopped_for), (OsString::from("/bin/busybox"), None));
    // A runtime that fails leaves nothing behind either.
    fs::remove_file(other.dir.path().join("config.json")).unwrap();
    other.go();
    assert!(!other.runtime.wait().unwrap().success());
    watch.release(other.process);
    assert!(watch.fork_attached.is_none() && watch.unders.iter().next().is_none());
}

#[test]
fn one_that_nobody_is_told_of_is_not_stopped() {
    let test = "one_that_nobody_is_told_of_is_not_stopped";
    let loader = Loader::new().with_size("execs", 4096);
    let Some(mut watch) = open_with(test, loader) else { return };
    let Some(mut container) = Container::new(test, "runc", "") else { return };
    for _ in 0..10 {
        assert!(Command::new("unshare").args(["-p", "-f", "-m", "/bin/true"]).status().unwrap().success());
    }
    watch.stop_under(container.process).unwrap();
    container.go();
    assert!(container.end().success());
    assert!(watch.missed().unstopped > 0);
}

#[test]
fn nothing_is_stopped_under_a_process_that_is_gone() {
    let Some(mut watch) = open("nothing_is_stopped_under_a_process_that_is_gone") else { return };
    let gone = Process { pid: i32::MAX, start_time: 1 };
    assert!(matches!(watch.stop_under(gone), Err(StopError::Process { .. })));
    watch.release(gone);
    assert!(watch.fork_attached.is_none());
}
