//! `cargo xtask ci`: everything that has to pass before a change is merged. `.ci/run` is this.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::bench::Bench;
use crate::test::{Tally, Test};
use crate::vm::Vm;
use crate::{bpf, cargo, install, say};

/// Formatting, clippy, docs, dependencies, the BPF object, the demo, the benchmarks' running, kernels, and all tests
///
/// Goes on after a failure, so that one run tells all of them. Ends with the line `N passed, N failed, N skipped`, in
/// which each check counts as one test.
#[derive(Debug, Args)]
pub(crate) struct Ci {
    /// Only the checks, no tests
    #[arg(long)]
    no_test: bool,
}

type Named = (&'static str, fn() -> Result<Check>);

enum Check {
    Passed,
    Skipped(String),
}

impl Ci {
    pub(crate) fn run(&self) -> Result<()> {
        let checks: [Named; 8] = [
            ("formatting", || run(cargo().args(["fmt", "--all", "--check"]), "cargo fmt")),
            ("clippy", || {
                let options = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
                run(cargo().args(options), "see its words above")
            }),
            ("documentation", || {
                // In two goes, for the library and the program have one name. With private items, for the module docs
                // of private modules are where the design is written down.
                for kind in ["--lib", "--bins"] {
                    let options = ["doc", "--workspace", "--no-deps", "--document-private-items", kind];
                    run(cargo().args(options).env("RUSTDOCFLAGS", "-D warnings"), "see its words above")?;
                }
                Ok(Check::Passed)
            }),
            ("dependencies: bans, licences, sources", || {
                install::cargo_deny()?;
                run(cargo().args(["deny", "check", "bans", "licenses", "sources"]), "see deny.toml")
            }),
            ("dependencies: advisories", advisories),
            ("BPF object", || {
                install::packages(install::BPF)?;
                bpf::run(true).map(|()| Check::Passed)
            }),
            ("the demo of the README", demo),
            ("benchmarks: they run and print", || Bench::to_see_that_it_runs().run().map(|()| Check::Passed)),
        ];
        let mut tally = Tally::default();
        let mut failed = Vec::new();
        let mut skipped = Vec::new();
        for (name, check) in checks {
            say::step(name);
            let begin = Instant::now();
            let result = check();
            let took = begin.elapsed().as_secs();
            match result {
                Ok(Check::Passed) => {
                    tally.passed += 1;
                    say::note(&format!("{name}: passed ({took} s)"));
                }
                Ok(Check::Skipped(reason)) => {
                    tally.skipped += 1;
                    say::warn(&format!("SKIPPED: {name}: {reason}"));
                    skipped.push(format!("SKIPPED: {name}: {reason}"));
                }
                Err(error) => {
                    tally.failed += 1;
                    say::error(&format!("{name}: {error:#} ({took} s)"));
                    failed.push(name);
                }
            }
        }
        let name = "kernels: the main tests, in virtual machines";
        say::step(name);
        match Vm::in_ci() {
            Ok((tests, reason)) => {
                tally.passed += tests.passed;
                tally.failed += tests.failed;
                tally.skipped += tests.skipped;
                if tests.failed > 0 {
                    failed.push(name);
                }
                if let Some(reason) = reason {
                    say::warn(&format!("SKIPPED: {name}: {reason}"));
                    skipped.push(format!("SKIPPED: {name}: {reason}"));
                }
            }
            Err(error) => {
                say::error(&format!("{name}: {error:#}"));
                tally.failed += 1;
                failed.push(name);
            }
        }
        if !self.no_test {
            match Test::all().count() {
                Ok(tests) => {
                    tally.passed += tests.passed;
                    tally.failed += tests.failed;
                    tally.skipped += tests.skipped;
                    if tests.failed > 0 {
                        failed.push("tests");
                    }
                }
                Err(error) => {
                    say::error(&format!("tests: {error:#}"));
                    tally.failed += 1;
                    failed.push("tests");
                }
            }
        }
        for line in skipped {
            println!("{line}");
        }
        println!("\n{tally}");
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// In a process of its own: one that hangs is ended by its watchdog.
fn demo() -> Result<Check> {
    let xtask = std::env::current_exe().context("finding this program")?;
    let status = Command::new(xtask).args(["demo", "--hold", "1"]).status().context("starting xtask demo")?;
    if !status.success() {
        bail!("cargo xtask demo ended with {status}: see its words above");
    }
    Ok(Check::Passed)
}

fn run(command: &mut Command, hint: &str) -> Result<Check> {
    let what = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting cargo {what}"))?;
    if !status.success() {
        bail!("cargo {what} failed: {hint}");
    }
    Ok(Check::Passed)
}

/// The database of advisories is a repository on GitHub, which not every machine that builds can reach.
fn advisories() -> Result<Check> {
    install::cargo_deny()?;
    let output = cargo().args(["deny", "check", "advisories"]).output().context("starting cargo deny")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(Check::Passed);
    }
    if text.contains("failed to fetch advisory database") || text.contains("failed to open advisory database")
    {
        return Ok(Check::Skipped("the advisory database cannot be fetched from here".to_owned()));
    }
    eprintln!("{text}");
    bail!("cargo deny check advisories failed: see its words above")
}
