//! runc and crun, executed as a person would: every container is told with the runtime's own words.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{Container, EventKind, ExitStatus};
use libc::SIGKILL;
use support::{Expected, LIMIT, Listener, PATIENCE, WHOLE_LIFE, end, the};
use testkit::{Bundle, Family, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

fn created_started_and_deleted(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("life"))
        .script("read line < /wait; exit 7")
        .annotation("k", "v")
        .build()?;
    let fifo = bundle.rootfs().join("wait");
    ensure!(std::process::Command::new("mkfifo").arg(&fifo).status()?.success());
    let id = bundle.id();

    let init = runtime.create(&bundle)?;
    let created = listener.wait(id, &[EventKind::PreCreate, EventKind::Created])?;
    let state = runtime.state(id)?;
    ensure!(state.init == init && state.status == "created");
    ensure!(created[0].event.caller_pid().is_some() && created[0].event.deadline().is_some());

    runtime.start(id)?;
    listener.wait(id, &WHOLE_LIFE[..3])?;
    ensure!(runtime.state(id)?.status == "running");
    std::fs::write(&fifo, "go\n")?;
    listener.wait(id, &WHOLE_LIFE[..4])?;
    // The kernel tells of an end before it has torn the process down, which the runtime asks for.
    wait_until("the runtime sees it", PATIENCE, || {
        runtime.state(id).ok().filter(|state| state.status == "stopped")
    })?;
    runtime.delete(id, false)?;
    let records = listener.wait(id, &WHOLE_LIFE)?;
    Expected {
        pid: Some(init),
        name: None,
        bundle: bundle.path(),
        config: Some(&bundle.config()?),
        runtime: &runtime.path(),
        engine: None,
        exit: Some(ExitStatus::exited(7)),
    }
    .check(&records)?;
    ensure!(records[..3].iter().all(|record| record.event.held() && record.answer.is_some()));
    let exec = the(EventKind::Started, &records)?.event.exec().context("no words")?;
    ensure!(exec.args == ["/bin/sh", "-c", "read line < /wait; exit 7"], "{exec:?}");
    for record in &records {
        let container: &Container = &record.event;
        ensure!(container.runtime().context("no runtime")?.name == family.name());
        ensure!(!container.rootless() && container.owner_uid() == 0 && !record.event.existing());
        ensure!(container.state_root() == Some(runtime.state_dir().as_path()));
    }
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0);
    listener.close()?;
    Ok(())
}

fn ran(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("run")).script("echo $$; exit 7").build()?;
    let output = runtime.run(&bundle)?;
    ensure!((output.stdout.trim(), output.code()) == ("1", Some(7)), "{output:?}");
    let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
    ensure!(records[..3].iter().all(|record| record.event.held()));
    let pid = the(EventKind::Created, &records)?.event.pid().context("no pid")?;
    Expected {
        pid: Some(Process(pid.cast_signed())),
        name: None,
        bundle: bundle.path(),
        config: Some(&bundle.config()?),
        runtime: &runtime.path(),
        engine: None,
        exit: Some(ExitStatus::exited(7)),
    }
    .check(&records)?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// While `run` waits for its container, everything about it can be compared with the runtime's state.
fn ran_with_the_pid_of_its_state(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("run")).args(["/bin/sleep", "1000"]).build()?;
    let task = runtime.spawn_run(&bundle)?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE[..3])?;
    let init = wait_until("the runtime says that it runs", PATIENCE, || {
        runtime.state(bundle.id()).ok().filter(|state| state.status == "running").map(|state| state.init)
    })?;
    ensure!(the(EventKind::Started, &records)?.event.pid() == Some(init.0.cast_unsigned()));
    init.kill(SIGKILL)?;
    task.wait(PATIENCE)?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
    ensure!(
        the(EventKind::Stopped, &records)?.event.exit().map(|exit| end(*exit)) == Some((None, Some(SIGKILL)))
    );
    listener.close()?;
    Ok(())
}

fn of_one_id_at_once_again(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("again")).script("exit 3").build()?;
    let mut pids = Vec::new();
    for _ in 0..10 {
        pids.push(runtime.create(&bundle)?);
        runtime.start(bundle.id())?;
        // Until it has ended, deleting it fails.
        wait_until("it can be deleted", PATIENCE, || {
            runtime.state(bundle.id()).ok().filter(|state| state.status == "stopped")
        })?;
        runtime.delete(bundle.id(), false)?;
    }
    let records = listener.wait(bundle.id(), &WHOLE_LIFE.repeat(10))?;
    for (life, init) in records.chunks(5).zip(pids) {
        Expected {
            pid: Some(init),
            name: None,
            bundle: bundle.path(),
            config: None,
            runtime: &runtime.path(),
            engine: None,
            exit: Some(ExitStatus::exited(3)),
        }
        .check(life)?;
    }
    listener.close()?;
    Ok(())
}

/// Two containers of one bundle, at the same time.
fn of_one_bundle(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("one")).args(["/bin/sleep", "1000"]).build()?;
    let ids = [unique_id("first"), unique_id("second")];
    let mut inits = Vec::new();
    for id in &ids {
        let pid_file = bundle.path().join(id);
        let mut create = runtime.command(["create", "--bundle"]);
        create.arg(bundle.path()).arg("--pid-file").arg(&pid_file).arg(id);
        quiet(&mut create)?;
        inits.push(Process(std::fs::read_to_string(&pid_file)?.trim().parse()?));
        runtime.start(id)?;
    }
    for (id, init) in ids.iter().zip(inits) {
        // They share a cgroup, and with the first one crun ends everything in it.
        let _ = init.kill(SIGKILL);
        wait_until("init ends", PATIENCE, || (!init.is_alive()).then_some(()))?;
        runtime.delete(id, true)?;
        let records = listener.wait_for("its deletion", |records| {
            let records: Vec<_> = records.iter().filter(|r| r.event.id() == id).cloned().collect();
            (records.last()?.event.kind() == EventKind::Deleted).then_some(records)
        })?;
        let kinds: Vec<_> =
            records.iter().map(|r| r.event.kind()).filter(|k| *k != EventKind::Killed).collect();
        ensure!(kinds == WHOLE_LIFE, "{kinds:?}");
        Expected {
            pid: Some(init),
            name: None,
            bundle: bundle.path(),
            config: None,
            runtime: &runtime.path(),
            engine: None,
            exit: Some(ExitStatus::signaled(SIGKILL)),
        }
        .check(&records)?;
    }
    listener.close()?;
    Ok(())
}

/// Runs a command whose container goes on with its output: that must be no pipe.
fn quiet(command: &mut std::process::Command) -> Result<()> {
    Task::spawn(command)?.wait(Duration::from_secs(60))?.ok()?;
    Ok(())
}

/// Everything else that a runtime is executed for.
fn executed_in_killed_paused_and_resumed(family: Family) -> Result<()> {
    use EventKind::{
        Created, Deleted, Exec, ExecStopped, Killed, Paused, PreCreate, Resumed, Started, Stopped,
    };
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("verbs")).args(["/bin/sleep", "1000"]).build()?;
    let id = bundle.id();
    let init = runtime.create(&bundle)?;
    runtime.start(id)?;
    let mut kinds = vec![PreCreate, Created, Started];
    listener.wait(id, &kinds)?;

    let output = runtime.exec(id, &["/bin/sh", "-c", "exit 5"])?;
    ensure!(output.code() == Some(5), "{output:?}");
    kinds.extend([Exec, ExecStopped]);
    let records = listener.wait(id, &kinds)?;
    let exec = the(Exec, &records)?;
    ensure!(exec.event.held() && exec.answer.is_some());
    ensure!(exec.event.exec().context("no words")?.args == ["/bin/sh", "-c", "exit 5"]);
    ensure!(the(ExecStopped, &records)?.event.exit() == Some(&ExitStatus::exited(5)));

    for (verb, kind) in [("pause", Paused), ("resume", Resumed)] {
        Task::spawn(&mut runtime.command([verb, id]))?.wait(PATIENCE)?.ok()?;
        kinds.push(kind);
        listener.wait(id, &kinds)?;
    }
    // What fails is not told.
    ensure!(runtime.kill("no-such-container", "KILL").is_err());
    // A signal that sleep, as pid 1 without a handler for it, never sees.
    runtime.kill(id, "USR1")?;
    kinds.push(Killed);
    listener.wait(id, &kinds)?;
    runtime.delete(id, true)?;
    kinds.extend([Stopped, Deleted]);
    let records = listener.wait(id, &kinds)?;
    Expected {
        pid: Some(init),
        name: None,
        bundle: bundle.path(),
        config: None,
        runtime: &runtime.path(),
        engine: None,
        exit: None,
    }
    .check(&records.iter().filter(|r| r.event.kind() != ExecStopped).cloned().collect::<Vec<_>>())?;
    ensure!(the(Stopped, &records)?.event.exit().map(|exit| end(*exit)) == Some((None, Some(SIGKILL))));
    ensure!(listener.of("no-such-container").is_empty());
    listener.close()?;
    Ok(())
}

macro_rules! for_each_runtime {
    ($($family:ident $module:ident),*; $tests:tt) => {$(
        mod $module {
            for_each_runtime!(@ $family $tests);
        }
    )*};
    (@ $family:ident [$($test:ident),*]) => {$(
        #[test]
        fn $test() -> super::Result<()> {
            testkit::need!(Root, Busybox, $family);
            super::$test(super::Family::$family)
        }
    )*};
}

for_each_runtime!(Runc runc, Crun crun; [
    created_started_and_deleted,
    ran,
    ran_with_the_pid_of_its_state,
    of_one_id_at_once_again,
    of_one_bundle,
    executed_in_killed_paused_and_resumed
]);

#[test]
fn two_runtimes_and_one_id() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    let (runc, crun) = (Runtime::runc()?, Runtime::crun()?);
    let listener = Listener::to([runc.path(), crun.path()])?;
    let id = unique_id("both");
    let mut expected = Vec::new();
    for runtime in [&runc, &crun] {
        let bundle = Bundle::builder(&id).args(["/bin/sleep", "1000"]).build()?;
        expected.push((runtime, runtime.create(&bundle)?, bundle));
    }
    for runtime in [&runc, &crun] {
        runtime.start(&id)?;
    }
    for (runtime, init, bundle) in expected {
        runtime.delete(&id, true)?;
        let records = listener.wait_for("its deletion", |records| {
            let of_it =
                |r: &&containerhook::Record| r.event.runtime().is_some_and(|it| it.path == runtime.path());
            let records: Vec<_> = records.iter().filter(of_it).cloned().collect();
            (records.last()?.event.kind() == EventKind::Deleted).then_some(records)
        })?;
        Expected {
            pid: Some(init),
            name: None,
            bundle: bundle.path(),
            config: None,
            runtime: &runtime.path(),
            engine: None,
            exit: Some(ExitStatus::signaled(SIGKILL)),
        }
        .check(&records)?;
    }
    listener.close()?;
    Ok(())
}
