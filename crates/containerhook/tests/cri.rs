//! Kubernetes' interface of containerd: the pod's sandbox and its container are told apart, each with its words.

mod support;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, Engine, EventKind, ExitBackend, ExitStatus, Record};
use libc::SIGKILL;
use support::{Expected, LIMIT, Listener, PATIENCE, WHOLE_LIFE, the};
use testkit::{Cri, Pod, Process, Runtime, need, unique_id, wait_until, watchdog};

fn bundle(cri: &Cri, id: &str) -> PathBuf {
    // The plugin's containers live in a namespace of their own.
    let tasks = cri.containerd().bundle(id);
    let tasks = tasks.ancestors().nth(2).map(PathBuf::from).unwrap_or_default();
    tasks.join("k8s.io").join(id)
}

fn in_pod(event: &ContainerEvent, pod: &Pod, container: Option<&str>) -> Result<()> {
    let kubernetes = event.kubernetes().context("no pod")?;
    ensure!(kubernetes.namespace.as_deref() == Some("default"), "{kubernetes:?}");
    ensure!(kubernetes.pod.as_deref() == Some(&pod.name), "{kubernetes:?}");
    ensure!(kubernetes.pod_uid.as_deref() == Some(&pod.uid), "{kubernetes:?}");
    ensure!(kubernetes.container.as_deref() == container, "{kubernetes:?}");
    ensure!(kubernetes.sandbox == container.is_none(), "{kubernetes:?}");
    Ok(())
}

/// Kinds that are the engine's own affair.
const ALSO: [EventKind; 3] = [EventKind::Killed, EventKind::Exec, EventKind::ExecStopped];

#[test]
fn a_pod() -> Result<()> {
    need!(Root, Busybox, Cri, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let cri = Cri::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let path = runtime.path();
    let expect = |init: Process, name, bundle: PathBuf, exit, records: &[Record]| -> Result<()> {
        Expected {
            pid: Some(init),
            name,
            bundle: &bundle,
            config: None,
            runtime: &path,
            engine: Some(Engine::Containerd),
            exit,
        }
        .check(records)
    };

    let pod = cri.run_pod(&unique_id("pod"))?;
    let records = listener.wait(&pod.id, &WHOLE_LIFE[..3])?;
    ensure!(records.iter().all(|record| record.event.held()), "{}", listener.text());
    let sandbox = cri.pod_init(&pod)?;

    let id = cri.create_container(&pod, "main", &["/bin/sleep", "1000"])?;
    ensure!(listener.of(&id).is_empty(), "CreateContainer executes no runtime");
    cri.start_container(&id)?;
    let records = listener.wait(&id, &WHOLE_LIFE[..3])?;
    ensure!(records.iter().all(|record| record.event.held()), "{}", listener.text());
    ensure!(
        the(EventKind::Started, &records)?.event.exec().context("no words")?.args == ["/bin/sleep", "1000"]
    );
    let init = cri.init(&id)?;

    let (stdout, _, code) = cri.exec_sync(&id, &["/bin/sh", "-c", "echo inside; exit 3"])?;
    ensure!((stdout.trim(), code) == ("inside", 3));
    let exec = the(EventKind::Exec, &listener.of(&id))?.event.clone();
    ensure!(exec.exec().context("no words")?.args == ["/bin/sh", "-c", "echo inside; exit 3"], "{exec:?}");
    // A kubelet's exec probe is this call: over in a moment, and detached.
    let ended = listener.wait_for("its end", |records| {
        let mut ends = records.iter().filter(|r| r.event.kind() == EventKind::ExecStopped);
        ends.next().cloned()
    })?;
    let exact = listener.status()?.exit_backend == ExitBackend::Bpf;
    let code = ended.event.exit().context("no exit")?.code;
    ensure!(code == Some(3) || (!exact && code.is_none()), "{}", ended.to_json());

    let short = cri.create_container(&pod, "short", &["/bin/sh", "-c", "exit 7"])?;
    cri.start_container(&short)?;
    let code = wait_until("the short one ends", PATIENCE, || cri.exit_code(&short).ok().flatten())?;
    ensure!(code == 7);
    let records = listener.wait_besides(&short, &WHOLE_LIFE, &ALSO)?;
    ensure!(the(EventKind::Stopped, &records)?.event.exit() == Some(&ExitStatus::exited(7)));

    cri.stop_container(&id, 0)?;
    let records = listener.wait_besides(&id, &WHOLE_LIFE, &ALSO)?;
    expect(init, Some("main"), bundle(&cri, &id), Some(ExitStatus::signaled(SIGKILL)), &records)?;
    for record in &records {
        in_pod(&record.event, &pod, Some("main"))?;
        ensure!(record.event.image() == Some(testkit::BUSYBOX), "{}", record.to_json());
    }
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    let records = listener.wait_besides(&pod.id, &WHOLE_LIFE, &ALSO)?;
    expect(sandbox, None, bundle(&cri, &pod.id), None, &records)?;
    for record in &records {
        in_pod(&record.event, &pod, None)?;
    }
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}
