//! 200 containers by `ctr run --rm`: each told once, with containerd's own words.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Engine, ExitStatus};
use serde_json::Value;
use support::{Expected, Listener, PATIENCE, WHOLE_LIFE};
use testkit::{Containerd, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

const COUNT: usize = 200;

/// What containerd says of a container: `ctr events` prints every event with its topic and its fields.
#[derive(Clone, Default)]
struct Said {
    created: Vec<i32>,
    /// The pid, and the exit code.
    exited: Vec<(i32, i32)>,
}

fn read_events(text: &str) -> HashMap<String, Said> {
    let mut said: HashMap<String, Said> = HashMap::new();
    for line in text.lines() {
        let Some((before, fields)) = line.split_once('{') else { continue };
        let Ok(fields) = serde_json::from_str::<Value>(&format!("{{{fields}")) else { continue };
        let Some(id) = fields["container_id"].as_str() else { continue };
        // A field that is zero is left out.
        let number = |name: &str| fields[name].as_i64().unwrap_or_default() as i32;
        let said = said.entry(id.to_owned()).or_default();
        match before.split_whitespace().last() {
            Some("/tasks/create") => said.created.push(number("pid")),
            Some("/tasks/exit") => said.exited.push((number("pid"), number("exit_status"))),
            _ => {}
        }
    }
    said
}

fn each_is_told_once(at_once: usize) -> Result<()> {
    // As many containers as one after the other take on two processors that others use too.
    let limit = Duration::from_secs(540);
    let _dog = watchdog(limit);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_with(&runtime)?;
    let events = Task::spawn(&mut containerd.ctr(["events"]))?;
    let listener = Listener::to([runtime.path()])?;
    let ids: Vec<String> = (0..COUNT).map(|i| format!("{}-{i}", unique_id("many"))).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(id) = ids.get(i) else { return Ok(()) };
                        let script = format!("exit {i}");
                        let mut run = containerd.run(&["--rm"], id, &["/bin/sh", "-c", &script]);
                        let output = Task::spawn(&mut run)?.wait(limit)?;
                        ensure!(output.code() == Some(i as i32), "{i}: {output:?}");
                    }
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().expect("it does not panic"))
    })?;
    let said = wait_until("containerd has told of every end", PATIENCE, || {
        let said = read_events(&events.printed().0);
        ids.iter().all(|id| said.get(id).is_some_and(|said| !said.exited.is_empty())).then_some(said)
    })?;
    for (i, id) in ids.iter().enumerate() {
        let records = listener.wait(id, &WHOLE_LIFE)?;
        let Said { created, exited } = said.get(id).context("containerd has not told of it")?;
        ensure!(created.len() == 1 && *exited == [(created[0], i as i32)], "{id}: {created:?}, {exited:?}");
        Expected {
            pid: Some(Process(created[0])),
            name: None,
            bundle: &containerd.bundle(id),
            config: None,
            runtime: &runtime.path(),
            engine: Some(Engine::Containerd),
            exit: Some(ExitStatus::exited(i as i32)),
        }
        .check(&records)
        .with_context(|| listener.text())?;
        ensure!(
            records[..3].iter().all(|record| record.event.held()),
            "{id} was not held\n{}",
            listener.text()
        );
    }
    listener.wait_idle()?;
    let status = listener.status()?;
    ensure!(status.containers == 0 && status.timed_out == 0, "{status:?}");
    let records = listener.close()?;
    ensure!(records.len() == COUNT * WHOLE_LIFE.len(), "{} records", records.len());
    Ok(())
}

#[test]
fn eight_at_a_time() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    each_is_told_once(8)
}

#[test]
fn one_after_the_other() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    each_is_told_once(1)
}
