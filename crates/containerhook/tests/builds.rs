//! Containers that build images: each step of a Dockerfile is one, told with its engine and held.

mod support;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Engine, EventKind, Record};
use support::{LIMIT, Listener, WHOLE_LIFE, the};
use testkit::{BUSYBOX, Buildah, Dockerd, Family, Output, Podman, Runtime, Scratch, Task, need, watchdog};

/// Three steps that are containers, each of which says something nobody else says.
fn dockerfile(scratch: &Scratch, base: &str) -> Result<()> {
    let steps = ["one", "two", "three"].map(|step| format!("RUN echo step-{step} > /{step}\n")).concat();
    std::fs::create_dir_all(scratch.join("context"))?;
    std::fs::write(
        scratch.join("context/Dockerfile"),
        format!("FROM {base}\n{steps}RUN cat /one /two /three\n"),
    )?;
    Ok(())
}

fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)?.ok()
}

/// The whole life of each step's container, in the order of the steps.
fn check(listener: &Listener, engine: Engine, runtime: &Path) -> Result<()> {
    let records = listener.wait_for("three steps and a look at them", |records| {
        let ended = records.iter().filter(|r| r.event.kind() == EventKind::Stopped);
        (ended.count() >= 4).then(|| records.to_vec())
    })?;
    let started: Vec<&Record> = records.iter().filter(|r| r.event.kind() == EventKind::Started).collect();
    let mut steps = Vec::new();
    for record in &started {
        let exec = record.event.exec().context("no words")?;
        steps.push(exec.args.last().cloned().unwrap_or_default());
    }
    let expected =
        ["echo step-one > /one", "echo step-two > /two", "echo step-three > /three", "cat /one /two /three"];
    ensure!(steps == expected, "{steps:?}");
    for record in started {
        let life: Vec<Record> =
            records.iter().filter(|r| r.event.id() == record.event.id()).cloned().collect();
        let kinds: Vec<EventKind> = life.iter().map(|r| r.event.kind()).collect();
        ensure!(kinds.starts_with(&WHOLE_LIFE[..4]), "{kinds:?}");
        let pid = the(EventKind::Created, &life)?.event.pid();
        ensure!(pid.is_some() && pid == record.event.pid(), "{}", record.to_json());
        for record in &life {
            let event = &record.event;
            ensure!(event.held() == WHOLE_LIFE[..3].contains(&event.kind()), "{}", record.to_json());
            ensure!(event.engine() == Some(engine), "{}", record.to_json());
            ensure!(event.config().is_some() && event.bundle().is_some(), "{}", record.to_json());
            let path = event.runtime().map(|runtime| runtime.path.as_path());
            ensure!(path == Some(runtime), "{}", record.to_json());
        }
        let exit = the(EventKind::Stopped, &life)?.event.exit().context("no exit")?;
        ensure!(exit.code == Some(0), "{exit:?}");
    }
    listener.wait_idle()
}

fn by_docker(buildkit: bool) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let scratch = Scratch::new()?;
    dockerfile(&scratch, BUSYBOX)?;
    let mut build = docker.docker(["build", "--network", "none", "--no-cache"]);
    build.env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" }).arg(scratch.join("context"));
    done(&mut build)?;
    check(&listener, if buildkit { Engine::Buildkit } else { Engine::Docker }, &runtime.path())?;
    listener.close()?;
    Ok(())
}

#[test]
fn docker_build_with_buildkit() -> Result<()> {
    need!(Root, Busybox, Runc, Docker);
    by_docker(true)
}

#[test]
fn docker_build_classic() -> Result<()> {
    need!(Root, Busybox, Runc, Docker);
    by_docker(false)
}

fn by_podman(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let podman = Podman::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let scratch = Scratch::new()?;
    dockerfile(&scratch, BUSYBOX)?;
    let mut build = podman.podman(["--runtime"]);
    build.arg(runtime.path()).args(["build", "--isolation", "oci", "--network", "none", "--pull-never"]);
    build.arg("--no-cache").arg(scratch.join("context"));
    done(&mut build)?;
    check(&listener, Engine::Podman, &runtime.path())?;
    listener.close()?;
    Ok(())
}

#[test]
fn podman_build_with_runc() -> Result<()> {
    need!(Root, Busybox, Runc, Podman);
    by_podman(Family::Runc)
}

#[test]
fn podman_build_with_crun() -> Result<()> {
    need!(Root, Busybox, Crun, Podman);
    by_podman(Family::Crun)
}

fn by_buildah(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let buildah = Buildah::start_with(&runtime)?;
    let base = "localhost/bb:latest";
    done(&mut buildah.buildah(["commit", "--quiet", "--format", "docker", buildah.container(), base]))?;
    let listener = Listener::to([runtime.path()])?;
    let scratch = Scratch::new()?;
    dockerfile(&scratch, base)?;
    let mut build = buildah.buildah(["bud", "--isolation", "oci", "--network", "none", "--pull-never"]);
    build.arg("--runtime").arg(runtime.path()).arg("--no-cache").arg(scratch.join("context"));
    done(&mut build)?;
    check(&listener, Engine::Buildah, &runtime.path())?;
    listener.close()?;
    Ok(())
}

#[test]
fn buildah_bud_with_runc() -> Result<()> {
    need!(Root, Busybox, Runc, Buildah);
    by_buildah(Family::Runc)
}

#[test]
fn buildah_bud_with_crun() -> Result<()> {
    need!(Root, Busybox, Crun, Buildah);
    by_buildah(Family::Crun)
}

#[test]
fn buildah_run() -> Result<()> {
    need!(Root, Busybox, Runc, Buildah);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let buildah = Buildah::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let output = done(&mut buildah.run(&[], &["/bin/echo", "ok"]))?;
    ensure!(output.stdout.trim() == "ok", "{output:?}");
    let records = listener.wait_for("its end", |records| {
        (records.last()?.event.kind() == EventKind::Deleted).then(|| records.to_vec())
    })?;
    let kinds: Vec<EventKind> = records.iter().map(|r| r.event.kind()).collect();
    ensure!(kinds == WHOLE_LIFE, "{kinds:?}");
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
    ensure!(
        records.iter().all(|record| record.event.engine() == Some(Engine::Buildah)),
        "{}",
        listener.text()
    );
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
