//! The tables: what each kernel can do, and what came of the tests on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::hearing::{Capability, Outcome};
use crate::test::Tally;

/// All that was seen of one kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// What a person calls it: `6.1.176`.
    pub(super) kernel: String,
    pub(super) debian: String,
    pub(super) release: Option<String>,
    pub(super) capabilities: Vec<Capability>,
    pub(super) outcomes: Vec<Outcome>,
    /// Why there is nothing, or not all, of it.
    pub(super) skipped: Option<String>,
    pub(super) seconds: u64,
}

/// What is not the program's own report's to say, and the tests of which show it.
const SHOWN_BY_TESTS: &[(&str, &str)] = &[("cgroup2-oom-killed", "oom")];

impl Run {
    pub(super) fn tally(&self) -> Tally {
        let mut sum = Tally { skipped: usize::from(self.skipped.is_some()), ..Tally::default() };
        for outcome in &self.outcomes {
            sum.passed += outcome.tally.passed;
            sum.failed += outcome.tally.failed;
            sum.skipped += outcome.tally.skipped;
        }
        sum
    }

    fn capability(&self, name: &str) -> String {
        if let Some((_, test)) = SHOWN_BY_TESTS.iter().find(|(shown, _)| *shown == name) {
            let outcome = self.outcomes.iter().find(|outcome| outcome.name == *test);
            return match outcome.map(|outcome| &outcome.tally) {
                Some(tally) if tally.failed > 0 => "no",
                Some(tally) if tally.passed > 0 => "yes",
                _ => "",
            }
            .to_owned();
        }
        let found = self.capabilities.iter().find(|capability| capability.name == name);
        found.map_or_else(String::new, |capability| capability.available.clone())
    }
}

/// A table, of rows of cells; the first is its head.
struct Table(Vec<Vec<String>>);

impl Table {
    fn text(&self) -> String {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |i: usize| self.0.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        for (i, row) in self.0.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if i == 0 {
                let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
            }
        }
        text
    }
}

/// Kernel by capability.
fn capabilities(runs: &[Run], name: impl Fn(&Run) -> String) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for capability in runs.iter().flat_map(|run| &run.capabilities) {
        if !names.contains(&capability.name.as_str()) {
            names.push(&capability.name);
        }
    }
    for (shown, test) in SHOWN_BY_TESTS {
        if runs.iter().any(|run| run.outcomes.iter().any(|outcome| outcome.name == *test)) {
            names.push(shown);
        }
    }
    let head = std::iter::once(String::from("capability")).chain(runs.iter().map(name)).collect();
    let row = |wanted: &&str| {
        std::iter::once((*wanted).to_owned()).chain(runs.iter().map(|run| run.capability(wanted))).collect()
    };
    Table(std::iter::once(head).chain(names.iter().map(row)).collect())
}

/// Kernel by program.
fn tests(runs: &[Run]) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for outcome in runs.iter().flat_map(|run| &run.outcomes) {
        if !names.contains(&outcome.name.as_str()) {
            names.push(&outcome.name);
        }
    }
    let head =
        std::iter::once("passed/failed/skipped".to_owned()).chain(runs.iter().map(|run| run.kernel.clone()));
    let cell = |tally: &Tally| format!("{}/{}/{}", tally.passed, tally.failed, tally.skipped);
    let mut rows: Vec<Vec<String>> = vec![head.collect()];
    for name in names {
        let mut row = vec![name.to_owned()];
        for run in runs {
            let outcome = run.outcomes.iter().find(|outcome| outcome.name == name);
            row.push(outcome.map_or_else(String::new, |o| format!("{} {:.0}s", cell(&o.tally), o.seconds)));
        }
        rows.push(row);
    }
    let all = runs.iter().map(|run| format!("{} {}s", cell(&run.tally()), run.seconds));
    rows.push(std::iter::once("all".to_owned()).chain(all).collect());
    Table(rows)
}

/// For a terminal: both tables, and every reason.
pub(super) fn text(runs: &[Run]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", capabilities(runs, |run| run.kernel.clone()).text());
    let _ = writeln!(text, "{}", tests(runs).text());
    let mut why: BTreeMap<(String, &str), BTreeSet<&str>> = BTreeMap::new();
    for run in runs {
        for capability in run.capabilities.iter().filter(|c| c.available != "yes") {
            let detail = capability.detail.as_deref().unwrap_or("no reason is given");
            why.entry((format!("{}: {}", capability.name, capability.available), detail))
                .or_default()
                .insert(&run.kernel);
        }
        for outcome in &run.outcomes {
            for (test, reason) in &outcome.skipped {
                why.entry((format!("SKIPPED: {}: {test}", outcome.name), reason))
                    .or_default()
                    .insert(&run.kernel);
            }
            for test in &outcome.flaky {
                let line =
                    (format!("FLAKY: {}: {test}", outcome.name), "failed among the others, passed by itself");
                why.entry(line).or_default().insert(&run.kernel);
            }
            for test in &outcome.failed {
                why.entry((format!("FAILED: {}: {test}", outcome.name), "")).or_default().insert(&run.kernel);
            }
        }
        if let Some(reason) = &run.skipped {
            why.entry((format!("SKIPPED: {}", run.debian), reason)).or_default().insert(&run.kernel);
        }
    }
    for ((what, reason), kernels) in why {
        let kernels: Vec<&str> = kernels.into_iter().filter(|kernel| !kernel.is_empty()).collect();
        let on = if kernels.is_empty() { String::new() } else { format!(" [{}]", kernels.join(", ")) };
        let colon = if reason.is_empty() { "" } else { ": " };
        let _ = writeln!(text, "{what}{colon}{reason}{on}");
    }
    text
}

/// For programs.
pub(super) fn json(runs: &[Run], tally: &Tally) -> Value {
    let of =
        |tally: &Tally| json!({"passed": tally.passed, "failed": tally.failed, "skipped": tally.skipped});
    let kernels = runs.iter().map(|run| {
        let names: Vec<&str> = run.capabilities.iter().map(|capability| capability.name.as_str()).collect();
        let shown = SHOWN_BY_TESTS.iter().map(|(name, _)| *name);
        let capabilities: serde_json::Map<_, _> = names
            .into_iter()
            .chain(shown)
            .map(|name| (name.to_owned(), json!(run.capability(name))))
            .collect();
        let outcomes = run.outcomes.iter().map(|outcome| {
            json!({
                "name": outcome.name, "result": of(&outcome.tally), "failed": outcome.failed,
                "skipped": outcome.skipped, "flaky": outcome.flaky,
                "seconds": outcome.seconds.is_finite().then_some(outcome.seconds),
            })
        });
        json!({
            "kernel": run.kernel, "debian": run.debian, "release": run.release, "capabilities": capabilities,
            "tests": outcomes.collect::<Vec<_>>(), "result": of(&run.tally()), "skipped": run.skipped,
            "seconds": run.seconds,
        })
    });
    json!({"kernels": kernels.collect::<Vec<_>>(), "result": of(tally)})
}

const BEGIN: &str = "<!-- written by `cargo xtask vm --write` -->";
const END: &str = "<!-- end -->";

/// Puts the table into a document, between its markers.
pub(super) fn write(path: &Path, runs: &[Run]) -> Result<()> {
    let old = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let new = between(&old, &document(runs))
        .with_context(|| format!("{} has no line {BEGIN} with a line {END} after it", path.display()))?;
    std::fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}

fn document(runs: &[Run]) -> String {
    let mut table = capabilities(runs, |run| format!("{} ({})", run.kernel, run.debian));
    for row in table.0.iter_mut().skip(1) {
        row[0] = format!("`{}`", row[0]);
    }
    let mut names: Vec<&str> =
        runs.iter().flat_map(|run| &run.outcomes).map(|outcome| outcome.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let results = runs.iter().map(|run| run.tally().to_string());
    table.0.push(std::iter::once(format!("tests: {}", names.join(", "))).chain(results).collect());
    table.markdown()
}

fn between(old: &str, new: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{new}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kernel: &str, available: &str, failed: usize) -> Run {
        let capability = Capability { name: "bpf-exit".into(), available: available.into(), detail: None };
        let tally = Tally { passed: 3, failed, skipped: 1 };
        let outcome = Outcome {
            name: "oom".into(),
            tally,
            seconds: 2.4,
            skipped: [("a".to_owned(), "why".to_owned())].into(),
            ..Outcome::default()
        };
        Run {
            kernel: kernel.into(),
            debian: "Debian 12".into(),
            capabilities: vec![capability],
            outcomes: vec![outcome],
            seconds: 7,
            ..Run::default()
        }
    }

    #[test]
    fn a_row_for_each_capability_and_program() {
        let text = text(&[run("6.1.2", "yes", 0), run("7.0", "no", 1)]);
        let expected = "\
capability          6.1.2  7.0
bpf-exit            yes    no
cgroup2-oom-killed  yes    no

passed/failed/skipped  6.1.2     7.0
oom                    3/0/1 2s  3/1/1 2s
all                    3/0/1 7s  3/1/1 7s

SKIPPED: oom: a: why [6.1.2, 7.0]
bpf-exit: no: no reason is given [7.0]
";
        assert_eq!(text, expected);
    }

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let old = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&old, &document(&[run("6.1.2", "yes", 0)])).unwrap_or_default();
        let table = "| capability | 6.1.2 (Debian 12) |\n| --- | --- |\n| `bpf-exit` | yes |\n\
                     | `cgroup2-oom-killed` | yes |\n| tests: oom | 3 passed, 0 failed, 1 skipped |\n";
        assert_eq!(new, format!("a\n{BEGIN}\n{table}{END}\nb\n"));
        assert_eq!(between("no markers", ""), None);
    }
}
