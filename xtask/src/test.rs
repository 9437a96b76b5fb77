//! `cargo xtask test`: everything that tests need, the tests, and an honest count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use testkit::Scratch;

use crate::{cargo, install, say};

/// Install what the tests need, run all of them, and say which were skipped and why
///
/// Unit, property, documentation and integration tests of the whole workspace, the last ones against real runtimes and
/// engines. Ends with the line `N passed, N failed, N skipped`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Test {
    /// Only the tests whose name contains this
    filter: Option<String>,
    /// Install nothing: tests that lack something are skipped
    #[arg(long)]
    no_install: bool,
    /// Fail instead of skipping where this is missing: `all`, or names such as runc,docker
    #[arg(long, value_name = "LIST")]
    require: Option<String>,
}

const EXAMPLES: &str = "Examples:
  sudo -E env PATH=$PATH cargo xtask test
  cargo xtask test containerd --no-install
  cargo xtask test --require runc,crun,containerd";

/// What came of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        let tally = self.count()?;
        println!("\n{tally}");
        if tally.failed > 0 {
            bail!("{} failed", tally.failed);
        }
        if let (Some(filter), true) = (&self.filter, tally == Tally::default()) {
            bail!("no test has {filter:?} in its name");
        }
        Ok(())
    }

    /// All tests, with all that they need.
    pub(crate) fn all() -> Self {
        Self { filter: None, no_install: false, require: None }
    }

    pub(crate) fn count(&self) -> Result<Tally> {
        install::need_root("test")?;
        if !self.no_install {
            for result in [install::packages(install::TESTS), install::youki()] {
                // The tests that need it skip, and say so; the others can run.
                if let Err(error) = result {
                    say::warn(&format!("{error:#}"));
                }
            }
        }
        let scratch = Scratch::new()?;
        let skips = scratch.join("skips");
        let colour = if say::is_coloured(&std::io::stdout()) { "always" } else { "never" };
        let mut command = cargo();
        command.args(["test", "--workspace", "--no-fail-fast", "--color", colour]).args(&self.filter);
        command.args(["--", "--color", colour]);
        command.env("CONTAINERHOOK_SKIPS", &skips).env("CONTAINERHOOK_SCRATCH", scratch.path());
        if let Some(list) = &self.require {
            command.env("CONTAINERHOOK_REQUIRE", if list == "all" { "1" } else { list });
        }
        say::step("cargo test --workspace");
        let (reader, targets, success) = run(&mut command)?;
        let crashed = reader.crashed() > 0;
        let names = reader.failed.clone();
        let list = std::fs::read_to_string(&skips).unwrap_or_default();
        let (mut tally, skipped) = reader.finish(&list);
        let mut again = Vec::new();
        let mut still = Vec::new();
        if tally.failed > 0 && !targets.is_empty() {
            for target in &targets {
                say::step(&format!("cargo test {target}, what failed, once more and by itself"));
                let some = if crashed { &[] } else { names.as_slice() };
                if run_again(target, some, &scratch)? { again.push(target) } else { still.push(target) }
            }
            if still.is_empty() {
                tally.passed += tally.failed;
                tally.failed = 0;
            }
        }
        for target in &again {
            let names = names.join(" ");
            println!("FLAKY: {target}: failed among the others, and passed by itself ({names})");
        }
        if !success && tally.failed == 0 && again.is_empty() {
            say::error("cargo test failed although no test did: see its words above");
            tally.failed = 1;
        }
        // Fixtures clean up after themselves; what they left is a fault in them, and ends with `scratch`.
        let left = scratch.leftovers();
        if !left.is_empty() {
            say::error(&format!("tests left something behind:{left}"));
            tally.failed += 1;
        }
        if !skipped.is_empty() {
            println!();
            for (test, reason) in &skipped {
                println!("SKIPPED: {test}: {reason}");
            }
        }
        Ok(tally)
    }
}

/// Runs cargo, and shows what it and the tests print. Says which targets failed, and whether all went well.
fn run(command: &mut Command) -> Result<(Reader, Vec<String>, bool)> {
    let mut cargo =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting cargo test")?;
    let words = BufReader::new(cargo.stderr.take().context("cargo's words")?);
    let targets = std::thread::spawn(move || {
        let mut targets = Vec::new();
        for line in words.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            let _ = writeln!(std::io::stderr(), "{line}");
            let plain = without_colours(&line);
            let target = plain.trim().strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
            targets.extend(target.filter(|target| target.starts_with("-p ")).map(str::to_owned));
        }
        targets
    });
    let mut reader = Reader::default();
    let output = BufReader::new(cargo.stdout.take().context("cargo's output")?);
    let mut screen = std::io::stdout();
    for line in output.split(b'\n') {
        let line = line.context("reading what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        // A reader that has gone away is no reason to stop the tests.
        let _ = writeln!(screen, "{line}");
        reader.line(&line);
    }
    let status = cargo.wait().context("waiting for cargo test")?;
    Ok((reader, targets.join().unwrap_or_default(), status.success()))
}

/// Runs what failed of a target once more, one test after the other: real engines on a loaded machine give up by
/// themselves at times. All of the target where no name is known. It is told as flaky where it passes.
fn run_again(target: &str, names: &[String], scratch: &Scratch) -> Result<bool> {
    let mut command = cargo();
    command.arg("test").args(target.split(' ')).env("CONTAINERHOOK_SCRATCH", scratch.path());
    if names.is_empty() {
        let (reader, _, success) = run(&mut command)?;
        return Ok(success && reader.tally.failed == 0 && reader.tally.passed > 0);
    }
    command.args(["--", "--test-threads=1", "--exact"]).args(names);
    let (reader, _, success) = run(&mut command)?;
    Ok(success && reader.tally.failed == 0 && reader.tally.passed > 0)
}

/// Reads what test runners print.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The names of the tests that failed.
    pub(crate) failed: Vec<String>,
    crashes: usize,
    tally: Tally,
    ignored: BTreeMap<String, String>,
    /// A runner has said how many tests it runs, and nothing yet about how they ended.
    open: bool,
}

impl Reader {
    pub(crate) fn line(&mut self, line: &str) {
        let line = without_colours(line);
        let line = line.trim();
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.close();
            self.open = true;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.open = false;
            self.tally.passed += count(counts, "passed");
            self.tally.failed += count(counts, "failed");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failed.push(name.to_owned());
        } else if let Some((name, reason)) =
            line.strip_prefix("test ").and_then(|l| l.split_once(" ... ignored"))
        {
            let reason = reason.strip_prefix(", ").unwrap_or("marked #[ignore]");
            self.ignored.insert(name.to_owned(), reason.to_owned());
        }
    }

    /// A runner that ends without a result has crashed, or a watchdog has ended it.
    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.tally.failed += 1;
            self.crashes += 1;
        }
    }

    /// How many runners ended without a result, the last one included.
    pub(crate) fn crashed(&self) -> usize {
        self.crashes + usize::from(self.open)
    }

    /// The result, and each skipped test with its reason. A test that skips itself counts as passed to its runner.
    pub(crate) fn finish(mut self, skips: &str) -> (Tally, BTreeMap<String, String>) {
        self.close();
        let lines = skips.lines().filter_map(|l| l.strip_prefix("SKIPPED: ")?.split_once(": "));
        let mut skipped: BTreeMap<_, _> =
            lines.map(|(test, why)| (test.to_owned(), why.to_owned())).collect();
        // One test may skip several of its parts: `name (part)`.
        let tests: BTreeSet<_> = skipped.keys().map(|name| name.split(" (").next()).collect();
        self.tally.passed = self.tally.passed.saturating_sub(tests.len());
        skipped.append(&mut self.ignored);
        self.tally.skipped = skipped.len();
        (self.tally, skipped)
    }
}

/// The number before `what` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, what: &str) -> usize {
    let words: Vec<_> = counts.split([' ', ';', '.']).filter(|w| !w.is_empty()).collect();
    words.windows(2).find(|w| w[1] == what).and_then(|w| w[0].parse().ok()).unwrap_or(0)
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        // Colours, the only escapes that runners print, end with an m (`ESC [ 32 m`, `ESC ( B ESC [ m`).
        rest = match after.strip_prefix("(B") {
            Some(rest) => rest,
            None => after.split_once('m').map_or("", |(_, rest)| rest),
        };
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::{Reader, Tally};

    fn read(output: &str, skips: &str) -> (Tally, Vec<String>) {
        let mut reader = Reader::default();
        output.lines().for_each(|l| reader.line(l));
        let (tally, skipped) = reader.finish(skips);
        (tally, skipped.into_iter().map(|(test, why)| format!("{test}: {why}")).collect())
    }

    #[test]
    fn results_of_several_runners_add_up() {
        let output = "
running 3 tests
test a ... ok
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s
running 1 test
test result: \x1b[31mFAILED\x1b(B\x1b[m. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(read(output, ""), (Tally { passed: 8, failed: 2, skipped: 0 }, vec![]));
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let output = "
running 3 tests
test a ... ok
test slow ... ignored, takes an hour
test other ... \x1b[33mignored\x1b(B\x1b[m
test result: ok. 2 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let (tally, skipped) = read(output, "SKIPPED: crate::a: runc: not here\n");
        assert_eq!(tally, Tally { passed: 1, failed: 0, skipped: 3 });
        assert_eq!(skipped, ["crate::a: runc: not here", "other: marked #[ignore]", "slow: takes an hour"]);
    }

    #[test]
    fn a_test_that_skips_its_parts_is_one_test() {
        let output = "
running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let (tally, _) = read(output, "SKIPPED: a (one): no\nSKIPPED: a (two): no\n");
        assert_eq!(tally, Tally { passed: 1, failed: 0, skipped: 2 });
    }

    #[test]
    fn a_runner_without_a_result_has_failed() {
        let output = "
running 3 tests
test a ... ok
running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
running 2 tests";
        assert_eq!(read(output, "").0, Tally { passed: 1, failed: 2, skipped: 0 });
    }
}
