//! `containerhook verify`: holds a log of events against the model of legal lives.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use containerhook::EventKind;
use containerhook::verify::{Model, Rules, Violation};

use crate::args::{Global, event_kind};
use crate::failure::FAILED;
use crate::output::{self, Ink, Pen};
use crate::row::clean;

/// The longest line that is read: a configuration of 16 MiB, and as much again for what JSON makes of it.
const LONGEST_LINE: u64 = 32 << 20;

const HELP: &str = "\
Examples:
  containerhook watch --json > events.jsonl
  containerhook verify events.jsonl
  containerhook verify --event created,stopped < some.jsonl    a log that `watch --event` made

Exit codes:
  0  nothing is wrong
  1  something is: each finding is a line on stdout; a count is on stderr
  2  the log cannot be read";

/// Checks a log of events: is every life whole and in order?
///
/// It reads the lines that `watch --json` prints, and checks that numbers have no gap, that each container is told once
/// and in order, that what was held was answered, that pids stay the same, and that each line is of the contract's form.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct VerifyArgs {
    /// The log; - is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The log holds these kinds only: as they were given to `watch --event`
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kind())]
    event: Vec<EventKind>,
    /// The log holds some containers only, and its numbers have gaps: `watch --filter` made it
    #[arg(long)]
    gaps: bool,
    /// The log is a part: it may begin anywhere, and any line may be missing
    #[arg(long)]
    partial: bool,
    /// The log is whole: every life that begins must also end in it
    #[arg(long)]
    complete: bool,
}

pub(crate) fn run(args: &VerifyArgs, global: &Global) -> anyhow::Result<ExitCode> {
    match verify(args, Pen { colored: global.color.on_stdout() }) {
        Ok(code) => Ok(code),
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(output::gone) => {
            Ok(ExitCode::from(FAILED))
        }
        Err(error) => Err(error),
    }
}

fn verify(args: &VerifyArgs, pen: Pen) -> anyhow::Result<ExitCode> {
    let mut input = open(&args.file)?;
    let mut model = Model::new(Rules {
        kinds: args.event.clone(),
        gaps: args.gaps,
        partial: args.partial,
        complete: args.complete,
    });
    let mut lines = 0;
    let mut count = 0_u64;
    let mut show = |violations: Vec<Violation>| -> anyhow::Result<()> {
        for violation in violations {
            count += 1;
            output::line(&pen.paint(Ink::Red, &clean(&violation.to_string())))?;
        }
        Ok(())
    };
    let mut line = Vec::new();
    while read_line(&mut input, &mut line).with_context(|| format!("cannot read {}", name(&args.file)))? {
        lines += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if line.len() as u64 > LONGEST_LINE {
            show(vec![broken(lines, format!("it is longer than {} MiB", LONGEST_LINE >> 20))])?;
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(value) => model.line(lines, &value),
            Err(error) => show(vec![broken(lines, format!("it is no JSON: {error}"))])?,
        }
        show(model.take_violations())?;
    }
    let (summary, violations) = model.finish();
    show(violations)?;
    eprintln!(
        "{} events, {} containers of which {} ended and {} are open: {}",
        summary.events,
        summary.lives,
        summary.ended,
        summary.open,
        match count {
            0 => "nothing is wrong".to_owned(),
            1 => "1 finding".to_owned(),
            _ => format!("{count} findings"),
        }
    );
    Ok(ExitCode::from(if count == 0 { 0 } else { FAILED }))
}

fn broken(line: u64, what: String) -> Violation {
    Violation { line: Some(line), id: None, what }
}

fn name(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path)
        .map_err(|error| crate::failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    Ok(Box::new(BufReader::new(file)))
}

/// The next line without its end; `false` at the end of the input. Of a line that is too long one byte more than is
/// allowed is kept, and the rest is passed over.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut bounded = input.take(LONGEST_LINE + 1);
    if bounded.read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 > LONGEST_LINE {
        loop {
            let buffer = input.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let used = end.map_or(buffer.len(), |end| end + 1);
            input.consume(used);
            if end.is_some() {
                break;
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_bound_is_passed_over_and_the_next_is_read() {
        let long = io::repeat(b'x').take(LONGEST_LINE + 5);
        let mut input = BufReader::new(b"{}\n".chain(long).chain(&b"\n[1]"[..]));
        let mut line = Vec::new();
        assert!(read_line(&mut input, &mut line).unwrap());
        assert_eq!(line, b"{}");
        assert!(read_line(&mut input, &mut line).unwrap());
        assert_eq!(line.len() as u64, LONGEST_LINE + 1);
        assert!(read_line(&mut input, &mut line).unwrap());
        assert_eq!(line, b"[1]");
        assert!(!read_line(&mut input, &mut line).unwrap());
    }
}
