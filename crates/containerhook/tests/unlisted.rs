//! Containers of runtimes that nothing names: the kernel's own evidence tells the first one, and the next is held.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, the};
use testkit::skip::find_program;
use testkit::{
    Bundle, Containerd, Family, Podman, Process, Rootfs, Runtime, Scratch, Task, need, skip, unique_id,
    wait_until, watchdog,
};

const UNTOLD: [EventKind; 3] = [EventKind::Created, EventKind::Started, EventKind::Stopped];

/// A listener that has been told of a runtime that nobody executes here. `None` where the kernel refuses the program
/// that shows the first exec of containers.
fn unaware() -> Result<Option<(Runtime, Listener)>> {
    let other = Runtime::runc()?;
    let listener = Listener::start(only([other.path()]).exec_watch(true), |_: &ContainerEvent| ())?;
    let refused = listener.status()?.warnings.iter().any(|warning| warning.contains("will not be seen"));
    Ok((!refused).then_some((other, listener)))
}

macro_rules! unaware {
    () => {
        match unaware()? {
            Some(it) => it,
            None => skip!("the kernel refuses BPF programs on sched_process_exec"),
        }
    };
}

fn is_marked(listener: &Listener, runtime: &Path) -> Result<()> {
    let marked = wait_until("the runtime is marked", PATIENCE, || {
        let status = listener.status().ok()?;
        status.runtimes.iter().any(|marked| marked.path == runtime).then_some(())
    });
    marked.map_err(|error| anyhow!("{error:#}: {}\n{}", runtime.display(), listener.text()))
}

/// Told, and not held.
fn untold(records: &[Record], init: Option<Process>, runtime: &str) -> Result<()> {
    let pid = the(EventKind::Created, records)?.event.pid();
    ensure!(pid.is_some() && (init.is_none() || pid == init.map(|init| init.0.cast_unsigned())), "{pid:?}");
    for record in records {
        let event = &record.event;
        ensure!(!event.held() && !event.existing() && event.pid() == pid, "{}", record.to_json());
        ensure!(event.runtime().is_some_and(|it| it.name == runtime), "{}", record.to_json());
        ensure!(!event.rootless() && event.owner_uid() == 0, "{}", record.to_json());
    }
    Ok(())
}

fn told_then_held_by_run(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let (_other, listener) = unaware!();
    let runtime = Runtime::new(family)?;
    let first = Bundle::builder(unique_id("first")).args(["/bin/sleep", "1000"]).build()?;
    let task = runtime.spawn_run(&first)?;
    listener.wait(first.id(), &UNTOLD[..2])?;
    let init = runtime.state(first.id())?.init;
    is_marked(&listener, &runtime.path())?;

    let second = Bundle::builder(unique_id("second")).build()?;
    runtime.run(&second)?.ok()?;
    let records = listener.wait(second.id(), &WHOLE_LIFE)?;
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());

    init.kill(libc::SIGKILL)?;
    task.wait(PATIENCE)?;
    let records = listener.wait(first.id(), &UNTOLD)?;
    untold(&records, Some(init), family.name())?;
    ensure!(records.iter().all(|record| record.event.bundle() == Some(first.path())), "{}", listener.text());
    ensure!(records.iter().all(|record| record.event.config().is_some()), "{}", listener.text());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_copy_of_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    told_then_held_by_run(Family::Runc)
}

#[test]
fn a_copy_of_crun() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    told_then_held_by_run(Family::Crun)
}

/// Nothing of the runtime's is left when the container's first program runs, but for its shim, which was told of it.
#[test]
fn a_copy_of_runc_under_containerd() -> Result<()> {
    need!(Root, Busybox, Runc, Containerd);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let (_other, listener) = unaware!();
    let ids = [unique_id("first"), unique_id("second")];
    for id in &ids {
        Task::spawn(&mut containerd.run(&["--detach"], id, &["/bin/sleep", "1000"]))?.wait(PATIENCE)?.ok()?;
        if *id == ids[0] {
            listener.wait(id, &UNTOLD[..2])?;
            is_marked(&listener, &runtime.path())?;
        }
    }
    let second = listener.wait(&ids[1], &WHOLE_LIFE[..3])?;
    ensure!(second.iter().all(|record| record.event.held()), "{}", listener.text());
    for id in &ids {
        Task::spawn(&mut containerd.ctr(["task", "kill", "--signal", "KILL", id]))?.wait(PATIENCE)?.ok()?;
    }
    let first = listener.wait_for("its end", |records| {
        let records: Vec<Record> = records.iter().filter(|r| r.event.id() == ids[0]).cloned().collect();
        records.iter().any(|r| r.event.kind() == EventKind::Stopped).then_some(records)
    })?;
    ensure!(first.iter().all(|record| !record.event.held()), "{}", listener.text());
    let bundle = containerd.bundle(&ids[0]);
    ensure!(first[0].event.bundle() == Some(bundle.as_path()), "{}", listener.text());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_copy_of_crun_under_podman() -> Result<()> {
    need!(Root, Busybox, Runc, Crun, Podman);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::crun()?;
    let podman = Podman::start_with(&runtime)?;
    let (_other, listener) = unaware!();
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let run = Task::spawn(&mut podman.run(&["--detach", "--name", name], &["/bin/sleep", "1000"]))?;
        let id = run.wait(PATIENCE)?.ok()?.stdout.trim().to_owned();
        if name == "first" {
            let records = listener.wait(&id, &UNTOLD[..2])?;
            ensure!(records[0].event.name() == Some(name), "{}", listener.text());
            let init = podman.inspect(name, ".State.Pid")?.parse()?;
            ensure!(records[0].event.pid() == Some(init), "{}", listener.text());
            is_marked(&listener, &runtime.path())?;
        }
        ids.push(id);
    }
    let second = listener.wait(&ids[1], &WHOLE_LIFE[..3])?;
    ensure!(second.iter().all(|record| record.event.held()), "{}", listener.text());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// Without an engine above, the state is where runtimes keep it.
#[test]
fn a_copy_of_runc_by_create_and_start() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (_other, listener) = unaware!();
    let runtime = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("first")).args(["/bin/sleep", "1000"]).build()?;
    let id = bundle.id();
    let own = |args: &[&str]| -> Result<()> {
        // With the state folder that runc has by itself.
        Task::spawn(runtime.bare(&runtime.path()).args(args))?.wait(PATIENCE)?.ok()?;
        Ok(())
    };
    let _deleted = Deleted(&runtime, id);
    own(&["create", "--bundle", &bundle.path().to_string_lossy(), id])?;
    own(&["start", id])?;
    let records = listener.wait(id, &UNTOLD[..2])?;
    ensure!(records[0].event.bundle() == Some(bundle.path()), "{}", listener.text());
    own(&["delete", "--force", id])?;
    let records = listener.wait_for("its end", |records| {
        let records: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        records.iter().any(|r| r.event.kind() == EventKind::Stopped).then_some(records)
    })?;
    untold(&records[..3], None, "runc")?;
    listener.close()?;
    Ok(())
}

/// Deletes a container of runc's own state folder, whatever becomes of the test.
struct Deleted<'a>(&'a Runtime, &'a str);

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        let runc = find_program("runc").unwrap_or_else(|| "runc".into());
        let _ = Task::spawn(self.0.bare(&runc).args(["delete", "--force", self.1]))
            .map(|task| task.wait(PATIENCE));
    }
}

/// What another kind of container is told by; `id` makes it of init's pid where it has no name.
fn of_another_kind(command: &mut Command, runtime: &str, id: impl Fn(u32) -> String) -> Result<()> {
    let (_other, listener) = unaware!();
    let task = Task::spawn(command)?;
    let mark = task.process();
    let records = listener.wait_for("the container", |records| {
        let of_it = |r: &&Record| {
            let init = Process(r.event.pid().unwrap_or_default().cast_signed());
            r.event.runtime().is_some_and(|it| it.name == runtime) && mark.descendants().contains(&init)
        };
        let records: Vec<Record> = records.iter().filter(of_it).cloned().collect();
        (records.len() >= 2).then_some(records)
    })?;
    untold(&records, None, runtime)?;
    let pid = records[0].event.pid().context("no pid")?;
    let id = id(pid);
    ensure!(records[0].event.id() == id, "{} is not {id}", records[0].to_json());
    Process(pid.cast_signed()).kill(libc::SIGKILL)?;
    task.wait(PATIENCE)?;
    listener.wait(&id, &UNTOLD)?;
    listener.close()?;
    Ok(())
}

#[test]
fn lxc() -> Result<()> {
    need!(Root, Busybox, Runc, Lxc);
    let program = find_program("lxc-execute").context("no lxc-execute")?;
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let name = unique_id("lxc");
    let mut command = Command::new(program);
    let rootfs = Rootfs::busybox()?;
    let config = format!(
        "lxc.net.0.type = empty\nlxc.console.path = none\nlxc.pty.max = 0\nlxc.autodev = 0\nlxc.mount.auto = proc\n\
         lxc.rootfs.path = dir:{}\n",
        rootfs.path().display()
    );
    // lxc mounts its own init there.
    std::fs::create_dir_all(rootfs.join("sbin"))?;
    std::fs::write(scratch.join("config"), config)?;
    command.arg("-P").arg(scratch.path()).args(["-n", &name, "-f"]).arg(scratch.join("config"));
    command.args(["--", "/bin/sleep", "1000"]);
    of_another_kind(&mut command, "lxc", |_| name.clone())
}

/// Debian's systemd-container would bring a newer systemd along: it is unpacked, in the version that fits.
fn nspawn(scratch: &Scratch) -> Result<Option<(PathBuf, String)>> {
    if let Some(program) = find_program("systemd-nspawn") {
        return Ok(Some((program, String::new())));
    }
    let shell = r#"set -e; cd "$1"; version=$(dpkg-query -W -f '${Version}' systemd)
        apt-get download -q "systemd-container=$version"; dpkg -x systemd-container_*.deb ."#;
    let mut unpack = Command::new("sh");
    unpack.args(["-c", shell, "sh"]).arg(scratch.path());
    let unpacked = Task::spawn(&mut unpack)?.wait(PATIENCE)?.status.success();
    let libraries = format!("{}:/lib/systemd:/usr/lib/systemd", scratch.join("lib/systemd").display());
    let program = scratch.join("usr/bin/systemd-nspawn");
    Ok((unpacked && program.exists()).then_some((program, libraries)))
}

#[test]
fn systemd_nspawn() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let Some((program, libraries)) = nspawn(&scratch)? else {
        skip!("systemd-nspawn is neither installed nor to be had by `apt-get download systemd-container`")
    };
    let rootfs = Rootfs::busybox()?;
    std::fs::create_dir_all(rootfs.join("usr/bin"))?;
    std::fs::write(rootfs.join("etc/os-release"), "ID=test\n")?;
    let name = unique_id("nspawn");
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries).args(["-q", "--register=no", "--keep-unit", "-M", &name, "-D"]);
    command.arg(rootfs.path()).args(["/bin/sleep", "1000"]);
    of_another_kind(&mut command, "systemd-nspawn", |_| name.clone())
}

#[test]
fn bubblewrap() -> Result<()> {
    need!(Root, Busybox, Runc, Bubblewrap);
    let program = find_program("bwrap").context("no bwrap")?;
    let _dog = watchdog(LIMIT);
    let rootfs = Rootfs::busybox()?;
    let mut command = Command::new(program);
    command.arg("--bind").arg(rootfs.path()).args(["/", "--proc", "/proc", "--dev", "/dev", "--unshare-pid"]);
    command.args(["--unshare-ipc", "--unshare-net", "/bin/sleep", "1000"]);
    of_another_kind(&mut command, "bubblewrap", |pid| format!("bubblewrap-{pid}"))
}
