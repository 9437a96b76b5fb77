//! The program under test, and a `watch` of it that cannot outlive its test.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{Bundle, Process, Runtime, Task, wait_until};

/// Far more than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_containerhook"));
    // What the tester's own shell says must not change what is tested.
    for name in ["CONTAINERHOOK_LOG", "NO_COLOR", "HOST_ROOT", "RUNTIME_PATH"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `containerhook watch` of one runtime.
pub(crate) struct Watch(pub(crate) Task);

impl Watch {
    /// Starts it, and returns when it listens.
    pub(crate) fn start(runtime: &Runtime, args: &[&str]) -> Result<Watch> {
        Self::of(&runtime.path(), args)
    }

    pub(crate) fn of(runtime: &Path, args: &[&str]) -> Result<Watch> {
        Self::by(program(), runtime, args)
    }

    /// By a command that executes the program with the arguments that it gets.
    pub(crate) fn by(mut command: Command, runtime: &Path, args: &[&str]) -> Result<Watch> {
        command.arg("watch").args(args).arg("--no-discover").arg("--runtime").arg(runtime);
        let mut task = Task::spawn(&mut command)?;
        let ready = wait_until("watch is ready", LONG, || {
            if matches!(task.try_wait(), Ok(Some(_)) | Err(_)) {
                return Some(false);
            }
            task.printed().1.contains("ready: 1 runtime marked").then_some(true)
        })?;
        ensure!(ready, "watch ended: {}", task.printed().1);
        Ok(Watch(task))
    }

    /// The process that listens: the supervisor's child.
    pub(crate) fn listener(&self) -> Result<Process> {
        let children = self.0.process().children();
        ensure!(children.len() == 1, "{children:?}");
        Ok(children[0])
    }

    /// The JSON lines printed so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        events(&self.0.printed().0)
    }

    /// The container's first event of this kind, when it has come.
    pub(crate) fn wait_for(&self, bundle: &Bundle, kind: &str) -> Result<Value> {
        wait_until(&format!("a {kind:?} event"), LONG, || {
            self.events().into_iter().find(|event| event["event"] == kind && event["id"] == bundle.id())
        })
        .with_context(|| format!("printed so far: {:?}", self.0.printed()))
    }

    /// Ends it as Ctrl-C does, and gives all that it printed.
    pub(crate) fn stop(self) -> Result<Vec<Value>> {
        self.0.process().kill(libc::SIGINT)?;
        let output = self.0.wait(LONG)?.ok()?;
        Ok(events(&output.stdout))
    }
}

pub(crate) fn events(lines: &str) -> Vec<Value> {
    // The last line may be half there while it is being written.
    let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

pub(crate) fn kinds<'a>(events: &'a [Value], id: &str) -> Vec<&'a str> {
    events.iter().filter(|event| event["id"] == id).filter_map(|event| event["event"].as_str()).collect()
}

/// What `containerhook verify` says of these events: nothing, where they are legal.
pub(crate) fn verify(events: &[Value], args: &[&str]) -> Result<String> {
    let folder = testkit::Scratch::new()?;
    let file = folder.join("events.jsonl");
    std::fs::write(&file, events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    let output = program().arg("verify").args(args).arg(&file).output()?;
    Ok(out(&output))
}

/// Does a thread of this name sleep for some time?
pub(crate) fn sleeps(process: Process, name: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.0)).into_iter().flatten().flatten();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    threads.map(|thread| thread.path()).any(|thread| {
        read(thread.join("comm")).trim() == name && read(thread.join("wchan")).contains("nanosleep")
    })
}
