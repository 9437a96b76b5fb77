//! Containers that were there before the listener: each is told once, with its engine, and then its end.

mod support;

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, Engine, EventKind};
use support::{LIMIT, Listener, PATIENCE, only};
use testkit::skip::find_program;
use testkit::{
    Bundle, Containerd, Dockerd, Output, Podman, Process, Rootfs, Runtime, Task, need, unique_id, wait_until,
    watchdog,
};

const EACH: usize = 4;
const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)?.ok()
}

/// A container of a runtime's own, in the state folder that it has by itself: the place where a listener looks.
struct Own<'a> {
    runtime: &'a Runtime,
    bundle: Bundle,
}

impl<'a> Own<'a> {
    fn start(runtime: &'a Runtime, rootfs: &Rootfs) -> Result<(Self, Process)> {
        let bundle = Bundle::builder(unique_id("existing")).rootfs(rootfs).args(SLEEP).build()?;
        let own = Own { runtime, bundle };
        let mut create = runtime.bare(&runtime.path());
        create.args(["create", "--bundle"]).arg(own.bundle.path());
        create.arg("--pid-file").arg(own.bundle.pid_file()).arg(own.bundle.id());
        done(&mut create)?;
        done(runtime.bare(&runtime.path()).args(["start", own.bundle.id()]))?;
        let init = own.bundle.init()?;
        Ok((own, init))
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let program = find_program(self.runtime.family().name()).unwrap_or_default();
        let mut delete = self.runtime.bare(&program);
        delete.args(["delete", "--force", self.bundle.id()]);
        let _ = Task::spawn(&mut delete).map(|task| task.wait(PATIENCE));
    }
}

#[test]
fn twenty_of_five_kinds() -> Result<()> {
    need!(Root, Busybox, Runc, Crun, Containerd, Docker, Podman);
    let _dog = watchdog(LIMIT);
    let (runc, crun, other) = (Runtime::runc()?, Runtime::crun()?, Runtime::runc()?);
    let rootfs = Rootfs::busybox()?;
    let containerd = Containerd::start()?;
    let docker = Dockerd::start()?;
    let podman = Podman::start_with(&runc)?;

    // By id: its engine, its name, its init.
    let mut expected: HashMap<String, (Option<Engine>, Option<String>, Process)> = HashMap::new();
    let mut own = Vec::new();
    for number in 0..EACH {
        for runtime in [&runc, &crun] {
            let (container, init) = Own::start(runtime, &rootfs)?;
            expected.insert(container.bundle.id().to_owned(), (None, None, init));
            own.push(container);
        }
        let id = unique_id("ctr");
        done(&mut containerd.run(&["--detach"], &id, &SLEEP))?;
        let tasks = done(&mut containerd.ctr(["task", "ls"]))?.stdout;
        let line = tasks.lines().find(|line| line.starts_with(&id)).context("ctr does not list it")?;
        let pid = line.split_whitespace().nth(1).context("no pid")?.parse()?;
        expected.insert(id, (Some(Engine::Containerd), None, Process(pid)));

        let name = format!("docker-{number}");
        done(&mut docker.run(&["--detach", "--name", &name], &SLEEP))?;
        let init = Process(docker.inspect(&name, ".State.Pid")?.parse()?);
        expected.insert(docker.inspect(&name, ".Id")?, (Some(Engine::Docker), Some(name), init));

        let name = format!("podman-{number}");
        done(&mut podman.run(&["--detach", "--name", &name], &SLEEP))?;
        let init = Process(podman.inspect(&name, ".State.Pid")?.parse()?);
        expected.insert(podman.inspect(&name, ".Id")?, (Some(Engine::Podman), Some(name), init));
    }
    ensure!(expected.len() == 20);

    let listener = Listener::start(only([other.path()]).existing(true), |_: &ContainerEvent| ())?;
    for (id, (engine, name, init)) in &expected {
        let records = listener.wait(id, &[EventKind::Created])?;
        let event = &records[0].event;
        let say = || records[0].to_json();
        ensure!(event.existing() && !event.held(), "{}", say());
        ensure!(event.pid() == Some(init.0.cast_unsigned()), "{init:?}: {}", say());
        ensure!(
            event.engine() == *engine && event.name() == name.as_deref(),
            "{engine:?} {name:?}: {}",
            say()
        );
        ensure!(event.config().is_some() && event.bundle().is_some(), "{}", say());
        ensure!(!event.rootless() && event.owner_uid() == 0, "{}", say());
    }
    // It is marked from now on, and the next one is told as usual.
    let next = Bundle::builder(unique_id("next")).build()?;
    other.run(&next)?.ok()?;
    listener.wait(next.id(), &support::WHOLE_LIFE)?;

    for (_, _, init) in expected.values() {
        init.kill(libc::SIGKILL)?;
    }
    for (id, (_, _, init)) in &expected {
        wait_until("it ends", PATIENCE, || (!init.is_alive()).then_some(()))?;
        let records = listener.wait(id, &[EventKind::Created, EventKind::Stopped])?;
        ensure!(records[1].event.pid() == Some(init.0.cast_unsigned()), "{}", records[1].to_json());
        let signal = records[1].event.exit().context("no exit")?.signal;
        ensure!(signal.is_none() || signal == Some(libc::SIGKILL), "{}", records[1].to_json());
    }
    listener.close()?;
    Ok(())
}
