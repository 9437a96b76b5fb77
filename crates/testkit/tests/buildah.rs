//! Buildah runs commands with a copy of a runtime, and leaves nothing behind.

use std::time::Duration;

use anyhow::Result;
use testkit::{Buildah, Leftovers, Runtime, Task, need, wait_until, watchdog};

const LONG: Duration = Duration::from_secs(300);

fn runs_with_the_copy(runtime: &Runtime) -> Result<()> {
    let buildah = Buildah::start_with(runtime)?;
    let run = |script| Task::spawn(&mut buildah.run(&[], &["/bin/sh", "-c", script]))?.wait(LONG);
    let output = run("echo hello; exit 7")?;
    assert_eq!((output.stdout.trim(), output.code()), ("hello", Some(7)), "{}", output.stderr);
    std::fs::remove_file(runtime.path())?;
    assert_ne!(run("true")?.code(), Some(0));
    let command = buildah.buildah(["version"]);
    let storage = command.get_args().nth(1).map(std::path::PathBuf::from).expect("--root DIR");
    drop(buildah);
    wait_until("nothing is left", LONG, || Leftovers::of(&storage).is_empty().then_some(()))?;
    assert!(!storage.exists());
    Ok(())
}

#[test]
fn with_runc() -> Result<()> {
    need!(Root, Busybox, Buildah, Runc);
    let _dog = watchdog(LONG);
    runs_with_the_copy(&Runtime::runc()?)
}

#[test]
fn with_crun() -> Result<()> {
    need!(Root, Busybox, Buildah, Crun);
    let _dog = watchdog(LONG);
    runs_with_the_copy(&Runtime::crun()?)
}
