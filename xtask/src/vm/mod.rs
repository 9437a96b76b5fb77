//! `cargo xtask vm`: the tests that need a kernel, on each of Debian's cloud kernels, in virtual machines.

mod architecture;
mod cpio;
mod debs;
mod guest;
mod hearing;
mod image;
mod kernels;
mod programs;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::architecture::Architecture;
use self::debs::Mirror;
use self::guest::{End, Guest, Qemu};
use self::hearing::{Hearing, Outcome};
use self::image::Userland;
use self::kernels::{Kernel, SUITES, Suite};
use self::programs::{Choice, DOCTOR, Program};
use self::report::Run;
use crate::test::Tally;
use crate::{install, root, say};

/// Run the tests that need a kernel on Debian's kernels, in virtual machines, and print what each can do
///
/// Gets the kernels from the mirror that apt uses, and qemu where it is missing (unpacked, not installed), into
/// target/vm; builds the tests statically; boots each kernel with them, runc, crun and busybox, by emulation. Ends with
/// the line `N passed, N failed, N skipped`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Vm {
    /// Only the test programs whose names contain one of these: see --list
    filter: Vec<String>,
    /// Only the test programs that say most in the least time, as CI does
    #[arg(long, conflicts_with = "filter")]
    main: bool,
    /// Only these kernels: 5.10, 6.1, 6.12, 7 (any newer), or Debian's names, such as bookworm
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    kernel: Vec<String>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
    /// Write the table of capabilities into README.md
    #[arg(long)]
    write: bool,
    /// List the kernels and the test programs, and do nothing
    #[arg(long)]
    list: bool,
    /// For how many minutes guests may run, all together; what had no turn then is told as skipped
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    budget: u64,
    /// Boot Debian 12's kernel for arm64 instead, with programs that Debian's newest compiler makes
    #[arg(long, conflicts_with_all = ["kernel", "write", "kvm"])]
    arm64: bool,
    /// Let the machine's own processor run the guests, where /dev/kvm works
    #[arg(long)]
    kvm: bool,
}

const EXAMPLES: &str = "Examples:
  sudo -E env PATH=$PATH cargo xtask vm
  cargo xtask vm --main
  cargo xtask vm --kernel 5.10 oom exits
  cargo xtask vm --kernel 6.1,7 --json | jq '.kernels[].capabilities'
  cargo xtask vm --arm64 --main
  cargo xtask vm --write

Exit codes: 0 all passed; 1 something failed, or could not be had; 130 interrupted.
What a guest said is in target/vm/run: KERNEL.log, and the kernel's own words in KERNEL.from-N.console, N being the programs that
had had their turn when it was booted.";

impl Vm {
    pub(crate) fn run(&self) -> Result<()> {
        if self.list {
            return list();
        }
        if self.write && !self.kernel.is_empty() {
            bail!("--write is for a run on all kernels: leave out --kernel");
        }
        let (runs, tally) = self.matrix()?;
        if self.json {
            println!("{:#}", report::json(&runs, &tally));
        } else {
            print!("\n{}", report::text(&runs));
            println!("\n{tally}");
        }
        if self.write && runs.iter().all(|run| run.skipped.is_none()) {
            report::write(&root().join("README.md"), &runs)?;
            say::note("README.md has the table");
        }
        if tally.failed > 0 {
            bail!("{} failed", tally.failed);
        }
        if let Some(run) = runs.iter().find(|run| run.skipped.is_some()) {
            bail!("{}: {}", run.debian, run.skipped.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// The main tests on all kernels, within twenty minutes and those that building takes. What one could not be asked is told as skipped.
    pub(crate) fn in_ci() -> Result<(Tally, Option<String>)> {
        let all = Self {
            filter: Vec::new(),
            main: true,
            kernel: Vec::new(),
            json: false,
            write: false,
            list: false,
            budget: 26,
            arm64: false,
            kvm: false,
        };
        let (runs, tally) = all.matrix()?;
        print!("\n{}", report::text(&runs));
        let skipped =
            runs.iter().find_map(|run| Some(format!("{}: {}", run.debian, run.skipped.as_deref()?)));
        Ok((tally, skipped))
    }

    fn choice(&self) -> Choice {
        if self.main { Choice::Main } else { Choice::Named(self.filter.clone()) }
    }

    fn matrix(&self) -> Result<(Vec<Run>, Tally)> {
        let begin = Instant::now();
        let suites = self.suites()?;
        let architecture = if self.arm64 { Architecture::Arm64 } else { Architecture::Amd64 };
        let (names, choice) = (programs::names()?, self.choice());
        if let Some(word) = self.filter.iter().find(|word| !names.iter().any(|name| name.contains(*word))) {
            bail!("no test program has {word:?} in its name: see --list");
        }
        install::need_root("vm")?;
        install::packages(install::VM)?;
        let folder = root().join("target/vm");
        let run = folder.join("run");
        std::fs::create_dir_all(&run).with_context(|| format!("making {}", run.display()))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second one ends us at once.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let host = Mirror::of_this_machine().and_then(|mirror| {
            let qemu = architecture.qemu(&folder, self.kvm)?;
            qemu.try_out()?;
            let userland = architecture.userland(&mirror, &folder)?;
            let toolchain = architecture.toolchain(&mirror, &folder)?;
            Ok((mirror, qemu, userland, toolchain))
        });
        let (mirror, qemu, userland, toolchain) = match host {
            Ok(host) => host,
            Err(error) => {
                let skipped = suites.iter().map(|suite| skipped(*suite, format!("{error:#}"))).collect();
                return Ok(sum(skipped));
            }
        };
        let programs = programs::build(&choice, &toolchain, &architecture.build(&folder))?;
        let until = begin + Duration::from_secs(60 * self.budget);
        let mut runs = Vec::new();
        for (i, suite) in suites.iter().enumerate() {
            // What is left is shared by those that are left: a slow one does not cost the last one its turn.
            let left = until.saturating_duration_since(Instant::now());
            let until = Instant::now() + left / (suites.len() - i) as u32;
            runs.push(match suite.kernel(&mirror, architecture.debian(), &folder.join("kernels")) {
                Ok(kernel) => {
                    let mut matrix = Matrix {
                        architecture,
                        qemu: &qemu,
                        userland: &userland,
                        folder: &run,
                        until,
                        interrupted: &interrupted,
                    };
                    matrix.kernel(&kernel, &programs)?
                }
                Err(error) => skipped(*suite, format!("its kernel cannot be had: {error:#}")),
            });
            if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                print!("\n{}", report::text(&runs));
                say::error("interrupted");
                std::process::exit(130);
            }
        }
        Ok(sum(runs))
    }

    fn suites(&self) -> Result<Vec<Suite>> {
        let meant = |word: &String| {
            let suite = SUITES.iter().find(|suite| suite.is_meant_by(word)).copied();
            suite.with_context(|| format!("no kernel is called {word:?}: see cargo xtask vm --list"))
        };
        if self.arm64 {
            return Ok(SUITES.iter().filter(|suite| suite.codename == "bookworm").copied().collect());
        }
        if self.kernel.is_empty() { Ok(SUITES.to_vec()) } else { self.kernel.iter().map(meant).collect() }
    }
}

fn list() -> Result<()> {
    for suite in SUITES {
        println!("kernel  {:9} {}", suite.codename, suite.debian);
    }
    for name in programs::names()? {
        println!("test    {name}");
    }
    Ok(())
}

fn skipped(suite: Suite, reason: String) -> Run {
    say::warn(&format!("SKIPPED: {}: {reason}", suite.debian));
    Run {
        kernel: suite.codename.into(),
        debian: suite.debian.into(),
        skipped: Some(reason),
        ..Run::default()
    }
}

fn sum(runs: Vec<Run>) -> (Vec<Run>, Tally) {
    let mut sum = Tally::default();
    for run in &runs {
        let tally = run.tally();
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        sum.skipped += tally.skipped;
    }
    (runs, sum)
}

/// Boots kernels until the time is over.
struct Matrix<'a> {
    architecture: Architecture,
    qemu: &'a Qemu,
    userland: &'a Userland,
    folder: &'a Path,
    until: Instant,
    interrupted: &'a AtomicBool,
}

/// How often a kernel is booted again after its guest died or was stuck.
const BOOTS: usize = 4;

impl Matrix<'_> {
    fn kernel(&mut self, kernel: &Kernel, programs: &[Program]) -> Result<Run> {
        let (name, debian) = (&kernel.version, kernel.suite.debian);
        say::step(&format!("Linux {name} ({debian})"));
        let begin = Instant::now();
        let log = self.folder.join(&kernel.version);
        let _ = std::fs::remove_file(log.with_file_name(format!("{name}.log")));
        let one_thread = kernel.suite.modifies_itself_sooner();
        let mut run = self.boot(kernel, programs, one_thread)?;
        let again: Vec<Program> =
            run.outcomes.iter().filter_map(|outcome| once_more(programs, outcome)).collect();
        if !again.is_empty() && run.skipped.is_none() {
            say::step(&format!("Linux {name}: what failed, once more and by itself"));
            // By one thread, for what the emulator alone gets wrong.
            for second in self.boot(kernel, &again, true)?.outcomes {
                if second.name == KERNEL {
                    // It is no program's, and is not undone by what passed.
                    run.outcomes.push(second);
                    continue;
                }
                let first = run.outcomes.iter_mut().find(|outcome| outcome.name == second.name);
                if let Some(first) = first.filter(|_| second.tally.failed == 0 && second.tally.passed > 0) {
                    first.tally.passed += first.tally.failed;
                    first.tally.failed = 0;
                    first.flaky = std::mem::take(&mut first.failed);
                }
            }
        }
        for outcome in run.outcomes.iter().filter(|outcome| outcome.tally.failed > 0) {
            say::error(&format!("Linux {name}: {}: {}", outcome.name, outcome.failed.join(", ")));
            outcome.words.iter().for_each(|line| eprintln!("    {line}"));
        }
        run.seconds = begin.elapsed().as_secs();
        Ok(run)
    }

    /// Boots as often as it takes for every program to have its turn.
    fn boot(&mut self, kernel: &Kernel, programs: &[Program], one_thread: bool) -> Result<Run> {
        let log = self.folder.join(format!("{}.x", kernel.version));
        let image = Image(self.folder.join(format!("{}.initrd", kernel.version)));
        image::write(&image.0, kernel, self.userland, programs)?;
        let mut hearing = Hearing::new(programs);
        let mut run =
            Run { kernel: kernel.version.clone(), debian: kernel.suite.debian.to_owned(), ..Run::default() };
        let mut from = 0;
        let mut complaints = Vec::new();
        for boot in 1.. {
            let guest = Guest {
                architecture: self.architecture,
                qemu: self.qemu,
                kernel: &kernel.image,
                image: &image.0,
                log: &log,
                one_thread,
                from,
            };
            let end = guest.run(self.until, self.interrupted, |line| hearing.line(line))?;
            let console = std::fs::read(guest.console()).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if !one_thread && console.contains(INT3) {
                say::warn(&format!("Linux {}: {INT3}: see INT3 in xtask/src/vm/mod.rs", kernel.version));
            }
            complaints.extend(complaints_of(if one_thread { &console } else { before_int3(&console) }));
            let why = match end {
                End::Done => break,
                End::Died => "the guest ended",
                End::Stuck => "the guest is stuck",
                End::Late => {
                    // What it was at is not to blame.
                    let turns = hearing.outcomes.len();
                    run.skipped =
                        Some(format!("no time was left after {turns} of {} programs", programs.len()));
                    break;
                }
                End::Interrupted => {
                    run.skipped = Some("interrupted".to_owned());
                    break;
                }
            };
            say::warn(&format!("Linux {}: {why}: see {}", kernel.version, guest.console().display()));
            let turns = hearing.gone(why);
            if turns == from && boot == 1 || turns >= programs.len() {
                if turns < programs.len() {
                    hearing.outcomes.push(did_not_boot(why));
                }
                break;
            }
            if boot == BOOTS {
                run.skipped = Some(format!(
                    "{why} {BOOTS} times; {turns} of {} programs had their turn",
                    programs.len()
                ));
                break;
            }
            from = turns;
        }
        run.release = hearing.release;
        run.outcomes = hearing.outcomes;
        run.capabilities = hearing.capabilities;
        if !complaints.is_empty() {
            let tally = Tally { failed: 1, ..Tally::default() };
            let name = KERNEL.to_owned();
            run.outcomes.push(Outcome { name, tally, failed: complaints, ..Outcome::default() });
        }
        Ok(run)
    }
}

/// The outcome that says what a kernel complained of.
const KERNEL: &str = "kernel";

/// A kernel that changes its own code (a tracepoint's, as a program is attached) puts a breakpoint there meanwhile. Where
/// each emulated processor has a thread of its own, one may come upon that after it was taken away, which the kernel takes
/// for a breakpoint of nobody's, and panics: seen in qemu 7.2 with Linux 6.12 and 7.2, and never on a machine. What was at
/// it is run again by one thread, where this counts.
const INT3: &str = "Oops: int3";

fn before_int3(console: &str) -> &str {
    let line = console.find(INT3).map(|at| console[..at].rfind('\n').map_or(0, |end| end + 1));
    line.map_or(console, |start| &console[..start])
}

/// What a kernel says of itself that it never should, whatever a program asks of it. An emulated processor that had to
/// wait for its turn is called a soft lockup: that is this machine's doing.
fn complaints_of(console: &str) -> Vec<String> {
    let is_one = |line: &&str| {
        ["WARNING:", "BUG:", "Oops", "general protection", "Kernel panic"]
            .iter()
            .any(|word| line.contains(word))
            && !line.contains("soft lockup")
    };
    console.lines().filter(is_one).map(|line| line.trim().to_owned()).collect()
}

fn did_not_boot(why: &str) -> Outcome {
    let tally = Tally { failed: 1, ..Tally::default() };
    Outcome { name: "boot".to_owned(), tally, failed: vec![why.to_owned()], ..Outcome::default() }
}

/// The same program with only those tests that failed, one after the other.
fn once_more(programs: &[Program], outcome: &Outcome) -> Option<Program> {
    let program = programs.iter().find(|program| program.name == outcome.name)?;
    // What has no tests' names among its failures has crashed: all of it runs again.
    let names: Vec<&String> = outcome.failed.iter().filter(|name| !name.contains(' ')).collect();
    if outcome.tally.failed == 0 || program.name == DOCTOR {
        return None;
    }
    let mut program = program.clone();
    program.arguments.push("--test-threads=1".to_owned());
    if names.len() == outcome.failed.len() {
        program.arguments.push("--exact".to_owned());
        program.arguments.extend(names.into_iter().cloned());
    }
    Some(program)
}

/// A file that goes with us.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{before_int3, complaints_of};

    #[test]
    fn what_a_kernel_should_never_say() {
        let console =
            "[    6.4] doctor (115): Using fanotify permission checks may lead to deadlock; tainting kernel
[   10.7] WARNING: CPU: 0 PID: 115 at kernel/bpf/verifier.c:10493 bpf_check+0x2f92/0x3470
[  452.6] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [exe:2590]
[  869.0] Memory cgroup out of memory: Killed process 13884 (tail)
[  870.0] BUG: kernel NULL pointer dereference, address: 0000000000000000\r
";
        let expected = [
            "[   10.7] WARNING: CPU: 0 PID: 115 at kernel/bpf/verifier.c:10493 bpf_check+0x2f92/0x3470",
            "[  870.0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
        ];
        assert_eq!(complaints_of(console), expected);
        let emulated =
            "[  1.0] WARNING: one\n[  57.9] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n[  57.9] Kernel panic\n";
        assert_eq!(complaints_of(before_int3(emulated)), ["[  1.0] WARNING: one"]);
        assert_eq!(complaints_of(before_int3("[  1.0] BUG: two\n")), ["[  1.0] BUG: two"]);
    }
}
