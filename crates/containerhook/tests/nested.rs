//! An engine in a mount namespace of its own, with a runtime and bundles where the host has nothing.

mod support;

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, ContainerNotifier, EventKind};
use support::{LIMIT, Listener, PATIENCE, the};
use testkit::{Containerd, Runtime, Task, need, unique_id, watchdog};

#[test]
fn containerd_in_a_mount_namespace_of_its_own() -> Result<()> {
    need!(Root, Busybox, Runc, Containerd);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let containerd = Containerd::start_apart(&runtime)?;
    let id = unique_id("nested");
    ensure!(!containerd.runtime().context("no runtime")?.exists(), "the host has the runtime too");
    ensure!(!containerd.bundle(&id).parent().context("a root")?.exists(), "the host has the bundles too");

    // What the host reads where it is told that the bundle is.
    let read = Arc::new(Mutex::new(Vec::new()));
    let (reads, wanted) = (Arc::clone(&read), id.clone());
    let builder = ContainerNotifier::builder().exec_watch(false);
    let listener = Listener::start(builder, move |event: &ContainerEvent| {
        if event.id() == wanted && event.held() {
            let config = event.bundle().map(|bundle| std::fs::read(bundle.join("config.json")).ok());
            reads.lock().unwrap().push(config.flatten());
        }
    })?;
    let status = listener.status()?;
    let marked = status
        .runtimes
        .iter()
        .find(|it| it.path.ends_with(containerd.runtime().unwrap().strip_prefix("/").unwrap()));
    let marked = marked.with_context(|| format!("not marked: {status:?}"))?;

    let output =
        Task::spawn(&mut containerd.run(&["--rm"], &id, &["/bin/echo", "ok"]))?.wait(PATIENCE)?.ok()?;
    ensure!(output.stdout == "ok\n", "{output:?}");
    let records = listener.wait_for("its deletion", |records| {
        let records: Vec<_> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
        (records.last()?.event.kind() == EventKind::Deleted).then_some(records)
    })?;
    let kinds: Vec<EventKind> = records.iter().map(|r| r.event.kind()).collect();
    ensure!(kinds == support::WHOLE_LIFE, "{kinds:?}\n{}", listener.text());
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
    let created = the(EventKind::Created, &records)?;
    ensure!(created.event.pid().is_some() && created.event.config().is_some(), "{}", created.to_json());
    ensure!(created.event.runtime().is_some_and(|it| it.path == marked.path), "{}", created.to_json());
    let read = read.lock().unwrap();
    let config = created.event.config().context("no config")?;
    ensure!(read.len() == 3, "{read:?}");
    ensure!(read.iter().all(|read| read.as_deref() == Some(config.raw())), "{:?}", created.event.bundle());
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
