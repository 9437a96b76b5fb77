//! Names, pods, images and engines, told without asking any engine.

mod support;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Engine, EventKind, Record};
use support::{LIMIT, Listener, WHOLE_LIFE};
use testkit::{BUSYBOX, Bundle, Cri, Dockerd, Output, Podman, Runtime, Task, need, unique_id, watchdog};

fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)?.ok()
}

#[test]
fn of_a_pod() -> Result<()> {
    need!(Root, Busybox, Runc, Cri);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let cri = Cri::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let pod = cri.run_pod("web")?;
    let id = cri.create_container(&pod, "server", &["/bin/sleep", "1000"])?;
    cri.start_container(&id)?;
    let sandbox = listener.wait(&pod.id, &WHOLE_LIFE[..3])?;
    let server = listener.wait(&id, &WHOLE_LIFE[..3])?;
    for (record, container) in sandbox
        .iter()
        .map(|record| (record, None))
        .chain(server.iter().map(|record| (record, Some("server"))))
    {
        let event = &record.event;
        let said = event.kubernetes().with_context(|| format!("no pod: {}", record.to_json()))?;
        let pod_of_it = (said.namespace.as_deref(), said.pod.as_deref(), said.pod_uid.as_deref());
        ensure!(pod_of_it == (Some("default"), Some("web"), Some(pod.uid.as_str())), "{}", record.to_json());
        ensure!(said.container.as_deref() == container, "{}", record.to_json());
        ensure!(said.sandbox == container.is_none(), "{}", record.to_json());
        ensure!(
            event.engine() == Some(Engine::Containerd) && event.name() == container,
            "{}",
            record.to_json()
        );
    }
    ensure!(server.iter().all(|record| record.event.image() == Some(BUSYBOX)), "{}", listener.text());
    cri.stop_container(&id, 0)?;
    cri.stop_pod(&pod)?;
    for id in [&pod.id, &id] {
        listener.wait_for("its end", |records| {
            records.iter().any(|r| r.event.id() == *id && r.event.kind() == EventKind::Stopped).then_some(())
        })?;
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn of_a_container_of_docker() -> Result<()> {
    need!(Root, Busybox, Runc, Docker);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let docker = Dockerd::start_with(&runtime)?;
    let listener = Listener::to([runtime.path()])?;
    let id = done(&mut docker.run(&["--detach", "--name", "blue-whale"], &["/bin/sleep", "1000"]))?.stdout;
    let records = listener.wait(id.trim(), &WHOLE_LIFE[..3])?;
    for record in &records {
        let event = &record.event;
        ensure!(event.name() == Some("blue-whale"), "{}", record.to_json());
        ensure!(event.engine() == Some(Engine::Docker), "{}", record.to_json());
        ensure!(event.kubernetes().is_none(), "{}", record.to_json());
    }
    listener.close()?;
    Ok(())
}

/// Podman's pods are none of Kubernetes, and its names come from conmon and from the configuration.
#[test]
fn of_containers_of_podman() -> Result<()> {
    need!(Root, Busybox, Runc, Podman);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let podman = Podman::start_with(&runtime)?;
    let listener = Listener::to([runtime.path(), podman.conmon().to_owned()])?;
    let id = done(&mut podman.run(&["--detach", "--name", "seal"], &["/bin/sleep", "1000"]))?.stdout;
    let records = listener.wait(id.trim(), &WHOLE_LIFE[..3])?;
    for record in &records {
        let event = &record.event;
        ensure!(event.name() == Some("seal") && event.image() == Some(BUSYBOX), "{}", record.to_json());
        ensure!(event.engine() == Some(Engine::Podman), "{}", record.to_json());
        ensure!(event.kubernetes().is_none(), "{}", record.to_json());
    }
    listener.close()?;
    Ok(())
}

/// Engines that are not here write their words into the configuration like those that are.
#[test]
fn by_annotations() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let nerdctl = Bundle::builder(unique_id("nerdctl"))
        .annotation("nerdctl/name", "otter")
        .annotation("nerdctl/namespace", "default");
    let crio = Bundle::builder(unique_id("crio"))
        .annotation("io.container.manager", "cri-o")
        .annotation("io.kubernetes.cri-o.ContainerType", "container")
        .annotation("io.kubernetes.container.name", "db")
        .annotation("io.kubernetes.pod.name", "store-0")
        .annotation("io.kubernetes.pod.namespace", "prod")
        .annotation("io.kubernetes.pod.uid", "11111111-2222-3333-4444-555555555555")
        .annotation("io.kubernetes.cri-o.ImageName", "quay.io/db:1");
    let run = |bundle: testkit::BundleBuilder| -> Result<Vec<Record>> {
        let bundle = bundle.build()?;
        runtime.run(&bundle)?.ok()?;
        listener.wait(bundle.id(), &WHOLE_LIFE)
    };
    for record in run(nerdctl)? {
        let event = &record.event;
        ensure!(event.name() == Some("otter"), "{}", record.to_json());
        ensure!(event.engine() == Some(Engine::Containerd), "{}", record.to_json());
    }
    for record in run(crio)? {
        let event = &record.event;
        let said = event.kubernetes().context("no pod")?;
        ensure!(said.namespace.as_deref() == Some("prod"), "{}", record.to_json());
        ensure!(said.pod.as_deref() == Some("store-0"), "{}", record.to_json());
        ensure!(said.container.as_deref() == Some("db") && !said.sandbox, "{}", record.to_json());
        ensure!(event.engine() == Some(Engine::CriO) && event.name() == Some("db"), "{}", record.to_json());
        ensure!(event.image() == Some("quay.io/db:1"), "{}", record.to_json());
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
