//! Docker: containers with the id, the name and the pid that `docker inspect` says.

mod support;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Engine, EventKind, ExitBackend, ExitStatus, Record};
use support::{Expected, LIMIT, Listener, PATIENCE, WHOLE_LIFE, the};
use testkit::{
    Dockerd, Family, Output, Process, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog,
};

fn done(command: &mut std::process::Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)
}

/// Its id, by its name.
fn id_of(docker: &Dockerd, name: &str) -> Result<String> {
    docker.inspect(name, ".Id")
}

fn init_of(docker: &Dockerd, name: &str) -> Result<Process> {
    Ok(Process(docker.inspect(name, ".State.Pid")?.parse()?))
}

/// What the container of this name is told by while it lives: Docker removes its bundle at its end.
fn running(
    docker: &Dockerd,
    runtime: &Runtime,
    listener: &Listener,
    name: &str,
) -> Result<(String, Process)> {
    let id = id_of(docker, name)?;
    let records = listener.wait(&id, &WHOLE_LIFE[..3])?;
    let init = init_of(docker, name)?;
    let config = serde_json::from_slice(&std::fs::read(docker.bundle(&id).join("config.json"))?)?;
    expected(docker, runtime, &id, name, init, Some(&config), None).check(&records)?;
    ensure!(records.iter().all(|record| record.event.held()), "{}", listener.text());
    Ok((id, init))
}

/// What Docker's word makes of a container. (Its paths live as long as the test program.)
fn expected<'a>(
    docker: &Dockerd,
    runtime: &Runtime,
    id: &str,
    name: &'a str,
    init: Process,
    config: Option<&'a serde_json::Value>,
    exit: Option<ExitStatus>,
) -> Expected<'a> {
    Expected {
        pid: Some(init),
        name: Some(name),
        bundle: docker.bundle(id).leak(),
        config,
        runtime: runtime.path().leak(),
        engine: Some(Engine::Docker),
        exit,
    }
}

fn run_and_stopped(family: Family, flags: &[&str], entrypoint: &[&str]) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let name = unique_id("run");
    let flags = [&["--detach", "--name", &name], flags].concat();
    // The shell of pid 1 has a handler for the signal that Docker sends first.
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    done(&mut docker.run(&flags, &["/bin/sh", "-c", script]))?.ok()?;
    let (id, init) = running(&docker, &runtime, &listener, &name)?;
    let started = listener.of(&id);
    let words = the(EventKind::Started, &started)?.event.exec().context("no words")?;
    ensure!(words.args == [entrypoint, &["/bin/sh", "-c", script]].concat(), "{words:?}");
    ensure!(words.args == init.args(), "{:?}", init.args());
    wait_until("it is ready", PATIENCE, || {
        let logs = done(&mut docker.docker(["logs", &name])).ok()?;
        logs.stdout.contains("ready").then_some(())
    })?;
    done(&mut docker.docker(["stop", "--time", "60", &name]))?.ok()?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed])?;
    ensure!(docker.inspect(&name, ".State.ExitCode")? == "7");
    expected(&docker, &runtime, &id, &name, init, None, Some(ExitStatus::exited(7))).check(&records)?;
    ensure!(listener.of(&id).iter().any(|record| record.event.kind() == EventKind::Killed));

    // The same id, another life.
    done(&mut docker.docker(["start", &name]))?.ok()?;
    let twice = [&WHOLE_LIFE[..], &WHOLE_LIFE[..3]].concat();
    let records = listener.wait_besides(&id, &twice, &[EventKind::Killed])?;
    let init = init_of(&docker, &name)?;
    expected(&docker, &runtime, &id, &name, init, None, None).check(&records[5..])?;
    done(&mut docker.docker(["rm", "--force", &name]))?.ok()?;
    let twice = WHOLE_LIFE.repeat(2);
    listener.wait_besides(&id, &twice, &[EventKind::Killed])?;
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

#[test]
fn run_with_runc() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    run_and_stopped(Family::Runc, &[], &[])
}

#[test]
fn run_with_crun() -> Result<()> {
    need!(Root, Busybox, Docker, Crun);
    run_and_stopped(Family::Crun, &[], &[])
}

/// `--init` mounts a program of the host over a path that the image does not have.
#[test]
fn run_with_an_init() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    run_and_stopped(Family::Runc, &["--init"], &["/sbin/docker-init", "--"])
}

#[test]
fn run_and_removed() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let name = unique_id("rm");
    let output =
        done(&mut docker.run(&["--rm", "--name", &name], &["/bin/sh", "-c", "echo $HOSTNAME; exit 3"]))?;
    ensure!(output.code() == Some(3), "{output:?}");
    let short = output.stdout.trim().to_owned();
    let id = listener.wait_for("it is told", |records| {
        records.iter().map(|r| r.event.id()).find(|id| id.starts_with(&short)).map(str::to_owned)
    })?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed])?;
    let init = Process(records[1].event.pid().context("no pid")?.cast_signed());
    expected(&docker, &runtime, &id, &name, init, None, Some(ExitStatus::exited(3))).check(&records)?;
    listener.close()?;
    Ok(())
}

#[test]
fn executed_in() -> Result<()> {
    use EventKind::{Exec, ExecStopped};
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let name = unique_id("exec");
    done(&mut docker.run(&["--detach", "--name", &name], &["/bin/sleep", "1000"]))?.ok()?;
    let (id, _) = running(&docker, &runtime, &listener, &name)?;
    let output = done(&mut docker.docker(["exec", &name, "/bin/sh", "-c", "exit 5"]))?;
    ensure!(output.code() == Some(5), "{output:?}");
    let kinds = [&WHOLE_LIFE[..3], &[Exec]].concat();
    let records = listener.wait_besides(&id, &kinds, &[ExecStopped])?;
    let words = records[3].event.exec().context("no words")?;
    ensure!(words.args == ["/bin/sh", "-c", "exit 5"] && records[3].event.held(), "{words:?}");
    listener.close()?;
    Ok(())
}

/// Docker executes it detached, and it is over in a moment.
#[test]
fn health_checks() -> Result<()> {
    use EventKind::{Exec, ExecStopped};
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let name = unique_id("health");
    let flags = ["--detach", "--name", &name, "--health-interval", "1s", "--health-cmd", "exit 3"];
    done(&mut docker.run(&flags, &["/bin/sleep", "1000"]))?.ok()?;
    let (id, _) = running(&docker, &runtime, &listener, &name)?;
    let checks = listener.wait_for("three checks", |records| {
        let checks = records.iter().filter(|r| matches!(r.event.kind(), Exec | ExecStopped));
        let checks: Vec<Record> = checks.filter(|r| r.event.id() == id).cloned().collect();
        (checks.len() >= 6).then_some(checks)
    })?;
    let exact = listener.status()?.exit_backend == ExitBackend::Bpf;
    for check in &checks[..6] {
        let words = check.event.exec().context("no words")?;
        ensure!(words.args == ["/bin/sh", "-c", "exit 3"], "{words:?}");
        if check.event.kind() == ExecStopped {
            let exit = check.event.exit().copied().context("no exit")?;
            ensure!(exit.code == Some(3) || (!exact && exit.code.is_none()), "{}", check.to_json());
        }
    }
    done(&mut docker.docker(["rm", "--force", &name]))?.ok()?;
    listener.wait_besides(&id, &WHOLE_LIFE, &[EventKind::Killed, Exec, ExecStopped])?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// Each step of `docker build` is a container.
fn build(kit: bool, engine: Engine) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let root = docker.bundle("x").ancestors().nth(6).context("no root")?.to_owned();
    let scratch = Scratch::new()?;
    let steps = ["one", "two", "three"];
    let lines: String = steps.iter().map(|step| format!("RUN echo {step} > /{step}\n")).collect();
    std::fs::write(scratch.join("Dockerfile"), format!("FROM {}\n{lines}", testkit::BUSYBOX))?;
    // Docker 20.10's BuildKit executes the runc in its PATH, whatever the daemon's default runtime is: the fixture sees to it
    // that it is this copy.
    let marked = runtime.path();
    let listener = Listener::to([&marked])?;
    let mut command = docker.docker(["build", "--network", "none", "--tag", "built"]);
    command.env("DOCKER_BUILDKIT", if kit { "1" } else { "0" });
    let output = done(command.arg(scratch.path()))?.ok()?;
    let ours = |record: &Record| record.event.bundle().is_some_and(|bundle| bundle.starts_with(&root));
    let told = listener.wait_for("three containers end", |records| {
        let told: Vec<Record> = records.iter().filter(|r| ours(r)).cloned().collect();
        let ended = told.iter().filter(|r| r.event.kind() == EventKind::Stopped).count();
        (ended == steps.len()).then_some(told)
    });
    let told = told.with_context(|| format!("{output:?}"))?;
    for kind in &WHOLE_LIFE[..4] {
        let of_kind: Vec<&Record> = told.iter().filter(|record| record.event.kind() == *kind).collect();
        ensure!(of_kind.len() == steps.len(), "{kind}: {}\n{}", of_kind.len(), listener.text());
        for (step, record) in steps.iter().zip(of_kind) {
            let event = &record.event;
            ensure!(event.engine() == Some(engine), "{}", record.to_json());
            ensure!(event.runtime().is_some_and(|it| it.path == marked), "{}", record.to_json());
            ensure!(event.held() == (*kind != EventKind::Stopped), "{}", record.to_json());
            let config = event.config().and_then(|config| config.value()).context("no config")?;
            let args = config["process"]["args"].to_string();
            ensure!(args.contains(&format!("echo {step} > /{step}")), "{args}");
        }
    }
    listener.close()?;
    Ok(())
}

#[test]
fn built_the_classic_way() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    build(false, Engine::Docker)
}

#[test]
fn built_by_buildkit() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    build(true, Engine::Buildkit)
}
