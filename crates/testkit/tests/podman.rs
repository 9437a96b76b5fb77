//! Podman runs containers with a copy of a runtime, for root and for a user, and leaves nothing behind.

use std::time::Duration;

use anyhow::Result;
use testkit::{Leftovers, Output, Podman, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

const LONG: Duration = Duration::from_secs(300);

/// An engine answers a few milliseconds before the container's own program is executed.
fn becomes(init: Process, args: &[&str]) -> Result<()> {
    wait_until("init executes its program", LONG, || (init.args() == args).then_some(()))
}

fn run(podman: &Podman, script: &str) -> Result<Output> {
    Task::spawn(&mut podman.run(&["--rm"], &["/bin/sh", "-c", script]))?.wait(LONG)
}

fn runs_with_the_copy(podman: &Podman, runtime: &Runtime) -> Result<()> {
    let output = run(podman, "echo hello; exit 7")?;
    assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
    std::fs::remove_file(runtime.path())?;
    assert_ne!(run(podman, "true")?.code(), Some(0));
    Ok(())
}

fn dropping_ends_its_containers(podman: Podman) -> Result<()> {
    let name = unique_id("left");
    Task::spawn(&mut podman.run(&["--detach", "--name", &name], &["/bin/sleep", "1000"]))?
        .wait(LONG)?
        .ok()?;
    let init = Process(podman.inspect(&name, ".State.Pid")?.parse()?);
    becomes(init, &["/bin/sleep", "1000"])?;
    let monitor = init.parent().expect("conmon is the parent");
    assert_eq!(monitor.args().first().map(String::as_str), podman.conmon().to_str());
    let folder = podman.conmon().parent().unwrap().to_owned();
    drop(podman);
    wait_until("nothing is left", LONG, || Leftovers::of(&folder).is_empty().then_some(()))?;
    assert!(!init.is_alive() && !folder.exists());
    Ok(())
}

#[test]
fn for_root_with_runc() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    let _dog = watchdog(LONG);
    let runc = Runtime::runc()?;
    dropping_ends_its_containers(Podman::start_with(&runc)?)?;
    runs_with_the_copy(&Podman::start_with(&runc)?, &runc)
}

#[test]
fn for_root_with_crun() -> Result<()> {
    need!(Root, Busybox, Podman, Crun);
    let _dog = watchdog(LONG);
    let crun = Runtime::crun()?;
    dropping_ends_its_containers(Podman::start_with(&crun)?)?;
    runs_with_the_copy(&Podman::start_with(&crun)?, &crun)
}

#[test]
fn a_pod_has_an_infra_container() -> Result<()> {
    need!(Root, Busybox, Podman, Runc);
    let _dog = watchdog(LONG);
    let runc = Runtime::runc()?;
    let podman = Podman::start_with(&runc)?;
    let pod = unique_id("pod");
    Task::spawn(&mut podman.podman(["pod", "create", "--network", "none", "--name", &pod]))?
        .wait(LONG)?
        .ok()?;
    let mut inside = podman.podman(["run", "--rm", "--pod", &pod, testkit::BUSYBOX, "echo", "hello"]);
    let output = Task::spawn(&mut inside)?.wait(LONG)?.ok()?;
    assert_eq!(output.stdout.trim(), "hello", "{}", output.stderr);
    Ok(())
}

#[test]
fn for_a_user_with_runc() -> Result<()> {
    need!(Root, Busybox, PodmanRootless, Runc);
    let _dog = watchdog(LONG);
    let runc = Runtime::runc()?;
    let podman = Podman::rootless_with(&runc)?;
    assert_ne!(podman.uid(), 0);
    let uid = podman.uid();
    dropping_ends_its_containers(podman)?;
    let users = std::fs::read_to_string("/etc/passwd")?;
    assert!(!users.lines().any(|l| l.split(':').nth(2) == Some(&uid.to_string())), "the user is still there");
    runs_with_the_copy(&Podman::rootless_with(&runc)?, &runc)
}
