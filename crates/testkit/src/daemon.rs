//! An engine's daemon: started, awaited until it answers, ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Process;
use crate::task::Task;

/// How long a daemon may take until it answers. A loaded two-core machine has been seen to take 15 s for dockerd.
const READY: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Daemon {
    task: Task,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output in `log`, and waits until `ready`.
    pub(crate) fn start(
        command: &mut Command,
        log: PathBuf,
        mut ready: impl FnMut() -> bool,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).read(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut daemon = Self { task: Task::spawn_into(command, file.try_clone()?, file)?, log };
        let end = Instant::now() + READY;
        while !ready() {
            if let Some(output) = daemon.task.try_wait()? {
                bail!("{name} ended while it started ({})\n{}", output.status, daemon.log_tail());
            }
            if Instant::now() >= end {
                bail!("{name} does not answer after {READY:?}\n{}", daemon.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    pub(crate) fn process(&self) -> Process {
        self.task.process()
    }

    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
