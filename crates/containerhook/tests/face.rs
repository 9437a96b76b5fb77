//! The library's face, on real containers: events one by one, kinds by choice, closing, errors that help.

mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerhook::{
    Available, ContainerEvent, ContainerNotifier, Decision, Error, ErrorKind, EventKind, MAX_DEADLINE,
    Verdict,
};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, the};
use testkit::{Bundle, Family, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

/// A whole life by `create`, `start` and `delete`.
fn live(runtime: &Runtime, bundle: &Bundle) -> Result<()> {
    runtime.create(bundle)?;
    runtime.start(bundle.id())?;
    wait_until("it ends", PATIENCE, || {
        runtime.state(bundle.id()).ok().filter(|state| state.status == "stopped")
    })?;
    runtime.delete(bundle.id(), false)
}

#[test]
fn events_come_one_by_one() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let (notifier, events) = only([runtime.path()]).start_iter()?;
    let bundle = Bundle::builder(unique_id("iter")).build()?;
    let refused = Bundle::builder(unique_id("refused")).build()?;
    std::thread::scope(|scope| -> Result<()> {
        let lives = scope.spawn(|| -> Result<()> {
            live(&runtime, &bundle)?;
            ensure!(runtime.create(&refused).is_err());
            Ok(())
        });
        for kind in WHOLE_LIFE {
            let turn = events.next_timeout(PATIENCE).with_context(|| format!("no {kind}"))?;
            ensure!((turn.kind(), turn.id()) == (kind, bundle.id()));
            match kind {
                // Dropped, it allows.
                EventKind::Created => drop(turn),
                EventKind::Started => turn.answer(Decision::allow()),
                _ => turn.answer(()),
            }
        }
        let turn = events.next_timeout(PATIENCE).context("no event")?;
        ensure!((turn.kind(), turn.id()) == (EventKind::PreCreate, refused.id()));
        turn.answer(Decision::deny("no"));
        lives.join().expect("it does not panic")
    })?;
    ensure!(events.try_next().is_none());
    notifier.close();
    ensure!(events.count() == 0, "the events end with the notifier");
    Ok(())
}

fn kinds_by_choice(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let choices: [&[EventKind]; 8] = [
        &[EventKind::PreCreate],
        &[EventKind::Created],
        &[EventKind::Started],
        &[EventKind::Stopped],
        &[EventKind::Deleted],
        &[EventKind::Created, EventKind::Stopped],
        &[EventKind::PreCreate, EventKind::Started, EventKind::Deleted],
        &WHOLE_LIFE,
    ];
    for kinds in choices {
        let listener =
            Listener::start(only([runtime.path()]).events(kinds.iter().copied()), |_: &ContainerEvent| ())?;
        let (lived, ran) = (
            Bundle::builder(unique_id("lived")).build()?,
            Bundle::builder(unique_id("ran")).script("exit 3").build()?,
        );
        live(&runtime, &lived)?;
        ensure!(runtime.run(&ran)?.code() == Some(3));
        for bundle in [&lived, &ran] {
            let records = listener.wait(bundle.id(), kinds).with_context(|| format!("{kinds:?}"))?;
            for record in &records {
                let holds = WHOLE_LIFE[..3].contains(&record.event.kind());
                ensure!(record.event.held() == holds, "{kinds:?}: {}", record.to_json());
                ensure!(
                    record.event.pid().is_some() == (record.event.kind() != EventKind::PreCreate),
                    "{kinds:?}: {}",
                    record.to_json()
                );
            }
        }
        listener.wait_idle()?;
        let records = listener.close_anyhow();
        ensure!(records.len() == 2 * kinds.len(), "{kinds:?}: {}", records.len());
    }
    Ok(())
}

#[test]
fn kinds_by_choice_with_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    kinds_by_choice(Family::Runc)
}

#[test]
fn kinds_by_choice_with_crun() -> Result<()> {
    need!(Root, Busybox, Crun);
    kinds_by_choice(Family::Crun)
}

/// What is held goes on when the notifier is closed or dropped, though a handler is still at it.
#[test]
fn closing_lets_go_what_is_held() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for close in [true, false] {
        let (asleep, sleeps) = mpsc::channel();
        let may_wake = Arc::new(AtomicBool::new(false));
        let wakes = Arc::clone(&may_wake);
        let notifier =
            only([runtime.path()]).deadline(Duration::from_secs(100)).start(move |_: &ContainerEvent| {
                let _ = asleep.send(());
                while !wakes.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            })?;
        let bundle = Bundle::builder(unique_id("held")).build()?;
        std::thread::scope(|scope| -> Result<()> {
            let create = scope.spawn(|| runtime.create(&bundle));
            sleeps.recv_timeout(PATIENCE)?;
            ensure!(!create.is_finished() && notifier.status()?.held == 1);
            if close {
                notifier.close();
            } else {
                drop(notifier);
            }
            let init = create.join().expect("it does not panic")?;
            ensure!(init.is_alive() && !may_wake.load(Ordering::SeqCst));
            Ok(())
        })?;
        may_wake.store(true, Ordering::SeqCst);
        ensure!(!testkit::Process::me().marks(&runtime.path()));
    }
    Ok(())
}

/// Each holds, and each is told.
#[test]
fn two_notifiers_of_one_runtime() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let (one, two) = (Listener::to([runtime.path()])?, Listener::to([runtime.path()])?);
    let bundle = Bundle::builder(unique_id("both")).build()?;
    live(&runtime, &bundle)?;
    for listener in [one, two] {
        let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
        ensure!(records[..3].iter().all(|record| record.event.held()), "{}", listener.text());
        listener.close()?;
    }
    Ok(())
}

/// A handler may ask its own notifier, and run containers itself.
#[test]
fn a_handler_runs_a_container() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Arc::new(Runtime::runc()?);
    let inner = Arc::new(Bundle::builder(unique_id("inner")).script("exit 4").build()?);
    let outer = Bundle::builder(unique_id("outer")).build()?;
    let (runs, bundle, id) = (Arc::clone(&runtime), Arc::clone(&inner), outer.id().to_owned());
    let listener = Listener::start(only([runtime.path()]), move |event: &ContainerEvent| {
        if (event.kind(), event.id()) != (EventKind::Created, &*id) {
            return Decision::allow();
        }
        match runs.run(&bundle) {
            Ok(output) if output.code() == Some(4) => Decision::allow(),
            other => Decision::deny(format!("{other:?}")),
        }
    })?;
    live(&runtime, &outer)?;
    let records = listener.wait(outer.id(), &WHOLE_LIFE)?;
    let answer = the(EventKind::Created, &records)?.answer.as_ref().context("no answer")?;
    ensure!(answer.decision == Verdict::Allow && !answer.timed_out, "{answer:?}");
    listener.wait(inner.id(), &WHOLE_LIFE)?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

fn refusal(result: Result<ContainerNotifier, Error>, kind: ErrorKind, words: &[&str]) -> Result<()> {
    let error = result.err().context("it has started")?;
    let text = error.to_string();
    ensure!(error.kind() == kind, "{error:?}");
    ensure!(words.iter().all(|word| text.contains(word)), "{text:?} has not {words:?}");
    Ok(())
}

#[test]
fn errors_name_what_to_do() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let start = |builder: containerhook::Builder| builder.start(|_: &ContainerEvent| ());
    for deadline in [Duration::ZERO, MAX_DEADLINE + Duration::from_millis(1)] {
        let builder = only([runtime.path()]).deadline_for(EventKind::Created, deadline);
        refusal(start(builder), ErrorKind::InvalidInput, &["deadline", "120s"])?;
    }
    refusal(start(only([runtime.path()]).max_handlers(0)), ErrorKind::InvalidInput, &["handler"])?;
    refusal(start(only(["/no/such/runtime"])), ErrorKind::NoRuntime, &["runtime", "--runtime PATH"])?;
    // Nothing is left of those that failed.
    ensure!(!testkit::Process::me().marks(&runtime.path()));
    let support = containerhook::supported();
    ensure!(support.is_supported(), "{support:?}");
    ensure!(
        support.capabilities.iter().filter(|c| c.required).all(|c| c.available == Available::Yes),
        "{support:?}"
    );
    Ok(())
}

/// Not a test: what the one below runs without rights.
#[test]
fn as_nobody() {
    let Some(runtime) = std::env::var_os("CONTAINERHOOK_TEST_AS_NOBODY") else { return };
    let started = only([std::path::PathBuf::from(runtime)]).start(|_: &ContainerEvent| ());
    refusal(started, ErrorKind::Permission, &["CAP_SYS_ADMIN"]).unwrap();
    let support = containerhook::supported();
    assert!(!support.is_supported(), "{support:?}");
    let missing = support.capabilities.iter().find(|c| c.name == "fanotify-permission-events").unwrap();
    assert_eq!(missing.available, Available::No);
    assert!(missing.remedy.as_deref().is_some_and(|remedy| remedy.contains("CAP_SYS_ADMIN")));
}

#[test]
fn without_rights() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    // Where nobody can execute it, and the runtime beside it.
    let scratch = Scratch::new()?;
    for (from, to) in [(std::env::current_exe()?, "test"), ("/bin/busybox".into(), "runc")] {
        ensure!(Command::new("cp").arg(from).arg(scratch.join(to)).status()?.success());
    }
    ensure!(Command::new("chmod").args(["-R", "a+rX"]).arg(scratch.path()).status()?.success());
    let mut command = Command::new(scratch.join("test"));
    command.args(["--exact", "as_nobody", "--test-threads=1"]).uid(65_534).gid(65_534);
    command.env("CONTAINERHOOK_TEST_AS_NOBODY", scratch.join("runc")).current_dir("/");
    let output = Task::spawn(command.stdin(Stdio::null()))?.wait(PATIENCE)?.ok()?;
    ensure!(output.stdout.contains("1 passed"), "{output:?}");
    Ok(())
}

/// Not a test: what the one below runs with other words in its environment.
#[test]
fn as_told_by_the_environment() {
    let Some(expected) = std::env::var_os("CONTAINERHOOK_TEST_MARKS") else { return };
    let notifier = ContainerNotifier::builder().exec_watch(false).start(|_: &ContainerEvent| ()).unwrap();
    let status = notifier.status().unwrap();
    let paths: Vec<_> = status.runtimes.iter().map(|runtime| runtime.path.clone().into_os_string()).collect();
    assert_eq!(paths, [expected], "{status:?}");
}

/// As with the Go package: `HOST_ROOT` before every path, and `RUNTIME_PATH` instead of all.
#[test]
fn the_environment_names_the_host_and_the_runtime() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let host = Scratch::new()?;
    std::fs::create_dir_all(host.join("usr/bin"))?;
    std::fs::create_dir_all(host.join("opt"))?;
    for to in ["usr/bin/runc", "opt/special"] {
        ensure!(Command::new("cp").arg("/bin/busybox").arg(host.join(to)).status()?.success());
    }
    let root = host.path().to_str().context("a path that is text")?;
    let elsewhere = host.join("opt/special");
    let elsewhere = elsewhere.to_str().context("a path that is text")?;
    // Told as the host knows them.
    for (environment, marked) in [
        (vec![("HOST_ROOT", root)], "/usr/bin/runc"),
        (vec![("HOST_ROOT", root), ("RUNTIME_PATH", "/opt/special")], "/opt/special"),
        (vec![("RUNTIME_PATH", elsewhere)], elsewhere),
    ] {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "as_told_by_the_environment", "--test-threads=1"]);
        command.env("CONTAINERHOOK_TEST_MARKS", marked).envs(environment.iter().copied());
        let output = Task::spawn(&mut command)?.wait(PATIENCE)?;
        ensure!(output.code() == Some(0), "{environment:?}: {output:?}");
    }
    Ok(())
}
