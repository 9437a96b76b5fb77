//! Results as tables, and docs/benchmarks.md: the prose of `benches/benchmarks.md`, with the tables in their places.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::result::{Found, Results, Row};
use crate::stats::Estimate;

/// The prose. A line `{{NAME}}` stands for the tables of the benchmark of that name.
const PROSE: &str = include_str!("../benchmarks.md");

pub(crate) fn write(results: &Results, docs: &Path) -> Result<()> {
    let mut page = String::new();
    for line in PROSE.lines() {
        match line.strip_prefix("{{").and_then(|line| line.strip_suffix("}}")) {
            // A plot of what was not measured yet is not there.
            None if plot(line).is_some_and(|plot| !docs.join(plot).exists()) => {}
            None => writeln!(page, "{line}")?,
            Some(name) => {
                let benchmark = crate::benchmarks::ALL.iter().find(|benchmark| benchmark.name == name);
                ensure!(
                    benchmark.is_some(),
                    "benches/benchmarks.md names a benchmark {name}, which there is not"
                );
                match results.0.get(name) {
                    Some(found) => page.push_str(&table(found)),
                    None => writeln!(page, "Not measured yet: `cargo xtask bench {name}`.")?,
                }
            }
        }
    }
    let path = docs.join("benchmarks.md");
    fs::write(&path, page).with_context(|| format!("writing {}", path.display()))
}

/// The file of `![words](file)`.
fn plot(line: &str) -> Option<&str> {
    line.strip_prefix("![")?.split_once("](")?.1.strip_suffix(')')
}

/// The tables of one benchmark, in Markdown.
pub(crate) fn table(found: &Found) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "### {}\n", found.title);
    let _ = writeln!(
        text,
        "`{}` at {} on {}; {}; load average before it {:.2}.\n",
        found.command, found.commit, found.date, found.machine, found.load
    );
    let mut groups: Vec<&str> = Vec::new();
    for row in &found.rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    let compared = found.rows.iter().any(|row| row.ratio.is_some());
    if compared {
        text.push_str("| | | median | p99 | n | ratio of pairs (95 %) | added (95 %) |\n");
        text.push_str("| --- | --- | ---: | ---: | ---: | ---: | ---: |\n");
    } else {
        text.push_str("| | | median | p99 | n |\n| --- | --- | ---: | ---: | ---: |\n");
    }
    for group in groups {
        let mut name = group;
        for row in found.rows.iter().filter(|row| row.group == group) {
            let _ = write!(text, "| {name} | {} |", row.arm);
            name = "";
            let p99 = row.p99.map_or_else(String::new, |p99| with_unit(p99, row));
            let n = if row.n > 1 { row.n.to_string() } else { String::new() };
            let _ = write!(text, " {} | {p99} | {n} |", with_unit(row.median, row));
            if compared {
                let ratio = row.ratio.map_or_else(String::new, |ratio| interval(ratio, "× ", 3));
                let added = row.added.map_or_else(String::new, |added| {
                    format!("{} {}", interval(added, "", digits(row)), row.unit)
                });
                let _ = write!(text, " {ratio} | {added} |");
            }
            text.push('\n');
        }
    }
    for note in &found.notes {
        let _ = write!(text, "\n{note}\n");
    }
    text.push('\n');
    text
}

fn with_unit(value: f64, row: &Row) -> String {
    format!("{value:.*} {}", digits(row), row.unit)
}

/// As many digits as three figures take.
fn digits(row: &Row) -> usize {
    match row.median.abs() {
        median if median >= 100.0 => 0,
        median if median >= 10.0 => 1,
        _ => 2,
    }
}

fn interval(estimate: Estimate, before: &str, digits: usize) -> String {
    let Estimate { value, low, high } = estimate;
    format!("{before}{value:.digits$} ({low:.digits$} to {high:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Samples;

    #[test]
    fn a_table_has_the_command_the_machine_and_a_line_for_each_row() {
        let base = Samples(vec![vec![100.0], vec![110.0]]);
        let slow = Samples(vec![vec![200.0], vec![220.0]]);
        let found = Found {
            title: "T".into(),
            command: "cargo xtask bench t".into(),
            date: "2026-01-01".into(),
            commit: "abc".into(),
            machine: "2 × CPU".into(),
            load: 0.1,
            rows: vec![
                Row::of("exec", "none", "µs", &base),
                Row::of("exec", "floor", "µs", &slow).compared(&slow, "none", &base),
            ],
            notes: vec!["A note.".into()],
        };
        let text = table(&found);
        assert!(text.contains("`cargo xtask bench t` at abc on 2026-01-01; 2 × CPU; load"), "{text}");
        assert!(text.contains("| exec | none | 105 µs |  | 2 |  |  |"), "{text}");
        assert!(
            text.contains("|  | floor | 210 µs |  | 2 | × 2.000 (2.000 to 2.000) | 105 (100 to 110) µs |"),
            "{text}"
        );
        assert!(text.ends_with("\nA note.\n\n"), "{text}");
    }

    #[test]
    fn the_prose_names_every_benchmark() {
        for benchmark in crate::benchmarks::ALL {
            assert!(
                PROSE.lines().any(|line| line == format!("{{{{{}}}}}", benchmark.name)),
                "{}",
                benchmark.name
            );
        }
    }
}
