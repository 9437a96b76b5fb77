//! The CRI plugin of containerd runs a pod as a kubelet would have it.

use std::time::Duration;

use anyhow::Result;
use testkit::{Cri, Leftovers, Process, Runtime, need, unique_id, wait_until, watchdog};

const LONG: Duration = Duration::from_secs(300);

/// An engine answers a few milliseconds before the container's own program is executed.
fn becomes(init: Process, args: &[&str]) -> Result<()> {
    wait_until("init executes its program", LONG, || (init.args() == args).then_some(()))
}

#[test]
fn a_pod_from_its_sandbox_to_its_end() -> Result<()> {
    need!(Root, Busybox, Cri, Runc);
    let _dog = watchdog(LONG);
    let runc = Runtime::runc()?;
    let cri = Cri::start_with(&runc)?;
    let pod = cri.run_pod(&unique_id("pod"))?;
    becomes(cri.pod_init(&pod)?, &["/bin/sleep", "2147483647"])?;

    let id = cri.create_container(&pod, "main", &["/bin/sleep", "1000"])?;
    assert_eq!(cri.exit_code(&id)?, None);
    cri.start_container(&id)?;
    let init = cri.init(&id)?;
    becomes(init, &["/bin/sleep", "1000"])?;
    let (stdout, _, code) = cri.exec_sync(&id, &["/bin/sh", "-c", "echo inside; exit 3"])?;
    assert_eq!((stdout.as_str(), code), ("inside\n", 3));
    assert!(cri.ctr(&["task", "ls"])?.stdout.contains(&id));

    let short = cri.create_container(&pod, "short", &["/bin/sh", "-c", "exit 7"])?;
    cri.start_container(&short)?;
    let code = wait_until("the short one ends", LONG, || cri.exit_code(&short).ok().flatten())?;
    assert_eq!(code, 7);

    cri.stop_container(&id, 0)?;
    assert!(!init.is_alive());
    cri.remove_container(&id)?;
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    let error = format!("{:#}", cri.start_container(&id).unwrap_err());
    assert!(error.contains("StartContainer") && error.contains("gRPC status 5"), "{error}");

    // Without the copy nothing runs: so it is the copy that ran.
    std::fs::remove_file(runc.path())?;
    assert!(cri.run_pod(&unique_id("pod")).is_err());
    Ok(())
}

#[test]
fn dropping_ends_its_pods() -> Result<()> {
    need!(Root, Busybox, Cri, Runc);
    let _dog = watchdog(LONG);
    let cri = Cri::start()?;
    let pod = cri.run_pod(&unique_id("pod"))?;
    let init = cri.pod_init(&pod)?;
    let socket = cri.containerd().socket();
    let state = std::path::Path::new("/run/containerd/runc/k8s.io").join(&pod.id);
    assert!(init.is_alive() && state.exists());
    drop(cri);
    wait_until("nothing is left", LONG, || Leftovers::of(&socket).is_empty().then_some(()))?;
    assert!(!init.is_alive() && !socket.exists() && !state.exists());
    Ok(())
}
