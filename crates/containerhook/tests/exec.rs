//! Processes that a runtime executes in a running container: held, told with what is asked for, and with their ends.

mod support;

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use containerhook::{EventKind, ExitBackend, Record};
use libc::SIGKILL;
use serde_json::json;
use support::{LIMIT, Listener, PATIENCE, end};
use testkit::{Bundle, Family, Process, Runtime, Scratch, Task, need, unique_id, wait_until, watchdog};

use EventKind::{Created, Exec, ExecStopped, PreCreate, Started};

/// A container that runs, and waits.
struct Running {
    runtime: Runtime,
    listener: Listener,
    bundle: Bundle,
    scratch: Scratch,
}

impl Running {
    fn new(family: Family) -> Result<Running> {
        let runtime = Runtime::new(family)?;
        let listener = Listener::to([runtime.path()])?;
        let bundle = Bundle::builder(unique_id("exec")).args(["/bin/sleep", "1000"]).build()?;
        ensure!(std::process::Command::new("mkfifo").arg(bundle.rootfs().join("wait")).status()?.success());
        runtime.create(&bundle)?;
        runtime.start(bundle.id())?;
        listener.wait(bundle.id(), &[PreCreate, Created, Started])?;
        Ok(Running { runtime, listener, bundle, scratch: Scratch::new()? })
    }

    /// The records after the first three, once there are as many of these kinds.
    fn wait(&self, kinds: &[EventKind]) -> Result<Vec<Record>> {
        let mut all = vec![PreCreate, Created, Started];
        all.extend(kinds);
        Ok(self.listener.wait(self.bundle.id(), &all)?.split_off(3))
    }

    fn pid_file(&self) -> std::path::PathBuf {
        self.scratch.join("exec.pid")
    }

    /// What engines do: a process file, a pid file, and a runtime that does not wait.
    fn detach(&self, process: &serde_json::Value) -> Result<testkit::Output> {
        let file = self.scratch.join("process.json");
        std::fs::write(&file, process.to_string())?;
        let mut command = self.runtime.command(["exec", "--process"]);
        command.arg(&file).arg("--detach").arg("--pid-file").arg(self.pid_file()).arg(self.bundle.id());
        Task::spawn(&mut command)?.wait(PATIENCE)
    }

    fn pid(&self) -> Result<Process> {
        let path = self.pid_file();
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Process(text.trim().parse()?))
    }

    /// A detached process has ended so. Without BPF that is not known of one that ends before its pid is.
    fn ended(&self, record: &Record, how: (Option<i32>, Option<i32>)) -> Result<()> {
        let exit = record.event.exit().map(|exit| end(*exit));
        let recalls = self.listener.status()?.exit_backend == ExitBackend::Bpf;
        let unknown = !recalls && exit == Some((None, None));
        ensure!(exit == Some(how) || unknown, "not {how:?}: {}", record.to_json());
        ensure!(record.event.detail().is_some() == unknown, "{}", record.to_json());
        Ok(())
    }

    fn go(&self) -> Result<()> {
        Ok(std::fs::write(self.bundle.rootfs().join("wait"), "go\n")?)
    }

    fn close(self) -> Result<()> {
        self.runtime.delete(self.bundle.id(), true)?;
        self.listener.wait_idle()?;
        self.listener.close()?;
        Ok(())
    }
}

fn script(script: &str) -> serde_json::Value {
    json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]})
}

fn foreground(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let running = Running::new(family)?;
    let output = running.runtime.exec(running.bundle.id(), &["/bin/sh", "-c", "exit 7"])?;
    ensure!(output.code() == Some(7), "{output:?}");
    let records = running.wait(&[Exec, ExecStopped])?;
    ensure!(records[0].event.held() && records[0].answer.is_some(), "{}", records[0].to_json());
    for record in &records {
        let exec = record.event.exec().with_context(|| record.to_json())?;
        ensure!(exec.args == ["/bin/sh", "-c", "exit 7"], "{exec:?}");
        ensure!(exec.capabilities.is_none() && exec.pid.is_none(), "{exec:?}");
    }
    let event = &records[1].event;
    ensure!(event.exit().map(|exit| end(*exit)) == Some((Some(7), None)), "{}", records[1].to_json());
    ensure!(event.started_at() == Some(records[0].event.time()), "{}", records[1].to_json());
    ensure!(event.finished_at() == Some(event.time()), "{}", records[1].to_json());
    running.close()
}

#[test]
fn foreground_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    foreground(Family::Runc)
}

#[test]
fn foreground_crun() -> Result<()> {
    need!(Root, Busybox, Crun);
    foreground(Family::Crun)
}

#[test]
fn foreground_youki() -> Result<()> {
    need!(Root, Busybox, Youki);
    foreground(Family::Youki)
}

/// What is asked for by options, not by a process file.
#[test]
fn by_flags() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let running = Running::new(Family::Runc)?;
    let mut command =
        running.runtime.command(["exec", "--user", "7:8", "--cwd", "/bin", "--cap", "CAP_KILL"]);
    command.args(["--env", "A=b", running.bundle.id(), "/bin/sh", "-c", "exit $(id -u)"]);
    ensure!(Task::spawn(&mut command)?.wait(PATIENCE)?.code() == Some(7));
    for record in running.wait(&[Exec, ExecStopped])? {
        let exec = record.event.exec().with_context(|| record.to_json())?;
        ensure!(exec.user.as_deref() == Some("7:8") && exec.cwd.as_deref() == Some("/bin"), "{exec:?}");
        ensure!(exec.capabilities.as_deref() == Some(&["CAP_KILL".to_owned()]), "{exec:?}");
        ensure!(exec.args == ["/bin/sh", "-c", "exit $(id -u)"] && !exec.tty, "{exec:?}");
    }
    running.close()
}

fn detached(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let running = Running::new(family)?;
    let mut process = script("read go < /wait; exit 9");
    process["cwd"] = json!("/bin");
    process["user"] = json!({"uid": 0, "gid": 5});
    let set = json!(["CAP_KILL"]);
    process["capabilities"] = json!({"bounding": set, "effective": set, "permitted": set});
    running.detach(&process)?.ok()?;
    let records = running.wait(&[Exec])?;
    let exec = records[0].event.exec().context("no exec")?;
    ensure!(exec.user.as_deref() == Some("0:5") && exec.cwd.as_deref() == Some("/bin"), "{exec:?}");
    ensure!(!exec.tty && exec.pid.is_none(), "{exec:?}");
    ensure!(exec.capabilities.as_deref() == Some(&["CAP_KILL".to_owned()]), "{exec:?}");
    let pid = running.pid()?;
    running.go()?;
    let records = running.wait(&[Exec, ExecStopped])?;
    let event = &records[1].event;
    running.ended(&records[1], (Some(9), None))?;
    ensure!(
        event.exec().and_then(|exec| exec.pid) == Some(pid.0.cast_unsigned()),
        "{}",
        records[1].to_json()
    );
    ensure!(event.pid() != Some(pid.0.cast_unsigned()), "it is not the container's init");

    // A signal; and it outlives nothing that is kept for it.
    running.detach(&script("read go < /wait"))?.ok()?;
    running.pid()?.kill(SIGKILL)?;
    let records = running.wait(&[Exec, ExecStopped, Exec, ExecStopped])?;
    running.ended(&records[3], (None, Some(SIGKILL)))?;

    // There is no such program.
    let mut process = script("");
    process["args"] = json!(["/bin/there-is-none"]);
    ensure!(running.detach(&process)?.code() != Some(0));
    let kinds = [Exec, ExecStopped].repeat(3);
    let records = running.wait(&kinds)?;
    let event = &records[5].event;
    ensure!(event.exit().map(|exit| end(*exit)) == Some((None, None)), "{}", records[5].to_json());
    ensure!(event.detail().is_some_and(|why| why.starts_with("nothing was executed")), "{event:?}");
    running.close()
}

#[test]
fn detached_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    detached(Family::Runc)
}

#[test]
fn detached_crun() -> Result<()> {
    need!(Root, Busybox, Crun);
    detached(Family::Crun)
}

/// What health checks do: it is over before its runtime has ended, and so before its pid is known.
fn over_at_once(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let running = Running::new(family)?;
    let mut kinds = Vec::new();
    for code in 0..12 {
        running.detach(&script(&format!("exit {code}")))?.ok()?;
        kinds.extend([Exec, ExecStopped]);
        let records = running.wait(&kinds)?;
        let stopped = records.last().context("no record")?;
        running.ended(stopped, (Some(code), None))?;
        let exec = stopped.event.exec().context("no exec")?;
        ensure!(exec.pid == Some(running.pid()?.0.cast_unsigned()), "{}", stopped.to_json());
    }
    running.close()
}

#[test]
fn over_at_once_runc() -> Result<()> {
    need!(Root, Busybox, Runc);
    over_at_once(Family::Runc)
}

#[test]
fn over_at_once_crun() -> Result<()> {
    need!(Root, Busybox, Crun);
    over_at_once(Family::Crun)
}

#[test]
fn over_at_once_youki() -> Result<()> {
    need!(Root, Busybox, Youki);
    over_at_once(Family::Youki)
}

/// Each end is that of its own process, and in the order of its own life.
#[test]
fn many_at_once() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let running = Running::new(Family::Runc)?;
    let codes = 20..32;
    std::thread::scope(|scope| -> Result<()> {
        let execs: Vec<_> = codes
            .clone()
            .map(|code| {
                let running = &running;
                scope.spawn(move || -> Result<()> {
                    let script = format!("exit {code}");
                    let output = running.runtime.exec(running.bundle.id(), &["/bin/sh", "-c", &script])?;
                    ensure!(output.code() == Some(code), "{output:?}");
                    Ok(())
                })
            })
            .collect();
        execs.into_iter().try_for_each(|exec| exec.join().expect("it does not panic"))
    })?;
    let ends = |records: &[Record]| {
        let of: Vec<Record> = records.iter().filter(|r| r.event.kind() == ExecStopped).cloned().collect();
        (of.len() == codes.len()).then_some(of)
    };
    running.listener.wait_for("all are told", ends)?;
    let records = running.listener.of(running.bundle.id());
    for code in codes.clone() {
        let script = format!("exit {code}");
        let of: Vec<&Record> = records
            .iter()
            .filter(|r| r.event.exec().is_some_and(|exec| exec.args.last() == Some(&script)))
            .collect();
        let kinds: Vec<EventKind> = of.iter().map(|r| r.event.kind()).collect();
        ensure!(kinds == [Exec, ExecStopped], "{code}: {kinds:?}");
        ensure!(of[1].event.exit().map(|exit| end(*exit)) == Some((Some(code), None)), "{}", of[1].to_json());
    }
    running.close()
}

#[test]
fn with_a_terminal() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let running = Running::new(Family::Runc)?;
    let socket = running.scratch.join("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    ensure!(listener.as_fd().try_clone_to_owned().is_ok() && Path::new(&socket).exists());
    let mut command = running.runtime.command(["exec", "--tty", "--detach", "--console-socket"]);
    command.arg(&socket).arg("--pid-file").arg(running.pid_file());
    command.arg(running.bundle.id()).args(["/bin/sh", "-c", "exec sleep 1000"]);
    Task::spawn(&mut command)?.wait(PATIENCE)?.ok()?;
    let records = running.wait(&[Exec])?;
    ensure!(records[0].event.exec().is_some_and(|exec| exec.tty), "{}", records[0].to_json());
    let pid = running.pid()?;
    pid.kill(SIGKILL)?;
    let records = running.wait(&[Exec, ExecStopped])?;
    let exec = records[1].event.exec().context("no exec")?;
    ensure!(exec.pid == Some(pid.0.cast_unsigned()), "{exec:?}");
    wait_until("it is gone", PATIENCE, || (!pid.is_alive()).then_some(()))?;
    running.close()
}
