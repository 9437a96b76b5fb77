//! `cargo xtask demo`: a real container, held and told from its creation to its end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use testkit::{Bundle, Process, Runtime, unique_id, wait_until, watchdog};

use crate::{cargo, install, root, say};

/// See a real container held and told, from its creation to its end
///
/// Installs runc and busybox-static by apt where they are missing (on Debian and Ubuntu), builds containerhook, and lets it
/// watch a copy of runc: containers of the host are not touched. Everything it makes is gone at the end.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Build with optimisations
    #[arg(long)]
    release: bool,
    /// Print the events as the JSON lines that containerhook prints
    #[arg(long)]
    json: bool,
    /// For how many seconds the container's creation is held
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    hold: u64,
}

const EXAMPLES: &str = "Examples:
  sudo -E env PATH=$PATH cargo xtask demo
  cargo xtask demo --hold 5 --json";

/// Beyond the hold, how long each part may take: far more than any does.
const LONG: Duration = Duration::from_secs(60);

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        install::need_root("demo")?;
        install::packages(install::DEMO)?;
        if let Some(missing) = testkit::Need::Busybox.missing() {
            bail!("{missing}");
        }
        let program = self.build()?;
        // Whatever goes wrong below, nothing stays held: the process ends, and its listener with it.
        let _dog = watchdog(LONG * 3 + Duration::from_secs(self.hold));

        let runc = Runtime::runc()?;
        let script = "echo \"first instruction at $(date +%T)\"; sleep 1; echo done; exit 7";
        let bundle = Bundle::builder(unique_id("demo")).script(script).build()?;
        let begin = Instant::now();

        say::step(&format!(
            "containerhook watch --json --no-discover --runtime COPY-OF-RUNC --delay {}s",
            self.hold
        ));
        let ready = runc.path().with_file_name("ready");
        let mut watch = Watch::start(&program, &runc, self.hold, &ready)?;
        wait_until("containerhook listens to runc", LONG, || {
            let is_ready = std::fs::metadata(&ready).is_ok_and(|file| file.len() > 0);
            (is_ready || watch.has_ended()).then_some(())
        })?;
        ensure!(!watch.has_ended(), "containerhook watch ended: see its words above");

        say::step(&format!("runc create {}", bundle.id()));
        if self.hold > 0 {
            say::note(&format!("held for {} s now, before runc's first instruction", self.hold));
        }
        let created = Instant::now();
        let create = std::thread::scope(|scope| {
            let create = scope.spawn(|| runc.create(&bundle));
            self.show_until(&mut watch, begin, "created")?;
            create.join().map_err(|_| anyhow::anyhow!("runc create panicked"))?
        });
        let init = create?;
        let took = created.elapsed();
        say::note(&format!("runc create took {:.1} s", took.as_secs_f64()));

        say::step(&format!("runc start {} (its init is process {})", bundle.id(), init.0));
        runc.start(bundle.id())?;
        self.show_until(&mut watch, begin, "stopped")?;
        for line in bundle.stdout().lines() {
            say::note(&format!("the container printed: {line}"));
        }

        say::step(&format!("runc delete {}", bundle.id()));
        // The end is told while the process is still being torn down, and until that is done runc refuses.
        wait_until("init is gone", LONG, || (!init.is_alive()).then_some(()))?;
        runc.delete(bundle.id(), false)?;
        watch.stop()?;
        while let Ok(line) = watch.lines.recv() {
            self.show(&line, begin)?;
        }
        say::step("everything is gone again; `cargo xtask test` runs the tests");
        Ok(())
    }

    fn build(&self) -> Result<std::path::PathBuf> {
        say::step("cargo build --package containerhook-cli");
        let mut command = cargo();
        command.args([
            "build",
            "--package",
            "containerhook-cli",
            "--message-format",
            "json-render-diagnostics",
        ]);
        if self.release {
            command.arg("--release");
        }
        let output = command.stderr(Stdio::inherit()).output().context("starting cargo build")?;
        ensure!(output.status.success(), "containerhook does not build: see cargo's words above");
        // Cargo's own word on where the program is: the target folder is configurable.
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut programs = messages.filter_map(|m| m["executable"].as_str().map(std::path::PathBuf::from));
        programs.find(|p| p.ends_with("containerhook")).context("cargo built no program containerhook")
    }

    /// Prints events up to the one of this kind.
    fn show_until(&self, watch: &mut Watch, begin: Instant, kind: &str) -> Result<()> {
        loop {
            let wait = LONG + Duration::from_secs(self.hold);
            let line = watch
                .lines
                .recv_timeout(wait)
                .with_context(|| format!("containerhook told no {kind:?} event"))?;
            if self.show(&line, begin)?["event"] == kind {
                return Ok(());
            }
        }
    }

    fn show(&self, line: &str, begin: Instant) -> Result<Value> {
        let event: Value =
            serde_json::from_str(line).with_context(|| format!("containerhook printed {line:?}"))?;
        if self.json {
            println!("{line}");
        } else {
            println!("{:7.3} s  {}", begin.elapsed().as_secs_f64(), in_words(&event));
        }
        Ok(event)
    }
}

fn in_words(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let mut words = format!("{:<11} {}", text("event"), text("id"));
    if let Some(pid) = event["pid"].as_i64() {
        words += &format!("  pid {pid}");
    }
    if let Some(held) = event["answer"]["held_us"].as_u64() {
        let decision = event["answer"]["decision"].as_str().unwrap_or_default();
        words += &format!("  held {:.3} s, then {decision}", held as f64 / 1e6);
    }
    if let Some(code) = event["exit"]["code"].as_i64() {
        words += &format!("  exit code {code}");
    }
    if let Some(signal) = event["exit"]["signal"].as_i64() {
        words += &format!("  signal {signal}");
    }
    words
}

/// A `containerhook watch`. Dropping it ends it.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(program: &std::path::Path, runc: &Runtime, hold: u64, ready: &std::path::Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["watch", "--json", "--no-discover", "--runtime"]).arg(runc.path());
        command.arg("--ready-file").arg(ready);
        command.args(["--delay", &format!("{hold}s")]).args(["--deadline", &format!("{}s", hold + 10)]);
        command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let output = BufReader::new(child.stdout.take().context("containerhook's output")?);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::result::Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn process(&self) -> Process {
        Process(self.child.id() as i32)
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it as Ctrl-C does.
    fn stop(&mut self) -> Result<()> {
        self.process().kill(libc::SIGINT)?;
        wait_until("containerhook ends", LONG, || self.has_ended().then_some(()))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "containerhook watch ended with {status}");
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
