//! containerd, driven by `ctr`.

mod support;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, Decision, Engine, EventKind, ExitStatus};
use libc::SIGKILL;
use support::{Expected, LIMIT, Listener, PATIENCE, WHOLE_LIFE, only};
use testkit::{Containerd, Family, Process, Runtime, Task, need, unique_id, watchdog};

fn run(command: &mut std::process::Command) -> Result<testkit::Output> {
    Task::spawn(command)?.wait(LIMIT)
}

/// The pid of a container's init and its status, by `ctr task ls`.
fn task(containerd: &Containerd, id: &str) -> Result<(Process, String)> {
    let list = run(&mut containerd.ctr(["task", "ls"]))?.ok()?.stdout;
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
    let words: Vec<&str> =
        line.with_context(|| format!("{id} is not in {list}"))?.split_whitespace().collect();
    Ok((Process(words[1].parse()?), words[2].to_owned()))
}

fn a_detached_container(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let containerd = Containerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let id = unique_id("detached");
    run(&mut containerd.run(&["--detach", "--env", "WHO=me"], &id, &["/bin/sleep", "1000"]))?.ok()?;
    listener.wait(&id, &WHOLE_LIFE[..3])?;
    let bundle = containerd.bundle(&id);
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?;
    let (init, status) = task(&containerd, &id)?;
    ensure!(status == "RUNNING", "{status}");

    run(&mut containerd.ctr(["task", "kill", "--signal", "SIGKILL", &id]))?.ok()?;
    listener.wait_for("its end", |records| {
        records.iter().find(|r| r.event.id() == id && r.event.kind() == EventKind::Stopped).cloned()
    })?;
    // Until the shim has awaited it.
    testkit::wait_until("containerd sees it", PATIENCE, || {
        task(&containerd, &id).ok().filter(|(_, status)| status == "STOPPED")
    })?;
    run(&mut containerd.ctr(["task", "delete", &id]))?;
    listener.wait_for("its deletion", |records| {
        records.iter().find(|r| r.event.id() == id && r.event.kind() == EventKind::Deleted).cloned()
    })?;
    // `kill` has its own event, which may come before or after the end that it brings about.
    let records: Vec<_> =
        listener.of(&id).into_iter().filter(|r| r.event.kind() != EventKind::Killed).collect();
    let kinds: Vec<_> = records.iter().map(|record| record.event.kind()).collect();
    ensure!(kinds == WHOLE_LIFE, "{kinds:?}\n{}", listener.text());
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
    Expected {
        pid: Some(init),
        name: None,
        bundle: &bundle,
        config: Some(&config),
        runtime: &runtime.path(),
        engine: Some(Engine::Containerd),
        exit: Some(ExitStatus::signaled(SIGKILL)),
    }
    .check(&records)?;
    ensure!(
        records[0].event.state_root()
            == Some(&Path::new("/run/containerd/runc").join(containerd.namespace())),
        "{:?}",
        records[0].event.state_root()
    );
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn a_detached_container_with_runc() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    a_detached_container(Family::Runc)
}

#[test]
fn a_detached_container_with_crun() -> Result<()> {
    need!(Root, Busybox, Containerd, Crun);
    a_detached_container(Family::Crun)
}

#[test]
fn run_and_removed() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    for code in [0, 7] {
        let id = unique_id("rm");
        let script = format!("echo hello; exit {code}");
        let output = run(&mut containerd.run(&["--rm"], &id, &["/bin/sh", "-c", &script]))?;
        ensure!((output.stdout.trim(), output.code()) == ("hello", Some(code)), "{output:?}");
        let records = listener.wait(&id, &WHOLE_LIFE)?;
        let pid = records[1].event.pid().context("no pid")?;
        Expected {
            pid: Some(Process(pid.cast_signed())),
            name: None,
            bundle: &containerd.bundle(&id),
            config: None,
            runtime: &runtime.path(),
            engine: Some(Engine::Containerd),
            exit: Some(ExitStatus::exited(code)),
        }
        .check(&records)?;
    }
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0);
    listener.close()?;
    Ok(())
}

/// `ctr task exec`, `pause`, `resume`.
#[test]
fn executed_in_and_paused() -> Result<()> {
    use EventKind::{Exec, ExecStopped, Paused, Resumed};
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let id = unique_id("verbs");
    run(&mut containerd.run(&["--detach"], &id, &["/bin/sleep", "1000"]))?.ok()?;
    listener.wait(&id, &WHOLE_LIFE[..3])?;
    let mut exec = containerd.ctr(["task", "exec", "--exec-id", "e1", &id, "/bin/sh", "-c", "exit 5"]);
    let output = run(&mut exec)?;
    ensure!(output.code() == Some(5), "{output:?}");
    let has = |records: &[containerhook::Record], kind| records.iter().any(|r| r.event.kind() == kind);
    let records = listener.wait_for("its exec", |records| has(records, Exec).then(|| records.to_vec()))?;
    let event = &records.iter().find(|r| r.event.kind() == Exec).context("no exec")?.event;
    ensure!(event.held() && event.id() == id);
    let words = event.exec().context("no words")?;
    ensure!(words.args == ["/bin/sh", "-c", "exit 5"], "{words:?}");
    for (verb, kind) in [("pause", Paused), ("resume", Resumed)] {
        run(&mut containerd.ctr(["task", verb, &id]))?.ok()?;
        listener.wait_for(verb, |records| has(records, kind).then_some(()))?;
    }
    let kinds: Vec<_> =
        listener.of(&id).iter().map(|r| r.event.kind()).filter(|k| *k != ExecStopped).collect();
    ensure!(kinds[3..] == [Exec, Paused, Resumed], "{}", listener.text());
    listener.close()?;
    Ok(())
}

/// Refused before the runtime has done anything: `ctr` says so, and nothing is left.
#[test]
fn denied_before_it_is_created() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let listener = Listener::start(only([runtime.path()]), |event: &ContainerEvent| {
        if event.kind() == EventKind::PreCreate { Decision::deny("not today") } else { Decision::allow() }
    })?;
    let id = unique_id("denied");
    let output = run(&mut containerd.run(&["--rm"], &id, &["/bin/true"]))?;
    ensure!(output.code() == Some(1) && output.stderr.contains("operation not permitted"), "{output:?}");
    let records = listener.wait_for("a denial", |records| records.first().cloned())?;
    ensure!(records.answer.context("no answer")?.reason.as_deref() == Some("not today"));
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0);
    ensure!(run(&mut containerd.ctr(["task", "ls", "-q"]))?.ok()?.stdout.trim().is_empty());
    ensure!(!containerd.bundle(&id).exists());
    listener.close()?;
    Ok(())
}
