//! A listener that is stopped, and goes on: what was executed meanwhile waits for it, and is told.

mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use serde_json::Value;
use support::{LIMIT, PATIENCE, only, verify_lines};
use testkit::{Process, Scratch, Task, need, skip, watchdog};

/// Makes this test program a listener: the runtime to mark.
const RUNTIME: &str = "CONTAINERHOOK_TEST_RUNTIME";

/// Not a test: what the test below runs as a process of its own.
#[test]
fn as_a_listener() {
    let Some(runtime) = std::env::var_os(RUNTIME).map(PathBuf::from) else { return };
    let _dog = watchdog(LIMIT);
    let builder = only([&runtime]).on_record(|record: &Record| {
        say(&record.to_json());
    });
    let notifier = builder.start(|_: &ContainerEvent| ()).expect("the notifier starts");
    say("ready");
    std::thread::sleep(Duration::from_secs(1000));
    notifier.close();
}

/// Straight to the descriptor: the test runner keeps what is printed by macro to itself.
fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("\n@ {line}\n").as_bytes());
}

/// A listener in a process of its own, which ends with the test whatever becomes of it.
struct Listening(Child);

impl Listening {
    fn start(runtime: &Path) -> Result<(Self, BufReader<ChildStdout>)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "as_a_listener", "--nocapture", "--test-threads=1"]).env(RUNTIME, runtime);
        // SAFETY: prctl takes integers and touches no memory.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok((Listening(child), lines))
    }

    fn process(&self) -> Process {
        Process(self.0.id().cast_signed())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next line that it says.
fn said(lines: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        if let Some(said) = line.trim_end().strip_prefix("@ ") {
            return Ok(said.to_owned());
        }
        line.clear();
    }
    bail!("the listener has ended")
}

#[test]
fn of_1000_while_the_listener_is_stopped() -> Result<()> {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let busybox = testkit::skip::find_program("busybox").context("no busybox")?;
    // Plays the runtime: it takes any arguments and succeeds.
    let runtime = scratch.join("true");
    Task::spawn(Command::new("cp").arg(busybox).arg(&runtime))?.wait(PATIENCE)?.ok()?;
    let limit = std::fs::read_to_string("/proc/sys/kernel/pid_max")?;
    if limit.trim().parse::<u32>()? < 4096 {
        skip!("pid_max is {}", limit.trim());
    }
    let (listening, mut lines) = Listening::start(&runtime)?;
    ensure!(said(&mut lines)? == "ready");

    listening.process().kill(libc::SIGSTOP)?;
    // A shell, for it forks without waiting for the exec.
    let script =
        r#"i=0; while [ $i -lt 1000 ]; do "$0" create --bundle "$1" burst-$i & i=$((i+1)); done; wait"#;
    let mut burst = Command::new("/bin/sh");
    burst.args(["-c", script]).arg(&runtime).arg(scratch.path());
    let burst = Task::spawn(&mut burst)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(burst.process().is_alive(), "nothing was held");
    listening.process().kill(libc::SIGCONT)?;

    let (mut told, mut records) = (HashSet::new(), Vec::new());
    while told.len() < 1000 {
        let record: Value = serde_json::from_str(&said(&mut lines)?)?;
        if record["event"] == EventKind::PreCreate.as_str() {
            let id = record["id"].as_str().context("without an id")?;
            ensure!(record["held"] == true, "{id} was not held");
            ensure!(told.insert(id.to_owned()), "{id} was told twice");
        }
        records.push(record);
    }
    verify_lines(&records)?;
    burst.wait(PATIENCE)?.ok()?;
    let expected: HashSet<String> = (0..1000).map(|i| format!("burst-{i}")).collect();
    ensure!(told == expected);
    Ok(())
}
