//! dockerd runs containers, with the installed runtime or a copy, and leaves nothing behind.

use std::time::Duration;

use anyhow::Result;
use testkit::{Dockerd, Leftovers, Output, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

const LONG: Duration = Duration::from_secs(300);

/// An engine answers a few milliseconds before the container's own program is executed.
fn becomes(init: Process, args: &[&str]) -> Result<()> {
    wait_until("init executes its program", LONG, || (init.args() == args).then_some(()))
}

fn run(docker: &Dockerd, flags: &[&str], script: &str) -> Result<Output> {
    Task::spawn(&mut docker.run(flags, &["/bin/sh", "-c", script]))?.wait(LONG)
}

#[test]
fn with_the_installed_runtime() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LONG);
    let docker = Dockerd::start()?;
    for flags in [&["--rm"][..], &["--rm", "--init"]] {
        let output = run(&docker, flags, "echo hello; exit 7")?;
        assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
    }
    Ok(())
}

#[test]
fn with_a_copy_of_runc_and_of_crun() -> Result<()> {
    need!(Root, Busybox, Docker, Runc, Crun);
    let _dog = watchdog(LONG);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let docker = Dockerd::start_with(&runtime)?;
        let output = run(&docker, &["--rm"], "echo hello; exit 7")?;
        assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
        // Without the copy nothing runs: so it is the copy that ran.
        std::fs::remove_file(runtime.path())?;
        assert_ne!(run(&docker, &["--rm"], "true")?.code(), Some(0));
    }
    Ok(())
}

#[test]
fn dropping_ends_its_containers() -> Result<()> {
    need!(Root, Busybox, Docker, Runc);
    let _dog = watchdog(LONG);
    let docker = Dockerd::start()?;
    let name = unique_id("left");
    let output = Task::spawn(&mut docker.run(&["--detach", "--name", &name], &["/bin/sleep", "1000"]))?
        .wait(LONG)?
        .ok()?;
    let id = output.stdout.trim();
    let init = Process(docker.inspect(&name, ".State.Pid")?.parse()?);
    becomes(init, &["/bin/sleep", "1000"])?;
    let bundle = docker.bundle(id);
    assert!(bundle.join("config.json").exists(), "{}", bundle.display());
    let shim = std::fs::read_to_string(bundle.join("address"))?;
    drop(docker);
    wait_until("nothing is left", LONG, || Leftovers::of(&bundle).is_empty().then_some(()))?;
    assert!(!init.is_alive() && !bundle.exists());
    assert!(!std::path::Path::new(shim.trim().trim_start_matches("unix://")).exists());
    Ok(())
}
