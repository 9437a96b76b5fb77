//! What else a runtime does to a container: told when it has done it, with what was asked for.

mod support;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use libc::{SIGKILL, SIGTERM, SIGUSR1};
use serde_json::{Value, json};
use support::{LIMIT, Listener, PATIENCE, only};
use testkit::{Bundle, Family, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

use EventKind::{Created, Deleted, Failed, Killed, Paused, PreCreate, Resumed, Started, Stopped, Updated};

fn verbs(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    // A process 1 without handlers does not hear what it could be ended by.
    let bundle = Bundle::builder(unique_id("verbs")).args(["/bin/sleep", "1000"]).build()?;
    let id = bundle.id();
    runtime.create(&bundle)?;
    runtime.start(id)?;
    let mut kinds = vec![PreCreate, Created, Started];
    listener.wait(id, &kinds)?;
    let scratch = Scratch::new()?;
    let run = |args: &[&str]| -> Result<i32> {
        let output = Task::spawn(&mut runtime.command(args))?.wait(PATIENCE)?;
        output.code().with_context(|| format!("{args:?}: {output:?}"))
    };
    let mut told = |kind: EventKind| -> Result<Record> {
        kinds.push(kind);
        listener.wait(id, &kinds)?.pop().context("no record")
    };

    for (word, signal) in [("USR1", SIGUSR1), ("SIGTERM", SIGTERM), ("10", SIGUSR1)] {
        ensure!(run(&["kill", id, word])? == 0, "kill {word}");
        let record = told(Killed)?;
        ensure!(record.event.signal() == Some(signal), "{}", record.to_json());
        let json: Value = serde_json::from_str(&record.to_json())?;
        ensure!(json["signal"] == json!(signal) && json["held"] == json!(false), "{json}");
    }
    ensure!(run(&["kill", id])? == 0);
    ensure!(told(Killed)?.event.signal() == Some(SIGTERM));

    ensure!(run(&["pause", id])? == 0);
    told(Paused)?;
    // It failed: it is paused already. Nothing is told.
    ensure!(run(&["pause", id])? != 0 || family != Family::Runc);
    if family != Family::Runc {
        told(Paused)?;
    }
    ensure!(run(&["resume", id])? == 0);
    told(Resumed)?;

    ensure!(run(&["update", "--memory", "67108864", "--pids-limit", "64", id])? == 0);
    let record = told(Updated)?;
    let limits = record.event.limits().context("no limits")?;
    ensure!(*limits == json!({"memory": "67108864", "pids-limit": "64"}), "{limits}");
    let file = scratch.join("limits.json");
    let wanted = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 32}});
    std::fs::write(&file, wanted.to_string())?;
    ensure!(run(&["update", "--resources", &file.to_string_lossy(), id])? == 0);
    let record = told(Updated)?;
    ensure!(record.event.limits() == Some(&wanted), "{}", record.to_json());
    // What is no limit is no limit, whatever the runtime says to it.
    std::fs::write(&file, "[1]")?;
    ensure!(run(&["update", "--resources", &file.to_string_lossy(), id])? != 0);

    // No such container, no such verb: nothing of it is told.
    ensure!(run(&["kill", "there-is-none", "TERM"])? != 0);
    let _ = run(&["dance", id])?;

    ensure!(run(&["kill", id, "KILL"])? == 0);
    // The end is told at once, the signal when the runtime has ended.
    let records = listener.wait_for("its end", |records| {
        let of: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        (of.len() == kinds.len() + 2).then_some(of)
    })?;
    let last = &records[kinds.len()..];
    let killed = last.iter().find(|r| r.event.kind() == Killed).context("not killed")?;
    let stopped = last.iter().find(|r| r.event.kind() == Stopped).context("not stopped")?;
    ensure!(killed.event.signal() == Some(SIGKILL), "{}", killed.to_json());
    ensure!(stopped.event.exit().is_some_and(|exit| exit.signal == Some(SIGKILL)), "{}", stopped.to_json());
    runtime.delete(id, false)?;
    let records = listener.wait_for("its deletion", |records| {
        let of: Vec<Record> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        of.iter().any(|r| r.event.kind() == Deleted).then_some(of)
    })?;
    ensure!(records.len() == kinds.len() + 3, "{}", listener.text());
    listener.close()?;
    Ok(())
}

#[test]
fn of_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    verbs(Family::Runc)
}

/// Told where it is asked for, with how the runtime ended and what it was asked.
#[test]
fn what_failed() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let builder = only([runtime.path()]).events(EventKind::ALL);
    let listener = Listener::start(builder, |_: &ContainerEvent| ())?;
    let bundle = Bundle::builder(unique_id("failed")).args(["/bin/sleep", "1000"]).build()?;
    let id = bundle.id();
    let run = |args: &[&str]| Task::spawn(&mut runtime.command(args))?.wait(PATIENCE);
    let failed = |record: &Record, verb: EventKind| -> Result<()> {
        let event = &record.event;
        ensure!(event.verb() == Some(verb), "{}", record.to_json());
        ensure!(event.exit().is_some_and(|exit| exit.code == Some(1)), "{}", record.to_json());
        Ok(())
    };
    runtime.create(&bundle)?;
    runtime.start(id)?;
    listener.wait(id, &[PreCreate, Created, Started])?;
    ensure!(run(&["resume", id])?.code() == Some(1));
    let records = listener.wait(id, &[PreCreate, Created, Started, Failed])?;
    failed(&records[3], Resumed)?;
    let init = bundle.init()?;
    init.kill(SIGKILL)?;
    listener.wait(id, &[PreCreate, Created, Started, Failed, Stopped])?;
    // It is told as it begins to die.
    wait_until("it has died", PATIENCE, || (!init.is_alive()).then_some(()))?;
    ensure!(run(&["kill", id, "TERM"])?.code() == Some(1));
    let records = listener.wait(id, &[PreCreate, Created, Started, Failed, Stopped, Failed])?;
    failed(&records[5], Killed)?;
    ensure!(records[5].event.signal() == Some(SIGTERM), "{}", records[5].to_json());
    runtime.delete(id, false)?;
    listener.wait(id, &[PreCreate, Created, Started, Failed, Stopped, Failed, Deleted])?;
    listener.close()?;
    Ok(())
}
