//! Handlers side by side, and handlers that run containers themselves.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind};
use support::{LIMIT, Listener, WHOLE_LIFE, only};
use testkit::{Bundle, Podman, Rootfs, Runtime, Task, need, unique_id, watchdog};

fn bundles(count: usize, rootfs: &Rootfs) -> Result<Vec<Bundle>> {
    (0..count).map(|_| Bundle::builder(unique_id("c")).rootfs(rootfs).args(["/bin/true"]).build()).collect()
}

/// Runs one container; its handler runs the next one; and so on.
fn nested(deep: usize, max_handlers: usize, at: EventKind) -> Result<Vec<containerhook::Record>> {
    let runtime = Arc::new(Runtime::runc()?);
    let bundles = Arc::new(bundles(deep, &Rootfs::busybox()?)?);
    let (in_handler, of_handler) = (Arc::clone(&bundles), Arc::clone(&runtime));
    let outputs = Arc::new(Mutex::new(HashMap::new()));
    let results = Arc::clone(&outputs);
    let builder = only([runtime.path()]).deadline(Duration::from_secs(10)).max_handlers(max_handlers);
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        if event.kind() != at {
            return;
        }
        let this = in_handler.iter().position(|bundle| bundle.id() == event.id());
        if let Some(next) = this.and_then(|this| in_handler.get(this + 1)) {
            let code = of_handler.run(next).ok().and_then(|output| output.code());
            results.lock().unwrap().insert(next.id().to_owned(), code);
        }
    })?;
    ensure!(runtime.run(&bundles[0])?.code() == Some(0));
    for bundle in bundles.iter() {
        listener.wait(bundle.id(), &WHOLE_LIFE)?;
    }
    listener.wait_idle()?;
    // The last handlers may still be at it: they end as soon as what they ran has.
    testkit::wait_until("every handler has returned", support::PATIENCE, || {
        (outputs.lock().unwrap().len() == deep - 1).then_some(())
    })?;
    let outputs = outputs.lock().unwrap();
    ensure!(outputs.values().all(|code| *code == Some(0)), "{outputs:?}");
    listener.close()
}

#[test]
fn handlers_that_run_containers_eight_deep() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    for at in [EventKind::PreCreate, EventKind::Created, EventKind::Started] {
        let records = nested(8, 64, at)?;
        let late: Vec<String> = records
            .iter()
            .filter(|record| record.answer.as_ref().is_some_and(|answer| answer.timed_out))
            .map(containerhook::Record::to_json)
            .collect();
        ensure!(late.is_empty(), "{late:?}");
    }
    Ok(())
}

/// An engine's whole way through: each handler waits for a Podman, whose container's handler waits for the next.
#[test]
fn handlers_that_run_podman_eight_deep() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    const DEEP: usize = 8;
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Arc::new(Podman::start_with(&runtime)?);
    let names: Arc<Vec<String>> = Arc::new((0..DEEP).map(|_| unique_id("deep")).collect());
    let run = |podman: &Podman, name: &str| -> Result<Option<i32>> {
        let mut command = podman.run(&["--rm", "--name", name], &["/bin/sh", "-c", "exit 4"]);
        Ok(Task::spawn(&mut command)?.wait(LIMIT)?.code())
    };
    let outputs = Arc::new(Mutex::new(HashMap::new()));
    let (engine, in_handler, results) = (Arc::clone(&podman), Arc::clone(&names), Arc::clone(&outputs));
    // Each takes about a second by itself, and the outermost waits for all.
    let builder = only([runtime.path(), podman.conmon().to_owned()]).deadline(Duration::from_secs(115));
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        if event.kind() != EventKind::Created {
            return;
        }
        let this = in_handler.iter().position(|name| event.name() == Some(name));
        if let Some(next) = this.and_then(|this| in_handler.get(this + 1)) {
            let code = run(&engine, next).ok().flatten();
            results.lock().unwrap().insert(next.clone(), code);
        }
    })?;
    ensure!(run(&podman, &names[0])? == Some(4));
    let created = |records: &[containerhook::Record]| {
        let of_kind = records.iter().filter(|record| record.event.kind() == EventKind::Created);
        let of_kind: Vec<containerhook::Record> = of_kind.cloned().collect();
        (of_kind.len() == DEEP).then_some(of_kind)
    };
    let created = listener.wait_for("all are created", created)?;
    for record in &created {
        ensure!(record.answer.as_ref().is_some_and(|answer| !answer.timed_out), "{}", record.to_json());
        listener.wait_besides(record.event.id(), &WHOLE_LIFE, &[EventKind::Killed])?;
    }
    let outputs = outputs.lock().unwrap().clone();
    ensure!(outputs.len() == DEEP - 1 && outputs.values().all(|code| *code == Some(4)), "{outputs:?}");
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// Handlers wait for handlers that find no thread: the deadline unties them.
#[test]
fn handlers_that_run_containers_deeper_than_there_are_threads() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let records = nested(4, 2, EventKind::Created)?;
    ensure!(records.iter().any(|record| record.answer.as_ref().is_some_and(|answer| answer.timed_out)));
    Ok(())
}

/// Handlers of different containers run at the same time: each waits for the others.
#[test]
fn containers_are_handled_side_by_side() -> Result<()> {
    need!(Root, Busybox, Runc);
    const COUNT: usize = 6;
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let bundles = bundles(COUNT, &Rootfs::busybox()?)?;
    let all_here = Barrier::new(COUNT);
    let builder = only([runtime.path()]).deadline(Duration::from_secs(100)).max_handlers(COUNT);
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        if event.kind() == EventKind::PreCreate {
            all_here.wait();
        }
    })?;
    run_all(&runtime, &bundles)?;
    for bundle in &bundles {
        listener.wait(bundle.id(), &WHOLE_LIFE)?;
    }
    listener.close()?;
    Ok(())
}

/// More containers at once than handlers may run: none is lost, none runs past the bound, all have their turn.
#[test]
fn more_containers_at_once_than_handlers_may_run() -> Result<()> {
    need!(Root, Busybox, Runc);
    const BOUND: usize = 3;
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let bundles = bundles(16, &Rootfs::busybox()?)?;
    let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let calls = Arc::new(AtomicUsize::new(0));
    let (now, peak, called) = (Arc::clone(&at_once), Arc::clone(&most), Arc::clone(&calls));
    let builder = only([runtime.path()]).deadline(Duration::from_secs(100)).max_handlers(BOUND);
    let listener = Listener::start(builder, move |_: &ContainerEvent| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        now.fetch_sub(1, Ordering::SeqCst);
        called.fetch_add(1, Ordering::SeqCst);
    })?;
    run_all(&runtime, &bundles)?;
    for bundle in &bundles {
        let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
        let late = records.iter().filter_map(|record| record.answer.as_ref()).any(|answer| answer.timed_out);
        ensure!(!late, "{}", listener.text());
    }
    // An event is recorded when its turn comes, and told when a thread is free.
    testkit::wait_until("the handler was called for each", support::PATIENCE, || {
        (calls.load(Ordering::SeqCst) == bundles.len() * WHOLE_LIFE.len()).then_some(())
    })?;
    let most = most.load(Ordering::SeqCst);
    ensure!(most == BOUND, "{most} handlers ran at once");
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

fn run_all(runtime: &Runtime, bundles: &[Bundle]) -> Result<()> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = bundles
            .iter()
            .map(|bundle| {
                scope.spawn(move || -> Result<()> {
                    let mut run = runtime.command(["run", "--bundle"]);
                    let output = Task::spawn(run.arg(bundle.path()).arg(bundle.id()))?.wait(LIMIT)?;
                    ensure!(output.code() == Some(0), "{output:?}");
                    Ok(())
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().ok().context("it panicked")?)
    })
}
