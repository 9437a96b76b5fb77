//! Runtimes that come and change while the listener runs: the container right after the change is told.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow, ensure};
use containerhook::{ContainerEvent, ContainerNotifier};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE};
use testkit::{Bundle, Rootfs, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

fn done(command: &mut Command) -> Result<()> {
    Task::spawn(command)?.wait(PATIENCE)?.ok()?;
    Ok(())
}

/// As a package manager does it: a new file beside the old one, then renamed over it.
fn replace(from: &Path, path: &Path) -> Result<()> {
    let new = path.with_extension("dpkg-new");
    done(Command::new("cp").arg(from).arg(&new))?;
    std::fs::rename(&new, path)?;
    Ok(())
}

/// `PROGRAM run` of a container that ends at once.
fn run(runtime: &Runtime, program: &Path, bundle: &Bundle, id: &str) -> Result<()> {
    let mut command = runtime.bare(program);
    command.arg("--root").arg(runtime.state_dir()).args(["run", "--bundle"]).arg(bundle.path()).arg(id);
    done(&mut command)
}

fn told_and_held(listener: &Listener, id: &str) -> Result<()> {
    let records = listener.wait(id, &WHOLE_LIFE)?;
    ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
    Ok(())
}

fn is_marked(listener: &Listener, runtime: &Path) -> Result<()> {
    let marked = wait_until("it is marked", PATIENCE, || {
        let status = listener.status().ok()?;
        status.runtimes.iter().any(|marked| marked.path == runtime).then_some(())
    });
    marked.map_err(|error| anyhow!("{error:#}: {}: {:?}", runtime.display(), listener.status()))
}

#[test]
fn five_times_while_100_containers_run() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (runtime, scratch) = (Runtime::runc()?, Scratch::new()?);
    let program = scratch.join("runc");
    done(Command::new("cp").arg(runtime.path()).arg(&program))?;
    let listener = Listener::to([program.clone()])?;
    let bundle = Bundle::builder(unique_id("upgrade")).build()?;
    let ids: Vec<String> = (0..100).map(|_| unique_id("upgrade")).collect();
    let ran = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let upgrades = scope.spawn(|| -> Result<()> {
            for upgrade in 0..5 {
                while ran.load(Ordering::Relaxed) < 10 + upgrade * 20 {
                    std::thread::yield_now();
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                replace(&runtime.path(), &program)?;
            }
            Ok(())
        });
        let mut result = Ok(());
        for id in &ids {
            result = result.and_then(|()| run(&runtime, &program, &bundle, id));
            ran.fetch_add(1, Ordering::Relaxed);
        }
        result.and(upgrades.join().expect("it does not panic"))
    })?;
    for id in &ids {
        told_and_held(&listener, id)?;
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn installed_after_the_listener() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (runtime, scratch) = (Runtime::runc()?, Scratch::new()?);
    // Neither it nor its folder is there when the listener starts.
    let program = scratch.join("opt/new/bin/runc");
    let listener = Listener::to([runtime.path(), program.clone()])?;
    std::fs::create_dir_all(scratch.join("opt/new/bin"))?;
    replace(&runtime.path(), &program)?;
    is_marked(&listener, &program)?;
    let bundle = Bundle::builder(unique_id("installed")).build()?;
    run(&runtime, &program, &bundle, bundle.id())?;
    told_and_held(&listener, bundle.id())?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

#[test]
fn by_a_link_that_flips() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (runtime, scratch) = (Runtime::runc()?, Scratch::new()?);
    let link = scratch.join("current");
    for version in ["v1", "v2", "v3"] {
        std::fs::create_dir(scratch.join(version))?;
        done(Command::new("cp").arg(runtime.path()).arg(scratch.join(version).join("runc")))?;
    }
    symlink("v1", &link)?;
    let listener = Listener::to([link.join("runc")])?;
    let rootfs = Rootfs::busybox()?;
    for version in ["v1", "v2", "v3"] {
        if version != "v1" {
            symlink(version, scratch.join("flip"))?;
            std::fs::rename(scratch.join("flip"), &link)?;
            is_marked(&listener, &scratch.join(version).join("runc"))?;
        }
        let bundle = Bundle::builder(unique_id("flipped")).rootfs(&rootfs).build()?;
        run(&runtime, &link.join("runc"), &bundle, bundle.id())?;
        told_and_held(&listener, bundle.id())?;
    }
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// A root of its own, so that the host's configuration is nobody's business.
#[test]
fn by_a_configuration_that_gains_it() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let (runtime, root) = (Runtime::runc()?, Scratch::new()?);
    let program = root.join("opt/vendor/oci-thing");
    for (folder, to) in [("usr/bin", "usr/bin/runc"), ("opt/vendor", "opt/vendor/oci-thing")] {
        std::fs::create_dir_all(root.join(folder))?;
        done(Command::new("cp").arg(runtime.path()).arg(root.join(to)))?;
    }
    std::fs::create_dir_all(root.join("etc/docker"))?;
    std::fs::write(root.join("etc/docker/daemon.json"), "{}")?;
    let builder = ContainerNotifier::builder().host_root(root.path()).exec_watch(false);
    let listener = Listener::start(builder, |_: &ContainerEvent| ())?;
    // As the host knows them.
    is_marked(&listener, Path::new("/usr/bin/runc"))?;
    let said = listener.status()?.runtimes;
    ensure!(!said.iter().any(|marked| marked.path.ends_with("oci-thing")), "{said:?}");

    let json = r#"{"runtimes": {"thing": {"path": "/opt/vendor/oci-thing"}}}"#;
    std::fs::write(root.join("etc/docker/daemon.json.new"), json)?;
    std::fs::rename(root.join("etc/docker/daemon.json.new"), root.join("etc/docker/daemon.json"))?;
    is_marked(&listener, Path::new("/opt/vendor/oci-thing"))?;
    let bundle = Bundle::builder(unique_id("configured")).build()?;
    run(&runtime, &program, &bundle, bundle.id())?;
    told_and_held(&listener, bundle.id())?;

    // A broken one is a warning, and takes nothing away.
    std::fs::write(root.join("etc/docker/daemon.json.new"), "{\n  \"runtimes\": {,}\n}")?;
    std::fs::rename(root.join("etc/docker/daemon.json.new"), root.join("etc/docker/daemon.json"))?;
    wait_until("the broken file is a warning with its line", PATIENCE, || {
        let warnings = listener.status().ok()?.warnings;
        warnings.iter().any(|warning| warning.contains("daemon.json:2")).then_some(())
    })?;
    let bundle = Bundle::builder(unique_id("configured")).build()?;
    run(&runtime, &root.join("usr/bin/runc"), &bundle, bundle.id())?;
    told_and_held(&listener, bundle.id())?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
