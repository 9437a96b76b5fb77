//! containerd runs containers by `ctr`, with the installed runtime or a copy, and leaves nothing behind.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use testkit::{Containerd, Leftovers, Output, Runtime, Task, need, unique_id, wait_until, watchdog};

const LONG: Duration = Duration::from_secs(180);

fn run(containerd: &Containerd, script: &str) -> Result<Output> {
    let mut command = containerd.run(&["--rm"], &unique_id("run"), &["/bin/sh", "-c", script]);
    Task::spawn(&mut command)?.wait(LONG)
}

#[test]
fn with_the_installed_runtime() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LONG);
    let containerd = Containerd::start()?;
    let output = run(&containerd, "echo hello; exit 7")?;
    assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
    Ok(())
}

#[test]
fn with_a_copy_of_runc_and_of_crun() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc, Crun);
    let _dog = watchdog(LONG);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let containerd = Containerd::start_with(&runtime)?;
        let output = run(&containerd, "echo hello; exit 7")?;
        assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
        // Without the copy nothing runs: so it is the copy that ran.
        std::fs::remove_file(runtime.path())?;
        assert_ne!(run(&containerd, "true")?.code(), Some(0));
    }
    Ok(())
}

#[test]
fn dropping_ends_its_containers() -> Result<()> {
    need!(Root, Busybox, Containerd, Runc);
    let _dog = watchdog(LONG);
    let containerd = Containerd::start()?;
    let id = unique_id("left");
    Task::spawn(&mut containerd.run(&["--detach"], &id, &["/bin/sleep", "1000"]))?.wait(LONG)?.ok()?;
    let list = Task::spawn(&mut containerd.ctr(["task", "ls"]))?.wait(LONG)?.ok()?.stdout;
    assert!(list.contains(&id) && list.contains("RUNNING"), "{list}");
    let bundle = containerd.bundle(&id);
    assert!(bundle.join("config.json").exists());
    let shim = std::fs::read_to_string(bundle.join("address"))?;
    let runc_state = Path::new("/run/containerd/runc").join(containerd.namespace());
    assert!(runc_state.join(&id).exists());
    drop(containerd);
    wait_until("nothing is left", LONG, || Leftovers::of(&bundle).is_empty().then_some(()))?;
    for path in [&bundle, &runc_state, Path::new(shim.trim().trim_start_matches("unix://"))] {
        assert!(!path.exists(), "{}", path.display());
    }
    Ok(())
}
