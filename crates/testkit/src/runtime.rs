//! runc, crun and youki, executed as a person or an engine would.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::skip::find_program;
use crate::task::{self, LIMIT, Output, Task};
use crate::{Bundle, Process, Scratch};

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// opencontainers/runc
    Runc,
    /// containers/crun
    Crun,
    /// youki-dev/youki
    Youki,
}

impl Family {
    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Youki => "youki",
        }
    }
}

/// A copy of a runtime, with a state folder of its own. Dropping it deletes its containers.
#[derive(Debug)]
pub struct Runtime {
    family: Family,
    installed: PathBuf,
    scratch: Scratch,
}

/// What a runtime says about a container.
#[derive(Clone, Debug)]
pub struct State {
    /// `created`, `running`, `stopped`.
    pub status: String,
    /// Its init; pid 0 once it has stopped.
    pub init: Process,
    /// The whole answer.
    pub json: Value,
}

impl Runtime {
    /// A copy of runc.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn runc() -> Result<Self> {
        Self::new(Family::Runc)
    }

    /// A copy of crun.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn crun() -> Result<Self> {
        Self::new(Family::Crun)
    }

    /// A copy of youki.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn youki() -> Result<Self> {
        Self::new(Family::Youki)
    }

    /// A copy of any.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn new(family: Family) -> Result<Self> {
        let installed =
            find_program(family.name()).ok_or_else(|| anyhow!("{} is not installed", family.name()))?;
        let scratch = Scratch::new()?;
        let runtime = Self { family, installed, scratch };
        task::copy_program(&runtime.installed, &runtime.path())?;
        fs::create_dir(runtime.state_dir())?;
        Ok(runtime)
    }

    /// The copy: the file to mark.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.join(self.family.name())
    }

    /// Which runtime it is.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// What is passed as `--root`: a folder a container.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// The copy with `--root` and `args`, for every other use.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_of(&self.path(), args)
    }

    fn command_of<S: AsRef<OsStr>>(&self, program: &Path, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.bare(program);
        command.arg("--root").arg(self.state_dir()).args(args);
        command
    }

    /// Another program, such as a wrapper of the copy, in the surroundings that this runtime needs here, without any
    /// argument yet.
    pub fn bare(&self, program: &Path) -> Command {
        bare_command(self.family, program)
    }

    /// Creates the container and returns its init. What it prints goes to [`Bundle::stdout`].
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn create(&self, bundle: &Bundle) -> Result<Process> {
        self.spawn_create(bundle)?.wait(LIMIT)?.ok()?;
        bundle.init()
    }

    /// Begins to create the container, for tests in which that is held.
    ///
    /// # Errors
    /// When the runtime cannot be executed.
    pub fn spawn_create(&self, bundle: &Bundle) -> Result<Task> {
        let mut command = self.command(["create", "--bundle"]);
        command.arg(bundle.path()).arg("--pid-file").arg(bundle.pid_file()).arg(bundle.id());
        let open = |path: PathBuf| {
            let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
            file.with_context(|| format!("opening {}", path.display()))
        };
        Task::spawn_into(&mut command, open(bundle.stdout_path())?, open(bundle.stderr_path())?)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn start(&self, id: &str) -> Result<()> {
        self.do_ok(["start", id])
    }

    /// Creates, starts and awaits the container in one go. Its exit code is the output's.
    ///
    /// # Errors
    /// When the runtime cannot be executed. That the runtime failed shows in the output only.
    pub fn run(&self, bundle: &Bundle) -> Result<Output> {
        self.spawn_run(bundle)?.wait(LIMIT)
    }

    /// Begins to run the container, for tests in which that is held.
    ///
    /// # Errors
    /// When the runtime cannot be executed.
    pub fn spawn_run(&self, bundle: &Bundle) -> Result<Task> {
        let task = Task::spawn(self.command(["run", "--bundle"]).arg(bundle.path()).arg(bundle.id()))?;
        Ok(if self.family == Family::Youki { task.that_loses_sigchld() } else { task })
    }

    /// What the runtime says about the container.
    ///
    /// # Errors
    /// When it knows no such container.
    pub fn state(&self, id: &str) -> Result<State> {
        let text = task::run(&mut self.command(["state", id]))?.ok()?.stdout;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("parsing the state of {id}: {text}"))?;
        let status = json["status"].as_str().unwrap_or_default().to_owned();
        let init = Process(json["pid"].as_i64().unwrap_or_default() as i32);
        Ok(State { status, init, json })
    }

    /// Executes `args` in the running container.
    ///
    /// # Errors
    /// When the runtime cannot be executed. That it failed shows in the output only.
    pub fn exec(&self, id: &str, args: &[&str]) -> Result<Output> {
        task::run(self.command(["exec", id]).args(args))
    }

    /// Sends a signal to the container's init, by name: `KILL`, `TERM`.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn kill(&self, id: &str, signal: &str) -> Result<()> {
        self.do_ok(["kill", id, signal])
    }

    /// Deletes the container; with `force` also one that runs.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        if force {
            return self.do_ok(["delete", "--force", id]);
        }
        // An end is told when the init begins to die; the runtime sees it a moment later, when it is a zombie.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            match self.do_ok(["delete", id]) {
                Err(error)
                    if error.to_string().contains("not stopped") && std::time::Instant::now() < until =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }

    /// The ids of its containers, from the state folder: no runtime is executed for the answer.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state_dir()).into_iter().flatten().flatten();
        let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        folders.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    fn do_ok<const N: usize>(&self, args: [&str; N]) -> Result<()> {
        task::run(&mut self.command(args))?.ok().map(drop)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for id in self.containers() {
            // By the installed runtime, not by the copy: a listener that is still there may hold the copy's execution.
            let mut delete = self.command_of(&self.installed, ["delete", "--force", &id]);
            if let Err(error) = task::run(&mut delete).and_then(Output::ok) {
                eprintln!("testkit: deleting the container {id}: {error:#}");
            }
        }
    }
}

/// A command that executes `program` in the surroundings that its family needs here.
pub(crate) fn bare_command(family: Family, program: &Path) -> Command {
    let mut command = Command::new(program);
    if family == Family::Crun && is_hybrid() {
        crate::sys::without_unified_cgroup(&mut command);
    }
    command
}

/// Whether this host has cgroup v1 with a cgroup2 tree beside it, which crun as root refuses.
pub(crate) fn is_hybrid() -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let at = |line: &str, path: &str| line.split(' ').nth(4) == Some(path);
    table.lines().any(|l| at(l, "/sys/fs/cgroup/unified") && l.contains(" - cgroup2 "))
        && crate::sys::effective_uid() == 0
}
