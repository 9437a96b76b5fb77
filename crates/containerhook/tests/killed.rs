//! A listener that dies while it holds frees the host.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use serde_json::Value;
use support::{LIMIT, PATIENCE, only, verify_lines};
use testkit::{Bundle, Process, Runtime, Task, need, unique_id, wait_until, watchdog};

/// Makes this test program a listener: the runtime to mark.
const RUNTIME: &str = "CONTAINERHOOK_TEST_RUNTIME";
/// Where its handler sleeps: a kind of event.
const KIND: &str = "CONTAINERHOOK_TEST_KIND";
/// For its handler: `ID BUNDLE STATE-ROOT` of a container that it creates itself, inside the first one's `PreCreate`.
const NESTED: &str = "CONTAINERHOOK_TEST_NESTED";

/// Not a test: what the tests below run as a process of its own.
#[test]
fn as_a_listener() {
    let Some(runtime) = std::env::var_os(RUNTIME).map(PathBuf::from) else { return };
    let nested = std::env::var(NESTED).ok();
    let kind: EventKind = std::env::var(KIND).unwrap().parse().unwrap();
    let _dog = watchdog(LIMIT);
    let builder = only([&runtime]).deadline(Duration::from_secs(110));
    let builder = builder.on_record(|record: &Record| say(&record.to_json()));
    let notifier = builder
        .start(move |event: &ContainerEvent| {
            say(&format!("{} {}", event.kind(), event.id()));
            if event.kind() != kind {
                return;
            }
            let words = nested.as_deref().map(|line| line.split(' ').collect::<Vec<_>>());
            match words.as_deref() {
                Some([id, bundle, root]) if event.id() != *id => {
                    // Its exec is held in turn: this child has not executed yet, and has what this thread has open.
                    let mut create = Command::new(&runtime);
                    create.args(["--root", root, "create", "--bundle", bundle, id]);
                    let _ = create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
                }
                _ => std::thread::sleep(Duration::from_secs(1000)),
            }
        })
        .expect("the notifier starts");
    say("ready");
    std::thread::sleep(Duration::from_secs(1000));
    notifier.close();
}

/// Straight to the descriptor: the test runner keeps what is printed by macro to itself.
fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("\n@ {line}\n").as_bytes());
}

/// A listener in a process of its own.
struct Listening {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What it told.
    records: Vec<Value>,
}

impl Listening {
    fn start(runtime: &Path, kind: EventKind, nested: Option<String>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "as_a_listener", "--nocapture", "--test-threads=1"]).env(RUNTIME, runtime);
        command.env(KIND, kind.as_str());
        if let Some(nested) = nested {
            command.env(NESTED, nested);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut listening = Listening { child, lines, records: Vec::new() };
        listening.wait_for("ready")?;
        Ok(listening)
    }

    /// Waits until it says this.
    fn wait_for(&mut self, what: &str) -> Result<()> {
        while let Some(said) = self.said()? {
            if said == what {
                return Ok(());
            }
        }
        bail!("the listener has ended, and has not said {what:?}")
    }

    /// What it says next that is no record; nothing once it has ended.
    fn said(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        while self.lines.read_line(&mut line)? > 0 {
            // Whoever is killed in the middle of a line has not said it.
            if let Some(said) = line.strip_prefix("@ ").and_then(|said| said.strip_suffix('\n')) {
                if !said.starts_with('{') {
                    return Ok(Some(said.to_owned()));
                }
                self.records.push(serde_json::from_str(said)?);
            }
            line.clear();
        }
        Ok(None)
    }

    /// SIGKILL, and waits until it is no more. What it had told are lives that can be, as far as they went.
    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        while self.said()?.is_some() {}
        verify_lines(&self.records)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The runtime executes freely: nobody holds it.
fn is_free(runtime: &Runtime) -> Result<()> {
    let end = Task::spawn(&mut runtime.command(["--version"]))?.wait(PATIENCE)?.ok()?;
    ensure!(end.stdout.contains("version"), "{end:?}");
    Ok(())
}

#[test]
fn while_it_holds_a_create() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let mut listening = Listening::start(&runtime.path(), EventKind::PreCreate, None)?;
        let bundle = Bundle::builder(unique_id("held")).args(["/bin/sleep", "1000"]).build()?;
        std::thread::scope(|scope| -> Result<()> {
            // On a thread: who spawns a process waits until its exec is over.
            let create = scope.spawn(|| runtime.create(&bundle));
            listening.wait_for(&format!("pre-create {}", bundle.id()))?;
            ensure!(!create.is_finished() && runtime.containers().is_empty());
            listening.kill()?;
            let init = create.join().expect("it does not panic")?;
            ensure!(init.is_alive() && runtime.state(bundle.id())?.status == "created");
            Ok(())
        })?;
        runtime.start(bundle.id())?;
        ensure!(runtime.state(bundle.id())?.status == "running");
        is_free(&runtime)?;
    }
    Ok(())
}

/// A `start` that waits for `Created`, and an entrypoint that waits for `Started`: both go on.
#[test]
fn while_it_holds_a_start_or_an_entrypoint() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        for kind in [EventKind::Created, EventKind::Started] {
            let mut listening = Listening::start(&runtime.path(), kind, None)?;
            let bundle = Bundle::builder(unique_id("held")).script("echo ran").build()?;
            runtime.create(&bundle)?;
            std::thread::scope(|scope| -> Result<()> {
                let start = scope.spawn(|| runtime.start(bundle.id()));
                listening.wait_for(&format!("{kind} {}", bundle.id()))?;
                ensure!(bundle.stdout().is_empty());
                listening.kill()?;
                start.join().expect("it does not panic")
            })?;
            wait_until("the container runs", PATIENCE, || (bundle.stdout() == "ran\n").then_some(()))?;
            is_free(&runtime)?;

            // The same by `run`, which is held at its entrypoint for both.
            let mut listening = Listening::start(&runtime.path(), kind, None)?;
            let bundle = Bundle::builder(unique_id("run")).script("echo ran").build()?;
            std::thread::scope(|scope| -> Result<()> {
                let run = scope.spawn(|| runtime.run(&bundle)?.ok());
                listening.wait_for(&format!("{kind} {}", bundle.id()))?;
                ensure!(!run.is_finished());
                listening.kill()?;
                ensure!(run.join().expect("it does not panic")?.stdout == "ran\n");
                Ok(())
            })?;
            is_free(&runtime)?;
        }
    }
    Ok(())
}

/// What a handler's child has between its fork and its exec must not be the group: it would wait for ever for an answer
/// that only it could give.
#[test]
fn while_it_holds_a_child_of_its_own_handler() -> Result<()> {
    need!(Root, Busybox, Runc, Crun);
    let _dog = watchdog(LIMIT);
    for runtime in [Runtime::runc()?, Runtime::crun()?] {
        let outer = Bundle::builder(unique_id("outer")).args(["/bin/sleep", "1000"]).build()?;
        let inner = Bundle::builder(unique_id("inner")).args(["/bin/sleep", "1000"]).build()?;
        let nested = format!("{} {} {}", inner.id(), inner.path().display(), runtime.state_dir().display());
        let mut listening = Listening::start(&runtime.path(), EventKind::PreCreate, Some(nested))?;
        let pid = Process(listening.child.id().cast_signed());
        std::thread::scope(|scope| -> Result<()> {
            let create = scope.spawn(|| runtime.create(&outer));
            listening.wait_for(&format!("pre-create {}", outer.id()))?;
            listening.wait_for(&format!("pre-create {}", inner.id()))?;
            let children = pid.children();
            ensure!(children.len() == 1, "{children:?}");
            ensure!(!create.is_finished() && children[0].is_alive());
            listening.kill()?;
            let init = create.join().expect("it does not panic")?;
            ensure!(init.is_alive() && runtime.state(outer.id())?.status == "created");
            // The handler's child goes on too, on its own, unless its runtime has something against this host.
            wait_until("the handler's child ends", PATIENCE, || (!children[0].is_alive()).then_some(()))?;
            Ok(())
        })?;
        is_free(&runtime)?;
    }
    Ok(())
}

#[test]
fn while_it_runs_and_nothing_is_held() -> Result<()> {
    need!(Root, Busybox, Runc);
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let listening = Listening::start(&runtime.path(), EventKind::PreCreate, None)?;
    listening.kill()?;
    let bundle = Bundle::builder(unique_id("after")).build()?;
    runtime.run(&bundle)?.ok()?;
    is_free(&runtime)
}
