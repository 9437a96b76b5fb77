//! Ends told in full: whether memory was the reason, whether a core was dumped, when, and what was used.

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, ErrorKind, EventKind, ExitBackend, ExitStatus, Record};
use libc::{SIGABRT, SIGKILL};
use serde_json::{Value, json};
use support::{LIMIT, Listener, WHOLE_LIFE, end, only, the};
use testkit::{Bundle, BundleBuilder, Runtime, need, unique_id, watchdog};

fn listen(runtime: &Runtime, backend: ExitBackend) -> Result<Option<Listener>> {
    let builder = only([runtime.path()]).exit_backend(backend);
    match Listener::start(builder, |_: &ContainerEvent| ()) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => match error.downcast_ref::<containerhook::Error>() {
            Some(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            _ => Err(error),
        },
    }
}

fn small(name: &str) -> BundleBuilder {
    Bundle::builder(unique_id(name)).edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 24 << 20});
    })
}

/// A whole life; `meanwhile` is done when it has started. The cgroup is there until the deletion.
fn live(
    runtime: &Runtime,
    listener: &Listener,
    bundle: &Bundle,
    meanwhile: impl FnOnce(u32) -> Result<()>,
) -> Result<Record> {
    runtime.create(bundle)?;
    runtime.start(bundle.id())?;
    let records = listener
        .wait(bundle.id(), &WHOLE_LIFE[..3])
        .or_else(|_| listener.wait(bundle.id(), &WHOLE_LIFE[..4]))?;
    meanwhile(the(EventKind::Created, &records)?.event.pid().context("no pid")?)?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
    runtime.delete(bundle.id(), false)?;
    listener.wait(bundle.id(), &WHOLE_LIFE)?;
    Ok(the(EventKind::Stopped, &records)?.clone())
}

fn kill(pid: u32) -> Result<()> {
    testkit::Process(pid.cast_signed()).kill(SIGKILL)?;
    Ok(())
}

fn exit(record: &Record) -> Result<ExitStatus> {
    record.event.exit().copied().with_context(|| record.to_json())
}

/// By each way of learning of ends; without BPF the cgroup's own counter says it.
fn memory_or_hand(backend: ExitBackend) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let Some(listener) = listen(&runtime, backend)? else {
        eprintln!("{backend:?} is not to be had from this kernel");
        return Ok(());
    };
    // What is read from /dev/zero has no line's end: all of it is kept.
    let greedy = small("greedy").args(["/bin/tail", "/dev/zero"]).build()?;
    let greedy = live(&runtime, &listener, &greedy, |_| Ok(()))?;
    let by_hand = small("by-hand").args(["/bin/sleep", "1000"]).build()?;
    let by_hand = live(&runtime, &listener, &by_hand, kill)?;
    let exited = small("exited").script("exit 137").build()?;
    let exited = live(&runtime, &listener, &exited, |_| Ok(()))?;
    for (record, signal, killed) in [(&greedy, SIGKILL, true), (&by_hand, SIGKILL, false)] {
        let exit = exit(record)?;
        if backend == ExitBackend::Pidfd && exit.signal.is_none() {
            // Its parent reaped it sooner than it could be looked at.
            ensure!(exit == ExitStatus::UNKNOWN, "{}", record.to_json());
            continue;
        }
        ensure!(end(exit) == (None, Some(signal)), "{}", record.to_json());
        ensure!(exit.oom_killed == Some(killed), "{}", record.to_json());
        ensure!(exit.core_dumped == Some(false), "{}", record.to_json());
    }
    let exit = exit(&exited)?;
    ensure!(exit.oom_killed.is_none() && exit.core_dumped.is_none(), "{}", exited.to_json());
    listener.close()?;
    Ok(())
}

#[test]
fn memory_or_hand_by_bpf() -> Result<()> {
    need!(Root, Busybox, Runc);
    memory_or_hand(ExitBackend::Bpf)
}

#[test]
fn memory_or_hand_by_pidfd_with_codes() -> Result<()> {
    need!(Root, Busybox, Runc);
    memory_or_hand(ExitBackend::PidfdInfo)
}

#[test]
fn memory_or_hand_by_pidfd_alone() -> Result<()> {
    need!(Root, Busybox, Runc);
    memory_or_hand(ExitBackend::Pidfd)
}

/// The counter of the cgroup counts the child; the kernel's word on the init is another.
#[test]
fn a_child_that_memory_killed_is_not_the_init() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let Some(listener) = listen(&runtime, ExitBackend::Bpf)? else { return Ok(()) };
    let bundle = small("child").script("tail /dev/zero; echo $? > /said; exec sleep 1000").build()?;
    let said = bundle.rootfs().join("said");
    let record = live(&runtime, &listener, &bundle, |pid| {
        testkit::wait_until("the child is killed", support::PATIENCE, || {
            std::fs::read_to_string(&said).ok().filter(|said| said.trim() == "137")
        })?;
        kill(pid)
    })?;
    let exit = exit(&record)?;
    ensure!((exit.signal, exit.oom_killed) == (Some(SIGKILL), Some(false)), "{}", record.to_json());
    listener.close()?;
    Ok(())
}

#[test]
fn a_core_that_was_dumped_is_told() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    for backend in [ExitBackend::Bpf, ExitBackend::PidfdInfo] {
        let Some(listener) = listen(&runtime, backend)? else { continue };
        for limit in ["0", "unlimited"] {
            let folder = testkit::Scratch::new()?;
            let script = format!("read go; ulimit -S -c {limit}; kill -ABRT $$");
            let mut child = Command::new("/bin/sh")
                .args(["-c", &script])
                .current_dir(folder.path())
                .stdin(Stdio::piped())
                .spawn()?;
            let id = unique_id("core");
            listener.notifier().watch_termination(&id, child.id())?;
            child.stdin.take().context("no stdin")?.write_all(b"go\n")?;
            let status = child.wait()?;
            ensure!(status.signal() == Some(SIGABRT), "{status}");
            let records = listener.wait(&id, &[EventKind::Stopped])?;
            let exit = exit(&records[0])?;
            ensure!(exit.signal == Some(SIGABRT) && exit.oom_killed.is_none(), "{}", records[0].to_json());
            ensure!(exit.core_dumped == Some(status.core_dumped()), "{status}: {}", records[0].to_json());
        }
        listener.close()?;
    }
    Ok(())
}

/// Version 2 has `memory.peak` from Linux 5.19 on.
fn peaks_are_kept() -> Result<bool> {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.controllers").exists() {
        return Ok(true);
    }
    let group = root.join(unique_id("peak"));
    fs::create_dir(&group)?;
    let kept = group.join("memory.peak").exists();
    fs::remove_dir(&group)?;
    Ok(kept)
}

#[test]
fn times_and_what_was_used() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listener = Listener::to([runtime.path()])?;
    let before = SystemTime::now();
    // It works, and holds 8 MiB at a time.
    let script =
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=8M count=1";
    let bundle = small("uses").script(script).build()?;
    let record = live(&runtime, &listener, &bundle, |_| Ok(()))?;
    let event = &record.event;
    let (started, finished) =
        (event.started_at().context("started")?, event.finished_at().context("finished")?);
    ensure!(before < started && started < finished && finished <= SystemTime::now(), "{}", record.to_json());
    ensure!(finished == event.time(), "{}", record.to_json());
    let used = event.resources().with_context(|| record.to_json())?;
    let ran = finished.duration_since(started)?;
    let cpu = Duration::from_micros(used.cpu_usec.context("cpu")?);
    // What the runtime's own init used is counted too.
    ensure!(cpu > Duration::from_millis(1) && cpu < ran * 4 + Duration::from_secs(1), "{cpu:?} of {ran:?}");
    let peak = used.memory_peak;
    if peaks_are_kept()? {
        ensure!((8 << 20..=24 << 20).contains(&peak.context("memory")?), "{peak:?}");
    } else {
        ensure!(peak.is_none(), "{peak:?}");
    }
    let json: Value = serde_json::from_str(&record.to_json())?;
    ensure!(json["resources"]["memory_peak"] == json!(peak), "{json}");
    ensure!(json["finished_at"] == json["time"] && json["started_at"].is_string(), "{json}");
    let records = listener.close()?;
    ensure!(records.iter().filter(|record| record.event.finished_at().is_some()).count() == 1);
    Ok(())
}
