//! A virtual machine: its kernel, what it says, and its end, which comes whatever happens.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use testkit::skip::find_program;

use super::architecture::Architecture;
use super::debs::Apt;
use crate::say;

/// The emulator of an architecture.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, if it is not this machine's own.
    tree: Option<PathBuf>,
    accelerator: &'static str,
}

impl Qemu {
    /// This machine's own, or Debian's, unpacked into `folder`.
    pub(super) fn get(
        program: &str,
        package: &str,
        folder: &Path,
        accelerator: &'static str,
    ) -> Result<Self> {
        if let Some(program) = find_program(program) {
            return Ok(Self { program, tree: None, accelerator });
        }
        let tree = folder.join(package);
        let qemu =
            Self { program: tree.join("usr/bin").join(program), tree: Some(tree.clone()), accelerator };
        if qemu.program.exists() {
            return Ok(qemu);
        }
        say::step(&format!("downloading {package}, which is unpacked and not installed"));
        let apt = Apt::of_this_machine();
        // The lists may be missing, or older than the mirror.
        let get = || apt.resolve(package).and_then(|debs| apt.unpack(&debs, &tree));
        get().or_else(|_| apt.update().and_then(|()| get()))?;
        if !qemu.program.exists() {
            bail!("{} has no {}", package, qemu.program.display());
        }
        Ok(qemu)
    }

    /// Whether it starts here, without a machine: what it lacks is this host's doing, and no kernel's.
    pub(super) fn try_out(&self) -> Result<()> {
        let mut command = self.command(false);
        command.args(["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.context("starting qemu by setpriv")?;
        // One that has ended already says why itself.
        let _ = child.stdin.take().context("qemu's input")?.write_all(b"quit\n");
        let output = child.wait_with_output().context("waiting for qemu")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{} does not start: {}", self.program.display(), words.trim());
        }
        Ok(())
    }

    /// The emulator with all but the guest, which ends with this process.
    fn command(&self, one_thread: bool) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(tree) = &self.tree {
            let libraries = libraries_in(tree);
            // Its accelerator is a module of its own, which it would look for where Debian installs it. The first folder
            // that has modules is enough: a package has one.
            if let Some(modules) =
                libraries.iter().map(|folder| folder.join("qemu")).find(|path| path.is_dir())
            {
                command.env("QEMU_MODULE_DIR", modules);
            }
            command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap_or_default());
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(tree.join(folder));
            }
        }
        let thread = if one_thread && self.accelerator == "tcg" { ",thread=single" } else { "" };
        command.arg("-accel").arg(format!("{}{thread}", self.accelerator)).stdin(Stdio::null());
        command
    }
}

fn libraries_in(tree: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for base in ["usr/lib", "lib"] {
        let below = std::fs::read_dir(tree.join(base)).into_iter().flatten().flatten();
        folders.extend(
            below.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("-linux-gnu")),
        );
    }
    folders
}

/// What is booted, and how.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) architecture: Architecture,
    pub(super) qemu: &'a Qemu,
    pub(super) kernel: &'a Path,
    pub(super) image: &'a Path,
    /// Where all that it says is kept: `.from-N.console` is the kernel's, `.log` the script's.
    pub(super) log: &'a Path,
    /// One thread emulates all of its processors.
    pub(super) one_thread: bool,
    /// How many of its programs have had their turn already.
    pub(super) from: usize,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It said so.
    Done,
    /// It ended before it was done.
    Died,
    /// It said nothing for longer than whatever it was at may take.
    Stuck,
    /// There was no time left.
    Late,
    /// Somebody wants us to end.
    Interrupted,
}

/// What is added to a program's own limit before its guest counts as stuck; and for booting.
const SLACK: Duration = Duration::from_secs(60);

impl Guest<'_> {
    /// Boots it and gives each line to `hear`, which says how long the next one may take.
    pub(super) fn run(
        &self,
        until: Instant,
        interrupted: &AtomicBool,
        mut hear: impl FnMut(&str) -> Duration,
    ) -> Result<End> {
        let machine = self.boot()?;
        let mut log = File::options().append(true).create(true).open(self.log.with_extension("log"))?;
        let mut patience = Instant::now() + SLACK;
        let mut done = false;
        let end = loop {
            let now = Instant::now();
            let wait = patience.min(until).saturating_duration_since(now).min(Duration::from_millis(200));
            match machine.lines.recv_timeout(wait) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    done |= line == ">> done";
                    patience = Instant::now() + hear(&line) + SLACK;
                }
                Err(RecvTimeoutError::Disconnected) => break if done { End::Done } else { End::Died },
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupted.load(Ordering::Relaxed) {
                break End::Interrupted;
            }
            if Instant::now() >= until {
                break End::Late;
            }
            if Instant::now() >= patience {
                break if done { End::Done } else { End::Stuck };
            }
        };
        Ok(end)
    }

    /// What its kernel says. Of each boot by itself: that of one that died is what one wants to read.
    pub(super) fn console(&self) -> PathBuf {
        self.log.with_extension(format!("from-{}.console", self.from))
    }

    fn boot(&self) -> Result<Machine> {
        let console = self.console();
        let mut command = self.qemu.command(self.one_thread);
        // The console is the kernel's; the second port is the script's alone.
        command.args(self.architecture.machine(&console));
        command.args(["-smp", "2", "-m", "3072", "-nodefaults", "-no-reboot", "-display", "none"]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.image).arg("-append");
        command.arg(format!("{} quiet panic=-1 vm.from={}", self.architecture.ports(), self.from));
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting qemu by setpriv")?;
        let output = BufReader::new(child.stdout.take().context("qemu's output")?);
        let (say, lines) = channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if say.send(line.trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Machine { child, lines })
    }
}

/// A running emulator, which ends with this.
struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // setpriv has become qemu: the process is the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
