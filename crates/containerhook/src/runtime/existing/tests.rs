//! Fixtures of state directories that tell of real processes, and real runtimes.

use super::*;
use crate::runtime::tests::{host, skipped, write};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A process that waits, and is gone when the test is.
struct Waiting(Child);

impl Waiting {
    fn new() -> Self {
        Self(Command::new("sleep").arg("300").stdin(Stdio::null()).spawn().expect("sleep"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn start_time(&self) -> u64 {
        Proc::of(Path::new("/")).life(self.pid()).expect("it lives").start_time
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A made-up host with this machine's processes.
fn host_with_proc() -> TempDir {
    let host = host();
    symlink("/proc", host.path().join("proc")).unwrap();
    host
}

/// What is found of the processes that this test started: the machine may have containers of its own.
fn look(host: &TempDir, of: &[&Waiting]) -> Vec<Existing> {
    let search = Search { host_root: host.path().into(), ..Search::default() };
    let mut all = existing(&search);
    all.retain(|e| of.iter().any(|w| w.pid() == e.pid));
    all
}

fn runc_state(id: &str, pid: u32, start: u64) -> String {
    format!(
        r#"{{"id":"{id}","init_process_pid":{pid},"init_process_start":{start},"created":"2026-11-23T21:34:42Z",
           "config":{{"rootfs":"/bundles/{id}/rootfs","labels":["bundle=/bundles/{id}"]}}}}"#
    )
}

#[test]
fn every_state_directory_is_read() {
    // The files are of whoever runs the test.
    let owner = rustix::process::geteuid().as_raw();
    for dir in [
        "/run/runc",
        "/run/docker/runtime-runc/moby",
        "/run/docker/runtime-nvidia/moby",
        "/run/containerd/runc/k8s.io",
        "/run/containerd/runc/default",
        "/run/user/1000/runc",
        "/run/user/1000/docker/runtime-runc/moby",
        "/tmp/podman-run-1000/runc",
    ] {
        let (host, process) = (host_with_proc(), Waiting::new());
        fs::create_dir_all(host.path().join("bundles/c1/rootfs")).unwrap();
        let state = runc_state("c1", process.pid(), process.start_time());
        write(&host, &format!("{dir}/c1/state.json"), state);
        let found = look(&host, &[&process]);
        assert_eq!(
            found,
            [Existing {
                id: "c1".into(),
                pid: process.pid(),
                start_time: process.start_time(),
                bundle: Some(host.path().join("bundles/c1")),
                rootfs: Some(host.path().join("bundles/c1/rootfs")),
                runtime: "runc".into(),
                state_root: Some(host.path().join(&dir[1..])),
                owner_uid: owner,
                name: None,
                created: Some("2026-11-23T21:34:42Z".into()),
            }]
        );
    }
}

#[test]
fn crun_and_youki() {
    let (host, crun, youki) = (host_with_proc(), Waiting::new(), Waiting::new());
    let status = format!(
        r#"{{"pid":{},"process-start-time":{},"rootfs":"rootfs","bundle":"/b","created":"c"}}"#,
        crun.pid(),
        crun.start_time()
    );
    write(&host, "/run/crun/by-crun/status", status);
    let state = format!(r#"{{"ociVersion":"v1.0.2","id":"by-youki","pid":{},"bundle":"/b"}}"#, youki.pid());
    write(&host, "/run/youki/by-youki/state.json", state);
    let found = look(&host, &[&crun, &youki]);
    let told: Vec<_> = found.iter().map(|e| (&*e.id, &*e.runtime, e.pid)).collect();
    assert!(told.contains(&("by-crun", "crun", crun.pid())), "{told:?}");
    assert!(told.contains(&("by-youki", "youki", youki.pid())), "{told:?}");
    assert_eq!(told.len(), 2);
}

#[test]
fn a_pid_that_was_used_again_is_not_believed() {
    let (host, process) = (host_with_proc(), Waiting::new());
    let start = process.start_time();
    write(&host, "/run/runc/old/state.json", runc_state("old", process.pid(), start - 1));
    // No start time, and written long before the process began.
    let state = format!(r#"{{"ociVersion":"v1.0.2","id":"old","pid":{},"bundle":"/b"}}"#, process.pid());
    let file = write(&host, "/run/youki/old/state.json", state);
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(file).unwrap().set_modified(before).unwrap();
    assert_eq!(look(&host, &[&process]), []);
}

#[test]
fn a_container_that_ended_is_none() {
    let host = host_with_proc();
    let mut process = Waiting::new();
    write(&host, "/run/runc/c/state.json", runc_state("c", process.pid(), process.start_time()));
    // Not reaped: a zombie has a pid and a start time still.
    process.0.kill().unwrap();
    let proc = Proc::of(Path::new("/"));
    while proc.life(process.pid()).is_some() {
        std::thread::yield_now();
    }
    assert_eq!(look(&host, &[&process]), []);
}

#[test]
fn a_shim_bundle_and_the_state_of_its_runtime_are_one_container() {
    let (host, process) = (host_with_proc(), Waiting::new());
    let tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    write(&host, &format!("{tasks}/c1/init.pid"), process.pid().to_string());
    write(&host, &format!("{tasks}/c1/config.json"), "{}");
    write(&host, &format!("{tasks}/c1/runtime"), "/usr/local/bin/runc");
    write(
        &host,
        &format!("{tasks}/c1/options.json"),
        r#"{"binary_name":"/usr/local/bin/runc","root":"/run/own"}"#,
    );
    let alone = look(&host, &[&process]);
    assert_eq!(alone.len(), 1);
    assert_eq!((&*alone[0].id, &*alone[0].runtime), ("c1", "runc"));
    assert_eq!(alone[0].bundle, Some(host.path().join(&tasks[1..]).join("c1")));
    assert_eq!(alone[0].state_root, None);
    let state = runc_state("c1", process.pid(), process.start_time());
    write(&host, "/run/own/k8s.io/c1/state.json", state);
    let both = look(&host, &[&process]);
    assert_eq!(both.len(), 1);
    assert_eq!(both[0].state_root, Some(host.path().join("run/own/k8s.io")));
    assert!(both[0].created.is_some());
}

#[test]
fn the_runtime_by_its_path_or_by_its_shim() {
    assert_eq!(runtime_of(Some("/usr/bin/crun\n"), Some("/usr/bin/containerd-shim-runc-v2")), "crun");
    assert_eq!(runtime_of(Some(""), Some("/usr/bin/containerd-shim-runc-v2")), "runc");
    assert_eq!(runtime_of(None, Some("/usr/bin/containerd-shim-runsc-v1")), "runsc");
    assert_eq!(runtime_of(None, Some("/usr/bin/containerd-shim-kata-qemu-v2")), "kata-qemu");
    assert_eq!(runtime_of(None, None), "runc");
}

#[test]
fn what_is_written_by_a_user_is_believed_of_their_processes_only() {
    if !rustix::process::geteuid().is_root() {
        return skipped("what_is_written_by_a_user_is_believed_of_their_processes_only", "not root");
    }
    let (host, process) = (host_with_proc(), Waiting::new());
    let state = runc_state("forged", process.pid(), process.start_time());
    let file = write(&host, "/run/user/12345/runc/forged/state.json", state);
    chown(&file, Some(12345), None).unwrap();
    assert_eq!(look(&host, &[&process]), []);
    chown(&file, Some(0), None).unwrap();
    chown(host.path().join("run/user/12345/runc"), Some(12345), None).unwrap();
    assert_eq!(look(&host, &[&process]), []);
    chown(host.path().join("run/user/12345/runc"), Some(0), None).unwrap();
    assert_eq!(look(&host, &[&process]).len(), 1);
}

#[test]
fn hostile_state_files_are_passed_by() {
    let (host, process) = (host_with_proc(), Waiting::new());
    let good = runc_state("good", process.pid(), process.start_time());
    let real = write(&host, "/elsewhere/state.json", &good);
    for id in ["link", "dir", "fifo", "huge", "broken"] {
        fs::create_dir_all(host.path().join("run/runc").join(id)).unwrap();
    }
    let at = |name: &str| host.path().join("run/runc").join(name).join("state.json");
    symlink(&real, at("link")).unwrap();
    symlink(real.parent().unwrap(), host.path().join("run/runc/dirlink")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
    fs::write(at("huge"), format!("{}{good}", " ".repeat(2 << 20))).unwrap();
    fs::write(at("broken"), &good[..good.len() - 1]).unwrap();
    assert_eq!(look(&host, &[&process]), []);
    write(&host, "/run/runc/good/state.json", good);
    assert_eq!(look(&host, &[&process]).len(), 1);
}

/// A container of a real runtime, deleted when the test is over.
struct Container {
    runtime: &'static str,
    root: PathBuf,
    id: String,
    pid: u32,
}

impl Container {
    fn run(runtime: &'static str, root: PathBuf, bundle: &Path, id: &str) -> Self {
        let pid_file = bundle.join(format!("{id}.pid"));
        let mut command = Self::command(runtime, &root);
        command.args(["run", "--detach", "--pid-file"]).arg(&pid_file).arg("--bundle").arg(bundle).arg(id);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.expect(runtime).success(), "{runtime} run {id}");
        let pid = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        Self { runtime, root, id: id.into(), pid }
    }

    /// crun as root refuses a hybrid cgroup layout, unless it does not see it.
    fn command(runtime: &str, root: &Path) -> Command {
        let mut command = Command::new("unshare");
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        command.args(["-m", "sh", "-c", script, "sh", runtime, "--root"]).arg(root);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut command = Self::command(self.runtime, &self.root);
        let _ = command.args(["delete", "--force", &self.id]).status();
    }
}

fn installed(program: &str) -> bool {
    let paths = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    paths.iter().any(|p| Path::new(p).join(program).exists())
}

/// A bundle with a static busybox that sleeps.
fn bundle(host: &TempDir) -> Option<PathBuf> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists())?;
    let bundle = host.path().join("bundle");
    write(host, "/bundle/rootfs/bin/busybox", fs::read(busybox).unwrap());
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bundle.join("rootfs/bin/busybox"), mode).unwrap();
    write(
        host,
        "/bundle/config.json",
        r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["/bin/busybox","sleep","300"],"cwd":"/"},
            "root":{"path":"rootfs","readonly":true},"mounts":[{"destination":"/proc","type":"proc","source":"proc"}],
            "linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}"#,
    );
    Some(bundle)
}

#[test]
fn an_engine_in_namespaces_of_its_own() {
    const NAME: &str = "an_engine_in_namespaces_of_its_own";
    if !rustix::process::geteuid().is_root() || !installed("runc") {
        return skipped(NAME, "not root, or no runc");
    }
    let host = host();
    let Some(bundle) = bundle(&host) else { return skipped(NAME, "no busybox") };
    let dir = host.path().display().to_string();
    // Its engine is a program that does nothing but have the name; what counts is where it sees things.
    fs::copy("/bin/sleep", host.path().join("dockerd")).unwrap();
    fs::create_dir(host.path().join("own")).unwrap();
    let id = format!("h5-nested-{}", std::process::id());
    let script = format!(
        "set -e; mount -t tmpfs t /run; umount /sys/fs/cgroup/unified 2>/dev/null || true
         mount -t tmpfs t {dir}/own; cp \"$(command -v runc)\" {dir}/own/runc; PATH={dir}/own:$PATH
         {dir}/dockerd 300 &
         runc --root /run/runc run -d --bundle {bundle} {id} </dev/null >/dev/null 2>&1
         echo ready; read x || true; runc --root /run/runc delete -f {id}",
        bundle = bundle.display()
    );
    let mut nested = Command::new("unshare")
        .args(["-m", "-p", "-f", "--kill-child", "--mount-proc", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut line = String::new();
    let stdout = nested.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let mut found = existing(&Search::default());
    found.retain(|e| e.id == id);
    let cgroups: Vec<_> =
        found.iter().map(|e| fs::read_to_string(format!("/proc/{}/cgroup", e.pid))).collect();
    let discovered = crate::runtime::discover(&Search { configs: false, ..Search::default() });
    let inits: Vec<u32> = found.iter().map(|e| e.pid).collect();
    let unknown: Vec<u32> = strangers(&Search::default(), &[]).into_iter().map(|(pid, _)| pid).collect();
    let others: Vec<u32> = strangers(&Search::default(), &found).into_iter().map(|(pid, _)| pid).collect();
    drop(nested.stdin.take());
    assert!(nested.wait().unwrap().success(), "it cleaned up");
    assert_eq!(line, "ready\n");

    assert_eq!(found.len(), 1, "{found:?}");
    assert!(inits.iter().all(|i| unknown.contains(i) && !others.contains(i)), "{unknown:?} {others:?}");
    assert!(!unknown.contains(&std::process::id()) && !unknown.contains(&1));
    assert!(cgroups[0].as_ref().unwrap().contains(&id), "the host's number: {cgroups:?}");
    assert_eq!(found[0].runtime, "runc");
    let bundle_seen = found[0].bundle.clone().unwrap();
    assert!(bundle_seen.starts_with("/proc") && bundle_seen.ends_with(bundle.strip_prefix("/").unwrap()));
    assert!(found[0].state_root.as_ref().unwrap().ends_with("root/run/runc"));

    let inside = host.path().join("own/runc");
    assert!(!inside.exists(), "it is not on the host");
    let binary = discovered.binaries.iter().find(|b| b.path == inside);
    let binary = binary.expect("the engine's own runc");
    assert_eq!(binary.name, "runc");
    assert!(binary.host_path.starts_with("/proc"), "{binary:?}");
}

#[test]
fn containers_of_real_runtimes_until_they_end() {
    const NAME: &str = "containers_of_real_runtimes_until_they_end";
    if !rustix::process::geteuid().is_root() {
        return skipped(NAME, "not root");
    }
    let host = host_with_proc();
    let Some(bundle) = bundle(&host) else { return skipped(NAME, "no busybox") };
    let mut containers = Vec::new();
    for runtime in ["runc", "crun"] {
        if !installed(runtime) {
            skipped(NAME, &format!("no {runtime}"));
            continue;
        }
        for n in 0..2 {
            let id = format!("h5-{runtime}-{n}-{}", std::process::id());
            let root = host.path().join("run").join(runtime);
            containers.push(Container::run(runtime, root, &bundle, &id));
        }
    }
    let search = Search { host_root: host.path().into(), ..Search::default() };
    let ours = || {
        let mut all = existing(&search);
        all.retain(|e| e.id.starts_with("h5-") && e.id.ends_with(&format!("-{}", std::process::id())));
        let mut told: Vec<_> = all.into_iter().map(|e| (e.id, e.pid, e.runtime)).collect();
        told.sort();
        told
    };
    let mut started: Vec<_> =
        containers.iter().map(|c| (c.id.clone(), c.pid, c.runtime.to_owned())).collect();
    started.sort();
    assert_eq!(ours(), started);
    while let Some(container) = containers.pop() {
        let id = container.id.clone();
        drop(container);
        assert!(ours().iter().all(|(other, ..)| *other != id));
        assert_eq!(ours().len(), containers.len());
    }
}
