//! The runtimes, bundles and root file systems that tests stand on do what they say, and leave nothing behind.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use testkit::{
    Bundle, Family, Leftovers, Process, Rootfs, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog,
};

const LONG: Duration = Duration::from_secs(120);

fn assert_gone(folders: &[PathBuf]) {
    for folder in folders {
        let left = Leftovers::of(folder);
        assert!(left.is_empty(), "left behind by {}: {left}", folder.display());
        assert!(!folder.exists(), "{} is still there", folder.display());
    }
}

fn prints_and_exits(family: Family) -> Result<()> {
    let _dog = watchdog(LONG);
    let runtime = Runtime::new(family)?;
    let bundle =
        Bundle::builder(unique_id("run")).script("echo hello $NAME; exit 7").env("NAME", "you").build()?;
    let output = runtime.run(&bundle)?;
    assert_eq!((output.stdout.trim(), output.code()), ("hello you", Some(7)), "{}", output.stderr);
    assert_eq!(runtime.containers(), [""; 0]);
    let folders = [runtime.state_dir(), bundle.path().into(), bundle.rootfs().path()];
    drop((bundle, runtime));
    assert_gone(&folders);
    Ok(())
}

fn creates_starts_and_deletes(family: Family) -> Result<()> {
    let _dog = watchdog(LONG);
    let runtime = Runtime::new(family)?;
    let bundle = Bundle::builder(unique_id("create")).script("echo started; exec sleep 1000").build()?;
    let id = bundle.id();
    let init = runtime.create(&bundle)?;
    let state = runtime.state(id)?;
    assert_eq!((state.status.as_str(), state.init), ("created", init));
    assert_eq!(bundle.stdout(), "", "nothing runs before start");
    assert_eq!(init.ns_pids().last(), Some(&1));
    assert!(init.cgroups().iter().any(|c| c.starts_with(&bundle.cgroup())), "{:?}", init.cgroups());

    runtime.start(id)?;
    wait_until("the container prints", LONG, || (bundle.stdout() == "started\n").then_some(()))?;
    wait_until("sh becomes sleep", LONG, || (init.args() == ["sleep", "1000"]).then_some(()))?;
    assert_eq!(runtime.state(id)?.status, "running");
    let output = runtime.exec(id, &["/bin/sh", "-c", "echo inside; exit 3"])?;
    assert_eq!((output.stdout.trim(), output.code()), ("inside", Some(3)), "{}", output.stderr);

    runtime.kill(id, "KILL")?;
    wait_until("init dies", LONG, || (!init.is_alive()).then_some(()))?;
    wait_until("the runtime sees it", LONG, || {
        runtime.state(id).is_ok_and(|s| s.status == "stopped").then_some(())
    })?;
    runtime.delete(id, false)?;
    assert_eq!(runtime.containers(), [""; 0]);
    Ok(())
}

fn dropping_ends_a_running_container(family: Family) -> Result<()> {
    let _dog = watchdog(LONG);
    for bundle_first in [true, false] {
        let runtime = Runtime::new(family)?;
        let bundle = Bundle::builder(unique_id("left")).args(["/bin/sleep", "1000"]).build()?;
        let init = runtime.create(&bundle)?;
        runtime.start(bundle.id())?;
        assert!(init.is_alive());
        let folders =
            [runtime.state_dir().parent().unwrap().to_owned(), bundle.path().into(), bundle.rootfs().path()];
        if bundle_first {
            drop(bundle);
            drop(runtime);
        } else {
            drop(runtime);
            drop(bundle);
        }
        assert!(!init.is_alive());
        assert_gone(&folders);
    }
    Ok(())
}

macro_rules! for_each_runtime {
    ($($family:ident $module:ident),*) => {$(
        mod $module {
            use super::{Family, Result, need};

            #[test]
            fn prints_and_exits() -> Result<()> {
                need!(Root, Busybox, $family);
                super::prints_and_exits(Family::$family)
            }

            #[test]
            fn creates_starts_and_deletes() -> Result<()> {
                need!(Root, Busybox, $family);
                super::creates_starts_and_deletes(Family::$family)
            }

            #[test]
            fn dropping_ends_a_running_container() -> Result<()> {
                need!(Root, Busybox, $family);
                super::dropping_ends_a_running_container(Family::$family)
            }
        }
    )*};
}

for_each_runtime!(Runc runc, Crun crun, Youki youki);

#[test]
fn what_is_executed_is_the_copy() -> Result<()> {
    need!(Root, Busybox, Crun);
    let _dog = watchdog(LONG);
    let crun = Runtime::crun()?;
    let bundle = Bundle::builder(unique_id("exe")).args(["/bin/sleep", "1000"]).build()?;
    let task = crun.spawn_run(&bundle)?;
    // crun executes itself again from a memfd, but its arguments keep the path that was executed.
    let path = crun.path();
    wait_until("crun runs", LONG, || (task.process().args().first()? == path.to_str()?).then_some(()))?;
    Ok(())
}

#[test]
fn a_panic_cleans_up() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LONG);
    let (send, receive) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || -> Result<()> {
        let runc = Runtime::runc()?;
        let bundle = Bundle::builder(unique_id("panic")).args(["/bin/sleep", "1000"]).build()?;
        let init = runc.create(&bundle)?;
        send.send((init, vec![runc.state_dir(), bundle.path().to_owned()]))?;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    let (init, folders) = receive.recv()?;
    assert!(test.join().is_err());
    assert!(!init.is_alive());
    assert_gone(&folders);
    Ok(())
}

#[test]
fn an_error_names_command_and_stderr() -> Result<()> {
    need!(Root, Busybox, Runc);
    let runc = Runtime::runc()?;
    let bundle = Bundle::builder(unique_id("bad")).args(["/no/such/program"]).build()?;
    let error = format!("{:#}", runc.create(&bundle).unwrap_err());
    assert!(error.contains("create --bundle") && error.contains("/no/such/program"), "{error}");
    Ok(())
}

#[test]
fn bundles_can_share_a_root() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LONG);
    let (runc, rootfs) = (Runtime::runc()?, Rootfs::busybox()?);
    for name in ["one", "two"] {
        let bundle = Bundle::builder(unique_id(name)).rootfs(&rootfs).args(["echo", name]).build()?;
        assert_eq!(runc.run(&bundle)?.ok()?.stdout.trim(), name);
        assert_eq!(bundle.rootfs().path(), rootfs.path());
    }
    Ok(())
}

#[test]
fn the_builder_writes_what_it_is_told() -> Result<()> {
    need!(Busybox);
    let bundle = Bundle::builder("b")
        .args(["a", "b"])
        .env("K", "v")
        .cwd("/tmp")
        .bind("/etc/hostname", "/name")
        .annotation("org.example", "yes")
        .edit(|config| config["hostname"] = "changed".into())
        .build()?;
    let config = bundle.config()?;
    assert_eq!(config["process"]["args"], serde_json::json!(["a", "b"]));
    assert_eq!(config["process"]["env"], serde_json::json!(["PATH=/bin", "K=v"]));
    assert_eq!(config["process"]["cwd"], "/tmp");
    assert_eq!(config["annotations"]["org.example"], "yes");
    assert_eq!(config["hostname"], "changed");
    let last = config["mounts"].as_array().and_then(|m| m.last()).unwrap();
    assert_eq!((&last["destination"], &last["source"]), (&"/name".into(), &"/etc/hostname".into()));
    Ok(())
}

#[test]
fn a_scratch_folder_ends_what_carries_its_name() -> Result<()> {
    need!(Root);
    let scratch = Scratch::new()?;
    let folder = scratch.join("mount");
    std::fs::create_dir(&folder)?;
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&folder).status()?;
    assert!(mount.success());
    let mut sleep = std::process::Command::new("sleep");
    let task = Task::spawn(sleep.arg("1000").current_dir(&folder))?;
    let left =
        wait_until("sleep is seen", LONG, || Some(scratch.leftovers()).filter(|l| !l.processes.is_empty()))?;
    assert_eq!((left.processes, left.mounts), (vec![task.process()], vec![folder]));
    let path = scratch.path().to_owned();
    drop(scratch);
    assert_gone(&[path]);
    assert!(!task.process().is_alive());
    assert!(Process::me().is_alive());
    Ok(())
}

#[test]
fn a_task_that_takes_too_long_is_killed() {
    let mut sleep = std::process::Command::new("sh");
    let task = Task::spawn(sleep.args(["-c", "echo first; exec sleep 1000"])).unwrap();
    let process = task.process();
    wait_until("sh has printed", LONG, || (task.printed().0 == "first\n").then_some(())).unwrap();
    let error = task.wait(Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.contains("still ran") && error.contains("first"), "{error}");
    assert!(!process.is_alive());
}
