//! Podman with crun and with runc: conmon's name arrives, and rootless containers are told as such.

mod support;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Engine, EventKind, ExitStatus};
use libc::SIGKILL;
use support::{Expected, LIMIT, Listener, WHOLE_LIFE, the};
use testkit::{Family, Output, Podman, Process, Runtime, Task, need, unique_id, watchdog};

fn done(command: &mut std::process::Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)
}

fn listener(runtime: &Runtime, podman: &Podman) -> Result<Listener> {
    Listener::to([runtime.path(), podman.conmon().to_owned()])
}

fn run(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let podman = Podman::start_with(&runtime)?;
    let listener = listener(&runtime, &podman)?;
    let name = unique_id("run");
    done(&mut podman.run(&["--detach", "--name", &name], &["/bin/sleep", "1000"]))?.ok()?;
    let id = podman.inspect(&name, ".Id")?;
    listener.wait(&id, &WHOLE_LIFE[..3])?;
    let init = Process(podman.inspect(&name, ".State.Pid")?.parse()?);
    let config = podman.inspect(&name, ".OCIConfigPath")?;
    let config = std::path::PathBuf::from(config);
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    let bundle = config.parent().context("no folder")?.to_owned();

    let output = done(&mut podman.podman(["exec", &name, "/bin/sh", "-c", "exit 5"]))?;
    ensure!(output.code() == Some(5), "{output:?}");
    done(&mut podman.podman(["kill", &name]))?.ok()?;
    let also = [EventKind::Killed, EventKind::Exec, EventKind::ExecStopped];
    listener.wait_besides(&id, &WHOLE_LIFE[..4], &also)?;
    done(&mut podman.podman(["rm", "--force", "--time", "0", &name]))?.ok()?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &also)?;
    Expected {
        pid: Some(init),
        name: Some(&name),
        bundle: &bundle,
        config: Some(&text),
        runtime: &runtime.path(),
        engine: Some(Engine::Podman),
        exit: Some(ExitStatus::signaled(SIGKILL)),
    }
    .check(&records)?;
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
    let exec = the(EventKind::Exec, &listener.of(&id))?.event.clone();
    ensure!(exec.exec().context("no words")?.args == ["/bin/sh", "-c", "exit 5"], "{exec:?}");
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

#[test]
fn run_with_runc() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    run(Family::Runc)
}

#[test]
fn run_with_crun() -> Result<()> {
    need!(Root, Busybox, Podman, Crun);
    run(Family::Crun)
}

#[test]
fn a_pod() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Podman::start_with(&runtime)?;
    let listener = listener(&runtime, &podman)?;
    let (pod, name) = (unique_id("pod"), unique_id("in"));
    done(&mut podman.podman(["pod", "create", "--network", "none", "--name", &pod]))?.ok()?;
    let flags = ["run", "--name", &name, "--pod", &pod, testkit::BUSYBOX, "/bin/sh", "-c", "exit 7"];
    let output = done(&mut podman.podman(flags))?;
    ensure!(output.code() == Some(7), "{output:?}");
    let id = podman.inspect(&name, ".Id")?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed])?;
    ensure!(records.iter().all(|record| record.event.name() == Some(&name)), "{}", listener.text());
    ensure!(the(EventKind::Stopped, &records)?.event.exit() == Some(&ExitStatus::exited(7)));
    // The pod's own container, which the other one's start has started.
    let infra = listener.wait_for("the infra container is told", |records| {
        let mut others =
            records.iter().filter(|r| r.event.id() != id && r.event.kind() == EventKind::Started);
        others.next().cloned()
    })?;
    ensure!(infra.event.name().is_some_and(|name| name.ends_with("-infra")), "{}", infra.to_json());
    done(&mut podman.podman(["pod", "rm", "--force", &pod]))?.ok()?;
    listener.wait_besides(infra.event.id(), &WHOLE_LIFE, &[EventKind::Killed])?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn rootless() -> Result<()> {
    need!(Root, Busybox, PodmanRootless, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Podman::rootless_with(&runtime)?;
    let listener = listener(&runtime, &podman)?;
    let name = unique_id("rootless");
    done(&mut podman.run(&["--detach", "--name", &name], &["/bin/sleep", "1000"]))?.ok()?;
    let id = podman.inspect(&name, ".Id")?;
    listener.wait(&id, &WHOLE_LIFE[..3])?;
    let init = Process(podman.inspect(&name, ".State.Pid")?.parse()?);
    done(&mut podman.podman(["rm", "--force", "--time", "0", &name]))?.ok()?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed])?;
    for record in &records {
        let event = &record.event;
        ensure!(event.rootless() && event.owner_uid() == podman.uid(), "{}", record.to_json());
        ensure!(event.name() == Some(&name), "{}", record.to_json());
        ensure!(event.config().is_some(), "{}", record.to_json());
        let pid = (event.kind() != EventKind::PreCreate).then_some(init.0.cast_unsigned());
        ensure!(event.pid() == pid, "{}: not {init:?}", record.to_json());
    }
    ensure!(records[..2].iter().all(|record| record.event.held()), "{}", listener.text());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
