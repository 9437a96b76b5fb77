//! Runtimes besides runc and crun.

mod support;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{EventKind, ExitStatus, Record};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, the};
use testkit::skip::find_program;
use testkit::{Bundle, Output, Runtime, Scratch, Task, need, skip, unique_id, watchdog};

fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)
}

fn check(records: &[Record], bundle: &Path, runtime: &Path, exit: ExitStatus) -> Result<()> {
    let pid = the(EventKind::Created, records)?.event.pid();
    for record in records {
        let event = &record.event;
        ensure!(event.held() == WHOLE_LIFE[..3].contains(&event.kind()), "{}", record.to_json());
        ensure!(event.kind() == EventKind::PreCreate || event.pid() == pid, "{}", record.to_json());
        ensure!(event.bundle() == Some(bundle) && event.config().is_some(), "{}", record.to_json());
        ensure!(event.runtime().is_some_and(|it| it.path == runtime), "{}", record.to_json());
    }
    ensure!(the(EventKind::Stopped, records)?.event.exit() == Some(&exit));
    Ok(())
}

#[test]
fn youki_by_create_and_start() -> Result<()> {
    need!(Root, Busybox, Youki);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::youki()?;
    let listener = Listener::to([runtime.path()])?;
    for with_pid_file in [true, false] {
        let bundle = Bundle::builder(unique_id("youki")).script("exit 7").build()?;
        let id = bundle.id();
        let init = if with_pid_file {
            runtime.create(&bundle)?
        } else {
            done(runtime.command(["create", "--bundle"]).arg(bundle.path()).arg(id))?.ok()?;
            runtime.state(id)?.init
        };
        let records = listener.wait(id, &WHOLE_LIFE[..2])?;
        ensure!(records[1].event.pid() == Some(init.0.cast_unsigned()), "{}", listener.text());
        runtime.start(id)?;
        listener.wait(id, &WHOLE_LIFE[..4])?;
        runtime.delete(id, true)?;
        let records = listener.wait(id, &WHOLE_LIFE)?;
        check(&records, bundle.path(), &runtime.path(), ExitStatus::exited(7))?;
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn youki_by_run() -> Result<()> {
    need!(Root, Busybox, Youki);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::youki()?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("youki")).script("echo ok; exit 7").build()?;
    let id = bundle.id();
    let output = runtime.run(&bundle)?;
    ensure!(output.stdout == "ok\n", "{output:?}");
    let records = listener.wait(id, &WHOLE_LIFE)?;
    check(&records, bundle.path(), &runtime.path(), ExitStatus::exited(7))?;
    ensure!(runtime.containers().is_empty(), "it is told as deleted, and is not: {:?}", runtime.containers());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// What runs in a gVisor sandbox is never executed by the host: its start can be told, and not held.
#[test]
fn runsc_by_create_and_start() -> Result<()> {
    need!(Root, Busybox);
    let Some(installed) = find_program("runsc") else {
        skip!("runsc is not installed; `apt-get install --no-install-recommends runsc`")
    };
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let program = scratch.join("runsc");
    done(Command::new("cp").arg(installed).arg(&program))?.ok()?;
    let listener = Listener::to([program.clone()])?;
    let bundle = Bundle::builder(unique_id("runsc")).args(["/bin/sleep", "1000"]).build()?;
    let id = bundle.id();
    let runsc = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(scratch.join("state")).args(["--network=none", "--ignore-cgroups"]);
        command.args(["--platform=ptrace"]).args(args);
        command
    };
    let (path, pid_file) = (bundle.path().to_string_lossy(), bundle.pid_file());
    let create =
        done(&mut runsc(&["create", "--bundle", &path, "--pid-file", &pid_file.to_string_lossy(), id]))?;
    if !create.status.success() {
        skip!("runsc cannot create a container here: {}", create.stderr);
    }
    let records = listener.wait(id, &WHOLE_LIFE[..2])?;
    let sandbox = bundle.init()?;
    ensure!(records[1].event.pid() == Some(sandbox.0.cast_unsigned()), "{}", listener.text());
    done(&mut runsc(&["start", id]))?.ok()?;
    listener.wait(id, &WHOLE_LIFE[..3])?;
    done(&mut runsc(&["delete", "--force", id]))?.ok()?;
    let records = listener.wait_for("its deletion", |records| {
        let records: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        (records.last()?.event.kind() == EventKind::Deleted).then_some(records)
    })?;
    for record in &records {
        let event = &record.event;
        let held = [EventKind::PreCreate, EventKind::Created].contains(&event.kind());
        ensure!(event.held() == held, "{}", record.to_json());
        ensure!(event.bundle() == Some(bundle.path()) && event.config().is_some(), "{}", record.to_json());
        ensure!(event.runtime().is_some_and(|it| it.name == "runsc"), "{}", record.to_json());
    }
    let started = the(EventKind::Started, &records)?;
    let why = started.event.detail().context("nothing is said of why it was not held")?;
    ensure!(why.starts_with("not held"), "{why}");
    the(EventKind::Stopped, &records)?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
