//! How containers end, by each way to learn it.

mod support;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, ErrorKind, EventKind, ExitBackend, ExitStatus};
use libc::SIGKILL;
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, end, only, the};
use testkit::{Bundle, Runtime, Task, need, skip, unique_id, wait_until, watchdog};

/// What a container does, and how it has ended then. (To pid 1 the kernel delivers no other deadly signal than this.)
const ENDINGS: [(&str, Option<i32>, Option<i32>); 4] = [
    ("exit 0", Some(0), None),
    ("exit 1", Some(1), None),
    ("exit 255", Some(255), None),
    ("exec sleep 1000", None, Some(SIGKILL)),
];

/// `None` where this host cannot do it.
fn listen(runtime: &Runtime, backend: ExitBackend) -> Result<Option<Listener>> {
    let builder = only([runtime.path()]).exit_backend(backend);
    match Listener::start(builder, |_: &ContainerEvent| ()) {
        Ok(listener) => {
            ensure!(listener.status()?.exit_backend == backend, "{:?}", listener.status()?);
            Ok(Some(listener))
        }
        Err(error) => match error.downcast_ref::<containerhook::Error>() {
            Some(cause) if cause.kind() == ErrorKind::Unsupported => Ok(None),
            _ => Err(error),
        },
    }
}

/// `always`: whether it is always learned how a process ended; else it may be only that it did, but is never wrong.
fn ends_are_told(runtime: &Runtime, listener: Listener, always: bool) -> Result<()> {
    for (script, code, signal) in ENDINGS {
        let bundle = Bundle::builder(unique_id("end")).script(script).build()?;
        let init = runtime.create(&bundle)?;
        runtime.start(bundle.id())?;
        if signal.is_some() {
            listener.wait(bundle.id(), &WHOLE_LIFE[..3])?;
            init.kill(SIGKILL)?;
        }
        let records = listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
        let exit = the(EventKind::Stopped, &records)?.event.exit().context("no exit")?;
        let unknown = !always && *exit == ExitStatus::UNKNOWN;
        ensure!(unknown || (exit.code, exit.signal) == (code, signal), "{script}: {exit:?}");
        // The kernel tells of an end before it has torn the process down, which the runtime asks for.
        wait_until("the runtime sees it", PATIENCE, || {
            runtime.state(bundle.id()).ok().filter(|state| state.status == "stopped")
        })?;
        runtime.delete(bundle.id(), false)?;
        listener.wait(bundle.id(), &WHOLE_LIFE)?;
    }
    // A creation that fails has ended, whether or not its exit code can be known.
    let bundle = Bundle::builder(unique_id("fails")).args(["/no/such/program"]).build()?;
    ensure!(runtime.create(&bundle).is_err());
    listener.wait(bundle.id(), &[EventKind::PreCreate, EventKind::Deleted])?;
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

#[test]
fn by_bpf() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let Some(listener) = listen(&runtime, ExitBackend::Bpf)? else {
        skip!("this kernel refuses the BPF program")
    };
    ends_are_told(&runtime, listener, true)
}

#[test]
fn by_pidfd_with_codes() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let Some(listener) = listen(&runtime, ExitBackend::PidfdInfo)? else {
        skip!("PIDFD_GET_INFO is of Linux 6.15")
    };
    ends_are_told(&runtime, listener, true)
}

#[test]
fn by_pidfd_alone() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = listen(&runtime, ExitBackend::Pidfd)?.context("pidfds are of Linux 5.3")?;
    ends_are_told(&runtime, listener, false)
}

/// Containers that others have found.
#[test]
fn of_a_watched_process() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for backend in [ExitBackend::Bpf, ExitBackend::PidfdInfo, ExitBackend::Pidfd] {
        let Some(listener) = listen(&runtime, backend)? else { continue };
        let task = Task::spawn(Command::new("sleep").arg("1000"))?;
        let pid = task.process().0.cast_unsigned();
        listener.notifier().watch_termination("found", pid)?;
        ensure!(listener.status()?.containers == 1);
        ensure!(listener.records().is_empty());
        task.process().kill(SIGKILL)?;
        ensure!(!task.wait(PATIENCE)?.status.success());
        let records = listener.wait("found", &[EventKind::Stopped])?;
        let event = &records[0].event;
        ensure!(event.pid() == Some(pid) && !event.held(), "{}", records[0].to_json());
        let exit = *event.exit().context("no exit")?;
        let unknown = backend == ExitBackend::Pidfd && exit == ExitStatus::UNKNOWN;
        ensure!(unknown || end(exit) == (None, Some(SIGKILL)), "{backend:?}: {exit:?}");

        // It has ended, and was awaited: there is nothing to watch.
        for pid in [pid, 0, u32::MAX] {
            let error = listener.notifier().watch_termination("gone", pid).unwrap_err();
            ensure!(
                error.kind() == ErrorKind::InvalidInput && error.to_string().contains("process"),
                "{error}"
            );
        }
        ensure!(listener.status()?.containers == 0);
        listener.close()?;
    }
    Ok(())
}
