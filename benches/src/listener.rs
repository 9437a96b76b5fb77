//! A listener in a process of its own, and the arms of an experiment: no listener, the floor, containerhook.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The programs that are measured and measure.
pub(crate) struct Tools {
    pub(crate) floor: PathBuf,
    pub(crate) listener: PathBuf,
    pub(crate) cli: PathBuf,
    pub(crate) standin: PathBuf,
}

/// A listener that runs. It ends when this is dropped, or when this process does.
pub(crate) struct Listener {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// From before it was started until it was ready.
    pub(crate) ready: Duration,
}

impl Listener {
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Listener> {
        let begin = Instant::now();
        let mut child = Command::new(program)
            .args(args)
            .env_remove("HOST_ROOT")
            .env_remove("RUNTIME_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut listener = Listener { child, input, output, ready: Duration::ZERO };
        if listener.line()? != "ready" {
            bail!("{} did not get ready", program.display());
        }
        listener.ready = begin.elapsed();
        Ok(listener)
    }

    pub(crate) fn ask(&mut self, request: &str) -> Result<Vec<String>> {
        let input = self.input.as_mut().context("the listener is closed")?;
        writeln!(input, "{request}").context("speaking to the listener")?;
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            if line == "end" {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    /// Stamps since the last time: what, whose, when in nanoseconds.
    pub(crate) fn drain(&mut self) -> Result<Vec<(String, String, u64)>> {
        let parse = |line: String| {
            let mut words = line.split(' ');
            let stamp = (words.next()?.to_owned(), words.next()?.to_owned(), words.next()?.parse().ok()?);
            Some(stamp)
        };
        Ok(self.ask("drain")?.into_iter().filter_map(parse).collect())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("hearing from the listener")?;
        if line.is_empty() {
            bail!("the listener has ended");
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It closes when its input ends. One that does not must not hold anything.
        self.input = None;
        let until = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Under which listener something is measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arm {
    None,
    /// None once more: what differs from `None` is the machine's noise.
    NoneAgain,
    /// One thread that reads an event and allows.
    Floor,
    /// One thread that reads what containerhook reads, and allows.
    Work,
    /// containerhook, with these options.
    Hook(&'static str, Vec<OsString>),
}

impl Arm {
    pub(crate) fn hook(name: &'static str, options: &[&str]) -> Arm {
        Arm::Hook(name, options.iter().map(OsString::from).collect())
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Arm::None => "no listener",
            Arm::NoneAgain => "no listener, again",
            Arm::Floor => "floor: read, allow",
            Arm::Work => "floor: read all, allow",
            Arm::Hook(name, _) => name,
        }
    }

    /// Starts the listener, with a mark on each file (containerhook: on each runtime).
    pub(crate) fn start(&self, tools: &Tools, files: &[&Path], stamps: bool) -> Result<Option<Listener>> {
        let mut args: Vec<OsString> = Vec::new();
        if stamps {
            args.push("--stamps".into());
        }
        let floor = |mode: &str, mut args: Vec<OsString>| {
            args.insert(0, mode.into());
            args.extend(files.iter().map(OsString::from));
            Listener::start(&tools.floor, args).map(Some)
        };
        match self {
            Arm::None | Arm::NoneAgain => Ok(None),
            Arm::Floor => floor("allow", args),
            Arm::Work => floor("work", args),
            Arm::Hook(_, options) => {
                args.extend(options.iter().cloned());
                for file in files {
                    args.extend(["--runtime".into(), file.into()]);
                }
                Listener::start(&tools.listener, args).map(Some)
            }
        }
    }
}
