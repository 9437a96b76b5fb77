//! A command that runs, with its output kept and its end guaranteed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Process;

/// How long a command of a fixture may take: far more than any takes, so that only a stuck one is hit.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// A command that was started. Dropping it kills it and waits for it.
#[derive(Debug)]
pub struct Task {
    child: Child,
    what: String,
    // Files, not pipes: a container that `create` leaves behind keeps them open, and reading a pipe to its end would
    // wait for that container.
    stdout: File,
    stderr: File,
    ended: bool,
    loses_sigchld: bool,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, up to its end.
    pub stdout: String,
    /// What it printed to standard error, up to its end.
    pub stderr: String,
    what: String,
}

impl Task {
    /// Starts `command`, with its output kept unless it says otherwise, and nothing to read.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let stdout = tempfile::tempfile().context("making a file for a command's output")?;
        let stderr = tempfile::tempfile().context("making a file for a command's output")?;
        Self::spawn_into(command, stdout, stderr)
    }

    pub(crate) fn spawn_into(command: &mut Command, stdout: File, stderr: File) -> Result<Self> {
        let what = describe(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("starting `{what}`"))?;
        Ok(Self { child, what, stdout, stderr, ended: false, loses_sigchld: false })
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process(self.child.id() as i32)
    }

    /// What it has printed so far: standard output and standard error.
    #[must_use]
    pub fn printed(&self) -> (String, String) {
        (read_all(&self.stdout), read_all(&self.stderr))
    }

    /// For `youki run` (seen with 0.7): it blocks SIGCHLD only after it has started the container, and waits for ever for
    /// one that had ended by then. Such a task is sent the signal again whenever somebody asks for its end.
    pub(crate) fn that_loses_sigchld(mut self) -> Self {
        self.loses_sigchld = true;
        self
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn try_wait(&mut self) -> Result<Option<Output>> {
        let Some(status) = self.child.try_wait().with_context(|| format!("waiting for `{}`", self.what))?
        else {
            if self.loses_sigchld {
                let _ = self.process().kill(libc::SIGCHLD);
            }
            return Ok(None);
        };
        self.ended = true;
        let (stdout, stderr) = self.printed();
        Ok(Some(Output { status, stdout, stderr, what: self.what.clone() }))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it runs longer than `limit`: it is killed then, and the error carries what it had printed.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let end = Instant::now() + limit;
        loop {
            if let Some(output) = self.try_wait()? {
                return Ok(output);
            }
            if Instant::now() >= end {
                let (stdout, stderr) = self.printed();
                let place = self.process().waits_in().unwrap_or_else(|| "user space".into());
                bail!(
                    "`{}` still ran after {limit:?} (in {place})\n{}",
                    self.what,
                    Printed(&stdout, &stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Output {
    /// The exit code, or `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Itself, if the command succeeded.
    ///
    /// # Errors
    /// When it did not; the error carries the command, how it ended and what it printed.
    pub fn ok(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (_, Some(signal)) => format!("was killed by signal {signal}"),
            _ => "failed".to_owned(),
        };
        bail!("`{}` {how}\n{}", self.what, Printed(&self.stdout, &self.stderr))
    }
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(LIMIT)
}

/// Copies a file by `cp`.
///
/// Not by [`std::fs::copy`]: a descriptor open for writing in this process would be inherited by a child that another
/// thread forks just now, and as long as that child has not executed (a listener under test may hold it), executing the
/// copy fails with ETXTBSY.
pub(crate) fn copy_program(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    run(Command::new("cp").args(["-Lp", "--"]).arg(from).arg(to))?.ok()?;
    Ok(())
}

struct Printed<'a>(&'a str, &'a str);

impl std::fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, text) in [("stdout", self.0), ("stderr", self.1)] {
            if !text.trim().is_empty() {
                writeln!(f, "--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(std::ffi::OsStr::to_string_lossy));
    words.join(" ")
}

/// Reads from the start without moving the offset, which the running command shares.
fn read_all(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while let Ok(n @ 1..) = file.read_at(&mut chunk, bytes.len() as u64) {
        bytes.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
