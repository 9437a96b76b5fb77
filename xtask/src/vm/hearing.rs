//! Understanding what a guest says: which program it is at, and what came of each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::programs::{DOCTOR, Program};
use crate::say;
use crate::test::{Reader, Tally};

/// What came of one program in one guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) tally: Tally,
    /// Tests that failed, or what else went wrong.
    pub(super) failed: Vec<String>,
    /// Each with its reason.
    pub(super) skipped: BTreeMap<String, String>,
    pub(super) seconds: f64,
    /// Failed among the others, and passed by themselves.
    pub(super) flaky: Vec<String>,
    /// The end of what it printed, where it failed.
    pub(super) words: Vec<String>,
}

/// What the program's own report says of a kernel's capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) name: String,
    pub(super) available: String,
    pub(super) detail: Option<String>,
}

/// Listens to a guest.
pub(super) struct Hearing<'a> {
    programs: &'a [Program],
    pub(super) release: Option<String>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) capabilities: Vec<Capability>,
    current: Option<Current<'a>>,
}

struct Current<'a> {
    program: &'a Program,
    reader: Reader,
    skips: String,
    words: Vec<String>,
}

/// How many lines of what a program printed are shown where it failed.
const SHOWN: usize = 150;

impl<'a> Hearing<'a> {
    pub(super) fn new(programs: &'a [Program]) -> Self {
        Self { programs, release: None, outcomes: Vec::new(), capabilities: Vec::new(), current: None }
    }

    /// Takes a line; says how long the guest may be silent now.
    pub(super) fn line(&mut self, line: &str) -> Duration {
        if let Some(words) = line.strip_prefix("| ") {
            if let Some(current) = &mut self.current {
                current.reader.line(words);
                current.words.push(words.to_owned());
            }
        } else if let Some(words) = line.strip_prefix(">> ") {
            self.said(words);
        }
        self.current.as_ref().map_or(Duration::ZERO, |current| current.program.limit)
    }

    fn said(&mut self, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        let mut fields = rest.split(' ');
        match verb {
            "up" => self.release = fields.next().map(str::to_owned),
            "begin" => {
                let number: usize = fields.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                let program = number.checked_sub(1).and_then(|i| self.programs.get(i));
                self.current = program.map(|program| Current {
                    program,
                    reader: Reader::default(),
                    skips: String::new(),
                    words: Vec::new(),
                });
            }
            "skip" => {
                if let Some(current) = &mut self.current {
                    current.skips += rest;
                    current.skips.push('\n');
                }
            }
            "end" => {
                let mut numbers = fields.skip(1).map(|n| n.parse::<f64>().unwrap_or(f64::NAN));
                let (code, begin, end) = (numbers.next(), numbers.next(), numbers.next());
                let seconds = end.unwrap_or(f64::NAN) - begin.unwrap_or(f64::NAN);
                self.ended(code.map_or(-1, |code| code as i32), seconds);
            }
            _ => {}
        }
    }

    fn ended(&mut self, code: i32, seconds: f64) {
        let Some(current) = self.current.take() else { return };
        if current.program.name == DOCTOR {
            let outcome = self.doctor(&current.words, code, seconds);
            self.outcomes.push(outcome);
            return;
        }
        let wrong = match code {
            0 => None,
            137 => Some(format!("killed at its limit of {} s", current.program.limit.as_secs())),
            code if code > 128 => Some(format!("ended by signal {}", code - 128)),
            code => Some(format!("exit code {code}")),
        };
        self.outcomes.push(current.outcome(wrong, seconds));
    }

    /// The guest is gone, and `why`; what it was at has failed. How many programs have had their turn.
    pub(super) fn gone(&mut self, why: &str) -> usize {
        if let Some(current) = self.current.take() {
            self.outcomes.push(current.outcome(Some(why.to_owned()), f64::NAN));
        }
        self.outcomes.len()
    }

    fn doctor(&mut self, words: &[String], code: i32, seconds: f64) -> Outcome {
        let mut outcome = Outcome { name: DOCTOR.to_owned(), seconds, ..Outcome::default() };
        let text = words.join("\n");
        let report = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
        let Some(report) = report else {
            outcome.tally.failed = 1;
            outcome.failed.push(format!("exit code {code}, and no report"));
            outcome.words = words.to_vec();
            return outcome;
        };
        for capability in report["capabilities"].as_array().into_iter().flatten() {
            let text = |field: &str| capability[field].as_str().map(str::to_owned);
            self.capabilities.push(Capability {
                name: text("name").unwrap_or_default(),
                available: text("available").unwrap_or_default(),
                detail: text("detail"),
            });
        }
        if report["verdict"] == "cannot-work" || self.capabilities.is_empty() {
            outcome.tally.failed = 1;
            outcome.failed.push(format!("it says: {}, {}", report["verdict"], report["error"]));
            outcome.words = words.to_vec();
        } else {
            outcome.tally.passed = 1;
        }
        outcome
    }
}

impl Current<'_> {
    fn outcome(self, wrong: Option<String>, seconds: f64) -> Outcome {
        let crashed = self.reader.crashed() > 0;
        let mut failed = self.reader.failed.clone();
        let (mut tally, skipped) = self.reader.finish(&self.skips);
        if let Some(wrong) = wrong
            && (crashed || tally.failed == 0)
        {
            tally.failed = tally.failed.max(1);
            failed.push(wrong);
        }
        let words = if tally.failed > 0 {
            self.words[self.words.len().saturating_sub(SHOWN)..].to_vec()
        } else {
            Vec::new()
        };
        let name = self.program.name.clone();
        say::note(&format!("{name}: {tally} ({seconds:.0} s)"));
        Outcome { name, tally, failed, skipped, seconds, words, flaky: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Program {
        Program { name: name.into(), file: "/x".into(), arguments: vec![], limit: Duration::from_secs(9) }
    }

    #[test]
    fn results_are_the_script_s_words_only() {
        let programs = [program(DOCTOR), program("a"), program("b"), program("c")];
        let mut hearing = Hearing::new(&programs);
        let said = r#">> up 6.1.0-50-cloud-amd64 5.15
>> begin 1 doctor
| {"verdict": "works",
| "capabilities": [{"name": "x", "available": "no", "detail": "why"}]}
>> end 1 1 5.2 6.0
>> begin 2 a
| running 3 tests
| test t::one ... FAILED
| >> end 2 0 1 2
| test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
>> skip SKIPPED: a::t::two: no such thing
>> end 2 101 6.0 8.5
[   12.3] a kernel's words
>> begin 3 b
| running 2 tests"#;
        for line in said.lines() {
            hearing.line(line);
        }
        assert_eq!(hearing.line("| test x"), Duration::from_secs(9));
        hearing.line(">> end 3 137 8.5 17.5");
        hearing.line(">> begin 4 c");
        assert_eq!(hearing.gone("the guest is stuck"), 4);
        assert_eq!(hearing.release.as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(hearing.capabilities.len(), 1);
        let tallies: Vec<(&str, String, &[String])> =
            hearing.outcomes.iter().map(|o| (&*o.name, o.tally.to_string(), &*o.failed)).collect();
        assert_eq!(
            tallies,
            [
                ("doctor", "1 passed, 0 failed, 0 skipped".into(), &[][..]),
                ("a", "1 passed, 1 failed, 1 skipped".into(), &["t::one".to_owned()]),
                ("b", "0 passed, 1 failed, 0 skipped".into(), &["killed at its limit of 9 s".to_owned()]),
                ("c", "0 passed, 1 failed, 0 skipped".into(), &["the guest is stuck".to_owned()]),
            ]
        );
    }
}
