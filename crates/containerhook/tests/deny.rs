//! What is denied does not come to be, its caller is told, and nothing is left behind.

mod support;

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ContainerEvent, Decision, DenyError, EventKind, Record, Verdict};
use support::{LIMIT, Listener, PATIENCE, only, the};
use testkit::{Bundle, Family, Leftovers, Output, Runtime, Task, need, unique_id, wait_until, watchdog};

const REASON: &str = "not on this host";

/// Denies events of one kind.
fn denier(runtime: &Runtime, kind: EventKind, error: DenyError) -> Result<Listener> {
    let handler = move |event: &ContainerEvent| {
        if event.kind() == kind { Decision::deny_with(REASON, error) } else { Decision::allow() }
    };
    Listener::start(only([runtime.path()]), handler)
}

fn bundle() -> Result<Bundle> {
    Bundle::builder(unique_id("denied")).script("echo it ran; exec sleep 1000").build()
}

/// Runs the runtime: its output, or with what its exec failed.
fn execute<'a>(runtime: &Runtime, args: impl IntoIterator<Item = &'a str>) -> Result<Result<Output, i32>> {
    match Task::spawn(&mut runtime.command(args)) {
        Ok(task) => Ok(Ok(task.wait(PATIENCE)?)),
        Err(error) => match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(errno) => Ok(Err(errno)),
            None => Err(error),
        },
    }
}

/// As people do it who create and start: what the start came to.
fn create_and_start(runtime: &Runtime, bundle: &Bundle) -> Result<Result<Output, i32>> {
    runtime.create(bundle)?;
    execute(runtime, ["start", bundle.id()])
}

fn run(runtime: &Runtime, bundle: &Bundle) -> Result<Result<Output, i32>> {
    execute(runtime, ["run", "--bundle", bundle.path().to_str().context("a name")?, bundle.id()])
}

/// Checks the record of the denial, and gives all of the container's.
fn denied(listener: &Listener, id: &str, kinds: &[EventKind]) -> Result<Vec<Record>> {
    let records = listener.wait(id, kinds)?;
    let denials: Vec<&Record> = records
        .iter()
        .filter(|record| record.answer.as_ref().is_some_and(|answer| answer.decision == Verdict::Deny))
        .collect();
    let [denial] = denials[..] else { bail!("there are {} denials", denials.len()) };
    let answer = denial.answer.as_ref().context("held")?;
    ensure!(answer.reason.as_deref() == Some(REASON) && !answer.timed_out, "{}", denial.to_json());
    ensure!(denial.to_json().contains(REASON));
    Ok(records)
}

/// No state, process, mount or cgroup is left of the container.
fn nothing_is_left(runtime: &Runtime, bundle: &Bundle, listener: &Listener) -> Result<()> {
    listener.wait_idle()?;
    ensure!(runtime.containers().is_empty(), "{:?}", runtime.containers());
    let left = wait_until("nothing is left", Duration::from_secs(10), || {
        Leftovers::of(bundle.path()).is_empty().then_some(())
    });
    left.with_context(|| Leftovers::of(bundle.path()).to_string())
}

fn at_pre_create(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = denier(&runtime, EventKind::PreCreate, DenyError::default())?;
    let created = bundle()?;
    let error = runtime.create(&created).err().context("it was created")?;
    ensure!(format!("{error:#}").contains("Operation not permitted"), "{error:#}");
    denied(&listener, created.id(), &[EventKind::PreCreate])?;
    nothing_is_left(&runtime, &created, &listener)?;

    let ran = bundle()?;
    ensure!(run(&runtime, &ran)?.err() == Some(libc::EPERM));
    denied(&listener, ran.id(), &[EventKind::PreCreate])?;
    nothing_is_left(&runtime, &ran, &listener)?;
    listener.close()?;
    Ok(())
}

fn at_created(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = denier(&runtime, EventKind::Created, DenyError::default())?;
    let bundle = bundle()?;
    let init = runtime.create(&bundle)?;
    ensure!(execute(&runtime, ["start", bundle.id()])?.err() == Some(libc::EPERM));
    // It was ended before the start failed.
    ensure!(!init.is_alive(), "the init lives: {:?}", init.state());
    ensure!(bundle.stdout().is_empty(), "it ran");
    runtime.delete(bundle.id(), false)?;
    let told = [EventKind::PreCreate, EventKind::Created, EventKind::Stopped, EventKind::Deleted];
    let records = denied(&listener, bundle.id(), &told)?;
    let exit = the(EventKind::Stopped, &records)?.event.exit().context("no exit")?;
    ensure!(exit.signal == Some(libc::SIGKILL), "{exit}");
    nothing_is_left(&runtime, &bundle, &listener)?;
    listener.close()?;
    Ok(())
}

/// `run` has created its container when it executes the entrypoint: that is what fails.
fn at_created_of_a_run(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = denier(&runtime, EventKind::Created, DenyError::default())?;
    let bundle = bundle()?;
    let output = run(&runtime, &bundle)?.map_err(io::Error::from_raw_os_error)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    let said = output.stderr.to_lowercase();
    ensure!(said.contains("operation not permitted"), "{output:?}");
    let told = [EventKind::PreCreate, EventKind::Created, EventKind::Stopped, EventKind::Deleted];
    denied(&listener, bundle.id(), &told)?;
    nothing_is_left(&runtime, &bundle, &listener)?;
    listener.close()?;
    Ok(())
}

fn at_started(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = denier(&runtime, EventKind::Started, DenyError::default())?;
    let whole = [
        EventKind::PreCreate,
        EventKind::Created,
        EventKind::Started,
        EventKind::Stopped,
        EventKind::Deleted,
    ];
    let created = bundle()?;
    // The start may have succeeded already: what fails is in the container.
    let _ = create_and_start(&runtime, &created)?;
    listener.wait(created.id(), &whole[..4])?;
    ensure!(!created.stdout().contains("it ran"), "{}", created.stdout());
    runtime.delete(created.id(), true)?;
    denied(&listener, created.id(), &whole)?;
    nothing_is_left(&runtime, &created, &listener)?;

    let ran = bundle()?;
    let output = run(&runtime, &ran)?.map_err(io::Error::from_raw_os_error)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    ensure!(output.stderr.to_lowercase().contains("operation not permitted"), "{output:?}");
    denied(&listener, ran.id(), &whole)?;
    nothing_is_left(&runtime, &ran, &listener)?;
    listener.close()?;
    Ok(())
}

fn at_exec(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = denier(&runtime, EventKind::Exec, DenyError::default())?;
    let bundle = bundle()?;
    let init = runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    wait_until("it runs", PATIENCE, || bundle.stdout().contains("it ran").then_some(()))?;
    ensure!(execute(&runtime, ["exec", bundle.id(), "/bin/true"])?.err() == Some(libc::EPERM));
    ensure!(init.is_alive(), "the container goes on");
    let mut told = vec![EventKind::PreCreate, EventKind::Created, EventKind::Started, EventKind::Exec];
    let records = denied(&listener, bundle.id(), &told)?;
    let exec = the(EventKind::Exec, &records)?.event.exec().context("what is executed")?;
    ensure!(exec.args == ["/bin/true"], "{exec:?}");
    runtime.delete(bundle.id(), true)?;
    // Nothing that was denied ends.
    told.extend([EventKind::Stopped, EventKind::Deleted]);
    denied(&listener, bundle.id(), &told)?;
    nothing_is_left(&runtime, &bundle, &listener)?;
    listener.close()?;
    Ok(())
}

/// The errors that a denial may fail with, as the caller of execve gets them.
#[test]
fn the_error_is_that_of_the_denial() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let table = [
        (DenyError::NotPermitted, libc::EPERM),
        (DenyError::TryAgain, libc::EAGAIN),
        (DenyError::Busy, libc::EBUSY),
        (DenyError::NoSpace, libc::ENOSPC),
        (DenyError::QuotaExceeded, libc::EDQUOT),
        (DenyError::InputOutput, libc::EIO),
    ];
    for (error, errno) in table {
        let listener = denier(&runtime, EventKind::PreCreate, error)?;
        let bundle = bundle()?;
        let failed = run(&runtime, &bundle)?.err();
        // An older kernel knows one error.
        let expected = if kernel()? < (6, 13) { libc::EPERM } else { errno };
        ensure!(failed == Some(expected), "{error:?}: {failed:?}");
        listener.close()?;
    }
    Ok(())
}

/// A start that waits is denied with the error too.
#[test]
fn the_error_of_created_is_that_of_the_start() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = denier(&runtime, EventKind::Created, DenyError::QuotaExceeded)?;
    let bundle = bundle()?;
    let expected = if kernel()? < (6, 13) { libc::EPERM } else { libc::EDQUOT };
    let start = create_and_start(&runtime, &bundle)?;
    ensure!(start.as_ref().err() == Some(&expected), "{start:?}");
    runtime.delete(bundle.id(), true)?;
    nothing_is_left(&runtime, &bundle, &listener)?;
    listener.close()?;
    Ok(())
}

fn kernel() -> Result<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    Ok((numbers.next().context("major")?, numbers.next().context("minor")?))
}

macro_rules! with_each_runtime {
    ($($test:ident)*) => {
        mod runc {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                testkit::need!(Root, Busybox, Runc);
                super::$test(testkit::Family::Runc)
            })*
        }
        mod crun {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                testkit::need!(Root, Busybox, Crun);
                super::$test(testkit::Family::Crun)
            })*
        }
    };
}

with_each_runtime!(at_pre_create at_created at_created_of_a_run at_started at_exec);
